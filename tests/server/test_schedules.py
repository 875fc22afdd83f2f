"""SUBMIT_JOB_EPOCH and SUBMIT_JOB_SCHED: jobs that run at their time, also after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer
from tests.support.faulty import Clock, clock_shifted

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]

EVERY_MINUTE = (b"*", b"*", b"*", b"*", b"*")


def submit_epoch(client: Peer, function: bytes, seconds: float, payload: bytes = b"") -> bytes:
    handle = client.ask(wire.SUBMIT_JOB_EPOCH, function, b"", b"%d" % seconds, payload)
    assert handle.type == wire.JOB_CREATED, handle
    return handle.arguments[0]


def submit_sched(
    client: Peer, function: bytes, *fields: bytes, unique: bytes = b"", payload: bytes = b""
) -> bytes:
    handle = client.ask(wire.SUBMIT_JOB_SCHED, function, unique, *fields, payload)
    assert handle.type == wire.JOB_CREATED, handle
    return handle.arguments[0]


def handles(node: Node) -> list[str]:
    return [row.split("\t")[0] for row in node.table("show jobs")]


# ---- at a time


def test_an_epoch_job_runs_on_its_second(connect: Connect, function: bytes) -> None:
    # Given a sleeping worker and a job for a second that is still to come
    client, worker = connect(), connect()
    worker.can_do(function)
    due = int(time.time()) + 2
    handle = submit_epoch(client, function, due, b"payload")
    assert worker.grab() is None
    worker.sleep()
    # When that second begins, then the worker is woken, not before and not a second later
    worker.expect(wire.NOOP)
    assert due <= time.time() < due + 1
    job = worker.grab_one()
    assert (job.handle, job.payload) == (handle, b"payload")


def test_an_epoch_in_the_past_is_now(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    for when in (0, 1, time.time() - 3600):
        handle = submit_epoch(client, function, when)
        assert worker.grab_one().handle == handle


def test_a_job_that_waits_for_its_time_is_known_counted_and_can_be_cancelled(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client = connect()
    handle = submit_epoch(client, function, time.time() + 3600)
    client.send(wire.GET_STATUS, handle)
    client.expect(wire.STATUS_RES, handle, b"1", b"0", b"0", b"0")
    assert shared_node.status(function) == (1, 0, 0)
    assert handle.decode() in handles(shared_node)
    assert client.line(f"cancel job {handle.decode()}") == "OK"
    assert shared_node.status(function) == (0, 0, 0)


@pytest.mark.parametrize("when", [b"9999999999999", b"99999999999999999999"])
def test_an_epoch_beyond_all_time_is_an_error(connect: Connect, function: bytes, when: bytes) -> None:
    client = connect()
    client.send(wire.SUBMIT_JOB_EPOCH, function, b"", when, b"")
    client.expect_error(wire.INVALID_ARGUMENT)
    client.settle()


def test_an_epoch_job_keeps_its_time_over_a_restart(start_node: StartNode, connect: Connect) -> None:
    # Given jobs due in half an hour and in an hour and a half, and a kill -9
    node = start_node()
    client = connect(node)
    soon = submit_epoch(client, b"f", time.time() + 1800, b"soon")
    submit_epoch(client, b"f", time.time() + 5400, b"later")
    node.kill()
    # When the node starts an hour later, then the first is overdue and runs at once; the other waits
    node.environment = clock_shifted(3600)
    node.restart()
    worker = connect(node)
    worker.can_do(b"f")
    assert worker.wait_for_job()[:1] == (soon,)
    assert worker.grab() is None
    assert node.status("f") == (2, 1, 1)


# ---- again and again


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock at the beginning of a minute: there is time before the next one."""
    clock = Clock(tmp_path / "clock-shift")
    clock.set_second_of_minute(0)
    return clock


def let_the_minute_end(clock: Clock, client: Peer) -> None:
    """The node's clock jumps near the end of the minute. A job for the last second makes the node look at it
    now and not when its timer next would."""
    last_second = time.time() // 60 * 60 + 59
    clock.set_second_of_minute(57.5)
    submit_epoch(client, b"look at the clock", last_second)


def test_a_schedule_makes_a_job_at_each_firing(start_node: StartNode, connect: Connect, clock: Clock) -> None:
    # Given a schedule of every minute
    node = start_node(environment=clock.environment)
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    schedule = submit_sched(client, b"f", *EVERY_MINUTE, unique=b"u", payload=b"payload")
    assert worker.grab() is None
    # When a minute begins, then a worker gets a job with a handle of its own
    let_the_minute_end(clock, client)
    job = worker.wait_for_job()
    assert job.handle != schedule
    assert (job.unique, job.payload) == (b"u", b"payload")
    worker.complete(job.handle)
    worker.settle()
    # And the schedule is still there, once
    assert handles(node).count(schedule.decode()) == 1
    assert node.status("f") == (1, 0, 1)


def test_a_schedule_fires_after_a_restart_until_it_is_cancelled(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a schedule that outlived a kill -9
    node = start_node(environment=clock_shifted(30 - time.time() % 60))
    schedule = submit_sched(connect(node), b"f", *EVERY_MINUTE)
    node.kill()
    node.environment = clock_shifted(57 - time.time() % 60)
    node.restart()
    assert schedule.decode() in handles(node)  # which may fire already
    # Then it fires
    worker = connect(node)
    worker.can_do(b"f")
    job = worker.wait_for_job(10)
    worker.complete(job.handle)
    # When it is cancelled by its handle, then it is gone
    assert worker.line(f"cancel job {schedule.decode()}") == "OK"
    assert handles(node) == []


def test_a_firing_joins_the_last_one_while_that_is_still_there(
    start_node: StartNode, connect: Connect, clock: Clock
) -> None:
    # Given a schedule with a unique, whose job is there already by other means
    node = start_node(environment=clock.environment)
    client, worker = connect(node), connect(node)
    waiting = client.submit(b"f", b"other", b"u", background=True)
    submit_sched(client, b"f", *EVERY_MINUTE, unique=b"u")
    # And another schedule that shows when the minute has begun
    submit_sched(client, b"mark", *EVERY_MINUTE)
    worker.can_do(b"mark")
    # When both have fired, then there is no second job
    let_the_minute_end(clock, client)
    worker.wait_for_job()
    worker.can_do(b"f")
    assert worker.grab_one().handle == waiting
    assert worker.grab() is None


def test_a_schedule_follows_a_clock_that_is_set_back_by_hours(
    start_node: StartNode, connect: Connect, clock: Clock
) -> None:
    # Given a node whose clock is five hours ahead, and a schedule of every minute
    clock.set_second_of_minute(0, ahead_seconds=5 * 3600)
    node = start_node(environment=clock.environment)
    client, worker = connect(node), connect(node)
    submit_sched(client, b"f", *EVERY_MINUTE)
    worker.can_do(b"f")
    # When the clock is put right, then the schedule fires when the next minute begins
    clock.set_second_of_minute(57.5)
    client.settle()
    assert worker.grab() is None
    worker.wait_for_job()
    # And the log tells what has happened
    told = node.wait_for_event(
        "the clock was set back; schedules follow it as in cron, jobs with a time of their own wait"
    )
    assert 4.9 * 3600 < told["seconds"] < 5.1 * 3600


@pytest.mark.parametrize(
    "fields",
    [
        (b"60", b"*", b"*", b"*", b"*"),
        (b"*", b"24", b"*", b"*", b"*"),
        (b"*", b"*", b"0", b"*", b"*"),
        (b"*", b"*", b"*", b"13", b"*"),
        (b"*", b"*", b"*", b"*", b"7"),
        (b"x", b"*", b"*", b"*", b"*"),
        (b"5-1", b"*", b"*", b"*", b"*"),
        (b"*/0", b"*", b"*", b"*", b"*"),
        (b"0", b"0", b"31", b"2", b"*"),
    ],
    ids=lambda fields: b" ".join(fields).decode(),
)
def test_fields_that_make_no_sense_are_an_error(
    connect: Connect, function: bytes, fields: tuple[bytes, ...]
) -> None:
    client = connect()
    client.send(wire.SUBMIT_JOB_SCHED, function, b"", *fields, b"")
    client.expect_error(wire.INVALID_ARGUMENT)
    client.settle()


@pytest.mark.parametrize(
    "fields",
    [
        EVERY_MINUTE,
        (b"", b"", b"", b"", b""),
        (b"0,30", b"9-17", b"1-7", b"*/3", b"0-4"),
        (b"*/15", b"10-20/2", b"*", b"1,6,12", b"6"),
        (b"0", b"0", b"29", b"2", b"*"),
    ],
    ids=lambda fields: b" ".join(fields).decode(),
)
def test_fields_may_be_lists_ranges_and_steps(
    shared_node: Node, connect: Connect, function: bytes, fields: tuple[bytes, ...]
) -> None:
    client = connect()
    handle = submit_sched(client, function, *fields)
    assert client.line(f"cancel job {handle.decode()}") == "OK"
