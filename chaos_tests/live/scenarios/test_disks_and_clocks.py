"""Disks that are slow or full, and clocks that jump: on one node."""

from __future__ import annotations

import pytest

from chaos_tests.live.conftest import StartChaosFleet
from chaos_tests.live.fleet import ChaosFleet


def test_a_disk_is_slow(fleet: ChaosFleet) -> None:
    """Commits wait for the slowest copy, and nobody is dropped for it."""
    with fleet.under_load() as load:
        with fleet.slow_disk("b", 0.3):
            load.flow(60)
        load.flow()


def test_a_disk_stands_still_for_longer_than_a_lease(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.slow_disk("b", 6):
            load.run_for(8)
        load.flow()


def test_a_disk_is_full(start_chaos_fleet: StartChaosFleet) -> None:
    """Its node ends; the others go on, and it comes back when there is room."""
    fleet = start_chaos_fleet("abc", small_disks="b")
    with fleet.under_load() as load:
        with fleet.full_disk("b"):
            fleet.nodes["b"].wait_for_exit()
            fleet.wait_until_serving()
            load.flow(100)
        load.flow()


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_jumps(start_chaos_fleet: StartChaosFleet, seconds: float) -> None:
    """Forwards or backwards: on a node that leads, which is then restarted with that clock."""
    fleet = start_chaos_fleet("abc", clocks="a")
    with fleet.under_load() as load:
        fleet.jump_clock("a", seconds)
        load.flow(100)
        with fleet.killed("a"):
            fleet.wait_until_serving()
            load.flow()
        fleet.wait_until_in_sync()
        load.flow()


def test_a_clock_is_never_right(start_chaos_fleet: StartChaosFleet) -> None:
    """It jumps to and fro."""
    fleet = start_chaos_fleet("abc", clocks="b")
    with fleet.under_load() as load:
        for seconds in (30, -30, 86_400, 0, -5, 5, 0):
            fleet.jump_clock("b", seconds)
            load.run_for(0.5)
        load.flow()
