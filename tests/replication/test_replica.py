"""A backup's copy of a slot against a replay that keeps every entry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.replication import Log, entries
from cluster.replication.entries import DamagedEntry
from cluster.replication.history import extend
from cluster.replication.replica import FOLD_AT, UNFOLDED_MIN, Replica, key_of
from cluster.replication.replicator import Replicator
from cluster.replication.restore import ReplicaRestorer

SLOT = 5
HANDLES = [b"H:a:5.1.%x" % number for number in range(6)]


def encode(kind: str, which: int, epoch: int, number: int) -> bytes:
    handle = HANDLES[which]
    if kind in ("submitted", "remembered"):
        flags = 1 | (entries.REMEMBER if kind == "remembered" else 0)
        unique = b"-" if which == 0 else b"u%d" % which
        return entries.encode_submitted(SLOT, epoch, number, flags, handle, b"f\0%b\0p" % unique)
    if kind == "job":
        record = entries.JobRecord(handle, b"f", b"u%d" % which, b"p", 1, retries=2, deliveries=3)
        return entries.encode(entries.JOB, SLOT, epoch, number, record.encode())
    if kind == "done":
        return entries.encode_done(SLOT, epoch, number, entries.COMPLETED, handle)
    if kind == "done, remembered":
        return entries.encode_done_remembered(
            SLOT, epoch, number, entries.COMPLETED, handle, 1_700_000_000 + number
        )
    codes = {"assigned": entries.ASSIGNED, "requeued": entries.REQUEUED, "progress": entries.PROGRESS}
    body = handle + b"\x001\x002" if kind == "progress" else handle
    return entries.encode(codes[kind], SLOT, epoch, number, body)


KINDS = ("submitted", "remembered", "job", "done", "done, remembered", "assigned", "requeued", "progress")
changes = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, len(HANDLES) - 1)), max_size=60)


def replay(log: list[bytes]) -> tuple[dict[bytes, tuple[bytes, int, int, bool]], list[tuple[bytes, ...]]]:
    """The dumb way: jobs with their hints, and what is remembered, oldest first."""
    jobs: dict[bytes, tuple[bytes, int, int, bool]] = {}
    remembered: dict[bytes, tuple[bytes, bytes]] = {}
    for raw in log:
        kind, body = raw[9], raw[entries.HEADER_BYTES :]
        if kind == entries.SUBMITTED:
            handle = body[1:].split(b"\0")[0]
            hints = jobs[handle][1:] if handle in jobs else (0, 0, False)
            jobs[handle] = (raw, *hints)
        elif kind == entries.JOB:
            jobs[entries.JobRecord.decode(body).handle] = (raw, 0, 0, False)
        elif kind == entries.DONE:
            handle = entries.done_handle(body)
            old = jobs.pop(handle, None)
            ended = entries.done_seconds(body)
            if old is not None and ended is not None:
                key = key_of(old[0])
                remembered.pop(key, None)
                remembered[key] = (handle, b"%d" % ended)
        elif kind in (entries.ASSIGNED, entries.REQUEUED) and body in jobs:
            first, deliveries, retries, _ = jobs[body]
            given = kind == entries.ASSIGNED
            jobs[body] = (first, deliveries + given, retries + (not given), given)
    return jobs, [(key, *value) for key, value in remembered.items()]


def held(replica: Replica) -> Any:
    """The same of a replica that is folded."""
    jobs = {}
    for handle, raw in replica.base.items():
        jobs[handle] = (raw, *replica.hints.get(handle, (0, 0, False)))
    return jobs, [(key, handle, b"%d" % ended) for key, (handle, ended) in replica.remembered.items()]


def log_of(found: list[tuple[str, int]], epoch: int = 1) -> list[bytes]:
    return [encode(kind, which, epoch, number) for number, (kind, which) in enumerate(found, 1)]


@settings(max_examples=200, deadline=None)
@given(found=changes, folds=st.sets(st.integers(0, 60)), unfolded=st.integers(0, 10))
def test_a_folded_replica_is_what_a_replay_makes(
    found: list[tuple[str, int]], folds: set[int], unfolded: int
) -> None:
    log = log_of(found)
    replica = Replica()
    for number, raw in enumerate(log, 1):
        replica.append(raw)
        if number in folds:
            replica.fold(unfolded)
        assert replica.number == number
    replica.fold(0)
    assert held(replica) == replay(log)


@settings(max_examples=200, deadline=None)
@given(found=changes, folded=st.integers(0, 60))
def test_a_state_and_the_entries_behind_it_are_the_whole(found: list[tuple[str, int]], folded: int) -> None:
    log = log_of(found)
    replica = Replica()
    for raw in log:
        replica.append(raw)
    replica.fold(folded)
    history: list[tuple[int, int]] = []
    if log:
        extend(history, 1, 1)
    raws = list(replica.state(SLOT, 4, history))
    first, _ = entries.decode(raws[0], 0)
    assert (first.kind, first.epoch, first.number) == (entries.STATE, 4, replica.base_number)
    assert entries.decode_history(first.body) == (history if replica.base_number else [])
    assert raws[-1][9] == entries.STATE_END
    again = Replica.from_state(replica.base_number, raws[1:-1])
    assert held(again) == held(replica)
    for raw in replica.tail:
        again.append(raw)
    again.fold(0)
    assert held(again) == replay(log)


@settings(max_examples=200, deadline=None)
@given(found=changes, folded=st.integers(0, 60), number=st.integers(0, 60))
def test_a_cut_replica_is_what_a_replay_of_the_cut_log_makes(
    found: list[tuple[str, int]], folded: int, number: int
) -> None:
    log = log_of(found)
    replica = Replica()
    for raw in log:
        replica.append(raw)
    replica.fold(folded)
    number = min(number, len(log))
    assert replica.cut(number) == (number >= replica.base_number)
    if number >= replica.base_number:
        assert replica.number == number
        assert replica.entries_from(number + 1) == []
        replica.fold(0)
        assert held(replica) == replay(log[:number])


def test_entries_from_a_number_on_are_there_unless_they_are_folded() -> None:
    log = log_of([("submitted", 0), ("submitted", 1), ("submitted", 2)])
    replica = Replica()
    for raw in log:
        replica.append(raw)
    replica.fold(1)
    assert replica.base_number == 2
    assert replica.entries_from(3) == log[2:]
    assert replica.entries_from(2) is None


def test_memory_follows_the_living_jobs() -> None:
    replica = Replica()
    for number in range(1, 10 * FOLD_AT, 2):
        replica.append(encode("submitted", 0, 1, number))
        replica.append(encode("done", 0, 1, number + 1))
        if replica.wants_fold():
            replica.fold()
    assert len(replica.tail) < FOLD_AT
    assert len(replica.base) <= 1
    assert replica.number == 10 * FOLD_AT


def test_a_job_cut_short_is_damage() -> None:
    replica = Replica()
    with pytest.raises(DamagedEntry):
        replica.apply(entries.encode(entries.SUBMITTED, SLOT, 1, 1, b"\1handle without an end"))


def test_what_is_remembered_is_forgotten_by_age_and_by_count() -> None:
    replica = Replica()
    for which in range(1, 5):
        replica.apply(encode("remembered", which, 1, which))
        replica.apply(encode("done, remembered", which, 1, 10 * which))
    replica.forget_remembered(1_700_000_015, 10)
    assert list(replica.remembered) == [b"f\0u2", b"f\0u3", b"f\0u4"]
    replica.forget_remembered(0, 1)
    assert list(replica.remembered) == [b"f\0u4"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_restart_can_repeat_every_cut_that_was_made(data: st.DataObject) -> None:
    # Entries come in frames of any size, folded at their ends; a restart folds one by one.
    log = Log()
    restorer = ReplicaRestorer(Replicator(log, "a" * 32))
    replica = Replica()
    number, epoch = 0, 1
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.sampled_from((1, 10, 64, 100, 255, 300)))):
            number += 1
            raw = encode("submitted" if number % 2 else "done", 1, epoch, number)
            replica.append(raw)
            restorer.apply(entries.decode_raw(raw, 0)[0])
        if replica.wants_fold():
            replica.fold()
        for _ in range(data.draw(st.integers(0, 3))):
            epoch += 1
            back = number - data.draw(st.integers(1, UNFOLDED_MIN))
            if back >= 0 and replica.cut(back):
                number = back
                raw = entries.encode(entries.CUT, SLOT, epoch, number, b"")
                restorer.apply(entries.decode_raw(raw, 0)[0])
    assert log.slots[SLOT].number == replica.number == number


def test_no_more_is_cut_than_a_restart_that_folds_at_other_moments_has_left() -> None:
    log = Log()
    restorer = ReplicaRestorer(Replicator(log, "a" * 32))
    replica = Replica()
    number = 0
    for size in (300, 148):  # in one frame each: folded once behind it
        for _ in range(size):
            number += 1
            raw = encode("submitted" if number % 2 else "done", 1, 1, number)
            replica.append(raw)
            restorer.apply(entries.decode_raw(raw, 0)[0])
        if replica.wants_fold():
            replica.fold()
    assert replica.cut(number - UNFOLDED_MIN)
    restorer.apply(entries.Entry(entries.CUT, SLOT, 2, number - UNFOLDED_MIN, b""))
    assert not replica.cut(number - UNFOLDED_MIN - 1), "the restart has folded it"
    with pytest.raises(DamagedEntry):
        restorer.apply(entries.Entry(entries.CUT, SLOT, 3, number - UNFOLDED_MIN - 1, b""))


def test_entries_before_a_slots_state_are_passed_over_where_the_journal_was_compacted() -> None:
    """A checkpoint writes slot after slot while the node serves; then the segments before it go."""
    log = Log()
    restorer = ReplicaRestorer(Replicator(log, "a" * 32))

    def apply(raw: bytes) -> None:
        restorer.apply(entries.decode_raw(raw, 0)[0])

    for number in (699, 700):
        apply(encode("submitted", 1, 4, number))
    assert restorer.headless == [SLOT], "until its state comes, the slot is not whole"
    assert log.slots[SLOT].promised == 4
    with pytest.raises(DamagedEntry):
        apply(encode("submitted", 1, 4, 702))
    apply(entries.encode(entries.CUT, SLOT, 5, 699, b""))
    apply(encode("submitted", 1, 5, 700))
    assert log.slots[SLOT].promised == 5
    apply(entries.encode_state(SLOT, 4, 701, [(4, 1)]))
    apply(encode("submitted", 3, 4, 698))
    apply(entries.encode(entries.STATE_END, SLOT, 4, 701, b""))
    apply(encode("submitted", 2, 4, 702))
    assert restorer.headless == []
    assert log.slots[SLOT].number == 702
    with pytest.raises(DamagedEntry):
        apply(encode("submitted", 2, 4, 704))
