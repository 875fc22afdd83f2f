"""Clients and workers in trouble of their own, while the nodes are well, or not."""

from __future__ import annotations

import pytest

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.proxies import bandwidth
from chaos_tests.live.workload import Shape


@pytest.mark.short
def test_each_worker_reaches_only_some_nodes(fleet: ChaosFleet) -> None:
    """One reaches a and b, the other c: together they do all the work, in a failover, too."""
    with fleet.under_load() as load:
        with fleet.refused("w1>c", "w2>a", "w2>b"):
            load.flow(100)
            fleet.kill("b")
            fleet.wait_until_serving()
            load.flow()
            fleet.restart("b")
        load.flow()


def test_no_worker_is_reached_for_a_while(fleet: ChaosFleet) -> None:
    """What they run goes on, and its result is delivered when they are back."""
    with fleet.under_load(Shape(rate=20, job_seconds=0.5)) as load:
        with fleet.partitioned_users("w1", "w2", "w-ordered"):
            load.run_for(5)
        load.flow()


def test_a_client_does_not_reach_the_node_that_leads_most(fleet: ChaosFleet) -> None:
    """It asks another one, which passes its jobs on."""
    with fleet.under_load() as load:
        with fleet.partitioned_users("client", nodes=fleet.busiest()):
            load.flow(100)
        load.flow()


def test_a_client_reaches_nobody_for_a_while(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.partitioned_users("client"):
            load.run_for(5)
        load.flow(100)


def test_everybody_reconnects_at_once(fleet: ChaosFleet) -> None:
    """All connections of many clients and workers break, three times, and once with a node."""
    crowd = Shape(
        rate=100,
        clients=("client", *(f"client{n}" for n in range(19))),
        workers=tuple(f"w{n}" for n in range(20)),
    )
    with fleet.under_load(crowd) as load:
        for _ in range(3):
            with fleet.refused("client*>*", "w*>*"):
                load.run_for(1)
            load.flow()
        with fleet.killed("c"), fleet.refused("client*>*", "w*>*"):
            load.run_for(1)
        load.flow()


def test_large_payloads_cross_a_narrow_link_and_a_failover(fleet: ChaosFleet) -> None:
    with fleet.under_load(Shape(rate=20, payload_bytes=100_000)) as load:
        with fleet.poisoned(bandwidth(2000), "a>b", "a>c", "b>c"):
            load.flow(30)
            fleet.kill("a")
            fleet.wait_until_serving()
            load.flow(30)
            fleet.restart("a")
        load.flow()


def test_long_jobs_outlive_the_node_that_gave_them(fleet: ChaosFleet) -> None:
    """Their workers keep them and deliver to the next primary."""
    with fleet.under_load(Shape(rate=10, job_seconds=2.0)) as load:
        for name in "ab":
            load.run_for(2)
            with fleet.killed(name):
                fleet.wait_until_serving()
                load.flow(20)
            fleet.wait_until_in_sync()


def test_scheduled_jobs_keep_their_time_through_failovers(fleet: ChaosFleet) -> None:
    """Those that are due while their node is down run late, and none runs early."""
    with fleet.under_load(Shape(scheduled=True)) as load:
        load.flow(50)
        for name in "ab":
            with fleet.killed(name):
                load.run_for(3)
            fleet.wait_until_in_sync()
        with fleet.killed("a", "b", "c"):
            pass
        fleet.wait_until_serving()
        load.flow()
