"""A real node's port: under load, while it drains, when its disk fails; and what it costs."""

from __future__ import annotations

import json
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.server.turns import TurnSelector
from cluster.wire import packets as wire
from tests.http.support import fetch, samples
from tests.support import Node, Peer, eventually
from tests.support.faulty import FailingCalls
from tests.support.machine import processor_seconds, resident_bytes

StartNode = Callable[..., Node]
Connect = Callable[..., Peer]
HTTP = ("--http-port", "0")
IDLE_SECONDS = 2.0


def http_port(node: Node) -> int:
    port = node.wait_for_event("http listening")["port"]
    assert isinstance(port, int)
    return port


def metrics(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, text = fetch(port, "/metrics")
    assert status == 200
    return samples(text)


def test_jobs_workers_and_the_journal_are_counted(start_node: StartNode, connect: Connect) -> None:
    node = start_node(*HTTP)
    port = http_port(node)
    client, worker = connect(node), connect(node)
    for number in range(5):
        client.submit(b"resize", b"%d" % number, background=True)
    worker.can_do(b"resize")
    worker.grab_one()
    far = b"%d" % (int(time.time()) + 3600)
    client.send(wire.SUBMIT_JOB_EPOCH, b"resize", b"later", far, b"")
    client.expect(wire.JOB_CREATED)

    def jobs() -> dict[str, float]:
        return {
            dict(labels)["state"]: value
            for (name, labels), value in metrics(port).items()
            if name == "gearfleet_jobs"
        }

    eventually(jobs, {"queued": 4, "running": 1, "held": 1})
    found = metrics(port)
    assert found["gearfleet_workers", (("function", "resize"),)] == 1
    assert found["gearfleet_connections", ()] == 2
    groups = found["gearfleet_groups_committed_total", ()]
    assert groups >= 6
    assert found["gearfleet_commit_latency_seconds_count", ()] == groups
    assert found["gearfleet_journal_fsync_latency_seconds_count", ()] >= groups
    assert found["gearfleet_journal_written_bytes_total", ()] > 0
    assert found["gearfleet_ready", ()] == 1


def test_memory_processor_and_room_on_the_disk_are_told(start_node: StartNode, connect: Connect) -> None:
    node = start_node(*HTTP, "--max-memory", "3G")
    port = http_port(node)
    client, worker = connect(node), connect(node)
    client.submit(b"f", bytes(70_000), background=True)
    client.submit(b"f", bytes(30_000), background=True)
    found = metrics(port)
    assert found["gearfleet_payload_bytes", ()] == 100_000
    assert found["gearfleet_memory_max_bytes", ()] == 3 * 1024**3
    told = found["process_resident_memory_bytes", ()]
    assert abs(told - resident_bytes(node.process_id)) < told / 4
    assert 0 < found["process_cpu_seconds_total", ()] <= processor_seconds(node.process_id) + 1
    eventually(lambda: ("gearfleet_journal_free_bytes", ()) in metrics(port))
    room = shutil.disk_usage(node.data_dir or "").free
    assert metrics(port)["gearfleet_journal_free_bytes", ()] == pytest.approx(room, rel=0.2)
    worker.can_do(b"f")
    worker.complete(worker.grab_one().handle)
    eventually(lambda: metrics(port)["gearfleet_payload_bytes", ()], 30_000)


def test_an_alarm_on_no_worker_goes_on_when_the_last_one_has_died(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a worker of a function, whose name prints, and of one whose name does not
    node = start_node(*HTTP, durability="memory")
    port = http_port(node)
    worker = connect(node)
    worker.can_do(b"resize")
    worker.can_do(b"site\tmail\xff")

    def workers() -> dict[str, float]:
        return {
            dict(labels)["function"]: value
            for (name, labels), value in metrics(port).items()
            if name == "gearfleet_workers"
        }

    eventually(workers, {"resize": 1, r"site\x09mail\xff": 1})
    # When it dies
    worker.close()
    # Then the functions are there without a worker
    eventually(workers, {"resize": 0, r"site\x09mail\xff": 0})


def test_a_node_that_stands_alone_has_no_port_unless_told(start_node: StartNode) -> None:
    node = start_node(durability="memory")
    assert [event for event in node.log_events if event["event"] == "http listening"] == []


def test_the_number_of_functions_by_name_is_a_setting(start_node: StartNode, connect: Connect) -> None:
    node = start_node(*HTTP, "--metrics-functions-max", "2", durability="memory")
    client = connect(node)
    for number in range(5):
        client.submit(b"f%d" % number, background=True)
    found = metrics(http_port(node))
    workers = {dict(labels)["function"] for name, labels in found if name == "gearfleet_workers"}
    assert workers == {"f0", "f1", "(other)"}
    assert found["gearfleet_jobs", (("function", "(other)"), ("state", "queued"))] == 3


def test_a_node_that_drains_lives_but_is_not_ready(start_node: StartNode, connect: Connect) -> None:
    node = start_node(*HTTP)
    port = http_port(node)
    assert fetch(port, "/readyz")[0] == 200
    client, worker = connect(node), connect(node)
    client.submit(b"f", background=True)
    worker.can_do(b"f")
    job = worker.grab_one()
    node.signal(signal.SIGUSR1)
    eventually(lambda: fetch(port, "/readyz")[0], 503)
    assert "drains" in json.loads(fetch(port, "/readyz")[1])["reason"]
    assert fetch(port, "/healthz")[0] == 200
    assert metrics(port)["gearfleet_phase", (("phase", "draining"),)] == 1
    worker.complete(job.handle)
    assert node.wait_for_exit() == 0


def test_a_full_disk_makes_it_unready_until_there_is_room(
    start_node: StartNode, connect: Connect, tmp_path: Path
) -> None:
    calls = FailingCalls(tmp_path / "failing")
    node = start_node(*HTTP, environment=calls.environment)
    port = http_port(node)
    calls.fail("pwrite")
    client = connect(node)
    client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"")
    client.expect_error(b"QUEUE_ERROR")
    status, body = fetch(port, "/readyz")
    assert status == 503
    assert "make room on the disk" in json.loads(body)["reason"]
    assert fetch(port, "/healthz")[0] == 200
    assert metrics(port)["gearfleet_background_refused", ()] == 1
    calls.heal()
    eventually(lambda: fetch(port, "/readyz")[0], 200)


def test_a_disk_that_hangs_shows(start_node: StartNode, connect: Connect, tmp_path: Path) -> None:
    calls = FailingCalls(tmp_path / "failing")
    node = start_node(*HTTP, environment=calls.environment)
    port = http_port(node)
    calls.fail("fdatasync-hangs")
    connect(node).send(wire.SUBMIT_JOB_BG, b"f", b"", b"")
    eventually(lambda: metrics(port)["gearfleet_journal_write_pending_seconds", ()] > 0)
    assert fetch(port, "/healthz")[0] == 200
    calls.heal()
    eventually(lambda: metrics(port)["gearfleet_journal_write_pending_seconds", ()] == 0)


def test_a_port_in_use_stops_the_start_and_names_the_option(start_node: StartNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = start_node("--http-port", str(taken.getsockname()[1]), wait=False)
        assert node.wait_for_exit() == 1
    assert "--http-port" in node.wait_for_event("cannot start")["reason"]


def test_it_answers_while_clients_keep_the_node_busy(start_node: StartNode, connect: Connect) -> None:
    """Given a client that always has a packet on its way / Then a probe is answered all the same."""
    node = start_node(*HTTP, durability="memory")
    port = http_port(node)
    client = connect(node)
    client.socket.setblocking(False)
    echoes = b"\0REQ\0\0\0\x10\0\0\0\x01x" * 2000
    waits = []
    for _ in range(5):
        began = time.monotonic()
        request = socket.create_connection(("127.0.0.1", port))
        request.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        unsent = memoryview(echoes)
        while not select.select([request], [], [], 0)[0]:
            readable, writable, _ = select.select([client.socket, request], [client.socket], [], 1.0)
            if client.socket in readable:
                client.socket.recv(1 << 20)
            if client.socket in writable:
                unsent = unsent[client.socket.send(unsent) :] or memoryview(echoes)
        assert request.recv(100).startswith(b"HTTP/1.1 200")
        waits.append(time.monotonic() - began)
        request.close()
    assert min(waits) < 0.5, waits


def test_what_the_loop_owes_others_waits_for_one_turn_only() -> None:
    """Given a connection that always has more / When the loop has callbacks due / Then it is read once."""
    selector = TurnSelector()
    ours, theirs = socket.socketpair()
    turns = []
    try:
        theirs.send(b"never read")
        selector.epoll.register(ours.fileno(), select.EPOLLIN)
        selector.on_ready = turns.append
        selector.select(0)
        assert len(turns) == 1
        selector.select(0.001)
        assert len(turns) > 2
    finally:
        selector.close()
        ours.close()
        theirs.close()


def test_an_idle_node_with_the_port_open_costs_next_to_nothing(start_node: StartNode) -> None:
    node = start_node(*HTTP, "--busy-poll-microseconds", "1000")
    port = http_port(node)
    assert fetch(port, "/metrics")[0] == 200
    spent = processor_seconds(node.process_id)
    with pytest.raises(AssertionError, match="still running"):
        node.wait_for_exit(IDLE_SECONDS)
    spent = processor_seconds(node.process_id) - spent
    assert spent <= 0.05 * IDLE_SECONDS, f"{spent} s of processor time in {IDLE_SECONDS} s"
