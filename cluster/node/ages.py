"""How old a job is, without a byte of memory for each job.

A handle ends with a counter that this process gives out in order. Once a second, and only when jobs came
meanwhile, the counter is noted with the time: so the counter in a handle tells, by bisection, the second in
which the job came. Marks are bounded: of the last hours there is one for each second, of the last weeks one
for each minute, and what is older still is "at least" so old.

Who made a job is in its handle, too: the epoch in which the slot was led, or the start of the node for a
foreground job. A job that another process made (before a restart, or at the primary before this one) is at
least as old as this primacy: that is what is told of it, as "at least".
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.jobs.job import QUEUED

if TYPE_CHECKING:
    from cluster.jobs import Function, Job
    from cluster.replication import Log

MARK_SECONDS: Final = 1.0  # between two marks: how exact the age of a young job is
COARSE_SECONDS: Final = 60.0  # the same of an old one
MARKS_MAX: Final = 16_384  # of seconds: 4 hours and more, 16 bytes each
COARSE_MARKS_MAX: Final = 65_536  # of minutes: 45 days and more
HUSKS_PASSED_MAX: Final = 256  # cancelled jobs at the head of a queue that are looked behind


class Age(NamedTuple):
    """Seconds since a job was submitted; not `exact`: at least as many."""

    seconds: float
    exact: bool


class _Marks:
    """How many jobs had come by when, at least `every_seconds` apart."""

    __slots__ = ("_counters", "_every_seconds", "_marks_max", "_next", "_seconds")

    def __init__(self, every_seconds: float, marks_max: int) -> None:
        self._every_seconds = every_seconds
        self._marks_max = marks_max
        self._counters = array("Q")
        self._seconds = array("d")
        self._next = 0.0

    def add(self, counter: int, now: float) -> None:
        if now < self._next:
            return
        self._next = now + self._every_seconds
        if self._counters and self._counters[-1] == counter:
            # Nobody came since: the next one comes from now on.
            self._seconds[-1] = now
            return
        self._counters.append(counter)
        self._seconds.append(now)
        if len(self._counters) > self._marks_max:
            half = self._marks_max // 2
            del self._counters[:half]
            del self._seconds[:half]

    def before(self, counter: int) -> float | None:
        """When the last mark before this job was set; None when it is older than all marks."""
        index = bisect_left(self._counters, counter) - 1
        return self._seconds[index] if index >= 0 else None

    @property
    def first(self) -> float:
        return self._seconds[0] if self._seconds else 0.0


class Ages:
    """The marks of this process, and when it began to lead each slot."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._marks = _Marks(MARK_SECONDS, MARKS_MAX)
        self._coarse = _Marks(COARSE_SECONDS, COARSE_MARKS_MAX)
        self._began: float | None = None
        self._led: dict[int, float] = {}  # slot: since when, where that is not since the start
        self.next_mark = 0.0  # no turn before it marks

    def mark(self, counter: int, monotonic_seconds: float) -> None:
        """Jobs after `counter` come now or later."""
        self.next_mark = monotonic_seconds + MARK_SECONDS
        if self._began is None:
            self._began = monotonic_seconds
        self._marks.add(counter, monotonic_seconds)
        self._coarse.add(counter, monotonic_seconds)

    def led(self, slot_index: int, monotonic_seconds: float) -> None:
        """This node serves the slot from now on."""
        self._led[slot_index] = monotonic_seconds

    def of(self, job: Job, monotonic_seconds: float) -> Age:
        """How long ago a job was submitted."""
        slot = self._log.slots[job.slot]
        own, dot, counter = job.handle.rpartition(b".")
        if own + dot in (slot.handle_prefix, slot.foreground_prefix):
            number = int(counter, 16)
            came = self._marks.before(number)
            if came is None:
                came = self._coarse.before(number)
            exact = came is not None
            since = came if came is not None else self._coarse.first
        else:
            exact, since = False, self._led.get(job.slot, self._began or 0.0)
        return Age(max(0.0, monotonic_seconds - since), exact)

    def oldest_waiting(self, function: Function, monotonic_seconds: float) -> Age | None:
        """The age of the oldest job among those at the heads of a function's queues: its cost does not grow
        with them. None when nothing waits."""
        oldest: Age | None = None
        for queue in function.queues:
            for position, job in enumerate(queue):
                if job.state == QUEUED:
                    age = self.of(job, monotonic_seconds)
                    oldest = age if oldest is None else max(oldest, age)
                    break
                if position == HUSKS_PASSED_MAX:
                    break
        return oldest
