"""What is listened on: all addresses of a name, and both families without one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.server.listening import listening_sockets
from tests.support import Node, Peer, needs_root
from tests.support.machine import NEEDS, need_command

StartNode = Callable[..., Node]
NAME = "two-addresses.test"
TWO_ADDRESSES = ("127.0.0.1", "127.0.0.2")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason=f"{NEEDS}IPv6")


def with_hosts(directory: Path, *lines: str) -> list[str]:
    """A command that runs another one with an /etc/hosts of its own."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{line}\n" for line in lines))
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return [need_command("unshare"), "--mount", "sh", "-c", script, str(hosts)]


@needs_root()
def test_a_name_is_listened_on_at_all_its_addresses(start_node: StartNode, tmp_path: Path) -> None:
    # Given a name with two addresses
    prefix = with_hosts(tmp_path, *(f"{address} {NAME}" for address in TWO_ADDRESSES))
    # When a node listens on it
    node = start_node("--http-port", "0", prefix=prefix, host=NAME, durability="memory")
    http_port = node.wait_for_event("http listening")["port"]
    # Then it answers at both, at one port, for jobs as for health checks
    for address in TWO_ADDRESSES:
        with Peer(address, node.port) as peer:
            assert peer.line("version").startswith("OK ")
        with socket.create_connection((address, http_port), timeout=10) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
    assert node.terminate() == 0


@needs_ipv6
def test_without_a_host_both_families_are_listened_on(start_node: StartNode) -> None:
    # The default
    node = start_node("--http-port", "0", host="::", durability="memory")
    http_port = node.wait_for_event("http listening")["port"]
    for address in ("127.0.0.1", "::1"):
        with Peer(address, node.port) as peer:
            # An IPv4 peer is shown as one
            assert any(f" {address} " in row for row in peer.table("workers"))
        socket.create_connection((address, http_port), timeout=10).close()


def test_an_address_that_the_machine_does_not_have_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a name with one that is of no interface here, and one twice, as /etc/hosts often has it
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("192.0.2.1", "127.0.0.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    (sock,) = listening_sockets(NAME, 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    # But with no other, that is what is wrong
    del found[1:]
    with pytest.raises(OSError, match="assign requested address") as problem:
        listening_sockets(NAME, 0)
    assert problem.value.errno == errno.EADDRNOTAVAIL


def test_one_address_in_use_is_an_error_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((TWO_ADDRESSES[1], 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in TWO_ADDRESSES]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(OSError, match=rf"in use: {TWO_ADDRESSES[1]}"):
            listening_sockets(NAME, port)


def test_where_there_is_no_ipv6_everywhere_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ipv6(family: int, *arguments: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments)

    real = socket.socket
    monkeypatch.setattr(socket, "socket", without_ipv6)
    (sock,) = listening_sockets("::", 0)
    with sock:
        assert sock.getsockname()[0] == "0.0.0.0"
