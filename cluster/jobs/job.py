"""A job and its states.

                        not durable yet            its time has not come
        submit ──────────▶ PENDING ───────────────────▶ SCHEDULED
           │                  │                            │ due
           │ foreground       │ committed                  ▼
           └──────────────────┴────────────────────────▶ QUEUED ◀──────────┐
                                                           │ grab          │ worker lost,
                                                           ▼               │ or not reclaimed
                            FINISHED ◀────────────────  RUNNING ───────────┤
                               ▲      result, failure,                     │ server restarted
                               │      time-out                             ▼
                               └──────────────────────────────────────  RECLAIM
                                      result by handle

A job that came back more than once is SCHEDULED for a while before it is QUEUED again (jobs/pause.py).

A cancel leads from every state to FINISHED. A finished job is in no table and in no count.

A job's key is `function NUL unique`; jobs with one key coalesce while the first one lives. The key of a
job without a unique ends with the NUL and joins nothing. The unique "-" means "the payload is the
unique": its key is `function NUL - NUL digest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cluster.jobs.cron import Cron
    from cluster.jobs.function import Function
    from cluster.jobs.worker import Worker

PENDING: Final = 0
SCHEDULED: Final = 1
QUEUED: Final = 2
RUNNING: Final = 3
RECLAIM: Final = 4
FINISHED: Final = 5
STATE_NAMES: Final = ("pending", "scheduled", "queued", "running", "reclaim", "finished")

# Kinds of jobs, in `Job.background`: the true ones survive their server.
FOREGROUND: Final = 0
BACKGROUND: Final = 1
REMEMBERED: Final = 2  # and its key is remembered for a while when it is over

HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2
# Ends the key of a schedule. It must not be that of the jobs that it makes: they coalesce among themselves.
SCHEDULE_KEY_TAIL: Final = b"\0cron"


@dataclass(slots=True)
class JobOptions:
    """What few jobs have; the others share the cost of one None."""

    due_seconds: int = 0  # Unix time at which the job may run
    asked: bool = False  # a worker asked that it not run before `due_seconds`
    cron: Cron | None = None  # this is a schedule; each firing makes a job of its own
    reducer: bytes | None = None  # SUBMIT_REDUCE_JOB: `reducer` and `aggregate`, NUL between


class Job:
    """One job. Millions may be queued: every attribute costs 8 bytes, every object more."""

    __slots__ = (
        "background",
        "clients",
        "deliveries",
        "function",
        "handle",
        "key",
        "options",
        "payload",
        "priority",
        "progress",
        "retries",
        "slot",
        "state",
        "worker",
    )

    def __init__(
        self,
        handle: bytes,
        function: Function,
        key: bytes,
        payload: bytes,
        priority: int,
        background: int,
        slot: int,
        state: int,
    ) -> None:
        self.handle = handle
        self.function = function
        self.key = key
        self.payload = payload
        self.priority = priority
        self.background = background  # FOREGROUND, BACKGROUND or REMEMBERED
        self.slot = slot
        self.state = state
        self.clients: list[Any] | None = None  # attached connections; opaque here
        self.worker: Worker | None = None
        self.progress: tuple[bytes, bytes] | None = None  # as the worker wrote them
        self.retries = 0  # how often its worker was lost
        self.deliveries = 0  # how often it was given to a worker
        self.options: JobOptions | None = None

    @property
    def unique(self) -> bytes:
        """The unique as the client gave it."""
        return self.key.split(b"\0", 2)[1]

    @property
    def coalesces(self) -> bool:
        """Whether a later submit with the same key joins this job."""
        return len(self.key) > len(self.function.name) + 1

    def __repr__(self) -> str:
        return f"<Job {self.handle!r} {STATE_NAMES[self.state]}>"
