"""What was promised, kept the dumb way beside the fleet; and the rules that hold after every step.

Disks are read entry by entry, and groups when they are written and when they are committed, so the account
knows what is where without asking the code that is under test.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from chaos_tests.sim.worlds import Broken
from cluster.jobs import FINISHED
from cluster.node.context import slot_of_handle
from cluster.placement import View
from cluster.replication import entries
from cluster.replication.frames import REJECTED, Frame
from cluster.replication.replica import key_of
from tests.node.fleets import Host

REMEMBER_SECONDS: Final = 600


class Shadow:
    """What a disk holds of one slot."""

    def __init__(self) -> None:
        self.base: set[bytes] = set()
        self.base_number = 0
        self.log: list[bytes] = []  # behind the base
        self.coming: tuple[int, list[bytes]] | None = None
        self.ever: set[bytes] = set()  # handles of all jobs that were here
        self.running: set[bytes] = set()  # with a worker, as the last entry of each says
        self._jobs: set[bytes] | None = None

    def apply(self, raw: bytes) -> None:
        kind, _, _, number, body = entries.decode(raw, 0)[0]
        self._jobs = None
        if kind == entries.STATE:
            self.coming = (number, [])
        elif self.coming is not None:
            if kind == entries.STATE_END:
                self.base_number, found = self.coming
                self.base, self.coming, self.log = alive(set(), found), None, []
                self.running = set()
                self.ever |= self.base
                for inside in found:
                    self._hint(inside)
            else:
                self.coming[1].append(raw)
        elif kind == entries.CUT:
            keep = number - self.base_number
            if keep < 0:
                raise Broken("a cut below a whole state", f"at {number}, the state is of {self.base_number}")
            del self.log[keep:]
        elif kind in entries.LOGGED:
            if number != self.base_number + len(self.log) + 1:
                raise Broken("a gap on a disk", f"entry {number} behind {self.base_number + len(self.log)}")
            self.log.append(raw)
            self._hint(raw)
            if kind == entries.SUBMITTED:
                self.ever.add(handle_of(kind, body))

    def _hint(self, raw: bytes) -> None:
        kind, _, _, _, body = entries.decode(raw, 0)[0]
        if kind == entries.ASSIGNED:
            self.running.add(body)
        elif kind == entries.JOB:
            record = entries.JobRecord.decode(body)
            (self.running.add if record.assigned else self.running.discard)(record.handle)
        elif kind in (entries.REQUEUED, entries.DONE):
            self.running.discard(handle_of(kind, body))

    def jobs(self) -> set[bytes]:
        """Handles of the living jobs."""
        if self._jobs is None:
            self._jobs = alive(set(self.base), self.log)
        return self._jobs

    def entry(self, number: int) -> bytes | None:
        index = number - self.base_number - 1
        return self.log[index] if 0 <= index < len(self.log) else None


def alive(jobs: set[bytes], raws: list[bytes]) -> set[bytes]:
    for raw in raws:
        kind, _, _, _, body = entries.decode(raw, 0)[0]
        if kind in (entries.SUBMITTED, entries.JOB):
            jobs.add(handle_of(kind, body))
        elif kind == entries.DONE:
            jobs.discard(handle_of(kind, body))
    return jobs


def handle_of(kind: int, body: bytes) -> bytes:
    """The handle that an entry is about."""
    if kind == entries.SUBMITTED:
        return body[1:].split(b"\0", 1)[0]
    if kind == entries.JOB:
        return entries.JobRecord.decode(body).handle
    return entries.done_handle(body) if kind == entries.DONE else body.split(b"\0", 1)[0]


@dataclass
class Disk:
    """Of one data directory."""

    slots: list[Shadow]
    read_to: int = 0
    promised: dict[int, int] = field(default_factory=dict)  # slot -> highest epoch that others were told of


class Account:
    """See the module's docstring."""

    def __init__(self, slots: int, reclaim_seconds: float) -> None:
        self.slots = slots
        self.reclaim_seconds = reclaim_seconds
        self.acknowledged: dict[bytes, tuple[bytes, bytes]] = {}  # handle -> function, unique
        self.ran: set[bytes] = set()  # a worker has said how it ended
        self.over: dict[bytes, int] = {}  # whose end is committed, in this order
        self.leaders: dict[tuple[int, int], tuple[str, int]] = {}  # slot, epoch -> process
        self.committed: dict[tuple[int, int], bytes] = {}  # slot, number -> entry
        self.disks: dict[str, Disk] = {}  # by identity
        self.groups: dict[str, deque[tuple[int, list[bytes]]]] = {}  # of a node: cut, not committed
        self.keys: dict[bytes, bytes] = {}  # handle of a job that is to be remembered -> its key
        self.remembered: dict[bytes, int] = {}  # key -> when its remembered job ended (Unix time)
        self.reclaiming: dict[tuple[int, int], tuple[float, set[bytes]]] = {}  # slot, epoch -> since, jobs
        self.changed = True  # something that `check` looks at

    # ---- what happens

    def disk(self, identity: str) -> Disk:
        found = self.disks.get(identity)
        if found is None:
            found = self.disks[identity] = Disk([Shadow() for _ in range(self.slots)])
        return found

    def lost_disk(self, identity: str) -> None:
        self.disks.pop(identity, None)

    def stopped(self, host: Host) -> None:
        self.groups.pop(host.name, None)
        self.changed = True

    def started(self, host: Host) -> None:
        """Rule 2: what it promised before is still promised."""
        for slot, epoch in self.disk(host.identity).promised.items():
            if host.node.log.slots[slot].promised < epoch:
                raise Broken("a promise was forgotten", f"{host.name}, slot {slot}: epoch {epoch}")

    def watch(self, host: Host, now: float) -> None:
        """What a turn has done to groups, commits and leads."""
        if not host.alive:
            return
        groups = self.groups.setdefault(host.name, deque())
        for number, records in host.unwritten:
            if not groups or number > groups[-1][0]:
                groups.append((number, records))
        log = host.node.log
        if groups and groups[0][0] <= log.committed:
            self.changed = True
            while groups and groups[0][0] <= log.committed:
                self._commit(host, groups.popleft()[1])
        process = (host.name, host.incarnation)
        for slot, lead in host.part.replicator.leads.items():
            if self.leaders.setdefault((slot, lead.epoch), process) != process:
                raise Broken("an epoch is led twice", f"slot {slot}, epoch {lead.epoch}")
            if log.slots[slot].serving and (slot, lead.epoch) not in self.reclaiming:
                self._begin_serving(host, slot, lead.epoch, now)

    def _begin_serving(self, host: Host, slot: int, epoch: int, now: float) -> None:
        self.changed = True
        self.read(host)
        self.reclaiming[slot, epoch] = (now, set(self.disk(host.identity).slots[slot].running))

    def _commit(self, host: Host, records: list[bytes]) -> None:
        leads = host.part.replicator.leads
        slots = host.node.log.slots
        inside = False
        for raw in records:
            entry, _ = entries.decode(raw, 0)
            inside = entry.kind == entries.STATE or (inside and entry.kind != entries.STATE_END)
            if inside or entry.kind not in entries.LOGGED:
                continue
            lead = leads.get(entry.slot)
            if lead is None or lead.epoch != entry.epoch or slots[entry.slot].promised != entry.epoch:
                continue
            known = self.committed.setdefault((entry.slot, entry.number), raw)
            if known != raw:
                raise Broken("two entries of one number are committed", f"slot {entry.slot}: {entry.number}")
            if entry.kind == entries.DONE:
                self._commit_end(entry, host)
            elif entry.kind == entries.SUBMITTED and entry.body[0] & entries.REMEMBER:
                key = key_of(raw)
                if self.remembered.get(key, 0) > host.node.context.wall_seconds - REMEMBER_SECONDS:
                    raise Broken("a remembered job was made again", f"slot {entry.slot}: {key!r}")
                self.keys[handle_of(entry.kind, entry.body)] = key

    def _commit_end(self, entry: entries.Entry, host: Host) -> None:
        handle = entries.done_handle(entry.body)
        self.over.setdefault(handle, len(self.over))
        ended = entries.done_seconds(entry.body)
        if ended is not None and handle in self.keys:
            self.remembered[self.keys[handle]] = ended

    # ---- what nodes say to each other

    def promise(self, host: Host, frame: Frame) -> None:
        """A frame leaves: what it promises has to survive."""
        promised = self.disk(host.identity).promised
        for slot, epoch, verdict, _ in frame.answers:
            if verdict != REJECTED:
                promised[slot] = max(promised.get(slot, 0), epoch)
        for offer in frame.offers:
            promised[offer.slot] = max(promised.get(offer.slot, 0), offer.epoch)

    def offered(self, host: Host, source: str, frame: Frame, promised: dict[int, int]) -> None:
        """Offers have been taken: `promised` is what the host had promised before."""
        peer = host.part.replicator.peers.get(source)
        for slot, epoch in {offer.slot: offer.epoch for offer in frame.offers}.items():
            if peer is not None and slot in peer.slots_led and epoch < promised[slot]:
                text = f"{host.name}, slot {slot}: {epoch} after {promised[slot]}"
                raise Broken("an epoch that is over was accepted", text)

    # ---- what clients and workers are told

    def acknowledge(self, handle: bytes, function: bytes, unique: bytes, over_before: bool) -> None:
        """A background submit was answered. `over_before`: the job had ended before it was asked for."""
        known = self.acknowledged.get(handle, (function, unique))
        if unique and known != (function, unique):
            raise Broken("a handle of another job", f"{handle!r} is {known}, not {(function, unique)}")
        if over_before:
            raise Broken("a submit joined a job that was over", f"{handle!r}")
        self.acknowledged[handle] = (function, unique)
        self.changed = True

    def assigned(self, host: Host, handle: bytes, view: View, now: float, *, kept: bool) -> None:
        """A worker was given a job. `kept`: the worker that had it before still has it."""
        slot = slot_of_handle(handle)
        assert slot is not None
        assert view.map is not None
        row = view.map.slots[slot]
        if b".t" in handle or (row.primary, row.incarnation) != (host.name, host.incarnation):
            return
        by_identity = {other.identity: other for other in host.fleet.hosts.values()}
        for identity in row.in_sync:
            if identity in by_identity:
                self.read(by_identity[identity])
                if handle not in self.disk(identity).slots[slot].ever:
                    raise Broken(
                        "a job was given out before it was safe",
                        f"{handle!r} is not on the disk of {by_identity[identity].name}",
                    )
        since, jobs = self.reclaiming.get((slot, row.epoch), (0.0, ()))
        if kept and handle in jobs and now < since + self.reclaim_seconds:
            raise Broken("a running job was given out at once", f"{handle!r}, {now - since:.1f} s after")

    # ---- the rules

    def check(self, hosts: dict[str, Host], view: View) -> None:
        """Every acknowledged job is where it has to be."""
        self.changed = False
        assert view.map is not None
        rows = view.map.slots
        by_identity = {host.identity: host for host in hosts.values()}
        for host in hosts.values():
            self.read(host)
        for handle in self.acknowledged:
            if handle in self.ran:
                continue
            slot = slot_of_handle(handle)
            assert slot is not None
            row = rows[slot]
            for identity in row.in_sync:  # of which one disk may be lost
                if identity in by_identity and handle not in self.disks[identity].slots[slot].jobs():
                    raise Broken(
                        "an acknowledged job is missing on a disk",
                        f"{handle!r}, {by_identity[identity].name}",
                    )
            leader = hosts[row.primary]
            if leader.alive and leader.incarnation == row.incarnation:
                lead = leader.part.replicator.leads.get(slot)
                if lead is not None and lead.epoch == row.epoch and leader.node.log.slots[slot].serving:
                    job = leader.node.ledger.tables[slot].jobs.get(handle)
                    if job is None or job.state == FINISHED:
                        raise Broken("an acknowledged job is unknown", f"{handle!r}, {leader.name}")
        for (slot, number), raw in self.committed.items():
            for identity in rows[slot].in_sync:
                if identity in by_identity:
                    shadow = self.disks[identity].slots[slot]
                    if number > shadow.base_number and shadow.entry(number) != raw:
                        raise Broken(
                            "a committed entry is not on a disk",
                            f"{number} of slot {slot}, {by_identity[identity].name}",
                        )

    def read(self, host: Host) -> None:
        """What its disk has since the last time."""
        disk = self.disk(host.identity)
        for chunk in host.disk[disk.read_to :]:
            offset = 0
            while offset < len(chunk):
                entry, end = entries.decode(chunk, offset)
                if entry.slot < self.slots:
                    disk.slots[entry.slot].apply(chunk[offset:end])
                offset = end
        disk.read_to = len(host.disk)
