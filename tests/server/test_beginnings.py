"""What is begun and not finished: bounded all together, and given up when nothing more comes."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.server import channels
from cluster.wire import packets as wire
from cluster.wire import request
from tests.support import Node, Peer, eventually, need_command
from tests.support.machine import resident_bytes
from tests.support.peering import nodes, run

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]
MEGABYTE = 1024 * 1024
HALF_SENT = request(wire.SUBMIT_JOB_BG, b"f", b"", bytes(8 * MEGABYTE))[: -MEGABYTE // 2]
CLOSED = "closed connections with unfinished packets"


def test_unfinished_packets_of_all_together_are_bounded(start_node: StartNode, connect: Connect) -> None:
    # Given a limit of 32 MB
    node = start_node("--max-payload", "10M", "--max-unfinished", "32M", durability="memory")
    first = connect(node)
    before = resident_bytes(node.process_id)
    # When more than that is begun and not finished
    others = [connect(node) for _ in range(10)]
    for peer in (first, *others):
        peer.send_bytes(HALF_SENT)
    # Then those that were begun first are given up, with a word and a line in the log
    assert b"begun longest ago" in first.receive().arguments[1]
    first.expect_closed()
    event = node.wait_for_event(CLOSED)
    assert event["count"] >= 1
    # And memory is bounded, however many they are
    eventually(lambda: resident_bytes(node.process_id) - before < 80 * MEGABYTE)
    # And the last one may finish
    others[-1].send_bytes(bytes(MEGABYTE // 2))
    others[-1].expect(wire.JOB_CREATED)


def test_a_packet_of_which_nothing_more_comes_is_given_up(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--packet-seconds", "1", durability="memory")
    for beginning in (b"\0", b"\0REQ\0\0\0", request(wire.ECHO_REQ, b"x" * 100)[:-1], b"stat"):
        peer = connect(node)
        peer.send_bytes(beginning)
        (said,) = peer.expect_closed()
        assert said.type == wire.ERROR
        assert b"nothing more of it came for 1.0 s" in said.arguments[1]
    assert node.wait_for_event(CLOSED)["peer"] == "127.0.0.1"


def test_a_connection_that_sends_nothing_is_closed_and_one_that_has_sent_something_stays(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a worker that sleeps, and one that has finished a large packet
    node = start_node("--first-packet-seconds", "1", "--packet-seconds", "1", durability="memory")
    worker, silent, checker = connect(node), connect(node), connect(node)
    worker.can_do(b"f")
    worker.sleep()
    # When a health checker has come and gone, and another connection says nothing
    checker.close()
    assert silent.expect_closed() == []
    assert node.wait_for_event("closed connections that sent nothing")["count"] == 1
    # Then the worker is still there
    with node.connect() as client:
        client.submit(b"f")
        worker.expect(wire.NOOP)


def test_without_a_limit_a_silent_connection_stays(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--first-packet-seconds", "0", "--packet-seconds", "1", durability="memory")
    silent, other = connect(node), connect(node)
    other.send_bytes(b"stat")
    other.expect_closed()  # a second and more has passed
    silent.settle()


def certificate(directory: Path) -> tuple[str, ...]:
    """The options of a node with TLS."""
    paths = (str(directory / "certificate.pem"), str(directory / "key.pem"))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", paths[1])
    subprocess.run(
        [
            need_command("openssl"),
            "req",
            "-x509",
            *key,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-out",
            paths[0],
        ],
        check=True,
        capture_output=True,
    )
    return ("--tls-certificate", paths[0], "--tls-key", paths[1])


def test_a_tls_handshake_that_is_not_finished_is_closed(start_node: StartNode, tmp_path: Path) -> None:
    options = (*certificate(tmp_path), "--tls-handshake-seconds", "1")
    node = start_node(*options, durability="memory")
    for beginning in (b"", bytes.fromhex("1603010200010001fc0303")):
        with socket.create_connection((node.host, node.port), timeout=20) as sock:
            sock.sendall(beginning)
            assert sock.recv(100) == b""


def test_a_handshake_with_the_peer_port_that_is_not_finished_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "HANDSHAKE_SECONDS", 1)

    async def say_nothing() -> bytes:
        async with nodes() as started:
            port = await started.start("a")
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
            async with asyncio.timeout(15):
                said = await reader.read()  # until it is closed
            writer.close()
            await writer.wait_closed()
            return said

    run(say_nothing)
