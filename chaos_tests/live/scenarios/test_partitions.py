"""Networks that fall apart: what is sent is lost, nothing is refused, and clients still reach every node.

Nodes give a silent peer ten seconds before they go on without it, as long as its key is there: it may only be
slow.
"""

from __future__ import annotations

import pytest

from chaos_tests.live.conftest import StartChaosFleet
from chaos_tests.live.fleet import ChaosFleet
from tests.support.fleet import SHORT_LEASE


@pytest.mark.short
def test_a_node_is_cut_off_from_the_others_and_from_etcd(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.partition("a", "bc", etcd="bc"):
            load.flow(100)
        load.flow()


@pytest.mark.parametrize("seconds", [10, 30])
def test_a_node_is_cut_off_from_the_others_but_not_from_etcd(fleet: ChaosFleet, seconds: float) -> None:
    """Its key is there, so that only silence tells; the others take over from it all the same."""
    with fleet.under_load() as load:
        with fleet.partition(fleet.busiest(), "".join(set("abc") - {fleet.busiest()})):
            load.run_for(seconds)
        load.flow()


@pytest.mark.parametrize("seconds", [10, 30])
def test_everybody_is_cut_off_from_everybody(fleet: ChaosFleet, seconds: float) -> None:
    with fleet.under_load() as load:
        with fleet.partition("a", "b", "c"):
            load.run_for(seconds)
        load.flow()


def test_a_bridge_two_nodes_do_not_hear_each_other_and_a_third_hears_both(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.unheard("ac"):
            load.run_for(15)
        load.flow()


def test_all_are_cut_off_from_etcd(fleet: ChaosFleet) -> None:
    """Slots whose copies all answer go on."""
    with fleet.under_load() as load:
        with fleet.partition("abc", etcd=""):
            load.run_for(3)
            load.flow(100)
        load.flow()


def test_a_node_is_cut_off_from_etcd_only(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.partition("abc", etcd="ac"):
            load.run_for(5)
            load.flow()
        load.flow()


def test_what_a_primary_tells_etcd_is_lost_and_what_etcd_tells_it_is_not(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.one_way("a", "etcd"):
            load.run_for(5)
            load.flow()
        load.flow()


@pytest.mark.parametrize(("speaker", "listener"), [("a", "b"), ("b", "a")])
def test_what_one_copy_tells_another_is_lost(fleet: ChaosFleet, speaker: str, listener: str) -> None:
    """The other direction is as ever. The lower name has opened the stream between them."""
    with fleet.under_load() as load:
        with fleet.one_way(speaker, listener):
            load.run_for(15)
        load.flow()


def test_a_partition_and_then_a_kill(fleet: ChaosFleet) -> None:
    """The node that was cut off is wanted again as soon as the network is whole."""
    with fleet.under_load() as load:
        with fleet.partition("c", "ab", etcd="ab"):
            load.flow(50)
        fleet.kill("a")
        fleet.wait_until_serving()
        load.flow()
        fleet.restart("a")


def test_a_kill_within_a_partition(fleet: ChaosFleet) -> None:
    with fleet.under_load() as load:
        with fleet.partition("c", "ab", etcd="ab"):
            load.flow(50)
            fleet.kill("b")
            load.run_for(5)
        fleet.wait_until_serving()
        load.flow()


def test_refusals_are_no_proof_of_death(fleet: ChaosFleet) -> None:
    """A firewall between a and the others: each side takes the other for dead, and all live."""
    with fleet.under_load() as load:
        with fleet.refused("a>b", "b>a", "a>c", "c>a"):
            load.run_for(5)
            load.flow()
        load.flow()


def test_where_all_three_copies_are_wanted_nothing_is_acknowledged_by_two(
    start_chaos_fleet: StartChaosFleet,
) -> None:
    fleet = start_chaos_fleet("abc", *SHORT_LEASE, "--min-in-sync", "3")
    with fleet.under_load() as load:
        with fleet.partition("a", "bc", etcd="bc"):
            load.run_for(3)
            before = load.acknowledged
            load.run_for(3)
            assert load.acknowledged == before
        load.flow()


@pytest.mark.parametrize("shape", ["majority", "minority third", "ring"])
def test_five_nodes_fall_apart(start_chaos_fleet: StartChaosFleet, shape: str) -> None:
    """Each job has three copies: where two of them are on the smaller side, it waits for the end."""
    fleet = start_chaos_fleet("abcde", *SHORT_LEASE, "--bootstrap-nodes", "5")
    with fleet.under_load() as load:
        if shape == "ring":  # each hears two neighbours, so that every majority is another one
            with fleet.unheard("ac", "bd", "ce", "da", "eb"):
                load.run_for(15)
        else:
            sides = {"majority": ("ab", "cde"), "minority third": ("e", "abcd")}[shape]
            with fleet.partition(*sides, etcd=sides[1]):
                load.run_for(10)
        load.flow()
