"""Who gets what: queues, turns, sleep."""

from __future__ import annotations

from itertools import count

import pytest

from cluster.jobs import HIGH, LOW, NORMAL, PENDING, RECLAIM, Job, Ledger, QueueLimits, Worker
from cluster.jobs.function import CANCELLED, HUSKS_BEFORE_SWEEP, OUTCOMES
from cluster.jobs.worker import FORGIVEN_MAX

_numbers = count(1)


def add(ledger: Ledger, name: bytes = b"f", priority: int = NORMAL, unique: bytes = b"") -> Job:
    """A job in its queue."""
    function = ledger.function(name)
    key = name + b"\0" + unique if unique else function.bare_key
    job = Job(b"h%d" % next(_numbers), function, key, b"", priority, True, 0, PENDING)
    ledger.add(job)
    ledger.enqueue(job)
    return job


def worker(ledger: Ledger, *names: bytes) -> Worker:
    able = Worker(None)
    for name in names:
        ledger.can_do(able, name)
    return able


# ---- order


def test_high_of_any_function_comes_before_normal_of_any_and_that_before_low() -> None:
    ledger = Ledger(1)
    low, normal, high = [
        [add(ledger, name, priority) for name in (b"f", b"g")] for priority in (LOW, NORMAL, HIGH)
    ]
    both = worker(ledger, b"g", b"f")  # the turn begins with the last
    assert [ledger.grab(both) for _ in range(7)] == [*high, *normal, *low, None]


def test_within_a_function_and_priority_first_in_is_first_out() -> None:
    ledger = Ledger(1)
    jobs = [add(ledger) for _ in range(20)]
    able = worker(ledger, b"f")
    assert [ledger.grab(able) for _ in jobs] == jobs


def test_functions_take_turns_however_long_their_queues() -> None:
    ledger = Ledger(1)
    for name, jobs in ((b"f", 6), (b"g", 2), (b"h", 3)):
        for _ in range(jobs):
            add(ledger, name)
    able = worker(ledger, b"f", b"g", b"h")
    grabbed = [ledger.grab(able) for _ in range(11)]
    assert b"".join(job.function.name for job in grabbed if job) == b"hgfhgfhffff"


def test_a_husk_takes_no_turn() -> None:
    ledger = Ledger(1)
    ledger.finish(add(ledger, b"f"))
    first, second = add(ledger, b"f"), add(ledger, b"g")
    able = worker(ledger, b"f", b"g")
    assert [ledger.grab(able), ledger.grab(able)] == [second, first]


def test_what_is_put_back_is_the_next() -> None:
    ledger = Ledger(1)
    jobs = [add(ledger) for _ in range(3)]
    able = worker(ledger, b"f")
    first = ledger.grab(able)
    assert first is jobs[0]
    ledger.release(first)
    ledger.enqueue(first, first=True)
    assert [ledger.grab(able) for _ in range(4)] == [*jobs, None]
    assert first.deliveries == 2


# ---- husks


def test_a_cancelled_job_is_neither_counted_nor_handed_out() -> None:
    ledger = Ledger(1)
    jobs = [add(ledger) for _ in range(3)]
    ledger.finish(jobs[1])
    function = ledger.function(b"f")
    assert (function.total, function.queued(NORMAL), ledger.count()) == (2, 2, 2)
    assert jobs[1] not in ledger.all_jobs()
    able = worker(ledger, b"f")
    assert [ledger.grab(able) for _ in range(3)] == [jobs[0], jobs[2], None]
    assert function.husks == [0, 0, 0]


@pytest.mark.parametrize("order", [1, -1])
def test_husks_cost_memory_only_until_they_are_many(order: int) -> None:
    ledger = Ledger(1)
    keep = add(ledger)
    jobs = [add(ledger) for _ in range(10 * HUSKS_BEFORE_SWEEP)]
    for job in jobs[::order]:
        ledger.finish(job)
        queue = ledger.function(b"f").queues[NORMAL]
        assert len(queue) <= 2 * ledger.function(b"f").queued(NORMAL) + HUSKS_BEFORE_SWEEP + 2
    assert ledger.grab(worker(ledger, b"f")) is keep


def test_a_queue_of_husks_lets_a_worker_sleep_and_wakes_nobody() -> None:
    ledger = Ledger(1)
    jobs = [add(ledger, priority=priority) for priority in (HIGH, LOW)]
    able = worker(ledger, b"f")
    for job in jobs:
        ledger.finish(job)
    assert ledger.sleep(able)
    late = add(ledger)
    ledger.finish(late)
    assert ledger.wake(0) == []
    assert able.asleep


# ---- adopting


@pytest.mark.parametrize("others", [0, 3, 2 * HUSKS_BEFORE_SWEEP])
def test_an_adopted_job_is_in_no_queue_whatever_happens_to_it(others: int) -> None:
    ledger = Ledger(1)
    job = add(ledger)
    rest = [add(ledger) for _ in range(others)]
    first, second = worker(ledger, b"f"), worker(ledger, b"f")
    assert ledger.grab(first) is job
    for _ in range(2):
        ledger.release(job)
        ledger.enqueue(job, first=True)
        ledger.adopt(second, job)
        assert ledger.function(b"f").queued(NORMAL) == others
        assert ledger.function(b"f").running == 1
    ledger.finish(job)
    assert [ledger.grab(first) for _ in range(others + 1)] == [*rest, None]
    assert ledger.function(b"f").husks == [0, 0, 0]


def test_a_job_that_waits_for_its_worker_may_be_adopted() -> None:
    ledger = Ledger(1)
    function = ledger.function(b"f")
    job = Job(b"h", function, function.bare_key, b"", NORMAL, True, 0, RECLAIM)
    ledger.add(job)
    able = worker(ledger, b"f")
    assert ledger.grab(able) is None
    ledger.adopt(able, job)
    assert able.running == {b"h": job}
    ledger.finish(job)
    assert (function.running, function.total) == (0, 0)


# ---- sleep


def sleepers(ledger: Ledger, number: int, *names: bytes) -> list[Worker]:
    workers = [worker(ledger, *(names or (b"f",))) for _ in range(number)]
    assert all(ledger.sleep(able) for able in workers)
    return workers


def test_all_sleepers_of_the_function_are_woken_and_no_others() -> None:
    ledger = Ledger(1)
    able, others = sleepers(ledger, 3), sleepers(ledger, 2, b"g")
    add(ledger)
    assert ledger.wake(0) == able
    assert [other.asleep for other in others] == [True, True]
    assert ledger.wake(0) == []


def test_with_a_limit_the_row_is_taken_in_turn() -> None:
    ledger = Ledger(1)
    row = sleepers(ledger, 3)
    for turn in range(7):
        job = add(ledger)
        (woken,) = ledger.wake(1)
        assert woken is row[turn % 3]
        assert ledger.grab(woken) is job
        ledger.finish(job)
        assert ledger.sleep(woken)


def test_the_limit_is_for_each_job() -> None:
    ledger = Ledger(1)
    row = sleepers(ledger, 8)
    for _ in range(3):
        add(ledger)
    assert ledger.wake(2) == row[:6]


def test_a_worker_of_two_functions_is_woken_once() -> None:
    ledger = Ledger(1)
    (both,) = sleepers(ledger, 1, b"f", b"g")
    add(ledger, b"f")
    add(ledger, b"g")
    assert ledger.wake(0) == [both]
    assert ledger.wake(0) == []


def test_nobody_sleeps_while_there_is_a_job_for_it() -> None:
    ledger = Ledger(1)
    add(ledger, b"g", LOW)
    both = worker(ledger, b"f", b"g")
    assert not ledger.sleep(both)
    assert not both.asleep
    assert ledger.sleep(worker(ledger, b"f"))


def test_a_function_learnt_asleep_wakes_for_what_waits() -> None:
    ledger = Ledger(1)
    (able,) = sleepers(ledger, 1)
    add(ledger, b"g")
    assert ledger.wake(0) == []
    ledger.can_do(able, b"g")
    assert ledger.wake(0) == [able]


def test_who_was_woken_and_leaves_is_replaced() -> None:
    ledger = Ledger(1)
    first, second = sleepers(ledger, 2)
    add(ledger)
    assert ledger.wake(1) == [first]
    ledger.stir(first)
    ledger.cannot_do(first, ledger.function(b"f"))
    assert ledger.wake(1) == [second]


# ---- forgetting


def test_a_function_without_job_worker_or_limit_is_forgotten() -> None:
    ledger = Ledger(1)
    job = add(ledger)
    able = worker(ledger, b"f")
    function = ledger.function(b"f")
    ledger.finish(job)
    assert b"f" in ledger.functions
    ledger.cannot_do(able, function)
    assert not ledger.functions
    assert not any(ledger.ready)
    # A limit keeps it
    ledger.function(b"f").limits = QueueLimits(1, 1, 1)
    ledger.finish(add(ledger))
    assert b"f" in ledger.functions


def test_an_idle_function_is_kept_for_a_while() -> None:
    # Given a function whose last job is over and whose last worker has gone, with a husk in its queue
    ledger = Ledger(1, idle_seconds=10.0)
    ledger.finish(add(ledger))
    function = ledger.function(b"f")
    assert not function.queues[NORMAL]
    assert not any(ledger.ready)
    # When it lives again and is idle again later, then its time begins anew
    ledger.monotonic_seconds = 9.0
    ledger.forget_rested()
    ledger.finish(add(ledger))
    ledger.monotonic_seconds = 18.9
    ledger.forget_rested()
    assert ledger.functions == {b"f": function}
    ledger.monotonic_seconds = 19.0
    ledger.forget_rested()
    assert not ledger.functions
    assert not ledger.resting
    assert not ledger.resting_unserved


def test_a_function_that_lives_when_its_time_is_over_stays() -> None:
    ledger = Ledger(1, idle_seconds=10.0)
    ledger.finish(add(ledger))
    job = add(ledger)
    ledger.monotonic_seconds = 10.0
    ledger.forget_rested()
    assert ledger.functions == {b"f": job.function}
    ledger.finish(job)
    assert ledger.functions == {b"f": job.function}


def test_only_so_many_idle_functions_are_kept_those_idle_for_longest_go() -> None:
    ledger = Ledger(1, idle_seconds=10.0, idle_functions_max=3)
    for name in (b"a", b"b", b"c", b"a", b"d", b"e"):
        ledger.finish(add(ledger, name))
    assert set(ledger.functions) == {b"a", b"d", b"e"}
    assert {function.name for function in ledger.resting_unserved} == {b"a", b"d", b"e"}


def serve(ledger: Ledger, name: bytes) -> None:
    """A job comes and is completed."""
    job = add(ledger, name)
    job.function.counts[OUTCOMES.index("completed")] += 1
    ledger.finish(job)


def test_names_that_nobody_ever_served_push_out_none_that_somebody_did() -> None:
    # Given functions that had jobs, and are idle
    ledger = Ledger(1, idle_seconds=10.0, idle_functions_max=3)
    serve(ledger, b"a")
    serve(ledger, b"b")
    # When somebody registers and takes back many others, and cancels jobs of more
    stranger = Worker(None)
    for number in range(20):
        ledger.can_do(stranger, b"junk-%d" % number)
        ledger.cannot_do(stranger, ledger.function(b"junk-%d" % number))
        job = add(ledger, b"cancelled-%d" % number)
        job.function.counts[CANCELLED] += 1
        ledger.finish(job)
    # Then his own go, as many as are too many
    assert set(ledger.functions) == {b"a", b"b", b"cancelled-19"}
    # And one that is served after all stands with the others: there the one idle for longest goes
    serve(ledger, b"cancelled-19")
    assert not ledger.resting_unserved
    serve(ledger, b"c")
    assert set(ledger.functions) == {b"b", b"cancelled-19", b"c"}
    # And all are forgotten in the end
    ledger.can_do(stranger, b"junk")
    ledger.monotonic_seconds = 10.0
    ledger.forget_rested()
    assert set(ledger.functions) == {b"junk"}


def test_a_running_job_keeps_its_function_without_any_worker() -> None:
    ledger = Ledger(1)
    job = add(ledger)
    able = worker(ledger, b"f")
    ledger.grab(able)
    ledger.cannot_do(able, job.function)
    assert ledger.functions == {b"f": job.function}
    ledger.finish(job)
    assert not ledger.functions


def test_a_worker_forgives_only_so_many_handles() -> None:
    able = Worker(None)
    for number in range(FORGIVEN_MAX + 10):
        able.forgive(b"%d" % number)
    assert len(able.forgiven) == FORGIVEN_MAX
    assert b"9" not in able.forgiven
    assert b"10" in able.forgiven
