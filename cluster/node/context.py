"""What all verbs share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import TYPE_CHECKING, Final

from cluster.jobs import (
    ASKED_PAUSE_SECONDS_MAX,
    IDLE_FUNCTIONS_MAX,
    PAUSE_SECONDS_MAX,
    PENDING,
    REMEMBERED,
    SCHEDULED,
    Job,
    JobOptions,
    Ledger,
    Timers,
)
from cluster.node.ages import Ages
from cluster.node.connection import Connection
from cluster.node.events import Command, Events
from cluster.replication import SLOT_COUNT, Group, Log, entries
from cluster.wire import error, response
from cluster.wire.packets import HANDLE_BYTES_MAX, INVALID_ARGUMENT, WORK_FAIL
from cluster.wire.shown import control_character

if TYPE_CHECKING:
    from cluster.node.fleet import Fleet

# JOB_CREATED but for the handle, by the handle's length.
CREATED_HEADERS: Final = [b"\0RES\0\0\0\x08\0\0\0%c" % length for length in range(HANDLE_BYTES_MAX + 2)]


class Stop(Enum):
    """How a peer asked the node to stop."""

    NOW = "now"
    GRACEFUL = "graceful"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the pure node needs to know of the server's settings."""

    handle_prefix: bytes = b"H:node"
    durable: bool = True  # acknowledgements wait for `committed`
    job_retries: int = -1  # how often a job whose worker was lost runs again; -1 = without end
    pause_seconds_max: float = PAUSE_SECONDS_MAX  # how long a job that came back waits at most
    requeue_on_timeout: bool = True  # a background job that is over its time limit runs again
    worker_wakeup: int = 0  # how many sleepers a new job wakes; 0 = all
    exceptions: bool = False  # all connections get WORK_EXCEPTION without asking
    reclaim_seconds: float = 2.0  # how long a job that ran at a restart waits for its worker
    shutdown_from: str = "loopback"
    version: str = "0"
    process_id: int = 0
    log_level: str = "info"
    remember_seconds: float = 600.0  # how long the keys of completed jobs are remembered for who asks
    remember_jobs_max: int = 262_144  # of all slots together
    idle_function_seconds: float = 86_400.0  # how long a function without job and worker stays in lists
    idle_functions_max: int = IDLE_FUNCTIONS_MAX


class Context:
    """State and outputs of a turn."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.durable = settings.durable
        self.ledger = Ledger(
            SLOT_COUNT,
            idle_seconds=settings.idle_function_seconds,
            idle_functions_max=settings.idle_functions_max,
        )
        self.log = Log()
        self.ages = Ages(self.log)
        self.uncommitted: deque[Group] = deque()  # cut, not committed
        self.connections: dict[Connection, None] = {}
        self.dirty: list[Connection] = []  # have something in `out`
        self.urgent: list[tuple[Connection, bytes]] = []  # leave before everything else
        self.closes: list[Connection] = []
        self.released: dict[Connection, None] = {}  # have got what another node had to give
        self.fleet: Fleet | None = None  # None: standalone
        self.events = Events()
        self.commands: list[Command] = []  # of this turn, to be logged
        self.commands_left_out = 0  # beyond EVENTS_PER_TURN_MAX
        self.dispatching = True  # jobs may be given to workers (rule 11)
        self.stop: Stop | None = None
        self.refusal: str | None = None  # why background submits are refused now
        self.counter = 0  # in every handle of this start
        self.next_slot = 0  # for jobs without a unique
        self.own_slots: list[int] | None = None  # slots that are served here; None: all
        self.wall_seconds = 0.0
        self.monotonic_seconds = 0.0
        self.scheduled: Timers[Job] = Timers(
            lambda job, due: (
                job.options is not None
                and job.options.due_seconds == due
                and job.state in (PENDING, SCHEDULED)
            )
        )
        # Time limits of running jobs, reclaim times and pauses, with the delivery that each belongs to.
        self.limits: Timers[tuple[Job, int, int]] = Timers(
            lambda item, _: item[0].state == item[2] and item[0].deliveries == item[1]
        )

    def send(self, connection: Connection, data: bytes) -> None:
        """Answer or tell a peer something; it leaves at the end of the turn."""
        if not connection.out:
            self.dirty.append(connection)
        connection.out.append(data)

    def tell(self, job: Job, packet_type: int, body: bytes) -> None:
        """Say something of a job to all who wait for it."""
        if job.clients is not None:
            packet = response(packet_type, body)
            for client in job.clients:
                self.send(client, packet)

    def tell_failure(self, job: Job) -> None:
        self.tell(job, WORK_FAIL, job.handle)

    def refuse(self, connection: Connection, code: bytes, text: str) -> None:
        self.send(connection, error(code, text))

    def refuse_name(self, connection: Connection, name: bytes) -> bool:
        """Whether a new function's name has been refused: it would break the lines of others."""
        character = control_character(name)
        if character is None:
            return False
        text = f"The function name has the control character {character}: use another name"
        self.refuse(connection, INVALID_ARGUMENT, text)
        return True

    def close(self, connection: Connection) -> None:
        """Close it after what it is owed has left."""
        if not connection.closing:
            connection.closing = True
            self.closes.append(connection)

    def behind(self, connection: Connection) -> list[Job] | None:
        """The jobs in whose commit this connection's foreground jobs have to wait their turn; None: no wait.

        A background job is queued when its group is committed. What the same peer submits after it is queued
        behind it; but a node of the fleet speaks for many clients, which do not wait for each other.
        """
        group = self.log.group
        if not self.durable:
            return group.jobs or None
        gate = connection.gate
        if gate <= self.log.committed or connection.node is not None:
            return None
        for uncommitted in self.uncommitted:
            if uncommitted.number == gate:
                return uncommitted.jobs
        return group.jobs if group.number == gate else None

    def record_job(self, job: Job) -> None:
        """Put the whole state of a job into the open group."""
        if self.durable:
            self.log.append(job.slot, entries.JOB, job_record(job).encode())

    def record_hint(self, job: Job, kind: int, body: bytes) -> None:
        """Put a change of a background job into the open group; nobody waits for it."""
        if self.durable and job.background:
            self.log.append(job.slot, kind, body)

    def end(self, job: Job, outcome: int) -> None:
        """The job is over: out of every table, and out of its clients' expectations."""
        if job.background and self.durable:
            self.record_done(job, outcome)
        job.function.counts[outcome] += 1
        self.ledger.finish(job)
        clients = job.clients
        if clients is not None:
            for connection in clients:
                connection.attached.pop(job, None)
            job.clients = None

    def record_done(self, job: Job, outcome: int) -> None:
        """Put the end of a background job into the open group; remember its key if that is wanted.

        What was taken back is not done: the same key may be submitted again.
        """
        if job.background == REMEMBERED and job.coalesces and outcome != entries.CANCELLED:
            ended = int(self.wall_seconds)
            self.remember(job.slot, job.key, job.handle, ended)
            slot = self.log.slots[job.slot]
            slot.number += 1
            self.log.group.records.append(
                entries.encode_done_remembered(job.slot, slot.epoch, slot.number, outcome, job.handle, ended)
            )
        else:
            self.log.append_done(job.slot, outcome, job.handle)

    def remember(self, slot_index: int, key: bytes, handle: bytes, ended: int) -> None:
        """The key of a job that is over, so that a late repeat of its submit does not run it again."""
        remembered = self.ledger.tables[slot_index].remembered
        remembered[key] = (handle, ended)
        remembered.move_to_end(key)
        self.forget_remembered(slot_index)

    def forget_remembered(self, slot_index: int) -> None:
        """What is too old or too much; or has a time that is to come, because the clock was set back."""
        remembered = self.ledger.tables[slot_index].remembered
        before = self.wall_seconds - self.settings.remember_seconds
        after = self.wall_seconds + self.settings.remember_seconds
        limit = max(1, self.settings.remember_jobs_max // SLOT_COUNT)
        while remembered:
            key = next(iter(remembered))
            if len(remembered) <= limit and before <= remembered[key][1] <= after:
                return
            del remembered[key]

    def gate(self, connection: Connection) -> None:
        """Hold this connection's answers until the open group is committed."""
        if self.durable:
            group = self.log.group
            if connection.gate != group.number:
                connection.gate = group.number
                group.waiting.append(connection)

    def find_handle(self, handle: bytes) -> Job | None:
        """The living job of a handle; the handle names its slot."""
        slot = slot_of_handle(handle)
        return None if slot is None else self.ledger.tables[slot].jobs.get(handle)

    def admit(self, job: Job) -> None:
        """A committed (or foreground) job: into its queue, or to sleep until it is due."""
        options = job.options
        if options is not None and options.cron is not None:
            options.due_seconds = options.cron.due_after_set_back(options.due_seconds, self.wall_seconds)
        if options is not None and (options.cron is not None or options.due_seconds > self.wall_seconds):
            job.state = SCHEDULED
            if job.retries and options.cron is None:
                # In its pause, on another node or before a restart; the clocks may differ.
                longest = ASKED_PAUSE_SECONDS_MAX if options.asked else self.settings.pause_seconds_max
                self._sleep(job, min(options.due_seconds - self.wall_seconds, longest))
            else:
                self.scheduled.add(options.due_seconds, job)
        else:
            self.ledger.enqueue(job)

    def pause(self, job: Job, seconds: float, *, asked: bool) -> None:
        """A job that came back waits before it stands behind the others again.

        Its whole state is written, so that the pause and the count of tries survive a restart and a takeover.
        """
        if job.options is None:
            job.options = JobOptions()
        job.options.asked = asked
        job.options.due_seconds = ceil(self.wall_seconds + seconds)
        job.state = SCHEDULED
        self._sleep(job, seconds)
        if job.background:
            self.record_job(job)

    def _sleep(self, job: Job, seconds: float) -> None:
        """Monotonic: a clock that is set back does not make a pause longer."""
        self.limits.add(self.monotonic_seconds + seconds, (job, job.deliveries, SCHEDULED))


def slot_of_handle(handle: bytes) -> int | None:
    """The slot that a handle names; None when it is no handle of this kind."""
    try:
        slot = int(handle.rpartition(b":")[2].partition(b".")[0], 16)
    except ValueError:
        return None
    return slot if 0 <= slot < SLOT_COUNT else None


def job_record(job: Job) -> entries.JobRecord:
    """The whole state of a job, for the journal."""
    options = job.options
    return entries.JobRecord(
        handle=job.handle,
        function=job.function.name,
        key_rest=job.key[len(job.function.name) + 1 :],
        payload=job.payload,
        priority=job.priority,
        retries=job.retries,
        deliveries=job.deliveries,
        due_seconds=options.due_seconds if options else 0,
        assigned=job.worker is not None,
        reducer=options.reducer if options else None,
        cron=options.cron.source if options and options.cron else None,
        remember=job.background == REMEMBERED,
        asked_pause=options is not None and options.asked,
    )
