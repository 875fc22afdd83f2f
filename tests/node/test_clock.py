"""A clock that is set, forward or back, while the node runs or while it is down."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs import Cron
from cluster.jobs.cron import CORRECTION_SECONDS
from cluster.node.clock import SCHEDULES_PER_TURN, STEP_SECONDS_MIN
from cluster.wire import packets as wire
from tests.node.bench import Bench, Peer

HOUR = 3600.0
EVERY_MINUTE = b"* * * * *"
HOURLY = b"0 * * * *"
DAILY = b"30 2 * * *"
SCHEDULES = (
    EVERY_MINUTE,
    b"*/20 * * * *",
    HOURLY,
    b"15 */2 * * *",
    DAILY,
    b"0 0,1,2,3,12 * * *",
    b"0 4 * * 1",
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def scheduled(bench: Bench, fields: bytes) -> bytes:
    ((kind, handle),) = bench.peer().ask(wire.SUBMIT_JOB_SCHED, b"f", b"", *fields.split(), b"")
    assert kind == wire.JOB_CREATED
    return bytes(handle)


def due(bench: Bench, handle: bytes) -> int:
    job = bench.job(handle)
    assert job is not None
    assert job.options is not None
    return job.options.due_seconds


def set_clock(bench: Bench, seconds: float) -> None:
    """The time of day jumps; then the node has a few turns."""
    bench.wall = seconds
    for _ in range(3):
        bench.pass_time(0)
        bench.settle()


def firings(bench: Bench, worker: Peer) -> int:
    bench.pass_time(0)
    bench.settle()
    count = 0
    while (answer := worker.ask(wire.GRAB_JOB)[0])[0] != wire.NO_JOB:
        worker.ask(wire.WORK_COMPLETE, answer[1], b"")
        count += 1
    return count


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
@pytest.mark.parametrize(
    ("fields", "new_time", "next_time"),
    [
        # What has a wildcard goes by the new time
        (EVERY_MINUTE, "2024-05-05 07:10", "2024-05-05 07:11"),
        (EVERY_MINUTE, "2024-05-05 11:50", "2024-05-05 11:51"),
        (HOURLY, "2024-05-05 07:10", "2024-05-05 08:00"),
        (HOURLY, "2024-05-05 11:45", "2024-05-05 12:00"),
        # What has none does not run twice for a small step
        (b"30 11 * * *", "2024-05-05 11:00", "2024-05-06 11:30"),
        (b"30 11 * * *", "2024-05-05 09:31", "2024-05-06 11:30"),
        # and a large one was a correction
        (b"30 11 * * *", "2024-05-05 08:00", "2024-05-05 11:30"),
        (b"30 11 * * *", "2024-05-01 12:00", "2024-05-02 11:30"),
        (b"30 11 * * *", "1970-01-01 00:00", "1970-01-01 11:30"),
        (b"0 4 1 1 *", "2020-05-01 12:00", "2021-01-01 04:00"),
        # Its time is no other by the new clock
        (b"0 4 1 1 *", "2024-03-01 12:00", "2025-01-01 04:00"),
        # Seconds do not count
        (EVERY_MINUTE, "2024-05-05 12:29:20", "2024-05-05 12:31"),
    ],
)
def test_a_clock_that_is_set_back(fields: bytes, new_time: str, next_time: str, down: bool) -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    handle = scheduled(bench, fields)
    if down:
        bench.wall = at(new_time)
        bench = bench.killed()
    else:
        set_clock(bench, at(new_time))
    assert shown(due(bench, handle)) == next_time


def test_a_schedule_of_every_minute_fires_in_the_first_minute_after_its_clock_was_set_back_by_hours() -> None:
    bench = Bench()
    scheduled(bench, EVERY_MINUTE)
    worker = bench.worker(b"f")
    set_clock(bench, bench.wall - 5 * HOUR)
    for _ in range(3):
        assert firings(bench, worker) == 0
        bench.pass_time(60)
        assert firings(bench, worker) == 1


def test_many_small_steps_back_are_one_large_one() -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    handle = scheduled(bench, EVERY_MINUTE)
    for _ in range(20):
        set_clock(bench, bench.wall - STEP_SECONDS_MIN / 2)
    assert due(bench, handle) - bench.wall <= 2 * STEP_SECONDS_MIN


def test_the_new_time_is_on_the_disk() -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    handle = scheduled(bench, DAILY)
    set_clock(bench, at("2024-05-05 01:00"))
    assert shown(due(bench.killed(), handle)) == "2024-05-05 02:30"


def test_a_clock_that_is_set_forward_makes_each_schedule_due_once() -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    scheduled(bench, EVERY_MINUTE)
    scheduled(bench, DAILY)
    worker = bench.worker(b"f")
    set_clock(bench, at("2024-05-09 12:30"))
    assert firings(bench, worker) == 2
    # And back: neither waits for the four days to come again
    set_clock(bench, at("2024-05-05 12:31"))
    bench.pass_time(60)
    assert firings(bench, worker) == 1
    bench.pass_time(14 * HOUR)
    assert firings(bench, worker) == 2


def test_a_crowd_of_schedules_follows_the_clock_some_at_a_time() -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    handles = [scheduled(bench, EVERY_MINUTE) for _ in range(2 * SCHEDULES_PER_TURN + 1)]
    bench.wall = at("2024-05-05 07:10")
    looks = 0
    bench.node.begin_turn(bench.wall, bench.monotonic)
    while bench.node.next_due()[0] == bench.wall:
        bench.pass_time(0)
        bench.settle()
        looks += 1
    assert looks == 3
    assert {shown(due(bench, handle)) for handle in handles} == {"2024-05-05 07:11"}


def test_a_cancelled_schedule_does_not_come_back_with_the_clock() -> None:
    bench = Bench()
    handle = scheduled(bench, EVERY_MINUTE)
    bench.wall -= HOUR
    bench.node.begin_turn(bench.wall, bench.monotonic)
    bench.peer().command(f"cancel job {handle.decode()}")
    set_clock(bench, bench.wall)
    assert bench.job(handle) is None
    assert bench.node.next_due()[0] is None


def test_an_epoch_job_waits_for_its_time_whatever_the_clock_was() -> None:
    bench = Bench()
    bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (bench.wall + 60), b"")
    worker = bench.worker(b"f")
    set_clock(bench, bench.wall - HOUR)
    bench.pass_time(HOUR)
    assert firings(bench, worker) == 0
    bench.pass_time(60)
    assert firings(bench, worker) == 1


@pytest.mark.parametrize("step_seconds", [-100 * HOUR, -5 * HOUR, 5 * HOUR])
def test_a_finished_key_is_not_remembered_longer_because_the_clock_was_set(step_seconds: float) -> None:
    bench = Bench(remember_seconds=600.0)
    client, worker = bench.peer(), bench.worker(b"f")
    client.connection.remember = True
    ((_, old),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"unique", b"")
    worker.ask(wire.WORK_COMPLETE, worker.ask(wire.GRAB_JOB)[0][1], b"")
    assert client.ask(wire.SUBMIT_JOB_BG, b"f", b"unique", b"") == [(wire.JOB_CREATED, old)]
    set_clock(bench, bench.wall + step_seconds)
    bench.pass_time(601)
    assert client.ask(wire.SUBMIT_JOB_BG, b"f", b"unique", b"") != [(wire.JOB_CREATED, old)]


STEPS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0, 3 * HOUR)),
    st.tuples(st.just("set"), st.floats(-50 * HOUR, 50 * HOUR)),
    st.tuples(st.just("set"), st.floats(-100, 100)),
    st.tuples(st.just("restart"), st.floats(-10 * HOUR, 10 * HOUR)),
)


@given(st.sampled_from(SCHEDULES), st.lists(STEPS, max_size=12))
def test_whatever_the_clock_does_no_schedule_is_silent_for_longer_than_it_may(
    fields: bytes, steps: list[tuple[str, float]]
) -> None:
    bench = Bench(wall=at("2024-05-05 12:30"))
    handle = scheduled(bench, fields)
    cron = Cron.parse(*fields.split())
    forgiven = CORRECTION_SECONDS if fields in (DAILY, b"0 0,1,2,3,12 * * *", b"0 4 * * 1") else 60
    for what, seconds in steps:
        if what == "pass":
            bench.pass_time(seconds)
        else:
            bench.wall += seconds
            if what == "restart":
                bench = bench.killed()
        for _ in range(3):
            bench.pass_time(0)
            bench.settle()
        # At the latest when it would be due once the forgiven step has passed again
        assert bench.wall < due(bench, handle)
        assert due(bench, handle) <= cron.next_after(bench.wall + forgiven + STEP_SECONDS_MIN)
        assert due(bench, handle) == cron.next_after(due(bench, handle) - 1)


@given(st.lists(st.floats(-1.4 * HOUR, 1.4 * HOUR), min_size=1, max_size=2), st.booleans())
def test_a_fixed_time_fires_once_a_day_through_small_steps(steps: list[float], restarts: bool) -> None:
    bench = Bench(wall=at("2024-05-05 02:31"))
    scheduled(bench, DAILY)
    for step_seconds in steps:
        bench.wall += step_seconds
        if restarts:
            bench = bench.killed()
        assert firings(bench, bench.worker(b"f")) == 0
    bench.pass_time(at("2024-05-06 02:31") - bench.wall)
    assert firings(bench, bench.worker(b"f")) == 1
