"""One node's part in a fleet: the map becomes roles, roles become jobs and back. Pure.

    see(view)            what etcd says: lead these slots, step down from those, who counts in each
    receive(peer, frame) what another node says
    propose(facts)       what this node wants to be changed in the map; one swap at a time
    take_frame(name)     what is to be sent to another node
    tick()               what time has brought

A slot's life here:

    replica (bytes) ──lead──▶ leading ──every member has all──▶ activating ──jobs made──▶ serving
         ▲                       │                                                          │ pause()
         └──────step down────────┴───────────────────◀── paused (hand-over) ◀───────────────┘

Only a serving slot takes submits and results on the spot; otherwise they are asked of its primary, or wait
in the forwarder's park. This node's view of the map never goes back (rule 3).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.jobs import FINISHED, PENDING, QUEUED, RECLAIM, SCHEDULED, Job, QueueLimits
from cluster.node import slot_news
from cluster.node.cancelled import Cancelled
from cluster.node.connection import Connection, Held
from cluster.node.context import Context, job_record, slot_of_handle
from cluster.node.forward import (
    ASK_AGAIN,
    CANCEL,
    FORWARD_BYTES_MAX,
    MOVED,
    NODE_PACKET_BYTES_MAX,
    REMEMBERED_SUBMIT,
    Forwarder,
    Request,
    take_bytes,
)
from cluster.node.restore import Restorer
from cluster.placement import (
    Change,
    Facts,
    FleetMap,
    HandOver,
    Member,
    Swap,
    Touch,
    View,
    apply_changes,
    bootstrap,
    propose,
)
from cluster.placement.changes import Enter
from cluster.placement.errors import IllegalChange
from cluster.placement.view import FleetConfig, SlotRow, holders
from cluster.replication import SLOT_COUNT, Group, entries
from cluster.replication.frames import Frame, Hello
from cluster.replication.replica import Replica, key_of
from cluster.replication.replicator import (
    FRAME_ENTRIES_BYTES_MAX,
    READY,
    REJECTED_BY,
    UNSENT_BYTES_MAX,
    Replicator,
)
from cluster.wire import Decoder, error, response
from cluster.wire import packets as wire

if TYPE_CHECKING:
    from cluster.node.node import Node

JOBS_PER_TURN: Final = 2000  # made of replicas in one turn, so that a takeover does not stop the others
JOBS_PER_CHECKPOINT_STEP: Final = 256
HAND_OVER_JOBS_MAX: Final = 10_000  # of the slots in one swap: each job costs its old primary a moment
LEASE_MARGIN_SECONDS: Final = 0.5
FOREGROUND_MASK: Final = (1 << 40) - 1
TICK_SECONDS: Final = 0.1
TELL_SILENT_SECONDS: Final = 0.5
_CREATED: Final = b"\0RES" + wire.JOB_CREATED.to_bytes(4, "big")
_FOREGROUND_SUBMITS: Final = (wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB, wire.SUBMIT_JOB_LOW)
_SUBMITS: Final = (wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_LOW_BG)


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What the pure node needs to know of the fleet's settings; times in seconds."""

    fleet: str = "default"
    replicas: int = 3
    min_in_sync: int = 2
    bootstrap_nodes: int = 3
    lease_seconds: float = 5.0
    park_seconds: float = 10.0  # how long a request waits for a primary
    stall_seconds: float = 8.0  # how long a commit may take before submits are refused
    silence_seconds: float = 2.0  # after which a peer counts as silent
    missed_seconds: float = 10.0  # rule 8, last sentence
    replace_after_seconds: float = 300.0
    pause_seconds: float = 2.0  # how long a slot is kept ready for a hand-over
    planner_delay_seconds: float = 2.0


class Attached(NamedTuple):
    """A client that waits for a job's result."""

    client: Connection
    answer: bytes | None  # that told it the handle, or has yet to do so


class Fleet:
    """See the module's docstring."""

    def __init__(self, node: Node, me: Member, settings: FleetSettings) -> None:
        self._node = node
        self._context: Context = node.context
        self.me = me
        self.settings = settings
        self.view = View(0)
        self.replicator = Replicator(node.log, me.identity)
        self.replicator.state_of = self._state_of
        self.replicator.deposed = self._step_down
        self.primary_names: list[str | None] = [None] * SLOT_COUNT
        self.forwarder = Forwarder(node.context, self)
        self.takeovers = 0
        self.news = slot_news.SlotNews()
        self.fenced = True
        self.catching_up = False  # more states are to be made for others
        self._activating: deque[int] = deque()
        self._paused: dict[int, tuple[int, float]] = {}  # slot -> group after which it may go, since when
        self.cancels: dict[int, int] = {}  # slot -> the last group with the end of a cancelled job of it
        self.withheld: dict[int, list[Job]] = {}  # slot that is paused -> its jobs that were to be given out
        self._swapping: Swap | None = None
        self._swapped: tuple[int, float] | None = None  # revision compared, when
        self._pending: dict[int, tuple[str, ...]] = {}  # proposed members, until a later map is seen
        self._map_packet = b""
        self._lease_until = 0.0
        self._heard: dict[str, float] = {}  # peer -> when (monotonic)
        self._missed: dict[str, float] = {}  # member -> since when nothing was heard of it
        self._they_miss: dict[str, frozenset[str]] = {}
        self._absent: dict[str, float] = {}  # known node without a key -> since when
        self._planner_since: tuple[str, float] = ("", 0.0)
        self._stalled_since = 0.0
        self._stalled_group = 0
        self._refused = False
        self._unreachable: dict[int, str] = {}  # slot -> why it cannot serve
        self._look_at = 0.0
        self._moved: set[int] = set()  # slots whose primary has changed since the last turn
        self._decoders: dict[str, Decoder] = {}
        self._told_silent: dict[str, float] = {}
        self._own_slots_stale = True
        self.check_at = 0.0  # when `tick` is due (monotonic)
        self.to_write: deque[int] = deque()  # slots that a checkpoint has yet to write
        node.context.fleet = self
        node.context.own_slots = []
        node.context.dispatching = False
        node.log.replicated = True

    def begin(self, me: Member) -> None:
        """The journal is restored: take part, as this member."""
        self.me = me
        log = self._context.log
        log.incarnation = me.incarnation
        for slot in log.slots:
            # Handles have 63 bytes; what is left of the incarnation comes back after twelve days.
            slot.name_foreground(me.incarnation & FOREGROUND_MASK, self._context.settings.handle_prefix)
        log.append_node(entries.START, me.incarnation, me.version.encode())

    def restore_limits(self, limits: Sequence[tuple[int, bytes]]) -> None:
        """What the journal says of `maxqueue`: number (not 0: taken away), body of LIMITS entries."""
        ledger = self._context.ledger
        for number, body in limits:
            high, normal, low, name = entries.decode_limits(body)
            function = ledger.function(name)
            function.limits = None if number else QueueLimits(high, normal, low)
            ledger.forget_if_idle(function)

    # ---- what etcd says

    def see(self, view: View) -> bool:
        """Adopt a newer view; false when it is not newer."""
        if view.revision < self.view.revision:
            return False
        old = self.view
        if view.map is None:
            self.view = view
            return True
        if old.map is not None and view.map.revision < old.map.revision:
            return False
        self.view = view
        now = self._context.monotonic_seconds
        for name in {*old.members, *view.map.names.values()} - set(view.members):
            self._absent.setdefault(name, now)
        for name in view.members:
            self._absent.pop(name, None)
            self._missed.setdefault(name, now)
        for name in list(self._missed):
            if name not in view.members:
                del self._missed[name]
        later = self._swapped is None or view.map.revision > self._swapped[0]
        if later:
            self._pending.clear()
            self._swapped = None
        if old.map is None or old.map.revision != view.map.revision or later:
            self._adopt(old.map, view.map)
        self._find_unreachable()
        if old.map is None or old.map.revision != view.map.revision or old.members != view.members:
            self._tell_map()
        return True

    def _adopt(self, old: FleetMap | None, new: FleetMap) -> None:
        me = self.me
        leads = self.replicator.leads
        min_in_sync = self.view.config.min_in_sync if self.view.config is not None else 1
        old_rows = old.slots if old is not None else (None,) * len(new.slots)
        names = self.primary_names
        for slot_index, (row, before) in enumerate(zip(new.slots, old_rows, strict=True)):
            if row is before and slot_index not in leads:
                continue
            if names[slot_index] != row.primary or before is None or before.epoch != row.epoch:
                names[slot_index] = row.primary
                self._moved.add(slot_index)
            lead = leads.get(slot_index)
            mine = row.primary == me.name and row.incarnation == me.incarnation and me.identity in row.in_sync
            if lead is not None and (not mine or lead.epoch < row.epoch):
                if row.epoch < lead.epoch:
                    continue
                if not mine:
                    what = slot_news.HANDED_OVER if slot_index in self._paused else slot_news.LOST
                    self.news.gave(slot_index, what, row.primary, self._context.monotonic_seconds)
                self._step_down(slot_index)
                lead = None
            if not mine:
                continue
            if lead is None:
                slot = self._context.log.slots[slot_index]
                if row.epoch < slot.promised:
                    continue  # somebody is ahead of this view
                self.replicator.lead(slot_index, row.epoch)
                slot.lead(row.epoch, me.incarnation & FOREGROUND_MASK, self._context.settings.handle_prefix)
                taken = before is not None and not self._gave(before)
                self.takeovers += taken
                self._tell_gained(slot_index, before, taken=taken)
            self.replicator.set_members(
                slot_index, row.in_sync, self._pending.get(slot_index, ()), row.learners
            )
            # After `promote` it serves once enough others have caught up (rule 5).
            self.replicator.leads[slot_index].enough = len(row.in_sync) >= min_in_sync
        self._own_slots_stale = True

    def _tell_gained(self, slot_index: int, before: SlotRow | None, *, taken: bool) -> None:
        other = before.primary if before is not None else ""
        what = slot_news.TOOK_OVER if taken else slot_news.GOT
        if other == self.me.name:
            what = slot_news.LEADS_AGAIN
        self.news.gained(slot_index, what, other, self._context.monotonic_seconds)

    def _gave(self, before: SlotRow) -> bool:
        """Whether a slot's last primary is up, so that it must have handed the slot over."""
        member = self.view.members.get(before.primary)
        return member is not None and member.incarnation == before.incarnation

    def _find_unreachable(self) -> None:
        """Slots that cannot serve until a node comes back; their submits are refused at once."""
        fleet_map, config = self.view.map, self.view.config
        self._unreachable.clear()
        if fleet_map is None or config is None:
            return
        present = holders(self.view.members)
        for slot_index, row in enumerate(fleet_map.slots):
            alive = sum(identity in present for identity in row.in_sync)
            if alive < config.min_in_sync:
                gone = sorted(
                    {
                        fleet_map.names.get(identity, identity)
                        for identity in row.in_sync
                        if identity not in present
                    }
                )
                remedy = (
                    f"start {' or '.join(gone)} again; nothing acknowledged is lost"
                    if gone
                    else "others are catching up; try again"
                )
                self._unreachable[slot_index] = (
                    f"{alive} of at least {config.min_in_sync} in-sync copies of this job's slot are up: "
                    f"{remedy}"
                )
        self.news.unreachable(self._unreachable, self._context.monotonic_seconds)

    def refusal_of(self, slot_index: int) -> str | None:
        """Why a request for this slot need not wait; None when it may."""
        return self._unreachable.get(slot_index)

    def map_packet(self) -> bytes:
        """MAP_RES for fleet-aware clients (docs/protocol-extensions.md)."""
        if not self._map_packet:
            fleet_map, members = self.view.map, self.view.members
            names: list[str] = []
            if fleet_map is not None:
                # Those that are away and have a copy, too: who adds up what nodes say has to know of them.
                names = sorted({*members, *fleet_map.names.values(), *(r.primary for r in fleet_map.slots)})
            index = {name: position for position, name in enumerate(names)}
            nodes = []
            for name in names:
                member = members.get(name)
                if member is None:
                    nodes.append({"name": name, "host": "", "port": 0, "state": "down", "zone": ""})
                else:
                    nodes.append(
                        {
                            "name": name,
                            "host": member.host,
                            "port": member.port,
                            "state": "draining" if member.draining else "up",
                            "zone": member.zone,
                        }
                    )
            value = {
                "revision": self.view.revision if fleet_map is not None else 0,
                "fleet": self.settings.fleet,
                "slots": SLOT_COUNT,
                "self": self.me.name,
                "nodes": nodes,
                "primaries": [index[row.primary] if row.primary in members else -1 for row in fleet_map.slots]
                if fleet_map is not None
                else [],
            }
            self._map_packet = response(wire.MAP_RES, json.dumps(value, separators=(",", ":")).encode())
        return self._map_packet

    def _tell_map(self) -> None:
        self._map_packet = b""
        for connection in self._context.connections:
            if connection.map_wanted and not connection.closing:
                self._context.send(connection, self.map_packet())

    def node_of_prefix(self, prefix: bytes) -> str | None:
        """The node whose handles begin so, when it is a peer with the usual prefix."""
        name = prefix.removeprefix(b"H:").decode("utf-8", "replace")
        return name if name in self.view.members else None

    @property
    def draining(self) -> bool:
        """Whether this node is to give away what it leads. Workers take nothing from it."""
        own = self.view.members.get(self.me.name)
        return own is not None and own.draining

    def leads(self, slot_index: int) -> bool:
        return slot_index in self.replicator.leads

    def claim(self, connection: Connection, handle: bytes) -> bytes:
        return self._node.workers.claim_now(connection, handle)

    def serves_handle(self, handle: bytes) -> bool:
        slot = slot_of_handle(handle)
        return slot is None or self._context.log.slots[slot].serving

    # ---- roles

    def _activate(self) -> None:
        """Make jobs of replicas whose entries all members have."""
        budget = JOBS_PER_TURN
        served: list[int] = []
        while self._activating and budget > 0:
            slot_index = self._activating.popleft()
            lead = self.replicator.leads.get(slot_index)
            replica = self.replicator.replicas[slot_index]
            if lead is None or not lead.ready:
                continue
            if replica is not None:
                budget -= 1 + len(replica.base) + len(replica.tail)
                self._make_jobs(slot_index, replica)
                self.replicator.took_over(slot_index)
            self._context.log.slots[slot_index].serving = True
            self._context.ages.led(slot_index, self._context.monotonic_seconds)
            served.append(slot_index)
        if served:
            self._own_slots_stale = True
            self._moved.update(served)
            self.news.served(served, self._context.monotonic_seconds)

    def _make_jobs(self, slot_index: int, replica: Replica) -> None:
        replica.fold(0)
        table = self._context.ledger.tables[slot_index]
        table.remembered, replica.remembered = replica.remembered, table.remembered
        if not replica.base:
            return
        if table.uniques:
            # Foreground jobs from when the slot was led here before.
            for raw in replica.base.values():
                job = table.uniques.get(key_of(raw))
                if job is not None:
                    self.give_way(job)
        restorer = Restorer(self._context, self._node.clients)
        slot = self._context.log.slots[slot_index]
        for raw in replica.state(slot_index, slot.promised, ()):
            entry, _ = entries.decode(raw, 0)
            if entry.kind not in (entries.STATE, entries.STATE_END):
                restorer.apply(entry._replace(epoch=0, number=0))  # it does not matter where it stood
        restorer.finish()

    def give_way(self, job: Job) -> None:
        """A foreground job ends here without a result: who waits for it asks the slot's primary for it, be it
        this node, which has got a background job of its key, or the next one."""
        self._moved.add(job.slot)
        clients, job.clients = job.clients, None
        if job.worker is not None:
            job.worker.forgive(job.handle)
        self._context.ledger.finish(job)
        for client in clients or ():
            client.attached.pop(job, None)
            if client.node is not None:
                self._context.send(client, response(MOVED, job.handle))
            elif not client.closing:
                self._join_again(client, job)

    def _step_down(self, slot_index: int) -> None:
        """Lead a slot no more: its jobs become a replica, its clients and workers are kept."""
        context = self._context
        slot = context.log.slots[slot_index]
        table = context.ledger.tables[slot_index]
        self._paused.pop(slot_index, None)
        self.withheld.pop(slot_index, None)
        self._pending.pop(slot_index, None)
        self._own_slots_stale = True
        self._moved.add(slot_index)
        if self.replicator.replicas[slot_index] is not None:
            self.replicator.step_down(slot_index, None)
            return
        slot.serving = False
        replica = Replica(slot.number)
        table.remembered, replica.remembered = replica.remembered, table.remembered
        for raw in self._job_entries(slot_index):
            replica.apply(raw)
        self.replicator.step_down(slot_index, replica)
        handles: dict[bytes, Job] = {}
        waiting: dict[bytes, list[Attached]] = {}  # clients here that want the result
        for job in [job for job in table.jobs.values() if job.background]:
            handles[job.handle] = job
            worker = job.worker
            if worker is not None and worker.connection.node is None:  # else that node knows, too
                self.forwarder.host(job, worker.connection)
            clients, job.clients = job.clients, None
            context.ledger.finish(job)
            attached = [Attached(client, client.attached.get(job)) for client in clients or ()]
            for client, answer in attached:
                client.attached.pop(job, None)
                if client.node is not None:
                    context.send(client, response(MOVED, job.handle))
                elif not client.closing:
                    waiting.setdefault(job.handle, []).append(Attached(client, answer))
        cancelled = self.cancels.pop(slot_index, 0) > context.log.committed
        if handles or cancelled:
            self._ask_again(slot_index if cancelled else -1, handles, waiting)
        # The next primary attaches them again, under the same key.
        for handle, found in waiting.items():
            for client, _ in found:
                self._join_again(client, handles[handle])
        if self.draining:
            # Foreground jobs stay where they are, but workers take no more from here.
            for job in [job for job in table.jobs.values() if job.state in (QUEUED, SCHEDULED)]:
                self.give_way(job)

    def _join_again(self, client: Connection, job: Job) -> None:
        body = b"%b\0%b\0%b" % (job.function.name, job.unique, job.payload)
        packet_type = _FOREGROUND_SUBMITS[job.priority]
        if job.options is not None and job.options.reducer is not None:
            packet_type = wire.SUBMIT_REDUCE_JOB
            body = b"%b\0%b\0%b\0%b" % (job.function.name, job.unique, job.options.reducer, job.payload)
        self.forwarder.join_again(client, packet_type, body, job.slot, job.handle)

    def _ask_again(
        self, cancels_of: int, handles: dict[bytes, Job], waiting: dict[bytes, list[Attached]]
    ) -> None:
        """Promises that were not committed here: the next primary makes them. Who is told a handle only by
        that one is attached by it, too, and struck from `waiting`. `cancels_of`: this slot's cancels, too."""
        groups = [*self.replicator.uncommitted_groups(), self._context.log.group]
        connections: dict[Connection, None] = {}
        for group in groups:
            connections.update(dict.fromkeys(group.waiting))
        for connection in connections:
            batches = list(connection.held)
            if connection.batch is None and any(
                isinstance(chunk, Cancelled) or (chunk.startswith(_CREATED) and chunk[12:] in handles)
                for chunk in connection.out
            ):
                self.forwarder.open_batch(connection)
            if connection.batch is not None:
                batches.append(connection.batch)
            for batch in batches:
                if batch.gate <= self._context.log.committed and batch is not connection.batch:
                    continue
                for position, chunk in enumerate(batch.chunks):
                    if isinstance(chunk, Cancelled) and slot_of_handle(chunk.handle) == cancels_of:
                        if connection.node is not None:
                            batch.chunks[position] = ASK_AGAIN
                        else:
                            request = Request(connection, CANCEL, chunk.handle, cancels_of)
                            self._park_in_place(request, batch, position)
                        continue
                    if not chunk.startswith(_CREATED):
                        continue
                    job = handles.get(chunk[12:])
                    if job is None:
                        continue
                    if connection.node is not None:
                        # That node knows what it asked: it asks again.
                        batch.chunks[position] = ASK_AGAIN
                        continue
                    if job.options is not None:
                        batch.chunks[position] = error(
                            wire.QUEUE_ERROR, "the node lost this job's slot before it was safe; submit again"
                        )
                        continue
                    clients = waiting.get(job.handle, [])
                    untold = [item for item in clients if item.client is connection and item.answer is chunk]
                    if untold:
                        clients.remove(untold[0])
                        packet_type = _FOREGROUND_SUBMITS[job.priority]
                    else:
                        packet_type = _SUBMITS[job.priority]
                    if connection.remember:
                        packet_type += REMEMBERED_SUBMIT
                    body = b"%b\0%b\0%b" % (job.function.name, job.unique, job.payload)
                    request = Request(connection, packet_type, body, job.slot)
                    self._park_in_place(request, batch, position)

    def _park_in_place(self, request: Request, batch: Held, position: int) -> None:
        """Its answer will stand where one stands that holds no more."""
        request.batch, request.index = batch, position
        batch.chunks[position] = b""
        batch.missing += 1
        self.forwarder.park(request)

    def _job_entries(self, slot_index: int) -> Iterable[bytes]:
        context = self._context
        slot = context.log.slots[slot_index]
        table = context.ledger.tables[slot_index]
        for job in table.jobs.values():
            if job.background and job.state != FINISHED:
                record = job_record(job)
                if job.state == RECLAIM:
                    record = replace(record, assigned=True)
                yield entries.encode(entries.JOB, slot_index, slot.epoch, slot.number, record.encode())
        context.forget_remembered(slot_index)
        for key, (handle, ended) in table.remembered.items():
            yield entries.encode_remembered(slot_index, ended, handle, key)

    def _state_of(self, slot_index: int) -> list[bytes]:
        """A led slot whole, from its jobs."""
        slot = self._context.log.slots[slot_index]
        known = [pair for pair in slot.history if pair[1] <= slot.number]
        return [
            entries.encode_state(slot_index, slot.promised, slot.number, known),
            *self._job_entries(slot_index),
            entries.encode(entries.STATE_END, slot_index, slot.promised, slot.number, b""),
        ]

    def write_states(self) -> None:
        """A step of a checkpoint: some slots whole, as they are when the group is closed."""
        local = self._context.log.group.local
        count = 0
        while self.to_write and count < JOBS_PER_CHECKPOINT_STEP:
            slot = self._context.log.slots[self.to_write.popleft()]
            replica = self.replicator.replicas[slot.index]
            before = len(local)
            if replica is None:
                local += self._state_of(slot.index)
            elif slot.number or slot.promised:
                self._forget_remembered(replica)
                local += replica.state(slot.index, slot.promised, slot.history)
                local += replica.tail
            count += len(local) - before

    def _forget_remembered(self, replica: Replica) -> None:
        settings = self._context.settings
        before = int(self._context.wall_seconds - settings.remember_seconds)
        replica.forget_remembered(before, max(1, settings.remember_jobs_max // SLOT_COUNT))

    def reclaim_own(self, connection: Connection, handle: bytes) -> None:
        """A slot came back while a worker here still runs one of its jobs."""
        job = self._context.find_handle(handle)
        if job is None or job.state != RECLAIM or connection.closing:
            return
        worker = connection.worker or self._node.workers.new_worker(connection)
        self._node.workers.adopt(worker, job)

    def give_up_run(self, handle: bytes) -> None:
        """The result of a job that runs here is lost, while its slot is being handed over: it runs again."""
        job = self._context.find_handle(handle)
        if job is not None and job.worker is not None:
            self._context.ledger.release(job)
            job.state = RECLAIM

    def fired(self, schedule: Job) -> None:
        """Another node has made a schedule's job."""
        if schedule.state != FINISHED and self._context.log.slots[schedule.slot].serving:
            self._node.clients.fired(schedule)

    # ---- hand-over

    def pause(self, slots: Iterable[int]) -> None:
        """Begin nothing new in these slots, so that all that they promised is committed."""
        group = self._context.log.group
        now = self._context.monotonic_seconds
        for slot_index in slots:
            slot = self._context.log.slots[slot_index]
            if slot.serving:
                slot.serving = False
                group.needed = True
                group.promises.add(slot_index)
                self._paused[slot_index] = (group.number, now)
                self._own_slots_stale = True

    def is_paused(self, slot_index: int) -> bool:
        """Whether the slot is being handed over; its jobs are still here."""
        return slot_index in self._paused

    def _resume(self, slots: Iterable[int]) -> None:
        context = self._context
        for slot_index in slots:
            self._paused.pop(slot_index, None)
            for job in reversed(self.withheld.pop(slot_index, ())):
                if job.state == PENDING:
                    context.ledger.enqueue(job, first=True)
            lead = self.replicator.leads.get(slot_index)
            if lead is None or not lead.ready:
                continue
            context.log.slots[slot_index].serving = True
            self._own_slots_stale = True
            self._moved.add(slot_index)
            due = context.monotonic_seconds + context.settings.reclaim_seconds
            for job in context.ledger.tables[slot_index].jobs.values():
                if job.state == RECLAIM:
                    context.limits.add(due, (job, job.deliveries, RECLAIM))

    # ---- proposing

    def propose(self) -> Swap | None:
        """The swap that this node wants now, or None. It counts as under way until `swapped`."""
        if self._swapping is not None:
            return None
        view = self.view
        own = view.members.get(self.me.name)
        if own is None or own.incarnation != self.me.incarnation:
            return None
        now = self._context.monotonic_seconds
        planner = self._is_planner(now)
        if view.map is None:
            if not planner or view.config is not None:
                return None
            config = FleetConfig(SLOT_COUNT, self.settings.replicas, self.settings.min_in_sync)
            return self._begin_swap(bootstrap(view, config, self.settings.bootstrap_nodes))
        facts = Facts(
            caught_up=frozenset(self.replicator.caught_up()),
            settled=frozenset(
                slot
                for slot in self.replicator.leads
                if self._context.log.slots[slot].serving or slot in self._paused
            ),
            away=frozenset(
                name
                for name, since in self._absent.items()
                if now - since >= self.settings.replace_after_seconds
            ),
            missed=self._missed_by_enough(now),
            silent=frozenset(
                name for name, since in self._missed.items() if now - since >= self.settings.missed_seconds
            ),
            planner=planner,
        )
        changes: list[Change] = propose(view, self.me.name, facts)
        to_pause: list[int] = []
        ready: list[Change] = []
        tables = self._context.ledger.tables
        jobs = sum(len(tables[slot].jobs) for slot in self._paused)
        for change in changes:
            if isinstance(change, HandOver):
                paused = self._paused.get(change.slot)
                if paused is None:
                    if jobs <= HAND_OVER_JOBS_MAX:  # else it waits for the next time
                        to_pause.append(change.slot)
                        jobs += len(tables[change.slot].jobs)
                    continue
                if paused[0] > self._context.log.committed:
                    continue
            ready.append(change)
        if to_pause and not ready:
            # Last of all: while other changes of this node, or refusals of them, are on their way, the slots
            # would only stand still.
            self.pause(to_pause)
        if not ready:
            if (
                self._swapped is not None
                and self._pending
                and now - self._swapped[1] > self.settings.lease_seconds
            ):
                # A proposal whose fate is unknown: move the revision, so that it cannot land any more.
                ready = [Touch()]
            else:
                return None
        try:
            swap = apply_changes(view, own, ready, missed=facts.missed)
        except IllegalChange:
            return None
        for change in ready:
            if isinstance(change, Enter):
                # From now on it counts (rule 3), whatever becomes of the swap.
                # So does who was proposed on this same map before.
                earlier = self._pending.get(change.slot, ())
                pending = self._pending[change.slot] = tuple({*earlier, change.identity})
                row = view.map.slots[change.slot]
                self.replicator.set_members(change.slot, row.in_sync, pending, row.learners)
        return self._begin_swap(swap)

    def _begin_swap(self, swap: Swap | None) -> Swap | None:
        if swap is not None:
            self._swapping = swap
            self._swapped = (swap.compare_revision, self._context.monotonic_seconds)
        return swap

    def swapped(self) -> None:
        """The swap was answered, one way or another: only a later view tells what became of it."""
        self._swapping = None

    @property
    def hand_over_waits(self) -> bool:
        """Slots are paused for a hand-over."""
        return bool(self._paused)

    @property
    def hand_over_ready(self) -> bool:
        """All that the paused slots promised is committed: they may go."""
        committed = self._context.log.committed
        return bool(self._paused) and all(group <= committed for group, _ in self._paused.values())

    def _is_planner(self, now: float) -> bool:
        names = sorted(self.view.members)
        if not names:
            return False
        if names[0] == self.me.name:
            return True
        # The others after a delay, in the order of their names.
        if self._planner_since[0] != str(self.view.map.revision if self.view.map else 0):
            self._planner_since = (str(self.view.map.revision if self.view.map else 0), now)
        rank = names.index(self.me.name) if self.me.name in names else len(names)
        return now - self._planner_since[1] > self.settings.planner_delay_seconds * (1 + rank)

    def _missed_by_enough(self, now: float) -> frozenset[str]:
        """Nodes that neither this one nor enough others have heard for long (rule 8)."""
        found = set()
        for name, since in self._missed.items():
            if name == self.me.name or now - since < self.settings.missed_seconds:
                continue
            others = sum(
                name in they for other, they in self._they_miss.items() if other in self.replicator.peers
            )
            if others >= self.settings.min_in_sync - 1 and others:
                found.add(name)
        return frozenset(found)

    # ---- peers

    def peer_up(self, hello: Hello, now: float) -> None:
        """A stream to another node stands."""
        if hello.node in self.replicator.peers:
            self.peer_down(hello.node)
        connection = Connection(-2, f"node {hello.node}", local=False, exceptions=True)
        connection.node = hello.node
        self._decoders[hello.node] = Decoder(packet_bytes_max=NODE_PACKET_BYTES_MAX)
        self._heard[hello.node] = now
        self._missed[hello.node] = now
        self.replicator.peer_up(hello, connection)
        self.forwarder.node_up(hello.node)
        # What is parked for it, and what of its jobs runs here.
        self._moved.update(slot for slot, name in enumerate(self.primary_names) if name == hello.node)

    def peer_down(self, name: str) -> None:
        """It broke."""
        peer = self.replicator.peer_down(name)
        if peer is None:
            return
        self._they_miss.pop(name, None)
        self._decoders.pop(name, None)
        connection: Connection = peer.connection
        connection.closing = True
        self._node.returns.await_return(connection)
        self._node.workers.leave(connection)
        self._node.clients.leave(connection)
        connection.held.clear()
        self.forwarder.node_down(name)

    def receive(self, name: str, frame: Frame, now: float) -> None:
        """A frame from a peer. Raises ProtocolBroken: the stream is to be closed."""
        peer = self.replicator.peers.get(name)
        if peer is None:
            return
        self._heard[name] = self._missed[name] = now
        self._they_miss[name] = frozenset(frame.silent)
        self.replicator.receive(peer, frame)
        if frame.requests:
            connection: Connection = peer.connection
            packets = self._decoders[name].feed(frame.requests)
            self._node.receive_node(connection, packets)
        if frame.replies:
            self.forwarder.replies(name, frame.replies)

    def receive_own(self, connection: Connection, packets: Sequence[tuple[int, bytes]]) -> None:
        """Packets that this node asks of itself."""
        self._node.receive_node(connection, packets)

    def take_frame(self, name: str, now: float) -> Frame | None:
        """What is to be sent to a peer now."""
        peer = self.replicator.peers.get(name)
        if peer is None:
            return None
        frame = self.replicator.take_frame(peer)
        if len(frame.entries) > FRAME_ENTRIES_BYTES_MAX:
            return frame  # one large job: with more it would be no message any more
        frame.requests = self.forwarder.take_requests(name)
        replies: list[bytes] = peer.connection.out_replies
        if replies:
            frame.replies = take_bytes(replies, FORWARD_BYTES_MAX)
        frame.silent = tuple(
            member
            for member, since in self._missed.items()
            if now - since >= self.settings.missed_seconds and member != self.me.name
        )
        if frame.silent and not frame and now - self._told_silent.get(name, 0.0) < TELL_SILENT_SECONDS:
            return None
        self._told_silent[name] = now
        return frame if frame or frame.silent else None

    def slow_peers(self) -> list[str]:
        """Peers that do not take what is sent: their streams are to be begun anew, with whole states."""
        return [name for name, peer in self.replicator.peers.items() if peer.entries_bytes > UNSENT_BYTES_MAX]

    def frames_waiting(self) -> list[str]:
        """Peers for whom there is something to send."""
        return [
            name
            for name, peer in self.replicator.peers.items()
            if self.replicator.has_frame(peer)
            or peer.connection.out_replies
            or self.forwarder.channels[name].requests
        ]

    def route(self, sends: list[tuple[Connection, bytes]]) -> list[tuple[Connection, bytes]]:
        """Answers to other nodes go into their frames; the rest is for sockets."""
        sockets = []
        for connection, data in sends:
            if connection.node is None:
                sockets.append((connection, data))
            elif connection.node == self.me.name:
                self.forwarder.replies(self.me.name, data)
                self._look_at = self._context.monotonic_seconds
            else:
                connection.out_replies.append(data)
        return sockets

    # ---- turns

    def on_disk(self, group_number: int) -> None:
        """Own groups up to this one are on this disk."""
        self.replicator.on_disk(group_number)
        self._advance()

    def _advance(self) -> None:
        committed = self.replicator.advance()
        if committed > self._context.log.committed:
            self._node.committed(committed)

    def before_cut(self) -> None:
        """At the end of a turn, before its group is closed."""
        replicator = self.replicator
        self._advance()
        if replicator.events:
            events, replicator.events = replicator.events, []
            for event in events:
                if event.kind == READY:
                    self._activating.append(event.slot)
                elif event.kind == REJECTED_BY and event.slot in replicator.leads:
                    now = self._context.monotonic_seconds
                    self.news.gave(event.slot, slot_news.LOST, "one with a newer map", now)
                    self._step_down(event.slot)
        if self._activating:
            self._activate()
        if self._moved:
            moved, self._moved = self._moved, set()
            self.forwarder.claim_guests(moved)
            self.forwarder.flush(moved)
        packets = self.forwarder.loop_back()
        if packets:
            self.receive_own(self.forwarder.own, packets)
        if self._own_slots_stale:
            self._own_slots_stale = False
            self._context.own_slots = [
                slot.index for slot in self._context.log.slots if slot.serving
            ] or self._foreign_slots()

    def after_cut(self, group: Group | None) -> None:
        """The group is closed: to the peers with it, and what helps others to catch up."""
        if group is not None:
            self.replicator.sent(group)
        self.catching_up = self.replicator.make_states()

    def _foreign_slots(self) -> list[int]:
        """Where jobs without a unique go from a node that leads nothing."""
        return [slot for slot, name in enumerate(self.primary_names) if name is not None]

    @property
    def busy(self) -> bool:
        """Whether another turn is wanted at once."""
        return bool(
            self._activating
            or self.replicator.events
            or self._moved
            or self.forwarder.own_waits
            or self._context.released
        )

    def lease(self, sent_at: float) -> None:
        """The last good keep-alive was sent then (monotonic)."""
        until = sent_at + self.settings.lease_seconds - LEASE_MARGIN_SECONDS
        self._lease_until = max(self._lease_until, until)
        if self.fenced:
            self.check_at = 0.0

    def look_again(self, at: float) -> None:
        """Ask parked requests again then."""
        self._look_at = min(self._look_at or at, at)

    def tick(self, now: float) -> None:
        """Ten times a second, and at the latest when the lease ends: before anything is given out."""
        self._fence(now)
        self.check_at = now + TICK_SECONDS
        if now < self._lease_until < self.check_at:
            self.check_at = self._lease_until
        if self._look_at and self._look_at <= now:
            self._look_at = 0.0
            self._moved.update(self.forwarder.parked)
            self._moved.update(self.forwarder.claims_due(now))
        if self.forwarder.parked:
            self.forwarder.expire(now)
        if self._paused:
            old = [
                slot for slot, (_, since) in self._paused.items() if now - since > self.settings.pause_seconds
            ]
            if old and self._swapping is None:
                self._resume(old)
        self._watch_commits(now)

    def _fence(self, now: float) -> None:
        """Rule 11: without a lease jobs are given out only while every in-sync peer answers."""
        may = now < self._lease_until
        if not may:
            limit = now - self.settings.silence_seconds
            needed = self.replicator.required_peers()
            peers = [self.replicator.peer_of(identity) for identity in needed]
            may = bool(self.replicator.leads) and all(
                peer is not None and self._heard.get(peer.name, 0.0) >= limit for peer in peers
            )
        context = self._context
        self.fenced = not may
        if may != context.dispatching:
            context.dispatching = may
            if may:
                for function in context.ledger.functions.values():
                    if function.sleepers:
                        context.ledger.stirred.append(function)

    def _watch_commits(self, now: float) -> None:
        """Nothing is acknowledged around a silent replica; but nobody waits for it without end."""
        group = next(iter(self.replicator.uncommitted_groups()), None)
        number = group.number if group is not None else 0
        if number != self._stalled_group:
            self._stalled_group, self._stalled_since = number, now
            if self._refused:
                self._refused = False
                self._node.refuse_background(None, "copies")
                self.news.refused(None, now)
            return
        if number and now - self._stalled_since > self.settings.stall_seconds:
            reason = (
                "the in-sync copies of this job's slot do not answer: "
                f"{', '.join(self._silent_names(now)) or 'look at gearfleet nodes'}; "
                "nothing acknowledged is lost"
            )
            if not self._refused:
                self._refused = True
                self._node.refuse_background(reason, "copies")
                self.news.refused(reason, now)
            self._node.give_up_waiting(reason)

    def _silent_names(self, now: float) -> list[str]:
        names = []
        fleet_map = self.view.map
        for identity in self.replicator.required_peers():
            peer = self.replicator.peer_of(identity)
            if peer is None or self._heard.get(peer.name, 0.0) < now - self.settings.silence_seconds:
                names.append(fleet_map.names.get(identity, identity) if fleet_map is not None else identity)
        return sorted(names)

    # ---- for people

    def slot_events(self, now: float) -> list[slot_news.SlotEvent]:
        """What the log is to say of slots now."""
        return self.news.take(now, self._silent_names(now))

    def running_here(self) -> int:
        """Jobs that workers of this node run, wherever they are led."""
        running = sum(function.running for function in self._context.ledger.functions.values())
        return len(self.forwarder.guests) + running
