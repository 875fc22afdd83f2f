"""Nodes that stand still: SIGSTOP keeps connections and answers nothing."""

from __future__ import annotations

import pytest

from chaos_tests.live.conftest import StartChaosFleet
from chaos_tests.live.fleet import ChaosFleet


@pytest.mark.short
def test_a_primary_stands_still_past_its_lease_and_goes_on(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.frozen("a"):
            fleet.wait_until_serving()
            load.flow(100)
        load.flow()


def test_with_the_default_lease_a_primary_stands_still_past_it(start_chaos_fleet: StartChaosFleet) -> None:
    fleet = start_chaos_fleet("abc", "--lease-seconds", "5")
    with fleet.under_load() as load:
        with fleet.frozen("b"):
            fleet.wait_until_serving()
            load.flow(100)
        load.flow()


def test_every_node_stands_still_for_less_than_its_lease(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        for name in "abcab":
            with fleet.frozen(name):
                load.run_for(1)
            load.flow()


def test_a_node_that_stands_still_is_killed(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        fleet.freeze("a")
        fleet.wait_until_serving()
        load.flow()
        fleet.kill("a")
        load.flow()
        fleet.restart("a")


def test_a_node_stands_still_while_another_is_killed(fleet: ChaosFleet) -> None:
    """One copy is left that answers: nothing is acknowledged until another one is back."""
    with fleet.under_load() as load:
        fleet.freeze("a")
        fleet.kill("b")
        load.run_for(5)
        fleet.wake("a")
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("b")


def test_all_nodes_stand_still_together(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.frozen("a", "b", "c"):
            load.run_for(5)
        fleet.wait_until_serving()
        load.flow()
