"""Links that are slow, lossy for a while, or break in the middle of a word: every toxic that there is."""

from __future__ import annotations

import pytest

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.proxies import (
    Toxic,
    bandwidth,
    latency,
    limit_data,
    reset_peer,
    slicer,
    slow_close,
    timeout,
)

NODES = ("a>b", "a>c", "b>c", "b>a", "c>a", "c>b")


@pytest.mark.short
def test_every_link_between_nodes_is_slow_and_unsteady(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.poisoned(latency(100, jitter_ms=80), *NODES):
            load.flow(100)
        load.flow()


def test_the_links_to_one_node_are_slower_than_a_lease(fleet: ChaosFleet) -> None:
    """Slow is not dead, and not silent either: commits wait."""
    with fleet.under_load() as load:
        with fleet.poisoned(latency(3000), "*>c", "c>*"):
            load.run_for(15)
        load.flow()


def test_a_replica_is_slow_and_not_dead(fleet: ChaosFleet) -> None:
    """Its link takes a few kilobytes a second: less than is sent."""
    with fleet.under_load() as load:
        with fleet.poisoned(bandwidth(4), "b>c", "a>c"):
            load.run_for(10)
            load.flow(10)
        load.flow()


def test_everything_arrives_in_crumbs(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.poisoned(slicer(20, variation_bytes=10, delay_us=500), "*>a", "*>b", "*>c"):
            load.flow(100)
        load.flow()


@pytest.mark.parametrize("toxic", [reset_peer(200), limit_data(20_000), timeout(500)], ids=lambda it: it.kind)
@pytest.mark.parametrize("links", ["nodes", "users", "etcd"])
def test_connections_break_again_and_again(fleet: ChaosFleet, toxic: Toxic, links: str) -> None:
    """Between nodes, from clients and workers, to etcd: after a time, or after so many bytes."""
    names = {"nodes": NODES, "users": ("client>*", "w1>*", "w2>*"), "etcd": ("*>etcd-*",)}[links]
    with fleet.under_load() as load:
        with fleet.poisoned(toxic, *names):
            load.run_for(4)
        load.flow()


def test_the_end_of_a_connection_is_told_late(fleet: ChaosFleet) -> None:
    """The node dies, and its peers and users are told two seconds after."""
    with fleet.under_load() as load:
        with fleet.poisoned(slow_close(2000), "*>a"):
            fleet.kill("a")
            fleet.wait_until_serving()
            load.flow()
            fleet.restart("a")
        load.flow()
