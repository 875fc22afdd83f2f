"""What is recorded of calls and runs: exactly one answer to each call, in the order in which it was heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from client_ha import AsyncHAClient, JobContext, JobFailed
from cluster.drill.history import History, Kind
from cluster.drill.recorded import Recorder
from cluster.wire.packets import ERROR, JOB_CREATED, SUBMIT_JOB, SUBMIT_JOB_HIGH_BG, WORK_COMPLETE, WORK_FAIL
from tests.client_ha.fake_server import FakeServer, in_loop


@asynccontextmanager
async def calls() -> AsyncIterator[tuple[Recorder, AsyncHAClient, FakeServer]]:
    """Who records, a client, and the server whose answers the test gives."""
    server = await FakeServer().start()
    history = History()
    try:
        async with AsyncHAClient(server.address, submit_timeout=0.3) as client:
            yield Recorder(history, lambda address: f"node of {address}"), client, server
    finally:
        await server.stop()


def told(recorder: Recorder) -> list[tuple[Kind, str]]:
    """What the history has, shortly."""
    return [
        (event.kind, event.key or event.handle or event.text.partition(":")[0])
        for event in recorder.history.events
    ]


@in_loop
async def test_an_acknowledged_job_is_recorded_with_its_handle_and_node() -> None:
    async with calls() as (recorder, client, server):
        call = asyncio.create_task(recorder.background(client, "f", "k", b"p", priority="high", order=3))
        connection, arguments = await server.expect(SUBMIT_JOB_HIGH_BG)
        assert arguments == [b"f", b"k", b"p"]
        assert len(recorder.under_way) == 1
        connection.send(JOB_CREATED, b"H:x:1")
        job = await call
        assert job is not None
        assert told(recorder) == [(Kind.SUBMIT, "f/k"), (Kind.ACK, "H:x:1")]
        assert not recorder.history.events[0].foreground
        submit, ack = recorder.history.events
        assert (submit.priority, submit.order, submit.call) == ("high", 3, ack.call)
        assert ack.node == f"node of {server.address}"
        assert not recorder.under_way


@in_loop
async def test_of_a_refused_job_nobody_knows_as_an_earlier_attempt_may_have_been_taken() -> None:
    async with calls() as (recorder, client, server):
        call = asyncio.create_task(recorder.background(client, "f", "k", b"", priority="high"))
        connection, _ = await server.expect(SUBMIT_JOB_HIGH_BG)
        connection.send(ERROR, b"INVALID_ARGUMENT", b"no")
        assert await call is None
        assert told(recorder) == [(Kind.SUBMIT, "f/k"), (Kind.UNKNOWN, "ServerRefused")]
        assert not recorder.under_way


@in_loop
async def test_of_a_job_whose_caller_ended_nobody_knows() -> None:
    async with calls() as (recorder, client, server):
        calling = [
            asyncio.create_task(recorder.background(client, "f", "a", b"", priority="high")),
            asyncio.create_task(recorder.foreground(client, "f", "b", b"", timeout_seconds=5)),
        ]
        await server.expect(SUBMIT_JOB_HIGH_BG)
        await server.expect(SUBMIT_JOB)
        for call in calling:
            call.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
        assert told(recorder)[2:] == [(Kind.UNKNOWN, "its caller ended")] * 2
        assert not recorder.under_way


@in_loop
async def test_who_is_killed_gives_up_all_calls_at_once() -> None:
    async with calls() as (recorder, client, server):
        call = asyncio.create_task(recorder.foreground(client, "f", "k", b"", timeout_seconds=5))
        await server.expect(SUBMIT_JOB)
        recorder.give_up("killed")
        assert told(recorder) == [(Kind.SUBMIT, "f/k"), (Kind.UNKNOWN, "killed")]
        assert not recorder.under_way
        call.cancel()


@in_loop
async def test_a_foreground_call_is_acknowledged_before_it_ends() -> None:
    async with calls() as (recorder, client, server):
        acknowledged = asyncio.Event()
        call = asyncio.create_task(
            recorder.foreground(client, "f", "k", b"p", timeout_seconds=5, told=acknowledged.set)
        )
        connection, _ = await server.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:x:1")
        await acknowledged.wait()
        assert told(recorder) == [(Kind.SUBMIT, "f/k"), (Kind.ACK, "H:x:1")]
        connection.send(WORK_COMPLETE, b"H:x:1", b"r")
        assert await call == b"r"
        assert told(recorder)[2:] == [(Kind.RESULT, "")]
        assert not recorder.under_way


@in_loop
async def test_a_foreground_call_whose_node_died_is_acknowledged_again_and_may_fail() -> None:
    async with calls() as (recorder, client, server):
        acknowledged = asyncio.Event()
        call = asyncio.create_task(
            recorder.foreground(client, "f", "k", b"p", timeout_seconds=5, told=acknowledged.set)
        )
        connection, _ = await server.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:x:1")
        await acknowledged.wait()
        connection.drop()
        connection, _ = await server.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:y:1")
        connection.send(WORK_FAIL, b"H:y:1")
        assert isinstance(await call, JobFailed)
        kinds = [(Kind.SUBMIT, "f/k"), (Kind.ACK, "H:x:1"), (Kind.ACK, "H:y:1"), (Kind.RESULT, "JobFailed")]
        assert told(recorder) == kinds
        assert recorder.history.events[0].foreground


class Given:
    """What a worker is given."""

    function = "f"
    unique = "k"
    handle = "H:x:1"
    server = "s:1"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (None, Kind.DONE),
        (JobFailed(), Kind.FAILED),
        (ZeroDivisionError(), Kind.FAILED),
        (asyncio.CancelledError(), Kind.ABANDONED),
    ],
)
def test_the_end_of_a_run_tells_how_it_ended(raised: BaseException | None, kind: Kind) -> None:
    recorder = Recorder(History(), {"s:1": "a"}.__getitem__)
    if raised is None:
        with recorder.run(cast(JobContext, Given()), "w"):
            pass
    else:
        with pytest.raises(type(raised)), recorder.run(cast(JobContext, Given()), "w"):
            raise raised
    assert [
        (event.kind, event.key, event.worker, event.handle, event.node) for event in recorder.history.events
    ] == [
        (Kind.RUN, "f/k", "w", "H:x:1", "a"),
        (kind, "f/k", "w", "H:x:1", "a"),
    ]
