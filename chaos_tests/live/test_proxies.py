"""Each toxic does to a link what it says: against a server that echoes."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from chaos_tests.live.proofs import are_poisoned
from chaos_tests.live.proxies import (
    BOTH,
    Link,
    Proxies,
    Toxic,
    bandwidth,
    black_hole,
    latency,
    limit_data,
    reset_peer,
    slicer,
    slow_close,
    timeout,
)
from chaos_tests.live.toxiproxy import MISSING, find_server

pytestmark = pytest.mark.skipif(find_server() is None, reason=MISSING)

QUIET_SECONDS = 0.3


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


@pytest.fixture
def link() -> Iterator[Link]:
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server,
        Proxies() as proxies,
    ):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxies.link("client>echo", ("127.0.0.1", server.server_address[1]))
        server.shutdown()


@pytest.fixture
def client(link: Link) -> Iterator[socket.socket]:
    with socket.create_connection(link.address, timeout=5) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        yield connection


def echo(client: socket.socket, data: bytes = b"again") -> float:
    """Send and get it back; the seconds that it took."""
    begun = time.monotonic()
    client.sendall(data)
    got = b""
    while len(got) < len(data):
        piece = client.recv(65536)
        assert piece, "the connection was closed"
        got += piece
    assert got == data
    return time.monotonic() - begun


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(QUIET_SECONDS)
    try:
        return not client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)


def test_latency_delays_each_direction_by_itself(link: Link, client: socket.socket) -> None:
    with link.poisoned(latency(200), "upstream"):
        assert 0.2 <= echo(client) < 0.4
    with link.poisoned(latency(200)):
        assert echo(client) >= 0.4
    assert echo(client) < 0.2


def test_bandwidth_lets_only_so_much_through(link: Link, client: socket.socket) -> None:
    with link.poisoned(bandwidth(20), "downstream"):
        assert echo(client, bytes(10_000)) > 0.3


def test_a_black_hole_swallows_without_a_word_and_breaks_the_connection_when_it_ends(
    link: Link, client: socket.socket
) -> None:
    with link.poisoned(black_hole(), "upstream"):
        client.sendall(b"lost")
        assert hears_nothing(client)
    assert client.recv(1) == b""
    with socket.create_connection(link.address, timeout=5) as fresh:
        echo(fresh)


def test_timeout_swallows_and_then_breaks(link: Link, client: socket.socket) -> None:
    with link.poisoned(timeout(100)):
        client.sendall(b"lost")
        assert client.recv(1) == b""


def test_reset_peer_resets_new_connections_and_ends_old_ones(link: Link, client: socket.socket) -> None:
    with link.poisoned(reset_peer()):
        client.sendall(b"again")
        assert client.recv(5) == b""
        with socket.create_connection(link.address, timeout=5) as fresh:
            fresh.sendall(b"hello")
            with pytest.raises(ConnectionResetError):
                fresh.recv(5)


def test_a_slicer_makes_crumbs(link: Link, client: socket.socket) -> None:
    with link.poisoned(slicer(10, delay_us=1000), "downstream"):
        client.sendall(bytes(1000))
        assert 1 <= len(client.recv(1000)) < 1000


def test_limit_data_breaks_a_connection_after_so_many_bytes(link: Link) -> None:
    with link.poisoned(limit_data(100), "upstream"), socket.create_connection(link.address) as client:
        echo(client, bytes(60))
        client.sendall(bytes(100))
        got = b""
        while piece := client.recv(1000):
            got += piece
        assert len(got) <= 40


def test_slow_close_tells_the_end_late(link: Link, client: socket.socket) -> None:
    with link.poisoned(slow_close(300), "downstream"):
        begun = time.monotonic()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        assert time.monotonic() - begun > 0.25


@pytest.mark.parametrize(
    "toxic",
    [
        latency(200, jitter_ms=50),
        bandwidth(20),
        black_hole(),
        timeout(100),
        reset_peer(100),
        slicer(20, delay_us=500),
        limit_data(100),
        slow_close(300),
    ],
    ids=lambda it: it.kind,
)
def test_whether_a_toxic_is_in_force_shows(link: Link, toxic: Toxic) -> None:
    with link.poisoned(toxic):
        are_poisoned([(link, "node")], toxic, BOTH)
    with pytest.raises(AssertionError, match="not in force"):
        are_poisoned([(link, "node")], toxic, BOTH)


def test_down_breaks_and_refuses_until_it_is_up_again(link: Link, client: socket.socket) -> None:
    link.down()
    assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(link.address)
    link.heal()
    with socket.create_connection(link.address, timeout=5) as fresh:
        echo(fresh)
