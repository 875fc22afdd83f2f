"""The port: four paths, two methods, and nothing that a stranger sends holds it up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cluster.http import HttpPort
from cluster.http.port import (
    CONNECTIONS_MAX,
    HEADER_BYTES_MAX,
    REQUEST_BYTES_MAX,
    REQUEST_LINE_BYTES_MAX,
)
from cluster.server.errors import StartError
from cluster.server.status import FunctionStatus, Phase
from tests.http.support import STATUS, Told, close, exchange, get, samples
from tests.support import WAIT_SECONDS

Scenario = Callable[[HttpPort, Told], Awaitable[None]]


def with_port(scenario: Scenario, told: Told | None = None, **options: float) -> None:
    async def run() -> None:
        source = told or Told()
        port = HttpPort(source, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
        await port.start()
        try:
            await scenario(port, source)
        finally:
            await port.close()

    asyncio.run(run())


def test_healthz_and_readyz_answer_in_json() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, headers, body = await get(port.port, "/healthz")
        assert (status, json.loads(body)) == (200, {"healthy": True, "node": "a"})
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        assert headers["connection"] == "close"
        status, _, body = await get(port.port, "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "node": "a"})

        told.node = replace(STATUS, phase=Phase.DRAINING)
        assert (await get(port.port, "/healthz"))[0] == 200
        status, _, body = await get(port.port, "/readyz")
        said = json.loads(body)
        assert (status, said["ready"]) == (503, False)
        assert said["reason"].startswith("the node drains")

        told.node = replace(STATUS, turn_age_seconds=3600.0)
        assert (await get(port.port, "/healthz"))[0] == 503

    with_port(scenario)


def test_the_first_page_lists_the_others() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, headers, body = await get(port.port, "/")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        for path in (b"/healthz", b"/readyz", b"/metrics", b"node a"):
            assert path in body

    with_port(scenario)


def test_metrics_are_in_prometheus_text_format() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        told.functions = [FunctionStatus(b"resize", 3, 0, 0, 1)]
        status, headers, body = await get(port.port, "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert samples(body.decode())["gearfleet_workers", (("function", "resize"),)] == 1

    with_port(scenario)


def test_many_scrapes_at_once_cost_one() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        bodies = await asyncio.gather(*(get(port.port, "/metrics") for _ in range(20)))
        assert {status for status, _, _ in bodies} == {200}
        assert told.asked < 20

    with_port(scenario)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_head_is_get_without_the_body(path: str) -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, headers, body = await get(port.port, path)
        assert await get(port.port, path, "HEAD") == (status, {**headers}, b"")
        assert int(headers["content-length"]) == len(body)

    with_port(scenario)


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/metrics/", "//", "/../../etc/passwd", "/%2e%2e/etc/passwd", "/healthz/..", "/static/x"],
)
def test_every_other_path_is_not_found(path: str) -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, _, body = await get(port.port, path)
        assert status == 404
        assert b"/readyz" in body, "it says what there is"

    with_port(scenario)


def test_who_ends_its_input_is_answered_and_who_asked_nothing_is_closed() -> None:
    async def said_to(port: HttpPort, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(WAIT_SECONDS):
            said = await reader.read()
        writer.close()
        await writer.wait_closed()
        return said

    async def scenario(port: HttpPort, told: Told) -> None:
        # As `nc -N` does, and health checkers that only connect
        for path in (b"/healthz", b"/metrics"):
            said = await said_to(port, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 200")
        assert await said_to(port, b"") == b""

    with_port(scenario)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_get_and_head(method: str) -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, headers, _ = await get(port.port, "/metrics", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")

    with_port(scenario)


def test_a_body_is_refused_unread() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        status, headers, _ = await get(port.port, "/", "GET", "Content-Length: 1000000000")
        assert (status, headers["connection"]) == (413, "close")
        status, _, _ = await get(port.port, "/", "GET", "Transfer-Encoding: chunked")
        assert status == 413

    with_port(scenario)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\0REQ\0\0\0\x10\0\0\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * REQUEST_LINE_BYTES_MAX + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (HEADER_BYTES_MAX + 1) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: aaaaaaaaaa\r\n" * (REQUEST_BYTES_MAX // 15 + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_served(data: bytes) -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        answer = await exchange(port.port, data)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
        assert (await get(port.port, "/healthz"))[0] == 200

    with_port(scenario)


def test_a_second_request_on_one_connection_is_not_served() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        one = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
        assert (await exchange(port.port, one + one)).count(b"HTTP/1.1 200") == 1

    with_port(scenario)


@pytest.mark.parametrize("said", [b"", b"GET /healthz HT", b"GET / HTTP/1.1\r\nX: "])
def test_a_peer_that_says_too_little_is_let_go(said: bytes) -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        assert await exchange(port.port, said) == b""

    with_port(scenario, connection_seconds_max=0.05)


def test_too_many_connections_cost_the_oldest_not_the_newest() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port.port) for _ in range(CONNECTIONS_MAX)]
        assert (await get(port.port, "/healthz"))[0] == 200
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(silent[0][0].readexactly(1), WAIT_SECONDS)
        for _, writer in silent:
            await close(writer)

    with_port(scenario)


def test_a_port_in_use_is_an_error_that_names_the_option() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        other = HttpPort(told, "127.0.0.1", port.port)
        with pytest.raises(StartError, match="--http-port"):
            await other.start()
        await other.close()

    with_port(scenario)


def test_an_address_that_is_none_is_an_error_that_names_the_option() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        with pytest.raises(StartError, match="--http-host"):
            await HttpPort(told, "256.1.1.1", 0).start()

    with_port(scenario)


def test_closing_lets_go_of_everyone() -> None:
    async def scenario(port: HttpPort, told: Told) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"GET /")
        assert (await get(port.port, "/"))[0] == 200
        await port.close()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), WAIT_SECONDS)
        await close(writer)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port.port)

    with_port(scenario)
