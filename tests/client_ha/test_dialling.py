"""Names with several addresses, some of which are dead."""

from __future__ import annotations

import asyncio
import socket

import pytest

from client_ha import AsyncHAClient, AsyncHAWorker, HAClient, HAWorker, JobContext, NoServerAvailable, Timing
from client_ha.dialling import AddressInfo, attempt_seconds, first_connected, in_turns
from tests.client_ha.fake_server import FakeServer, in_loop
from tests.client_ha.test_failover import turns_until
from tests.support import WAIT_SECONDS, Node
from tests.support.dead_address import DEAD, dead_first_address


def test_a_dead_first_address_costs_a_moment(shared_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_first_address(shared_node.port, monkeypatch) as name:
        address = f"{name}:{shared_node.port}"
        worker = HAWorker(address)
        worker.task("dialled")(lambda job: job.payload[::-1])
        with worker, HAClient(address) as client:
            worker.wait_connected(timeout=WAIT_SECONDS)
            assert client.submit("dialled", "ab").result(timeout=WAIT_SECONDS) == b"ba"


@in_loop
async def test_a_dead_first_address_costs_coroutines_a_moment(
    shared_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reverse(job: JobContext) -> bytes:
        return job.payload[::-1]

    with dead_first_address(shared_node.port, monkeypatch) as name:
        address = f"{name}:{shared_node.port}"
        worker = AsyncHAWorker(address)
        worker.task("dialled in a loop")(reverse)
        async with worker, AsyncHAClient(address) as client:
            assert await (await client.submit("dialled in a loop", "ab")).result(WAIT_SECONDS) == b"ba"


@in_loop
async def test_an_address_that_takes_connections_and_is_silent_is_left_for_the_next(
    quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a name whose first address is a process that stands still: its kernel still accepts
    async with FakeServer() as alive:
        alive_seen = asyncio.get_running_loop().create_server(asyncio.Protocol, DEAD, alive.port)
        async with await alive_seen:
            found = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, alive.port))
                for host in (DEAD, "127.0.0.1")
            ]
            real = socket.getaddrinfo
            monkeypatch.setattr(
                socket,
                "getaddrinfo",
                lambda host, *a, **o: found if host == "name.example" else real(host, *a, **o),
            )
            # When the silence has been noticed
            async with AsyncHAClient(f"name.example:{alive.port}", timing=quick) as client:
                await client.submit("f")
                # Then the other address is used
                await alive.until(lambda: alive.heard)


def test_all_addresses_are_named_when_none_answers(quick: Timing, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with (
            dead_first_address(port, monkeypatch) as name,
            HAClient(f"{name}:{port}", timing=Timing(connect_seconds=0.3), submit_timeout=1.0) as client,
            pytest.raises(
                NoServerAvailable, match=r"127\.0\.0\.1: connection refused; 127\.0\.0\.2: no connection"
            ),
        ):
            client.submit("f", background=True)


@in_loop
async def test_what_connects_second_is_let_go() -> None:
    let_go: list[str] = []
    begun = asyncio.Event()

    async def connect(host: str) -> str:
        if host == "slow":
            try:
                await begun.wait()
            except asyncio.CancelledError:
                return host  # it was connected in this very moment
        return host

    assert await first_connected(["slow", "quick"], connect, let_go.append, limit_seconds=0.03) == "quick"
    await turns_until(lambda: let_go == ["slow"])


def info(family: int, host: str) -> AddressInfo:
    return (family, socket.SOCK_STREAM, 6, "", (host, 1))


def test_families_are_tried_by_turns_and_no_address_twice() -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    found = [
        info(six, "::1"),
        info(six, "::2"),
        info(six, "::1"),
        info(four, "1"),
        info(four, "2"),
        info(four, "3"),
    ]
    assert [i[4][0] for i in in_turns(found)] == ["::1", "1", "::2", "2", "3"]


def test_every_address_has_its_turn_within_the_limit() -> None:
    assert attempt_seconds(2, 2.0) == 0.25
    assert attempt_seconds(50, 2.0) * 50 < 2.0
