"""One worker connection, as the jobs see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cluster.jobs.function import Function
    from cluster.jobs.job import Job

FORGIVEN_MAX: Final = 256  # handles kept for each worker; the oldest goes first


class Worker:
    """What a worker can do, what it holds, whether it sleeps."""

    __slots__ = (
        "abilities",
        "asleep",
        "connection",
        "forgiven",
        "noop_sent",
        "registered",
        "running",
        "served",
        "timeouts",
    )

    def __init__(self, connection: Any) -> None:
        self.connection = connection  # opaque here
        # Function -> its turn: when it was served last, counted in grabs, and below 0 before that. The lowest
        # comes first.
        self.abilities: dict[Function, int] = {}
        self.timeouts: dict[Function, float] = {}  # seconds (CAN_DO_TIMEOUT)
        self.running: dict[bytes, Job] = {}  # by handle
        self.asleep = False
        self.noop_sent = False  # at most one NOOP until the next grab
        self.served = 0
        self.registered = 0
        # Handles whose next result is neither wanted nor an error: the job was taken from this worker while
        # it ran it, or ended with an exception. True: that exception has come. Many libraries send WORK_FAIL
        # or WORK_COMPLETE behind one; both together are one result.
        self.forgiven: dict[bytes, bool] = {}

    def forgive(self, handle: bytes, *, excepted: bool = False) -> None:
        """Expect a result for a job that is over, or the rest of it when its exception has come."""
        self.forgiven.pop(handle, None)  # it becomes the youngest
        self.forgiven[handle] = excepted
        if len(self.forgiven) > FORGIVEN_MAX:
            del self.forgiven[next(iter(self.forgiven))]
