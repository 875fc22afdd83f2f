"""Lines about single jobs."""

from __future__ import annotations

from collections.abc import Callable

from structlog import get_logger
from structlog.testing import capture_logs

from cluster.node.events import EXPIRED, FAILED, SHORT_LIMIT, Event
from cluster.server.job_log import LINES_PER_SECOND_MAX, JobLog
from cluster.wire import packets as wire
from tests.support import Node, Peer, eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


def test_some_lines_a_second_are_written_and_the_others_counted() -> None:
    events = [Event(FAILED, b"f", b"H:%d" % number, "10.0.0.1:5 w", "WORK_FAIL") for number in range(50)]
    with capture_logs() as lines:
        log = JobLog(get_logger())
        log.write(events, 7, 10.1)
        log.write(events, 0, 10.9)
        log.write([], 0, 11.0)
    assert len(lines) == LINES_PER_SECOND_MAX + 1
    assert lines[0]["event"] == FAILED
    assert (lines[0]["function"], lines[0]["handle"], lines[0]["worker"]) == ("f", "H:0", "10.0.0.1:5 w")
    assert lines[-1]["not_logged"] == 100 + 7 - LINES_PER_SECOND_MAX


def test_a_worker_is_warned_of_once_for_each_function_although_it_connects_again() -> None:
    with capture_logs() as lines:
        log = JobLog(get_logger())
        for second in range(10):
            for function in (b"f", b"g"):
                log.write([Event(SHORT_LIMIT, function, b"", f"10.0.0.1:{second} w", "")], 0, second)
    assert [line["function"] for line in lines] == ["f", "g"]


def test_an_operator_reads_of_time_limits_and_failures(start_node: StartNode, connect: Connect) -> None:
    """As PHP's manual has it, a worker asks for 30 seconds, and gets 30 milliseconds, hence a second."""
    # Given a durable background job that takes longer
    node = start_node()
    client, worker = connect(node), connect(node)
    handle = client.submit(b"resize", background=True)
    worker.send(wire.SET_CLIENT_ID, b"php-1")
    worker.send(wire.CAN_DO_TIMEOUT, b"resize", b"30")
    warned = node.wait_for_event(SHORT_LIMIT)
    assert warned["function"] == "resize"
    assert "taken for 30 ms, rounded up to 1 s" in warned["reason"]
    # When its time is over
    assert worker.grab_one().handle == handle
    expired = node.wait_for_event(EXPIRED)
    # Then the log tells all of it, and the job is not gone
    assert (expired["function"], expired["handle"]) == ("resize", handle.decode())
    assert expired["worker"].startswith("127.0.0.1")
    assert expired["worker"].endswith(" php-1")
    assert expired["reason"] == "limit 1 s: given back, to run again"
    assert node.status(b"resize") == (1, 0, 1)
    other = connect(node)
    other.can_do(b"resize")
    assert other.wait_for_job().handle == handle
    # And when it fails, with what
    other.send(wire.WORK_EXCEPTION, handle, b"RuntimeError: no such photo")
    failed = node.wait_for_event(FAILED)
    assert (failed["handle"], failed["reason"]) == (handle.decode(), "RuntimeError: no such photo")


def test_a_job_over_its_limit_fails_where_that_is_wanted(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--on-timeout", "fail", durability="memory")
    client, worker = connect(node), connect(node)
    client.submit(b"f", background=True)
    worker.send(wire.CAN_DO_TIMEOUT, b"f", b"1000")
    worker.grab_one()
    assert node.wait_for_event(EXPIRED)["reason"] == "limit 1 s: failed"
    eventually(lambda: node.status(b"f"), (0, 0, 1))
