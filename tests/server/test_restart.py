"""What the journal promises: an acknowledged background job outlives the process, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer, PeerTimeout
from tests.support.faulty import FailingCalls

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


def drain(worker: Peer, *functions: bytes) -> list[bytes]:
    """Payloads of all jobs, in the order in which a worker gets them."""
    worker.can_do(*functions)
    payloads = []
    while (job := worker.grab()) is not None:
        payloads.append(job.payload)
        worker.complete(job.handle)
    worker.settle()
    return payloads


def test_a_job_comes_back_with_all_that_it_was(node: Node, connect: Connect) -> None:
    # Given background jobs of two functions and all priorities, one with binary content
    client = connect(node)
    payload = bytes(range(256)) * 100
    handle = client.submit(b"f", payload, b"unique", background=True)
    client.submit(b"f", b"low", background=True, priority="low")
    client.submit(b"g", b"high", background=True, priority="high")
    client.submit(b"f", b"second", background=True)
    before = node.table("prioritystatus")
    # When the process is killed and started again
    node.kill()
    node.restart()
    # Then function, priority, order, handle, unique and payload are as they were
    assert sorted(node.table("prioritystatus")) == sorted(before)
    client, worker = connect(node), connect(node)
    assert client.submit(b"f", b"joins", b"unique", background=True) == handle
    worker.can_do(b"f", b"g")
    assert worker.grab_one().payload == b"high"
    assert worker.grab_one() == (handle, b"f", b"unique", payload)
    assert [worker.grab_one().payload for _ in range(2)] == [b"second", b"low"]
    assert worker.grab() is None


def test_order_is_kept_over_several_restarts(node: Node, connect: Connect) -> None:
    expected = []
    for start in range(3):
        client = connect(node)
        for number in range(20):
            expected.append(b"%d-%d" % (start, number))
            client.submit(b"f", expected[-1], b"u-" + expected[-1], background=True)
        node.kill()
        node.restart()
    assert drain(connect(node), b"f") == expected


def test_what_is_done_stays_done(node: Node, connect: Connect) -> None:
    # Given jobs that ended in every way, and a clean stop
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    ends = [
        lambda handle: worker.complete(handle),
        lambda handle: worker.send(wire.WORK_FAIL, handle),
        lambda handle: worker.send(wire.WORK_EXCEPTION, handle, b""),
        lambda handle: client.line(f"cancel job {handle.decode()}"),
    ]
    for end in ends:
        client.submit(b"f", background=True)
        end(worker.grab_one().handle)
    worker.settle()
    assert node.terminate() == 0
    # Then none of them comes back
    node.restart()
    assert node.table("show jobs") == []
    assert node.table("status") == []


def test_a_foreground_job_is_its_client_s_to_submit_again(node: Node, connect: Connect) -> None:
    connect(node).submit(b"f", background=False)
    node.kill()
    node.restart()
    assert node.table("show jobs") == []


def test_a_joined_job_is_durable_before_the_joiner_hears_so(node: Node, connect: Connect) -> None:
    # Given a foreground job that a background submit joined
    foreground, background = connect(node), connect(node)
    handle = foreground.submit(b"f", b"payload", b"u")
    assert background.submit(b"f", b"", b"u", background=True) == handle
    # When the node is killed, then the job is there afterwards
    node.kill()
    node.restart()
    worker = connect(node)
    worker.can_do(b"f")
    assert worker.grab_one() == (handle, b"f", b"u", b"payload")


def test_tries_are_counted_over_restarts(start_node: StartNode, connect: Connect) -> None:
    # Given a limit of two retries, one of which is used
    node = start_node("--job-retries", "2", "--reclaim-seconds", "0.1")
    handle = connect(node).submit(b"f", background=True)

    def lose_once() -> None:
        lost = node.connect()
        lost.can_do(b"f")
        assert lost.wait_for_job().handle == handle
        lost.close()

    lose_once()
    worker = connect(node)
    worker.can_do(b"f")
    # When the node restarts while the job runs, then that is a loss too
    worker.wait_for_job()
    node.terminate()
    node.restart()
    # And the third one is the last
    lose_once()
    worker = connect(node)
    worker.can_do(b"f")
    with pytest.raises(PeerTimeout):
        worker.wait_for_job(0.5)
    assert node.table("show jobs") == []


def test_running_jobs_run_again_before_the_others_in_their_order(
    start_node: StartNode, connect: Connect
) -> None:
    # Given three jobs that ran when the node was killed, and three that waited
    node = start_node("--reclaim-seconds", "0.1")
    client, worker = connect(node), connect(node)
    for number in range(6):
        client.submit(b"f", b"%d" % number, background=True)
    worker.can_do(b"f")
    for _ in range(3):
        worker.grab_one()
    client.submit(b"barrier", background=True)  # what was written before it is on disk
    node.kill()
    node.restart()
    # When their workers do not come back, then they run before those that waited
    observer = connect(node)
    deadline_worker = connect(node)
    deadline_worker.can_do(b"f")
    first = deadline_worker.wait_for_job().payload
    observer.settle()
    assert first in (b"0", b"3")  # 3 when it was grabbed before the reclaim time was over
    order = [first]
    while len(order) < 6:
        order.append(deadline_worker.wait_for_job().payload)
    assert [payload for payload in order if payload < b"3"] == [b"0", b"1", b"2"]
    assert [payload for payload in order if payload >= b"3"] == [b"3", b"4", b"5"]


def test_a_worker_that_outlived_the_node_may_deliver_by_handle(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a job that ran when the node was killed
    node = start_node("--reclaim-seconds", "30")
    client, worker = connect(node), connect(node)
    handle = client.submit(b"f", b"payload", b"u", background=True)
    worker.can_do(b"f")
    worker.grab_one()
    client.submit(b"barrier", background=True)
    node.kill()
    node.restart()
    # When its worker comes back with the result, then it is taken and the job is not run again
    worker = connect(node)
    worker.can_do(b"f")
    assert worker.grab() is None
    worker.complete(handle, b"result")
    worker.settle()
    assert node.status("f") == (0, 0, 1)


def test_reduce_jobs_keep_their_reducer(node: Node, connect: Connect) -> None:
    client = connect(node)
    client.send(wire.SUBMIT_REDUCE_JOB_BACKGROUND, b"f", b"u", b"reducer", b"", b"payload")
    handle = client.expect(wire.JOB_CREATED)
    node.kill()
    node.restart()
    worker = connect(node)
    worker.can_do(b"f")
    worker.send(wire.GRAB_JOB_ALL)
    worker.expect(wire.JOB_ASSIGN_ALL, handle, b"f", b"u", b"reducer", b"payload")


def test_the_unique_dash_still_means_the_payload_after_a_restart(node: Node, connect: Connect) -> None:
    handle = connect(node).submit(b"f", b"same", b"-", background=True)
    node.kill()
    node.restart()
    client = connect(node)
    assert client.submit(b"f", b"same", b"-", background=True) == handle
    assert client.submit(b"f", b"other", b"-", background=True) != handle


@pytest.mark.parametrize("durability", ["fsync", "os", "memory"])
def test_handles_never_come_back(start_node: StartNode, connect: Connect, durability: str) -> None:
    # Given nodes of one name that are killed and started again within a second or two
    node = start_node(durability=durability)
    handles: list[bytes] = []
    for start in range(4):
        if start:
            node.kill()
            node.restart()
        client = connect(node)
        handles += [client.submit(b"f", background=number % 2 == 0) for number in range(4)]
    # Then no two jobs ever had the same handle
    assert len(set(handles)) == len(handles)


@pytest.mark.parametrize("durability", ["os", "memory"])
def test_what_the_other_durabilities_keep(start_node: StartNode, connect: Connect, durability: str) -> None:
    node = start_node(durability=durability)
    connect(node).submit(b"f", background=True)
    node.kill()
    node.restart()
    # The operating system outlives the process; memory does not
    assert len(node.table("show jobs")) == (1 if durability == "os" else 0)


# ---- nothing is promised before it is on disk


@pytest.fixture
def failing(tmp_path: Path) -> FailingCalls:
    return FailingCalls(tmp_path / "failing-calls")


def expect_held(peer: Peer) -> None:
    with pytest.raises(PeerTimeout):
        peer.receive(timeout_seconds=0.3)


def test_job_created_waits_for_the_disk_and_nobody_else_does(
    start_node: StartNode, connect: Connect, failing: FailingCalls
) -> None:
    # Given a disk that takes its time
    node = start_node(environment=failing.environment)
    client, other, worker = connect(node), connect(node), connect(node)
    foreground = other.submit(b"f", b"foreground")
    failing.fail("fdatasync-hangs")
    # When a background job is submitted, then it is not acknowledged, and no worker gets it
    client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"background")
    client.send(wire.ECHO_REQ, b"behind it")
    expect_held(client)
    worker.can_do(b"f")
    assert worker.grab_one().payload == b"foreground"
    assert worker.grab() is None
    # And all others are served
    worker.complete(foreground, b"done")
    other.expect(wire.WORK_COMPLETE, foreground, b"done")
    # When the disk has it, then it is acknowledged, in its place
    failing.heal()
    handle = client.expect(wire.JOB_CREATED)
    client.expect(wire.ECHO_RES, b"behind it")
    assert worker.wait_for_job().handle == handle


def test_a_joiner_waits_for_the_disk_too(
    start_node: StartNode, connect: Connect, failing: FailingCalls
) -> None:
    node = start_node(environment=failing.environment)
    first, second = connect(node), connect(node)
    failing.fail("fdatasync-hangs")
    first.send(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    expect_held(first)
    second.send(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    expect_held(second)
    failing.heal()
    assert first.expect(wire.JOB_CREATED) == second.expect(wire.JOB_CREATED)


@pytest.mark.parametrize("command", ["maxqueue f 5", "cancel job {handle}", "create function g"])
def test_ok_to_a_command_that_changes_something_waits_for_the_disk(
    start_node: StartNode, connect: Connect, failing: FailingCalls, command: str
) -> None:
    # Given a disk that takes its time
    node = start_node(environment=failing.environment)
    client = connect(node)
    handle = client.submit(b"f", background=True).decode()
    failing.fail("fdatasync-hangs")
    # When a person cancels a job or sets a limit, then OK would be a promise: it waits
    client.send_bytes(command.format(handle=handle).encode() + b"\n")
    expect_held(client)
    failing.heal()
    assert client.receive().arguments == (b"OK",)
