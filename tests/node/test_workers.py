"""What workers say and what becomes of their jobs: order, sleep, progress, loss, limits, late results."""

from __future__ import annotations

import pytest

from cluster.jobs import RUNNING
from cluster.wire import packets as wire
from tests.node.bench import Bench, Peer

RESULTS = [wire.WORK_COMPLETE, wire.WORK_FAIL, wire.WORK_EXCEPTION]


def background(bench: Bench, *uniques: bytes, function: bytes = b"f") -> list[bytes]:
    """Background jobs, acknowledged; their handles."""
    client = bench.peer()
    return [client.ask(wire.SUBMIT_JOB_BG, function, unique, unique)[0][1] for unique in uniques]


def grabbed(worker: Peer) -> bytes | None:
    ((kind, *arguments),) = worker.ask(wire.GRAB_JOB)
    return None if kind == wire.NO_JOB else arguments[0]


def is_error(answer: list[tuple[object, ...]], code: bytes) -> bool:
    return len(answer) == 1 and answer[0][:2] == (wire.ERROR, code)


# ---- abilities


def test_a_worker_gets_only_what_it_can_do() -> None:
    bench = Bench()
    background(bench, b"1")
    worker = bench.peer()
    assert grabbed(worker) is None
    worker.ask(wire.CAN_DO, b"other")
    assert grabbed(worker) is None
    worker.ask(wire.CAN_DO, b"f")
    worker.ask(wire.CANT_DO, b"f")
    assert grabbed(worker) is None
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"0")
    worker.ask(wire.RESET_ABILITIES)
    assert grabbed(worker) is None
    worker.ask(wire.CAN_DO, b"f")
    assert grabbed(worker)


def test_a_repeated_can_do_counts_once() -> None:
    bench = Bench()
    worker = bench.worker(b"f", b"f")
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"5000")
    assert worker.command("status") == b"f\t0\t0\t1\n.\n"


def test_cant_do_leaves_the_running_job_to_its_worker() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = bench.worker(b"f")
    assert grabbed(worker) == handle
    worker.ask(wire.CANT_DO, b"f")
    assert worker.command("status") == b"f\t1\t1\t0\n.\n"
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []
    assert worker.command("status") == b"f\t0\t0\t0\n.\n"


@pytest.mark.parametrize("name", [b"", b"\0", b"a\0b", b"f" * 512, b"a\nb", b"\x1b[31m", b"\x7f"])
def test_can_do_refuses_what_is_no_function_name(name: bytes) -> None:
    bench = Bench()
    assert bench.peer().ask(wire.CAN_DO, name)[0][0] == wire.ERROR
    assert not bench.node.ledger.functions


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        *((limit, None) for limit in (b"", b"soon", b"-", b"--1", b"-5", b"0.9")),
        *((limit, 1.0) for limit in (b"1.5", b" 999", b"+30", b"00000000000000000000001")),
        *((limit, 1.5) for limit in (b"1500ms", b"1500\0", b"1500.5")),
        (b"9" * 5000, (10**18 - 1) / 1000),
    ],
)
def test_can_do_timeout_reads_its_number_as_gearmand_does(limit: bytes, seconds: float | None) -> None:
    bench = Bench()
    worker = bench.peer()
    assert worker.ask(wire.CAN_DO_TIMEOUT, b"f", limit) == []
    function = bench.node.ledger.functions[b"f"]
    assert worker.connection.worker is not None
    assert worker.connection.worker.timeouts.get(function) == seconds


def test_can_do_timeout_without_a_limit_is_an_error() -> None:
    assert is_error(Bench().peer().ask(wire.CAN_DO_TIMEOUT, b"f"), wire.INVALID_PACKET)


def test_nuls_behind_a_function_are_no_part_of_it() -> None:
    bench = Bench()
    assert bench.peer().ask(wire.CAN_DO, b"f\0\0") == []
    assert list(bench.node.ledger.functions) == [b"f"]


def test_the_client_id_is_one_word_of_at_most_127_bytes() -> None:
    bench = Bench()
    worker = bench.peer()
    for said, shown in ((b"me", b"me"), (b" a\tb\nc ", b"a_b_c"), (b"x" * 200, b"x" * 127), (b"", b"-")):
        worker.ask(wire.SET_CLIENT_ID, said)
        assert worker.command("workers") == b"1 10.0.0.1 %b :\n.\n" % shown


# ---- sleep


def test_a_sleeper_is_woken_once_until_it_grabs() -> None:
    bench = Bench()
    worker = bench.worker(b"f")
    assert worker.ask(wire.PRE_SLEEP) == []
    handles = background(bench, b"1", b"2")
    assert worker.heard() == [(wire.NOOP,)]
    assert grabbed(worker) == handles[0]
    assert worker.ask(wire.PRE_SLEEP) == [(wire.NOOP,)]
    assert grabbed(worker) == handles[1]
    assert worker.ask(wire.PRE_SLEEP) == []


@pytest.mark.parametrize(("wakeup", "woken"), [(0, 4), (1, 1), (2, 2), (9, 4)])
def test_a_job_wakes_as_many_as_the_settings_say(wakeup: int, woken: int) -> None:
    bench = Bench(worker_wakeup=wakeup)
    workers = [bench.worker(b"f") for _ in range(4)]
    for worker in workers:
        worker.ask(wire.PRE_SLEEP)
    background(bench, b"1")
    assert [worker.heard() for worker in workers] == [[(wire.NOOP,)]] * woken + [[]] * (4 - woken)


def test_the_jobs_of_one_turn_wake_a_worker_each() -> None:
    bench = Bench(worker_wakeup=1)
    workers = [bench.worker(b"f") for _ in range(4)]
    for worker in workers:
        worker.ask(wire.PRE_SLEEP)
    client = bench.peer()
    for number in range(3):
        client.say(wire.SUBMIT_JOB_BG, b"f", b"%d" % number, b"")
    bench.settle()
    assert [len(worker.heard()) for worker in workers] == [1, 1, 1, 0]


def test_a_woken_worker_that_leaves_has_another_woken() -> None:
    bench = Bench(worker_wakeup=1)
    first, second = bench.worker(b"f"), bench.worker(b"f")
    for worker in (first, second):
        worker.ask(wire.PRE_SLEEP)
    (handle,) = background(bench, b"1")
    assert first.heard() == [(wire.NOOP,)]
    first.leave()
    bench.settle()
    assert second.heard() == [(wire.NOOP,)]
    assert grabbed(second) == handle


def test_a_job_that_is_gone_within_the_turn_wakes_nobody() -> None:
    bench = Bench()
    worker, client = bench.worker(b"f"), bench.peer()
    worker.ask(wire.PRE_SLEEP)
    client.say(wire.SUBMIT_JOB, b"f", b"u", b"")
    client.leave()
    bench.settle()
    assert worker.heard() == []


# ---- results


def test_progress_data_and_warnings_go_to_all_who_wait_in_order() -> None:
    bench = Bench()
    clients = [bench.peer() for _ in range(2)]
    for client in clients:
        ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker = bench.worker(b"f")
    grabbed(worker)
    transcript = [
        (wire.WORK_DATA, handle, b"some"),
        (wire.WORK_STATUS, handle, b"1", b"3"),
        (wire.WORK_WARNING, handle, b"care\0ful"),
        (wire.WORK_DATA, handle, b""),
        (wire.WORK_COMPLETE, handle, b"all"),
    ]
    for packet in transcript:
        worker.say(*packet)
    bench.settle()
    assert worker.heard() == []
    assert [client.heard() for client in clients] == [transcript, transcript]


@pytest.mark.parametrize("verb", [*RESULTS, wire.WORK_DATA, wire.WORK_WARNING])
def test_a_result_for_a_job_of_another_worker_is_an_error(verb: int) -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    holder, other = bench.worker(b"f"), bench.worker(b"f")
    grabbed(holder)
    assert is_error(other.ask(verb, handle, b""), wire.JOB_NOT_FOUND)
    assert is_error(bench.peer().ask(verb, handle, b""), wire.JOB_NOT_FOUND)
    assert is_error(holder.ask(verb, b"H:node:0.1.99", b""), wire.JOB_NOT_FOUND)
    assert holder.ask(wire.WORK_COMPLETE, handle, b"") == []


@pytest.mark.parametrize("verb", [*RESULTS, wire.WORK_DATA])
def test_a_result_for_a_job_that_nobody_was_given_is_an_error(verb: int) -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    assert is_error(bench.worker(b"f").ask(verb, handle, b""), wire.JOB_NOT_FOUND)
    assert grabbed(bench.worker(b"f")) == handle


def test_a_status_with_one_number_is_an_error() -> None:
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = bench.worker(b"f")
    grabbed(worker)
    assert is_error(worker.ask(wire.WORK_STATUS, handle, b"1"), wire.INVALID_PACKET)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ((b"0.5", b"1.0"), (b"0", b"1")),
        ((b"-1", b"100"), (b"4294967295", b"100")),
        ((b"50%", b" 7"), (b"50", b"7")),
        ((b"", b""), (b"0", b"0")),
        ((b"half", b"1e3"), (b"0", b"1")),
        ((b"+3", b"4\0more"), (b"3", b"4")),
        ((b"5000000000", b"9" * 5000), (b"5000000000", b"9" * 18)),
    ],
)
def test_progress_is_passed_on_as_it_is_and_read_as_gearmand_reads_it(
    said: tuple[bytes, bytes], read: tuple[bytes, bytes]
) -> None:
    # Given a background job with a client that waits for it, too
    bench = Bench()
    (handle,) = background(bench, b"u")
    client, worker = bench.peer(), bench.worker(b"f")
    client.ask(wire.SUBMIT_JOB, b"f", b"u", b"1")
    assert grabbed(worker) == handle
    # When a library sends what is no number, then no ERROR ends it, and the client hears what was said
    assert worker.ask(wire.WORK_STATUS, handle, *said) == []
    assert client.heard() == [(wire.WORK_STATUS, handle, *said)]
    assert client.ask(wire.GET_STATUS, handle) == [(wire.STATUS_RES, handle, b"1", b"1", *read)]
    # And the journal's record of it does a restart no harm
    restored = bench.killed()
    assert restored.peer().ask(wire.GET_STATUS, handle)[0][:3] == (wire.STATUS_RES, handle, b"1")


@pytest.mark.parametrize("verb", [wire.WORK_COMPLETE, wire.WORK_DATA, wire.WORK_WARNING, wire.WORK_EXCEPTION])
def test_a_result_without_data_and_its_nul_has_empty_data(verb: int) -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    client.ask(wire.OPTION_REQ, b"Exceptions\0")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"", b"1")
    assert grabbed(worker) == handle
    assert worker.ask(verb, handle) == []
    assert client.heard() == [(verb, handle, b"")]


def test_nuls_behind_a_failed_job_s_handle_are_no_part_of_it() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"", b"1")
    assert grabbed(worker) == handle
    assert worker.ask(wire.WORK_FAIL, handle + b"\0\0") == []
    assert client.heard() == [(wire.WORK_FAIL, handle)]


# ---- losing


def test_a_lost_worker_s_jobs_are_the_next_in_the_order_in_which_it_got_them() -> None:
    bench = Bench()
    handles = background(bench, b"1", b"2", b"3", b"4")
    first, second = bench.worker(b"f"), bench.worker(b"f")
    assert [grabbed(first), grabbed(first), grabbed(first)] == handles[:3]
    first.ask(wire.WORK_STATUS, handles[0], b"1", b"2")
    first.leave()
    # Its progress is forgotten, its loss is counted
    assert second.ask(wire.GET_STATUS, handles[0])[0][2:] == (b"1", b"0", b"0", b"0")
    assert second.command("show jobs").count(b"\t1\t0\t1\n") == 3
    assert [grabbed(second) for _ in range(5)] == [*handles, None]


@pytest.mark.parametrize(("retries", "runs"), [(0, 1), (1, 2), (3, 4)])
def test_a_job_whose_worker_is_lost_runs_again_as_often_as_the_settings_say(retries: int, runs: int) -> None:
    bench = Bench(job_retries=retries)
    client = bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    for _ in range(runs):
        assert client.heard() == []
        worker = bench.worker(b"f")
        assert grabbed(worker) == handle
        worker.leave()
        bench.settle()
        bench.pass_time(4)
        bench.settle()
    assert client.heard() == [(wire.WORK_FAIL, handle)]
    assert grabbed(bench.worker(b"f")) is None


def test_retries_count_over_a_restart() -> None:
    bench = Bench(job_retries=1)
    (handle,) = background(bench, b"1")
    worker = bench.worker(b"f")
    grabbed(worker)
    worker.leave()
    bench.settle()
    bench = bench.killed()
    worker = bench.worker(b"f")
    assert grabbed(worker) == handle
    worker.leave()
    bench.settle()
    assert bench.node.ledger.count() == 0
    assert bench.killed().restored == []


def test_a_connection_that_is_client_and_worker_takes_its_own_job_with_it() -> None:
    bench = Bench()
    both = bench.worker(b"f")
    ((_, handle),) = both.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    assert grabbed(both) == handle
    both.leave()
    bench.settle()
    assert bench.node.ledger.count() == 0


# ---- late results


@pytest.mark.parametrize("verb", RESULTS)
def test_a_worker_that_comes_back_may_deliver_while_its_job_waits_to_be_run_again(verb: int) -> None:
    bench = Bench()
    client = bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker = bench.worker(b"f")
    grabbed(worker)
    worker.leave()
    again = bench.peer()
    assert again.ask(verb, handle, b"") == []
    assert [packet[:2] for packet in client.heard()] == [
        (wire.WORK_COMPLETE if verb == wire.WORK_COMPLETE else wire.WORK_FAIL, handle)
    ]
    assert grabbed(bench.worker(b"f")) is None


@pytest.mark.parametrize("verb", RESULTS)
def test_after_a_restart_a_worker_may_deliver_what_it_kept(verb: int) -> None:
    bench = Bench()
    handles = background(bench, b"1", b"2")
    worker = bench.worker(b"f")
    assert [grabbed(worker), grabbed(worker)] == handles
    again = bench.killed()
    # Meanwhile nobody else is given them
    other = again.worker(b"f")
    assert grabbed(other) is None
    assert again.peer().ask(verb, handles[0], b"") == []
    again.pass_time(3)
    assert grabbed(other) == handles[1]
    assert grabbed(other) is None


def test_what_was_running_at_a_restart_runs_again_in_its_order() -> None:
    bench = Bench()
    handles = background(bench, *(b"%d" % number for number in range(6)))
    worker = bench.worker(b"f")
    for handle in handles[:4]:
        assert grabbed(worker) == handle
    again = bench.killed()
    again.pass_time(3)
    assert [grabbed(again.worker(b"f")) for _ in handles] == handles


def test_a_job_that_was_taken_back_and_lost_again_is_in_its_queue_once() -> None:
    bench = Bench(pause_seconds_max=0.0)
    (handle,) = background(bench, b"1")
    worker = bench.worker(b"f")
    for _ in range(3):
        assert grabbed(worker) == handle
        worker.leave()
        worker = bench.worker(b"f")
        worker.ask(wire.WORK_STATUS, handle, b"1", b"2")
        job = bench.job(handle)
        assert job is not None
        assert job.state == RUNNING
        worker.leave()
        bench.settle()
        assert bench.peer().command("prioritystatus") == b"f\t0\t1\t0\t0\n.\n"
        worker = bench.worker(b"f")
    assert grabbed(worker) == handle
    assert grabbed(bench.worker(b"f")) is None
    worker.ask(wire.WORK_COMPLETE, handle, b"")
    assert worker.command("prioritystatus") == b"f\t0\t0\t0\t2\n.\n"


# ---- time limits


def test_a_job_that_exceeds_its_worker_s_limit_has_failed() -> None:
    bench = Bench(requeue_on_timeout=False)
    client, worker = bench.peer(), bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"1500")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    (durable,) = background(bench, b"1")
    assert [grabbed(worker), grabbed(worker)] == [handle, durable]
    assert bench.node.next_due() == (None, bench.monotonic + 1.5)
    bench.pass_time(1.4)
    bench.settle()
    assert client.heard() == []
    bench.pass_time(0.2)
    bench.settle()
    assert client.heard() == [(wire.WORK_FAIL, handle)]
    assert bench.node.ledger.count() == 0
    assert bench.killed().restored == []


@pytest.mark.parametrize(("limit", "seconds"), [(b"1", 1.0), (b"999", 1.0), (b"60000", 60.0)])
def test_a_limit_is_in_milliseconds_and_at_least_a_second(limit: bytes, seconds: float) -> None:
    bench = Bench()
    background(bench, b"1")
    worker = bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", limit)
    grabbed(worker)
    assert bench.node.next_due() == (None, bench.monotonic + seconds)


@pytest.mark.parametrize("limit", [b"0", b"-1"])
def test_no_limit_is_none(limit: bytes) -> None:
    bench = Bench()
    background(bench, b"1")
    worker = bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"1000")
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", limit)
    grabbed(worker)
    assert bench.node.next_due() == (None, None)


def test_a_limit_ends_with_its_delivery() -> None:
    # Given a job that was within its limit when its worker was lost
    bench = Bench()
    (handle,) = background(bench, b"1")
    worker = bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"1000")
    grabbed(worker)
    worker.leave()
    # When another, without a limit, has it for longer
    other = bench.worker(b"f")
    assert grabbed(other) == handle
    bench.pass_time(100)
    assert other.ask(wire.WORK_COMPLETE, handle, b"") == []
