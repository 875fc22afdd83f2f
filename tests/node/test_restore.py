"""Kill the node at any moment of any history and start it from what was on the disk: nothing that was
acknowledged is lost, nothing that was never submitted appears, order is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.jobs import RECLAIM, SCHEDULED
from cluster.replication import entries
from cluster.wire import packets as wire
from tests.node.bench import Bench
from tests.node.histories import FUNCTIONS, History, histories

RESTART_SECONDS = 5  # longer than the time for which a job waits for its worker


def assert_nothing_is_lost(history: History, again: Bench) -> None:
    """The account of a history against a node that was started from its disk."""
    promised = history.promised
    # Every promised job is there, as it was submitted
    for handle in promised:
        job = again.job(handle)
        assert job is not None, "an acknowledged job is lost"
        asked = history.must_have_been_asked_for(job.function.name, job.unique, job.payload)
        assert job.priority in {submit.priority for submit in asked}
        assert job.background
        if job.options is not None and job.options.cron is not None:
            assert "schedule" in {submit.kind for submit in asked}
            assert job.state == SCHEDULED
    # Nothing that is surely over, and nothing that nobody submitted
    for job in again.node.ledger.all_jobs():
        assert job.handle not in history.surely_over, "a job that was over is back"
        history.must_have_been_asked_for(job.function.name, job.unique, job.payload)

    # Every one is handed out, once, when its time has come; in order
    schedules = {
        job.handle for job in again.node.ledger.all_jobs() if job.options is not None and job.options.cron
    }
    worker = again.worker(*FUNCTIONS)
    fresh = {
        job.handle
        for job in again.restored
        if not job.deliveries and (job.options is None or not job.options.due_seconds)
    }
    seen: dict[bytes, tuple[bytes, bytes]] = {}
    order: dict[tuple[int, bytes], list[int]] = {}
    for seconds in (0, RESTART_SECONDS, 100):
        again.pass_time(seconds)
        again.settle()
        priorities = []
        while (answer := worker.ask(wire.GRAB_JOB_UNIQ)[-1])[0] == wire.JOB_ASSIGN_UNIQ:
            _, handle, function, unique, payload = answer
            assert handle not in seen, "handed out twice"
            seen[handle] = function, unique
            asked = history.must_have_been_asked_for(function, unique, payload)
            job = again.job(handle)
            assert job is not None
            priorities.append(job.priority)
            if handle in fresh and [submit.kind for submit in asked] in (["plain"], ["foreground"]):
                order.setdefault((job.priority, function), []).append(asked[0].order)
            worker.ask(wire.WORK_COMPLETE, handle, b"")
        assert priorities == sorted(priorities)
    assert not {handle for handle in promised if handle not in seen} - schedules, "never handed out"
    assert all(numbers == sorted(numbers) for numbers in order.values())
    # A schedule has fired meanwhile, or joined a job with its key
    for handle in schedules:
        schedule = again.job(handle)
        assert schedule is not None
        assert (schedule.function.name, schedule.unique) in seen.values()
        again.peer().command("cancel job " + handle.decode())
    # All is over now, also for the next start
    again.settle()
    assert again.node.ledger.count() == 0
    assert again.killed().restored == []


@settings(max_examples=150, deadline=None)
@given(history=histories(100), data=st.data())
def test_a_killed_node_has_lost_nothing_that_it_had_acknowledged(
    history: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    # Given any history, in which checkpoints may run and earlier records be dropped
    bench = Bench()
    account = History(bench)
    account.run(history)
    # When the node is killed, with some of the records on disk that it was not yet told of
    written = data.draw(st.integers(0, len(bench.unwritten)), label="records written, not acknowledged")
    again = bench.killed(written)
    # Then nothing is lost
    assert_nothing_is_lost(account, again)


@settings(max_examples=40, deadline=None)
@given(lives=st.lists(histories(40), min_size=2, max_size=4))
def test_nothing_is_lost_over_several_kills(lives: list[list[tuple[Any, ...]]]) -> None:
    bench = Bench()
    account = History(bench)
    for history in lives:
        account.run(history)
        again = bench.killed()
        following = History(again)
        # The account goes on: what was promised before is promised still
        following.count = account.count
        following.asked = account.asked
        following.acknowledged = dict.fromkeys(account.promised)
        following.handles = account.handles
        following.over = dict.fromkeys(account.surely_over, 0)
        following.dropped = [handle for held in account.held.values() for handle in held]
        bench, account = again, following
    assert_nothing_is_lost(account, bench.killed())


@settings(max_examples=60, deadline=None)
@given(history=histories(60))
def test_what_a_restart_reads_is_what_a_restart_would_write(history: list[tuple[Any, ...]]) -> None:
    """A checkpoint right after a start holds the same jobs as the records that it replaces."""
    bench = Bench()
    History(bench).run(history)
    bench.settle()
    first = bench.killed()
    first.start_checkpoint()
    first.settle()
    assert len(first.segments) == 1
    second = first.killed()

    def state(bench: Bench) -> list[tuple[Any, ...]]:
        return [
            (job.handle, job.key, job.payload, job.priority, job.retries, job.deliveries, job.options)
            for job in bench.restored
        ]

    assert state(second) == state(first)


def test_a_checkpoint_of_many_jobs_takes_many_turns_and_the_disk_follows_the_living() -> None:
    # Given a long history and a few hundred jobs that live
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    for number in range(1500):
        client.say(wire.SUBMIT_JOB_BG, b"f", b"%d" % number, b"p%d" % number)
    bench.settle()
    handles = [handle for _, handle in client.heard()]
    for handle in handles[:800]:
        worker.say(wire.GRAB_JOB)
        worker.say(wire.WORK_COMPLETE, handle, b"")
        bench.end_turn()
    bench.settle()
    # When a checkpoint runs while the node serves
    bench.start_checkpoint()
    turns = 0
    while bench.checkpointing:
        turns += 1
        client.say(wire.SUBMIT_JOB_BG, b"f", b"new-%d" % turns, b"")
        if turns == 2:  # and is killed in the middle, where it changes nothing
            assert {job.handle for job in bench.killed().restored} >= set(handles[800:])
        bench.end_turn()
        bench.commit()
    assert turns > 3
    bench.settle()
    handles += [handle for _, handle in client.heard()]
    # Then nothing of the history is left
    kinds = [entries.decode(record, 0)[0].kind for record in bench.records]
    assert kinds.count(entries.JOB) + kinds.count(entries.SUBMITTED) <= len(handles) - 800 + turns
    assert kinds.count(entries.DONE) == 0
    assert [job.handle for job in bench.killed().restored] == handles[800:]


def test_limits_survive_restarts_and_checkpoints_and_their_removal_too() -> None:
    bench = Bench()
    admin = bench.peer()
    for line in (
        "maxqueue f 1 2 3",
        "maxqueue g 5",
        "create function h",
        "create function i",
        "drop function i",
    ):
        assert admin.command(line) == b"OK\r\n"
    for _ in range(2):
        bench = bench.killed()
        assert bench.peer().command("show maxqueue") == b"f\t1\t2\t3\ng\t5\t5\t5\n.\n"
        assert bench.peer().command("status") == b"f\t0\t0\t0\ng\t0\t0\t0\nh\t0\t0\t0\n.\n"
        bench.start_checkpoint()
        bench.settle()


def test_handles_never_come_back() -> None:
    bench = Bench()
    handles = []
    for _ in range(4):
        client = bench.peer()
        for verb in (wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB) * 3:
            handles += [packet[1] for packet in client.ask(verb, b"f", b"", b"")]
        bench = bench.killed()
    assert len(set(handles)) == len(handles) == 24


def test_a_job_that_was_running_waits_for_its_worker_a_while_and_then_runs_again() -> None:
    bench = Bench()
    ((_, handle),) = bench.peer().ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.worker(b"f").ask(wire.GRAB_JOB)
    bench = bench.killed()
    assert [(job.handle, job.state) for job in bench.restored] == [(handle, RECLAIM)]
    worker = bench.worker(b"f")
    assert worker.ask(wire.PRE_SLEEP) == []
    bench.pass_time(bench.node.context.settings.reclaim_seconds)
    bench.settle()
    assert worker.heard() == [(wire.NOOP,)]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (entries.SUBMITTED, b""),
        (entries.SUBMITTED, b"\1handle\0f\0u"),
        (entries.SUBMITTED, b"\3handle\0f\0u\0payload"),
        (entries.JOB, b"short"),
        (entries.JOB, entries.JobRecord(b"h", b"f", b"u", b"", 9).encode()),
        (entries.JOB, entries.JobRecord(b"h", b"f", b"u", b"", 1, cron=(b"61",) * 5).encode()),
        (entries.JOB, entries.JobRecord(b"h", b"f", b"u", b"", 1, cron=(b"1",)).encode()),
    ],
)
def test_an_entry_that_makes_no_sense_is_said_to(kind: int, body: bytes) -> None:
    restorer = Bench().node.restorer()
    with pytest.raises(entries.DamagedEntry):
        restorer.apply(entries.Entry(kind, 1, 1, 1, body))
    with pytest.raises(entries.DamagedEntry):
        restorer.apply(entries.Entry(entries.SUBMITTED, 1024, 1, 1, b"\1h\0f\0u\0p"))
    with pytest.raises(entries.DamagedEntry):
        restorer.apply(entries.Entry(entries.LIMITS, entries.NODE_SLOT, 1, 1, b""))
