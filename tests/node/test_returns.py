"""Jobs that come back again and again, and those over their time limit."""

from __future__ import annotations

from functools import partial

import pytest

from cluster.jobs import (
    ASKED_PAUSE_SECONDS_MAX,
    GIVEN_BACK,
    OUTCOMES,
    OVERDUE,
    PAUSE_SECONDS_MAX,
    QUEUED,
    RUNNING,
    SCHEDULED,
    WORKER_LOST,
    pause_seconds,
)
from cluster.jobs.ledger import COUNTED_FUNCTIONS_MAX, OTHER_FUNCTIONS
from cluster.node import events
from cluster.replication import entries
from cluster.wire import packets as wire
from cluster.wire import request
from tests.node.bench import Bench, Peer
from tests.node.fleets import SmallFleet
from tests.node.test_moving_slots import job_at


def background(bench: Bench, *uniques: bytes) -> list[bytes]:
    client = bench.peer()
    answers = [client.ask(wire.SUBMIT_JOB_BG, b"f", unique, b"") for unique in uniques]
    return [handle for ((_, handle),) in answers]


def grabbed(worker: Peer) -> bytes | None:
    (packet,) = worker.ask(wire.GRAB_JOB)
    return packet[1] if packet[0] == wire.JOB_ASSIGN else None


def lose(bench: Bench) -> bytes | None:
    """One worker comes, takes a job and dies of it."""
    worker = bench.worker(b"f")
    handle = grabbed(worker)
    worker.leave()
    bench.settle()
    return handle


def passed(bench: Bench, seconds: float) -> None:
    bench.pass_time(seconds)
    bench.settle()


def limited(bench: Bench, milliseconds: bytes = b"1000") -> Peer:
    worker = bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", milliseconds)
    return worker


def counts(bench: Bench) -> list[int]:
    ledger = bench.node.ledger
    function = ledger.functions.get(b"f")
    return ledger.counts[b"f"] if function is None else function.counts


def test_a_job_that_kills_its_workers_does_not_keep_others_from_running() -> None:
    # Given a job that kills each worker, and twenty good ones behind it
    bench = Bench()
    poison, *good = background(bench, *(b"%d" % number for number in range(21)))
    # When it has killed two
    assert [lose(bench), lose(bench)] == [poison, poison]
    # Then the good ones are next, and it comes behind them
    worker = bench.worker(b"f")
    assert grabbed(worker) == good[0]
    passed(bench, 1)
    assert [grabbed(worker) for _ in range(21)] == [*good[1:], poison, None]


def test_a_foreground_job_pauses_too_and_is_dropped_with_its_client() -> None:
    bench = Bench()
    client = bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    assert [lose(bench), lose(bench), lose(bench)] == [handle, handle, None]
    passed(bench, 1)
    assert [lose(bench), lose(bench)] == [handle, None]
    client.leave()
    assert bench.node.ledger.count() == 0


def test_pauses_grow_to_a_bound_and_are_jittered_the_same_everywhere() -> None:
    for pauses, whole in [(0, 1), (1, 2), (2, 4), (8, 256), (9, 300), (5000, 300)]:
        lengths = [pause_seconds(b"H:a:%d" % number, pauses, PAUSE_SECONDS_MAX) for number in range(100)]
        assert all(0.75 * whole <= seconds <= whole for seconds in lengths)
        assert len(set(lengths)) > 50
        assert lengths[7] == pause_seconds(b"H:a:7", pauses, PAUSE_SECONDS_MAX)
    assert pause_seconds(b"H:a:1", 5, 0.0) == 0.0


@pytest.mark.parametrize("wall_jump", [-86400, 0])
def test_a_pause_and_the_count_of_tries_survive_a_restart(wall_jump: int) -> None:
    # Given a job in its third pause, of three to four seconds
    bench = Bench(pause_seconds_max=4.0)
    (handle,) = background(bench, b"1")
    for _ in range(4):
        assert lose(bench) == handle
        if bench.node.context.find_handle(handle).retries < 4:  # type: ignore[union-attr]
            passed(bench, 4)
    # When its node dies, and the clock is perhaps set back by a day
    bench.wall += wall_jump
    bench = bench.killed()
    # Then it is not given out before, and it is soon after
    passed(bench, 2)
    assert grabbed(bench.worker(b"f")) is None
    passed(bench, 3)
    assert lose(bench) == handle
    job = bench.node.context.find_handle(handle)
    assert job is not None
    assert job.retries == 5


def test_a_clock_that_is_set_back_does_not_make_a_pause_longer() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    assert [lose(bench), lose(bench)] == [handle, handle]
    bench.wall -= 86400
    passed(bench, 1)
    assert lose(bench) == handle


@pytest.mark.parametrize("verb", [wire.WORK_COMPLETE, wire.WORK_FAIL])
def test_a_worker_that_kept_a_job_may_deliver_while_it_pauses(verb: int) -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    assert [lose(bench), lose(bench)] == [handle, handle]
    assert bench.peer().ask(verb, handle, *([b""] if verb == wire.WORK_COMPLETE else [])) == []
    assert bench.node.ledger.count() == 0
    passed(bench, 400)
    assert grabbed(bench.worker(b"f")) is None
    assert bench.killed().restored == []


def test_a_job_claimed_in_its_pause_is_in_no_queue_when_the_pause_ends() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    assert [lose(bench), lose(bench)] == [handle, handle]
    keeper = bench.peer()
    assert bench.node.workers.claim_now(keeper.connection, handle).endswith(wire.CLAIM_KEPT)
    passed(bench, 400)
    assert grabbed(bench.worker(b"f")) is None
    assert keeper.ask(wire.WORK_COMPLETE, handle, b"") == []
    assert bench.node.ledger.count() == 0


def test_a_job_that_waits_for_its_time_is_nobody_s_result() -> None:
    bench = Bench()
    when = b"%d" % (bench.wall + 60)
    ((_, handle),) = bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", when, b"")
    (answer,) = bench.peer().ask(wire.WORK_COMPLETE, handle, b"")
    assert answer[0] == wire.ERROR
    assert bench.node.ledger.count() == 1


# ---- time limits


def test_a_background_job_over_its_limit_runs_again_after_a_pause() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    assert grabbed(limited(bench)) == handle
    passed(bench, 1)
    other = bench.worker(b"f")
    assert grabbed(other) is None
    passed(bench, 1)
    assert grabbed(other) == handle
    assert counts(bench)[OVERDUE] == 1


def test_a_job_over_its_limit_uses_up_its_tries() -> None:
    bench = Bench(job_retries=1)
    (handle,) = background(bench, b"1")
    for _ in range(2):
        assert grabbed(limited(bench)) == handle
        passed(bench, 1)
        passed(bench, 1)
    assert bench.node.ledger.count() == 0
    assert counts(bench)[entries.OUT_OF_RETRIES] == 1


def test_a_late_result_is_the_result_while_the_job_waits() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = limited(bench)
    assert grabbed(worker) == handle
    passed(bench, 1)
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []
    assert bench.node.ledger.count() == 0
    assert bench.killed().restored == []


@pytest.mark.parametrize("foreground", [False, True])
def test_a_result_that_comes_too_late_is_swallowed_once(foreground: bool) -> None:
    # Given a job whose time was over, and that another worker has now, or that has failed
    bench = Bench()
    client = bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB if foreground else wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    worker, other = limited(bench), bench.worker(b"f")
    assert grabbed(worker) == handle
    passed(bench, 1)
    passed(bench, 1)
    assert grabbed(other) == (None if foreground else handle)
    assert client.heard() == ([(wire.WORK_FAIL, handle)] if foreground else [])
    # Then its late result is no error, once
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []
    (answer,) = worker.ask(wire.WORK_COMPLETE, handle, b"")
    assert answer[0] == wire.ERROR


# ---- what is told of it


def test_what_happens_to_jobs_is_told_and_counted() -> None:
    bench = Bench(requeue_on_timeout=False)
    handles = background(bench, b"1", b"2", b"3")
    worker = limited(bench, b"30")
    assert [grabbed(worker) for _ in handles] == handles
    worker.ask(wire.WORK_FAIL, handles[0])
    worker.ask(wire.WORK_EXCEPTION, handles[1], b"no such file")
    passed(bench, 1)
    told, left_out = bench.node.context.events.take()
    assert [(event.what, event.handle) for event in told] == [
        (events.SHORT_LIMIT, b""),
        (events.FAILED, handles[0]),
        (events.FAILED, handles[1]),
        (events.EXPIRED, handles[2]),
    ]
    assert "taken for 30 ms, rounded up to 1 s" in told[0].reason
    assert told[2].reason == "no such file"
    assert told[3].reason == "limit 1 s: failed"
    assert {(event.function, event.worker) for event in told} == {(b"f", "10.0.0.2 -")}
    assert left_out == 0
    assert counts(bench)[: len(OUTCOMES)] == [0, 1, 1, 1, 0, 0]


def test_counts_outlive_their_function() -> None:
    bench = Bench(idle_function_seconds=0.0)
    background(bench, b"1")
    lose(bench)
    worker = bench.worker(b"f")
    handle = grabbed(worker)
    assert handle is not None
    worker.ask(wire.WORK_COMPLETE, handle, b"")
    worker.leave()
    assert b"f" not in bench.node.ledger.functions
    assert (counts(bench)[entries.COMPLETED], counts(bench)[WORKER_LOST]) == (1, 1)
    # And go on when it is back
    bench.worker(b"f")
    bench.settle()
    assert counts(bench)[entries.COMPLETED] == 1


def test_a_stranger_s_many_names_push_out_no_function_that_was_served() -> None:
    # Given a function whose worker died after its job
    bench = Bench(idle_functions_max=10)
    background(bench, b"1")
    worker, stranger, admin = bench.worker(b"f"), bench.peer(), bench.peer()
    handle = grabbed(worker)
    assert handle is not None
    worker.ask(wire.WORK_COMPLETE, handle, b"")
    worker.leave()
    # When somebody registers and takes back more names than are kept
    for number in range(25):
        stranger.say(wire.CAN_DO, b"junk-%d" % number)
        stranger.say(wire.CANT_DO, b"junk-%d" % number)
    # Then it is listed still, and so many others that they are not too many
    rows = admin.command("status").splitlines()
    assert rows[0] == b"f\t0\t0\t0"
    assert len(rows) == 10 + 1


def test_names_whose_counts_are_kept_are_bounded() -> None:
    bench = Bench()
    ledger = bench.node.ledger
    for number in range(COUNTED_FUNCTIONS_MAX + 3):
        function = ledger.function(b"%d" % number)
        function.counts[entries.FAILED] += 1
        ledger.forget_if_idle(function)
    assert len(ledger.counts) == COUNTED_FUNCTIONS_MAX + 1
    assert ledger.counts[OTHER_FUNCTIONS][entries.FAILED] == 3


def test_outcomes_are_numbered_as_in_the_journal() -> None:
    for name, number in zip(OUTCOMES, range(len(OUTCOMES)), strict=True):
        assert getattr(entries, name.upper()) == number


def test_events_of_a_turn_are_bounded() -> None:
    found = events.Events()
    event = events.Event(events.FAILED, b"f", b"H", "", "")
    for _ in range(events.EVENTS_PER_TURN_MAX + 5):
        found.add(event)
    assert found.take() == ([event] * events.EVENTS_PER_TURN_MAX, 5)
    assert found.take() == ([], 0)


def test_a_pause_is_kept_over_a_takeover() -> None:
    # Given a job in its second return, with its node in a fleet
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    for _ in range(2):
        worker = leader.connect()
        worker.send(wire.CAN_DO, b"f")
        worker.send(wire.GRAB_JOB)
        ((kind, _),) = worker.take()
        assert kind == wire.JOB_ASSIGN
        leader.turn(partial(leader.node.disconnected, worker.connection))
    fleet.settle()
    # When that node dies
    leader.crash()
    fleet.etcd.delete(leader.name)
    fleet.settle()
    # Then the next one knows how often it came back, and does not give it out at once
    assert fleet.etcd.view.map is not None
    heir = fleet.hosts[fleet.etcd.view.map.slots[slot].primary]
    assert heir is not leader
    job = heir.node.context.find_handle(handle)
    assert job is not None
    assert (job.state, job.retries) == (SCHEDULED, 2)
    fleet.pass_time(3)
    assert job.state == QUEUED


# ---- GIVE_BACK


def granted(bench: Bench) -> Peer:
    worker = bench.worker(b"f")
    option = wire.OPTION_GIVE_BACK
    assert worker.ask(wire.OPTION_REQ, wire.OPTION_GEARFLEET) == [(wire.OPTION_RES, wire.OPTION_GEARFLEET)]
    assert worker.ask(wire.OPTION_REQ, option) == [(wire.OPTION_RES, option)]
    return worker


def test_a_job_that_is_given_back_runs_again_and_the_others_of_its_worker_go_on() -> None:
    bench = Bench()
    handles = background(bench, b"1", b"2")
    worker = granted(bench)
    assert [grabbed(worker), grabbed(worker)] == handles
    assert worker.ask(wire.GIVE_BACK, handles[0], b"") == []
    # The first time at once, then after a pause
    other = granted(bench)
    assert grabbed(other) == handles[0]
    assert other.ask(wire.GIVE_BACK, handles[0], b"") == []
    assert grabbed(other) is None
    passed(bench, 1)
    assert grabbed(other) == handles[0]
    assert worker.ask(wire.WORK_COMPLETE, handles[1], b"") == []
    assert counts(bench)[GIVEN_BACK] == 2


@pytest.mark.parametrize(("foreground", "restarts"), [(False, False), (False, True), (True, False)])
def test_a_job_that_is_given_back_does_not_run_before_the_time_that_is_asked_for(
    foreground: bool, restarts: bool
) -> None:
    bench = Bench()
    client = bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB if foreground else wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    worker = granted(bench)
    assert grabbed(worker) == handle
    worker.ask(wire.GIVE_BACK, handle, b"3600000")
    if restarts:
        bench = bench.killed()
    passed(bench, 3500)
    assert grabbed(bench.worker(b"f")) is None
    passed(bench, 101)
    assert grabbed(bench.worker(b"f")) == handle


def test_a_pause_that_is_asked_for_is_bounded() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = granted(bench)
    assert grabbed(worker) == handle
    worker.ask(wire.GIVE_BACK, handle, b"9" * 20)
    assert bench.node.next_due() == (None, bench.monotonic + ASKED_PAUSE_SECONDS_MAX)


@pytest.mark.parametrize("arguments", [(b"H:node:1.1.1",), (b"H:node:1.1.1", b"-1"), (b"x", b"9" * 21)])
def test_a_give_back_that_makes_no_sense_is_an_error(arguments: tuple[bytes, ...]) -> None:
    worker = granted(Bench())
    worker.say_bytes(request(wire.GIVE_BACK, *arguments))
    worker.bench.settle()
    ((kind, code, _),) = worker.heard()
    assert (kind, code) == (wire.ERROR, wire.INVALID_ARGUMENT)


def test_give_back_needs_the_option_and_is_no_error_for_a_job_that_is_not_held() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = bench.worker(b"f")
    assert grabbed(worker) == handle
    ((kind, code, _),) = worker.ask(wire.GIVE_BACK, handle, b"")
    assert (kind, code) == (wire.ERROR, wire.INVALID_COMMAND)
    assert granted(bench).ask(wire.GIVE_BACK, handle, b"") == []
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []


@pytest.mark.parametrize("verb", [wire.WORK_FAIL, wire.WORK_EXCEPTION])
def test_a_failure_that_comes_late_does_not_end_a_job_that_runs_again(verb: int) -> None:
    """HAWorker reports its own time limits as WORK_FAIL; Perl's library sends one after an exception."""
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = limited(bench)
    assert grabbed(worker) == handle
    passed(bench, 1)
    if verb == wire.WORK_EXCEPTION:
        assert worker.ask(verb, handle, b"died") == []
    assert worker.ask(wire.WORK_FAIL, handle) == []
    passed(bench, 1)
    assert grabbed(bench.worker(b"f")) == handle


def test_a_job_whose_slot_went_elsewhere_is_given_back_to_its_primary() -> None:
    # Given a job that a worker here runs, and whose slot another node leads
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    other = next(host for host in fleet.living() if host is not leader)
    worker = other.connect()
    worker.send(wire.OPTION_REQ, wire.OPTION_GEARFLEET)
    other.part.forwarder.guests[handle] = worker.connection
    other.turn(lambda: other.part.forwarder.claim_guests({slot}))
    fleet.settle()
    job = leader.node.context.find_handle(handle)
    assert job is not None
    assert job.state == RUNNING
    # When it gives it back for half a minute
    worker.send(wire.GIVE_BACK, handle, b"30000")
    fleet.settle()
    # Then it pauses there
    assert (job.state, job.retries) == (SCHEDULED, 1)
    fleet.pass_time(29)
    assert job.state == SCHEDULED
    fleet.pass_time(2)
    assert job.state == QUEUED
