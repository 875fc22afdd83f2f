"""What was promised, kept the dumb way beside the fleet; and the rules that hold after every step.

Disks are read entry by entry, and groups when they are written and when they are committed, so the account
knows what is where without asking the code that is under test.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from chaos_tests.sim.worlds import Broken
from cluster.jobs import FINISHED
from cluster.node.context import slot_of_handle
from cluster.placement import View
from cluster.placement.view import SlotRow
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
        if kind == entries.STATE:
            self.coming = (number, [])
        elif self.coming is not None:
            if kind == entries.STATE_END:
                self.base_number, found = self.coming
                self.base, self.coming, self.log = alive(set(), found), None, []
                self._jobs = None
                self.running = set()
                self.ever |= self.base
                for inside in found:
                    kind, _, _, _, body = entries.decode(inside, 0)[0]
                    self._hint(kind, body)
            else:
                self.coming[1].append(raw)
        elif kind == entries.CUT:
            keep = number - self.base_number
            if keep < 0:
                raise Broken("a cut below a whole state", f"at {number}, the state is of {self.base_number}")
            del self.log[keep:]
            self._jobs = None
        elif kind in entries.LOGGED:
            if number != self.base_number + len(self.log) + 1:
                raise Broken("a gap on a disk", f"entry {number} behind {self.base_number + len(self.log)}")
            self.log.append(raw)
            self._hint(kind, body)
            if self._jobs is not None:
                note(self._jobs, kind, body)
            if kind == entries.SUBMITTED:
                self.ever.add(handle_of(kind, body))

    def _hint(self, kind: int, body: bytes) -> None:
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
        note(jobs, kind, body)
    return jobs


def note(jobs: set[bytes], kind: int, body: bytes) -> None:
    """What an entry does to the living jobs."""
    if kind in (entries.SUBMITTED, entries.JOB):
        jobs.add(handle_of(kind, body))
    elif kind == entries.DONE:
        jobs.discard(handle_of(kind, body))


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

    def __init__(self, slots: int, reclaim_seconds: float, *, exact: bool = False) -> None:
        """`exact`: every turn is watched, and so is every grab and every result. Else a job is let out of
        sight as soon as its worker has told how it ended."""
        self.exact = exact
        self.slots = slots
        self.reclaim_seconds = reclaim_seconds
        self.acknowledged: dict[bytes, tuple[bytes, bytes]] = {}  # handle -> function, unique
        self.owed: dict[bytes, None] = {}  # acknowledged, and not over
        self.ran: set[bytes] = set()  # a worker has said how it ended
        self.cancelling: set[bytes] = set()  # somebody wants it to be cancelled
        self.ends: dict[bytes, int] = {}  # whose end was written, in this epoch, and is not committed yet
        self.over: dict[bytes, int] = {}  # whose end is committed, in this order
        self.kinds: dict[bytes, tuple[bytes, int]] = {}  # of committed submits: function, priority
        # By slot and epoch, then by kind: what was committed and never given out, in this order.
        self.lines: dict[tuple[int, int], dict[tuple[bytes, int], dict[bytes, None]]] = {}
        self.holders: dict[bytes, tuple[int, object]] = {}  # epoch, to whom it was given last; -1: who knows
        self.brought: dict[bytes, int] = {}  # epoch in which its result came to who served it
        self.unheard: Counter[str] = Counter()  # of a node: grabs that are not answered yet
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
        self.unheard.pop(host.name, None)
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
                for raw in records if self.exact else ():
                    if raw[9] == entries.DONE:
                        self._end(raw)
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
                self._commit_end(entry)
            elif entry.kind == entries.SUBMITTED:
                self._commit_submit(entry, raw, host)

    def _commit_submit(self, entry: entries.Entry, raw: bytes, host: Host) -> None:
        handle, function, _ = entry.body[1:].split(b"\0", 2)
        if entry.body[0] & entries.REMEMBER:
            key = key_of(raw)
            if self.remembered.get(key, 0) > host.node.context.wall_seconds - REMEMBER_SECONDS:
                raise Broken("a remembered job was made again", f"slot {entry.slot}: {key!r}")
            self.keys[handle] = key
        kind = self.kinds[handle] = (function, entry.body[0] & ~entries.REMEMBER)
        if self.exact and handle not in self.ends and handle not in self.over:
            self.lines.setdefault((entry.slot, entry.epoch), {}).setdefault(kind, {})[handle] = None

    def _end(self, raw: bytes) -> None:
        """A primary has written that a job is over; or somebody else has what it wrote."""
        entry, _ = entries.decode(raw, 0)
        handle = entries.done_handle(entry.body)
        if handle in self.over:
            return
        if handle in self.acknowledged and handle not in self.ran and handle not in self.cancelling:
            raise Broken("a job was ended without a result", f"{handle!r}")
        self.ends[handle] = entry.epoch
        self._out_of_line(handle)

    def _is_over(self, handle: bytes) -> None:
        self.over.setdefault(handle, len(self.over))
        self.owed.pop(handle, None)
        self.ends.pop(handle, None)

    def _commit_end(self, entry: entries.Entry) -> None:
        handle = entries.done_handle(entry.body)
        self._is_over(handle)
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
        if handle not in self.over:
            self.owed[handle] = None
        self.changed = True

    def cancelled(self, hosts: Iterable[Host], handle: bytes, view: View) -> None:
        """Somebody was told that a job is cancelled: nobody may find it again."""
        slot = slot_of_handle(handle)
        assert slot is not None
        assert view.map is not None
        for host in hosts:
            if host.identity in view.map.slots[slot].in_sync:
                self.read(host)
                if handle in self.disks[host.identity].slots[slot].jobs():
                    raise Broken("a cancel was confirmed too early", f"{handle!r} is on {host.name}'s disk")
        self._is_over(handle)

    # ---- what workers get and bring

    def served(self, host: Host, slot: int) -> int:
        """The epoch in which a node serves a slot; 0 when it does not."""
        lead = host.part.replicator.leads.get(slot) if host.alive else None
        return lead.epoch if lead is not None and host.node.log.slots[slot].serving else 0

    def reached(self, host: Host, handle: bytes, who: object) -> None:
        """A result comes to a node, from a connection or from another node (its name). If that node has to
        take it, the job is not run again (rule 12)."""
        slot = slot_of_handle(handle)
        epoch = self.served(host, slot) if slot is not None and b".t" not in handle else 0
        if not epoch or self.unheard[host.name]:
            return
        since, holder = self.holders.get(handle, (0, None))
        if holder == who if since == epoch else self.waits_for(handle, epoch):
            self.brought[handle] = epoch

    def waits_for(self, handle: bytes, epoch: int) -> bool:
        """Whether a job was running when this epoch began, and nobody has had it since then."""
        slot = slot_of_handle(handle)
        assert slot is not None
        _, jobs = self.reclaiming.get((slot, epoch), (0.0, ()))
        return handle in jobs and 0 <= self.holders.get(handle, (0, None))[0] < epoch

    def claimed(self, host: Host, handle: bytes, who: object = None) -> None:
        """Somebody claims a job: another node (its name), or a worker, which may be told so much later."""
        slot = slot_of_handle(handle)
        epoch = self.served(host, slot) if slot is not None else 0
        again = self.holders.get(handle) == (epoch, who)
        if who is not None and epoch and (again or self.waits_for(handle, epoch)):
            self.holders[handle] = (epoch, who)
        else:
            self.holders[handle] = (-1, None)

    def lose_sight(self, host: Host) -> None:
        """Somebody went who may have been given a job and not heard of it: which, nobody can tell."""
        for slot, lead in host.part.replicator.leads.items():
            self.lines.pop((slot, lead.epoch), None)

    def _out_of_line(self, handle: bytes) -> None:
        kind = self.kinds.get(handle)
        if kind is not None:
            for place, lines in self.lines.items():
                if kind in lines and place[0] == slot_of_handle(handle):
                    lines[kind].pop(handle, None)

    def grabbed(self, host: Host, handle: bytes, who: object, view: View) -> None:
        """A worker was given a job, this very moment."""
        slot = slot_of_handle(handle)
        assert slot is not None
        assert view.map is not None
        lead = host.part.replicator.leads.get(slot)
        if lead is None or b".t" in handle:
            return
        row = view.map.slots[slot]
        if handle in self.over and (row.primary, row.epoch) == (host.name, lead.epoch):
            raise Broken("a job was given out after its end", f"{handle!r}, {host.name}")
        if self.brought.get(handle) == lead.epoch:
            raise Broken("a job was given out although its result had come", f"{handle!r}, {host.name}")
        kind = self.kinds.get(handle)
        if kind is not None:
            self._in_turn(host, handle, kind, slot, lead.epoch)
        self._out_of_line(handle)
        self.holders[handle] = (lead.epoch, who)

    def heard_late(self, handle: bytes) -> None:
        """A worker was given a job some time ago."""
        self._out_of_line(handle)
        self.holders[handle] = (-1, None)

    def _in_turn(self, host: Host, handle: bytes, kind: tuple[bytes, int], slot: int, epoch: int) -> None:
        """In one slot the first comes first; and no job waits here that is more urgent."""
        line = self.lines.get((slot, epoch), {}).get(kind, {})
        if handle in line and handle != (first := next(iter(line))):
            raise Broken("a later job was given out first", f"{handle!r} before {first!r}, {host.name}")
        for other, lead in host.part.replicator.leads.items():
            if not self.served(host, other):
                continue
            for (_, priority), urgent in self.lines.get((other, lead.epoch), {}).items():
                if priority < kind[1] and urgent:
                    text = f"{handle!r} of {kind[1]} before {next(iter(urgent))!r} of {priority}, {host.name}"
                    raise Broken("a less urgent job was given out first", text)

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

    def leave_out(self) -> None:
        """Of two histories an operator has left one out: its epochs and numbers are those of the other, too.
        What was acknowledged is owed all the same."""
        self.committed.clear()
        self.leaders.clear()
        self.changed = True

    # ---- the rules

    def check(self, hosts: dict[str, Host], view: View) -> None:
        """Every acknowledged job is where it has to be."""
        self.changed = False
        assert view.map is not None
        rows = view.map.slots
        by_identity = {host.identity: host for host in hosts.values()}
        for host in hosts.values():
            self.read(host)
        for handle, epoch in list(self.ends.items()):
            self._look_at_end(handle, epoch, hosts, by_identity, view)
        for handle in self.owed:
            if handle in self.ends or (not self.exact and handle in self.ran):
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
            if self._lives(hosts, row, slot, handle) is False:
                raise Broken("an acknowledged job is unknown", f"{handle!r}, {row.primary}")
        for (slot, number), raw in self.committed.items():
            for identity in rows[slot].in_sync:
                if identity in by_identity:
                    shadow = self.disks[identity].slots[slot]
                    if number > shadow.base_number and shadow.entry(number) != raw:
                        raise Broken(
                            "a committed entry is not on a disk",
                            f"{number} of slot {slot}, {by_identity[identity].name}",
                        )

    def _lives(self, hosts: dict[str, Host], row: SlotRow, slot: int, handle: bytes) -> bool | None:
        """Whether the primary has this job; None when nobody serves the slot."""
        leader = hosts[row.primary]
        if leader.incarnation != row.incarnation or self.served(leader, slot) != row.epoch:
            return None
        job = leader.node.ledger.tables[slot].jobs.get(handle)
        return job is not None and job.state != FINISHED

    def _look_at_end(
        self, handle: bytes, epoch: int, hosts: dict[str, Host], by_identity: dict[str, Host], view: View
    ) -> None:
        """An end that nobody has seen committed: it is as good as that, or it is lost, or who knows."""
        slot = slot_of_handle(handle)
        assert slot is not None
        assert view.map is not None
        row = view.map.slots[slot]
        if row.epoch <= epoch:
            return  # whoever is being added may count already, and not have it
        lives = self._lives(hosts, row, slot, handle)
        disks = [self.disks[identity].slots[slot] for identity in row.in_sync if identity in by_identity]
        if lives:
            del self.ends[handle]
        elif lives is False and not any(handle in disk.jobs() for disk in disks):
            self._is_over(handle)

    def left(self, hosts: Iterable[Host], view: View) -> list[str]:
        """Jobs that live, in memory or on a disk that counts."""
        assert view.map is not None
        found = []
        for host in hosts:
            self.read(host)
            for slot, table in enumerate(host.node.ledger.tables):
                found += [f"job {handle!r} at {host.name}" for handle in table.jobs]
                if host.identity in view.map.slots[slot].in_sync:
                    jobs = self.disk(host.identity).slots[slot].jobs() - table.jobs.keys()
                    found += [f"job {handle!r} on the disk of {host.name}" for handle in sorted(jobs)]
        return found

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
