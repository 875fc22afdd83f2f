"""What happens to jobs between their packets: order, sharing, loss of clients and of workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer, PeerTimeout, eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


# ---- order


def test_high_priority_of_any_function_comes_first(connect: Connect, function: bytes) -> None:
    # Given jobs of three functions and all priorities
    names = [function + end for end in (b"-a", b"-b", b"-c")]
    client, worker = connect(), connect()
    priorities = ["low", "normal", "high", "normal", "high", "low", "high", "low", "normal"]
    for name, priority in zip(names * 3, priorities, strict=True):
        client.submit(name, priority.encode(), background=True, priority=priority)
    # When one worker can do them all
    worker.can_do(*names)
    # Then every high one is before every normal one, and these before every low one
    order = [worker.grab_one().payload for _ in range(9)]
    assert order == [b"high"] * 3 + [b"normal"] * 3 + [b"low"] * 3


def test_within_a_priority_first_in_is_first_out(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    for number in range(50):
        client.submit(function, b"%d" % number, background=number % 2 == 0)
    worker.can_do(function)
    assert [worker.grab_one().payload for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_a_worker_s_functions_are_served_in_turn(connect: Connect, function: bytes) -> None:
    # Given a function with a long queue and two with short ones
    names = [function + end for end in (b"-a", b"-b", b"-c")]
    client, worker = connect(), connect()
    for name, count in zip(names, (10, 2, 2), strict=True):
        for _ in range(count):
            client.submit(name, background=True)
    worker.can_do(*names)
    # Then the first three jobs are of three functions, and so are the next three
    first = {worker.grab_one().function for _ in range(3)}
    second = {worker.grab_one().function for _ in range(3)}
    assert first == second == set(names)


# ---- coalescing


def test_one_unique_is_one_job_for_all_who_submit_it(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    first, second, background, worker = (connect() for _ in range(4))
    handle = first.submit(function, b"first", b"u")
    # Whatever their payload, priority or kind, later ones join, and get the first one's handle
    assert second.submit(function, b"second", b"u", priority="high") == handle
    assert background.submit(function, b"third", b"u", background=True) == handle
    assert shared_node.status(function) == (1, 0, 0)
    worker.can_do(function)
    assert worker.grab_one().payload == b"first"
    # Also while it runs
    assert second.submit(function, b"fourth", b"u") == handle
    worker.complete(handle, b"result")
    first.expect(wire.WORK_COMPLETE, handle, b"result")
    # A connection that asked twice is answered twice: Perl's task sets count on it
    second.expect(wire.WORK_COMPLETE, handle, b"result")
    second.expect(wire.WORK_COMPLETE, handle, b"result")
    # And once it is done, the unique is free
    assert first.submit(function, b"again", b"u") != handle


def test_uniques_of_different_functions_are_different_jobs(connect: Connect, function: bytes) -> None:
    client = connect()
    assert client.submit(function + b"-a", unique=b"u") != client.submit(function + b"-b", unique=b"u")


def test_without_a_unique_nothing_is_shared(shared_node: Node, connect: Connect, function: bytes) -> None:
    client = connect()
    assert client.submit(function, b"same") != client.submit(function, b"same")
    assert shared_node.status(function) == (2, 0, 0)


def test_the_unique_dash_means_the_payload(shared_node: Node, connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    handle = client.submit(function, b"same", b"-", background=True)
    assert client.submit(function, b"same", b"-", background=True) == handle
    assert client.submit(function, b"other", b"-", background=True) != handle
    assert shared_node.status(function) == (2, 0, 0)
    worker.can_do(function)
    assert worker.grab_one().unique == b"-"


# ---- clients that leave


def test_a_waiting_foreground_job_leaves_with_its_last_client(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    unique = b"unique-of-" + function
    first, second = shared_node.connect(), shared_node.connect()
    first.submit(function, unique=unique)
    second.submit(function, unique=unique)
    first.close()
    # One is left
    worker = connect()
    eventually(lambda: worker.ask(wire.GET_STATUS_UNIQUE, unique).arguments[5], b"1")
    assert shared_node.status(function) == (1, 0, 0)
    # None is left
    second.close()
    eventually(lambda: shared_node.status(function), (0, 0, 0))
    worker.can_do(function)
    assert worker.grab() is None


def test_a_running_foreground_job_s_result_is_dropped_in_silence(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, worker = shared_node.connect(), connect()
    worker.can_do(function)
    handle = client.submit(function, unique=b"left-" + function)
    worker.grab_one()
    client.close()
    eventually(lambda: worker.ask(wire.GET_STATUS_UNIQUE, b"left-" + function).arguments[5], b"0")
    worker.complete(handle, b"nobody's")
    worker.settle()
    assert shared_node.status(function) == (0, 0, 1)


@pytest.mark.parametrize("background_first", [True, False], ids=["joined", "created"])
def test_a_client_that_leaves_never_cancels_a_background_job(
    shared_node: Node, connect: Connect, function: bytes, background_first: bool
) -> None:
    # Given a job that a foreground and a background client share, whoever came first
    foreground, background = shared_node.connect(), connect()
    unique = b"kept-" + function
    if background_first:
        background.submit(function, b"payload", unique, background=True)
    handle = foreground.submit(function, b"payload", unique)
    if not background_first:
        assert background.submit(function, b"payload", unique, background=True) == handle
    # When the foreground client goes
    foreground.close()
    eventually(lambda: background.ask(wire.GET_STATUS_UNIQUE, unique).arguments[5], b"0")
    # Then the job is run (gearmand drops it)
    worker = connect()
    worker.can_do(function)
    assert worker.grab_one().handle == handle


# ---- workers that leave


def test_a_lost_worker_s_job_is_the_next_to_run(shared_node: Node, connect: Connect, function: bytes) -> None:
    # Given a worker with the first of three jobs
    client, lost = connect(), shared_node.connect()
    lost.can_do(function)
    for number in range(3):
        client.submit(function, b"%d" % number, background=True)
    lost.grab_one()
    # When it goes, then the job runs before those that came after it (gearmand puts it last)
    lost.close()
    worker = connect()
    worker.can_do(function)
    eventually(lambda: shared_node.status(function), (3, 0, 1))
    assert [worker.grab_one().payload for _ in range(3)] == [b"0", b"1", b"2"]


def test_a_worker_s_several_jobs_come_back_in_their_order(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, lost, worker = connect(), shared_node.connect(), connect()
    lost.can_do(function)
    for number in range(5):
        client.submit(function, b"%d" % number, background=True)
    for _ in range(3):
        lost.grab_one()
    lost.close()
    worker.can_do(function)
    eventually(lambda: shared_node.status(function), (5, 0, 1))
    assert [worker.grab_one().payload for _ in range(5)] == [b"%d" % number for number in range(5)]


def test_a_lost_worker_s_job_wakes_another(shared_node: Node, connect: Connect, function: bytes) -> None:
    client, lost, worker = connect(), shared_node.connect(), connect()
    lost.can_do(function)
    handle = client.submit(function)
    lost.grab_one()
    lost.send(wire.WORK_STATUS, handle, b"1", b"2")
    lost.settle()
    worker.can_do(function)
    worker.sleep()
    lost.close()
    worker.expect(wire.NOOP)
    assert worker.grab_one().handle == handle
    client.expect(wire.WORK_STATUS, handle, b"1", b"2")
    # Its progress begins anew
    worker.send(wire.GET_STATUS, handle)
    worker.expect(wire.STATUS_RES, handle, b"1", b"1", b"0", b"0")
    worker.complete(handle, b"second try")
    client.expect(wire.WORK_COMPLETE, handle, b"second try")


def test_by_default_a_job_is_tried_for_ever(start_node: StartNode, connect: Connect, function: bytes) -> None:
    node = start_node("--retry-pause-seconds-max", "0", durability="memory")
    handle = connect(node).submit(function, background=True)

    def retries() -> int:
        [row] = [row for row in node.table("show jobs") if row.startswith(handle.decode() + "\t")]
        return int(row.split("\t")[1])

    for tries in range(1, 11):
        lost = node.connect()
        lost.can_do(function)
        assert lost.wait_for_job().handle == handle
        lost.close()
        eventually(retries, tries)


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
def test_at_the_retry_limit_the_job_has_failed(
    start_node: StartNode, connect: Connect, background: bool
) -> None:
    # Given a limit of two retries
    node = start_node("--job-retries", "2", durability="memory")
    client = connect(node)
    handle = client.submit(b"f", background=background)
    # When the third worker is lost with the job
    for _ in range(3):
        lost = node.connect()
        lost.can_do(b"f")
        assert lost.wait_for_job().handle == handle
        lost.close()
    # Then its clients are told, and it is gone
    if not background:
        client.expect(wire.WORK_FAIL, handle)
    eventually(lambda: node.status("f"), (0, 0, 0))


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
def test_without_retries_the_first_loss_is_the_end(
    start_node: StartNode, connect: Connect, background: bool
) -> None:
    node = start_node("--job-retries", "0", durability="memory")
    client = connect(node)
    handle = client.submit(b"f", background=background)
    lost = node.connect()
    lost.can_do(b"f")
    lost.grab_one()
    lost.close()
    if not background:
        client.expect(wire.WORK_FAIL, handle)
    eventually(lambda: node.status("f"), (0, 0, 0))


# ---- waking


def test_worker_wakeup_bounds_how_many_are_woken(start_node: StartNode, connect: Connect) -> None:
    # Given a wake-up count of one and three sleepers
    node = start_node("--worker-wakeup", "1", durability="memory")
    workers = [connect(node) for _ in range(3)]
    for worker in workers:
        worker.can_do(b"f")
        worker.sleep()
    client = connect(node)
    # When a job comes, then one is woken
    for woken_count in (1, 2, 3):
        client.submit(b"f", background=True)
        woken = []
        for worker in workers:
            worker.send(wire.ECHO_REQ, b"end")
            packet = worker.receive()
            if packet.type == wire.NOOP:
                woken.append(worker)
                worker.expect(wire.ECHO_RES, b"end")
        # The next job wakes the next one: the row is taken in turn
        assert len(woken) == 1
        workers.remove(woken[0])
        assert len(workers) == 3 - woken_count


def test_a_woken_worker_that_dies_strands_no_job(start_node: StartNode, connect: Connect) -> None:
    # Given a wake-up count of one and two sleepers, one of which is woken for the only job
    node = start_node("--worker-wakeup", "1", durability="memory")
    workers = [node.connect(), node.connect()]
    for worker in workers:
        worker.can_do(b"f")
        worker.sleep()
    connect(node).submit(b"f", background=True)
    workers[0].expect(wire.NOOP)
    # When it dies before it has grabbed
    workers[0].close()
    # Then the other is woken
    with workers[1]:
        workers[1].expect(wire.NOOP, timeout_seconds=5)
        workers[1].grab_one()


def test_by_default_all_sleepers_are_woken(connect: Connect, function: bytes) -> None:
    workers = [connect() for _ in range(3)]
    for worker in workers:
        worker.can_do(function)
        worker.sleep()
    connect().submit(function, background=True)
    for worker in workers:
        worker.expect(wire.NOOP)
    assert sum(worker.grab() is not None for worker in workers) == 1


def test_no_wake_up_without_a_job(connect: Connect, function: bytes) -> None:
    # A client that spins on NOOP, GRAB_JOB, NO_JOB costs both sides a processor (gearmand)
    client, worker = connect(), connect()
    worker.can_do(function)
    worker.sleep()
    handle = client.submit(function, background=True)
    worker.expect(wire.NOOP)
    client.line(f"cancel job {handle.decode()}")
    assert worker.grab() is None
    worker.sleep()
    with pytest.raises(PeerTimeout):
        worker.receive(timeout_seconds=0.3)


# ---- exceptions for all


def test_exceptions_may_be_the_default_for_all_clients(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--exceptions", durability="memory")
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    handle = client.submit(b"f")
    worker.grab_one()
    worker.send(wire.WORK_EXCEPTION, handle, b"why")
    client.expect(wire.WORK_EXCEPTION, handle, b"why")
