"""Jobs that come back from their workers: lost, given back, over their time limit, or not reclaimed.

The first time a job runs again at once, before the others; from then on after a pause, behind them
(jobs/pause.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.jobs import (
    ASKED_PAUSE_SECONDS_MAX,
    GIVEN_BACK,
    NOT_RECLAIMED,
    OVERDUE,
    RECLAIM,
    SCHEDULED,
    WORKER_LOST,
    pause_seconds,
)
from cluster.node import events
from cluster.replication import entries
from cluster.wire import packets as wire

if TYPE_CHECKING:
    from cluster.jobs import Job
    from cluster.node.connection import Connection
    from cluster.node.context import Context

PAUSE_DIGITS_MAX: Final = 20  # of GIVE_BACK's milliseconds


class Returns:
    """See the module's docstring."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger = context.ledger

    def await_return(self, connection: Connection) -> None:
        """The stream to a node broke whose workers run jobs of here: it may be back in a moment, or they
        come by themselves (rule 12). Only after that the jobs are run again."""
        context = self._context
        worker = connection.worker
        if worker is None:
            return
        due = context.monotonic_seconds + context.settings.reclaim_seconds
        for job in reversed(list(worker.running.values())):
            if job.background:
                self._ledger.release(job)
                job.state = RECLAIM
                context.limits.add(due, (job, job.deliveries, RECLAIM))

    def give_back(self, connection: Connection, body: bytes) -> None:
        """GIVE_BACK: the worker does not end this job. It runs again, after the pause that is asked for."""
        context = self._context
        handle, separator, text = body.partition(b"\0")
        if not connection.remember and connection.node is None:
            message = 'GIVE_BACK comes after OPTION_REQ "gearfleet"'
            context.refuse(connection, wire.INVALID_COMMAND, message)
            return
        if not separator or (text and not text.isdigit()) or len(text) > PAUSE_DIGITS_MAX:
            message = "GIVE_BACK wants a handle and a pause in whole milliseconds, or nothing for it"
            context.refuse(connection, wire.INVALID_ARGUMENT, message)
            return
        worker = connection.worker
        job = worker.running.get(handle) if worker is not None else None
        if worker is not None and connection.node is None:
            worker.forgive(handle)  # what it still says of this run is no error
        if job is not None:
            self.lost(job, GIVEN_BACK, _pause_asked(text))
        elif context.fleet is not None:
            context.fleet.forwarder.give_back(handle, text)

    def release(self, connection: Connection, body: bytes) -> None:
        """Another node says that its worker, which had this job, is gone, or gave it back (with a pause)."""
        handle, asked, text = body.partition(b"\0")
        worker = connection.worker
        job = worker.running.get(handle) if worker is not None else None
        if job is not None:
            self.lost(job, GIVEN_BACK if asked else WORKER_LOST, _pause_asked(text))
        elif self._context.fleet is not None:
            self._context.fleet.forwarder.withdraw_claim(connection, handle)

    # ---- losing

    def lost(self, job: Job, why: int = WORKER_LOST, asked_seconds: float = 0.0) -> None:
        """A running job's worker is gone, or gave it back: run it again, or give up.

        gearmand puts it at the tail; there the job that was first waits longest.
        """
        context = self._context
        self._ledger.release(job)
        if job.background and not context.log.slots[job.slot].serving:
            job.state = RECLAIM  # its slot is being handed over: the next primary decides
            return
        if not job.background and job.clients is None:
            job.state = RECLAIM  # not running any more; nobody waits for it
            context.end(job, entries.CANCELLED)
            return
        self._return(job, why, asked_seconds)

    def _return(self, job: Job, why: int, asked_seconds: float = 0.0) -> None:
        """Count a job's return and let it run again: the first time at once, before the others; then after
        a pause, behind them. Else a job that kills its workers would keep all others from running.

        One whose time was over pauses from the first time on: who runs it may bring its result yet.
        """
        context = self._context
        job.state = RECLAIM
        job.retries += 1
        job.function.counts[why] += 1
        if 0 <= context.settings.job_retries < job.retries:
            self._context.tell_failure(job)
            if job.background:
                reason = f"came back {job.retries} times, more than --job-retries"
                context.events.add(events.Event(events.FAILED, job.function.name, job.handle, "", reason))
            context.end(job, entries.OUT_OF_RETRIES)
            return
        fleet = context.fleet
        if fleet is not None and fleet.draining and not context.log.slots[job.slot].serving:
            fleet.give_way(job)  # a foreground job: nobody would take it here
            return
        pauses = job.retries - 1 if why == OVERDUE else job.retries - 2
        seconds_max = context.settings.pause_seconds_max
        seconds = pause_seconds(job.handle, pauses, seconds_max) if pauses >= 0 else 0.0
        if max(seconds, asked_seconds):
            context.pause(job, max(seconds, asked_seconds), asked=asked_seconds > seconds)
            return
        context.record_hint(job, entries.REQUEUED, job.handle)
        self._ledger.enqueue(job, first=pauses < 0)

    def expire(self, job: Job) -> None:
        """What a job waited for is over.

        RUNNING: its time limit (CAN_DO_TIMEOUT). A background job runs again, by default; a foreground job
        has failed, as PROTOCOL says. RECLAIM: nobody brought its result, so it is run again. SCHEDULED: its
        pause is over.
        """
        context = self._context
        if job.background and not context.log.slots[job.slot].serving:
            context.limits.add(context.monotonic_seconds + 1.0, (job, job.deliveries, job.state))
        elif job.state == SCHEDULED:
            self._ledger.enqueue(job)
        elif job.state == RECLAIM:
            self._return(job, NOT_RECLAIMED)
        else:
            self._overdue(job)

    def _overdue(self, job: Job) -> None:
        worker = job.worker
        assert worker is not None
        again = bool(job.background) and self._context.settings.requeue_on_timeout
        limit = f"{worker.timeouts[job.function]:g} s" if job.function in worker.timeouts else "withdrawn"
        verdict = "given back, to run again" if again else "failed"
        reason = f"limit {limit}: {verdict}"
        self._context.events.note(events.EXPIRED, job.function.name, job.handle, worker.connection, reason)
        # It still runs there, and its result comes late: taken while the job waits, else swallowed.
        worker.forgive(job.handle)
        if again:
            self._ledger.release(job)
            self._return(job, OVERDUE)
        else:
            self._context.tell_failure(job)
            self._context.end(job, entries.TIMED_OUT)


def _pause_asked(text: bytes) -> float:
    """The milliseconds of GIVE_BACK, in seconds."""
    return min(int(text) / 1000, ASKED_PAUSE_SECONDS_MAX) if text.isdigit() else 0.0
