"""Processes that are killed: one, all at once, one after the other."""

from __future__ import annotations

import pytest

from chaos_tests.live.fleet import ChaosFleet


@pytest.mark.short
def test_a_node_is_killed_and_comes_back(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.killed("a"):
            fleet.wait_until_serving()
            load.flow(100)
        load.flow()
