"""Workers whose servers die, come back, or misbehave."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from client_ha import (
    AsyncHAWorker,
    HAClient,
    HAWorker,
    JobContext,
    JobFailed,
    NoServerAvailable,
    Retry,
    Timing,
)
from client_ha.tasks import EXCEPTION_TEXT_BYTES_MAX, gives_back, raised
from cluster.wire.packets import (
    CANT_DO,
    ERROR,
    GIVE_BACK,
    GRAB_JOB_UNIQ,
    JOB_ASSIGN_UNIQ,
    NO_JOB,
    NOOP,
    PRE_SLEEP,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_FAIL,
    WORK_STATUS,
    WORK_WARNING,
)
from tests.client_ha.fake_server import FakeConnection, FakeServer, in_loop
from tests.support import WAIT_SECONDS, Node


class Gate:
    """A task that ends when the test says so, and tells when it began."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.free = asyncio.Semaphore(0)

    async def __call__(self, job: JobContext) -> bytes:
        self.begun.release()
        await self.free.acquire()
        return b"done " + job.payload


def make_worker(
    *servers: FakeServer, timing: Timing, concurrency: int = 1, **options: object
) -> tuple[AsyncHAWorker, Gate]:
    # Fakes leave grabs unanswered when a test is over: do not wait for them.
    options.setdefault("drain_seconds", 0.1)
    worker = AsyncHAWorker(
        [server.address for server in servers],
        timing=timing,
        concurrency=concurrency,
        **options,  # type: ignore[arg-type]
    )
    gate = Gate()

    @worker.task("f")
    async def f(job: JobContext) -> bytes:
        return await gate(job)

    return worker, gate


def assign(connection: FakeConnection, handle: bytes = b"H:1", payload: bytes = b"p") -> None:
    connection.send(JOB_ASSIGN_UNIQ, handle, b"f", b"u", payload)


async def sleeping(server: FakeServer) -> FakeConnection:
    """Answer grabs with NO_JOB until the worker sleeps."""
    while True:
        await server.until(lambda: server.heard)
        connection, packet_type, _ = server.heard.pop(0)
        if packet_type == PRE_SLEEP:
            return connection
        assert packet_type == GRAB_JOB_UNIQ
        connection.send(NO_JOB)


@in_loop
async def test_a_worker_registers_grabs_works_and_sleeps(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, client_id="w-1")
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assert (connection.client_id, connection.announced) == (b"w-1", [b"f"])
            assign(connection, payload=b"a\0b")
            await gate.begun.acquire()
            gate.free.release()
            _, arguments = await one.expect(WORK_COMPLETE)
            assert arguments == [b"H:1", b"done a\0b"]
            assert await sleeping(one) is connection
            connection.send(NOOP)
            await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)


@in_loop
async def test_a_worker_takes_part_on_every_server_also_one_down_at_the_start(
    quick: Timing,
) -> None:
    late = await FakeServer().start()
    await late.stop()
    async with FakeServer() as one, FakeServer() as two:
        worker, gate = make_worker(late, one, two, timing=quick)
        async with worker:
            await worker.wait_connected(2)
            for server in (one, two):
                await sleeping(server)
            await late.start()
            connection, _ = await late.expect(GRAB_JOB_UNIQ)
            assert connection.announced == [b"f"]
            assign(connection)
            await gate.begun.acquire()
            gate.free.release()
            await late.expect(WORK_COMPLETE)
    await late.stop()


@in_loop
async def test_a_worker_never_holds_more_jobs_than_it_has_room_for(patient: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        worker, gate = make_worker(one, two, timing=patient)
        async with worker:
            await worker.wait_connected(2)
            await one.until(lambda: one.heard or two.heard)
            first, second = (one, two) if one.heard else (two, one)
            connection, _ = await first.expect(GRAB_JOB_UNIQ)
            assign(connection)
            await gate.begun.acquire()
            assert second.heard == []  # its one slot is taken
            gate.free.release()
            await first.expect(WORK_COMPLETE)
            # And now it is the other server's turn, though the first may have more.
            connection, _ = await second.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)
            await second.expect(PRE_SLEEP)
            await first.expect(GRAB_JOB_UNIQ)


@in_loop
async def test_grabs_are_pipelined_while_jobs_come_and_never_beyond_the_free_slots(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, concurrency=4)
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assert one.heard == []
            assign(connection, b"H:1")
            await one.until(lambda: len(one.heard) == 2)
            assign(connection, b"H:2")
            await one.until(lambda: len(one.heard) == 3)
            assign(connection, b"H:3")
            assign(connection, b"H:4")
            for _ in range(4):
                await gate.begun.acquire()
            assert [packet for _, packet, _ in one.heard] == [GRAB_JOB_UNIQ] * 3
            for _ in range(4):
                gate.free.release()


@in_loop
async def test_a_job_outlives_its_connection_and_its_result_is_delivered_by_handle(quick: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=quick)
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            await gate.begun.acquire()
            await one.stop()
            gate.free.release()
            await one.start()
            connection, arguments = await one.expect(WORK_COMPLETE)  # before any grab
            assert arguments == [b"H:1", b"done p"]
            assert connection.announced == [b"f"]
            connection.send(ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
            await one.expect(GRAB_JOB_UNIQ)  # and life goes on


@in_loop
async def test_a_result_that_may_not_have_been_read_is_sent_again(quick: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=quick)
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            gate.free.release()
            await one.expect(WORK_COMPLETE)
            await one.expect(GRAB_JOB_UNIQ)
            connection.drop()  # the grab was not answered: nothing proves that the result was read
            connection, arguments = await one.expect(WORK_COMPLETE)
            assert arguments == [b"H:1", b"done p"]
            await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)
            await one.expect(PRE_SLEEP)


@in_loop
async def test_a_restarted_server_s_new_job_is_not_ended_by_an_old_one_of_its_handle(
    quick: Timing,
) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=quick, concurrency=2)
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:1", b"old")
            await gate.begun.acquire()
            connection.drop()
            await one.until(
                lambda: [c for c, packet, _ in one.heard if c is not connection and packet == GRAB_JOB_UNIQ]
            )
            connection = one.heard[-1][0]
            one.heard.clear()
            assign(connection, b"H:1", b"new")
            await gate.begun.acquire()
            gate.free.release()
            gate.free.release()
            await one.until(lambda: [a for _, p, a in one.heard if p == WORK_COMPLETE])
            results = [arguments for _, packet, arguments in one.heard if packet == WORK_COMPLETE]
            assert results == [[b"H:1", b"done new"]]


@in_loop
async def test_a_silent_server_does_not_keep_a_worker_from_the_others(quick: Timing) -> None:
    async with FakeServer() as mute, FakeServer() as one:
        mute.silent = True
        worker, gate = make_worker(mute, one, timing=quick)
        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            await gate.begun.acquire()
            gate.free.release()
            await one.until(lambda: any(packet == WORK_COMPLETE for _, packet, _ in one.heard))


@in_loop
async def test_a_sleeping_server_is_probed_and_asked_again_now_and_then(quick: Timing) -> None:
    async with FakeServer() as one:
        worker, _ = make_worker(one, timing=quick)
        async with worker:
            connection = await sleeping(one)
            await one.until(lambda: connection.echoes)
            again, _ = await one.expect(GRAB_JOB_UNIQ)  # no NOOP was sent
            assert again is connection


@in_loop
async def test_draining_finishes_what_runs_takes_back_idle_functions_and_leaves_idle_servers(
    patient: Timing,
) -> None:
    async with FakeServer() as one, FakeServer() as two:
        worker, gate = make_worker(one, two, timing=patient, concurrency=2, drain_seconds=10.0)

        @worker.task("g")
        async def g(job: JobContext) -> None: ...

        running = asyncio.create_task(worker.run())
        connection, _ = await one.expect(GRAB_JOB_UNIQ)
        await sleeping(two)
        assign(connection)
        await gate.begun.acquire()
        await sleeping(one)
        assert connection.announced == [b"f", b"g"]
        await worker.stop()
        await two.until(lambda: not two.connections)
        _, arguments = await one.expect(CANT_DO)
        assert arguments == [b"g"]
        connection.send(NOOP)  # not heeded
        gate.free.release()
        await one.expect(WORK_COMPLETE)
        await running
        assert one.heard == []
        assert one.accepted == two.accepted == 1


@in_loop
async def test_a_job_that_arrives_while_draining_is_done(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, drain_seconds=10.0)
        running = asyncio.create_task(worker.run())
        connection, _ = await one.expect(GRAB_JOB_UNIQ)
        await worker.stop()
        assign(connection)
        gate.free.release()
        await one.expect(WORK_COMPLETE)
        await running


@in_loop
async def test_draining_ends_after_its_time(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, drain_seconds=0.1)
        running = asyncio.create_task(worker.run())
        connection, _ = await one.expect(GRAB_JOB_UNIQ)
        assign(connection)
        await gate.begun.acquire()
        await worker.stop()
        await running
        await one.until(lambda: not one.connections)
        assert one.heard == []  # no result: the server gives the job to another worker


@in_loop
async def test_max_jobs_ends_the_worker_without_grabbing_more(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, concurrency=4, max_jobs=2, drain_seconds=10.0)
        running = asyncio.create_task(worker.run())
        connection, _ = await one.expect(GRAB_JOB_UNIQ)
        assign(connection, b"H:1")
        await one.expect(GRAB_JOB_UNIQ)
        assign(connection, b"H:2")
        for _ in range(2):
            await gate.begun.acquire()
            gate.free.release()
        await running
        assert [packet for _, packet, _ in one.heard] == [WORK_COMPLETE] * 2


@in_loop
async def test_a_job_is_given_back_only_when_no_other_runs_on_its_connection(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, gate = make_worker(one, timing=patient, concurrency=2)

        @worker.task("back")
        async def back(job: JobContext) -> bytes:
            returning.set()
            raise Retry("not now")

        returning = asyncio.Event()

        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:1")
            await gate.begun.acquire()
            await one.expect(GRAB_JOB_UNIQ)
            connection.send(JOB_ASSIGN_UNIQ, b"H:2", b"back", b"u", b"")
            await returning.wait()
            await asyncio.sleep(0)  # let its end be noticed
            connection.send(NOOP)  # nothing more is grabbed on this connection
            gate.free.release()
            _, arguments = await one.expect(WORK_COMPLETE)
            assert arguments[0] == b"H:1"
            await one.until(lambda: connection not in one.connections)
            other, _ = await one.expect(GRAB_JOB_UNIQ)
            assert other is not connection


@in_loop
async def test_a_node_that_knows_how_is_given_one_job_back_and_the_connection_stays(patient: Timing) -> None:
    async with FakeServer() as one:
        one.knows_gearfleet = True
        worker, gate = make_worker(one, timing=patient, concurrency=2)

        @worker.task("back")
        async def back(job: JobContext) -> bytes:
            raise Retry("not now", after=None if job.payload == b"" else float(job.payload))

        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:1")
            await gate.begun.acquire()
            for handle, after, milliseconds in [(b"H:2", b"", b""), (b"H:3", b"30", b"30000")]:
                await one.expect(GRAB_JOB_UNIQ)
                connection.send(JOB_ASSIGN_UNIQ, handle, b"back", b"u", after)
                _, arguments = await one.expect(GIVE_BACK)
                assert arguments == [handle, milliseconds]
            await one.expect(GRAB_JOB_UNIQ)
            gate.free.release()
            _, arguments = await one.expect(WORK_COMPLETE)
            assert arguments[0] == b"H:1"
            assert connection in one.connections


@in_loop
async def test_a_coroutine_over_its_time_is_cancelled_and_reported(patient: Timing) -> None:
    async with FakeServer() as one:
        worker, _ = make_worker(one, timing=patient)

        @worker.task("slow", timeout_seconds=1)
        async def slow(job: JobContext) -> bytes:
            await asyncio.Event().wait()
            return b""

        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assert connection.announced == [b"f", b"slow\x001000"]
            connection.send(JOB_ASSIGN_UNIQ, b"H:1", b"slow", b"u", b"")
            await one.until(lambda: any(packet == WORK_FAIL for _, packet, _ in one.heard))


WRONG_TYPE = b"TypeError: the task returned int; it must return bytes, str or None"


@pytest.mark.parametrize(
    ("behaviour", "packet", "arguments"),
    [
        (lambda job: b"bytes", WORK_COMPLETE, [b"H:1", b"bytes"]),
        (lambda job: "täxt", WORK_COMPLETE, [b"H:1", "täxt".encode()]),
        (lambda job: None, WORK_COMPLETE, [b"H:1", b""]),
        (lambda job: 5, WORK_EXCEPTION, [b"H:1", WRONG_TYPE]),
        (lambda job: [][0], WORK_EXCEPTION, [b"H:1", b"IndexError: list index out of range"]),
        (lambda job: _raise(JobFailed), WORK_FAIL, [b"H:1"]),
        (lambda job: _raise(SystemExit(1)), WORK_EXCEPTION, [b"H:1", b"SystemExit: 1"]),
    ],
)
def test_what_a_task_s_end_means_on_the_wire(
    behaviour: Callable[[JobContext], bytes], packet: int, arguments: list[bytes], patient: Timing
) -> None:
    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient)
            worker.task("f")(behaviour)
            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            assert (await one.expect(packet))[1] == arguments
            connection, _ = await one.expect(GRAB_JOB_UNIQ)  # one packet, and the thread is free again
            connection.send(NO_JOB)
            await asyncio.to_thread(worker.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_a_failure_s_text_goes_before_it_as_a_warning(patient: Timing) -> None:
    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient)
            worker.task("f")(lambda job: _raise(JobFailed("no paper")))
            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            assert (await one.expect(WORK_WARNING))[1] == [b"H:1", b"JobFailed: no paper\n"]
            assert (await one.expect(WORK_FAIL))[1] == [b"H:1"]
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)
            await asyncio.to_thread(worker.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def _raise(error: BaseException | type[BaseException]) -> bytes:
    raise error


class Unspeakable(BaseException):
    """An exception of which nothing can be shown."""

    def __str__(self) -> str:
        raise self

    __repr__ = __str__


class HiddenName(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("no name")


class Nameless(Exception, metaclass=HiddenName):
    @property
    def __class__(self) -> type:
        raise ValueError("no class")

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise ValueError("no class")


class Unprepared(Retry):
    def __init__(self) -> None:
        pass  # and so without `after`


class Interrupting(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Unreadable(JobFailed):
    __str__ = Unspeakable.__str__


class Unencodable:
    """A result that pretends to be text."""

    @property
    def __class__(self) -> type:
        raise Unspeakable

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise Unspeakable


@pytest.fixture
def broken_log() -> Iterator[None]:
    """A program whose own handling of log lines raises."""

    def refuse(_: logging.LogRecord) -> bool:
        raise Unspeakable

    logger = logging.getLogger("client_ha")
    logger.addFilter(refuse)
    yield
    logger.removeFilter(refuse)


LONG_TEXT = b"ValueError: " + b"x" * (EXCEPTION_TEXT_BYTES_MAX - 12)
BAD_ENDS = pytest.mark.parametrize(
    ("behaviour", "packet", "arguments"),
    [
        (lambda: _raise(Unspeakable()), WORK_EXCEPTION, [b"H:1", b"Unspeakable"]),
        (lambda: _raise(Nameless()), WORK_EXCEPTION, [b"H:1", b"Nameless"]),
        (lambda: _raise(Unreadable()), WORK_FAIL, [b"H:1"]),
        (lambda: _raise(asyncio.CancelledError()), WORK_EXCEPTION, [b"H:1", b"CancelledError"]),
        (lambda: _raise(SystemExit(3)), WORK_EXCEPTION, [b"H:1", b"SystemExit: 3"]),
        (lambda: _raise(GeneratorExit()), WORK_EXCEPTION, [b"H:1", b"GeneratorExit"]),
        (lambda: _raise(KeyboardInterrupt()), WORK_EXCEPTION, [b"H:1", b"KeyboardInterrupt"]),
        (lambda: _raise(Interrupting()), WORK_EXCEPTION, [b"H:1", b"Interrupting"]),
        (
            lambda: _raise(ValueError("x" * 100_000)),
            WORK_EXCEPTION,
            [b"H:1", LONG_TEXT],
        ),
        (lambda: "\ud800", WORK_EXCEPTION, None),
        (lambda: Unencodable(), WORK_EXCEPTION, [b"H:1", b"Unspeakable"]),
    ],
)


@BAD_ENDS
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_job_ends_and_its_slot_is_free_whatever_its_task_does(
    behaviour: Callable[[], bytes],
    packet: int,
    arguments: list[bytes] | None,
    asynchronous: bool,
    patient: Timing,
    broken_log: None,
) -> None:
    async def served(worker_address: FakeServer) -> None:
        connection, _ = await worker_address.expect(GRAB_JOB_UNIQ)
        assign(connection)
        heard = (await worker_address.expect(packet))[1]
        assert arguments is None or heard == arguments
        connection, _ = await worker_address.expect(GRAB_JOB_UNIQ)
        connection.send(NO_JOB)

    async def in_coroutine(job: JobContext) -> bytes:
        return behaviour()

    async def scenario() -> None:
        async with FakeServer() as one:
            if asynchronous:
                worker = AsyncHAWorker(one.address, timing=patient)
                worker.task("f")(in_coroutine)
                async with worker:
                    await served(one)
            else:
                threads = HAWorker(one.address, timing=patient)
                threads.task("f")(lambda job: behaviour())
                threads.start()
                await served(one)
                await asyncio.to_thread(threads.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_a_retry_of_one_s_own_class_gives_the_job_back() -> None:
    assert gives_back(raised(b"H:1", b"f", Unprepared()))


def test_a_function_whose_name_is_no_text_may_raise(patient: Timing) -> None:
    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient)
            worker.task(b"\xff")(lambda job: _raise(ValueError("no")))
            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            connection.send(JOB_ASSIGN_UNIQ, b"H:1", b"\xff", b"u", b"p")
            assert (await one.expect(WORK_EXCEPTION))[1] == [b"H:1", b"ValueError: no"]
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)
            await asyncio.to_thread(worker.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_tasks_run_in_threads_and_report_from_any_of_them(patient: Timing) -> None:
    both = threading.Barrier(2)

    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient, concurrency=2)

            @worker.task("f")
            def f(job: JobContext) -> str:
                both.wait(10)  # only passes when two tasks run at once
                if job.payload == b"reports":
                    reporter = threading.Thread(target=lambda: job.progress(1, 3))
                    reporter.start()
                    reporter.join()
                    job.send_data("d\0ata")
                    job.warn(b"careful")
                return f"{job.function} {job.unique} {job.text} {job.server == one.address} {job.stopping}"

            with_reports, without = b"reports", b"plain"
            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:1", with_reports)
            await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:2", without)
            await one.until(lambda: len([1 for _, packet, _ in one.heard if packet == WORK_COMPLETE]) == 2)
            told = [
                (packet, arguments)
                for _, packet, arguments in one.heard
                if arguments and arguments[0] == b"H:1"
            ]
            assert told == [
                (WORK_STATUS, [b"H:1", b"1", b"3"]),
                (WORK_DATA, [b"H:1", b"d\0ata"]),
                (WORK_WARNING, [b"H:1", b"careful"]),
                (WORK_COMPLETE, [b"H:1", b"f u reports True False"]),
            ]
            connection.send(NO_JOB)
            connection.send(NO_JOB)
            await asyncio.to_thread(worker.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_a_worker_without_any_server_says_which_it_waits_for(quick: Timing) -> None:
    worker = HAWorker("127.0.0.1:1", timing=quick)
    worker.task("f")(lambda job: b"")
    with worker, pytest.raises(NoServerAvailable, match=r"127\.0\.0\.1:1: not connected"):
        worker.wait_connected(timeout=0.1)


def test_stop_in_a_task_does_not_wait_for_itself(patient: Timing) -> None:
    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient)

            @worker.task("f")
            def f(job: JobContext) -> None:
                worker.stop()

            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection)
            await one.expect(WORK_COMPLETE)
            await one.until(lambda: not one.connections)
            await asyncio.to_thread(worker.stop)

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_a_worker_says_what_it_takes_and_how_each_job_ended(
    patient: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with FakeServer() as one:
            worker = HAWorker(one.address, timing=patient)
            worker.task("f")(lambda job: _raise(JobFailed("no paper")) if job.payload else b"")
            for number in range(30):
                worker.task(f"g{number}")(lambda job: b"")
            worker.start()
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:1", b"")
            await one.expect(WORK_COMPLETE)
            await one.expect(GRAB_JOB_UNIQ)
            assign(connection, b"H:2", b"p")
            await one.expect(WORK_WARNING)
            await one.expect(WORK_FAIL)
            await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)
            await asyncio.to_thread(worker.stop)

    with caplog.at_level(logging.INFO, "client_ha"):
        asyncio.run(asyncio.wait_for(scenario(), 15))
    said = [record.getMessage() for record in caplog.records]
    assert f"worker {os.getpid()} takes jobs of f, g0, " in said[0]
    assert "g18 and 11 more, 1 at a time, from 127.0.0.1:" in said[0]
    assert [line.partition(" in ")[0] for line in said if " in 0." in line] == ["f H:1 done", "f H:2 failed"]


SCRIPT = """
import logging, sys
from client_ha import HAWorker
if "own" in sys.argv:
    logging.basicConfig(level=logging.WARNING)
worker = HAWorker(sys.argv[1], max_jobs=1)

@worker.task("scripted")
def scripted(job):
    return "well"

worker.run()
assert not logging.getLogger("client_ha").handlers
"""


@pytest.mark.parametrize("own_logging", [False, True])
def test_a_script_shows_its_worker_s_log_unless_it_has_set_up_logging(
    shared_node: Node, own_logging: bool
) -> None:
    with HAClient(shared_node.address) as client:
        job = client.submit("scripted")
        script = [sys.executable, "-c", SCRIPT, shared_node.address, *(["own"] if own_logging else [])]
        ended = subprocess.run(script, capture_output=True, timeout=WAIT_SECONDS, check=True, text=True)
        assert job.result(timeout=WAIT_SECONDS) == b"well"
    if own_logging:
        assert ended.stderr == ""
    else:
        greeting, *_, done = ended.stderr.splitlines()
        assert "takes jobs of scripted, 1 at a time, from " in greeting
        assert f"INFO scripted {job.handle} done in 0." in done
