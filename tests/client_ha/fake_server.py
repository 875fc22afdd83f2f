"""A Gearman server whose every answer the test decides: for what a real one will not do on command."""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Callable, Coroutine
from typing import Any
from zlib import crc32

from cluster.wire import EXTENSION_PACKETS, PACKETS, Decoder, response, split_arguments
from cluster.wire.packets import (
    CAN_DO,
    CAN_DO_TIMEOUT,
    ECHO_REQ,
    ECHO_RES,
    ERROR,
    GET_MAP,
    MAP_RES,
    OPTION_GEARFLEET,
    OPTION_GIVE_BACK,
    OPTION_REQ,
    OPTION_RES,
    SET_CLIENT_ID,
)

SCENARIO_SECONDS = 10.0


def in_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test; one that hangs fails."""

    @functools.wraps(scenario)
    def run(*arguments: Any, **fixtures: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(SCENARIO_SECONDS):
                await scenario(*arguments, **fixtures)

        asyncio.run(bounded())

    return run


class FakeConnection(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self.announced: list[bytes] = []
        self.client_id = b""
        self.echoes = 0
        self.options: list[bytes] = []
        self.follows_map = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.accepted += 1
        self._server.connections.append(self)
        if self._server.hangs_up:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.remove(self)
        self._server.changed()

    def data_received(self, data: bytes) -> None:
        for packet_type, body in self._decoder.feed(data):
            if packet_type == ECHO_REQ:
                self.echoes += 1
                if not self._server.silent:
                    self.send(ECHO_RES, body)
            elif packet_type == OPTION_REQ:
                self.options.append(body)
                if self._server.silent:
                    pass
                elif body in (OPTION_GEARFLEET, OPTION_GIVE_BACK) and not self._server.knows_gearfleet:
                    self.send(ERROR, b"UNKNOWN_OPTION", b"Server does not recognize given option")
                elif self._server.knows_options:
                    self.send(OPTION_RES, body)
                else:
                    self.send(ERROR, b"INVALID_COMMAND", b"Command not expected")
            elif packet_type == GET_MAP and OPTION_GEARFLEET in self.options:
                self.follows_map = True
                self.tell_map()
            elif packet_type == SET_CLIENT_ID:
                self.client_id = body
            elif packet_type in (CAN_DO, CAN_DO_TIMEOUT):
                self.announced.append(body)
            else:
                arguments = split_arguments(packet_type, body)
                self._server.heard.append((self, packet_type, arguments))
            self._server.changed()

    def send(self, packet_type: int, *arguments: bytes) -> None:
        assert self._transport is not None
        self._transport.write(response(packet_type, *arguments))

    def tell_map(self) -> None:
        """Send the map, should there be one and the connection have asked."""
        if self.follows_map and self._server.map is not None:
            self.send(MAP_RES, json.dumps(self._server.map).encode())

    def drop(self) -> None:
        assert self._transport is not None
        self._transport.abort()


class FakeServer:
    """Answers echoes, options and questions for the map by itself; everything else is the test's."""

    def __init__(self) -> None:
        self.port = 0
        self.silent = False  # reads, answers nothing
        self.hangs_up = False  # accepts, and closes at once
        self.knows_options = True
        self.knows_gearfleet = False  # a node, and not a stock server
        self.map: dict[str, Any] | None = None
        self.tls: ssl.SSLContext | None = None
        self.accepted = 0
        self.connections: list[FakeConnection] = []
        self.heard: list[tuple[FakeConnection, int, list[bytes]]] = []
        self._listener: asyncio.Server | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> FakeServer:
        """Listen; on the same port as before when it was started before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: FakeConnection(self), "127.0.0.1", self.port, ssl=self.tls
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Die: no listener, no connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self.connections):
            connection.drop()
        await self.until(lambda: not self.connections)

    async def __aenter__(self) -> FakeServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; looked at whenever anything arrives or a connection ends."""
        while not condition():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    async def expect(self, packet_type: int) -> tuple[FakeConnection, list[bytes]]:
        """Wait for the next packet, which must be of this type."""
        await self.until(lambda: self.heard)
        connection, got, arguments = self.heard.pop(0)
        names = PACKETS | EXTENSION_PACKETS
        assert got == packet_type, f"expected {names[packet_type].name}, got {names[got].name}{arguments!r}"
        return connection, arguments


class FakeFleet:
    """Fake nodes with one map, which the test writes. The nodes are called a, b, c ..."""

    def __init__(self, count: int, fleet: str = "fleet", slots: int = 4) -> None:
        self.nodes = [FakeServer() for _ in range(count)]
        self.states = ["up"] * count
        self.names = [chr(ord("a") + number) for number in range(count)]
        self.hosts = ["127.0.0.1"] * count
        self.members = list(range(count))  # who is in the map
        self.fleet = fleet
        self.revision = 1
        self.primaries = [number % count for number in range(slots)]
        self.names_itself = True
        for node in self.nodes:
            node.knows_gearfleet = True

    @property
    def addresses(self) -> str:
        return ",".join(node.address for node in self.nodes)

    async def __aenter__(self) -> FakeFleet:
        for node in self.nodes:
            await node.start()
        self._draw()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.stop()

    def _draw(self) -> None:
        nodes = [
            {
                "name": self.names[number],
                "host": self.hosts[number],
                "port": self.nodes[number].port,
                "state": self.states[number],
                "zone": "",
            }
            for number in self.members
        ]
        index = {number: place for place, number in enumerate(self.members)}
        for number, node in enumerate(self.nodes):
            node.map = {
                "revision": self.revision,
                "fleet": self.fleet,
                "slots": len(self.primaries),
                "nodes": nodes,
                "primaries": [index.get(primary, -1) for primary in self.primaries],
            }
            if self.names_itself:
                node.map["self"] = self.names[number]

    def tell(self) -> None:
        """Every node sends the next revision of the map as it is written now."""
        self.revision += 1
        self._draw()
        for node in self.nodes:
            for connection in node.connections:
                connection.tell_map()

    def key(self, slot: int, function: bytes = b"f") -> str:
        """A unique key of this slot."""
        mask = len(self.primaries) - 1
        keys = (f"key-{number}" for number in range(10_000))
        return next(key for key in keys if crc32(function + b"\0" + key.encode()) & mask == slot)
