"""Processes that are killed: one, all at once, one after the other; and what their disks look like after."""

from __future__ import annotations

import pytest

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.proofs import identity_on_disk
from chaos_tests.live.workload import Shape


@pytest.mark.short
def test_a_node_is_killed_and_comes_back(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.killed("a"):
            fleet.wait_until_serving()
            load.flow(100)
        load.flow()


def test_one_node_after_the_other_is_killed(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        for name in "abc":
            with fleet.killed(name):
                fleet.wait_until_serving()
                load.flow()
            fleet.wait_until_in_sync()


def test_a_machine_vanishes(fleet: ChaosFleet) -> None:
    """Nobody is refused, so that only the end of its lease tells."""
    with fleet.under_load() as load:
        fleet.vanish("a")
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("a")


@pytest.mark.short
def test_all_nodes_are_killed_together(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        load.flow(100)
        with fleet.killed("a", "b", "c"):
            pass
        fleet.wait_until_serving()
        load.flow()


def test_all_nodes_and_etcd_are_killed_together(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        load.flow(100)
        with fleet.killed("a", "b", "c"), fleet.etcd_killed():
            pass
        fleet.wait_until_serving()
        load.flow()


def test_two_failovers_follow_each_other_fast(fleet: ChaosFleet) -> None:
    """The second primary dies when the first one is back and has learnt nothing yet (KIP-279)."""
    with fleet.under_load() as load:
        fleet.kill("a")
        fleet.wait_until_serving()
        fleet.restart("a")
        fleet.nodes["a"].wait_for_event("joined", start=fleet.nodes["a"].start_line)
        fleet.kill("b")
        load.run_for(3)
        fleet.restart("b")
        fleet.wait_until_serving()
        load.flow()


def test_the_last_copy_standing_loses_its_power_too(fleet: ChaosFleet) -> None:
    """Two are down, the third refuses and then dies; the two come back first."""
    with fleet.under_load() as load:
        load.flow(100)
        fleet.kill("a", "b")
        load.run_for(3)
        fleet.kill("c")
        fleet.restart("a", "b")
        load.run_for(3)
        fleet.restart("c")
        fleet.wait_until_serving()
        load.flow()


def test_a_node_is_killed_while_it_learns(fleet: ChaosFleet) -> None:
    """Copies are under way when their receiver dies, and again when their giver does."""
    with fleet.under_load(Shape(rate=150, payload_bytes=4096)) as load:
        fleet.kill("a")
        fleet.wait_until_serving()
        load.flow(300)
        fleet.restart("a")
        fleet.kill_while("a", lambda: "a" in {learner for _, learner in fleet.copies_under_way()})
        fleet.restart("a")
        fleet.kill_while("b", lambda: ("b", "a") in fleet.copies_under_way())
        load.run_for(1)
        fleet.restart("b")
        fleet.wait_until_serving()
        load.flow()


def test_the_end_of_a_journal_is_half_written(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        load.flow(100)
        fleet.kill("a")
        fleet.tear_journal("a")
        fleet.tear_journal("a")  # killed again before it had mended that: it has one such end, not two
        fleet.wait_until_serving()
        fleet.restart("a")
        load.flow()


def test_the_end_of_a_journal_is_lost(fleet: ChaosFleet) -> None:
    """A disk that lied about its fsync, on one node; the others go on meanwhile."""
    with fleet.under_load() as load:
        load.flow(200)
        fleet.kill("b")
        fleet.tear_journal("b", cut_bytes=5000)
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("b")
        load.flow()


def test_a_bit_of_a_journal_flips(fleet: ChaosFleet) -> None:
    """The node comes back under a new identity, with nothing, and learns all."""
    with fleet.under_load() as load:
        load.flow(200)
        fleet.kill("c")
        fleet.flip_bit("c")
        before = identity_on_disk(fleet.nodes["c"])
        fleet.wait_until_serving()
        fleet.restart("c")
        fleet.wait_until_in_sync()
        load.flow()
        assert before not in fleet.map().names
        assert fleet.map().names[identity_on_disk(fleet.nodes["c"])] == "c"
