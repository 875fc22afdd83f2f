"""What a clock that is set changes: the times of schedules.

What waits for a while only is kept in monotonic seconds, which nobody sets. A job with a Unix time of its own
waits for that time, as with at(1). A schedule does as in cron: see `Cron.due_after_set_back`. A clock that is
set forward makes due what was between, each schedule once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cluster.jobs import SCHEDULED, Job

if TYPE_CHECKING:
    from cluster.node.context import Context

# A smaller step is a correction that no schedule notices; nodes' clocks may differ by as much, too.
STEP_SECONDS_MIN: Final = 60.0
SCHEDULES_PER_TURN: Final = 100


class Clock:
    """Finds out that the time of day was set back, and lets the schedules follow, some at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.ahead_seconds = float("-inf")  # of the monotonic clock: the most since the last step
        self.set_back_seconds = 0.0  # the last step
        self.told = True  # of it, in the log
        self.schedules: deque[Job] = deque()  # to be looked at: while there are any, `step` is wanted

    def lags(self, ahead_seconds: float) -> None:
        """The time of day has never been so little ahead of the monotonic clock since the last step."""
        step_seconds = self.ahead_seconds - ahead_seconds
        if step_seconds < STEP_SECONDS_MIN:
            return
        self.ahead_seconds = ahead_seconds
        self.set_back_seconds = step_seconds
        self.told = False
        self.schedules = deque(
            job
            for _, _, job in self._context.scheduled.heap
            if job.options is not None and job.options.cron is not None
        )

    def step(self) -> None:
        """Give some schedules the time that they have now."""
        context = self._context
        for _ in range(min(SCHEDULES_PER_TURN, len(self.schedules))):
            schedule = self.schedules.popleft()
            options = schedule.options
            if schedule.state != SCHEDULED or options is None or options.cron is None:
                continue
            due = options.cron.due_after_set_back(
                options.due_seconds, context.wall_seconds, self.set_back_seconds
            )
            if due == options.due_seconds:
                continue
            options.due_seconds = due
            context.scheduled.add(due, schedule)
            if context.refusal is None and context.log.slots[schedule.slot].serving:
                context.record_job(schedule)
