"""What workers say."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from cluster.jobs import (
    QUEUED,
    RECLAIM,
    REMEMBERED,
    RUNNING,
    SCHEDULED,
    Worker,
)
from cluster.node import events
from cluster.node.context import Context, slot_of_handle
from cluster.replication import entries
from cluster.wire import MissingArguments, response
from cluster.wire import packets as wire
from cluster.wire.numbers import leading_number, progress_number
from cluster.wire.shown import for_text_protocol

if TYPE_CHECKING:
    from cluster.jobs import Job
    from cluster.node.connection import Connection
    from cluster.node.returns import Returns

NOOP: Final = response(wire.NOOP)
NO_JOB: Final = response(wire.NO_JOB)
_pack_header: Final = Struct(">4sII").pack
# gearmand's floor; a shorter limit is rounded up (libgearman-server/connection.cc).
TIMEOUT_SECONDS_MIN: Final = 1.0
SHORT_LIMIT_MILLISECONDS: Final = 1000  # who asks for less has probably meant seconds
ABILITIES_MAX: Final = 100_000  # functions of one connection
WITHHELD_PER_GRAB: Final = 256  # jobs that one grab passes over
_LAST: Final = frozenset({wire.WORK_COMPLETE, wire.WORK_FAIL})  # nothing of a job follows these
_FAILURES: Final = frozenset({wire.WORK_FAIL, wire.WORK_EXCEPTION})


class WorkerVerbs:
    """One small method for each packet that a worker sends."""

    def __init__(self, context: Context, returns: Returns) -> None:
        self._context = context
        self._returns = returns
        self._ledger = context.ledger

    # ---- abilities

    def can_do(self, connection: Connection, body: bytes) -> None:
        self._can_do(connection, body, 0.0)

    def can_do_timeout(self, connection: Connection, body: bytes) -> None:
        """CAN_DO_TIMEOUT: milliseconds, as gearmand has it; 0, -1 and what is no number mean no limit."""
        name, separator, text = body.partition(b"\0")
        if not separator:
            message = str(MissingArguments(wire.CAN_DO_TIMEOUT, 1))
            self._context.refuse(connection, wire.INVALID_PACKET, message)
            return
        milliseconds = leading_number(text)
        seconds = max(TIMEOUT_SECONDS_MIN, milliseconds / 1000) if milliseconds > 0 else 0.0
        if 0 < milliseconds < SHORT_LIMIT_MILLISECONDS:
            reason = f"taken for {milliseconds} ms, rounded up to {seconds:g} s; a second is 1000"
            self._context.events.note(events.SHORT_LIMIT, name, b"", connection, reason)
        self._can_do(connection, name, seconds)

    def _can_do(self, connection: Connection, name: bytes, timeout_seconds: float) -> None:
        context = self._context
        name = name.rstrip(b"\0")
        if not name or b"\0" in name:
            context.refuse(connection, wire.INVALID_ARGUMENT, "The function name is empty or has a NUL")
            return
        if len(name) > wire.FUNCTION_BYTES_MAX:
            text = f"Function name too large: {len(name)} bytes, at most {wire.FUNCTION_BYTES_MAX}"
            context.refuse(connection, wire.ARGUMENT_TOO_LARGE, text)
            return
        if name not in self._ledger.functions and context.refuse_name(connection, name):
            return
        worker = connection.worker or self.new_worker(connection)
        if len(worker.abilities) >= ABILITIES_MAX:
            text = f"A connection registers at most {ABILITIES_MAX} functions"
            context.refuse(connection, wire.ARGUMENT_TOO_LARGE, text)
            return
        self._ledger.can_do(worker, name, timeout_seconds)

    def cannot_do(self, connection: Connection, body: bytes) -> None:
        """CANT_DO: no more jobs of this function; what is running goes on."""
        worker = connection.worker
        function = self._ledger.functions.get(body.rstrip(b"\0"))
        if worker is not None and function is not None:
            self._ledger.cannot_do(worker, function)

    def reset_abilities(self, connection: Connection, body: bytes) -> None:
        worker = connection.worker
        if worker is not None:
            for function in list(worker.abilities):
                self._ledger.cannot_do(worker, function)

    def set_client_id(self, connection: Connection, body: bytes) -> None:
        """SET_CLIENT_ID: cut to what gearmand keeps; white space would break `workers`."""
        words = body.split(b"\0", 1)[0].split()
        shown = for_text_protocol(b"_".join(words))[: wire.CLIENT_ID_BYTES_MAX]
        # What was cut off may have been all that was no UTF-8
        connection.client_id = for_text_protocol(shown)[: wire.CLIENT_ID_BYTES_MAX] or b"-"

    def all_yours(self, connection: Connection, body: bytes) -> None:
        """ALL_YOURS: a worker that has no other server. Nothing here depends on it."""

    # ---- grabbing

    def pre_sleep(self, connection: Connection, body: bytes) -> None:
        worker = connection.worker or self.new_worker(connection)
        # It has had its NOOP and goes back to sleep, maybe for a job of another server: tell it again.
        worker.noop_sent = False
        # While nothing is given out, it would be woken for nothing, again and again.
        if not self._ledger.sleep(worker, anyway=not self._context.dispatching):
            self.wake(worker)

    def wake(self, worker: Worker) -> None:
        """NOOP: there may be a job. One is enough until the worker grabs."""
        if not worker.noop_sent:
            worker.noop_sent = True
            self._context.send(worker.connection, NOOP)

    def _grab(self, connection: Connection) -> Job | None:
        worker = connection.worker
        if worker is None:
            worker = self.new_worker(connection)
        worker.noop_sent = worker.asleep = False
        context = self._context
        if not connection.out:
            context.dirty.append(connection)
        job = self._ledger.grab(worker) if context.dispatching else None
        if job is not None and job.background and not context.log.slots[job.slot].serving:
            job = self._grab_on(worker, job)
        if job is None:
            connection.out.append(NO_JOB)
            return None
        if job.background and context.durable:
            context.log.append(job.slot, entries.ASSIGNED, job.handle)
        if worker.timeouts:
            seconds = worker.timeouts.get(job.function)
            if seconds is not None:
                context.limits.add(context.monotonic_seconds + seconds, (job, job.deliveries, RUNNING))
        return job

    def _grab_on(self, worker: Worker, job: Job | None) -> Job | None:
        """The next job of a served slot. Those of one that is being handed over are withheld: the next
        primary would not hear that they are with a worker, and give them to another."""
        fleet = self._context.fleet
        assert fleet is not None
        slots = self._context.log.slots
        for _ in range(WITHHELD_PER_GRAB):
            if job is None or not job.background or slots[job.slot].serving:
                return job
            self._ledger.withhold(job)
            fleet.withheld.setdefault(job.slot, []).append(job)
            job = self._ledger.grab(worker)
        if job is not None and job.background and not slots[job.slot].serving:
            self._ledger.withhold(job)
            fleet.withheld.setdefault(job.slot, []).append(job)
            return None
        return job

    def grab(self, connection: Connection, body: bytes) -> None:
        """GRAB_JOB: function and payload."""
        job = self._grab(connection)
        if job is not None:
            assignment = b"\0".join((job.handle, job.function.name, job.payload))
            connection.out.append(
                _pack_header(wire.MAGIC_RESPONSE, wire.JOB_ASSIGN, len(assignment)) + assignment
            )

    def grab_unique(self, connection: Connection, body: bytes) -> None:
        """GRAB_JOB_UNIQ: the unique too."""
        job = self._grab(connection)
        if job is not None:
            self._assign_unique(connection, job)

    def grab_all(self, connection: Connection, body: bytes) -> None:
        """GRAB_JOB_ALL: the reducer too, if the job has one (as gearmand; else JOB_ASSIGN_UNIQ)."""
        job = self._grab(connection)
        if job is None:
            return
        if job.options is None or job.options.reducer is None:
            self._assign_unique(connection, job)
            return
        # PROTOCOL has four arguments before the payload; the aggregate behind the reducer is for clients.
        reducer = job.options.reducer.split(b"\0", 1)[0]
        connection.out.append(
            response(wire.JOB_ASSIGN_ALL, job.handle, job.function.name, job.unique, reducer, job.payload)
        )

    def _assign_unique(self, connection: Connection, job: Job) -> None:
        assignment = b"%b\0%b\0%b\0%b" % (job.handle, job.function.name, job.unique, job.payload)
        connection.out.append(
            _pack_header(wire.MAGIC_RESPONSE, wire.JOB_ASSIGN_UNIQ, len(assignment)) + assignment
        )

    # ---- results

    def _held(self, connection: Connection, handle: bytes) -> Job | None:
        """The job of a result: one that this worker holds, or one that waits and that it kept.

        A worker whose connection broke, or whose server restarted, may still deliver: while the job
        waits to be run again, its handle is enough (rule 12).
        """
        worker = connection.worker or self.new_worker(connection)
        job = worker.running.get(handle)
        if job is None:
            if worker.forgiven.get(handle):
                return None  # its exception has come: what follows is no success
            job = self._context.find_handle(handle)
            if job is None or not _waits_again(job):
                return None
            if not job.deliveries:
                # Never given out, as far as is known here. Of an inherited job the last hint may be lost.
                slot = self._context.log.slots[job.slot]
                if not job.background or handle.startswith(slot.handle_prefix):
                    return None
            if job.background and not self._context.log.slots[job.slot].serving:
                return None
            self.adopt(worker, job)
        elif job.background and not self._context.log.slots[job.slot].serving:
            return None
        return job

    def complete(self, connection: Connection, body: bytes) -> None:
        """WORK_COMPLETE: the hot path."""
        split = body.find(b"\0")
        handle = body if split < 0 else body[:split]
        if split < 0:
            body += b"\0"  # clients want their two arguments
        worker = connection.worker
        job = worker.running.get(handle) if worker is not None else None
        if job is None:
            job = self._held(connection, handle)
            if job is None:
                self._not_held(connection, body, wire.WORK_COMPLETE)
                return
        context = self._context
        if job.background and not context.log.slots[job.slot].serving:
            self._not_held(connection, body, wire.WORK_COMPLETE)  # on its way to another node
            return
        clients = job.clients
        if clients is not None:
            packet = _pack_header(wire.MAGIC_RESPONSE, wire.WORK_COMPLETE, len(body)) + body
            for client in clients:
                if not client.out:
                    context.dirty.append(client)
                client.out.append(packet)
                client.attached.pop(job, None)
            job.clients = None
        background = job.background
        if background and context.durable:
            if background == REMEMBERED:
                context.record_done(job, entries.COMPLETED)
            else:
                context.log.append_done(job.slot, entries.COMPLETED, handle)
        job.function.counts[entries.COMPLETED] += 1
        self._ledger.finish(job)

    def fail(self, connection: Connection, body: bytes) -> None:
        """WORK_FAIL."""
        handle = body.split(b"\0", 1)[0]
        if self._failed_late(connection, handle, wire.WORK_FAIL):
            return
        job = self._held(connection, handle)
        if job is None:
            self._not_held(connection, body, wire.WORK_FAIL)
            return
        self._context.tell_failure(job)
        if job.background:
            self._context.events.note(events.FAILED, job.function.name, handle, connection, "WORK_FAIL")
        self._context.end(job, entries.FAILED)

    def exception(self, connection: Connection, body: bytes) -> None:
        """WORK_EXCEPTION ends the job; who did not ask for exceptions is told WORK_FAIL."""
        handle = body.split(b"\0", 1)[0]
        if self._failed_late(connection, handle, wire.WORK_EXCEPTION):
            return
        job = self._held(connection, handle)
        if job is None:
            self._not_held(connection, body, wire.WORK_EXCEPTION)
            return
        context = self._context
        packet = response(wire.WORK_EXCEPTION, body if b"\0" in body else body + b"\0")
        failure = response(wire.WORK_FAIL, handle)
        for client in job.clients or ():
            context.send(client, packet if client.exceptions else failure)
        assert connection.worker is not None
        connection.worker.forgive(handle, excepted=True)
        if job.background:
            reason = events.text(body[len(handle) + 1 :]) or "WORK_EXCEPTION"
            self._context.events.note(events.FAILED, job.function.name, handle, connection, reason)
        context.end(job, entries.EXCEPTION)

    def _failed_late(self, connection: Connection, handle: bytes, packet_type: int) -> bool:
        """Whether a failure is of a job that was taken from this worker, because its time was over, and waits
        to be run again. HAWorker reports its own time limits so. A late success counts; this does not."""
        worker = connection.worker
        if worker is None or handle not in worker.forgiven or handle in worker.running:
            return False
        job = self._context.find_handle(handle)
        if job is None or not _waits_again(job):
            return False
        _swallow(worker, handle, packet_type)
        return True

    def status(self, connection: Connection, body: bytes) -> None:
        """WORK_STATUS: kept, and told to all who wait."""
        arguments = body.split(b"\0", 2)
        handle = arguments[0]
        if len(arguments) != 3:
            text = str(MissingArguments(wire.WORK_STATUS, len(arguments)))
            self._context.refuse(connection, wire.INVALID_PACKET, text)
            return
        job = self._held(connection, handle)
        if job is None:
            self._not_held(connection, body, wire.WORK_STATUS)
            return
        # The numbers are kept and not the texts: those may be of any length.
        job.progress = progress = progress_number(arguments[1]), progress_number(arguments[2])
        self._context.record_hint(job, entries.PROGRESS, b"\0".join((handle, *progress)))
        self._context.tell(job, wire.WORK_STATUS, body)

    def data(self, connection: Connection, body: bytes) -> None:
        self._pass_on(connection, wire.WORK_DATA, body)

    def warning(self, connection: Connection, body: bytes) -> None:
        self._pass_on(connection, wire.WORK_WARNING, body)

    def _pass_on(self, connection: Connection, packet_type: int, body: bytes) -> None:
        handle = body.split(b"\0", 1)[0]
        job = self._held(connection, handle)
        if job is None:
            self._not_held(connection, body, packet_type)
        else:
            self._context.tell(job, packet_type, body if b"\0" in body else body + b"\0")

    def _not_held(self, connection: Connection, body: bytes, packet_type: int) -> None:
        """A result for a job that this connection does not hold: another node may want it."""
        handle = body.split(b"\0", 1)[0]
        fleet = self._context.fleet
        worker = connection.worker
        forgiven = worker is not None and handle in worker.forgiven and handle not in worker.running
        if forgiven and connection.node is None:
            assert worker is not None
            if packet_type in _FAILURES or worker.forgiven[handle]:
                _swallow(worker, handle, packet_type)  # only a late success is wanted anywhere
                return
        if fleet is not None and fleet.forwarder.pass_result(connection, packet_type, body, handle):
            return
        if forgiven:
            assert worker is not None
            _swallow(worker, handle, packet_type)
        elif connection.node is None:
            self._context.refuse(connection, wire.JOB_NOT_FOUND, "Job given in work result not found")

    def adopt(self, worker: Worker, job: Job) -> None:
        """A worker kept a job: it has it again, with the time limit that it asked for."""
        context = self._context
        queued = job.state in (QUEUED, SCHEDULED)
        worker.forgiven.pop(job.handle, None)
        self._ledger.adopt(worker, job)
        if queued:
            # The next primary has to know, or it gives the job out at once.
            job.deliveries += 1
            context.record_hint(job, entries.ASSIGNED, job.handle)
        else:
            job.deliveries = job.deliveries or 1
        seconds = worker.timeouts.get(job.function)
        if seconds is not None:
            context.limits.add(context.monotonic_seconds + seconds, (job, job.deliveries, RUNNING))

    def claim(self, connection: Connection, body: bytes) -> None:
        """CLAIM_JOB: a worker that lost its server still runs this job (rule 12)."""
        handle = body.split(b"\0", 1)[0]
        fleet = self._context.fleet
        slot = slot_of_handle(handle)
        if fleet is not None and slot is not None and fleet.leads(slot) and not fleet.serves_handle(handle):
            fleet.forwarder.ask_claim(connection, handle, slot)
        else:
            self._context.send(connection, self.claim_now(connection, handle))

    def claim_now(self, connection: Connection, handle: bytes) -> bytes:
        """The answer to a claim."""
        context = self._context
        worker = connection.worker or self.new_worker(connection)
        job = context.find_handle(handle)
        verdict = wire.CLAIM_GONE
        if job is not None:
            if handle in worker.running:
                verdict = wire.CLAIM_KEPT
            elif _waits_again(job):
                # That it asks shows that it was given the job, also when the hint of it was lost.
                self.adopt(worker, job)
                verdict = wire.CLAIM_KEPT
        elif context.fleet is not None and not context.fleet.serves_handle(handle):
            verdict = wire.CLAIM_ELSEWHERE
        return response(wire.CLAIM_RES, handle, verdict)

    # ---- leaving

    def leave(self, connection: Connection) -> None:
        """The worker is gone: its jobs run again, in the order in which it got them."""
        worker = connection.worker
        if self._context.fleet is not None:
            self._context.fleet.forwarder.worker_left(connection)
        if worker is None:
            return
        for job in reversed(list(worker.running.values())):
            self._returns.lost(job)
        if worker.noop_sent:
            self._ledger.stir(worker)
        for function in list(worker.abilities):
            self._ledger.cannot_do(worker, function)
        connection.worker = None

    def new_worker(self, connection: Connection) -> Worker:
        connection.worker = worker = Worker(connection)
        return worker


def _swallow(worker: Worker, handle: bytes, packet_type: int) -> None:
    """Pass over a packet of a forgiven result; the result ends with WORK_COMPLETE or WORK_FAIL."""
    if packet_type == wire.WORK_EXCEPTION:
        worker.forgive(handle, excepted=True)
    elif packet_type in _LAST:
        del worker.forgiven[handle]


def _waits_again(job: Job) -> bool:
    """Whether a worker that kept this job may have it back: it waits to be run again, or may do so."""
    return job.state in (RECLAIM, QUEUED) or (job.state == SCHEDULED and job.retries > 0)
