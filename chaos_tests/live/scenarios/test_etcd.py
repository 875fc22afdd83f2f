"""etcd in trouble: its leader, its majority, its history, its room."""

from __future__ import annotations

import pytest

from chaos_tests.live.conftest import StartChaosFleet
from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.proofs import metric, was_refused
from chaos_tests.live.proxies import latency
from tests.support.fleet import FLEET_SECONDS
from tests.support.waiting import eventually


@pytest.mark.short
def test_the_leader_of_etcd_is_killed(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.etcd_killed(fleet.etcd.leader()):
            load.flow(100)
            fleet.kill("a")
            fleet.wait_until_serving()
            load.flow()
            fleet.restart("a")
        load.flow()


def test_the_leader_of_etcd_stands_still(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.etcd_frozen(fleet.etcd.leader()):
            load.run_for(5)
            load.flow()
        load.flow()


def test_etcd_loses_its_majority_and_a_node_dies_meanwhile(fleet: ChaosFleet) -> None:
    """While nobody dies all goes on; then nobody can be replaced before etcd is back."""
    with fleet.under_load() as load:
        with fleet.etcd_killed(*fleet.etcd.members[:2]):
            load.run_for(3)
            load.flow(100)
            fleet.kill("a")
            load.run_for(4)
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("a")


def test_etcd_is_away_when_a_node_starts(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        fleet.kill("b")
        with fleet.etcd_killed():
            fleet.restart("b")
            load.run_for(3)
        fleet.wait_until_in_sync()
        load.flow()


def test_a_node_misses_changes_of_the_map_that_etcd_then_forgets(fleet: ChaosFleet) -> None:
    """Nobody can tell it what it missed: it reads all anew, and acts on the newest map."""
    with fleet.under_load() as load:
        c = fleet.nodes["c"]
        with fleet.partition("abc", etcd="ab"):
            known = fleet.map().revision
            with fleet.killed("a"):
                load.run_for(3)
            eventually(lambda: fleet.map().revision > known, timeout_seconds=FLEET_SECONDS)
            fleet.compact_etcd()
            assert metric(c, "gearfleet_fleet_map_revision") <= known
        fleet.wait_until_in_sync()
        assert metric(c, "gearfleet_fleet_map_revision") == fleet.map().revision
        assert fleet.leads()["c"]
        load.flow()


def test_etcd_is_full_and_a_node_dies_meanwhile(start_chaos_fleet: StartChaosFleet) -> None:
    """Leases are still renewed; keys can be deleted, but no map can be written."""
    fleet = start_chaos_fleet("abc", etcd_options=["--quota-backend-bytes", str(16 * 1024 * 1024)])
    with fleet.under_load() as load:
        with fleet.etcd_full():
            load.flow(100)
            fleet.kill("a")
            eventually(lambda: any(was_refused(fleet.nodes[name]) for name in "bc"))
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("a")


def test_etcd_answers_late(fleet: ChaosFleet) -> None:
    """Some answers come in time for the call, and some do not."""
    with fleet.under_load() as load:
        with fleet.poisoned(latency(400, jitter_ms=300), "*>etcd-*"):
            load.run_for(5)
            load.flow()
            fleet.kill("c")
            load.run_for(5)
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("c")


def test_the_leader_of_etcd_changes_every_second(fleet: ChaosFleet) -> None:
    """Each new leader grants all leases their whole time again."""
    with fleet.under_load() as load:
        for _ in range(4):
            with fleet.etcd_frozen(fleet.etcd.leader()):
                load.run_for(1)
            load.flow(10)
        load.flow()
