"""How a connection ends: with all that it has sent taken, and all that it has asked answered."""

from __future__ import annotations

import fcntl
import signal
import socket
import termios
from collections.abc import Callable
from struct import unpack

import pytest

from cluster.wire import packets as wire
from cluster.wire import request
from tests.support import WAIT_SECONDS, Node, Peer, eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]
MEGABYTE = 1024 * 1024


def read_to_the_end(sock: socket.socket) -> bytes:
    sock.settimeout(WAIT_SECONDS)
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def unacknowledged_bytes(sock: socket.socket) -> int:
    return int(unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


@pytest.mark.parametrize("durability", ["memory", "fsync"])
def test_what_has_arrived_before_the_sender_went_is_taken(start_node: StartNode, durability: str) -> None:
    # Given a client that is not read from, as it does not read its answers
    node = start_node(durability=durability)
    with node.connect() as client, node.connect() as worker:
        handle = client.submit(b"g")
        worker.can_do(b"g")
        worker.grab_one()
        for _ in range(16):
            worker.send(wire.WORK_DATA, handle, bytes(MEGABYTE))
        worker.settle()
        # When its background jobs have arrived, and it closes unread, which resets the connection
        client.send_bytes(b"".join(request(wire.SUBMIT_JOB_BG, b"f", b"", b"") for _ in range(1000)))
        eventually(lambda: unacknowledged_bytes(client.socket) == 0)
        client.close()
        # Then all are queued
        eventually(lambda: node.status("f") == (1000, 0, 0))


@pytest.mark.parametrize("durability", ["memory", "fsync"])
def test_what_the_sender_s_kernel_still_has_is_taken_before_it_is_answered(
    start_node: StartNode, durability: str
) -> None:
    # Given a sender that pipelines more than a socket takes, reads nothing and closes, before the node looks
    node = start_node(durability=durability)
    jobs = b"".join(request(wire.SUBMIT_JOB_BG, b"f", b"", b"%d" % number) for number in range(20_000))
    with node.connect() as sender:
        sender.settle()
        node.signal(signal.SIGSTOP)
        sender.send_bytes(jobs)
    node.signal(signal.SIGCONT)
    # Then all are queued: an early answer would have reset the connection
    eventually(lambda: node.status("f") == (20_000, 0, 0))


def test_answers_wait_for_the_rest_of_the_input_but_not_for_long(connect: Connect) -> None:
    # Given a worker that sends without a pause, and asks in between whether the node is there
    worker = connect()
    filler = request(wire.WORK_COMPLETE, b"H:none:1.1.1", bytes(MEGABYTE))
    worker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MEGABYTE)
    for number in range(40):
        worker.send_bytes(filler)
        worker.send(wire.ECHO_REQ, b"%d" % number)
    # Then all is answered, in order
    for number in range(40):
        worker.expect(wire.ERROR)
        worker.expect(wire.ECHO_RES, b"%d" % number)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (b"maxqueue f 10\n", b"OK\r\n"),
        (b"status\n", b".\n"),
        (b"version\nversion\n", None),
        (request(wire.ECHO_REQ, b"hello"), b"hello"),
    ],
)
def test_what_was_asked_before_the_end_of_input_is_answered(
    connect: Connect, asked: bytes, answer: bytes | None
) -> None:
    # Given one who asks and says in the same breath that it sends no more, as `nc -N` does
    peer = connect()
    peer.send_bytes(asked)
    peer.socket.shutdown(socket.SHUT_WR)
    # Then it is answered, then closed
    said = read_to_the_end(peer.socket)
    if answer is None:
        assert said.count(b"OK ") == 2
    else:
        assert said.endswith(answer)


def test_an_answer_that_waits_for_the_disk_is_given_after_the_end_of_input(start_node: StartNode) -> None:
    node = start_node()
    with node.connect() as peer:
        peer.send(wire.SUBMIT_JOB_BG, b"f", b"", b"")
        peer.socket.shutdown(socket.SHUT_WR)
        peer.expect(wire.JOB_CREATED)
        peer.expect_closed()
    assert node.status("f") == (1, 0, 0)


def test_a_large_answer_is_read_to_its_end_after_the_end_of_input(connect: Connect) -> None:
    # Given one that asks for more than any buffer between the two holds, and sends no more
    peer = connect()
    echo = request(wire.ECHO_REQ, bytes(8 * MEGABYTE))
    peer.send_bytes(echo)
    peer.socket.shutdown(socket.SHUT_WR)
    # Then it gets all of it
    assert len(read_to_the_end(peer.socket)) == len(echo)


def test_a_worker_that_ends_its_input_gives_its_job_back(start_node: StartNode) -> None:
    node = start_node(durability="memory")
    with node.connect() as client, node.connect() as first, node.connect() as second:
        handle = client.submit(b"f")
        first.can_do(b"f")
        first.grab_one()
        first.socket.shutdown(socket.SHUT_WR)
        first.expect_closed()
        second.can_do(b"f")
        assert second.grab_one().handle == handle


def test_a_client_that_does_not_read_for_long_gets_its_results_and_its_worker_keeps_its_job(
    start_node: StartNode,
) -> None:
    # Given a client whose window is closed: more waits for it than all buffers between the two hold
    node = start_node("--user-timeout-seconds", "1", durability="memory")
    with node.connect() as client, node.connect() as worker, node.connect() as clock:
        handle = client.submit(b"f")
        worker.can_do(b"f")
        worker.grab_one()
        for number in range(16):
            worker.send(wire.WORK_DATA, handle, b"%02d" % number + bytes(MEGABYTE))
        worker.settle()
        # When it does not read for several times as long as a dead peer is given
        with pytest.raises(AssertionError):
            clock.expect(wire.NOOP, timeout_seconds=5)
        # Then it is slow and not dead: it gets all
        for number in range(16):
            assert client.expect(wire.WORK_DATA, handle)[1][:2] == b"%02d" % number
        worker.complete(handle, b"end")
        client.expect(wire.WORK_COMPLETE, handle, b"end")
