"""Jobs with a time: SUBMIT_JOB_EPOCH and SUBMIT_JOB_SCHED."""

from __future__ import annotations

import pytest

from cluster.wire import packets as wire
from tests.node.bench import WALL_SECONDS, Bench, Peer

EVERY_MINUTE = (b"*", b"*", b"*", b"*", b"*")
NEXT_MINUTE = 40  # seconds from the bench's beginning


def all_jobs(worker: Peer) -> list[tuple[bytes, bytes]]:
    """(unique, payload) of all that can be grabbed; all are completed."""
    jobs = []
    while (answer := worker.ask(wire.GRAB_JOB_UNIQ)[0])[0] != wire.NO_JOB:
        _, handle, _, unique, payload = answer
        jobs.append((unique, payload))
        worker.ask(wire.WORK_COMPLETE, handle, b"")
    return jobs


# ---- epoch


def test_an_epoch_job_runs_at_its_second_and_not_before() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    worker.ask(wire.PRE_SLEEP)
    client.ask(wire.SUBMIT_JOB_EPOCH, b"f", b"late", b"%d" % (WALL_SECONDS + 20), b"2")
    client.ask(wire.SUBMIT_JOB_EPOCH, b"f", b"soon", b"%d" % (WALL_SECONDS + 10), b"1")
    assert client.command("status") == b"f\t2\t0\t1\n.\n"
    assert client.command("prioritystatus") == b"f\t0\t0\t0\t1\n.\n"
    assert bench.node.next_due() == (WALL_SECONDS + 10, None)
    bench.pass_time(9.99)
    bench.settle()
    assert worker.heard() == []
    bench.pass_time(0.01)
    bench.settle()
    assert worker.heard() == [(wire.NOOP,)]
    assert all_jobs(worker) == [(b"soon", b"1")]
    bench.pass_time(10)
    assert all_jobs(worker) == [(b"late", b"2")]


@pytest.mark.parametrize("when", [0, 1, int(WALL_SECONDS)])
def test_a_time_that_is_past_is_now(when: int) -> None:
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", b"%d" % when, b"p")
    assert all_jobs(bench.worker(b"f")) == [(b"u", b"p")]


@pytest.mark.parametrize("asleep_seconds", [5, 50])
def test_an_epoch_job_survives_a_restart_with_its_time(asleep_seconds: int) -> None:
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", b"%d" % (WALL_SECONDS + 20), b"p")
    bench.wall += asleep_seconds
    bench = bench.killed()
    worker = bench.worker(b"f")
    if asleep_seconds < 20:
        assert all_jobs(worker) == []
        bench.pass_time(20 - asleep_seconds)
    assert all_jobs(worker) == [(b"u", b"p")]


# ---- schedules


def test_a_schedule_makes_a_job_each_time_that_it_fires() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    worker.ask(wire.PRE_SLEEP)
    ((kind, _),) = client.ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")
    assert kind == wire.JOB_CREATED
    assert all_jobs(worker) == []
    worker.ask(wire.PRE_SLEEP)
    for _ in range(3):
        due, _ = bench.node.next_due()
        assert due is not None
        assert due % 60 == 0
        bench.pass_time(due - bench.wall)
        bench.settle()
        assert worker.heard() == [(wire.NOOP,)]
        assert all_jobs(worker) == [(b"u", b"p")]
        worker.ask(wire.PRE_SLEEP)


def test_firings_coalesce_while_one_is_not_done() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    client.ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")
    for _ in range(5):
        bench.pass_time(60)
        bench.settle()
    assert all_jobs(worker) == [(b"u", b"p")]
    # Also with a job that a client submits
    bench.pass_time(60)
    bench.settle()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"the client's")
    assert worker.ask(wire.GRAB_JOB) == [(wire.JOB_ASSIGN, handle, b"f", b"p")]


@pytest.mark.parametrize(("unique", "jobs"), [(b"", 3), (b"-", 1)])
def test_firings_without_a_unique_are_jobs_of_their_own_and_dash_is_the_payload(
    unique: bytes, jobs: int
) -> None:
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", unique, *EVERY_MINUTE, b"p")
    for _ in range(3):
        bench.pass_time(60)
        bench.settle()
    assert all_jobs(bench.worker(b"f")) == [(unique, b"p")] * jobs


def test_the_same_schedule_twice_is_one() -> None:
    bench = Bench()
    client = bench.peer()
    handles = {client.ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")[0][1] for _ in range(2)}
    assert len(handles) == 1
    # And it is no job: one with its unique is another
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    assert handle not in handles


def test_a_schedule_survives_restarts_and_catches_up_once() -> None:
    bench = Bench()
    ((_, handle),) = bench.peer().ask(
        wire.SUBMIT_JOB_SCHED, b"f", b"u", b" */5 ", b"", b"*", b"1-12", b"*\t", b"p"
    )
    for asleep_seconds in (3600.0, 0.0, 600.0):
        bench.wall += asleep_seconds
        bench = bench.killed()
        assert bench.job(handle) is not None
        worker = bench.worker(b"f")
        bench.pass_time(0)
        bench.settle()
        assert all_jobs(worker) == ([(b"u", b"p")] if asleep_seconds else [])
        due, _ = bench.node.next_due()
        assert due is not None
        assert due % 300 == 0
        assert 0 < due - bench.wall <= 300


def test_a_firing_and_the_next_time_are_one_group() -> None:
    # Killed at any moment, a schedule has neither lost a firing nor fired twice
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")
    bench.pass_time(NEXT_MINUTE)
    output = bench.end_turn()
    assert output.group is not None
    assert len(output.group.records) == 2
    for again in (bench.killed(), bench.killed(2)):
        again.pass_time(0)
        again.settle()
        assert all_jobs(again.worker(b"f")) == [(b"u", b"p")]


@pytest.mark.parametrize(
    "fields",
    [
        (b"60", b"*", b"*", b"*", b"*"),
        (b"*", b"*", b"31", b"2,4", b"*"),
        (b"*", b"*", b"*", b"*", b"*" * 300),
        (b"1" * 200, b"*", b"*", b"*", b"*"),
        (b"\xff", b"*", b"*", b"*", b"*"),
    ],
)
def test_a_schedule_that_never_fires_is_refused(fields: tuple[bytes, ...]) -> None:
    bench = Bench()
    answer = bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *fields, b"p")
    assert answer[0][:2] == (wire.ERROR, wire.INVALID_ARGUMENT)
    assert bench.node.ledger.count() == 0


def test_while_nothing_can_be_promised_a_schedule_waits() -> None:
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")
    bench.node.refuse_background("the disk is full")
    for _ in range(5):
        bench.pass_time(60)
        bench.settle()
    worker = bench.worker(b"f")
    assert all_jobs(worker) == []
    bench.node.refuse_background(None)
    bench.pass_time(1)
    bench.settle()
    assert all_jobs(worker) == [(b"u", b"p")]


def test_in_memory_schedules_fire_too() -> None:
    bench = Bench(durable=False)
    bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", b"u", *EVERY_MINUTE, b"p")
    bench.pass_time(60)
    bench.settle()
    assert all_jobs(bench.worker(b"f")) == [(b"u", b"p")]
