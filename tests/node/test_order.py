"""What one connection submits is given out in the order sent, whatever has to wait for the disk."""

from __future__ import annotations

import pytest

from cluster.wire import packets as wire
from tests.node.bench import Bench, Peer


def given_out(worker: Peer) -> list[bytes]:
    """The payloads of all jobs that are there, in the order in which they are given out."""
    payloads = []
    while (packet := worker.ask(wire.GRAB_JOB)[0])[0] == wire.JOB_ASSIGN:
        payloads.append(bytes(packet[3]))
    return payloads


def worker_of(bench: Bench) -> Peer:
    worker = bench.worker(b"f")
    bench.settle()
    return worker


@pytest.mark.parametrize("durable", [True, False])
def test_foreground_does_not_overtake_background(durable: bool) -> None:
    bench = Bench(durable=durable)
    client, worker = bench.peer(), worker_of(bench)
    # Given four jobs in one turn
    for number in (1, 3):
        client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"%d" % number)
        client.say(wire.SUBMIT_JOB, b"f", b"", b"%d" % (number + 1))
    # Then nothing of them is given out before its turn
    worker.say(wire.GRAB_JOB)
    bench.settle()
    assert worker.heard() == [(wire.NO_JOB,)]
    assert given_out(worker) == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_low_foreground_job_does_not_overtake_a_high_background_one(durable: bool) -> None:
    bench = Bench(durable=durable)
    client, worker = bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_HIGH_BG, b"f", b"", b"high")
    client.say(wire.SUBMIT_JOB_LOW, b"f", b"", b"low")
    worker.say(wire.GRAB_JOB)
    bench.settle()
    assert worker.heard() == [(wire.NO_JOB,)]
    assert given_out(worker) == [b"high", b"low"]


def test_it_waits_for_the_commit_of_the_job_before_it_and_not_longer() -> None:
    bench = Bench()
    client, other, worker = bench.peer(), bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    bench.end_turn()  # on its way to the disk
    client.say(wire.SUBMIT_JOB, b"f", b"", b"2")
    other.say(wire.SUBMIT_JOB_BG, b"f", b"", b"3")
    bench.end_turn()
    bench.commit()  # of the first group only
    worker.say(wire.GRAB_JOB)
    worker.say(wire.GRAB_JOB)
    bench.end_turn()
    assert [packet[3] for packet in worker.heard()] == [b"1", b"2"]


def test_nobody_else_waits_nor_the_same_client_when_all_is_on_disk() -> None:
    bench = Bench()
    client, other, worker = bench.peer(), bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    other.say(wire.SUBMIT_JOB, b"f", b"", b"of another")
    worker.say(wire.GRAB_JOB)
    bench.end_turn()
    assert [packet[3] for packet in worker.heard()] == [b"of another"]
    bench.settle()
    client.say(wire.SUBMIT_JOB, b"f", b"", b"2")
    worker.say(wire.GRAB_JOB)
    worker.say(wire.GRAB_JOB)
    bench.end_turn()
    assert [packet[3] for packet in worker.heard()] == [b"1", b"2"]


def test_when_the_disk_fails_the_foreground_job_runs_and_keeps_its_promise() -> None:
    bench = Bench()
    client, worker = bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    client.say(wire.SUBMIT_JOB, b"f", b"", b"2")
    bench.end_turn()
    bench.fail()
    bench.end_turn()
    assert [packet[0] for packet in client.heard()] == [wire.ERROR, wire.JOB_CREATED]
    assert given_out(worker) == [b"2"]


def test_when_the_commit_does_not_come_the_foreground_job_runs() -> None:
    bench = Bench()
    client, worker = bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    client.say(wire.SUBMIT_JOB, b"f", b"", b"2")
    bench.end_turn()
    bench.node.give_up_waiting("a copy is silent")
    worker.say(wire.GRAB_JOB)
    bench.end_turn()
    assert [packet[3] for packet in worker.heard()] == [b"2"]


def test_a_background_submit_joins_a_foreground_job_that_waits_for_its_turn() -> None:
    bench = Bench()
    client, worker = bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    client.say(wire.SUBMIT_JOB, b"f", b"u", b"2")
    client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"2")
    bench.settle()
    # It is one job, and given out once
    assert given_out(worker) == [b"1", b"2"]


def test_a_client_that_leaves_takes_its_waiting_foreground_job_with_it() -> None:
    bench = Bench()
    client, worker = bench.peer(), worker_of(bench)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"1")
    client.say(wire.SUBMIT_JOB, b"f", b"", b"2")
    bench.end_turn()
    client.leave()
    bench.settle()
    assert given_out(worker) == [b"1"]
