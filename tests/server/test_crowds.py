"""Many peers, slow peers, peers that only come and go: memory stays bounded and the others are served without
a pause."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.wire import packets as wire
from cluster.wire import request
from tests.support import Node, Peer, eventually
from tests.support.machine import need_open_files, resident_bytes

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]

# What a bystander may have to wait on a small machine that runs other tests too. A server that stopped for
# a crowd would need many seconds.
PAUSE_SECONDS_MAX = 2.0
MEGABYTE = 1 << 20


@contextmanager
def bystander(node: Node) -> Iterator[list[float]]:
    """Somebody who submits, works and asks all the time; yields how long each round took."""
    rounds: list[float] = []
    stop = threading.Event()
    problems: list[BaseException] = []

    def serve(client: Peer, worker: Peer) -> None:
        try:
            while not stop.is_set():
                began = time.monotonic()
                handle = client.submit(b"bystander", b"payload")
                worker.complete(worker.grab_one().handle, b"result")
                client.expect(wire.WORK_COMPLETE, handle, b"result")
                rounds.append(time.monotonic() - began)
                stop.wait(0.001)
        except BaseException as problem:
            problems.append(problem)

    with node.connect() as client, node.connect() as worker:
        worker.can_do(b"bystander")
        thread = threading.Thread(target=serve, args=(client, worker))
        thread.start()
        try:
            eventually(lambda: rounds or problems)
            yield rounds
            before = len(rounds)
            eventually(lambda: len(rounds) > before or problems)
        finally:
            stop.set()
            thread.join()
    assert not problems, problems


# ---- idle connections


def test_ten_thousand_idle_connections_cost_little_and_stop_nobody(start_node: StartNode) -> None:
    # Given ten thousand connections that do nothing
    how_many = 10_000
    need_open_files(how_many + 500)
    node = start_node(durability="memory")
    before = resident_bytes(node.process_id)
    with bystander(node) as rounds, contextlib.ExitStack() as stack:
        for _ in range(how_many):
            stack.enter_context(socket.create_connection((node.host, node.port), timeout=20))
        # When all of them are accepted
        eventually(lambda: len(node.table("workers")) >= how_many, timeout_seconds=60)
        # Then the memory is a few kilobytes for each
        used = resident_bytes(node.process_id) - before
        assert used / how_many < 16 * 1024
        # And the bystander has never waited long
        assert max(rounds) < PAUSE_SECONDS_MAX
    # When all go at once, then so do they from the list
    eventually(lambda: len(node.table("workers")) <= 3, timeout_seconds=60)


def test_one_connection_too_many_is_turned_away_and_said(start_node: StartNode, connect: Connect) -> None:
    # Given a node that takes three connections, and has them
    node = start_node("--max-connections", "3", durability="memory")
    peers = [connect(node) for _ in range(3)]
    for peer in peers:
        peer.settle()
    # When a fourth comes, then it is closed, and the log says what to do
    with contextlib.suppress(ConnectionError), node.connect() as fourth:
        assert fourth.expect_closed() == []
    event = node.wait_for_event("turned connections away: too many")
    assert "max-connections" in event["remedy"]
    # And the three are served
    for peer in peers:
        peer.settle()
    # When one goes, then there is room again
    peers[0].close()
    eventually(lambda: answers(node))


def answers(node: Node) -> bool:
    try:
        return node.line("version").startswith("OK")
    except (OSError, AssertionError):
        return False


# ---- a flood of connects


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connect_flood_stops_nobody(start_node: StartNode, reset: bool) -> None:
    # Given a bystander
    node = start_node(durability="memory")
    before = resident_bytes(node.process_id)
    with bystander(node) as rounds:
        # When three thousand connections come and go as fast as they can
        for _ in range(3000):
            with socket.create_connection((node.host, node.port), timeout=20) as passing:
                if reset:
                    passing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert max(rounds) < PAUSE_SECONDS_MAX
    # Then nothing of them is left
    eventually(lambda: len(node.table("workers")) <= 1)
    assert resident_bytes(node.process_id) - before < 50 * MEGABYTE
    assert not [line for line in node.log_lines if "Traceback" in line]


# ---- peers that do not read


def test_a_client_that_never_reads_its_results_is_disconnected(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a limit of 1 MB of unread output, and a client that submits and then does not read
    node = start_node("--max-unread", "1M", durability="memory")
    silent, worker = connect(node), connect(node)
    silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    handle = silent.submit(b"f", unique=b"u")
    worker.can_do(b"f")
    worker.grab_one()
    before = resident_bytes(node.process_id)
    # When its worker sends it 100 MB, then memory stays bounded, others are served, and it is disconnected
    with bystander(node) as rounds:
        for _ in range(400):
            worker.send(wire.WORK_DATA, handle, bytes(256 << 10))
        event = node.wait_for_event("disconnected a peer that does not read")
        assert event["unread_bytes"] >= MEGABYTE
        assert resident_bytes(node.process_id) - before < 40 * MEGABYTE
        assert max(rounds) < PAUSE_SECONDS_MAX
    # And its worker may go on as if nothing had been
    worker.complete(handle)
    worker.settle()
    assert node.status("f") == (0, 0, 1)


def test_a_client_that_asks_and_never_reads_is_not_read_either(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a client that sends requests with large answers and reads none
    node = start_node(durability="memory")
    silent = connect(node)
    silent.socket.settimeout(0.5)
    before = resident_bytes(node.process_id)
    echo = request(wire.ECHO_REQ, bytes(MEGABYTE))

    def send_400_megabytes() -> None:
        for _ in range(400):
            silent.socket.sendall(echo)

    with bystander(node) as rounds:
        # When it has sent until the node takes no more of it
        with pytest.raises(TimeoutError):
            send_400_megabytes()
        # Then memory is bounded, and the others are served
        assert resident_bytes(node.process_id) - before < 40 * MEGABYTE
        assert max(rounds) < PAUSE_SECONDS_MAX
    # And when it goes without having read, that is noticed
    silent.close()
    eventually(lambda: len(node.table("workers")) == 1)


def test_a_slow_reader_gets_everything_in_the_end(start_node: StartNode, connect: Connect) -> None:
    # Given a client whose results are larger than any buffer between the two
    node = start_node(durability="memory")
    client, worker = connect(node), connect(node)
    handle = client.submit(b"f")
    worker.can_do(b"f")
    worker.grab_one()
    # When they are sent before it begins to read
    for number in range(20):
        worker.send(wire.WORK_DATA, handle, b"%02d" % number + bytes(MEGABYTE))
    worker.complete(handle, b"end")
    worker.settle()
    # Then it gets all of them in order
    for number in range(20):
        assert client.expect(wire.WORK_DATA, handle)[1][:2] == b"%02d" % number
    client.expect(wire.WORK_COMPLETE, handle, b"end")


# ---- many of everything


def test_thousands_of_functions_of_one_worker_stop_nobody(start_node: StartNode, connect: Connect) -> None:
    # gearmand's one thread stops for a second on this (its issue 393)
    node = start_node(durability="memory")
    worker, client = connect(node), connect(node)
    with bystander(node) as rounds:
        for number in range(5000):
            worker.send(wire.CAN_DO, b"many-%d" % number)
        worker.settle()
        for number in range(0, 5000, 10):
            client.submit(b"many-%d" % number, background=True)
        for _ in range(500):
            worker.complete(worker.grab_one().handle)
        assert worker.grab() is None
        worker.send(wire.RESET_ABILITIES)
        worker.settle()
        assert max(rounds) < PAUSE_SECONDS_MAX


def test_four_thousand_tasks_of_one_client_at_once(start_node: StartNode, connect: Connect) -> None:
    # gearmand hangs on this (its issue 125)
    node = start_node(durability="memory")
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    handles = set()
    for number in range(4000):
        client.send(wire.SUBMIT_JOB, b"f", b"u%d" % number, b"%d" % number)
    for _ in range(4000):
        handles.add(client.expect(wire.JOB_CREATED))
    for _ in range(4000):
        job = worker.grab_one()
        worker.complete(job.handle, job.payload)
    for _ in range(4000):
        handles.remove(client.expect(wire.WORK_COMPLETE)[0])
    assert not handles


def test_memory_is_given_back_after_a_large_queue(start_node: StartNode, connect: Connect) -> None:
    # gearmand keeps it (its issues 7 and 284)
    node = start_node(durability="memory")
    client, worker = connect(node), connect(node)
    before = resident_bytes(node.process_id)
    # Given a queue of 190 MB
    for number in range(3000):
        client.send(wire.SUBMIT_JOB_BG, b"f", b"u%d" % number, bytes(64 << 10))
    for _ in range(3000):
        client.expect(wire.JOB_CREATED)
    assert resident_bytes(node.process_id) - before > 150 * MEGABYTE
    # When it has been worked off, then most of it goes back to the machine
    worker.can_do(b"f")
    for _ in range(3000):
        worker.complete(worker.grab_one().handle)
    worker.settle()
    eventually(lambda: resident_bytes(node.process_id) - before < 60 * MEGABYTE, timeout_seconds=10)
