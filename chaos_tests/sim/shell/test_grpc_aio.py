"""The simulated gRPC does what the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

import cluster.server  # noqa: F401  (sets gRPC up before it is used)
from chaos_tests.sim.shell.kernel import World

Told = list[str]
NOBODY = "127.0.0.1:1"


async def told(awaited: Awaitable[Any], seconds: float = 2.0) -> str:
    """What came of it, in words."""
    try:
        async with asyncio.timeout(seconds):
            result = await awaited
    except grpc.aio.AioRpcError as error:
        details = error.details() or ""
        return f"{error.code().name} {details.partition(';')[0]}"
    except BaseException as error:
        return f"{type(error).__name__} {error}"
    return "EOF" if result is grpc.aio.EOF else repr(result)


async def a_moment() -> None:
    await asyncio.sleep(0.1)


async def talk(_: object, context: Any) -> None:
    """Says what it hears; some words mean more."""
    while (data := await context.read()) is not grpc.aio.EOF:
        if data == b"abort":
            await context.write(b"1")
            await context.write(b"2")
            context.set_code(grpc.StatusCode.ABORTED)
            context.set_details("enough")
            return
        if data == b"end":
            await context.write(b"bye")
            return
        if data == b"raise":
            raise ValueError("x")
        if data == b"refuse":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no")
        if data == b"hang":
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                heard.append("handler cancelled")
                raise
        await context.write(data)


async def twice(request: bytes, context: Any) -> bytes:
    return request * 2


async def count(request: bytes, context: Any) -> None:
    for number in range(int(request)):
        await context.write(b"%d" % number)


heard: Told = []
HANDLER = grpc.method_handlers_generic_handler(
    "s",
    {
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Twice": grpc.unary_unary_rpc_method_handler(twice),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    },
)


@asynccontextmanager
async def served() -> AsyncIterator[Any]:
    """A channel to a server."""
    server = grpc.aio.server(handlers=(HANDLER,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
    channel.of_test = server
    yield channel
    await channel.close()
    await server.stop(None)


async def how_streams_end() -> Told:
    async with served() as channel:
        found = []
        call = channel.stream_stream("/s/Talk")()
        found += [await told(call.write(b"hello")), await told(call.read())]
        for last in (b"abort", b"end", b"raise", b"refuse"):
            call = channel.stream_stream("/s/Talk")()
            await call.write(last)
            await a_moment()
            found += [await told(call.read()) for _ in range(4)]
            found += [await told(call.write(b"more")), str(call.done()), str(call.cancel())]
        return found


async def how_calls_are_cancelled() -> Told:
    async with served() as channel:
        found = []
        call = channel.stream_stream("/s/Talk")()
        await call.write(b"hang")
        reading = asyncio.create_task(call.read())
        await a_moment()
        found += [str(call.cancel()), await told(reading)]
        await a_moment()
        found += [await told(call.read()), await told(call.write(b"more")), str(call.cancel())]
        call = channel.stream_stream("/s/Talk")()
        await call.write(b"hang")
        reading = asyncio.create_task(call.read())
        await a_moment()
        reading.cancel()
        found += [await told(reading), str(call.done())]
        call = channel.stream_stream("/s/Talk")(timeout=0.2)
        await call.write(b"hang")
        found += [await told(call.read())]
        call = channel.stream_stream("/s/Talk")()
        await call.write(b"hang")
        reading = asyncio.create_task(call.read())
        await a_moment()
        await channel.close()
        found += [await told(reading)]
        await a_moment()
        try:
            channel.unary_unary("/s/Twice")(b"")
        except grpc.aio.UsageError as error:
            found.append(str(error))
        return found


async def calls_of_one_request() -> Told:
    async with served() as channel:
        found = [await told(channel.unary_unary("/s/Twice")(b"ab", timeout=1))]
        found += [await told(channel.unary_unary("/s/Thrice")(b"ab", timeout=1))]
        call = channel.unary_stream("/s/Count")(b"3")
        found += [await told(call.read()) for _ in range(5)]
        return found


async def a_server_that_stops() -> Told:
    async with served() as channel:
        call = channel.stream_stream("/s/Talk")()
        await call.write(b"hang")
        reading = asyncio.create_task(call.read())
        await a_moment()
        await channel.of_test.stop(None)
        return [(await told(reading)).partition(" ")[0]]


async def nobody_there() -> Told:
    channel = grpc.aio.insecure_channel(NOBODY, options=[("grpc.enable_http_proxy", 0)])
    call = channel.stream_stream("/s/Talk")()
    found = [await told(call.write(b"x")), await told(call.read())]
    found += [await told(channel.unary_unary("/s/Twice")(b"x", timeout=1))]
    await channel.close()
    return found


async def a_server_that_does_not_read() -> Told:
    async with served() as channel:
        call = channel.stream_stream("/s/Talk")()
        await call.write(b"hang")
        written = 0
        while (answer := await told(call.write(bytes(1_000_000)), 1.0)) == "None":
            written += 1
        return [str(1 <= written < 20), answer.partition(" ")[0], str(call.done())]


def really(scenario: Callable[[], Awaitable[Told]]) -> Told:
    heard.clear()

    async def whole() -> Told:
        return await scenario()

    return asyncio.run(whole()) + heard


def simulated(scenario: Callable[[], Awaitable[Told]], seed: int) -> Told:
    heard.clear()
    world = World(seed)
    found: Told = []

    async def whole() -> None:
        found.extend(await scenario())

    with world.installed():
        host = world.host("h")
        host.address = "127.0.0.1"
        task = world.process(host).spawn(whole())
        assert world.run_until(task.done, 60.0)
    return found + heard


@pytest.mark.parametrize(
    "scenario",
    [
        how_streams_end,
        how_calls_are_cancelled,
        calls_of_one_request,
        a_server_that_stops,
        nobody_there,
        a_server_that_does_not_read,
    ],
)
def test_a_call_ends_as_in_real_grpc(scenario: Callable[[], Awaitable[Told]]) -> None:
    expected = really(scenario)
    for seed in range(10):
        assert simulated(scenario, seed) == expected
