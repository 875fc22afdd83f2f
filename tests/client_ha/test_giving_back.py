"""Retry at a real node: one job goes back, its connection and the others stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from client_ha import HAClient, HAWorker, JobContext, Retry, Timing
from tests.support import WAIT_SECONDS, Node

StartNode = Callable[..., Node]


def test_a_job_comes_back_after_the_time_asked_for_and_the_others_go_on(
    start_node: StartNode, patient: Timing
) -> None:
    node = start_node(durability="memory")
    worker = HAWorker(node.address, concurrency=2, timing=patient)
    tries: list[float] = []
    come_back = threading.Event()

    @worker.task("later")
    def later(job: JobContext) -> str:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise Retry("not now", after=1.5)
        come_back.set()
        return "now"

    @worker.task("long")
    def long(job: JobContext) -> str:
        return "through" if come_back.wait(WAIT_SECONDS) else "waited in vain"

    with worker, HAClient(node.address, timing=patient) as client:
        # Given a job that runs until another has been given back and has come again
        through = client.submit("long")
        again = client.submit("later")
        # Then both end, the one after its time, the other where it began
        assert again.result(timeout=WAIT_SECONDS) == b"now"
        assert through.result(timeout=WAIT_SECONDS) == b"through"
    assert 1.4 <= tries[1] - tries[0] <= 10
    assert worker.stats.jobs == 3  # the long one ran once
