"""Slots and groups."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.replication import SLOT_COUNT, Log, entries, slot_of


# A slot says where a job is on every disk and node: these may never change.
@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"", 0), (b"f\0u", 819), (b"resize\0photo-42", 525), (b"f\0-\0" + bytes(16), 414)],
)
def test_the_slot_of_a_key_never_changes(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@settings(max_examples=100, deadline=None)
@given(key=st.binary(max_size=100))
def test_every_key_has_a_slot(key: bytes) -> None:
    assert 0 <= slot_of(key) < SLOT_COUNT


def test_keys_are_spread_evenly() -> None:
    counts = [0] * SLOT_COUNT
    for number in range(SLOT_COUNT * 20):
        counts[slot_of(b"function\0unique-%d" % number)] += 1
    assert max(counts) < 60
    assert min(counts) > 0


def test_entries_are_numbered_for_each_slot_in_the_slot_s_epoch() -> None:
    log = Log()
    log.lead_all(5, b"H:n")
    log.append(1, entries.ASSIGNED, b"a")
    log.append(2, entries.ASSIGNED, b"b")
    log.append_done(1, entries.FAILED, b"a")
    log.append_node(entries.START, 5, b"version")
    group = log.cut()
    assert group is not None
    found = [entries.decode(record, 0)[0] for record in group.records]
    assert [(entry.slot, entry.epoch, entry.number) for entry in found] == [
        (1, 5, 1),
        (2, 5, 1),
        (1, 5, 2),
        (entries.NODE_SLOT, 0, 5),
    ]


@pytest.mark.parametrize(("before", "incarnation", "epoch"), [(0, 7, 7), (7, 7, 8), (9, 7, 10)])
def test_each_start_is_an_epoch_above_all_before(before: int, incarnation: int, epoch: int) -> None:
    log = Log()
    log.slots[3].epoch = before
    log.lead_all(incarnation, b"H:n")
    assert log.slots[3].epoch == epoch
    assert log.slots[3].handle_prefix == b"H:n:3.%x." % epoch
    assert log.slots[3].foreground_prefix == b"H:n:3.t%x." % incarnation


def test_a_group_that_nobody_needs_is_not_cut() -> None:
    log = Log()
    log.lead_all(1, b"H:n")
    assert log.cut() is None
    number = log.group.number
    # Somebody who waits is need enough
    log.group.waiting.append("a connection")
    group = log.cut()
    assert group is not None
    assert (group.number, group.records) == (number, [])
    assert log.group.number == number + 1
    assert log.cut() is None


def test_a_group_holds_what_came_since_the_one_before() -> None:
    log = Log()
    log.lead_all(1, b"H:n")
    numbers = []
    for count in (1, 3):
        for _ in range(count):
            log.append(0, entries.ASSIGNED, b"h")
        group = log.cut()
        assert group is not None
        assert len(group.records) == count
        numbers.append(group.number)
    assert numbers == [1, 2]
