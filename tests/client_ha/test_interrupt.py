"""Ctrl-C ends a worker of coroutines; what a task does to itself ends its job and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from client_ha import AsyncHAWorker, JobContext, Timing
from client_ha.interrupt import is_interrupt
from cluster.wire.packets import GRAB_JOB_UNIQ, JOB_ASSIGN_UNIQ, NO_JOB, WORK_EXCEPTION
from tests.client_ha.fake_server import FakeServer, in_loop
from tests.support import WAIT_SECONDS


@pytest.fixture(autouse=True)
def python_s_own_handler() -> Iterator[None]:
    """SIGINT as in a program that a terminal started: shells have it ignored in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def work(server: FakeServer, timing: Timing, interrupts: int) -> None:
    """A worker whose task is interrupted so often by Ctrl-C, and then never ends."""
    worker = AsyncHAWorker(server.address, timing=timing)

    @worker.task("f")
    async def f(job: JobContext) -> bytes:
        for _ in range(interrupts):
            signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        return b""

    async def give_a_job() -> None:
        connection, _ = await server.expect(GRAB_JOB_UNIQ)
        connection.send(JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p")

    giving = asyncio.ensure_future(give_a_job())
    await worker.run()
    await giving


def failed(server: FakeServer) -> bool:
    return any(packet_type == WORK_EXCEPTION for _, packet_type, _ in server.heard)


@pytest.mark.parametrize("interrupts", [1, 2])
def test_ctrl_c_ends_asyncio_run_and_the_job_is_the_server_s_again(interrupts: int, quick: Timing) -> None:
    server = FakeServer()

    async def scenario() -> None:
        async with server, asyncio.timeout(WAIT_SECONDS):
            await work(server, quick, interrupts)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(scenario())
    assert not failed(server)


def test_ctrl_c_ends_a_loop_that_is_run_in_another_way(quick: Timing) -> None:
    server = FakeServer()

    async def scenario() -> None:
        async with server, asyncio.timeout(WAIT_SECONDS):
            await work(server, quick, 1)

    loop = asyncio.new_event_loop()
    main = loop.create_task(scenario())
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main)
    finally:
        main.cancel()
        loop.run_until_complete(asyncio.gather(main, return_exceptions=True))
        loop.close()
    assert not failed(server)


@in_loop
async def test_a_task_that_cancels_itself_ends_its_job_and_frees_its_slot(patient: Timing) -> None:
    async with FakeServer() as one:
        worker = AsyncHAWorker(one.address, timing=patient)

        @worker.task("f")
        async def f(job: JobContext) -> bytes:
            own = asyncio.current_task()
            assert own is not None
            own.cancel()
            await asyncio.Event().wait()
            return b""

        async with worker:
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            connection.send(JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p")
            assert (await one.expect(WORK_EXCEPTION))[1] == [b"H:1", b"CancelledError"]
            connection, _ = await one.expect(GRAB_JOB_UNIQ)
            connection.send(NO_JOB)


def test_without_a_loop_s_handler_a_keyboard_interrupt_is_ctrl_c() -> None:
    assert is_interrupt(KeyboardInterrupt())
    assert not is_interrupt(SystemExit())


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_where_no_handler_raises_it_is_somebody_s_own(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    assert not is_interrupt(KeyboardInterrupt())
