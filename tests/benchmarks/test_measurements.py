"""The benchmarks measure what they say: small runs against a real node, and a loss is noticed."""

from __future__ import annotations

import argparse
import re
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import fleet, kills, report
from benchmarks.generator import Client, encode_submits
from benchmarks.load import Load, Outcome, apply
from benchmarks.million import queued_jobs
from benchmarks.servers import Server, gearfleet, running
from cluster.wire import Decoder, packets, response, split_arguments
from tests.support.etcd import needs_etcd

ROOT = Path(__file__).parents[2]
JOBS = 500


@pytest.fixture
def server() -> Iterator[Server]:
    with running(gearfleet("os")) as server:
        yield server


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_each_mode_ends_all_its_jobs(server: Server) -> None:
    for mode in ("fg", "bg", "drain", "bgfull"):
        outcome = apply(Load(mode, JOBS, clients=2, workers=2, in_flight=8, processes=2), server)

        assert outcome.jobs >= JOBS, mode
        assert outcome.errors == 0, mode
        if mode in ("fg", "bg"):
            assert outcome.waits_us.total() == JOBS, mode


def test_queued_jobs_are_counted_as_the_node_counts_it(server: Server) -> None:
    apply(Load("bg", JOBS), server)
    server.kill()
    server.start()

    assert queued_jobs(server) == JOBS


def test_encoded_submits_are_packets_of_one_length_with_distinct_keys() -> None:
    block, packet_bytes = encode_submits(packets.SUBMIT_JOB_BG, b"f", b"run-", 300, b"payload")

    assert len(block) == 300 * packet_bytes
    decoded = Decoder().feed(block)
    uniques = {bytes(split_arguments(packet_type, body)[1]) for packet_type, body in decoded}
    assert len(uniques) == 300
    assert {(kind, split_arguments(kind, body)[2]) for kind, body in decoded} == {
        (packets.SUBMIT_JOB_BG, b"payload")
    }


@pytest.mark.parametrize("piece_bytes", [1, 7, 8, 13, 4096])
def test_answers_are_counted_however_they_are_cut(piece_bytes: int) -> None:
    answers = (
        response(packets.JOB_CREATED, b"H:here:1")
        + response(packets.JOB_CREATED, b"H:here:10")
        + response(packets.ERROR, b"QUEUE_ERROR", b"full")
    )
    block, packet_bytes = encode_submits(packets.SUBMIT_JOB_BG, b"f", b"run-", 3, b"payload")
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as poller:
        client = Client(listener.getsockname(), poller, block, packet_bytes, in_flight=3)
        connection, _ = listener.accept()
        with connection, client.socket:
            client.begin()
            ended = 0
            for start in range(0, len(answers), piece_bytes):
                connection.sendall(answers[start : start + piece_bytes])
                assert poller.poll(10)
                ended += client.on_readable()

    assert ended == 3
    assert client.errors == 1
    assert client.waits_us.total() == 3


def test_waits_are_taken_from_all_jobs() -> None:
    waits = Counter({100: 98, 900: 1, 5000: 1})
    outcome = Outcome(jobs=100, seconds=2.0, errors=0, generator_share=0.95, waits_us=waits)

    assert (outcome.wait_us(0.5), outcome.wait_us(0.99), outcome.wait_us(1.0)) == (100, 900, 5000)
    assert outcome.rate == 50
    assert report.generator_bound([outcome])


def test_kills_lose_nothing_on_disk() -> None:
    result = bench("kills", "--times", "2", "--load-seconds", "0.1", "--seed", "1")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "seed 1\n" in result.stdout


def test_kills_notice_a_loss() -> None:
    result = bench("kills", "--times", "1", "--load-seconds", "0.1", "--durability", "memory")

    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"^lost: job-\d+$", result.stdout, re.MULTILINE)


def test_a_job_that_was_handed_out_and_not_answered_is_not_worked() -> None:
    ledger = kills.Ledger()
    ledger.acknowledged = {b"job-1"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = kills.WorkingPeer(listener.getsockname(), ledger)
        assign = response(packets.JOB_ASSIGN_UNIQ, b"H:1", b"kills", b"job-1", b"payload of job-1")
        peer.take(assign, more=False)
        peer.connection.close()
        assert ledger.lost() == {b"job-1"}

        peer = kills.WorkingPeer(listener.getsockname(), ledger)
        peer.take(assign, more=True)
        peer.connection.close()
        assert ledger.lost() == set()


def test_every_command_has_its_options() -> None:
    for name in program.COMMANDS:
        result = bench(name, "--help")
        assert result.returncode == 0
        assert "--" in result.stdout


@needs_etcd()
@pytest.mark.parametrize(
    "event", [("kills", "--kills", "2"), ("latency", "--jobs", "300"), ("throughput", "--jobs", "3000")]
)
def test_a_fleet_is_measured_beside_its_bars(event: tuple[str, ...]) -> None:
    result = bench("fleet", *event, "--repetitions", "1", "--rate", "300")

    # How fast it is depends on the machine; that a bar is missed is said, and is the exit code.
    lines = result.stdout.splitlines()
    assert any("(bar: " in line for line in lines), result.stdout + result.stderr
    assert result.returncode == int(any(line.startswith("MISSED") for line in lines))
    assert result.stderr == ""
    if event[0] == "kills":
        assert "  ok    acknowledged and lost: 0  (bar: ≤ 0 )" in lines


def test_a_lost_job_misses_its_bar() -> None:
    bars = fleet.Bars()
    bars.check("acknowledged and lost", 0, 0)
    assert bars.exit_code == 0
    bars.check("acknowledged and lost", 1, 0)
    assert bars.exit_code == 1


def test_the_quick_run_names_only_options_that_exist() -> None:
    for name, *arguments in program.QUICK:
        parser = argparse.ArgumentParser()
        program.COMMANDS[name].add_arguments(parser)
        parser.parse_args(arguments)
