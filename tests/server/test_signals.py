"""SIGTERM, SIGINT, SIGUSR1, SIGHUP."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer, eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_end_the_node_cleanly(node: Node, connect: Connect, number: signal.Signals) -> None:
    # Given a node with jobs, a worker at one of them and a waiting client
    client, worker = connect(node), connect(node)
    waiting = client.submit(b"f", background=True)
    client.submit(b"g")
    worker.can_do(b"f")
    worker.grab_one()
    # When it is told to end, then connections are closed and it exits with 0
    node.signal(number)
    client.expect_closed()
    worker.expect_closed()
    assert node.wait_for_exit() == 0
    assert node.log_events[-1]["event"] == "stopped"
    # And the background job is there at the next start, with nothing to repair
    node.restart()
    assert [row.split("\t")[0] for row in node.table("show jobs")] == [waiting.decode()]
    assert not [event for event in node.log_events if "torn" in str(event["event"])]


def test_what_was_sent_before_the_end_is_answered(node: Node, connect: Connect) -> None:
    # Given submits that are in the node's hands when SIGTERM comes
    client = connect(node)
    for number in range(100):
        client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"%d" % number)
    client.expect(wire.JOB_CREATED)
    node.signal(signal.SIGTERM)
    answers = 1 + len(client.expect_closed())
    node.wait_for_exit()
    # Then there are at least as many jobs afterwards as were acknowledged
    node.restart()
    assert answers <= len(node.table("show jobs")) <= 100


def test_usr1_is_graceful(node: Node, connect: Connect) -> None:
    # Given a node with a running job
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    handle = client.submit(b"f", background=True)
    worker.grab_one()
    # When SIGUSR1 comes, then it accepts nobody new
    node.signal(signal.SIGUSR1)
    event = node.wait_for_event("stopping when no job is left")
    assert "SIGTERM stops at once: background jobs that wait are kept" in event["hint"]
    eventually(lambda: refuses(node))
    # And it ends when the job is done
    worker.settle()
    worker.complete(handle)
    assert node.wait_for_exit() == 0


def test_usr1_ends_an_idle_node_at_once(node: Node) -> None:
    node.signal(signal.SIGUSR1)
    assert node.wait_for_exit() == 0


def test_term_after_usr1_does_not_wait(node: Node, connect: Connect) -> None:
    connect(node).submit(b"f", background=True)
    node.signal(signal.SIGUSR1)
    node.wait_for_event("stopping when no job is left")
    assert node.terminate() == 0


def test_hup_opens_the_log_anew(start_node: StartNode, tmp_path: Path) -> None:
    # Given a node that logs to a file, which is then moved away as by logrotate
    log = tmp_path / "node.log"
    node = start_node("--log-file", str(log), wait=False)
    eventually(lambda: log.exists() and "listening" in log.read_text())
    log.rename(tmp_path / "node.log.1")
    # When SIGHUP comes, then it goes on in a new file
    node.signal(signal.SIGHUP)
    eventually(lambda: log.exists() and "opened anew" in log.read_text())
    node.terminate()
    assert "stopped" in log.read_text()


def refuses(node: Node) -> bool:
    """Whether new connections are turned away."""
    try:
        with node.connect() as peer:
            peer.line("version")
    except (OSError, AssertionError):
        return True
    return False
