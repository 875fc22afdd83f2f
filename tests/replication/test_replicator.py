"""The replicator's transcripts: offers, tails, states, acknowledgements, and what must not happen."""

from __future__ import annotations

from cluster.replication.frames import Frame
from cluster.replication.replicator import PIECE_BYTES_MAX
from tests.replication.parties import Party, connect, cut_link, settle

SLOT = 7


def test_what_was_written_here_in_an_epoch_that_lost_is_not_sent_as_the_later_one_s() -> None:
    # a leads, c lags; b takes over without a's last jobs; then a leads again and c catches up.
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b, c)
    a.lead(SLOT, 1, "abc")
    settle(a, b, c)
    kept = a.submit(SLOT)
    a.turn()
    settle(a, b, c)
    cut_link(a, b)
    cut_link(a, c)
    cut_link(b, c)
    lost = a.submit(SLOT)
    a.turn()
    a.write_all()
    b.lead(SLOT, 2, "ab")
    connect(a, b)
    settle(a, b)
    later = b.submit(SLOT)
    b.turn()
    settle(a, b)
    b.step_down(SLOT)
    a.lead(SLOT, 3, "abc")
    settle(a, b)
    connect(a, c)
    settle(a, b, c)
    assert a.living(SLOT) == {kept, later}
    assert c.living(SLOT) == {kept, later}, f"the lost one is {lost!r}"
    assert c.log.slots[SLOT].history == a.log.slots[SLOT].history[:2]


def test_entries_never_overtake_the_state_that_they_follow() -> None:
    # Two slots whose states are too large for one frame, and jobs that come meanwhile.
    a, c = Party("a"), Party("c")
    slots = (3, 4)
    for slot in slots:
        a.lead(slot, 1, "a")
    a.turn()
    a.write_all()
    for slot in slots:
        for number in range(3):
            a.submit(slot, b"%d.%d." % (slot, number) + bytes(PIECE_BYTES_MAX // 3))
    a.turn()
    a.write_all()
    a.replicator._recent.clear()  # as if there had been more than is kept
    for slot in slots:
        a.members(slot, "a", learners="c")
    connect(a, c)
    c.receive(a, a.frame_for(c))
    c.write_all()
    a.receive(c, c.frame_for(a))
    expected = {slot: a.living(slot) for slot in slots}
    for number in range(20):
        for slot in slots:
            expected[slot] |= {a.submit(slot)}
        a.turn()
        if number % 2:
            c.receive(a, a.frame_for(c))
    settle(a, c)
    for slot in slots:
        assert c.living(slot) == expected[slot] == a.living(slot)
        assert c.log.slots[slot].number == a.log.slots[slot].number
    assert len(a.replicator.caught_up()) == 2


def test_unsent_entries_of_an_epoch_that_is_over_are_not_sent_in_a_later_one() -> None:
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b, c)
    a.lead(SLOT, 1, "abc")
    settle(a, b, c)
    kept = a.submit(SLOT)
    a.turn()
    settle(a, b, c)
    cut_link(a, b)
    a.submit(SLOT)  # nobody gets it: the stream to c is slow
    a.turn()
    a.write_all()
    b.lead(SLOT, 2, "ab")
    cut_link(b, c)
    connect(a, b)
    settle(a, b)
    later = b.submit(SLOT)
    b.turn()
    settle(a, b)
    b.step_down(SLOT)
    a.lead(SLOT, 3, "abc")
    settle(a, b)
    settle(a, b, c)
    assert a.living(SLOT) == {kept, later}
    assert c.living(SLOT) == {kept, later}


def test_a_state_that_holds_the_open_group_already_is_followed_by_it() -> None:
    # The disk is busy: the group stays open while a state is made, and is sent later.
    a, c = Party("a"), Party("c")
    a.lead(SLOT, 1, "a")
    a.turn()
    a.write_all()
    for _ in range(3):
        a.submit(SLOT)
    a.turn()
    a.write_all()
    a.replicator._recent.clear()
    a.members(SLOT, "a", learners="c")
    connect(a, c)
    c.receive(a, a.frame_for(c))
    c.write_all()
    a.replicator.receive(a.replicator.peers["c"], c.frame_for(a))
    for _ in range(3):
        a.submit(SLOT)
    a.replicator.make_states()  # a turn without a cut
    expected = a.living(SLOT) | {a.submit(SLOT)}
    settle(a, c)
    assert c.living(SLOT) == expected
    assert c.restarted().living(SLOT) == expected
    assert c.log.slots[SLOT].number == 7


def test_a_false_acknowledgement_loses_a_job_so_a_stream_has_to_be_proved() -> None:
    # Not a promise but the reason for one (server/proof.py): whoever speaks in b's place is believed.
    a, b, c = Party("a"), Party("b"), Party("c")
    connect(a, b, c)
    a.lead(SLOT, 1, "abc")
    settle(a, b, c)
    group = a.promise(SLOT)
    acknowledged = a.submit(SLOT)
    a.turn()
    a.write_all()
    assert a.frame_for(b).entries  # to a stranger, who keeps it
    a.receive(b, Frame(acknowledged=group))
    assert a.log.committed < group  # c has not said so yet
    settle(a, c)
    assert a.log.committed == group  # the client has its JOB_CREATED, from two disks of three
    # a dies; b is in sync, as far as the map says, and takes over.
    cut_link(a, b)
    cut_link(a, c)
    b.lead(SLOT, 2, "bc")
    settle(b, c)
    assert acknowledged not in b.living(SLOT) | c.living(SLOT)
