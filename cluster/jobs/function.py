"""The queues of one function name."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.jobs.job import QUEUED

if TYPE_CHECKING:
    from cluster.jobs.job import Job
    from cluster.jobs.worker import Worker

PRIORITIES: Final = 3
IDLE_FUNCTIONS_MAX: Final = 4096  # kept without a job or a worker; each costs about 3 KB
# What `Function.counts` counts: how jobs ended (numbered as in the DONE entry), and why some came back.
OUTCOMES: Final = ("completed", "failed", "exception", "timed_out", "cancelled", "out_of_retries")
RETURNS: Final = ("worker_lost", "time_limit", "not_reclaimed", "given_back")
CANCELLED: Final = OUTCOMES.index("cancelled")
WORKER_LOST, OVERDUE, NOT_RECLAIMED, GIVEN_BACK = range(len(OUTCOMES), len(OUTCOMES) + len(RETURNS))
# A cancelled job stays in its queue as a husk until it is reached, or until husks are this many and
# more than half of the queue.
HUSKS_BEFORE_SWEEP: Final = 64


class QueueLimits(NamedTuple):
    """How many jobs of a function may be on the server, running ones included; 0 = unlimited."""

    high: int = 0
    normal: int = 0
    low: int = 0


class Function:
    """One function: jobs waiting by priority, counters, workers that can do it."""

    __slots__ = (
        "bare_key",
        "counts",
        "husks",
        "limits",
        "name",
        "queues",
        "running",
        "sleepers",
        "total",
        "workers",
    )

    def __init__(self, name: bytes, counts: list[int] | None) -> None:
        self.name = name
        # Since the start: OUTCOMES, then RETURNS. What was counted before it was forgotten goes on.
        self.counts = counts or [0] * (len(OUTCOMES) + len(RETURNS))
        self.bare_key = name + b"\0"  # shared by all jobs without a unique
        self.queues: tuple[deque[Job], deque[Job], deque[Job]] = (deque(), deque(), deque())
        self.husks = [0, 0, 0]
        self.total = 0
        self.running = 0
        self.workers: dict[Worker, None] = {}
        # Workers that sleep, or slept until another function woke them: check `asleep`.
        self.sleepers: dict[Worker, None] = {}
        self.limits: QueueLimits | None = None

    def queued(self, priority: int) -> int:
        """How many jobs wait with this priority."""
        return len(self.queues[priority]) - self.husks[priority]

    def leave_husk(self, priority: int) -> None:
        """A job of this queue was cancelled; it is skipped when its turn comes."""
        self.husks[priority] += 1
        queue = self.queues[priority]
        if self.husks[priority] > HUSKS_BEFORE_SWEEP and self.husks[priority] * 2 > len(queue):
            alive = [job for job in queue if job.state == QUEUED]
            queue.clear()
            queue.extend(alive)
            self.husks[priority] = 0

    @property
    def idle(self) -> bool:
        """No job, no worker, no limit: nothing but its past speaks for keeping it in the list."""
        return not self.total and not self.workers and self.limits is None

    @property
    def served(self) -> bool:
        """Whether a worker has ever had a job of it in hand, as far as it is over: a cancel needs none."""
        return sum(self.counts) > self.counts[CANCELLED]

    def __repr__(self) -> str:
        return f"<Function {self.name!r} total={self.total} running={self.running}>"
