"""Who changed something, or was refused, is in the log with the address; but nobody can fill the log."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from cluster.node.events import Command
from cluster.server.line_limit import LINES_PER_SECOND_MAX
from cluster.server.stranger_log import StrangerLog
from tests.support import Node, Peer, eventually
from tests.support.etcd import Certificates, make_certificates

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


def lines(node: Node, event: str) -> list[dict[str, Any]]:
    return [each for each in node.log_events if each.get("event") == event]


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("maxqueue f 10", "OK"),
        ("MAXQUEUE f", "OK"),
        ("create function g", "OK"),
        ("drop function f", "OK"),
    ],
)
def test_a_change_is_logged_with_who_made_it(start_node: StartNode, command: str, reply: str) -> None:
    node = start_node()
    with Peer(node.host, node.port) as peer:
        peer.line("create function f")
        assert peer.line(command) == reply
        eventually(lambda: any(line["command"] == command for line in lines(node, "text command")))
        found = next(line for line in lines(node, "text command") if line["command"] == command)
        assert (found["level"], found["address"]) == ("info", node.host)


def test_a_cancel_is_logged_and_what_changes_nothing_is_not(start_node: StartNode) -> None:
    node = start_node()
    with Peer(node.host, node.port) as peer:
        handle = peer.submit(b"f", background=True).decode()
        for command in ("status", "cancel job H:nobody:1", "maxqueue", "maxqueue f x", "version"):
            peer.send_bytes(command.encode() + b"\n")
        peer.send_bytes(f"cancel job {handle}\n".encode())
        eventually(lambda: lines(node, "text command"))
        assert [line["command"] for line in lines(node, "text command")] == [f"cancel job {handle}"]


def test_a_stop_is_logged_and_so_is_one_that_was_refused(start_node: StartNode) -> None:
    node = start_node("--shutdown-from", "none")
    with Peer(node.host, node.port) as peer:
        assert peer.line("shutdown").startswith("ERR NOT_ALLOWED")
        eventually(lambda: lines(node, "refused a text command"))
        found = lines(node, "refused a text command")[0]
        assert (found["level"], found["command"], found["address"]) == ("warning", "shutdown", node.host)
        assert found["reason"].startswith("ERR NOT_ALLOWED")


def test_of_a_flood_some_is_logged_and_the_rest_counted() -> None:
    with capture_logs() as logs:
        log = StrangerLog(structlog.get_logger())
        change = Command(b"maxqueue f 1", "192.0.2.1", b"-", b"")
        log.commands([change] * 50, 7, 100.0)
        log.commands([change._replace(line=b"shutdown", refused=b"ERR NOT_ALLOWED")], 0, 100.5)
        log.commands([change], 0, 101.0)
        for _ in range(20):
            log.tls_refused("192.0.2.2", "wrong version number", 101.0)
    assert [each["event"] for each in logs].count("text command") == LINES_PER_SECOND_MAX + 1
    assert [each["event"] for each in logs].count("refused a text command") == 1
    assert [each["event"] for each in logs].count("no TLS with a peer") == LINES_PER_SECOND_MAX
    last = [each for each in logs if each["event"] == "text command"][-1]
    assert sum(each.get("not_logged_before", 0) for each in logs) == 47
    assert last["address"] == "192.0.2.1"


def test_of_what_many_connections_bring_about_some_is_logged_and_the_rest_counted() -> None:
    with capture_logs() as logs:
        log = StrangerLog(structlog.get_logger())
        for _ in range(50):
            log.peer("not a Gearman peer", "192.0.2.1", 100.0, level="info", error="bad magic")
        # A flood of one kind hides no other
        log.peer("disconnected a peer that does not read", "192.0.2.2", 100.0, unread_bytes=7)
        log.peer("not a Gearman peer", "192.0.2.3", 101.0, level="info", error="bad magic")
    told = [each for each in logs if each["event"] == "not a Gearman peer"]
    assert len(told) == LINES_PER_SECOND_MAX + 1
    assert {each["log_level"] for each in told} == {"info"}
    assert (told[-1]["peer"], told[-1]["not_logged_before"]) == ("192.0.2.3", 50 - LINES_PER_SECOND_MAX)
    (other,) = [each for each in logs if each["event"] == "disconnected a peer that does not read"]
    assert (other["peer"], other["unread_bytes"], other["log_level"]) == ("192.0.2.2", 7, "warning")


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"\x16\x03\x01\x00\xa5", b"\0NO\0" * 9]
)
def test_whoever_speaks_another_protocol_cannot_fill_the_log(start_node: StartNode, noise: bytes) -> None:
    node = start_node(durability="memory")
    begun = time.monotonic()
    for _ in range(300):
        with (
            socket.create_connection((node.host, node.port)) as stranger,
            contextlib.suppress(ConnectionResetError),
        ):
            stranger.sendall(noise)
            while stranger.recv(1000):
                pass
    seconds = int(time.monotonic() - begun) + 2  # parts of the first and of the last one
    node.terminate()
    found = lines(node, "not a Gearman peer")
    assert 0 < len(found) <= LINES_PER_SECOND_MAX * seconds
    assert {line["peer"] for line in found} == {node.host}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pem"))


def test_whoever_fails_at_tls_is_logged_and_the_next_is_served(
    start_node: StartNode, pem: Certificates
) -> None:
    options = ("--tls-certificate", str(pem.certificate), "--tls-key", str(pem.key), "--tls-ca", str(pem.ca))
    node = start_node(*options, "--tls-handshake-seconds", "1", durability="memory")
    with socket.create_connection((node.host, node.port)) as plain:
        plain.sendall(b"status\n")
        assert plain.recv(100)[:1] in (b"", b"\x15")  # a TLS alert
    trusting = ssl.create_default_context(cafile=str(pem.ca))
    with (
        socket.create_connection((node.host, node.port)) as sock,
        trusting.wrap_socket(sock, server_hostname=node.host) as nameless,
        contextlib.suppress(OSError),
    ):
        nameless.sendall(b"status\n")
        nameless.recv(100)
    with socket.create_connection((node.host, node.port)) as silent:
        assert silent.recv(100) == b""
    socket.create_connection((node.host, node.port)).close()  # a probe of the port
    trusting.load_cert_chain(str(pem.client_certificate), str(pem.client_key))
    with (
        socket.create_connection((node.host, node.port)) as sock,
        trusting.wrap_socket(sock, server_hostname=node.host) as peer,
    ):
        peer.sendall(b"version\n")
        assert peer.recv(100).startswith(b"OK ")
    eventually(lambda: len(lines(node, "no TLS with a peer")) == 3)
    found = lines(node, "no TLS with a peer")
    assert {line["address"] for line in found} == {node.host}
    assert [line["reason"] for line in found][1:] == [
        "peer did not return a certificate",
        "the handshake took too long",
    ]
