"""Lines about single jobs."""

from __future__ import annotations

from structlog import get_logger
from structlog.testing import capture_logs

from cluster.node.events import FAILED, SHORT_LIMIT, Event
from cluster.server.job_log import LINES_PER_SECOND_MAX, JobLog


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
