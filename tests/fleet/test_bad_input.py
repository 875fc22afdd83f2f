"""What people do to a fleet by mistake: refused or survived, with an error that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from cluster.wire import request
from tests.conftest import StartFleet
from tests.fleet.support import work_off
from tests.support import Fleet, FleetNode, eventually
from tests.support.fleet import SHORT_LEASE
from tests.support.machine import NEEDS, need_command

FUNCTION = b"bad-input"
_numbers = count()


@pytest.fixture(scope="module")
def fleet_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("bad-input"), "abc", *SHORT_LEASE) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_this_module: Fleet) -> Iterator[Fleet]:
    """Whatever befell it before, its three nodes are there and in sync. Others are gone afterwards."""
    fleet_of_this_module.start()
    fleet_of_this_module.wait_until_in_sync()
    yield fleet_of_this_module
    for name in set(fleet_of_this_module.nodes) - set("abc"):
        fleet_of_this_module.nodes.pop(name).close()


def check_works(fleet: Fleet) -> None:
    """Every node takes jobs, and they are done."""
    uniques = []
    for node in fleet.serving_nodes:
        with node.connect() as peer:
            for number in range(10):
                uniques.append(b"%s-%d-%d" % (node.name.encode(), number, next(_numbers)))
                peer.submit(FUNCTION, b"x", uniques[-1], background=True)
    # A test before may have left one that is run again.
    assert set(work_off(fleet, FUNCTION, uniques)) >= set(uniques)


def reason(node: FleetNode, part: str) -> str:
    """Wait until the node's log gives a reason with this text; returns it."""
    found: list[str] = eventually(lambda: node.reasons(part))
    return found[-1]


def key(fleet: Fleet, name: str) -> str:
    return f"/gearfleet/{fleet.fleet}/{name}"


# ---- names and directories


def test_of_two_nodes_with_one_name_the_second_does_not_start(fleet: Fleet) -> None:
    twin = fleet.add("twin", "--name", "a")
    refused = twin.wait_for_end()
    assert refused.status == 1
    assert "two nodes are named a" in refused.reason
    assert "Give one of them another --node, or stop it" in refused.reason
    check_works(fleet)


def test_the_directory_of_another_fleet_is_refused(fleet: Fleet) -> None:
    fleet.kill("c")
    stranger = fleet.add("stranger", "--fleet", "another", data_dir=fleet.nodes["c"].data_dir)
    refused = stranger.wait_for_end()
    assert refused.status == 1
    assert f"belongs to the fleet {fleet.fleet}, this node is to be in another" in refused.reason
    assert "correct --fleet, or give --data-dir another directory" in refused.reason


def test_a_fleets_directory_is_not_for_a_node_alone(fleet: Fleet) -> None:
    fleet.kill("c")
    alone = fleet.add("alone", "--etcd", "", data_dir=fleet.nodes["c"].data_dir)
    refused = alone.wait_for_end()
    assert refused.status == 1
    assert "others have copies of its jobs: start it with --etcd and --fleet" in refused.reason


def test_of_a_copied_directory_only_one_counts(fleet: Fleet, tmp_path: Path) -> None:
    """Copied while its node runs; both run."""
    original = fleet.nodes["c"]
    assert original.data_dir is not None
    shutil.copytree(original.data_dir, tmp_path / "copy")
    twin = fleet.add("d", data_dir=tmp_path / "copy")
    fleet.wait_until_in_sync()
    identities = {node.name: node.identity for node in fleet.status().nodes if node.state == "up"}
    assert len(set(identities.values())) == 4
    assert [event["node"] for event in twin.log_events if "is a copy" in event["event"]] == ["c"]
    # The original is none the worse for it, also at its next start.
    fleet.kill("c")
    fleet.restart("c")
    fleet.wait_until_in_sync()
    assert identities["c"] == {node.name: node.identity for node in fleet.status().nodes}["c"]
    check_works(fleet)
    fleet.drain("d")


# ---- etcd


def test_another_number_of_slots_is_refused(fleet: Fleet) -> None:
    known = fleet.etcd.get(key(fleet, "config"))
    assert known is not None
    fleet.kill("c")
    fleet.wait_until_serving()
    changed = {**json.loads(known), "slots": 512}
    fleet.etcd.put(key(fleet, "config"), json.dumps(changed))
    try:
        fleet.restart("c")
        refused = fleet.nodes["c"].wait_for_end()
        assert refused.status == 1
        assert "512" in refused.reason
        assert "slots" in refused.reason
        check_works(fleet)
    finally:
        fleet.etcd.put(key(fleet, "config"), known)


def test_a_map_edited_by_hand_stops_nobody(fleet: Fleet) -> None:
    known = fleet.etcd.get(key(fleet, "map"))
    assert known is not None
    for garbage in ("", "no JSON", "{}", '{"version": 99}', "\x00\xff"):
        fleet.etcd.put(key(fleet, "map"), garbage)
        check_works(fleet)
    for node in fleet.serving_nodes:
        assert "Mend: " in reason(node, f"the etcd key {key(fleet, 'map')} cannot be used")
    fleet.etcd.put(key(fleet, "map"), known)
    # Mended, a node may die as ever.
    fleet.kill("b")
    fleet.wait_until_serving()
    check_works(fleet)


def test_a_wiped_etcd_stops_the_fleet_and_the_error_names_the_procedure(start_fleet: StartFleet) -> None:
    fleet = start_fleet("abc", *SHORT_LEASE, own_etcd=True)
    with fleet.connect("a") as client:
        client.submit(FUNCTION, b"x", b"kept", background=True)
    fleet.etcd.wipe()
    for node in fleet.nodes.values():
        stopped = node.wait_for_end()
        assert stopped.status == 1
        assert "wiped" in stopped.reason
        assert "top all nodes" in stopped.reason
        assert "gearfleet fleet restore" in stopped.reason
    # Neither does one begin a new fleet on its old data.
    fleet.restart("a")
    stopped = fleet.nodes["a"].wait_for_end()
    assert stopped.status == 1
    assert "gearfleet fleet restore" in stopped.reason


def test_an_etcd_restored_from_a_snapshot_is_noticed(start_fleet: StartFleet, tmp_path: Path) -> None:
    etcdctl = need_command("etcdctl")
    fleet = start_fleet("abc", *SHORT_LEASE, own_etcd=True)
    (member,) = fleet.etcd.members
    environment = {**os.environ, "ETCDCTL_API": "3"}

    def run(*arguments: str) -> None:
        subprocess.run([etcdctl, *arguments], env=environment, check=True, capture_output=True, timeout=30)

    snapshot = str(tmp_path / "snapshot")
    run("--endpoints", member.address, "snapshot", "save", snapshot)
    fleet.kill("c")
    fleet.wait_until_serving()
    fleet.restart("c")
    fleet.wait_until_in_sync()
    fleet.etcd.kill()
    shutil.rmtree(member.data_dir)
    run(
        *("snapshot", "restore", snapshot, "--data-dir", str(member.data_dir), "--name", member.name),
        *("--initial-cluster", f"{member.name}={member.peer_url}"),
        *("--initial-advertise-peer-urls", member.peer_url),
    )
    fleet.etcd.start()
    for node in fleet.nodes.values():
        stopped = node.wait_for_end()
        assert stopped.status == 1
        assert "gearfleet fleet restore" in stopped.reason
        fleet.restart(node.name)
        stopped = node.wait_for_end()
        assert "is older than the one that this node acted on" in stopped.reason


# ---- addresses and clocks


def test_an_address_that_leads_nowhere_is_named(fleet: Fleet) -> None:
    # It listens at 127.0.0.1 only.
    stray = fleet.add("stray", "--advertise", "127.0.0.2")
    told = reason(stray, "127.0.0.2")
    assert "Connection refused" in told
    assert "correct --advertise" in told
    stray.terminate()
    eventually(lambda: "stray" not in [node.name for node in fleet.status().nodes if node.state == "up"])
    # It is not waited for when an operator says so.
    assert "is forgotten" in fleet.nodes["a"].ask(lambda client: client.forget("stray"))
    check_works(fleet)


def clock_shifted(seconds: int) -> dict[str, str]:
    """The process's time of day is so many seconds ahead, for its libraries in C, too."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip(f"{NEEDS}libfaketime: apt-get install libfaketime")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "0",
    }


def test_clocks_an_hour_apart_do_no_harm(start_fleet: StartFleet) -> None:
    fleet = start_fleet("c", *SHORT_LEASE, wait=False)
    for name, shift in (("a", 3600), ("b", -3600)):
        fleet.add(name, environment=clock_shifted(shift))
    fleet.wait_until_serving()
    check_works(fleet)
    fleet.kill("a")
    fleet.wait_until_serving()
    check_works(fleet)
    # Its clock is put back two hours before it starts again.
    fleet.nodes["a"].environment = clock_shifted(-3600)
    fleet.restart("a")
    fleet.wait_until_in_sync()
    check_works(fleet)


# ---- who is no peer


@pytest.mark.parametrize(
    "said",
    [
        request(wire.SUBMIT_JOB_BG, b"f", b"u", b"payload"),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"status\n",
        os.urandom(4096),
    ],
    ids=["gearman", "http", "text", "noise"],
)
def test_who_is_no_peer_does_no_harm(fleet: Fleet, said: bytes) -> None:
    node = fleet.nodes["a"]
    with socket.create_connection((node.host, node.peer_port), timeout=10) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
    assert fleet.out_of_sync() == ""
    check_works(fleet)


def test_a_new_fleet_says_how_many_nodes_it_waits_for(start_fleet: StartFleet) -> None:
    fleet = start_fleet("a", *SHORT_LEASE, wait=False)

    said = fleet.nodes["a"].wait_for_event("waiting for nodes")

    assert said["reason"] == (
        "1 of 3 are there. A new fleet is made of 3 (--bootstrap-nodes), and takes no jobs before"
    )
