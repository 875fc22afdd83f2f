"""What clients say."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from zlib import crc32

from cluster.jobs import (
    BACKGROUND,
    FOREGROUND,
    HIGH,
    LOW,
    NORMAL,
    PENDING,
    REMEMBERED,
    RUNNING,
    Cron,
    CronError,
    Job,
    JobOptions,
)
from cluster.jobs.job import SCHEDULE_KEY_TAIL
from cluster.node.context import CREATED_HEADERS, Context
from cluster.replication import entries, slot_of
from cluster.replication.log import SLOT_COUNT, SLOT_MASK
from cluster.wire import MissingArguments, response, split_arguments
from cluster.wire import packets as wire
from cluster.wire.numbers import leading_number

if TYPE_CHECKING:
    from cluster.jobs import Function
    from cluster.node.connection import Connection

STANDALONE_MAP: Final = response(
    wire.MAP_RES, b'{"revision": 0, "fleet": null, "slots": %d, "nodes": [], "primaries": []}' % SLOT_COUNT
)
# Unix times are stored in 8 bytes; a larger one is a mistake, most likely milliseconds or worse.
EPOCH_SECONDS_MAX: Final = 1 << 40
QUEUE_FULL: Final = "Job queue is full"
_BACKGROUND_TYPES: Final = (wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_LOW_BG)
_FOREGROUND_TYPES: Final = (wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB, wire.SUBMIT_JOB_LOW)


class ClientVerbs:
    """One small method for each packet that a client sends."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger = context.ledger
        self._log = context.log
        self._tables = context.ledger.tables
        self._slots = context.log.slots

    # ---- submits

    def submit_background(self, connection: Connection, body: bytes, priority: int = NORMAL) -> None:
        """SUBMIT_JOB_BG: the hot path. Acknowledged when its group is committed."""
        first = body.find(b"\0")
        second = body.find(b"\0", first + 1)
        unique_bytes = second - first - 1
        if first < 1 or second < 0 or first > wire.FUNCTION_BYTES_MAX or unique_bytes > wire.UNIQUE_BYTES_MAX:
            self._refuse_names(connection, wire.SUBMIT_JOB_BG, first, second)
            return
        context = self._context
        key = body[:second]
        if unique_bytes > 1:
            slot_index = crc32(key) & SLOT_MASK  # slot_of, without the call
        else:
            key, slot_index = self._special_key(body, first, second)
        slot = self._slots[slot_index]
        if not slot.serving:
            self._elsewhere(connection, _BACKGROUND_TYPES[priority], body, slot_index)
            return
        if context.refusal is not None:
            context.refuse(connection, wire.QUEUE_ERROR, context.refusal)
            return
        table = self._tables[slot_index]
        job = table.uniques.get(key) if unique_bytes else None
        group = self._log.group
        kind = BACKGROUND
        flags = priority
        if connection.remember and job is None and unique_bytes:
            if self._repeats(connection, slot_index, key):
                return
            kind = REMEMBERED
            flags = priority | entries.REMEMBER
        if job is None:
            name = key[:first]
            function = self._ledger.functions.get(name) or self._new_function(connection, name)
            if function is None:
                return
            if function.limits is not None and self._is_full(function, priority):
                context.refuse(connection, wire.QUEUE_ERROR, QUEUE_FULL)
                return
            context.counter = counter = context.counter + 1
            handle = slot.handle_prefix + b"%x" % counter
            job = Job(handle, function, key, body[second + 1 :], priority, kind, slot_index, PENDING)
            table.jobs[handle] = job
            if unique_bytes:
                table.uniques[key] = job
            function.total += 1
            self._ledger.payload_bytes += len(job.payload)
            group.jobs.append(job)
            if context.durable:
                slot.number = number = slot.number + 1
                group.records.append(
                    entries.encode_submitted(slot_index, slot.epoch, number, flags, handle, body)
                )
        else:
            handle = job.handle
            group.promises.add(slot_index)
            if not job.background:
                self._make_background(job)
        if context.durable and connection.gate != group.number:
            connection.gate = group.number
            group.waiting.append(connection)
        if not connection.out:
            context.dirty.append(connection)
        connection.out.append(CREATED_HEADERS[len(handle)] + handle)

    def _elsewhere(self, connection: Connection, packet_type: int, body: bytes, slot_index: int) -> None:
        """A packet for a slot that another node leads, or that nobody serves now."""
        fleet = self._context.fleet
        assert fleet is not None  # standalone, every slot is served
        fleet.forwarder.ask(connection, packet_type, body, slot_index)

    def _repeats(self, connection: Connection, slot_index: int, key: bytes) -> bool:
        """Whether this is a late repeat of a submit whose job is over; then the old handle is the answer."""
        found = self._tables[slot_index].remembered.get(key)
        context = self._context
        # Never for longer than twice the time, also when the clock has been set back since.
        if found is None or abs(context.wall_seconds - found[1]) > context.settings.remember_seconds:
            return False
        handle = found[0]
        self._log.group.promises.add(slot_index)
        context.gate(connection)
        context.send(connection, CREATED_HEADERS[len(handle)] + handle)
        return True

    def submit_background_high(self, connection: Connection, body: bytes) -> None:
        self.submit_background(connection, body, HIGH)

    def submit_background_low(self, connection: Connection, body: bytes) -> None:
        self.submit_background(connection, body, LOW)

    def submit_foreground(self, connection: Connection, body: bytes, priority: int = NORMAL) -> None:
        """SUBMIT_JOB: lives in memory, with its client attached."""
        first = body.find(b"\0")
        second = body.find(b"\0", first + 1)
        unique_bytes = second - first - 1
        if first < 1 or second < 0 or first > wire.FUNCTION_BYTES_MAX or unique_bytes > wire.UNIQUE_BYTES_MAX:
            self._refuse_names(connection, wire.SUBMIT_JOB, first, second)
            return
        self._foreground(
            connection,
            _FOREGROUND_TYPES[priority],
            body,
            body,
            first,
            second,
            body[second + 1 :],
            priority,
            None,
        )

    def submit_foreground_high(self, connection: Connection, body: bytes) -> None:
        self.submit_foreground(connection, body, HIGH)

    def submit_foreground_low(self, connection: Connection, body: bytes) -> None:
        self.submit_foreground(connection, body, LOW)

    def submit_epoch(self, connection: Connection, body: bytes) -> None:
        """SUBMIT_JOB_EPOCH: a background job that may run from a Unix time on."""
        arguments = self._arguments(connection, wire.SUBMIT_JOB_EPOCH, body)
        if arguments is None:
            return
        function, unique, when, payload = arguments
        due_seconds = max(0, leading_number(when))
        if due_seconds > EPOCH_SECONDS_MAX:
            text = f"SUBMIT_JOB_EPOCH wants a Unix time in seconds, not {when[:40]!r}"
            self._context.refuse(connection, wire.INVALID_ARGUMENT, text)
            return
        options = JobOptions(due_seconds=due_seconds)
        self._background(connection, wire.SUBMIT_JOB_EPOCH, body, function, unique, payload, options)

    def submit_scheduled(self, connection: Connection, body: bytes) -> None:
        """SUBMIT_JOB_SCHED: a schedule that makes a background job each time that it fires."""
        arguments = self._arguments(connection, wire.SUBMIT_JOB_SCHED, body)
        if arguments is None:
            return
        function, unique, *fields, payload = arguments
        try:
            cron = Cron.parse(*fields)
            due_seconds = cron.next_after(self._context.wall_seconds)
        except CronError as exception:
            self._context.refuse(connection, wire.INVALID_ARGUMENT, f"SUBMIT_JOB_SCHED: {exception}")
            return
        options = JobOptions(due_seconds=due_seconds, cron=cron)
        self._background(
            connection, wire.SUBMIT_JOB_SCHED, body, function, unique, payload, options, SCHEDULE_KEY_TAIL
        )

    def submit_reduce(self, connection: Connection, body: bytes) -> None:
        """SUBMIT_REDUCE_JOB: the server carries the reducer; workers do the rest."""
        arguments = self._arguments(connection, wire.SUBMIT_REDUCE_JOB, body)
        if arguments is None:
            return
        function, unique, reducer, aggregate, payload = arguments
        options = self._reducer(connection, reducer, aggregate)
        if options is None:
            return
        names = b"%b\0%b\0" % (function, unique)
        self._foreground(
            connection,
            wire.SUBMIT_REDUCE_JOB,
            body,
            names + payload,
            len(function),
            len(names) - 1,
            payload,
            NORMAL,
            options,
        )

    def submit_reduce_background(self, connection: Connection, body: bytes) -> None:
        arguments = self._arguments(connection, wire.SUBMIT_REDUCE_JOB_BACKGROUND, body)
        if arguments is None:
            return
        function, unique, reducer, aggregate, payload = arguments
        options = self._reducer(connection, reducer, aggregate)
        if options is not None:
            packet_type = wire.SUBMIT_REDUCE_JOB_BACKGROUND
            self._background(connection, packet_type, body, function, unique, payload, options)

    def _reducer(self, connection: Connection, reducer: bytes, aggregate: bytes) -> JobOptions | None:
        """The reducer of a job; None when it has been refused. Both are names, and stored as names."""
        longest = max(len(reducer), len(aggregate))
        if longest > wire.FUNCTION_BYTES_MAX:
            text = f"Reducer too large: {longest} bytes, at most {wire.FUNCTION_BYTES_MAX}"
            self._context.refuse(connection, wire.ARGUMENT_TOO_LARGE, text)
            return None
        return JobOptions(reducer=b"%b\0%b" % (reducer, aggregate))

    def fire(self, schedule: Job) -> None:
        """A schedule is due: make its job and set its next time, in one group."""
        context = self._context
        options = schedule.options
        assert options is not None
        assert options.cron is not None
        if context.refusal is not None or not self._slots[schedule.slot].serving:
            # Nothing can be promised now: look again in a while. The time of the firing is kept.
            options.due_seconds = int(context.wall_seconds) + 1
            context.scheduled.add(options.due_seconds, schedule)
            return
        name = schedule.function.name
        unique = schedule.unique
        key = b"%b\0%b" % (name, unique)
        if unique == b"-":
            key = self._payload_key(name, schedule.payload)
        slot_index = slot_of(key) if unique else schedule.slot
        if not self._slots[slot_index].serving:
            assert context.fleet is not None
            body = b"%b\0%b\0%b" % (name, unique, schedule.payload)
            context.fleet.forwarder.fire(schedule, _BACKGROUND_TYPES[schedule.priority], body, slot_index)
            return
        job = self._tables[slot_index].uniques.get(key) if unique else None
        if job is None:
            job = self._new_job(slot_index, key, schedule.function, schedule.payload, schedule.priority)
            context.record_job(job)
        elif not job.background:
            self._make_background(job)
        self.fired(schedule)

    def fired(self, schedule: Job) -> None:
        """The schedule's job is there: set its next time."""
        context = self._context
        options = schedule.options
        assert options is not None
        assert options.cron is not None
        try:
            options.due_seconds = options.cron.next_after(context.wall_seconds)
        except CronError:  # it has fired for the last time within reason
            context.end(schedule, entries.COMPLETED)
            return
        context.record_job(schedule)
        context.scheduled.add(options.due_seconds, schedule)

    def _new_job(self, slot_index: int, key: bytes, function: Function, payload: bytes, priority: int) -> Job:
        """A background job that is queued when the open group is committed."""
        context = self._context
        context.counter += 1
        handle = self._slots[slot_index].handle_prefix + b"%x" % context.counter
        job = Job(handle, function, key, payload, priority, BACKGROUND, slot_index, PENDING)
        self._ledger.add(job)
        self._log.group.jobs.append(job)
        return job

    def _background(
        self,
        connection: Connection,
        packet_type: int,
        body: bytes,
        name: bytes,
        unique: bytes,
        payload: bytes,
        options: JobOptions,
        key_tail: bytes = b"",
    ) -> None:
        """A background submit with options, off the hot path."""
        context = self._context
        if unique:
            key = self._payload_key(name, payload) if unique == b"-" else b"%b\0%b" % (name, unique)
            key += key_tail
            slot_index = slot_of(key)
        else:
            key, slot_index = name + b"\0", self._turn_slot()
        if not self._slots[slot_index].serving:
            self._elsewhere(connection, packet_type, body, slot_index)
            return
        if context.refusal is not None:
            context.refuse(connection, wire.QUEUE_ERROR, context.refusal)
            return
        job = self._tables[slot_index].uniques.get(key) if unique else None
        if job is None:
            function = self._ledger.functions.get(name) or self._new_function(connection, name)
            if function is None:
                return
            if self._is_full(function, NORMAL):
                context.refuse(connection, wire.QUEUE_ERROR, QUEUE_FULL)
                return
            job = self._new_job(slot_index, key, function, payload, NORMAL)
            job.options = options
            context.record_job(job)
        elif not job.background:
            self._make_background(job)
        self._log.group.promises.add(slot_index)
        context.gate(connection)
        context.send(connection, CREATED_HEADERS[len(job.handle)] + job.handle)

    def _foreground(
        self,
        connection: Connection,
        packet_type: int,
        whole: bytes,
        body: bytes,
        first: int,
        second: int,
        payload: bytes,
        priority: int,
        options: JobOptions | None,
    ) -> None:
        context = self._context
        unique_bytes = second - first - 1
        key = body[:second]
        if unique_bytes > 1:
            slot_index = crc32(key) & SLOT_MASK
        else:
            key, slot_index = self._special_key(body, first, second)
        fleet = context.fleet
        if not self._slots[slot_index].serving and (unique_bytes or (fleet is not None and fleet.draining)):
            # Without a unique it may live anywhere, but not where workers take nothing.
            self._elsewhere(connection, packet_type, whole, slot_index)
            return
        table = self._tables[slot_index]
        job = table.uniques.get(key) if unique_bytes else None
        if job is None:
            name = key[:first]
            function = self._ledger.functions.get(name) or self._new_function(connection, name)
            if function is None:
                return
            if function.limits is not None and self._is_full(function, priority):
                context.refuse(connection, wire.QUEUE_ERROR, QUEUE_FULL)
                return
            context.counter = counter = context.counter + 1
            handle = self._slots[slot_index].foreground_prefix + b"%x" % counter
            job = Job(handle, function, key, payload, priority, FOREGROUND, slot_index, PENDING)
            job.options = options
            job.clients = [connection]
            table.jobs[handle] = job
            if unique_bytes:
                table.uniques[key] = job
            function.total += 1
            self._ledger.payload_bytes += len(job.payload)
            # Mostly nothing of this connection waits for a commit.
            quick = context.durable and connection.gate <= self._log.committed
            behind = None if quick else context.behind(connection)
            if behind is None:
                self._ledger.enqueue(job)
            else:
                behind.append(job)
        elif job.clients is None:
            job.clients = [connection]
        elif connection.node is None or job not in connection.attached:
            # Another node passes what it gets on to all of its clients: once is enough.
            job.clients.append(connection)
        handle = job.handle
        answer = connection.attached.get(job)
        if answer is None:
            answer = connection.attached[job] = CREATED_HEADERS[len(handle)] + handle
        if not connection.out:
            context.dirty.append(connection)
        connection.out.append(answer)

    def _make_background(self, job: Job) -> None:
        """A background submit joins a foreground job: from now on it must survive like any other."""
        job.background = BACKGROUND
        self._context.record_job(job)
        self._log.group.jobs.append(job)
        self._log.group.joined = True

    def _special_key(self, body: bytes, first: int, second: int) -> tuple[bytes, int]:
        """Key and slot of a job whose unique is empty or a single character."""
        if second - first == 1:
            function = self._ledger.functions.get(body[:first])
            # All jobs of a function share one key; only the one that makes the function has its own.
            return body[: first + 1] if function is None else function.bare_key, self._turn_slot()
        key = body[:second]
        if key[-1:] == b"-":
            key = self._payload_key(body[:first], body[second + 1 :])
        return key, slot_of(key)

    def _payload_key(self, name: bytes, payload: bytes) -> bytes:
        """The unique "-": two jobs with the same payload are the same job."""
        return b"%b\0-\0%b" % (name, blake2b(payload, digest_size=16).digest())

    def _turn_slot(self) -> int:
        """Slots for jobs without a unique, in turn, so that no one is crowded; only such as are led here."""
        context = self._context
        own = context.own_slots
        if own is not None and own:
            context.next_slot = turn = (context.next_slot + 1) % len(own)
            return own[turn]
        context.next_slot = slot = (context.next_slot + 1) & SLOT_MASK
        return slot

    def _is_full(self, function: Function, priority: int) -> bool:
        limits = function.limits
        return limits is not None and 0 < limits[priority] <= function.total

    def _new_function(self, connection: Connection, name: bytes) -> Function | None:
        """The first job of a function; None when its name has been refused."""
        if self._context.refuse_name(connection, name):
            return None
        return self._ledger.function(name)

    def _arguments(self, connection: Connection, packet_type: int, body: bytes) -> list[bytes] | None:
        """The arguments of a submit, names checked; None when it has been refused."""
        try:
            arguments = split_arguments(packet_type, body)
        except MissingArguments as exception:
            self._context.refuse(connection, wire.INVALID_PACKET, str(exception))
            return None
        function, unique = arguments[0], arguments[1]
        if not function or len(function) > wire.FUNCTION_BYTES_MAX or len(unique) > wire.UNIQUE_BYTES_MAX:
            self._refuse_names(connection, packet_type, len(function), len(function) + len(unique) + 1)
            return None
        return arguments

    def _refuse_names(self, connection: Connection, packet_type: int, first: int, second: int) -> None:
        """Say what is wrong with a submit's function or unique."""
        refuse = self._context.refuse
        if first < 0 or second < 0:
            refuse(connection, wire.INVALID_PACKET, str(MissingArguments(packet_type, 1 if first < 0 else 2)))
        elif first == 0:
            refuse(connection, wire.INVALID_ARGUMENT, "The function name is empty")
        elif first > wire.FUNCTION_BYTES_MAX:
            text = f"Function name too large: {first} bytes, at most {wire.FUNCTION_BYTES_MAX}"
            refuse(connection, wire.ARGUMENT_TOO_LARGE, text)
        else:
            text = f"Unique value too large: {second - first - 1} bytes, at most {wire.UNIQUE_BYTES_MAX}"
            refuse(connection, wire.ARGUMENT_TOO_LARGE, text)

    # ---- questions

    def get_status(self, connection: Connection, body: bytes) -> None:
        """GET_STATUS: an unknown handle is 0, 0, 0, 0."""
        handle = body.rstrip(b"\0")
        job = self._context.find_handle(handle)
        fleet = self._context.fleet
        if job is None and fleet is not None and fleet.forwarder.ask_by_handle(connection, handle):
            return
        self._context.send(connection, response(wire.STATUS_RES, handle, *_status(job)))

    def get_status_unique(self, connection: Connection, body: bytes) -> None:
        """GET_STATUS_UNIQUE: the packet names no function, so all are asked; a running job wins."""
        unique = body.rstrip(b"\0")
        job = None
        if 0 < len(unique) <= wire.UNIQUE_BYTES_MAX:
            functions = self._ledger.functions.items()
            keys = (b"%b\0%b" % (name, unique) for name, function in functions if function.total)
            job = self._ledger.find_unique((slot_of(key), key) for key in keys)
        count = len(job.clients) if job is not None and job.clients else 0
        fleet = self._context.fleet
        if fleet is not None and connection.node is None and (job is None or job.state != RUNNING):
            answer = response(wire.STATUS_RES_UNIQUE, unique, *_status(job), b"%d" % count)
            if fleet.forwarder.ask_all(connection, wire.GET_STATUS_UNIQUE, body, answer):
                return
        self._context.send(connection, response(wire.STATUS_RES_UNIQUE, unique, *_status(job), b"%d" % count))

    def echo(self, connection: Connection, body: bytes) -> None:
        """ECHO_REQ. A fleet-aware client's is answered at once, also past answers that wait for the disk or
        another node: it wants to know whether somebody is there. Others may count on the order."""
        context = self._context
        packet = response(wire.ECHO_RES, body)
        waits = connection.held or connection.batch is not None or connection.gate > self._log.committed
        if connection.remember and waits:
            context.urgent.append((connection, packet))
        else:
            context.send(connection, packet)

    def option(self, connection: Connection, body: bytes) -> None:
        """OPTION_REQ: "exceptions" is the only one that gearmand knows; see docs/protocol-extensions.md."""
        if body.rstrip(b"\0") == b"gearfleet":
            connection.remember = True
            self._context.send(connection, response(wire.OPTION_RES, body))
        elif body.rstrip(b"\0") == wire.OPTION_GIVE_BACK:
            self._context.send(connection, response(wire.OPTION_RES, body))
        elif body.rstrip(b"\0").lower() == b"exceptions":
            connection.exceptions = True
            self._context.send(connection, response(wire.OPTION_RES, body))
        else:
            text = "Server does not recognize given option"
            self._context.refuse(connection, wire.UNKNOWN_OPTION, text)

    def get_map(self, connection: Connection, body: bytes) -> None:
        """GET_MAP: who leads what, now and whenever it changes (docs/protocol-extensions.md)."""
        context = self._context
        if not connection.remember:
            context.refuse(connection, wire.INVALID_COMMAND, 'GET_MAP comes after OPTION_REQ "gearfleet"')
            return
        fleet = context.fleet
        connection.map_wanted = fleet is not None
        context.send(connection, STANDALONE_MAP if fleet is None else fleet.map_packet())

    # ---- leaving

    def leave(self, connection: Connection) -> None:
        """The client is gone: foreground jobs that nobody else waits for are dropped."""
        for job in list(connection.attached):
            self.detach(connection, job)
        if connection.relayed is not None and self._context.fleet is not None:
            self._context.fleet.forwarder.leave(connection)

    def detach(self, connection: Connection, job: Job) -> None:
        """A client does not want a job's results any more."""
        connection.attached.pop(job, None)
        if job.clients is not None:
            job.clients = [client for client in job.clients if client is not connection] or None
        if job.clients is None and not job.background and job.state != RUNNING:
            self._context.end(job, entries.CANCELLED)


def _status(job: Job | None) -> tuple[bytes, bytes, bytes, bytes]:
    """known, running, numerator, denominator."""
    if job is None:
        return b"0", b"0", b"0", b"0"
    numerator, denominator = job.progress or (b"0", b"0")
    return b"1", b"1" if job.state == RUNNING else b"0", numerator, denominator
