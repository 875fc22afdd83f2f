"""Clients and workers of others beside ours: libgearman, which knows no fleet, through what goes wrong."""

from __future__ import annotations

import pytest

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.workload import Shape

STOCK = Shape(rate=40, stock=True)


@pytest.mark.short
def test_stock_users_survive_a_kill_of_each_node(fleet: ChaosFleet) -> None:
    with fleet.under_load(STOCK) as load:
        for name in "abc":
            with fleet.killed(name):
                fleet.wait_until_serving()
                load.flow_of("stock", 10)
            fleet.wait_until_in_sync()
        load.flow_of("stock", 10)


def test_stock_users_survive_a_pause(fleet: ChaosFleet) -> None:
    with fleet.under_load(STOCK) as load:
        with fleet.frozen("a"):
            fleet.wait_until_serving()
            load.run_for(5)
        load.flow_of("stock", 10)


@pytest.mark.parametrize("seconds", [10, 30])
def test_stock_users_survive_a_partition(fleet: ChaosFleet, seconds: float) -> None:
    with fleet.under_load(STOCK) as load:
        with fleet.partition("a", "bc", etcd="bc"):
            load.run_for(seconds)
        load.flow_of("stock", 10)


def test_stock_users_survive_links_that_break(fleet: ChaosFleet) -> None:
    with fleet.under_load(STOCK) as load:
        for links in ("client>*", "w-stock>*"):
            with fleet.refused(links):
                load.run_for(2)
            load.flow_of("stock", 10)
