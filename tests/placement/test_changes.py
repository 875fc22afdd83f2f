"""The rules of the map, each as what happens and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.placement import (
    Enter,
    FleetConfig,
    FleetMap,
    Forget,
    HandOver,
    IllegalChange,
    Learn,
    Leave,
    NotEmpty,
    Promote,
    TakeOver,
    Touch,
    View,
    apply_changes,
    bootstrap,
    descends,
    raise_epochs,
)
from cluster.placement.errors import BadValue
from cluster.placement.view import LINEAGE_MAX
from tests.placement.fleet import Fleet, identity_of


@pytest.fixture
def fleet() -> Fleet:
    """Nodes a, b, c; slot 0 is led by a, everybody in sync, epoch 1."""
    fleet = Fleet("abc")
    fleet.set_row(0, primary="a", incarnation=fleet.nodes["a"].incarnation)
    return fleet


# rule 1: one value, compared, changed by a pure function that is given the proposer and its epoch


def test_rule_1_a_swap_compares_the_map_and_the_proposer_s_own_key(fleet: Fleet) -> None:
    view = fleet.view()
    swap = fleet.swap("a", Leave(0, 1, fleet.identity("c")))
    assert view.map is not None
    assert swap.compare_revision == view.map.revision
    assert swap.compare_members == {"a": view.members["a"].revision}
    assert swap.config is None


def test_rule_1_of_two_swaps_made_on_one_map_one_is_applied(fleet: Fleet) -> None:
    first = fleet.swap("a", Leave(0, 1, fleet.identity("c")))
    second = fleet.swap("b", Learn(0, 1, ()), Touch())
    assert fleet.commit(first)
    assert not fleet.commit(second)


def test_rule_1_a_proposer_whose_key_is_gone_or_of_another_process_is_refused(fleet: Fleet) -> None:
    before = fleet.nodes["a"]
    fleet.lose_key("a")
    with pytest.raises(IllegalChange, match="key of a is gone: put it back"):
        fleet.swap("a", Touch())
    fleet.start("a")
    with pytest.raises(IllegalChange, match="shows another process"):
        apply_changes(fleet.view(), before, [Touch()])
    with pytest.raises(IllegalChange, match="shows another process"):
        apply_changes(fleet.view(), replace(fleet.nodes["a"], identity=identity_of(99)), [Touch()])


def test_rule_1_a_swap_is_refused_once_the_proposer_s_key_has_changed(fleet: Fleet) -> None:
    swap = fleet.swap("a", Touch())
    fleet.start("a")
    assert not fleet.commit(swap)


def test_rule_1_a_change_in_an_epoch_that_is_over_is_refused(fleet: Fleet) -> None:
    fleet.change("a", HandOver(0, 1, "b"))
    for change in (
        Leave(0, 1, fleet.identity("c")),
        HandOver(0, 1, "c"),
        TakeOver(0, 1),
        Learn(0, 1, ()),
        Promote(0, 1),
    ):
        with pytest.raises(IllegalChange, match="it is in epoch 2, not 1: read the map again"):
            fleet.swap("a", change)


def test_rule_1_only_the_primary_changes_its_in_sync_set_or_hands_it_over(fleet: Fleet) -> None:
    fleet.join("d")
    fleet.change("c", Learn(0, 1, fleet.ids("d")))
    for change in (
        Leave(0, 1, fleet.identity("c")),
        Enter(0, 1, fleet.identity("d")),
        HandOver(0, 1, "c"),
    ):
        with pytest.raises(IllegalChange, match="only its primary may: a, incarnation"):
            fleet.swap("b", change)


def test_rule_1_a_restarted_primary_is_no_primary_until_it_has_taken_over(fleet: Fleet) -> None:
    fleet.start("a")
    with pytest.raises(IllegalChange, match="only its primary may"):
        fleet.swap("a", Leave(0, 1, fleet.identity("c")))


def test_rule_1_any_node_may_name_learners_but_only_such_as_are_there(fleet: Fleet) -> None:
    d = fleet.join("d")
    fleet.change("c", Learn(0, 1, (d,)))
    assert (fleet.in_sync(0), fleet.learners(0)) == ("abc", "d")
    with pytest.raises(IllegalChange, match="is in sync: it has nothing to learn"):
        fleet.swap("c", Learn(0, 1, (d, fleet.identity("b"))))
    with pytest.raises(IllegalChange, match="no node that is up shows"):
        fleet.swap("c", Learn(0, 1, (d, identity_of(77))))
    with pytest.raises(IllegalChange, match="listed twice"):
        fleet.swap("c", Learn(0, 1, (d, d)))
    fleet.lose_key("d")
    fleet.change("b", Touch(), Learn(0, 1, (d,)))  # one that is listed already may stay while it is down
    fleet.change("b", Learn(0, 1, ()))
    assert fleet.learners(0) == ""
    assert fleet.map is not None
    assert d not in fleet.map.names


def test_rule_1_a_touch_moves_the_revision_and_nothing_else(fleet: Fleet) -> None:
    before = fleet.map
    assert before is not None
    late = fleet.swap("b", Learn(0, 1, ()), Touch())
    fleet.change("a", Touch())
    assert fleet.map == before
    assert fleet.map.revision > before.revision
    assert not fleet.commit(late)


def test_nothing_can_be_changed_where_there_is_no_fleet_or_no_change_or_no_such_slot(fleet: Fleet) -> None:
    with pytest.raises(IllegalChange, match="nothing to change"):
        fleet.swap("a")
    with pytest.raises(IllegalChange, match="no fleet yet"):
        apply_changes(View(1, members=fleet.members), fleet.nodes["a"], [Touch()])
    with pytest.raises(IllegalChange, match="there are slots 0 to 3"):
        fleet.swap("a", TakeOver(4, 1))
    fleet.config = FleetConfig(8, 3, 2)
    with pytest.raises(IllegalChange, match="the map has 4 slots and the configuration 8"):
        fleet.swap("a", Touch())


# rule 3: one change of the members at a time


def test_rule_3_one_membership_change_of_a_slot_in_one_swap(fleet: Fleet) -> None:
    d = fleet.join("d")
    fleet.change("a", Learn(0, 1, (d,)))
    leave, enter = Leave(0, 1, fleet.identity("c")), Enter(0, 1, d)
    for two in ((leave, enter), (enter, leave), (leave, HandOver(0, 1, "b")), (enter, HandOver(0, 1, "b"))):
        with pytest.raises(IllegalChange, match="one change of a slot's members in one swap"):
            fleet.swap("a", *two)
    fleet.lose_key("a")
    with pytest.raises(IllegalChange, match="one change of a slot's members in one swap"):
        fleet.swap("b", TakeOver(0, 1), Leave(0, 2, fleet.identity("c")))


# rule 4: the primary strikes a silent member from all its slots in one swap


def test_rule_4_the_primary_strikes_a_member_from_all_its_slots_in_one_swap() -> None:
    fleet = Fleet("abc", slots=64)
    led = fleet.led_by("a")
    fleet.change("a", *(Leave(slot, 1, fleet.identity("c")) for slot in led))
    assert {fleet.in_sync(slot) for slot in led} == {"ab"}
    assert {fleet.row(slot).epoch for slot in led} == {1}


def test_rule_4_who_leaves_dead_keeps_its_place_as_a_learner_and_who_leaves_alive_does_not(
    fleet: Fleet,
) -> None:
    fleet.set_row(1, primary="a", incarnation=fleet.nodes["a"].incarnation)
    fleet.change("a", Leave(0, 1, fleet.identity("c")))
    fleet.lose_key("c")
    fleet.change("a", Leave(1, 1, fleet.identity("c")))
    assert (fleet.in_sync(0), fleet.learners(0)) == ("ab", "")
    assert (fleet.in_sync(1), fleet.learners(1)) == ("ab", "c")


def test_rule_4_a_primary_never_leaves_its_own_set(fleet: Fleet) -> None:
    with pytest.raises(IllegalChange, match="hand the slot over first"):
        fleet.swap("a", Leave(0, 1, fleet.identity("a")))
    with pytest.raises(IllegalChange, match="is not in sync"):
        fleet.swap("a", Leave(0, 1, identity_of(9)))


# rule 5: never below min_in_sync


def test_rule_5_no_leave_makes_the_set_smaller_than_min_in_sync(fleet: Fleet) -> None:
    fleet.change("a", Leave(0, 1, fleet.identity("c")))
    fleet.lose_key("b")
    with pytest.raises(IllegalChange, match="fewer than min_in_sync 2 would be left: let another enter"):
        fleet.swap("a", Leave(0, 1, fleet.identity("b")))


def test_rule_5_a_dead_member_stays_listed_until_another_is_added(fleet: Fleet) -> None:
    fleet.change("a", Leave(0, 1, fleet.identity("c")))
    fleet.lose_key("b")
    d = fleet.join("d")
    fleet.change("a", Learn(0, 1, (d,)))
    fleet.change("a", Enter(0, 1, d))
    assert fleet.in_sync(0) == "abd"
    fleet.change("a", Leave(0, 1, fleet.identity("b")))
    assert fleet.in_sync(0) == "ad"


# rule 6: identities, not names


def test_rule_6_a_learner_enters_and_its_key_is_compared(fleet: Fleet) -> None:
    d = fleet.join("d")
    with pytest.raises(IllegalChange, match="is no learner: it has to be made one first"):
        fleet.swap("a", Enter(0, 1, d))
    fleet.change("c", Learn(0, 1, (d,)))
    swap = fleet.swap("a", Enter(0, 1, d))
    assert swap.compare_members["d"] == fleet.members["d"].revision
    row = swap.map.slots[0]
    assert (row.in_sync, row.learners) == (fleet.ids("abcd"), ())
    fleet.start("d")  # another process meanwhile
    assert not fleet.commit(swap)


def test_rule_6_who_is_down_or_in_sync_does_not_enter(fleet: Fleet) -> None:
    d = fleet.join("d")
    fleet.change("c", Learn(0, 1, (d,)))
    with pytest.raises(IllegalChange, match="in sync already"):
        fleet.swap("a", Enter(0, 1, fleet.identity("b")))
    fleet.lose_key("d")
    with pytest.raises(IllegalChange, match="no node that is up shows"):
        fleet.swap("a", Enter(0, 1, d))


def test_rule_6_a_lost_identity_is_replaced_by_its_node_s_new_one_in_one_swap(fleet: Fleet) -> None:
    fleet.change("a", Leave(0, 1, fleet.identity("b")))
    lost = fleet.identity("c")
    new = fleet.wipe("c")
    fleet.change("a", Learn(0, 1, (new,)))
    with pytest.raises(IllegalChange, match=f"it has to replace {lost} of c, of the same node"):
        fleet.swap("a", Enter(0, 1, new))
    fleet.change("a", Enter(0, 1, new, replaces=lost))
    assert fleet.row(0).in_sync == tuple(sorted((fleet.identity("a"), new)))
    assert fleet.row(0).learners == ()


def test_rule_6_only_a_lost_identity_of_the_same_node_is_replaced(fleet: Fleet) -> None:
    d = fleet.join("d")
    fleet.change("a", Learn(0, 1, (d,)))
    with pytest.raises(IllegalChange, match="another node's: only its own is replaced"):
        fleet.swap("a", Enter(0, 1, d, replaces=fleet.identity("c")))
    with pytest.raises(IllegalChange, match="to be replaced, is not in sync"):
        fleet.swap("a", Enter(0, 1, d, replaces=identity_of(50)))
    lost = fleet.identity("c")
    fleet.wipe("c")
    fleet.join("e", identity=lost)  # the directory came up under another name: it is not lost
    with pytest.raises(IllegalChange, match="is not lost: a node that is up shows it"):
        fleet.swap("a", Enter(0, 1, fleet.identity("c"), replaces=lost))


def test_rule_6_a_wiped_node_under_its_old_name_is_not_in_sync(fleet: Fleet) -> None:
    fleet.wipe("b")
    with pytest.raises(IllegalChange, match="b is not in sync with the data directory that it has now"):
        fleet.swap("a", HandOver(0, 1, "b"))
    fleet.lose_key("a")
    with pytest.raises(IllegalChange, match="b is not in sync: only an in-sync member takes over"):
        fleet.swap("b", TakeOver(0, 1))


# rule 8: takeover and hand-over


def test_rule_8_only_by_an_in_sync_identity(fleet: Fleet) -> None:
    fleet.join("d")
    fleet.lose_key("a")
    with pytest.raises(IllegalChange, match="d is not in sync"):
        fleet.swap("d", TakeOver(0, 1))


def test_rule_8_only_with_its_own_key_present(fleet: Fleet) -> None:
    fleet.lose_key("a")
    fleet.lose_key("b")
    with pytest.raises(IllegalChange, match="key of b is gone"):
        fleet.swap("b", TakeOver(0, 1))


def test_rule_8_only_when_the_old_primary_s_key_is_gone(fleet: Fleet) -> None:
    with pytest.raises(IllegalChange, match="the key of its primary a is there: wait until it is gone"):
        fleet.swap("b", TakeOver(0, 1))
    fleet.lose_key("a")
    swap = fleet.swap("b", TakeOver(0, 1))
    assert swap.compare_members == {"b": fleet.members["b"].revision, "a": 0}
    fleet.put_key("a")  # it was a false alarm: the same process puts its key back
    assert not fleet.commit(swap)


def test_rule_8_or_when_that_key_shows_another_incarnation(fleet: Fleet) -> None:
    fleet.start("a")
    swap = fleet.swap("b", TakeOver(0, 1))
    assert swap.compare_members["a"] == fleet.members["a"].revision
    assert fleet.commit(swap)
    assert fleet.row(0).primary == "b"


def test_rule_8_a_restarted_primary_takes_over_from_itself(fleet: Fleet) -> None:
    with pytest.raises(IllegalChange, match="a is the primary already"):
        fleet.swap("a", TakeOver(0, 1))
    fleet.start("a")
    fleet.change("a", TakeOver(0, 1))
    row = fleet.row(0)
    assert (row.epoch, row.primary, row.incarnation) == (2, "a", fleet.nodes["a"].incarnation)
    assert fleet.in_sync(0) == "abc"


def test_rule_8_the_swap_writes_the_next_epoch_and_the_new_incarnation(fleet: Fleet) -> None:
    fleet.lose_key("a")
    fleet.change("b", TakeOver(0, 1))
    row = fleet.row(0)
    assert (row.epoch, row.primary, row.incarnation) == (2, "b", fleet.nodes["b"].incarnation)


def test_rule_8_the_old_primary_leaves_the_set_in_that_swap(fleet: Fleet) -> None:
    fleet.lose_key("a")
    fleet.change("b", TakeOver(0, 1))
    assert (fleet.in_sync(0), fleet.learners(0)) == ("bc", "a")


def test_rule_8_unless_the_set_would_fall_below_min_in_sync(fleet: Fleet) -> None:
    fleet.change("a", Leave(0, 1, fleet.identity("c")))
    fleet.lose_key("a")
    fleet.change("b", TakeOver(0, 1))
    assert fleet.in_sync(0) == "ab"


def test_rule_8_no_two_starts_ever_lead_in_one_epoch(fleet: Fleet) -> None:
    seen = {(fleet.row(0).epoch, fleet.row(0).incarnation)}
    for _ in range(4):
        fleet.start("a")
        fleet.change("a", TakeOver(0, fleet.row(0).epoch))
        seen.add((fleet.row(0).epoch, fleet.row(0).incarnation))
    assert len({epoch for epoch, _ in seen}) == len({incarnation for _, incarnation in seen}) == 5


def test_rule_8_a_hand_over_is_made_by_the_primary_and_compares_the_target_s_key(fleet: Fleet) -> None:
    swap = fleet.swap("a", HandOver(0, 1, "b"))
    assert swap.compare_members == {name: fleet.members[name].revision for name in "ab"}
    row = swap.map.slots[0]
    assert (row.epoch, row.primary, row.incarnation) == (2, "b", fleet.nodes["b"].incarnation)
    assert row.in_sync == fleet.ids("abc")
    fleet.start("b")  # another incarnation meanwhile
    assert not fleet.commit(swap)


def test_rule_8_nothing_is_handed_to_who_is_down_drained_not_in_sync_or_leads_already(fleet: Fleet) -> None:
    fleet.join("d")
    fleet.drain("b")
    fleet.lose_key("c")
    for name, why in (
        ("a", "leads it already"),
        ("b", "is being drained"),
        ("c", "is not there"),
        ("d", "is not in sync"),
        ("nobody", "is not there"),
    ):
        with pytest.raises(IllegalChange, match=why):
            fleet.swap("a", HandOver(0, 1, name))


def test_rule_8_a_primary_that_enough_members_miss_is_taken_over_without_the_key_check(fleet: Fleet) -> None:
    with pytest.raises(IllegalChange, match="wait until it is gone"):
        fleet.swap("b", TakeOver(0, 1), missed="c")
    swap = fleet.swap("b", TakeOver(0, 1), missed="a")
    assert swap.compare_members == {"b": fleet.members["b"].revision}
    fleet.drain("a")  # whatever happens to its key
    assert fleet.commit(swap)
    assert (fleet.row(0).primary, fleet.row(0).epoch) == ("b", 2)
    assert (fleet.in_sync(0), fleet.learners(0)) == ("bc", "a")


def test_rule_8_a_data_directory_that_moved_to_another_name_takes_over_all_its_slots_in_one_swap() -> None:
    fleet = Fleet("abc", slots=8)
    led = fleet.led_by("a")
    fleet.lose_key("a")
    fleet.join("x", identity=fleet.identity("a"))
    with pytest.raises(IllegalChange, match="takes over all its slots in one swap"):
        fleet.swap("x", TakeOver(led[0], 1))
    fleet.change("x", *(TakeOver(slot, 1) for slot in led))
    assert fleet.led_by("x") == led
    assert fleet.map is not None
    assert sorted(fleet.map.names.values()) == ["b", "c", "x"]


# rule 9: an operator's command


def test_rule_9_no_in_sync_member_no_takeover_but_an_operator_may_promote_with_loss(fleet: Fleet) -> None:
    d = fleet.join("d")
    fleet.change("a", Learn(0, 1, (d,)))
    for name in "abc":
        fleet.lose_key(name)
    with pytest.raises(IllegalChange, match="d is not in sync"):
        fleet.swap("d", TakeOver(0, 1))
    swap = fleet.swap("d", Promote(0, 1))
    assert swap.compare_members == {"a": 0, "b": 0, "c": 0, "d": fleet.members["d"].revision}
    assert fleet.commit(swap)
    row = fleet.row(0)
    assert (row.epoch, row.primary, row.in_sync, row.lossy) == (2, "d", (d,), True)
    assert fleet.learners(0) == "abc"  # what they have beyond d's copy will be cut


def test_rule_9_nothing_is_promoted_while_an_in_sync_member_is_up(fleet: Fleet) -> None:
    fleet.join("d")
    fleet.lose_key("a")
    fleet.lose_key("b")
    with pytest.raises(IllegalChange, match="c is up and in sync"):
        fleet.swap("d", Promote(0, 1))
    with pytest.raises(IllegalChange, match="c is up and in sync"):
        fleet.swap("c", Promote(0, 1))
    fleet.lose_key("c")
    swap = fleet.swap("d", Promote(0, 1))
    fleet.put_key("c")  # it came back meanwhile
    assert not fleet.commit(swap)


def test_rule_9_a_slot_stays_marked_lossy(fleet: Fleet) -> None:
    fleet.set_row(0, lossy=True)
    fleet.change("a", HandOver(0, 1, "b"))
    fleet.lose_key("b")
    fleet.change("c", TakeOver(0, 2))
    assert fleet.row(0).lossy


def test_what_an_operator_forgets_loses_its_place_but_no_in_sync_set_shrinks_for_it(fleet: Fleet) -> None:
    c = fleet.identity("c")
    with pytest.raises(IllegalChange, match=r"c is up and shows .*: drain it"):
        fleet.swap("a", Forget(c))
    with pytest.raises(IllegalChange, match="nothing to forget"):
        fleet.swap("a", Forget(identity_of(60)))
    fleet.lose_key("c")
    fleet.change("a", Leave(0, 1, c))
    fleet.change("a", Forget(c))
    assert (fleet.in_sync(0), fleet.learners(0), fleet.in_sync(1)) == ("ab", "", "abc")
    assert fleet.map is not None
    assert fleet.map.forgotten == {c}
    fleet.put_key("c")  # it comes back all the same: welcome
    fleet.change("a", Touch())
    assert fleet.map.forgotten == set()


# rule 15: bootstrap and restore


def test_rule_15_a_fleet_is_made_once_the_expected_nodes_are_there() -> None:
    fleet = Fleet("ab", made=False)
    config = FleetConfig(1024, 3, 2)
    assert bootstrap(fleet.view(), config, 3) is None
    fleet.join("c")
    swap = bootstrap(fleet.view(), config, 3)
    assert swap is not None
    assert swap.config == config
    assert swap.compare_revision == 0
    assert swap.compare_members == {name: fleet.members[name].revision for name in "abc"}
    assert fleet.commit(swap)
    assert {row.epoch for row in fleet.rows} == {1}
    assert {row.in_sync for row in fleet.rows} == {fleet.ids("abc")}
    assert sorted(fleet.led().values()) == [341, 341, 342]
    assert bootstrap(fleet.view(), config, 3) is None
    assert not fleet.commit(swap)


def test_rule_15_a_node_with_data_never_bootstraps_a_fleet() -> None:
    fleet = Fleet("abc", made=False)
    fleet.nodes["b"] = replace(fleet.nodes["b"], empty=False)
    fleet.put_key("b")
    with pytest.raises(NotEmpty, match=r"b has jobs in its data directory.*gearfleet fleet restore.*stop b"):
        bootstrap(fleet.view(), FleetConfig(4, 3, 2), 3)


def test_a_drained_node_takes_no_part_in_a_bootstrap_and_min_in_sync_have_to_be_there() -> None:
    fleet = Fleet("abc", made=False)
    fleet.drain("c")
    assert bootstrap(fleet.view(), FleetConfig(4, 3, 2), 3) is None
    assert bootstrap(fleet.view(), FleetConfig(4, 3, 3), 1) is None
    swap = bootstrap(fleet.view(), FleetConfig(4, 3, 2), 1)
    assert swap is not None
    assert sorted(swap.compare_members) == ["a", "b"]


def test_a_bootstrap_refuses_one_directory_under_two_names_and_a_map_that_was_deleted() -> None:
    fleet = Fleet("ab", made=False)
    fleet.join("c", identity=fleet.identity("a"))
    with pytest.raises(IllegalChange, match="a and c show one data directory"):
        bootstrap(fleet.view(), FleetConfig(4, 3, 2), 3)
    fleet = Fleet("abc")
    fleet.map = None
    with pytest.raises(BadValue, match=r"not its map: the key was deleted. Mend: .*gearfleet fleet restore"):
        bootstrap(fleet.view(), FleetConfig(4, 3, 2), 3)


@pytest.mark.parametrize("above", [7, {0: 7, 1: 7, 2: 7, 3: 7}])
def test_rule_15_a_restored_map_has_epochs_beyond_any_persisted_and_no_primary(
    fleet: Fleet, above: int | dict[int, int]
) -> None:
    fleet.set_row(2, epoch=9)
    assert fleet.map is not None
    restored = raise_epochs(fleet.map, above, generation=4)
    assert [row.epoch for row in restored.slots] == [8, 8, 10, 8]
    assert {row.incarnation for row in restored.slots} == {0}
    assert restored.generation == 5
    assert [row.in_sync for row in restored.slots] == [row.in_sync for row in fleet.rows]


def test_rule_15_after_a_restore_everybody_takes_over_from_itself(fleet: Fleet) -> None:
    assert fleet.map is not None
    led = {name: fleet.led_by(name) for name in "abc"}
    fleet.map = replace(raise_epochs(fleet.map, 5, 1), revision=fleet.revision)
    with pytest.raises(IllegalChange, match="only its primary may"):
        fleet.swap("a", HandOver(0, 6, "b"))
    for name in "abc":
        assert fleet.turn(name) == [TakeOver(slot, 6) for slot in led[name]]
    assert {row.epoch for row in fleet.rows} == {7}


def test_rule_15_a_map_descends_from_another_by_generation_revision_and_each_slots_primary(
    fleet: Fleet,
) -> None:
    assert fleet.map is not None
    known = replace(
        fleet.map, revision=10, lineage=()
    )  # written by hand, or longer ago than lineages go back
    first, *others = known.slots

    def found(revision: int = 11, **changes: Any) -> FleetMap:
        return replace(known, slots=(first._replace(**changes), *others), revision=revision)

    assert descends(known, known)
    assert descends(found(in_sync=first.in_sync[:2]), known)
    assert descends(found(epoch=first.epoch + 1, primary="c", incarnation=99), known)
    assert not descends(found(revision=9), known)
    assert not descends(known, found(revision=10, epoch=first.epoch + 1))
    # An etcd that was restored has gone on: the same epoch is another one's there.
    assert not descends(found(primary="c"), known)
    assert not descends(found(incarnation=first.incarnation + 1), known)
    # What was written by `gearfleet fleet restore` replaces all before it.
    assert descends(replace(found(revision=1, primary="c"), generation=known.generation + 1), known)
    assert not descends(known, replace(known, generation=known.generation + 1))


def test_rule_15_an_etcd_that_was_restored_and_went_on_has_another_history_whatever_its_epochs_are(
    fleet: Fleet,
) -> None:
    # Given a backup, and a change that it has not
    backup = fleet.map, fleet.revision
    assert backup[0] is not None
    fleet.change("a", Touch())
    acted_on = fleet.map
    # When etcd is restored, and others change more than that, in every slot
    fleet.map, fleet.revision = backup
    for name in "bcbcb":
        fleet.change(name, Touch())
    fleet.map = replace(fleet.map, slots=tuple(row._replace(epoch=row.epoch + 5) for row in fleet.rows))
    # Then who acted on the change knows that this is not what came of it
    assert acted_on is not None
    assert fleet.map.revision > acted_on.revision
    assert not descends(fleet.map, acted_on)
    assert descends(fleet.map, backup[0])


def test_rule_15_the_last_changes_of_a_map_are_known_one_by_one(fleet: Fleet) -> None:
    seen = []
    for _ in range(LINEAGE_MAX + 5):
        fleet.change("a", Touch())
        assert fleet.map is not None
        seen.append(fleet.map)
    assert len(seen[-1].lineage) == LINEAGE_MAX == len(set(seen[-1].lineage))
    assert all(descends(seen[-1], known) for known in seen)  # the first ones by their epochs
    assert not any(descends(known, seen[-1]) for known in seen[:-1])
