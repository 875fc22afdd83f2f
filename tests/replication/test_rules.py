"""The design's rules, one by one: each test is named after the rule that it holds the core to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.jobs import RECLAIM, RUNNING
from cluster.node import Node, NodeSettings
from cluster.node.fleet import FleetSettings
from cluster.placement import Member, Swap, View
from cluster.placement.view import FleetMap, SlotRow
from cluster.replication import SLOT_COUNT, entries, slot_of
from cluster.replication.entries import DamagedEntry
from cluster.replication.frames import ACCEPTED, NEEDS_STATE, REJECTED, Frame, Offer, Piece
from cluster.replication.log import Log
from cluster.replication.replicator import ProtocolBroken, Replicator
from cluster.replication.restore import ReplicaRestorer
from cluster.wire import packets as wire
from tests.node.fleets import Client, FleetInOneThread, Host, SmallFleet, handles, small_uniques
from tests.replication.parties import Party, connect, cut_link, settle, submitted

SLOT = 7
UNIQUE, SECOND = small_uniques(b"f")[:2]  # of one slot


def trio(in_sync: str = "abc") -> tuple[Party, Party, Party]:
    """a leads in epoch 1."""
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b, c)
    a.lead(SLOT, 1, in_sync)
    settle(a, b, c)
    assert SLOT in a.served
    return a, b, c


def committed(party: Party, group: int) -> bool:
    return party.log.committed >= group


def submit(party: Party) -> tuple[bytes, int]:
    """A job, and the group that it waits for."""
    handle = party.submit(SLOT)
    group = party.log.group.number
    party.turn()
    return handle, group


# ---- rule 2: epochs on disk first, lower ones rejected


def test_rule_2_nothing_is_offered_before_the_promise_is_on_disk() -> None:
    a, b = Party("a"), Party("b")
    connect(a, b)
    a.lead(SLOT, 1, "ab")
    a.turn()
    assert not a.frame_for(b).offers
    a.write_all()
    assert [offer.epoch for offer in a.frame_for(b).offers] == [1]


def test_rule_2_no_offer_is_answered_before_the_promise_is_on_disk() -> None:
    a, b = Party("a"), Party("b")
    connect(a, b)
    a.lead(SLOT, 3, "ab")
    a.turn()
    a.write_all()
    b.receive(a, a.frame_for(b))
    assert not b.frame_for(a).answers
    b.write_all()
    assert b.frame_for(a).answers == [(SLOT, 3, ACCEPTED, 0)]
    assert b.restarted().log.slots[SLOT].promised == 3


def test_rule_2_a_lower_epoch_is_rejected_also_after_a_restart() -> None:
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b, c)
    a.lead(SLOT, 5, "abc")
    settle(a, b, c)
    b = b.restarted()
    connect(b, c)
    c.log.slots[SLOT].promised = 0  # as if it did not know
    c.lead(SLOT, 4, "bc")
    settle(b, c)
    assert c.rejected == [SLOT]
    assert SLOT not in c.replicator.leads


def test_rule_2_entries_of_an_epoch_that_is_over_are_rejected_before_they_are_acknowledged() -> None:
    a, b, c = trio()
    b.lead(SLOT, 2, "bc")
    settle(b, c)
    _, group = submit(a)
    settle(a, c)
    assert a.rejected == [SLOT]
    assert group not in [number for number, _ in a.unwritten]
    assert c.living(SLOT) == set()


def test_rule_2_a_member_that_follows_another_says_so_although_it_is_sent_nothing_of_the_slot() -> None:
    # c promised a later epoch to b. a wrote nothing since, and asks only for an empty group's commit.
    a, b, c = trio()
    cut_link(a, b)
    b.lead(SLOT, 2, "bc")
    settle(b, c)
    a.promise(SLOT)
    a.turn()
    frame = c.frame_for(a)
    assert [answer.verdict for answer in frame.answers] == [REJECTED]
    a.receive(c, frame)
    assert a.rejected == [SLOT]


def test_rule_2_a_primary_that_is_not_listed_any_more_learns_it_from_those_who_follow_another() -> None:
    # It was away from etcd, not from the others, until its place was given away. Nobody offers it anything.
    a, b, c = trio()
    b.lead(SLOT, 2, "bc")
    settle(b, c)
    a.promise(SLOT)
    a.turn()
    settle(a, b, c)
    assert a.rejected == [SLOT]


# ---- rule 3: both sets count; promises wait for a group begun after them


def test_rule_3_every_in_sync_member_has_to_have_it_on_disk() -> None:
    a, b, c = trio()
    _, group = submit(a)
    settle(a, b)
    assert not committed(a, group)
    frame = a.frame_for(c)
    c.receive(a, frame)
    assert not c.frame_for(a).acknowledged, "it is not on c's disk yet"
    c.write_all()
    a.receive(c, c.frame_for(a))
    assert committed(a, group)


def test_rule_3_it_counts_only_when_it_is_on_the_primary_s_own_disk() -> None:
    a, b, c = trio()
    _, group = submit(a)
    for other in (b, c):
        other.receive(a, a.frame_for(other))
        other.write_all()
        a.receive(other, other.frame_for(a))
    assert not committed(a, group)
    a.write_all()
    assert committed(a, group)


def test_rule_3_a_member_that_is_proposed_counts_already_and_the_others_still_do() -> None:
    a, b, c = trio("ab")
    a.members(SLOT, "ab", learners="c")
    settle(a, b, c)
    a.members(SLOT, "ab", learners="c", pending="c")
    _, group = submit(a)
    settle(a, b)
    assert not committed(a, group), "c does not have it"
    _, second = submit(a)
    settle(a, c)
    assert committed(a, group)
    assert not committed(a, second), "b does not have it"
    settle(a, b, c)
    assert committed(a, second)


def fleet_with_a_learner() -> tuple[FleetInOneThread, Host, str]:
    """The first slots' in-sync sets are {a, b}, led by a; c learns and has caught up."""
    fleet = SmallFleet(3).start()
    fleet_map = fleet.etcd.view.map
    assert fleet_map is not None
    a, b, c = (fleet.hosts[name] for name in "abc")
    slots = tuple(
        SlotRow(2, "a", a.incarnation, (a.identity, b.identity), (c.identity,)) if slot == SLOT else row
        for slot, row in enumerate(fleet_map.slots)
    )
    fleet.etcd.swap(Swap(replace(fleet_map, slots=slots), fleet_map.revision, {}))
    return fleet, a, c.identity


def catch_up(fleet: FleetInOneThread) -> None:
    """All but proposals."""
    for _ in range(20):
        for host in fleet.living():
            if host.part.view is not fleet.etcd.view:
                host.turn(lambda host=host: host.part.see(fleet.etcd.view))  # type: ignore[misc]
        fleet.send_frames()
        fleet.deliver(16)
        for host in fleet.living():
            host.write()


def pending_of(host: Host) -> set[str]:
    lead = host.part.replicator.leads[SLOT]
    return set(lead.pending)


def test_rule_3_an_unanswered_swap_keeps_both_sets_counting_until_a_later_revision_is_read() -> None:
    fleet, a, learner = fleet_with_a_learner()
    catch_up(fleet)
    swap = a.part.propose()
    assert swap is not None
    assert learner in swap.map.slots[SLOT].in_sync
    assert pending_of(a) == {learner}
    a.part.swapped()  # refused, or not answered: nobody knows
    assert pending_of(a) == {learner}
    a.turn(lambda: a.part.see(replace(fleet.etcd.view, revision=fleet.etcd.view.revision + 1)))
    assert pending_of(a) == {learner}, "the map is the one that the swap compared: it may still land"
    fleet.etcd.swap(swap)
    a.turn(lambda: a.part.see(fleet.etcd.view))
    assert pending_of(a) == set()
    assert learner in a.part.replicator.leads[SLOT].in_sync


def test_rule_3_a_swap_of_unknown_fate_is_made_impossible_before_its_member_stops_counting() -> None:
    fleet, a, _ = fleet_with_a_learner()
    catch_up(fleet)
    lost = a.part.propose()
    assert lost is not None
    a.part.swapped()
    a.turn(lambda: a.part.peer_down("c"))  # it cannot be proposed again
    fleet.now += 6.0
    a.node.begin_turn(fleet.now, fleet.now)
    a.end()
    swap = a.part.propose()
    assert swap is not None
    assert swap.compare_revision == lost.compare_revision
    fleet.etcd.swap(swap)
    a.part.swapped()
    a.turn(lambda: a.part.see(fleet.etcd.view))
    assert pending_of(a) == set()
    assert not fleet.etcd.swap(lost)


def test_rule_3_two_members_proposed_on_one_map_both_count() -> None:
    fleet, a, learner = fleet_with_a_learner()
    catch_up(fleet)
    assert a.part.propose() is not None
    a.part.swapped()
    # The first did not answer in time; now another learner is the one that has caught up.
    other = "f" * 32
    fleet_map = a.part.view.map
    assert fleet_map is not None
    a.part._pending[SLOT] = (*a.part._pending[SLOT], other)
    assert a.part.propose() is not None
    assert set(a.part._pending[SLOT]) == {learner, other}
    assert pending_of(a) == {learner, other}


def test_rule_3_a_view_never_goes_back() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.hosts["a"]
    now = host.part.view
    old = replace(now, revision=now.revision - 1)
    assert not host.part.see(old)
    assert now.map is not None
    older_map = replace(now.map, revision=now.map.revision - 1)
    assert not host.part.see(replace(now, revision=now.revision + 5, map=older_map))
    assert host.part.view is now


def test_rule_3_a_submit_that_joins_waits_for_a_group_begun_after_it() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    first, second = host.connect(), host.connect()
    first.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    (handle,) = handles(first.take())
    second.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    assert second.take() == []
    host.write()
    assert second.take() == [], "its own disk is not enough"
    fleet.settle()
    assert handles(second.take()) == [handle]


def test_rule_3_a_join_is_not_confirmed_by_a_primary_that_was_deposed() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    first, second = host.connect(), host.connect()
    first.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    first.take()
    # Its key is deleted by mistake; another takes over, and ends the job.
    fleet.etcd.delete(host.name)
    others = [other for other in fleet.living() if other is not host]
    for _ in range(6):
        for other in others:
            other.turn(lambda other=other: other.part.see(fleet.etcd.view))  # type: ignore[misc]
            swap = other.part.propose()
            if swap is not None:
                fleet.etcd.swap(swap)
                other.part.swapped()
    second.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    assert second.take() == []
    fleet.settle()
    successor = fleet.host_of(b"f", UNIQUE)
    (handle,) = handles(second.take())
    assert successor.node.context.find_handle(handle) is not None


def test_rule_3_a_join_is_not_confirmed_by_a_primary_that_reaches_nobody() -> None:
    # For all it knows, another has taken over, and the job is over.
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    first, second = host.connect(), host.connect()
    first.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    first.take()
    fleet.etcd.up = False
    for other in fleet.hosts.values():
        if other is not host:
            fleet.blocked.add(frozenset((host.name, other.name)))
            fleet.cut(host.name, other.name)
    second.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    assert second.take() == []


# ---- rules 4 and 5: not around a silent member; refused when it takes too long


def test_rule_4_nothing_is_acknowledged_around_a_silent_member_until_etcd_says_that_it_left() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    silent = next(other for other in fleet.living() if other is not host)
    silent.frozen = True
    fleet.etcd.up = False
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    assert client.take() == []
    fleet.etcd.up = True
    fleet.etcd.delete(silent.name)
    fleet.settle()
    assert len(handles(client.take())) == 1
    fleet_map = fleet.etcd.view.map
    assert fleet_map is not None
    assert all(silent.identity not in row.in_sync for row in fleet_map.slots)


def test_rule_5_a_dead_member_stays_listed_when_the_set_would_fall_below_the_minimum() -> None:
    fleet = SmallFleet(3).start()
    first, second, last = (fleet.hosts[name] for name in "abc")
    first.crash()
    fleet.etcd.delete("a")
    fleet.settle()
    second.crash()
    fleet.etcd.delete("b")
    fleet.settle()
    fleet_map = fleet.etcd.view.map
    assert fleet_map is not None
    assert all(len(row.in_sync) == 2 for row in fleet_map.slots)
    client = last.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    fleet.pass_time(9.0)
    ((packet_type, body),) = client.take()
    assert packet_type == wire.ERROR
    assert b"start b again" in body or b"do not answer: b" in body
    second.start()
    fleet.settle()
    fleet.pass_time(1.0)
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    assert len(handles(client.take())) == 1


def test_rule_5_a_commit_that_does_not_come_is_refused_and_the_job_is_kept() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    others = [other for other in fleet.living() if other is not host]
    for other in others:
        other.frozen = True
    fleet.etcd.up = False
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.pass_time(7.0)
    assert client.take() == []
    fleet.pass_time(3.0)
    ((packet_type, body),) = client.take()
    assert packet_type == wire.ERROR
    assert body.startswith(b"QUEUE_ERROR")
    client.send(wire.SUBMIT_JOB_BG, b"f", SECOND, b"p")
    assert client.take()[0][0] == wire.ERROR, "nothing more is taken meanwhile"
    for frozen in others:
        frozen.frozen = False
    fleet.etcd.up = True
    fleet.settle()
    fleet.pass_time(0.5)
    worker = host.connect()
    worker.send(wire.CAN_DO, b"f")
    worker.send(wire.GRAB_JOB)
    assert worker.take()[0][0] == wire.JOB_ASSIGN


# ---- rule 6: who may enter


def test_rule_6_a_learner_has_caught_up_when_it_has_what_the_log_held_and_all_committed_since() -> None:
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b)
    a.lead(SLOT, 1, "ab", learners="c")
    settle(a, b)
    submit(a)
    settle(a, b)
    connect(a, c)
    assert a.replicator.caught_up() == set()
    settle(a, c)
    assert a.replicator.caught_up() == {(SLOT, c.identity)}
    submit(a)
    settle(a, b)
    assert a.replicator.caught_up() == set() or not committed(a, a.log.group.number - 1)
    settle(a, b, c)
    assert a.replicator.caught_up() == {(SLOT, c.identity)}
    cut_link(a, c)
    assert a.replicator.caught_up() == set()


def test_rule_6_what_was_acknowledged_in_an_earlier_epoch_does_not_count() -> None:
    a, b, c = trio()
    submit(a)
    settle(a, b, c)
    a.step_down(SLOT)
    a.lead(SLOT, 2, "ab", learners="c")
    a.turn()
    a.write_all()
    assert a.replicator.caught_up() == set()
    assert SLOT not in a.served


# ---- rule 7: compare, cut, whole states


def party_with(log: list[int], promised: int = 0) -> Party:
    """Its log: the epoch of each entry."""
    records = [
        submitted(SLOT, epoch, number, b"%d.%d" % (epoch, number)) for number, epoch in enumerate(log, 1)
    ]
    records.append(entries.encode(entries.EPOCH, SLOT, promised or max([*log, 1]), 0, b""))
    return Party("b", records)


@pytest.mark.parametrize(
    ("mine", "offered", "verdict", "number"),
    [
        ([], [1, 1], ACCEPTED, 0),
        ([1, 1], [1, 1], ACCEPTED, 2),
        ([1, 1, 1], [1, 1, 2], ACCEPTED, 2),  # the third is of a lower epoch than the stream's: cut
        ([1, 1], [1, 2, 2], ACCEPTED, 1),
        ([1, 1, 3], [1, 4], ACCEPTED, 1),
    ],
)
def test_rule_7_the_tail_is_compared_by_epoch_and_number(
    mine: list[int], offered: list[int], verdict: int, number: int
) -> None:
    b = party_with(mine)
    a = Party("a")
    connect(a, b)
    history: list[tuple[int, int]] = []
    for position, epoch in enumerate(offered, 1):
        if not history or history[-1][0] != epoch:
            history.append((epoch, position))
    b.receive(a, Frame(offers=[Offer(SLOT, 9, tuple(history), len(offered))]))
    b.write_all()
    assert b.frame_for(a).answers == [(SLOT, 9, verdict, number)]
    assert b.log.slots[SLOT].number == number
    again = b.restarted()
    assert again.log.slots[SLOT].number == number
    assert again.log.slots[SLOT].history == b.log.slots[SLOT].history


def test_rule_7_an_entry_of_the_stream_s_own_epoch_is_never_cut() -> None:
    # An old offer of the very primary whose later entries are here.
    b = party_with([1, 2, 2], promised=2)
    a = Party("a")
    connect(a, b)
    b.receive(a, Frame(offers=[Offer(SLOT, 2, ((1, 1), (2, 2)), 2)]))
    b.write_all()
    assert b.log.slots[SLOT].number == 3
    assert b.frame_for(a).answers == [(SLOT, 2, ACCEPTED, 3)]


def test_rule_7_a_higher_promise_means_rejection() -> None:
    b = party_with([1, 2], promised=4)
    a = Party("a")
    connect(a, b)
    b.receive(a, Frame(offers=[Offer(SLOT, 3, ((1, 1),), 1)]))
    assert b.frame_for(a).answers == [(SLOT, 4, REJECTED, 0)]
    assert b.log.slots[SLOT].number == 2


def test_rule_7_each_stream_is_compared_anew() -> None:
    a, b, c = trio()
    submit(a)
    settle(a, b, c)
    cut_link(a, b)
    connect(a, b)
    _, group = submit(a)
    settle(a, c)
    frame = a.frame_for(b)
    assert [offer.slot for offer in frame.offers] == [SLOT]
    assert not frame.entries, "nothing before the answer"
    assert not committed(a, group)
    b.receive(a, frame)
    settle(a, b, c)
    assert committed(a, group)
    assert b.living(SLOT) == a.living(SLOT)


def test_rule_7_a_tail_that_waited_for_a_state_is_compared_again_in_the_same_epoch() -> None:
    # a had a job that it never committed; b's log parts before it, and a has to be sent a whole state. The
    # stream breaks before that comes; meanwhile b's log has become as long as a's.
    a, b, c = trio()
    kept, _ = submit(a)
    settle(a, b, c)
    cut_link(a, b)
    cut_link(a, c)
    lost, _ = submit(a)
    a.write_all()
    b.lead(SLOT, 2, "bc", learners="a")
    settle(b, c)
    connect(a, b)
    a.receive(b, b.frame_for(a))
    a.write_all()
    assert [answer.verdict for answer in a.frame_for(b).answers] == [NEEDS_STATE]
    cut_link(a, b)
    later, _ = submit(b)
    settle(b, c)
    connect(a, b)
    settle(a, b, c)
    assert a.living(SLOT) == {kept, later}, f"the lost one is {lost!r}"


def state_of(epoch: int, numbers: int) -> bytes:
    log = [submitted(SLOT, epoch, number, b"s%d" % number) for number in range(1, numbers + 1)]
    history = [(epoch, 1)] if numbers else []
    return b"".join(
        (
            entries.encode_state(SLOT, epoch, numbers, history),
            *log,
            entries.encode(entries.STATE_END, SLOT, epoch, numbers, b""),
        )
    )


def follower(log: list[int], epoch: int) -> tuple[Party, Party]:
    b, a = party_with(log), Party("a")
    connect(a, b)
    b.receive(a, Frame(offers=[Offer(SLOT, epoch, ((epoch, 1),), 9)]))
    b.write_all()
    return a, b


def test_rule_7_a_state_is_switched_to_only_when_all_of_it_is_there() -> None:
    a, b = follower([1, 1], 2)
    data = state_of(2, 3)
    before = b.living(SLOT)
    b.receive(a, Frame(pieces=[Piece(SLOT, 2, data[:50], False)]))
    b.write_all()
    assert b.living(SLOT) == before
    assert b.restarted().living(SLOT) == before
    b.receive(a, Frame(pieces=[Piece(SLOT, 2, data[50:], True)]))
    assert b.living(SLOT) == {b"s1", b"s2", b"s3"}
    b.write_all()
    assert b.restarted().living(SLOT) == {b"s1", b"s2", b"s3"}


def test_rule_7_a_state_half_of_which_came_over_an_earlier_stream_is_forgotten() -> None:
    a, b = follower([1, 1], 2)
    data = state_of(2, 3)
    b.receive(a, Frame(pieces=[Piece(SLOT, 2, data[:50], False)]))
    cut_link(a, b)
    connect(a, b)
    b.receive(a, Frame(offers=[Offer(SLOT, 2, ((2, 1),), 9)], pieces=[Piece(SLOT, 2, data, True)]))
    assert b.living(SLOT) == {b"s1", b"s2", b"s3"}


def test_rule_7_a_state_never_replaces_one_that_reaches_further_in_the_same_epoch() -> None:
    a, b = follower([], 2)
    log = b"".join(submitted(SLOT, 2, number, b"s%d" % number) for number in range(1, 6))
    b.receive(a, Frame(entries=log))
    b.receive(a, Frame(pieces=[Piece(SLOT, 2, state_of(2, 3), True)]))
    assert b.log.slots[SLOT].number == 5
    assert len(b.living(SLOT)) == 5


def test_rule_7_a_state_of_an_epoch_that_is_over_is_not_taken() -> None:
    a, b = follower([1], 2)
    c = Party("c")
    connect(b, c)
    b.receive(c, Frame(offers=[Offer(SLOT, 3, ((1, 1),), 1)]))
    b.receive(a, Frame(pieces=[Piece(SLOT, 2, state_of(2, 3), True)]))
    assert b.log.slots[SLOT].number == 0
    b.write_all()
    assert b.restarted().log.slots[SLOT].number == 0


def test_rule_7_a_commit_mark_is_on_no_disk() -> None:
    # All that a backup keeps is what was written; what was committed it asks nobody on this disk.
    a, b, c = trio()
    submit(a)
    settle(a, b, c)
    kinds = set()
    for record in (*a.disk, *b.disk):
        offset = 0
        while offset < len(record):
            entry, offset = entries.decode(record, offset)
            kinds.add(entry.kind)
    assert kinds == {entries.EPOCH, entries.SUBMITTED}


def test_rule_7_a_gap_breaks_the_stream() -> None:
    a, b = follower([], 2)
    with pytest.raises(ProtocolBroken, match="entry 3 follows 0"):
        b.receive(a, Frame(entries=submitted(SLOT, 2, 3, b"s3")))


def test_rule_7_logs_that_cannot_be_compared_are_replaced_whole() -> None:
    b, a = Party("b"), Party("a")
    b.log.slots[SLOT].number = 40
    b.log.slots[SLOT].history[:] = [(20, 30)]
    b.log.slots[SLOT].promised = 20
    connect(a, b)
    b.receive(a, Frame(offers=[Offer(SLOT, 30, ((25, 35),), 50)]))
    b.write_all()
    assert b.frame_for(a).answers == [(SLOT, 30, NEEDS_STATE, 0)]


# ---- rule 8: takeover


def test_rule_8_a_restarted_primary_takes_over_from_itself_in_a_new_epoch() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    slot = slot_of(b"f\0" + UNIQUE)
    assert fleet.etcd.view.map is not None
    before = fleet.etcd.view.map.slots[slot]
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    (handle,) = handles(client.take())
    host.crash()
    host.start()  # its key was there all the time
    row = fleet.etcd.view.map.slots[slot]
    assert row.incarnation != host.incarnation
    host.turn(lambda: host.part.see(fleet.etcd.view))
    assert not host.part.leads(slot), "not in the epoch of the process before"
    fleet.settle()
    assert fleet.etcd.view.map is not None
    after = fleet.etcd.view.map.slots[slot]
    assert (after.primary, after.epoch) == (host.name, before.epoch + 1)
    assert after.incarnation == host.incarnation
    assert host.node.context.find_handle(handle) is not None


def test_rule_8_nothing_inherited_is_given_out_or_joined_before_all_members_have_it() -> None:
    a, b, c = trio()
    handle, _ = submit(a)
    settle(a, b, c)
    for party in (a, b, c):
        for name in list(party.replicator.peers):
            party.replicator.peer_down(name)
    b.lead(SLOT, 2, "abc")
    connect(b, c)
    settle(b, c)
    assert SLOT not in b.served, "a has not acknowledged it in epoch 2"
    connect(a, b)
    settle(a, b, c)
    assert b.living(SLOT) == {handle}
    assert SLOT in b.served


def test_rule_8_an_uncommitted_entry_that_was_inherited_is_kept_and_goes_to_all() -> None:
    a, b, c = trio()
    cut_link(a, c)
    handle, group = submit(a)
    settle(a, b)
    assert not committed(a, group)
    b.lead(SLOT, 2, "bc")
    settle(b, c)
    assert c.living(SLOT) == {handle} == b.living(SLOT)


def test_rule_8_a_hand_over_loses_nothing_and_what_waits_is_answered() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    (handle,) = handles(client.take())
    fleet.etcd.put(replace(host.member, draining=True))
    client.send(wire.SUBMIT_JOB_BG, b"f", SECOND, b"p")
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    fleet.pass_time(3.0)
    assert not host.part.replicator.leads
    successor = fleet.host_of(b"f", UNIQUE)
    assert successor is not host
    assert successor.node.context.find_handle(handle) is not None
    answered = handles(client.take())
    assert len(answered) == 2
    assert answered[1] == handle


# ---- rule 10: torn groups; the journal's prefixes


def journal_of_a_backup() -> tuple[list[bytes], list[tuple[int, int]]]:
    """EPOCH, entries, CUT, STATE with a tail, entries; and after each record number and promise."""
    records: list[bytes] = []
    expected: list[tuple[int, int]] = [(0, 0)]

    def add(raw: bytes, number: int, promised: int) -> None:
        records.append(raw)
        expected.append((number, promised))

    add(entries.encode(entries.START, entries.NODE_SLOT, 0, 1, b"1"), 0, 0)
    add(entries.encode(entries.EPOCH, SLOT, 2, 0, b""), 0, 2)
    for number in (1, 2, 3):
        add(submitted(SLOT, 2, number, b"a%d" % number), number, 2)
    add(entries.encode(entries.EPOCH, SLOT, 3, 0, b""), 3, 3)
    add(entries.encode(entries.CUT, SLOT, 3, 1, b""), 1, 3)
    add(submitted(SLOT, 3, 2, b"b2"), 2, 3)
    add(entries.encode(entries.EPOCH, SLOT, 5, 0, b""), 2, 5)
    state = state_of(5, 2)
    offset = 0
    while offset < len(state):
        _, end = entries.decode(state, offset)
        add(state[offset:end], 2, 5)
        offset = end
    add(submitted(SLOT, 5, 3, b"c3"), 3, 5)
    add(entries.encode(entries.EPOCH, SLOT, 6, 0, b""), 3, 6)
    return records, expected


def test_rule_10_every_prefix_of_the_journal_can_be_replayed() -> None:
    records, expected = journal_of_a_backup()
    for length, (number, promised) in enumerate(expected):
        party = Party("b", records[:length])
        assert (party.log.slots[SLOT].number, party.log.slots[SLOT].promised) == (number, promised), length


def test_rule_10_a_state_that_was_torn_swallows_nothing_of_the_next_start() -> None:
    records, expected = journal_of_a_backup()
    start = [
        entries.encode(entries.START, entries.NODE_SLOT, 0, 2, b"1"),
        entries.encode(entries.EPOCH, SLOT, 7, 0, b""),
    ]
    for length, (number, _) in enumerate(expected):
        party = Party("b", [*records[:length], *start, submitted(SLOT, 7, number + 1, b"next")])
        assert party.log.slots[SLOT].number == number + 1
        assert b"next" in party.living(SLOT), length
        assert party.log.slots[SLOT].promised == 7


def test_rule_10_a_torn_group_was_acknowledged_by_nobody() -> None:
    a, b, c = trio()
    handle, _ = submit(a)
    settle(a, b, c)
    lost, group = submit(a)
    for other in (b, c):
        other.receive(a, a.frame_for(other))
        assert not other.frame_for(a).acknowledged
    assert not committed(a, group)
    b, c = b.restarted(), c.restarted()
    assert b.living(SLOT) == c.living(SLOT) == {handle}
    assert lost not in b.living(SLOT)


@pytest.mark.parametrize(
    "raw",
    [
        entries.encode(entries.CUT, SLOT, 1, 0, b""),
        submitted(SLOT, 1, 9, b"h"),
        entries.encode(entries.SLOT, SLOT, 1, 3, b""),
        submitted(SLOT_COUNT, 1, 1, b"h"),
    ],
)
def test_rule_10_what_does_not_fit_is_damage(raw: bytes) -> None:
    restorer = ReplicaRestorer(Replicator(Log(), "a" * 32))
    state, offset = state_of(1, 2), 0
    while offset < len(state):
        entry, offset = entries.decode_raw(state, offset)
        restorer.apply(entry)
    with pytest.raises(DamagedEntry):
        restorer.apply(entries.decode_raw(raw, 0)[0])


# ---- rule 11: fencing


def grabbing(host: Host) -> Client:
    worker = host.connect()
    worker.send(wire.CAN_DO, b"f")
    return worker


def queued_job(fleet: FleetInOneThread) -> tuple[Host, bytes]:
    host = fleet.host_of(b"f", UNIQUE)
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    (handle,) = handles(client.take())
    return host, handle


def grabs(worker: Client) -> list[int]:
    worker.send(wire.GRAB_JOB)
    return [packet_type for packet_type, _ in worker.take()]


def test_rule_11_without_lease_and_peers_nothing_is_given_out_from_before_the_lease_ends() -> None:
    fleet = SmallFleet(3).start()
    host, _ = queued_job(fleet)
    worker = grabbing(host)
    fleet.now += 100.0
    # The keep-alive was sent now, however late its answer came.
    host.part.lease(fleet.now)
    host.turn(host.node.tick)
    fleet.now += 4.49  # lease 5.0 less the margin of 0.5
    host.turn(host.node.tick)
    assert not host.part.fenced
    fleet.now += 0.02
    assert grabs(worker) == [wire.NO_JOB]
    assert host.part.fenced


def test_rule_11_the_lease_counts_from_when_the_keep_alive_was_sent() -> None:
    fleet = SmallFleet(3).start()
    host, _ = queued_job(fleet)
    worker = grabbing(host)
    sent_at = fleet.now + 50.0
    fleet.now = sent_at + 4.6
    host.part.lease(sent_at)  # its answer came only now
    assert grabs(worker) == [wire.NO_JOB]
    host.part.lease(fleet.now)
    assert wire.JOB_ASSIGN in grabs(worker)


def test_rule_11_and_14_without_etcd_jobs_are_given_out_while_all_members_answer() -> None:
    fleet = SmallFleet(3).start()
    host, _ = queued_job(fleet)
    fleet.etcd.up = False
    worker = grabbing(host)
    fleet.now += 60.0
    for other in fleet.living():
        if other is not host:
            host.turn(lambda other=other: host.part.receive(other.name, Frame(), fleet.now))  # type: ignore[misc]
    fleet.now += 0.2
    assert wire.JOB_ASSIGN in grabs(worker)
    fleet.now += 2.5
    host.turn(host.node.tick)
    assert host.part.fenced, "they are silent for longer than silence_seconds"


def test_rule_11_a_fenced_node_wakes_its_workers_when_the_lease_is_back() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    fleet.now += 60.0
    host.turn(host.node.tick)
    worker = grabbing(host)
    worker.send(wire.PRE_SLEEP)
    fleet.etcd.up = False
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    assert worker.take() in ([], [(wire.NOOP, b"")])
    host.part.lease(fleet.now)
    host.turn(lambda: None)
    fleet.settle()
    assert wire.JOB_ASSIGN in grabs(worker)


# ---- rule 12: reclaim


def taken_over(fleet: FleetInOneThread) -> tuple[bytes, Host]:
    """A job that a worker of the dead primary ran; its successor."""
    host, handle = queued_job(fleet)
    worker = grabbing(host)
    assert wire.JOB_ASSIGN in grabs(worker)
    fleet.settle()
    host.crash()
    fleet.etcd.delete(host.name)
    fleet.settle()
    return handle, fleet.host_of(b"f", UNIQUE)


def test_rule_12_a_job_that_ran_waits_for_its_worker_before_it_is_queued_again() -> None:
    fleet = SmallFleet(3).start()
    handle, successor = taken_over(fleet)
    job = successor.node.context.find_handle(handle)
    assert job is not None
    assert job.state == RECLAIM
    worker = grabbing(successor)
    assert grabs(worker) == [wire.NO_JOB]
    fleet.pass_time(1.5)
    assert grabs(worker) == [wire.NO_JOB]
    fleet.pass_time(1.0)
    assert wire.JOB_ASSIGN in grabs(worker)


def test_rule_12_a_late_result_by_handle_ends_the_job() -> None:
    fleet = SmallFleet(3).start()
    handle, successor = taken_over(fleet)
    worker = successor.connect()
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    fleet.settle()
    assert successor.node.context.find_handle(handle) is None
    fleet.pass_time(3.0)
    assert grabs(grabbing(successor)) == [wire.NO_JOB]


def test_rule_12_a_late_result_reaches_the_primary_over_any_node() -> None:
    fleet = SmallFleet(3).start()
    handle, successor = taken_over(fleet)
    third = next(host for host in fleet.living() if host is not successor)
    worker = third.connect()
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    fleet.settle()
    assert worker.take() == []
    assert successor.node.context.find_handle(handle) is None


def test_rule_12_a_claim_keeps_the_job_for_its_worker() -> None:
    fleet = SmallFleet(3).start()
    handle, successor = taken_over(fleet)
    third = next(host for host in fleet.living() if host is not successor)
    astray = third.connect()
    astray.send(wire.CLAIM_JOB, handle)
    fleet.settle()
    assert astray.take() == [(wire.CLAIM_RES, handle + b"\0elsewhere")]
    worker = successor.connect()
    worker.send(wire.CLAIM_JOB, handle)
    fleet.settle()
    assert worker.take() == [(wire.CLAIM_RES, handle + b"\0kept")]
    other = successor.connect()
    other.send(wire.CLAIM_JOB, handle)
    fleet.settle()
    assert other.take() == [(wire.CLAIM_RES, handle + b"\0gone")]
    fleet.pass_time(5.0)
    assert grabs(grabbing(successor)) == [wire.NO_JOB]
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    fleet.settle()
    assert successor.node.context.find_handle(handle) is None


def hand_over(fleet: FleetInOneThread, host: Host, *, sees_first: bool) -> Host:
    """The slot of f, u goes to another node; either side may see the map first."""
    fleet.etcd.put(replace(host.member, draining=True))
    if sees_first:
        for _ in range(30):
            if fleet.host_of(b"f", UNIQUE) is not host:
                break
            host.turn(lambda: host.part.see(fleet.etcd.view))
            swap = host.part.propose()
            host.turn(lambda: None)
            if swap is not None:
                fleet.etcd.swap(swap)
                host.part.swapped()
                host.turn(lambda: host.part.see(fleet.etcd.view))
            fleet.send_frames()
            fleet.deliver(16)
            for other in fleet.living():
                other.write()
        for _ in range(3):
            fleet.send_frames()
            fleet.deliver(16)
    fleet.settle()
    successor = fleet.host_of(b"f", UNIQUE)
    assert successor is not host
    return successor


@pytest.mark.parametrize("sees_first", [False, True])
def test_rule_12_the_worker_of_a_primary_that_gave_its_slot_away_keeps_its_job(*, sees_first: bool) -> None:
    fleet = SmallFleet(3).start()
    host, handle = queued_job(fleet)
    worker = grabbing(host)
    assert wire.JOB_ASSIGN in grabs(worker)
    fleet.settle()
    successor = hand_over(fleet, host, sees_first=sees_first)
    fleet.pass_time(6.0)
    job = successor.node.context.find_handle(handle)
    assert job is not None
    assert job.state == RUNNING, "it is not run again while its worker has it"
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    fleet.settle()
    assert successor.node.context.find_handle(handle) is None


def test_rule_12_a_stock_worker_that_goes_away_frees_its_job_at_the_new_primary() -> None:
    fleet = SmallFleet(3).start()
    host, handle = queued_job(fleet)
    worker = grabbing(host)
    assert wire.JOB_ASSIGN in grabs(worker)
    fleet.settle()
    successor = hand_over(fleet, host, sees_first=False)
    host.turn(lambda: host.node.disconnected(worker.connection))
    fleet.settle()
    fleet.pass_time(0.5)
    assert successor.node.context.find_handle(handle) is not None
    assert wire.JOB_ASSIGN in grabs(grabbing(successor))


def test_rule_12_a_claim_whose_node_goes_away_is_answered() -> None:
    # The slot is led here when the claim comes, goes away before it is served, and its next node dies.
    fleet = SmallFleet(3).start()
    host, handle = queued_job(fleet)
    slot = slot_of(b"f\0" + UNIQUE)
    host.part.pause([slot])
    worker = host.connect()
    worker.send(wire.CLAIM_JOB, handle)
    worker.send(wire.ECHO_REQ, b"behind it")
    fleet.etcd.delete(host.name)
    others = [other for other in fleet.living() if other is not host]
    for _ in range(6):
        for other in others:
            other.turn(lambda other=other: other.part.see(fleet.etcd.view))  # type: ignore[misc]
            swap = other.part.propose()
            if swap is not None:
                fleet.etcd.swap(swap)
                other.part.swapped()
    host.turn(lambda: host.part.see(fleet.etcd.view))
    for other in others:
        other.crash()
    fleet.pass_time(11.0)
    packets = worker.take()
    assert [packet_type for packet_type, _ in packets] == [wire.CLAIM_RES, wire.ECHO_RES]


# ---- rule 14: etcd out of reach


def test_rule_14_without_etcd_slots_whose_members_answer_go_on() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    fleet.etcd.up = False
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    fleet.settle()
    assert len(handles(client.take())) == 1


def test_rule_14_without_etcd_nobody_takes_over() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    before = fleet.etcd.view.map
    fleet.etcd.up = False
    host.crash()
    fleet.settle()
    fleet.pass_time(5.0)
    assert fleet.etcd.view.map is before
    assert not any(other.part.leads(slot_of(b"f\0" + UNIQUE)) for other in fleet.living())


# ---- what forwarding must not do


def test_nodes_never_wait_for_each_other_in_a_circle() -> None:
    # Each believes that another one leads: with answers in order, a chain of three would never end.
    fleet = SmallFleet(3).start()
    asked: list[tuple[Host, Client]] = []
    names = list("abc")
    for index, name in enumerate(names):
        host = fleet.hosts[name]
        fleet_map = host.part.view.map
        assert fleet_map is not None
        slot = slot_of(b"f\0" + UNIQUE)
        host.part.primary_names[slot] = names[(index + 1) % 3]
        host.node.log.slots[slot].serving = False
    for host in fleet.living():
        client = host.connect()
        client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
        asked.append((host, client))
    for _ in range(20):
        fleet.send_frames()
        fleet.deliver(1)
    leader = fleet.host_of(b"f", UNIQUE)
    for host in fleet.living():
        host.part.primary_names[slot_of(b"f\0" + UNIQUE)] = leader.name
    leader.node.log.slots[slot_of(b"f\0" + UNIQUE)].serving = True
    fleet.pass_time(1.0)
    answers = {handle for _, client in asked for handle in handles(client.take())}
    assert len(answers) == 1
    assert all(
        not channel.asked for host in fleet.living() for channel in host.part.forwarder.channels.values()
    )


def test_a_node_is_told_to_ask_again_when_its_submit_was_not_safe_before_the_slot_went_away() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    origin = next(other for other in fleet.living() if other is not host)
    client = origin.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", UNIQUE, b"p")
    for _ in range(2):
        fleet.send_frames()
        fleet.deliver(1)
    assert host.unwritten, "it is on no disk yet"
    fleet.etcd.delete(host.name)
    fleet.settle()
    fleet.pass_time(0.5)
    assert len(handles(client.take())) == 1


def test_a_node_without_a_map_proposes_nothing() -> None:
    node = Node(NodeSettings())
    part = node.join(Member("a", "1" * 32, 0, "h", 1, 2), FleetSettings())
    part.begin(Member("a", "1" * 32, 1, "h", 1, 2))
    assert not part.see(View(-1))
    assert part.see(View(3, None, None, {}))
    assert part.see(View(3, None, FleetMap((), {}), {}))
    assert part.propose() is None


def ends(client: Client) -> list[bytes]:
    return [body for packet_type, body in client.take() if packet_type == wire.WORK_COMPLETE]


def test_the_end_of_a_foreground_job_is_told_also_when_the_slot_moves_to_another_node() -> None:
    # It joined a background job, over a node that does not lead the slot.
    fleet = SmallFleet(3).start()
    host, handle = queued_job(fleet)
    origin = next(other for other in fleet.living() if other is not host)
    client, own = origin.connect(), host.connect()
    for waiting in (client, own):
        waiting.send(wire.SUBMIT_JOB, b"f", UNIQUE, b"p")
        fleet.settle()
        assert handles(waiting.take()) == [handle]
    successor = hand_over(fleet, host, sees_first=False)
    fleet.pass_time(0.5)
    worker = grabbing(successor)
    assert wire.JOB_ASSIGN in grabs(worker)
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    fleet.settle()
    assert ends(client) == [handle + b"\0r"]
    assert ends(own) == [handle + b"\0r"]


def test_a_foreground_job_may_end_before_its_handle_could_be_told() -> None:
    # What was parked is done at once when the slot is served; answers before it wait for the disks.
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    slot = slot_of(b"f\0" + UNIQUE)
    host.part.pause([slot])
    client = host.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", SECOND, b"p")
    client.send(wire.SUBMIT_JOB, b"f", UNIQUE, b"p")
    host.part._resume([slot])
    worker = grabbing(host)
    worker.send(wire.GRAB_JOB)
    ((_, body),) = [packet for packet in worker.take() if packet[0] == wire.JOB_ASSIGN]
    handle = body.split(b"\0", 1)[0]
    worker.send(wire.WORK_COMPLETE, handle, b"r")
    assert client.take() == [], "the background job is on no other disk yet"
    fleet.settle()
    fleet.pass_time(0.5)
    packets = client.take()
    assert handles(packets)[1] == handle
    assert [body for packet_type, body in packets if packet_type == wire.WORK_COMPLETE] == [handle + b"\0r"]


def test_a_foreground_job_that_nobody_waits_for_any_more_is_dropped_also_when_it_was_parked() -> None:
    fleet = SmallFleet(3).start()
    host = fleet.host_of(b"f", UNIQUE)
    slot = slot_of(b"f\0" + UNIQUE)
    host.part.pause([slot])
    client = host.connect()
    client.send(wire.SUBMIT_JOB, b"f", UNIQUE, b"p")
    host.part._resume([slot])
    fleet.settle()
    fleet.pass_time(0.5)
    (handle,) = handles(client.take())
    assert host.node.context.find_handle(handle) is not None
    host.turn(lambda: host.node.disconnected(client.connection))
    fleet.settle()
    assert host.node.context.find_handle(handle) is None
