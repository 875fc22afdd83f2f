"""Replicators that talk to each other, without nodes: who leads is what a test says. Disks are lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cluster.replication import Log, entries
from cluster.replication.frames import Frame, Hello
from cluster.replication.log import SLOT_COUNT
from cluster.replication.replica import Replica
from cluster.replication.replicator import READY, REJECTED_BY, Replicator
from cluster.replication.restore import ReplicaRestorer


def submitted(slot: int, epoch: int, number: int, handle: bytes, unique: bytes = b"") -> bytes:
    """A SUBMITTED entry."""
    return entries.encode_submitted(slot, epoch, number, 1, handle, b"f\0%b\0payload" % (unique or handle))


def handle_of(raw: bytes) -> bytes:
    """The job that an entry is about."""
    body = raw[entries.HEADER_BYTES :]
    if raw[9] == entries.DONE:
        return entries.done_handle(body)
    if raw[9] == entries.SUBMITTED:
        return body[1:].partition(b"\0")[0]
    return body


class Party:
    """One node's replicator with its disk, and an owner who keeps a led slot's entries as they are."""

    def __init__(self, name: str, disk: Sequence[bytes] = ()) -> None:
        self.name = name
        self.identity = name * 32
        self.disk = list(disk)
        self.log = Log()
        self.log.replicated = True
        self.replicator = Replicator(self.log, self.identity)
        self.replicator.state_of = self._state_of
        self.replicator.deposed = self.step_down
        self.served: dict[int, Replica] = {}  # of slots that are led and ready
        self.unwritten: deque[tuple[int, list[bytes]]] = deque()
        self.rejected: list[int] = []
        self.count = 0
        restorer = ReplicaRestorer(self.replicator)
        for raw in self.disk:
            entry, _ = entries.decode_raw(raw, 0)
            restorer.apply(entry)

    # ---- the owner

    def _state_of(self, slot: int) -> list[bytes]:
        found = self.log.slots[slot]
        copy = Replica.from_state(0, [])
        copy.base_number = found.number - len(self.served[slot].tail)
        copy.base, copy.hints = self.served[slot].base, self.served[slot].hints
        copy.remembered, copy.tail = self.served[slot].remembered, list(self.served[slot].tail)
        copy.fold(0)
        return list(copy.state(slot, found.promised, found.history))

    def lead(self, slot: int, epoch: int, in_sync: str, learners: str = "", pending: str = "") -> None:
        """Members are the first letters of names."""
        self.replicator.lead(slot, epoch)
        self.members(slot, in_sync, learners, pending)

    def members(self, slot: int, in_sync: str, learners: str = "", pending: str = "") -> None:
        self.replicator.set_members(
            slot, *([name * 32 for name in names] for names in (in_sync, pending, learners))
        )

    def step_down(self, slot: int) -> None:
        served = self.served.pop(slot, None)
        if served is not None:
            served.fold(0)
            served.base_number = self.log.slots[slot].number
        self.replicator.step_down(slot, served)

    def submit(self, slot: int, handle: bytes | None = None) -> bytes:
        """A job in a slot that is served."""
        self.count += 1
        found = self.log.slots[slot]
        handle = handle or b"%b%d.%d" % (self.name.encode(), found.epoch, self.count)
        found.number += 1
        raw = submitted(slot, found.epoch, found.number, handle)
        self.log.group.records.append(raw)
        self.served[slot].append(raw)
        return handle

    def promise(self, slot: int) -> int:
        """An answer without an entry of its own; the group that it waits for."""
        self.log.group.promises.add(slot)
        self.log.group.needed = True
        return self.log.group.number

    # ---- turns

    def turn(self) -> None:
        """The end of a turn: events, the group, states."""
        replicator = self.replicator
        self._advance()
        found, replicator.events = replicator.events, []
        for event in found:
            if event.kind == READY and event.slot in replicator.leads:
                replica = replicator.replicas[event.slot]
                assert replica is not None
                self.served[event.slot] = replica
                replicator.took_over(event.slot)
            elif event.kind == REJECTED_BY and event.slot in replicator.leads:
                self.rejected.append(event.slot)
                self.step_down(event.slot)
        group = self.log.cut()
        if group is not None:
            self.unwritten.append((group.number, group.for_disk()))
            replicator.sent(group)
        replicator.make_states()

    def _advance(self) -> None:
        self.log.committed = max(self.log.committed, self.replicator.advance())

    def write(self) -> bool:
        """The oldest group is on disk."""
        if not self.unwritten:
            return False
        number, records = self.unwritten.popleft()
        self.disk += records
        self.replicator.on_disk(number)
        self.turn()
        return True

    def write_all(self) -> None:
        while self.write():
            pass

    def restarted(self) -> Party:
        """The same directory, a new process."""
        data = b"".join(self.disk)
        records: list[bytes] = []
        offset = 0
        while offset < len(data):
            _, end = entries.decode(data, offset)
            records.append(data[offset:end])
            offset = end
        return Party(self.name, records)

    # ---- streams

    def hello(self) -> Hello:
        return Hello("f", self.name, self.identity, 1, 1, SLOT_COUNT, "1")

    def frame_for(self, other: Party) -> Frame:
        frame = self.replicator.take_frame(self.replicator.peers[other.name])
        self.turn()
        return frame

    def receive(self, other: Party, frame: Frame) -> None:
        self.replicator.receive(self.replicator.peers[other.name], frame)
        self.turn()

    def living(self, slot: int) -> set[bytes]:
        """Handles of the jobs that this party holds in a slot, folded or not."""
        replica = self.served.get(slot) or self.replicator.replicas[slot]
        assert replica is not None
        found = set(replica.base)
        for raw in replica.tail:
            if raw[9] == entries.SUBMITTED:
                found.add(handle_of(raw))
            elif raw[9] == entries.DONE:
                found.discard(handle_of(raw))
        return found


def connect(*parties: Party) -> None:
    """Streams between all of them that have none."""
    for index, one in enumerate(parties):
        for other in parties[index + 1 :]:
            if other.name not in one.replicator.peers or one.name not in other.replicator.peers:
                for first, second in ((one, other), (other, one)):
                    first.replicator.peer_up(second.hello(), object())
                    first.turn()


def cut_link(one: Party, other: Party) -> None:
    for first, second in ((one, other), (other, one)):
        first.replicator.peer_down(second.name)
        first.turn()


def settle(*parties: Party, rounds: int = 200) -> None:
    """Everything that is on its way arrives, between these."""
    for _ in range(rounds):
        did = False
        for party in parties:
            for other in parties:
                if other is party or other.name not in party.replicator.peers:
                    continue
                if party.replicator.has_frame(party.replicator.peers[other.name]):
                    frame = party.frame_for(other)
                    if frame:
                        other.receive(party, frame)
                        did = True
            party.turn()
            did |= party.write()
        if not did:
            return
    raise AssertionError("it does not come to rest")
