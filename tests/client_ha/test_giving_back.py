"""Retry at a real node: one job goes back, its connection and the others stay."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from client_ha import AsyncHAWorker, HAClient, HAWorker, JobContext, Retry, Timing
from client_ha.errors import RETRY_AFTER_SECONDS_MAX
from client_ha.tasks import gives_back, raised
from cluster.wire import split_arguments
from cluster.wire.packets import (
    GIVE_BACK,
    GRAB_JOB_UNIQ,
    JOB_ASSIGN_UNIQ,
    NO_JOB,
    OPTION_GIVE_BACK,
    OPTION_RES,
)
from tests.client_ha.fake_server import FakeServer
from tests.support import WAIT_SECONDS, Node

StartNode = Callable[..., Node]


def test_a_job_comes_back_after_the_time_asked_for_and_the_others_go_on(
    start_node: StartNode, patient: Timing
) -> None:
    node = start_node(durability="memory")
    worker = HAWorker(node.address, concurrency=2, timing=patient)
    tries: list[float] = []
    come_back = threading.Event()

    @worker.task("later")
    def later(job: JobContext) -> str:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise Retry("not now", after=1.5)
        come_back.set()
        return "now"

    @worker.task("long")
    def long(job: JobContext) -> str:
        return "through" if come_back.wait(WAIT_SECONDS) else "waited in vain"

    with worker, HAClient(node.address, timing=patient) as client:
        # Given a job that runs until another has been given back and has come again
        through = client.submit("long")
        again = client.submit("later")
        # Then both end, the one after its time, the other where it began
        assert again.result(timeout=WAIT_SECONDS) == b"now"
        assert through.result(timeout=WAIT_SECONDS) == b"through"
    assert 1.4 <= tries[1] - tries[0] <= 10
    assert worker.stats.jobs == 3  # the long one ran once


class Spiteful(float):
    """A number that cannot be asked, nor shown."""

    def __eq__(self, _: object) -> bool:
        raise SystemExit

    __repr__ = __hash__ = None  # type: ignore[assignment]


class Silent(Retry):
    """A class of the user's own that raises where its pause is looked up."""

    def __init__(self) -> None: ...

    @property
    def after(self) -> float | None:  # type: ignore[override]
        raise SystemExit


def pause_of(error: BaseException) -> bytes:
    packet = raised(b"H:1", b"later", error)
    assert gives_back(packet)
    handle, milliseconds = split_arguments(GIVE_BACK, packet[12:])
    assert handle == b"H:1"
    return milliseconds


@pytest.mark.parametrize(
    ("after", "milliseconds"),
    [(None, b""), (0, b"0"), (0.25, b"250"), (30, b"30000"), (RETRY_AFTER_SECONDS_MAX, b"86400000")],
)
def test_a_pause_that_can_be_granted_is_told_to_the_server(
    after: float | None, milliseconds: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "client_ha"):
        assert pause_of(Retry("not now", after=after)) == milliseconds
    assert not caplog.messages


@pytest.mark.parametrize(
    ("after", "milliseconds", "done"),
    [
        (-0.1, b"0", "after=-0.1): taken as 0; it is 0 to 86400 seconds"),
        (float("-inf"), b"0", "after=-inf): taken as 0;"),
        (86_400.5, b"86400000", "after=86400.5): taken as 86400;"),
        (1e12, b"86400000", "after=1000000000000.0): taken as 86400;"),
        (10**5000, b"86400000", "after=<int>): taken as 86400;"),
        (float("inf"), b"86400000", "after=inf): taken as 86400;"),
        (float("nan"), b"", "after=nan): no number of seconds, so the server decides"),
        ("5", b"", "after='5'): no number of seconds"),
        (timedelta(seconds=5), b"", "no number of seconds"),
        ([], b"", "after=[]): no number of seconds"),
        (Spiteful(5), b"", "after=<Spiteful>): no number of seconds"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_wish_to_retry_never_fails_its_job_whatever_pause_it_asks_for(
    after: Any, milliseconds: bytes, done: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "client_ha"):
        assert pause_of(Retry("not now", after=after)) == milliseconds
    (line,) = caplog.messages
    assert line.startswith("later H:1 asks for Retry(")
    assert done in line


def test_a_class_of_one_s_own_that_raises_where_it_is_asked_gives_the_job_back() -> None:
    assert pause_of(Silent()) == b""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_worker_gives_a_job_back_whose_pause_is_out_of_range(asynchronous: bool, patient: Timing) -> None:
    async def served(server: FakeServer) -> None:
        connection, _ = await server.expect(GRAB_JOB_UNIQ)
        connection.send(OPTION_RES, OPTION_GIVE_BACK)
        connection.send(JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p")
        assert (await server.expect(GIVE_BACK))[1] == [b"H:1", b"86400000"]
        connection, _ = await server.expect(GRAB_JOB_UNIQ)
        connection.send(NO_JOB)

    def f(job: JobContext) -> bytes:
        raise Retry("not now", after=1e12)

    async def in_coroutine(job: JobContext) -> bytes:
        return f(job)

    async def scenario() -> None:
        async with FakeServer() as one:
            if asynchronous:
                worker = AsyncHAWorker(one.address, timing=patient)
                worker.task("f")(in_coroutine)
                async with worker:
                    await served(one)
            else:
                threads = HAWorker(one.address, timing=patient)
                threads.task("f")(f)
                threads.start()
                await served(one)
                await asyncio.to_thread(threads.stop)

    asyncio.run(asyncio.wait_for(scenario(), WAIT_SECONDS))
