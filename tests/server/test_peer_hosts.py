"""Where the port for other nodes listens when nobody has said so."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from cluster.server.peer_hosts import LOOPBACK, peer_hosts
from cluster.server.settings import load_settings


def hosts(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]] | None = None, **given: str
) -> list[str]:
    """Listened on, and why it is everywhere; names have these addresses."""
    known = found or {}

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 0, 0, "", (address, port)) for address in known[host]]

    async def ask() -> tuple[str, str]:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return await peer_hosts(load_settings(given))

    chosen, why = asyncio.run(ask())
    return [*chosen.split(","), why]


def test_what_was_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosts(monkeypatch, peer_host="0.0.0.0", advertise="127.0.0.2") == ["0.0.0.0", ""]
    assert hosts(monkeypatch, host="127.0.0.3", advertise="127.0.0.2") == ["127.0.0.3", ""]


def test_else_it_is_the_advertised_address_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    *chosen, why = hosts(monkeypatch, host="0.0.0.0", advertise="127.0.0.2")
    assert chosen[:2] == ["127.0.0.2", LOOPBACK[0]]
    assert why == ""
    *chosen, why = hosts(monkeypatch, {"localhost": ["127.0.0.1"]}, host="0.0.0.0", advertise="localhost")
    assert chosen[0] == "127.0.0.1"
    assert set(chosen) <= set(LOOPBACK)


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        ({}, "node-1 has no address yet"),
        ({"node-1": ["192.0.2.1"]}, r"node-1 (192.0.2.1) is no address of this machine"),
        ({"node-1": ["127.0.1.1"]}, "node-1 is 127.0.1.1 on this machine"),
    ],
)
def test_where_others_come_by_a_way_that_is_not_seen_from_here_it_is_everywhere(
    monkeypatch: pytest.MonkeyPatch, addresses: dict[str, list[str]], reason: str
) -> None:
    assert hosts(monkeypatch, addresses, host="0.0.0.0", advertise="node-1") == ["0.0.0.0", reason]


def test_a_start_does_not_wait_for_a_resolver_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.server.peer_hosts.RESOLVE_SECONDS", 0.01)

    async def ask() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", lambda *_, **__: loop.create_future())
        return await peer_hosts(load_settings({"host": "0.0.0.0", "advertise": "node-1"}))

    assert asyncio.run(ask()) == ("0.0.0.0", "node-1 has no address yet")
