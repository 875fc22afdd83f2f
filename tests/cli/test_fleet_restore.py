"""etcd is lost, and the fleet comes back with all its jobs (rule 15); all copies are lost, and it is said
what that costs (rule 9)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import RunCommand
from tests.support import eventually
from tests.support.etcd import needs_etcd
from tests.support.fleet import SHORT_LEASE, Fleet

JOBS = 100


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, ("a", "b", "c"), *SHORT_LEASE) as fleet:
        yield fleet


@needs_etcd()
def test_a_fleet_whose_etcd_was_wiped_comes_back_with_all_its_jobs(
    fleet: Fleet, gearfleet: RunCommand, tmp_path: Path
) -> None:
    at = ["--etcd", fleet.etcd.address, "--fleet", fleet.fleet]
    directories = {name: str(node.data_dir) for name, node in fleet.nodes.items()}

    # Given a fleet with jobs, that was moved about a little,
    fleet.start()
    fleet.kill("c")
    fleet.wait_until_serving()
    fleet.restart("c")
    with fleet.connect("a") as client:
        for number in range(JOBS):
            client.submit(b"f", unique=b"%d" % number, background=True)
    # that says no to a restore while it runs, for whoever can read a directory and for whoever cannot,
    ended = gearfleet("fleet", "restore", *at, "--data-dir", directories["a"])
    assert ended.code == 1
    assert b"is in use by process" in ended.err
    # when all is killed at once and etcd is wiped,
    fleet.kill("a", "b", "c")
    fleet.etcd.wipe()

    # then a node does not start, and says what to do.
    fleet.restart("a")
    refused = fleet.nodes["a"].wait_for_end()
    assert refused.status == 1
    assert "Stop all nodes of the fleet and use `gearfleet fleet restore`" in refused.reason

    # One node's word is not enough,
    saved = tmp_path / "a.map"
    assert gearfleet("fleet", "saved-map", directories["a"], "-o", str(saved)).code == 0
    ended = gearfleet("fleet", "restore", *at, str(saved), "--data-dir", directories["b"])
    assert ended.code == 1
    assert b"what c knows is missing" in ended.err
    # that of all is: as files, as directories.
    everything = [str(saved), "--data-dir", directories["b"], "--data-dir", directories["c"]]
    before = fleet.etcd.revision
    ended = gearfleet("fleet", "restore", *at, *everything, "--dry-run")
    assert ended.code == 0
    assert b"would be written to" in ended.out
    assert fleet.etcd.revision == before
    ended = gearfleet("fleet", "restore", *at, *everything)
    assert ended.code == 0, ended
    assert b"generation 2, 1024 slots" in ended.out
    # A second time it is not needed.
    ended = gearfleet("fleet", "restore", *at, *everything)
    assert ended.code == 1
    assert b"nothing was lost" in ended.err

    # The nodes start, take over from themselves, and have all jobs, once.
    fleet.start()
    fleet.wait_until_in_sync()
    ended = gearfleet("fleet", "restore", *at, str(saved))
    assert ended.code == 1
    told = json.loads(gearfleet("nodes", "--json", "--peer", f"127.0.0.1:{fleet.nodes['a'].peer_port}").out)
    assert told["faults"] == []
    rows = json.loads(gearfleet("status", "--json", "-s", fleet.nodes["a"].address).out)
    assert [(row["function"], row["total"]) for row in rows] == [("f", JOBS)]
    with fleet.connect("b") as client:
        client.submit(b"f", unique=b"after", background=True)
    done: set[bytes] = set()
    for name in fleet.nodes:
        with fleet.connect(name) as worker:
            worker.can_do(b"f")
            for row in fleet.nodes[name].table("show jobs"):
                assert row
                job = worker.grab_one()
                assert job.unique not in done
                done.add(job.unique)
                worker.complete(job.handle)
            worker.settle()
    assert done == {b"%d" % number for number in range(JOBS)} | {b"after"}


@needs_etcd()
def test_slots_whose_copies_are_all_lost_are_promoted_by_command(
    tmp_path: Path, gearfleet: RunCommand
) -> None:
    options = ("--replicas", "2", "--min-in-sync", "1", *SHORT_LEASE)
    with Fleet(tmp_path, ("a", "b"), *options) as fleet:
        # Given two nodes of which one has gone on without the other, and is lost with its disk
        fleet.start()
        at = ["--peer", f"127.0.0.1:{fleet.nodes['b'].peer_port}"]
        fleet.kill("b")
        fleet.wait_until_serving()
        with fleet.connect("a") as client:
            client.submit(b"f", background=True)

        def alone() -> bool:
            rows = fleet.status(slots=True).slots
            return all(row.in_sync == ("a",) for row in rows)

        eventually(alone)
        fleet.kill("a")
        fleet.restart("b")

        def unavailable() -> int:
            told = gearfleet("nodes", "--json", *at)
            return int(json.loads(told.out)["unavailable"]) if told.code == 0 else 0

        # then nothing is served, and it is said what to look at.
        eventually(unavailable, 1024)
        ended = gearfleet("nodes", "--check", *at)
        assert ended.code == 1
        assert b"1,024 slots unavailable, with fewer than 1 live copies" in ended.out
        assert len(json.loads(gearfleet("slots", "--unavailable", "--json", *at).out)) == 1024
        assert b"!!!!!!!!" in gearfleet("map", *at).out
        # When the operator takes the loss, then what is left is served, and marked.
        ended = gearfleet("promote", "--lossy", "--yes", *at)
        assert ended.code == 0, ended
        assert ended.out.startswith(b"b is to lead 1024 slots from what it has: 0-1023\n")
        fleet.wait_until_serving()
        with fleet.connect("b") as client:
            client.submit(b"f", background=True)
        rows = json.loads(gearfleet("slots", "--json", "0", *at).out)
        assert (rows[0]["primary"], rows[0]["lossy"]) == ("b", True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["restore"], 2, b"give what all nodes know"),
        (["restore", "--data-dir", "x"], 2, b"--etcd is missing"),
        (["restore", "--etcd", "h:x", "f"], 2, b"--etcd cannot be 'h:x'"),
        (["restore", "--etcd", "h", "--replicas", "3", "f"], 2, b"go together"),
        (["restore", "--etcd", "h", "--replicas", "1", "--min-in-sync", "2", "f"], 2, b"cannot be 2 of 1"),
        (["restore", "--etcd", "h", "/nowhere"], 1, b"/nowhere cannot be read"),
        (["restore", "--etcd", "h", "--data-dir", "/nowhere"], 1, b"/nowhere is no data directory"),
        (["saved-map", "/nowhere"], 1, b"/nowhere is no data directory of a node"),
    ],
)
def test_a_slip_says_what_to_write(
    gearfleet: RunCommand, arguments: list[str], code: int, message: bytes
) -> None:
    ended = gearfleet("fleet", *arguments)
    assert ended.code == code
    assert message in ended.err
