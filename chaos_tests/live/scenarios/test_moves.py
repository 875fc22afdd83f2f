"""What an operator does under load: drain, restart one by one, grow and shrink."""

from __future__ import annotations

import sys

import pytest

from chaos_tests.live.conftest import StartChaosFleet
from chaos_tests.live.fleet import ChaosFleet
from tests.fleet import other_release

NEXT_RELEASE = [sys.executable, other_release.__file__, "2", "9.0.0"]


@pytest.mark.short
def test_a_node_is_drained_under_load(fleet: ChaosFleet) -> None:
    """No fault: so nothing may run twice."""
    with fleet.under_load() as load:
        load.flow(50)
        fleet.drain("b", restart=True)
        load.flow(50)
        fleet.nodes["b"].spawn()
        fleet.wait_until_in_sync()
        load.flow()


def test_the_nodes_are_restarted_one_by_one(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        for name in "abc":
            fleet.drain(name, restart=True)
            fleet.nodes[name].spawn()
            fleet.wait_until_in_sync()
            load.flow()


def test_the_nodes_are_upgraded_one_by_one_and_an_old_one_dies_meanwhile(
    start_chaos_fleet: StartChaosFleet,
) -> None:
    fleet = start_chaos_fleet("abc")
    with fleet.under_load() as load:
        for name in "cb":
            fleet.drain(name, restart=True)
            fleet.nodes[name].prefix = NEXT_RELEASE
            fleet.nodes[name].spawn()
            fleet.wait_until_in_sync()
            with fleet.killed("a"):
                fleet.wait_until_serving()
                load.flow()
            fleet.wait_until_in_sync()


def test_a_node_dies_while_it_is_drained(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.draining("c"):
            fleet.kill("c")
            assert fleet.nodes["c"].events("draining")
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("c")


def test_a_node_dies_while_it_joins(start_chaos_fleet: StartChaosFleet) -> None:
    """Once it, and once another one that teaches it."""
    fleet = start_chaos_fleet("abc", spare="d")

    def is_learning(name: str) -> bool:
        return name in {learner for _, learner in fleet.copies_under_way()}

    with fleet.under_load() as load:
        load.flow(200)
        fleet.join("d")
        fleet.kill_while("d", lambda: is_learning("d"))
        load.run_for(2)
        fleet.restart("d")
        fleet.kill_while("a", lambda: ("a", "d") in fleet.copies_under_way())
        load.run_for(2)
        fleet.restart("a")
        fleet.wait_until_in_sync()
        fleet.leave("d")
        load.flow()


def test_three_nodes_become_five_and_three_again(start_chaos_fleet: StartChaosFleet) -> None:
    fleet = start_chaos_fleet("abc", spare="de")
    with fleet.under_load() as load:
        fleet.join("d", "e")
        fleet.wait_until_in_sync()
        load.flow(100)
        with fleet.killed("a"):
            fleet.wait_until_serving()
            load.flow()
        fleet.wait_until_in_sync()
        fleet.leave("b")
        fleet.leave("d")
        fleet.wait_until_in_sync()
        assert sorted(name for name in "abcde" if fleet.has_copies(name)) == ["a", "c", "e"]
        load.flow()
