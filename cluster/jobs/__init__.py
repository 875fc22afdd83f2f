"""One job's life: queues, coalescing, who gets what. Pure: the time is an argument; nothing here knows
packets, journals or sockets.

    job.py       Job, and its states as a drawing
    function.py  Function: the three queues of one function name, its counters and its limits
    worker.py    Worker: what one worker connection can do, holds and waits for
    ledger.py    Ledger: all of the above, and every transition between states
    cron.py      the five cron fields of SUBMIT_JOB_SCHED
    pause.py     how long a job that came back waits
    timers.py    what is due when
"""

from cluster.jobs.cron import Cron, CronError
from cluster.jobs.function import (
    GIVEN_BACK,
    IDLE_FUNCTIONS_MAX,
    NOT_RECLAIMED,
    OUTCOMES,
    OVERDUE,
    PRIORITIES,
    RETURNS,
    WORKER_LOST,
    Function,
    QueueLimits,
)
from cluster.jobs.job import (
    BACKGROUND,
    FINISHED,
    FOREGROUND,
    HIGH,
    LOW,
    NORMAL,
    PENDING,
    QUEUED,
    RECLAIM,
    REMEMBERED,
    RUNNING,
    SCHEDULED,
    STATE_NAMES,
    Job,
    JobOptions,
)
from cluster.jobs.ledger import Ledger
from cluster.jobs.pause import ASKED_PAUSE_SECONDS_MAX, PAUSE_SECONDS, PAUSE_SECONDS_MAX, pause_seconds
from cluster.jobs.timers import Timers
from cluster.jobs.worker import Worker

__all__ = [
    "ASKED_PAUSE_SECONDS_MAX",
    "BACKGROUND",
    "FINISHED",
    "FOREGROUND",
    "GIVEN_BACK",
    "HIGH",
    "IDLE_FUNCTIONS_MAX",
    "LOW",
    "NORMAL",
    "NOT_RECLAIMED",
    "OUTCOMES",
    "OVERDUE",
    "PAUSE_SECONDS",
    "PAUSE_SECONDS_MAX",
    "PENDING",
    "PRIORITIES",
    "QUEUED",
    "RECLAIM",
    "REMEMBERED",
    "RETURNS",
    "RUNNING",
    "SCHEDULED",
    "STATE_NAMES",
    "WORKER_LOST",
    "Cron",
    "CronError",
    "Function",
    "Job",
    "JobOptions",
    "Ledger",
    "QueueLimits",
    "Timers",
    "Worker",
    "pause_seconds",
]
