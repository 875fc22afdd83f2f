"""Nodes that leave, join, restart and are upgraded one by one, under load: nobody is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet_load import Load
from tests.deploy import manifests
from tests.fleet.support import StockClient, work_off
from tests.support import Fleet, FleetNode, eventually
from tests.support.fleet import FLEET_SECONDS

FUNCTION = b"moves"
NEXT_RELEASE = [sys.executable, str(Path(__file__).with_name("other_release.py")), "2", "9.0.0"]


@pytest.fixture(scope="module")
def fleet_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("moves")) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_this_module: Fleet) -> Fleet:
    """Whatever befell it before, its first three nodes are there and in sync."""
    fleet_of_this_module.start()
    fleet_of_this_module.wait_until_in_sync()
    return fleet_of_this_module


@pytest.fixture
def load(fleet: Fleet) -> Iterator[Load]:
    """Clients of the library all the while; in the end nothing is lost, and nobody had an error."""
    with Load(fleet.addresses, rate=300) as load:
        load.wait_for(100)
        yield load
        load.wait_for(100)
        load.stop()
        load.drain()
        assert load.lost() == []
        assert load.errors == []


def check_stock(fleet: Fleet, client: StockClient) -> None:
    client.stop()
    assert client.errors == []
    work_off(fleet, FUNCTION, client.acknowledged)


def test_a_drained_node_leaves_unnoticed(fleet: Fleet, load: Load) -> None:
    with StockClient([fleet.nodes["a"], fleet.nodes["b"]], FUNCTION) as client:
        client.wait_for(100)
        last = fleet.drain("c")
        assert last.done
        assert last.message == "c leads nothing, and no slot needs its copy: it stops"
        assert fleet.leads()["a"] == fleet.leads()["b"] == 512
        client.wait_for(100)
        assert client.broken == 0
        check_stock(fleet, client)


def test_a_fourth_node_gets_its_share_and_no_more(fleet: Fleet, load: Load) -> None:
    before = fleet.status(slots=True).slots
    fleet.add("d")
    fleet.wait_until_in_sync()
    after = fleet.status(slots=True).slots
    leads = fleet.leads()
    assert set(leads) == {"a", "b", "c", "d"}
    assert all(abs(led - 256) <= 12 for led in leads.values())  # 5 %
    moved = [new.primary for old, new in zip(before, after, strict=True) if old.primary != new.primary]
    assert set(moved) == {"d"}
    assert len(moved) <= 256
    # And it leaves again.
    fleet.drain("d")
    del fleet.nodes["d"]


def test_a_rolling_restart_by_the_commands_of_the_manifests(fleet: Fleet, load: Load) -> None:
    """As Kubernetes does it: preStop, SIGTERM, a new pod, and the next when that one is ready."""
    ready = manifests.probes()["readiness"]
    stop = manifests.pre_stop_command()
    assert stop[0] == "gearfleet"
    program = str(Path(sys.executable).with_name("gearfleet"))
    with StockClient(list(fleet.nodes.values()), FUNCTION) as client:
        for node in list(fleet.nodes.values()):
            client.wait_for(30)
            environment = {**os.environ, "GEARFLEET_NAME": node.name, "GEARFLEET_ETCD": fleet.etcd.address}
            environment |= {"GEARFLEET_PEER_PORT": str(node.peer_port), "GEARFLEET_FLEET": fleet.fleet}
            told = subprocess.run(
                [program, *stop[1:]], env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            assert told.returncode == 0, told.stderr
            assert not ready.ask(node.host, {manifests.HTTP_PORT: node.http_port})
            node.wait_for_exit()
            fleet.restart(node.name)
            wait_until_ready(node)
        check_stock(fleet, client)


def wait_until_ready(node: FleetNode) -> None:
    probe = manifests.probes()["readiness"]
    eventually(
        lambda: probe.ask(node.host, {manifests.HTTP_PORT: node.http_port}), timeout_seconds=FLEET_SECONDS
    )


def test_a_rolling_upgrade_has_two_releases_side_by_side(fleet: Fleet, load: Load) -> None:
    for name in ("c", "b"):
        # SIGTERM hands the slots over, too.
        assert fleet.nodes[name].terminate() == 0
        fleet.nodes[name].prefix = list(NEXT_RELEASE)
        fleet.restart(name)
        fleet.wait_until_in_sync()
        # The old release and the new one lead, and copy for each other.
        status = fleet.status(slots=True)
        assert {node.name: node.version for node in status.nodes}[name] == "9.0.0"
        assert {node.name: node.version for node in status.nodes}["a"] != "9.0.0"
        assert {slot.primary for slot in status.slots} == {"a", "b", "c"}
        assert all(len(slot.in_sync) == 3 for slot in status.slots)
        load.wait_for(100)
    # The new release takes over from the old one.
    fleet.kill("a")
    fleet.wait_until_serving()
    load.wait_for(100)
    fleet.restart("a")
    fleet.wait_until_in_sync()


def test_a_release_too_far_away_is_told_so_and_the_others_go_on(fleet: Fleet, load: Load) -> None:
    far = [*NEXT_RELEASE[:2], "4", "11.0.0"]
    stranger = fleet.add("z", prefix=far)
    try:
        refusal = eventually(lambda: stranger.reasons("speaks protocol"))[0]
        assert re.search(r"node z (speaks protocol )?4\b", refusal), refusal
        assert "one version at a time" in refusal
        load.wait_for(100)
    finally:
        stranger.terminate()
        del fleet.nodes["z"]
