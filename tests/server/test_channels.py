"""Nodes and the commands for a fleet reach a host by whichever of its addresses answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.server import channels


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address that takes no connection and refuses none: its row of waiting connections is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()


def reach(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> str:
    async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
        return [(socket.AF_INET, address) for address in addresses]

    monkeypatch.setattr(channels, "resolve", resolve)

    async def run() -> str:
        async with asyncio.timeout(20):
            return await channels.connect("node", 4731)

    return asyncio.run(run())


def refusing() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address: tuple[str, int] = closed.getsockname()
    return address


def test_a_silent_or_refusing_address_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, silent: tuple[str, int]
) -> None:
    port = listener.getsockname()[1]
    reached = reach(monkeypatch, silent, refusing(), listener.getsockname())
    assert reached == f"ipv4:127.0.0.1:{port}"


def test_refused_is_only_what_all_addresses_refuse(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[str, int]
) -> None:
    with pytest.raises(ConnectionRefusedError):
        reach(monkeypatch, refusing(), refusing())


def test_a_name_without_an_address_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="node has no address"):
        reach(monkeypatch)
