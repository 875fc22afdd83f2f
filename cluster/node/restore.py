"""A journal's entries back into a ledger, and checkpoints the other way.

A checkpoint writes the whole state of the living jobs into the journal, slot by slot, while the node
serves; when it is committed, every segment before it can go. So the disk follows the living jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cluster.jobs import (
    BACKGROUND,
    FINISHED,
    PENDING,
    PRIORITIES,
    RECLAIM,
    REMEMBERED,
    Cron,
    CronError,
    Job,
    JobOptions,
    QueueLimits,
)
from cluster.node.context import Context
from cluster.replication import SLOT_COUNT, entries
from cluster.wire.numbers import progress_number

if TYPE_CHECKING:
    from cluster.node.client import ClientVerbs

JOBS_PER_CHECKPOINT_STEP: Final = 256


class Restorer:
    """Feed it entries in the order of the journal, then `finish`."""

    def __init__(self, context: Context, clients: ClientVerbs) -> None:
        self._context = context
        self._ledger = context.ledger
        self._clients = clients
        self._assigned: set[Job] = set()
        self._checkpointed = False
        self._jobs: list[Job] = []  # in the order of the journal; finished ones too

    def apply(self, entry: entries.Entry) -> None:
        """One entry; raises DamagedEntry when its body makes no sense."""
        kind, slot_index, epoch, number, _ = entry
        if slot_index == entries.NODE_SLOT:
            self._node_entry(entry)
            return
        if slot_index >= SLOT_COUNT:
            raise entries.DamagedEntry(f"names slot {slot_index}; there are {SLOT_COUNT}")
        slot = self._context.log.slots[slot_index]
        if epoch > slot.epoch:
            slot.epoch = epoch
        if number > slot.number and kind != entries.REMEMBERED:
            slot.number = number
        if kind == entries.SUBMITTED:
            self._submitted(entry)
        elif kind == entries.DONE:
            job = self._ledger.tables[entry.slot].jobs.get(entries.done_handle(entry.body))
            if job is not None:
                ended = entries.done_seconds(entry.body)
                if ended is not None:
                    self._context.remember(job.slot, job.key, job.handle, ended)
                self._ledger.finish(job)
        elif kind == entries.REMEMBERED:
            handle, _, key = entry.body.partition(b"\0")
            self._context.remember(slot_index, key, handle, number)
        elif kind == entries.JOB:
            self._job(entry)
        elif kind == entries.ASSIGNED:
            job = self._ledger.tables[entry.slot].jobs.get(entry.body)
            if job is not None:
                job.deliveries += 1
                self._assigned.add(job)
        elif kind == entries.REQUEUED:
            job = self._ledger.tables[entry.slot].jobs.get(entry.body)
            if job is not None:
                job.retries += 1
                self._assigned.discard(job)
        elif kind == entries.PROGRESS:
            handle, _, numbers = entry.body.partition(b"\0")
            job = self._ledger.tables[entry.slot].jobs.get(handle)
            if job is not None:
                numerator, _, denominator = numbers.partition(b"\0")
                job.progress = progress_number(numerator), progress_number(denominator)

    def _submitted(self, entry: entries.Entry) -> None:
        _, slot_index, _, _, body = entry
        handle_end = body.find(b"\0", 1)
        name_end = body.find(b"\0", handle_end + 1)
        unique_end = body.find(b"\0", name_end + 1)
        if handle_end < 0 or name_end < 0 or unique_end < 0:
            raise entries.DamagedEntry("a submitted job is cut short")
        name = body[handle_end + 1 : name_end]
        payload = body[unique_end + 1 :]
        function = self._ledger.functions.get(name) or self._ledger.function(name)
        if unique_end == name_end + 1:
            key = function.bare_key
        else:
            key = body[handle_end + 1 : unique_end]
            if unique_end == name_end + 2 and key[-1:] == b"-":
                key = self._clients._payload_key(name, payload)
            if key in self._ledger.tables[slot_index].uniques:
                self._supersede(slot_index, key)
                function = self._ledger.function(name)
        priority = body[0] & ~entries.REMEMBER
        kind = REMEMBERED if body[0] & entries.REMEMBER else BACKGROUND
        self._put(Job(body[1:handle_end], function, key, payload, priority, kind, slot_index, PENDING))

    def _job(self, entry: entries.Entry) -> None:
        self._checkpointed = True
        record = entries.JobRecord.decode(entry.body)
        old = self._ledger.tables[entry.slot].jobs.get(record.handle)
        if old is not None:
            self._assigned.discard(old)
            self._ledger.finish(old)
        key = b"%b\0%b" % (record.function, record.key_rest)
        self._supersede(entry.slot, key)
        function = self._ledger.function(record.function)
        if not record.key_rest:
            key = function.bare_key
        kind = REMEMBERED if record.remember else BACKGROUND
        job = Job(record.handle, function, key, record.payload, record.priority, kind, entry.slot, PENDING)
        job.retries = record.retries
        job.deliveries = record.deliveries
        try:
            cron = Cron.parse(*record.cron) if record.cron is not None else None
        except (CronError, TypeError):
            raise entries.DamagedEntry("a schedule's fields make no sense") from None
        if cron is not None or record.reducer is not None or record.due_seconds:
            job.options = JobOptions(record.due_seconds, record.asked_pause, cron, record.reducer)
        self._put(job)
        if record.assigned:
            self._assigned.add(job)

    def _supersede(self, slot_index: int, key: bytes) -> None:
        """A new job with this key proves that the one before is over: its DONE was lost, as it may be
        when the disk was full. Nobody waits for a DONE."""
        old = self._ledger.tables[slot_index].uniques.get(key)
        if old is not None:
            self._ledger.finish(old)

    def _put(self, job: Job) -> None:
        table = self._ledger.tables[job.slot]
        if job.priority >= PRIORITIES:
            raise entries.DamagedEntry(f"priority {job.priority} does not exist")
        if job.handle in table.jobs:
            raise entries.DamagedEntry(f"job {job.handle!r} is there twice")
        self._ledger.add(job)
        self._jobs.append(job)

    def _node_entry(self, entry: entries.Entry) -> None:
        if entry.kind == entries.LIMITS:
            high, normal, low, name = entries.decode_limits(entry.body)
            function = self._ledger.function(name)
            function.limits = None if entry.number else QueueLimits(high, normal, low)
            self._ledger.forget_if_idle(function)
        elif entry.kind == entries.START:
            self._context.log.incarnation = max(self._context.log.incarnation, entry.number)

    def finish(self) -> list[Job]:
        """Queue what was restored, in the order in which it was submitted; return it.

        Jobs that were with a worker wait a while for its result, then they run again.
        """
        context = self._context
        jobs = [job for job in self._jobs if job.state != FINISHED]
        self._jobs.clear()
        if self._checkpointed:
            # Whole states are written slot by slot, not in the order of submission.
            jobs.sort(key=_order)
        due = context.monotonic_seconds + context.settings.reclaim_seconds
        assigned = self._assigned
        for job in jobs:
            if job in assigned:
                job.state = RECLAIM
            elif job.options is None:
                self._ledger.enqueue(job)
            else:
                context.admit(job)
        # The last one first: each is put before all others when its time is over.
        for job in reversed(jobs):
            if job.state == RECLAIM:
                context.limits.add(due, (job, job.deliveries, RECLAIM))
        for function in list(self._ledger.functions.values()):
            self._ledger.forget_if_idle(function)
        return jobs


def _order(job: Job) -> tuple[int, int]:
    """When a job was submitted: its handle ends with `epoch.counter`."""
    _, epoch, counter = [*job.handle.rpartition(b":")[2].split(b"."), b"", b""][:3]
    try:
        return int(epoch.lstrip(b"t"), 16), int(counter, 16)
    except ValueError:
        return 0, 0


def checkpoint(context: Context) -> Iterator[None]:
    """Write every living background job into the open group, a few hundred at a step.

    Advance it once a turn; each step's records leave with that turn's group.
    """
    log = context.log
    for function in list(context.ledger.functions.values()):
        if function.limits is not None:
            log.append_node(entries.LIMITS, 0, entries.encode_limits(*function.limits, function.name))
    log.append_node(entries.START, log.incarnation, b"checkpoint")
    count = 0
    for table, slot in zip(context.ledger.tables, log.slots, strict=True):
        # One entry keeps the slot's epoch and number when no job of it lives.
        if slot.number:
            log.append(slot.index, entries.SLOT, b"")
        context.forget_remembered(slot.index)
        for key, (handle, ended) in table.remembered.items():
            log.group.records.append(entries.encode_remembered(slot.index, ended, handle, key))
        for job in list(table.jobs.values()):
            if job.state == FINISHED or not job.background:
                continue
            context.record_job(job)
            count += 1
            if count >= JOBS_PER_CHECKPOINT_STEP:
                count = 0
                yield
        count += 1
    yield
