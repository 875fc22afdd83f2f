"""What cluster/server uses of grpc.aio, over a world's network: channels, calls, a server.

Messages between the two sides of a connection, as tuples:

    ("open", call, path, metadata, request)     request: bytes of a call with one request, else None
    ("data", call, bytes)                       either way, in order
    ("room", call, size)                        so many bytes of `data` have been read
    ("half", call)                              the client writes no more
    ("cancel", call)                            the client wants no answer any more
    ("end", call, code, details)                the server's last word
    ("ping",) ("pong",)                         the server's keep-alive

A write returns when the transport has taken the message: at once, while less than WINDOW_BYTES are unread.
test_grpc_aio.py asks real gRPC and this the same, and gets the same answers.

A Channel and a Server belong to the process whose callback makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio

from chaos_tests.sim.shell.kernel import Process, SimLoop, World

WINDOW_BYTES: Final = 4 * 1024 * 1024
CONNECT_SECONDS: Final = 20.0
CANCEL_SECONDS: Final = 0.0005
_FINISHED: Final = "RPC already finished."
_TARGET: Final = re.compile(r"(?:ipv4:)?(.*):(\d+)")
_OK: Final = grpc.StatusCode.OK


class CallDetails(NamedTuple):
    """grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: tuple[Any, ...]


def _process() -> Process:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop.process


class _Side:
    """One side of one call: what has come and is not read, what was sent and is not read there."""

    def __init__(self, process: Process, number: int) -> None:
        self._process = process
        self._number = number
        self._end: Any = None  # of the connection
        self._inbox: deque[bytes] = deque()
        self._unread = 0  # bytes that the other side has not read
        self._read_bytes = 0  # that the other side has not been told of
        self._waiters: list[asyncio.Future[None]] = []

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _something(self) -> None:
        """Wait until the call is told something."""
        waiter: asyncio.Future[None] = self._process.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def came(self, data: bytes) -> None:
        self._inbox.append(data)
        self._wake()

    def room(self, size: int) -> None:
        self._unread -= size
        self._wake()

    def _take(self) -> bytes:
        data = self._inbox.popleft()
        self._read_bytes += len(data)
        if self._read_bytes >= WINDOW_BYTES // 4:
            self._end.send(("room", self._number, self._read_bytes))
            self._read_bytes = 0
        return data

    def _send(self, data: bytes) -> None:
        self._unread += len(data)
        self._end.send(("data", self._number, data), len(data))


# ---- the client's side


class Call(_Side):
    """A call of any kind, from the client's side."""

    def __init__(
        self,
        channel: Channel,
        path: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
        request: bytes | None,
        timeout: float | None,
        metadata: Any,
    ) -> None:
        process = channel.process
        super().__init__(process, process.world.number())
        self.path = path
        self.request = request
        self.metadata = tuple(metadata or ())
        self._channel = channel
        self._serialize = serializer or bytes
        self._deserialize = deserializer or bytes
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._cancelled_here = False
        self._begun = False
        self._begun_or_failed: asyncio.Future[None] = process.loop.create_future()
        self._deadline = None if timeout is None else process.loop.call_later(timeout, self._expire)
        channel.begin(self)

    # What the channel tells.

    def connected(self, end: Any) -> None:
        self._end = end
        self._begun = True
        end.send(("open", self._number, self.path, self.metadata, self.request), len(self.request or b""))
        self._begun_or_failed.set_result(None)

    def ended(self, code: grpc.StatusCode, details: str, *, at_once: bool = False) -> None:
        """Over: behind what has come, or at once."""
        if self._status is not None:
            return
        self._status = code, details
        self._channel.forget(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if at_once:
            self._inbox.clear()
        # Who cancels while there is no connection does not wake who waits to write: so it is in grpc.aio.
        if not self._cancelled_here and not self._begun_or_failed.done():
            self._begun_or_failed.set_result(None)
        self._wake()

    def _expire(self) -> None:
        self._leave(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _leave(self, code: grpc.StatusCode, details: str) -> None:
        if self._begun and self._status is None:
            self._end.send(("cancel", self._number))
        self.ended(code, details, at_once=True)

    # What grpc.aio's calls have.

    @property
    def number(self) -> int:
        return self._number

    def done(self) -> bool:
        return self._status is not None and not self._inbox

    def cancel(self) -> bool:
        if self._status is not None:
            return False
        self._cancelled_here = True
        self._leave(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    async def write(self, message: Any) -> None:
        if self.done():
            raise asyncio.InvalidStateError(_FINISHED)
        data = self._serialize(message)
        try:
            if not self._begun:
                await asyncio.shield(self._begun_or_failed)
            while self._status is None and self._unread >= WINDOW_BYTES:
                await self._something()
            if self._status is None:
                self._send(data)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._status is not None:
            self._raise_for_status()

    async def read(self) -> Any:
        try:
            while not self._inbox and self._status is None:
                await self._something()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._inbox:
            return self._deserialize(self._take())
        self._raise_for_status()
        return grpc.aio.EOF

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        """Of a call with one answer."""
        try:
            while self._status is None:
                await self._something()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        return self._deserialize(self._inbox[0])

    def _raise_for_status(self) -> None:
        if self._cancelled_here:
            raise asyncio.CancelledError
        assert self._status is not None
        code, details = self._status
        if code is not _OK:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, empty, empty, details=details)


class Channel:
    """To one address; connects when it is needed, and waits between attempts that failed."""

    def __init__(self, target: str, options: Sequence[tuple[str, Any]] | None = None) -> None:
        match = _TARGET.fullmatch(target)
        assert match is not None, target
        self.process = _process()
        self._host, self._port = match[1], int(match[2])
        chosen = dict(options or ())
        self._backoff_first = chosen.get("grpc.initial_reconnect_backoff_ms", 1000) / 1000
        self._backoff_max = chosen.get("grpc.max_reconnect_backoff_ms", 120_000) / 1000
        self._connect_seconds = chosen.get("grpc.min_reconnect_backoff_ms", CONNECT_SECONDS * 1000) / 1000
        self._backoff = self._backoff_first
        self._not_before = 0.0
        self._why = ""
        self._end: Any = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: dict[int, Call] = {}
        self._calls: dict[int, Call] = {}
        self._idle = asyncio.Event()
        self._closed = False

    def unary_unary(self, path: str, serializer: Any = None, deserializer: Any = None, **more: Any) -> Any:
        return self._method(path, serializer, deserializer, **more)

    unary_stream = unary_unary

    def stream_stream(self, path: str, serializer: Any = None, deserializer: Any = None, **more: Any) -> Any:
        return self._method(path, serializer, deserializer, streams=True, **more)

    def _method(
        self,
        path: str,
        serializer: Any,
        deserializer: Any,
        *,
        streams: bool = False,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> Callable[..., Call]:
        serializer, deserializer = serializer or request_serializer, deserializer or response_deserializer

        def call(request: Any = None, *, timeout: float | None = None, metadata: Any = None) -> Call:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            data = None if streams else (serializer or bytes)(request)
            return Call(self, path, serializer, deserializer, data, timeout, metadata)

        return call

    # ---- for calls

    def begin(self, call: Call) -> None:
        loop = self.process.loop
        if self._end is not None:
            self._calls[call.number] = call
            loop.call_soon(self._begin_now, call)
        elif self._connecting is None and loop.time() < self._not_before:
            loop.call_soon(call.ended, grpc.StatusCode.UNAVAILABLE, self._why)
        else:
            self._waiting[call.number] = call
            if self._connecting is None:
                self._connecting = loop.create_task(self._connect())

    def _begin_now(self, call: Call) -> None:
        if call.number not in self._calls:
            return
        if self._end is None:
            call.ended(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        else:
            call.connected(self._end)

    def forget(self, call: Call) -> None:
        self._waiting.pop(call.number, None)
        self._calls.pop(call.number, None)
        if not self._calls:
            self._idle.set()

    async def _connect(self) -> None:
        world, loop = self.process.world, self.process.loop
        end: Any = None
        began_at = loop.time()
        reason = "connection attempt timed out"
        try:
            async with asyncio.timeout(self._connect_seconds):
                end = await world.network.connect(self.process, self._host, self._port)
        except TimeoutError:
            pass
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            self._connecting = None
        waiting, self._waiting = self._waiting, {}
        if end is not None and not end.gone:
            self._end, self._backoff = end, self._backoff_first
            end.listen(self._heard, self._lost)
            for call in waiting.values():
                self._calls[call.number] = call
                call.connected(end)
            return
        self._why = f"failed to connect to all addresses; last error: UNKNOWN: {self._host}: {reason}"
        self._not_before = began_at + self._backoff * self.process.dice.uniform(0.8, 1.2)
        self._backoff = min(self._backoff * 1.6, self._backoff_max)
        for call in waiting.values():
            call.ended(grpc.StatusCode.UNAVAILABLE, self._why)

    def _heard(self, message: Any) -> None:
        kind = message[0]
        if kind == "ping":
            self._end.send(("pong",))
            return
        call = self._calls.get(message[1])
        if call is None:
            return
        if kind == "data":
            call.came(message[2])
        elif kind == "room":
            call.room(message[2])
        else:
            call.ended(message[2], message[3])

    def _lost(self, error: Exception | None) -> None:
        self._end = None
        for call in list(self._calls.values()):
            call.ended(grpc.StatusCode.UNAVAILABLE, str(error or "Socket closed"), at_once=True)

    async def close(self, grace: float | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        if grace and self._calls:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
        for call in [*self._waiting.values(), *self._calls.values()]:
            call.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._end is not None:
            end, self._end = self._end, None
            end.close()


# ---- the server's side


class _Abort(Exception):
    """The handler has said how its call ends."""


class Context(_Side):
    """A call, from the server's side: what grpc.aio's handlers are given."""

    def __init__(self, connection: _Connection, number: int, metadata: Any) -> None:
        super().__init__(connection.server.process, number)
        self._end = connection.end
        self._metadata = metadata
        self._half = False  # the client writes no more
        self._over = False
        self.code = _OK
        self.details = ""
        self.serialize: Callable[[Any], bytes] = bytes
        self.deserialize: Callable[[bytes], Any] = bytes
        self.task: asyncio.Task[None] | None = None

    def half_closed(self) -> None:
        self._half = True
        self._wake()

    def is_over(self) -> None:
        """The client has left, or the connection is lost. Who reads may be told so before it is cancelled."""
        if self._over:
            return
        self._over = True
        assert self.task is not None
        if self._process.dice.random() < 0.5:
            self.half_closed()
            self._process.loop.call_later(CANCEL_SECONDS, self.task.cancel)
        else:
            self.task.cancel()

    def peer(self) -> str:
        return "ipv4:{}:{}".format(*self._end.remote)

    def invocation_metadata(self) -> Any:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        self.code, self.details = code, details
        raise _Abort

    async def read(self) -> Any:
        while not self._inbox and not self._half:
            if self._over:
                raise asyncio.CancelledError
            await self._something()
        return self.deserialize(self._take()) if self._inbox else grpc.aio.EOF

    async def write(self, message: Any) -> None:
        if self._over:
            raise asyncio.CancelledError
        data = self.serialize(message)
        while self._unread >= WINDOW_BYTES:
            await self._something()
        self._send(data)
        await asyncio.sleep(0)

    def finish(self) -> None:
        if not self._over:
            self._over = True
            self._end.send(("end", self._number, self.code, self.details))


class Server:
    """grpc.aio.server."""

    def __init__(
        self,
        handlers: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] | None = None,
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        chosen = dict(options or ())
        self.process = _process()
        self.keepalive_seconds = chosen.get("grpc.keepalive_time_ms", 0) / 1000
        self.calls = 0
        self.calls_max = maximum_concurrent_rpcs
        self.connections: dict[_Connection, None] = {}
        self._handlers = handlers
        self._listener: Any = None
        self._started = False
        self._early: list[Any] = []

    def add_insecure_port(self, address: str) -> int:
        match = _TARGET.fullmatch(address)
        assert match is not None, address
        try:
            network = self.process.world.network
            self._listener = network.listen(self.process, int(match[2]), self._accept)
        except OSError as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error}") from None
        return int(self._listener.port)

    async def start(self) -> None:
        self._started = True
        for end in self._early:
            _Connection(self, end)

    def _accept(self, end: Any) -> None:
        if self._started:
            _Connection(self, end)
        else:
            self._early.append(end)

    def find(self, path: str, metadata: Any) -> Any:
        details = CallDetails(path, metadata)
        found = (handler.service(details) for handler in self._handlers)
        return next((method for method in found if method is not None), None)

    async def stop(self, grace: float | None) -> None:
        """Without grace: all calls end at once."""
        assert not grace, "not simulated"
        if self._listener is not None:
            self._listener.close()
        tasks = [task for connection in list(self.connections) for task in connection.stop()]
        if tasks:
            await asyncio.wait(tasks)


class _Connection:
    """One client's connection to a server."""

    def __init__(self, server: Server, end: Any) -> None:
        self.server = server
        self.end = end
        self._contexts: dict[int, Context] = {}
        self._heard_at = server.process.loop.time()
        self._lost_already = False
        server.connections[self] = None
        end.listen(self._heard, self._lost)
        if end.gone:
            self._lost(None)
        elif server.keepalive_seconds:
            server.process.loop.call_later(server.keepalive_seconds, self._ping)

    def __hash__(self) -> int:
        return int(self.end.number)

    def _ping(self) -> None:
        seconds = self.server.keepalive_seconds
        if self._lost_already:
            return
        if self.server.process.loop.time() - self._heard_at > 2 * seconds:
            self.end.abort()
            self._lost(None)
            return
        self.end.send(("ping",))
        self.server.process.loop.call_later(seconds, self._ping)

    def _heard(self, message: Any) -> None:
        self._heard_at = self.server.process.loop.time()
        kind = message[0]
        if kind == "open":
            self._open(*message[1:])
            return
        context = self._contexts.get(message[1]) if len(message) > 1 else None
        if context is None:
            return
        if kind == "data":
            context.came(message[2])
        elif kind == "room":
            context.room(message[2])
        elif kind == "half":
            context.half_closed()
        elif kind == "cancel":
            context.is_over()

    def _open(self, number: int, path: str, metadata: Any, request: bytes | None) -> None:
        server = self.server
        method = server.find(path, metadata)
        if method is None:
            self.end.send(("end", number, grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
            return
        if server.calls_max is not None and server.calls >= server.calls_max:
            details = "Concurrent RPC limit exceeded!"
            self.end.send(("end", number, grpc.StatusCode.RESOURCE_EXHAUSTED, details))
            return
        context = self._contexts[number] = Context(self, number, metadata)
        context.serialize = method.response_serializer or bytes
        context.deserialize = method.request_deserializer or bytes
        server.calls += 1
        context.task = server.process.loop.create_task(self._serve(method, number, context, request))

    async def _serve(self, method: Any, number: int, context: Context, request: bytes | None) -> None:
        try:
            if method.request_streaming:
                await method.stream_stream(None, context)
            else:
                assert request is not None
                asked = context.deserialize(request)
                if method.response_streaming:
                    await method.unary_stream(asked, context)
                else:
                    answer = await method.unary_unary(asked, context)
                    await context.write(answer)
        except _Abort:
            pass
        except asyncio.CancelledError:
            context.code, context.details = grpc.StatusCode.UNAVAILABLE, "Cancelling all calls"
        except Exception as error:
            context.code = grpc.StatusCode.UNKNOWN
            context.details = f"Unexpected {type(error)}: {error}"
        finally:
            self.server.calls -= 1
            self._contexts.pop(number, None)
            context.finish()

    def _lost(self, error: Exception | None) -> None:
        if self._lost_already:
            return
        self._lost_already = True
        self.server.connections.pop(self, None)
        for context in list(self._contexts.values()):
            context.is_over()

    def stop(self) -> list[asyncio.Task[None]]:
        tasks = []
        for context in list(self._contexts.values()):
            assert context.task is not None
            context.task.cancel()
            tasks.append(context.task)

        def gone(_: object = None) -> None:
            with contextlib.suppress(Exception):
                self.end.close()
            self._lost(None)

        if tasks:
            self.server.process.loop.create_task(_after(tasks, gone))
        else:
            gone()
        return tasks


async def _after(tasks: Sequence[asyncio.Task[None]], then: Callable[[], None]) -> None:
    await asyncio.wait(tasks)
    then()


def names(world: World) -> list[tuple[str, str, Any]]:
    """For replaced.py."""
    return [("grpc.aio", "server", Server), ("grpc.aio", "insecure_channel", Channel)]
