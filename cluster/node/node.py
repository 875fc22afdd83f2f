"""Node: the table of verbs, the turn, commits, timers.

The server calls, in each turn of its loop: `begin_turn` with the clocks, `receive` for each connection
that has packets, `tick` when a timer is due, then once `end_turn`. What comes back says what must be on
disk before which answers may leave; answers that wait are kept here until `committed` or `group_failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cluster.jobs import FOREGROUND, PENDING, QUEUED, SCHEDULED
from cluster.node.admin import AdminVerbs
from cluster.node.cancelled import Cancelled
from cluster.node.client import ClientVerbs
from cluster.node.clock import STEP_SECONDS_MIN, Clock
from cluster.node.connection import Connection, Held
from cluster.node.context import Context, NodeSettings, Stop
from cluster.node.fleet import Fleet, FleetSettings
from cluster.node.forward import CANCEL, CANCEL_RES, DETACH, RELEASE, REMEMBERED_SUBMIT
from cluster.node.restore import Restorer, checkpoint
from cluster.node.returns import Returns
from cluster.node.worker import WorkerVerbs
from cluster.placement import Member
from cluster.replication import SLOT_COUNT, Group, entries
from cluster.wire import MISDIRECTED, PACKETS, TEXT, error, response
from cluster.wire import packets as wire

Handler = Callable[[Connection, bytes], None]
# How many timers fire in one turn: a crowd of jobs due in one second must not stop the others.
TIMERS_PER_TURN: Final = 1000
NOTHING_DUE: Final = (None, None)
_CREATED_TYPE: Final = b"\0RES\0\0\0\x08"


class Output(NamedTuple):
    """What a turn produced. First `group` to the disk (if any), then `sends`, then `closes`."""

    group: Group | None
    sends: list[tuple[Connection, bytes]]
    closes: Sequence[Connection]
    stop: Stop | None


class Node:
    """One job server, without I/O."""

    def __init__(self, settings: NodeSettings) -> None:
        self.context = context = Context(settings)
        self.ledger = context.ledger
        self.log = context.log
        self.returns = Returns(context)
        self.workers = WorkerVerbs(context, self.returns)
        self.clients = ClientVerbs(context)
        self.clock = Clock(context)
        self.admin = AdminVerbs(context)
        self.fleet: Fleet | None = None  # None: standalone
        self._sends: list[tuple[Connection, bytes]] = []
        self._refusals: dict[str, str] = {}  # why background jobs are refused, by cause
        clients, workers = self.clients, self.workers
        self._handlers: dict[int, Handler] = {
            TEXT: self.admin.text,
            MISDIRECTED: self._misdirected,
            wire.CAN_DO: workers.can_do,
            wire.CANT_DO: workers.cannot_do,
            wire.RESET_ABILITIES: workers.reset_abilities,
            wire.PRE_SLEEP: workers.pre_sleep,
            wire.SUBMIT_JOB: clients.submit_foreground,
            wire.GRAB_JOB: workers.grab,
            wire.WORK_STATUS: workers.status,
            wire.WORK_COMPLETE: workers.complete,
            wire.WORK_FAIL: workers.fail,
            wire.GET_STATUS: clients.get_status,
            wire.ECHO_REQ: clients.echo,
            wire.SUBMIT_JOB_BG: clients.submit_background,
            wire.SUBMIT_JOB_HIGH: clients.submit_foreground_high,
            wire.SET_CLIENT_ID: workers.set_client_id,
            wire.CAN_DO_TIMEOUT: workers.can_do_timeout,
            wire.ALL_YOURS: workers.all_yours,
            wire.WORK_EXCEPTION: workers.exception,
            wire.OPTION_REQ: clients.option,
            wire.WORK_DATA: workers.data,
            wire.WORK_WARNING: workers.warning,
            wire.GRAB_JOB_UNIQ: workers.grab_unique,
            wire.SUBMIT_JOB_HIGH_BG: clients.submit_background_high,
            wire.SUBMIT_JOB_LOW: clients.submit_foreground_low,
            wire.SUBMIT_JOB_LOW_BG: clients.submit_background_low,
            wire.SUBMIT_JOB_SCHED: clients.submit_scheduled,
            wire.SUBMIT_JOB_EPOCH: clients.submit_epoch,
            wire.SUBMIT_REDUCE_JOB: clients.submit_reduce,
            wire.SUBMIT_REDUCE_JOB_BACKGROUND: clients.submit_reduce_background,
            wire.GRAB_JOB_ALL: workers.grab_all,
            wire.GET_STATUS_UNIQUE: clients.get_status_unique,
            wire.GET_MAP: clients.get_map,
            wire.CLAIM_JOB: workers.claim,
            wire.GIVE_BACK: self.returns.give_back,
        }

    # ---- starting

    def restorer(self) -> Restorer:
        """Takes the journal's entries before the first turn."""
        return Restorer(self.context, self.clients)

    def lead_all(self, incarnation: int, version: str) -> None:
        """Standalone: serve every slot, in an epoch of this start's own."""
        self.log.lead_all(incarnation, self.context.settings.handle_prefix)
        if self.context.durable:
            self.log.append_node(entries.START, incarnation, version.encode())

    def join(self, me: Member, settings: FleetSettings) -> Fleet:
        """Be a node of a fleet: nothing is led until the map says so. Restore the journal, then `begin`."""
        self.fleet = Fleet(self, me, settings)
        return self.fleet

    # ---- a turn

    def begin_turn(self, wall_seconds: float, monotonic_seconds: float) -> None:
        self.context.wall_seconds = wall_seconds
        self.context.monotonic_seconds = self.ledger.monotonic_seconds = monotonic_seconds
        ahead_seconds = wall_seconds - monotonic_seconds
        lag_seconds = self.clock.ahead_seconds - ahead_seconds
        if lag_seconds < 0:
            self.clock.ahead_seconds = ahead_seconds
        elif lag_seconds >= STEP_SECONDS_MIN:
            self.clock.lags(ahead_seconds)
        if monotonic_seconds >= self.context.ages.next_mark:
            self.context.ages.mark(self.context.counter, monotonic_seconds)
        if self.fleet is not None and monotonic_seconds >= self.fleet.check_at:
            self.fleet.tick(monotonic_seconds)

    def connected(self, connection: Connection) -> None:
        self.context.connections[connection] = None
        connection.exceptions = connection.exceptions or self.context.settings.exceptions

    def disconnected(self, connection: Connection) -> None:
        """The peer is gone; what it was owed is forgotten."""
        self.context.connections.pop(connection, None)
        connection.closing = True
        self.workers.leave(connection)
        self.clients.leave(connection)
        connection.held.clear()

    def ended(self, connection: Connection) -> None:
        """The peer sends no more: what it asked is answered, then it is closed. It is gone as gearmand sees
        it: its foreground jobs are dropped, and those that it ran are given back."""
        self.workers.leave(connection)
        self.clients.leave(connection)
        self.context.close(connection)

    def receive(self, connection: Connection, packets: Iterable[tuple[int, bytes]]) -> None:
        """Packets of one connection, in order."""
        handler_of = self._handlers.get
        for packet_type, body in packets:
            handler = handler_of(packet_type)
            if handler is None:
                self._unknown(connection, packet_type)
            else:
                handler(connection, body)

    def receive_node(self, connection: Connection, packets: Iterable[tuple[int, bytes]]) -> None:
        """Packets of another node, or of this one to itself; see forward.py for those that only they send."""
        for packet_type, body in packets:
            if packet_type < REMEMBERED_SUBMIT:
                handler = self._handlers.get(packet_type)
                if handler is None:
                    self._unknown(connection, packet_type)
                else:
                    handler(connection, body)
                continue
            handler = self._handlers.get(packet_type - REMEMBERED_SUBMIT)
            if packet_type < DETACH and handler is not None:
                connection.remember = True
                handler(connection, body)
                connection.remember = False
            elif packet_type == DETACH:
                job = self.context.find_handle(body)
                if job is not None and job in connection.attached:
                    self.clients.detach(connection, job)
            elif packet_type == RELEASE:
                self.returns.release(connection, body)
            elif packet_type == CANCEL:
                assert self.fleet is not None
                if not self.fleet.forwarder.ask_by_handle(connection, body, CANCEL):
                    self.admin.cancel_for_node(connection, body)
            else:
                self._unknown(connection, packet_type)

    def protocol_error(self, connection: Connection, text: str) -> None:
        """What came is no Gearman message: say so and close."""
        self.context.refuse(connection, wire.INVALID_PACKET, text)
        self.context.close(connection)

    def _unknown(self, connection: Connection, packet_type: int) -> None:
        spec = PACKETS.get(packet_type)
        what = f"{spec.name} is for the server to send" if spec else f"no packet has type {packet_type}"
        self.context.refuse(connection, wire.INVALID_COMMAND, f"Command not expected: {what}")

    def _misdirected(self, connection: Connection, body: bytes) -> None:
        self.context.refuse(connection, wire.INVALID_MAGIC, "Request magic expected")

    def tick(self) -> None:
        """Do what is due."""
        context = self.context
        if self.clock.schedules:
            self.clock.step()
        for job in context.scheduled.take_due(context.wall_seconds, TIMERS_PER_TURN):
            if job.options is not None and job.options.cron is not None:
                self.clients.fire(job)
            elif job.state == SCHEDULED:
                self.ledger.enqueue(job)
        for job, _, _ in context.limits.take_due(context.monotonic_seconds, TIMERS_PER_TURN):
            self.returns.expire(job)

    def next_due(self) -> tuple[float | None, float | None]:
        """When `tick` is wanted: Unix time, monotonic time (seconds)."""
        context = self.context
        if not context.scheduled.heap and not context.limits.heap:
            return NOTHING_DUE
        if self.clock.schedules:
            return context.wall_seconds, context.limits.next_due()
        return context.scheduled.next_due(), context.limits.next_due()

    def end_turn(self, *, cut: bool = True) -> Output:
        """Close the turn: the group to be written, the answers that may leave.

        Without `cut` the open group stays open, and what waits for it waits on: the disk is busy.
        """
        context = self.context
        fleet = self.fleet
        group: Group | None = None
        if fleet is not None:
            fleet.before_cut()
        if context.durable:
            if cut:
                if fleet is not None and fleet.to_write:
                    fleet.write_states()
                group = self.log.cut()
                if group is not None:
                    self.context.uncommitted.append(group)
            if fleet is not None:
                fleet.after_cut(group)
        elif self.log.group.jobs:
            self._admit(self.log.group)
            self.log.group.jobs.clear()
        if self.ledger.stirred:
            for worker in self.ledger.wake(context.settings.worker_wakeup):
                self.workers.wake(worker)
        # This turn's answers: some may leave, some wait for a group.
        sends, self._sends = self._sends, []
        if context.urgent:
            sends = context.urgent + sends
            context.urgent = []
        committed = self.log.committed
        for connection in context.dirty:
            out = connection.out
            batch = connection.batch
            if batch is not None:
                batch.gate = connection.gate
                connection.held.append(batch)
                connection.batch = None
                connection.out = []
                if not batch.missing:
                    context.released[connection] = None
            elif connection.gate > committed or connection.held:
                connection.held.append(Held(connection.gate, out))
                connection.out = []
            else:
                sends.append((connection, b"".join(out)))
                out.clear()
        context.dirty.clear()
        if context.released:
            for connection in context.released:
                self._release(connection, sends)
            context.released.clear()
        if fleet is not None:
            sends = fleet.route(sends)
        closes: Sequence[Connection] = ()
        if context.closes:
            # What a peer is still owed leaves first, also when it waits for the disk.
            closes = [connection for connection in context.closes if not connection.held]
            context.closes = [connection for connection in context.closes if connection.held]
        stop, context.stop = context.stop, None
        return Output(group, sends, closes, stop)

    # ---- commits

    def committed(self, group_number: int) -> None:
        """Every group up to this one is on disk: queue its jobs, let its answers go."""
        self.log.committed = group_number
        groups = self.context.uncommitted
        while groups and groups[0].number <= group_number:
            group = groups.popleft()
            self._admit(group)
            self._let_go(group)

    def _admit(self, group: Group) -> None:
        plain = [job for job in group.jobs if job.state == PENDING and job.options is None]
        if len(plain) == len(group.jobs) and not group.joined:
            self.ledger.enqueue_all(plain)
            return
        for job in group.jobs:
            if job.state == PENDING:
                self.context.admit(job)

    def _let_go(self, group: Group) -> None:
        for connection in group.waiting:
            self._release(connection, self._sends)

    def _release(self, connection: Connection, sends: list[tuple[Connection, bytes]]) -> None:
        """Let go of the answers at the head that wait for nothing any more."""
        held = connection.held
        ready: list[bytes] = []
        while held and held[0].gate <= self.log.committed and not held[0].missing:
            ready += held.popleft().chunks
        if ready:
            sends.append((connection, b"".join(ready)))

    def group_failed(self, group_number: int, reason: str) -> list[bytes]:
        """This group and all after it could not be written: nothing in them is acknowledged.

        Nor in those before it whose fate is not known yet: answers leave in order, so letting go of this
        group's refusals would let go of their promises too. What they wrote may come back at a restart.

        Returns the entries that must be written once that is possible again, so that what ended
        meanwhile does not come back.
        """
        owed: list[bytes] = []
        refused: set[bytes] = set()
        groups = list(self.context.uncommitted)
        self.context.uncommitted.clear()
        assert not groups or groups[-1].number >= group_number
        for group in groups:
            owed += [record for record in group.records if record[9] in (entries.DONE, entries.LIMITS)]
            for job in group.jobs:
                if not job.background:  # it waits for its turn only
                    if job.state == PENDING:
                        self.ledger.enqueue(job)
                    continue
                refused.add(job.handle)
                # A foreground client that waits for it keeps it, as a foreground job; and who runs it
                # already may end it.
                job.background = FOREGROUND
                if job.clients is None and job.state in (PENDING, QUEUED):
                    self.ledger.finish(job)
                elif job.state == PENDING:
                    self.ledger.enqueue(job)
        refusal = error(wire.QUEUE_ERROR, reason)

        def without_promises(chunks: list[bytes]) -> list[bytes]:
            return [
                refusal
                if chunk.startswith(_CREATED_TYPE) and chunk[12:] in refused
                else _unless_cancelled(chunk, reason)
                for chunk in chunks
            ]

        # Who has joined one of these jobs in the group that is open must not be promised it either.
        for group in [*groups, self.log.group]:
            for connection in group.waiting:
                for held in connection.held:
                    if held.gate == group.number:
                        held.chunks[:] = without_promises(held.chunks)
                connection.out[:] = without_promises(connection.out)
        self.log.committed = max(self.log.committed, groups[-1].number if groups else 0)
        for group in groups:
            self._let_go(group)
        return owed

    def give_up_waiting(self, reason: str) -> None:
        """Refuse what waits for a commit that does not come. The jobs stay: they may be committed yet."""
        refusal = error(wire.QUEUE_ERROR, reason)
        for group in self.context.uncommitted:
            for job in group.jobs:
                if job.state == PENDING and not job.background:
                    self.context.admit(job)  # only its place in the order waited
            for connection in group.waiting:
                for held in connection.held:
                    if held.gate > self.log.committed:
                        held.gate = 0
                        held.chunks[:] = [
                            refusal if chunk.startswith(_CREATED_TYPE) else _unless_cancelled(chunk, reason)
                            for chunk in held.chunks
                        ]
                connection.gate = 0
                self.context.released[connection] = None
            group.waiting.clear()

    def refuse_background(self, reason: str | None, cause: str = "journal") -> None:
        """Answer background submits with QUEUE_ERROR and this reason, or accept them again, unless there is
        another cause."""
        self._refusals.pop(cause, None)
        if reason is not None:
            self._refusals[cause] = reason
        self.context.refusal = next(iter(self._refusals.values()), None)

    def checkpoint(self) -> Iterator[None]:
        """See restore.checkpoint."""
        if self.fleet is None:
            return checkpoint(self.context)
        return self._checkpoint_slots(self.fleet)

    def _checkpoint_slots(self, fleet: Fleet) -> Iterator[None]:
        """The same in a fleet: every slot whole, whoever leads it, as each turn's group is closed."""
        for function in list(self.ledger.functions.values()):
            if function.limits is not None:
                self.log.append_node(
                    entries.LIMITS, 0, entries.encode_limits(*function.limits, function.name)
                )
        self.log.append_node(entries.START, self.log.incarnation, b"checkpoint")
        fleet.to_write.extend(range(SLOT_COUNT))
        while fleet.to_write:
            yield
        yield


def _unless_cancelled(chunk: bytes, reason: str) -> bytes:
    """An answer; of a cancel, that the job's end is not safe: it is over here, and may come back."""
    if not isinstance(chunk, Cancelled):
        return chunk
    text = b"ERR NOT_SAFE %b\r\n" % reason.replace(" ", "+").encode()
    return response(CANCEL_RES, text) if chunk.startswith(b"\0") else text
