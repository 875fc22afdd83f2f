"""One node's part in every slot: primary, backup or learner; and when a group is committed. Pure.

What flows, for a slot that this node leads (numbers in brackets are the design's rules):

    lead() ──▶ EPOCH on disk [2] ──▶ offer to each member and learner [7]
                                        │ ACCEPTED up to n            │ NEEDS_STATE, or n too old
                                        ▼                             ▼
                              entries n+1 ... and from now on    whole state, then entries
                                        └──────────────┬──────────────┘
                              acknowledged group by group; attached
                                                       ▼
             every in-sync member has all that was inherited: READY [8], jobs are dispatched [11]

Invariants:
  - a group is committed when it is on this disk and every identity that counts for any of its slots (in sync,
    or proposed to be: [3]) is attached to the slot on its present stream and has acknowledged the group, or a
    later one, after being attached; groups are committed in order;
  - a frame's rejections are handled before its acknowledgement: what was not taken is never counted;
  - an entry is accepted only from the peer whose offer for that slot was the last one accepted, and only
    while no higher epoch has been promised;
  - a promise (EPOCH), a cut and a state are on disk before the answer that tells of them leaves.

The owner (node/fleet.py) says who leads what, and is told through `events`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from struct import error as StructError
from typing import Any, Final, NamedTuple

from cluster.replication import entries
from cluster.replication.entries import DamagedEntry
from cluster.replication.frames import ACCEPTED, NEEDS_STATE, REJECTED, Answer, Frame, Hello, Offer, Piece
from cluster.replication.history import History, common_number, cut, epoch_of, extend
from cluster.replication.log import SLOT_COUNT, Group, Log
from cluster.replication.replica import FOLD_AT, Replica

# Entries of committed groups that are kept for peers that come back; older ones need a whole state.
RECENT_BYTES_MAX: Final = 4 * 1024 * 1024
PIECE_BYTES_MAX: Final = 1024 * 1024
# A turn does not spend longer than this on catching others up.
STATE_BYTES_PER_TURN: Final = 256 * 1024
PIECES_UNSENT_MAX: Final = 16  # states are not made faster than they leave
FRAME_ENTRIES_BYTES_MAX: Final = 8 * 1024 * 1024
UNSENT_BYTES_MAX: Final = 256 * 1024 * 1024  # for one peer; beyond it its stream is begun anew
INCOMING_BYTES_MAX: Final = 1024 * 1024 * 1024  # of one slot's state while it arrives

READY: Final = "ready"  # slot: every in-sync member has what was inherited
REJECTED_BY: Final = "rejected"  # slot: somebody promised a higher epoch
_unpack = entries.unpack_header


class ProtocolBroken(Exception):
    """A peer said what cannot be: its stream is to be closed. The text says what."""


class Event(NamedTuple):
    kind: str
    slot: int


class Lead:
    """A slot that this node leads."""

    __slots__ = (
        "enough",
        "epoch",
        "in_sync",
        "inherited",
        "learners",
        "pending",
        "persisted_by",
        "ready",
        "slot",
    )

    def __init__(self, slot: int, epoch: int, persisted_by: int, inherited: Replica) -> None:
        self.slot = slot
        self.epoch = epoch
        self.persisted_by = persisted_by  # the group with EPOCH; nothing is offered before it is on disk
        self.in_sync: tuple[str, ...] = ()  # other identities
        self.pending: tuple[str, ...] = ()  # proposed to be in sync: they count already (rule 3)
        self.learners: tuple[str, ...] = ()
        self.ready = False
        self.enough = True  # the in-sync set has min_in_sync members; false only after a promotion
        self.inherited: Replica | None = inherited  # until all members have it

    @property
    def counting(self) -> Iterable[str]:
        return (*self.in_sync, *self.pending) if self.pending else self.in_sync


class Peer:
    """Another node, as the present stream shows it."""

    __slots__ = (
        "acked",
        "attached",
        "attached_last",
        "checked",
        "complete",
        "connection",
        "due",
        "entries",
        "entries_bytes",
        "frame",
        "group",
        "hello",
        "identity",
        "name",
        "offered",
        "own_groups",
        "pieces",
        "slots_led",
        "stale",
        "to_transfer",
        "transferring",
    )

    def __init__(self, hello: Hello, connection: Any) -> None:
        self.hello = hello
        self.name = hello.node
        self.identity = hello.identity
        self.connection = connection  # the node's, for what it forwards; opaque here
        # As primary.
        self.offered: set[int] = set()
        self.attached: dict[int, int] = {}  # slot -> the group from which on acknowledgements count
        self.attached_last = 0  # the highest of those
        self.complete = False  # attached to all slots for which it counts, as of ...
        self.checked = -1  # ... this version of the replicator's
        self.transferring: set[int] = set()  # attached once the last piece has left
        self.to_transfer: deque[int] = deque()
        self.pieces: deque[Piece] = deque()
        self.entries: list[bytes] = []  # unsent
        self.entries_bytes = 0
        self.stale: set[int] = set()  # what is unsent of these slots is of a time that is over
        self.group = 0
        self.acked = 0
        # As backup.
        self.slots_led: set[int] = set()  # accepted from it
        self.own_groups: deque[tuple[int, int]] = deque()  # own group with its entries, its group
        self.due = 0  # its group that may be acknowledged
        self.frame = Frame()  # what else is to be sent


class Replicator:
    """See the module's docstring."""

    def __init__(self, log: Log, identity: str) -> None:
        self.log = log
        self.identity = identity
        self.replicas: list[Replica | None] = [Replica() for _ in range(SLOT_COUNT)]
        self.leads: dict[int, Lead] = {}
        self.peers: dict[str, Peer] = {}
        self.events: list[Event] = []
        self.written = 0  # the last own group that is on disk
        self.state_of: Callable[[int], list[bytes]] = (
            lambda slot: []
        )  # of a led slot, with STATE and STATE_END
        self._by_identity: dict[str, Peer] = {}
        self._led_by: list[Peer | None] = [None] * SLOT_COUNT
        self._incoming: dict[int, tuple[Peer, int, list[bytes], list[bytes]]] = {}
        self._uncommitted: deque[Group] = deque()
        self._recent: deque[tuple[int, list[bytes], int]] = deque()  # group, its entries, their bytes
        self._recent_bytes = 0
        self._version = 0  # of who follows what
        self._required: dict[str, set[int]] | None = None  # identity -> slots for which it counts
        self._starting: dict[int, Lead] = {}  # EPOCH is on its way to the disk
        self._unready: dict[int, Lead] = {}
        self._promised: deque[tuple[int, Peer, Answer]] = deque()  # own group, answer that waits for it

    # ---- what is led

    def lead(self, slot_index: int, epoch: int) -> None:
        """Begin to lead a slot: offers go out once the promise is on disk (rule 2)."""
        slot = self.log.slots[slot_index]
        assert epoch >= slot.promised
        self._follow_no_more(slot_index, epoch)
        slot.promised = slot.epoch = epoch
        replica = self.replicas[slot_index] or Replica(slot.number)
        group = self.log.group
        group.local.append(entries.encode(entries.EPOCH, slot_index, epoch, 0, b""))
        lead = Lead(slot_index, epoch, group.number, replica)
        extend(slot.history, epoch, slot.number + 1)
        self.leads[slot_index] = self._starting[slot_index] = self._unready[slot_index] = lead
        self._changed()

    def _changed(self) -> None:
        self._required = None
        self._version += 1

    def set_members(
        self, slot_index: int, in_sync: Iterable[str], pending: Iterable[str], learners: Iterable[str]
    ) -> None:
        """Who counts for a led slot, and who is catching up; identities, this node's own left out."""
        lead = self.leads[slot_index]
        new = (
            tuple(name for name in in_sync if name != self.identity),
            tuple(name for name in pending if name != self.identity),
            tuple(name for name in learners if name != self.identity),
        )
        if new == (lead.in_sync, lead.pending, lead.learners):
            return
        lead.in_sync, lead.pending, lead.learners = new
        self._changed()
        wanted = {*lead.in_sync, *lead.pending, *lead.learners}
        for peer in self.peers.values():
            if peer.identity in wanted:
                self._offer(lead, peer)
            else:
                self._drop(peer, slot_index)

    def step_down(self, slot_index: int, replica: Replica | None) -> None:
        """Lead a slot no more. `replica` is what the owner made of its jobs; None keeps what was inherited
        (nothing was written since)."""
        lead = self.leads.pop(slot_index)
        self._starting.pop(slot_index, None)
        self._unready.pop(slot_index, None)
        self._changed()
        slot = self.log.slots[slot_index]
        slot.serving = False
        if replica is not None:
            self.replicas[slot_index] = replica
        cut(slot.history, slot.number)
        slot.epoch = epoch_of(slot.history, slot.number)
        lead.inherited = None
        for peer in self.peers.values():
            self._drop(peer, slot_index)

    def took_over(self, slot_index: int) -> None:
        """The owner has made jobs of the inherited entries: they are kept for peers only."""
        self.replicas[slot_index] = None

    def _drop(self, peer: Peer, slot_index: int) -> None:
        if peer.attached.pop(slot_index, None) is not None:
            self._version += 1
            if peer.entries:
                peer.stale.add(slot_index)
        peer.offered.discard(slot_index)
        peer.transferring.discard(slot_index)
        if peer.pieces:
            peer.pieces = deque(piece for piece in peer.pieces if piece.slot != slot_index)
        if slot_index in peer.to_transfer:
            peer.to_transfer.remove(slot_index)

    def _offer(self, lead: Lead, peer: Peer) -> None:
        slot_index = lead.slot
        if (
            lead.persisted_by > self.written
            or slot_index in peer.offered
            or slot_index in peer.attached
            or slot_index in peer.transferring
            or slot_index in peer.to_transfer
        ):
            return
        slot = self.log.slots[slot_index]
        peer.offered.add(slot_index)
        peer.frame.offers.append(Offer(slot_index, lead.epoch, tuple(slot.history), slot.number))

    def holds(self, peer: Peer | None, slot_index: int, group_number: int) -> bool:
        """Whether a peer has acknowledged all of a slot up to a group, in this epoch and on its disk."""
        if peer is None:
            return False
        since = peer.attached.get(slot_index)
        return since is not None and peer.acked >= since and peer.acked >= group_number

    def caught_up(self) -> set[tuple[int, str]]:
        """Learners that hold what their slot's log held when the epoch began and all committed since
        (rule 6): slot, identity."""
        return {
            (slot_index, identity)
            for slot_index, lead in self.leads.items()
            if lead.learners
            for identity in lead.learners
            if self.holds(self._by_identity.get(identity), slot_index, self.log.committed)
        }

    def required_peers(self) -> dict[str, set[int]]:
        """Identity -> the led slots for which it counts."""
        if self._required is None:
            self._required = {}
            for slot_index, lead in self.leads.items():
                for identity in lead.counting:
                    self._required.setdefault(identity, set()).add(slot_index)
        return self._required

    def peer_of(self, identity: str) -> Peer | None:
        return self._by_identity.get(identity)

    # ---- streams

    def peer_up(self, hello: Hello, connection: Any) -> Peer:
        """A new stream; what was known of the old one is void."""
        if hello.node in self.peers:
            self.peer_down(hello.node)
        peer = Peer(hello, connection)
        self.peers[hello.node] = peer
        self._by_identity[hello.identity] = peer
        for lead in self.leads.values():
            if (
                hello.identity in lead.in_sync
                or hello.identity in lead.pending
                or hello.identity in lead.learners
            ):
                self._offer(lead, peer)
        return peer

    def peer_down(self, name: str) -> Peer | None:
        """The stream is gone."""
        peer = self.peers.pop(name, None)
        if peer is None:
            return None
        if self._by_identity.get(peer.identity) is peer:
            del self._by_identity[peer.identity]
        for slot_index in list(peer.slots_led):
            self._detach_backup(slot_index)
        if self._promised:
            self._promised = deque(item for item in self._promised if item[1] is not peer)
        return peer

    def _detach_backup(self, slot_index: int) -> None:
        led_by = self._led_by[slot_index]
        if led_by is not None:
            led_by.slots_led.discard(slot_index)
            self._led_by[slot_index] = None
        self._incoming.pop(slot_index, None)

    def _follow_no_more(self, slot_index: int, epoch: int, successor: Peer | None = None) -> None:
        """A higher epoch is promised in the open group: the primary of the one before learns it, or it would
        take acknowledgements of groups without entries for this slot's too."""
        led_by = self._led_by[slot_index]
        if led_by is not None and led_by is not successor:
            answer = Answer(slot_index, epoch, REJECTED, 0)
            self._promised.append((self.log.group.number, led_by, answer))
        self._detach_backup(slot_index)

    def has_frame(self, peer: Peer) -> bool:
        return bool(
            peer.entries or peer.group or peer.pieces or peer.due or peer.frame.offers or peer.frame.answers
        )

    def take_frame(self, peer: Peer) -> Frame:
        """What is to be sent to a peer now; the rest waits for the next call."""
        frame, peer.frame = peer.frame, Frame()
        if peer.pieces:
            size = 0
            while peer.pieces and (not size or size + len(peer.pieces[0].data) <= PIECE_BYTES_MAX):
                piece = peer.pieces.popleft()
                size += len(piece.data)
                frame.pieces.append(piece)
                if piece.last and piece.slot in peer.transferring:
                    peer.transferring.discard(piece.slot)
                    self._attach(peer, piece.slot)
        if peer.stale:
            self._forget_stale(peer)
        if peer.entries:
            if peer.entries_bytes <= FRAME_ENTRIES_BYTES_MAX:
                frame.entries = b"".join(peer.entries)
                peer.entries.clear()
                peer.entries_bytes = 0
            else:
                count = size = 0
                for data in peer.entries:
                    if count and size + len(data) > FRAME_ENTRIES_BYTES_MAX:
                        break
                    size += len(data)
                    count += 1
                frame.entries = b"".join(peer.entries[:count])
                del peer.entries[:count]
                peer.entries_bytes -= size
        if peer.group and not peer.entries:
            frame.group = peer.group
            peer.group = 0
        if peer.due:
            frame.acknowledged = peer.due
            peer.due = 0
        return frame

    def _forget_stale(self, peer: Peer) -> None:
        """Strike unsent entries of slots that the peer does not follow any more: a later offer, which
        leaves before them, may make it take them for entries of that one's log."""
        stale, peer.stale = peer.stale, set()
        kept: list[bytes] = []
        for data in peer.entries:
            offset = 0
            while offset < len(data):
                _, length, _, _, slot_index, _, _ = _unpack(data, offset)
                end = offset + 8 + length
                if slot_index not in stale:
                    kept.append(data[offset:end])
                offset = end
        peer.entries = kept
        peer.entries_bytes = sum(map(len, kept))

    # ---- own groups

    def sent(self, group: Group) -> None:
        """A group was cut: to every peer that follows any of its slots."""
        self._uncommitted.append(group)
        size = 0
        if group.records:
            whole = b"".join(group.records)
            size = len(whole)
            self._recent.append((group.number, group.records, size))
            self._recent_bytes += size
        led = len(self.leads)
        for peer in self.peers.values():
            attached, transferring = peer.attached, peer.transferring
            if not attached and not transferring:
                continue
            if size:
                if len(attached) == led:
                    # A large group has to be parted again.
                    peer.entries += [whole] if size <= FRAME_ENTRIES_BYTES_MAX else group.records
                    peer.entries_bytes += size
                else:
                    part = [raw for raw in group.records if raw[10] << 8 | raw[11] in attached]
                    peer.entries += part
                    peer.entries_bytes += sum(map(len, part))
                    if transferring:
                        self._send_behind_states(peer, group.records)
            peer.group = group.number

    def _send_behind_states(self, peer: Peer, records: list[bytes]) -> None:
        """Entries must not overtake the state that they follow: they become its last piece."""
        behind: dict[int, list[bytes]] = {}
        for raw in records:
            slot_index = raw[10] << 8 | raw[11]
            if slot_index in peer.transferring:
                behind.setdefault(slot_index, []).append(raw)
        if not behind:
            return
        for position, piece in enumerate(peer.pieces):
            if piece.last and piece.slot in behind:
                peer.pieces[position] = piece._replace(last=False)
        for slot_index, raws in behind.items():
            epoch = self.leads[slot_index].epoch
            data = b"".join(raws)
            for offset in range(0, len(data), PIECE_BYTES_MAX):
                part = data[offset : offset + PIECE_BYTES_MAX]
                peer.pieces.append(Piece(slot_index, epoch, part, offset + PIECE_BYTES_MAX >= len(data)))

    def on_disk(self, group_number: int) -> None:
        """Own groups up to this one are on this disk: promises may be told, others' entries acknowledged."""
        self.written = group_number
        if self._starting:
            for lead in [lead for lead in self._starting.values() if lead.persisted_by <= group_number]:
                del self._starting[lead.slot]
                for identity in (*lead.in_sync, *lead.pending, *lead.learners):
                    peer = self._by_identity.get(identity)
                    if peer is not None:
                        self._offer(lead, peer)
        while self._promised and self._promised[0][0] <= group_number:
            _, peer, answer = self._promised.popleft()
            peer.frame.answers.append(answer)
        for peer in self.peers.values():
            own_groups = peer.own_groups
            while own_groups and own_groups[0][0] <= group_number:
                peer.due = own_groups.popleft()[1]

    def advance(self) -> int:
        """The last group that is committed now. Groups are committed in order."""
        committed = self.log.committed
        uncommitted = self._uncommitted
        if uncommitted:
            needs = self.required_peers()
            while uncommitted and uncommitted[0].number <= self.written:
                group = uncommitted[0]
                for identity, slots in needs.items():
                    if not self._covers(self._by_identity.get(identity), slots, group):
                        break
                else:
                    uncommitted.popleft()
                    committed = group.number
                    continue
                break
            while self._recent and self._recent_bytes > RECENT_BYTES_MAX and self._recent[0][0] <= committed:
                self._recent_bytes -= self._recent.popleft()[2]
        if self._unready:
            self._look_for_ready()
        return committed

    def _covers(self, peer: Peer | None, slots: set[int], group: Group) -> bool:
        """Whether a peer has what this group has of the slots for which it counts."""
        number = group.number
        if peer is not None:
            if peer.checked != self._version:
                peer.checked = self._version
                peer.complete = peer.attached.keys() >= slots
            if peer.complete:
                if peer.acked < number:
                    return False  # it lags; its answer is on the way
                if peer.acked >= peer.attached_last:
                    return True
        touched = {raw[10] << 8 | raw[11] for raw in group.records} | group.promises
        return all(self.holds(peer, slot_index, number) for slot_index in touched & slots)

    def uncommitted_groups(self) -> Iterable[Group]:
        return self._uncommitted

    def lagging(self) -> dict[str, int]:
        """Identity of each peer that counts -> the first group that it lacks, 0 for none."""
        return {
            identity: next(
                (
                    group.number
                    for group in self._uncommitted
                    if not self._covers(self._by_identity.get(identity), slots, group)
                ),
                0,
            )
            for identity, slots in self.required_peers().items()
        }

    def _look_for_ready(self) -> None:
        for slot_index, lead in list(self._unready.items()):
            if lead.persisted_by > self.written or not lead.enough:
                continue
            for identity in lead.counting:
                if not self.holds(self._by_identity.get(identity), slot_index, 0):
                    break
            else:
                lead.ready = True
                del self._unready[slot_index]
                lead.inherited = None
                self.events.append(Event(READY, slot_index))

    # ---- as primary: what peers say

    def _take_answers(self, peer: Peer, answers: list[Answer]) -> None:
        accepted: list[tuple[Lead, int]] = []
        for slot_index, epoch, verdict, number in answers:
            lead = self.leads.get(slot_index)
            if lead is None:
                continue
            if verdict == REJECTED:
                self._drop(peer, slot_index)
                if epoch > lead.epoch:
                    self.events.append(Event(REJECTED_BY, slot_index))
                else:
                    self._offer(lead, peer)
            elif epoch == lead.epoch and slot_index in peer.offered:
                peer.offered.discard(slot_index)
                if verdict == ACCEPTED:
                    accepted.append((lead, number))
                else:
                    peer.to_transfer.append(slot_index)
        if accepted:
            self._send_tails(peer, accepted)

    def _send_tails(self, peer: Peer, accepted: list[tuple[Lead, int]]) -> None:
        """What each slot's log has behind the number that the peer holds; the whole state where that is not
        kept any more."""
        # What is in the open group goes with it.
        in_open: dict[int, int] = {}
        for raw in self.log.group.records:
            index = raw[10] << 8 | raw[11]
            in_open[index] = in_open.get(index, 0) + 1
        wanted: dict[int, list[bytes]] = {}
        lasts: list[int] = []
        for lead, number in accepted:
            last = self.log.slots[lead.slot].number - in_open.get(lead.slot, 0)
            lasts.append(last)
            if number < last:
                wanted[lead.slot] = []
        if wanted:
            for _, records, _ in self._recent:
                for raw in records:
                    found = wanted.get(raw[10] << 8 | raw[11])
                    if found is not None:
                        found.append(raw)
        for (lead, number), last in zip(accepted, lasts, strict=True):
            tail = _tail(lead, self.log.slots[lead.slot].history, number, last, wanted.get(lead.slot, ()))
            if tail is None:
                peer.to_transfer.append(lead.slot)
                continue
            peer.entries += tail
            peer.entries_bytes += sum(map(len, tail))
            # An acknowledgement of the group that is open covers the tail: it is sent before it.
            self._attach(peer, lead.slot)

    def _attach(self, peer: Peer, slot_index: int) -> None:
        open_group = self.log.group
        open_group.needed = True
        peer.attached[slot_index] = peer.attached_last = open_group.number
        self._version += 1

    def make_states(self) -> bool:
        """Turn waiting transfers into pieces, within the turn's bounds; true while there is more."""
        made = 0
        more = False
        for peer in self.peers.values():
            while peer.to_transfer:
                if made >= STATE_BYTES_PER_TURN or len(peer.pieces) >= PIECES_UNSENT_MAX:
                    more = True
                    break
                slot_index = peer.to_transfer.popleft()
                lead = self.leads.get(slot_index)
                if lead is None:
                    continue
                if self.replicas[slot_index] is not None:
                    replica = self.replicas[slot_index]
                    assert replica is not None
                    slot = self.log.slots[slot_index]
                    raws = [*replica.state(slot_index, lead.epoch, slot.history), *replica.tail]
                else:
                    raws = self.state_of(slot_index)
                data = b"".join(raws)
                made += len(data)
                for offset in range(0, len(data), PIECE_BYTES_MAX):
                    last = offset + PIECE_BYTES_MAX >= len(data)
                    peer.pieces.append(
                        Piece(slot_index, lead.epoch, data[offset : offset + PIECE_BYTES_MAX], last)
                    )
                peer.transferring.add(slot_index)
        return more

    # ---- frames

    def receive(self, peer: Peer, frame: Frame) -> None:
        """A peer's frame, but for requests and replies. Raises ProtocolBroken."""
        if frame.answers:
            self._take_answers(peer, frame.answers)
        if frame.acknowledged:
            if frame.acknowledged >= self.log.group.number:
                raise ProtocolBroken("it acknowledges a group that was never sent")
            peer.acked = max(peer.acked, frame.acknowledged)
        for offer in frame.offers:
            self._take_offer(peer, offer)
        for piece in frame.pieces:
            self._take_piece(peer, piece)
        if frame.entries:
            self._take_entries(peer, frame.entries)
        if frame.group:
            self._owe_acknowledgement(peer, frame.group)

    def _owe_acknowledgement(self, peer: Peer, group_number: int) -> None:
        group = self.log.group
        own_groups = peer.own_groups
        if group.local:
            own_groups.append((group.number, group_number))
        elif own_groups:
            # Nothing of it is in the open group: it follows what is on its way to the disk.
            own_groups.append((max(own_groups[-1][0], group.number - 1), group_number))
        elif self.written >= group.number - 1:
            peer.due = group_number
        else:
            own_groups.append((group.number - 1, group_number))

    # ---- as backup

    def _take_offer(self, peer: Peer, offer: Offer) -> None:
        slot_index = offer.slot
        if not 0 <= slot_index < SLOT_COUNT:
            raise ProtocolBroken(f"it offers slot {slot_index}; there are {SLOT_COUNT}")
        slot = self.log.slots[slot_index]
        if offer.epoch < slot.promised or (slot_index in self.leads and offer.epoch <= slot.promised):
            peer.frame.answers.append(Answer(slot_index, slot.promised, REJECTED, 0))
            return
        if slot_index in self.leads:
            # Somebody leads a later epoch; the owner turns the jobs into a replica first.
            self.deposed(slot_index)
        group = self.log.group
        self._follow_no_more(slot_index, offer.epoch, peer)
        if offer.epoch > slot.promised:
            slot.promised = offer.epoch
            group.local.append(entries.encode(entries.EPOCH, slot_index, offer.epoch, 0, b""))
        self._led_by[slot_index] = peer
        peer.slots_led.add(slot_index)
        replica = self.replicas[slot_index]
        assert replica is not None
        common = common_number(slot.history, slot.number, offer.history, offer.number)
        if common is not None and common < slot.number:
            if epoch_of(slot.history, common + 1) >= offer.epoch:
                common = slot.number  # written by this very primary: keep it
            elif replica.cut(common):
                group.local.append(entries.encode(entries.CUT, slot_index, offer.epoch, common, b""))
                slot.number = common
                cut(slot.history, common)
                slot.epoch = epoch_of(slot.history, common)
            else:
                common = None
        if common is None:
            answer = Answer(slot_index, offer.epoch, NEEDS_STATE, 0)
        else:
            answer = Answer(slot_index, offer.epoch, ACCEPTED, common)
        group.needed = True
        # Also without a new promise: entries before `common` may be on their way to the disk.
        self._promised.append((group.number, peer, answer))

    deposed: Callable[[int], None]  # set by the owner: a led slot has a later primary

    def _take_piece(self, peer: Peer, piece: Piece) -> None:
        slot_index = piece.slot
        if not 0 <= slot_index < SLOT_COUNT:
            raise ProtocolBroken(f"it sends the state of slot {slot_index}; there are {SLOT_COUNT}")
        if self._led_by[slot_index] is not peer or self.log.slots[slot_index].promised != piece.epoch:
            return  # another primary came in between; it has been told
        incoming = self._incoming.get(slot_index)
        if incoming is None:
            incoming = self._incoming[slot_index] = (peer, piece.epoch, [], [])
        incoming[2].append(piece.data)
        if sum(map(len, incoming[2])) > INCOMING_BYTES_MAX:
            raise ProtocolBroken(f"the state of slot {slot_index} has no end")
        if piece.last:
            del self._incoming[slot_index]
            self._install(slot_index, piece.epoch, b"".join(incoming[2]))
            for raw in incoming[3]:
                self._append(peer, slot_index, raw)

    def _install(self, slot_index: int, epoch: int, data: bytes) -> None:
        """A whole state replaces the log, but not one that reaches further in the same epoch."""
        slot = self.log.slots[slot_index]
        try:
            raws: list[bytes] = []
            offset = 0
            number = 0
            history: list[tuple[int, int]] = []
            ended = state_bytes = 0
            while offset < len(data):
                entry, end = entries.decode(data, offset)
                if entry.slot != slot_index:
                    raise DamagedEntry("of another slot")
                if entry.kind == entries.STATE:
                    number, history = entry.number, entries.decode_history(entry.body)
                elif entry.kind == entries.STATE_END:
                    ended, state_bytes = len(raws), end
                else:
                    raws.append(data[offset:end])
                offset = end
            replica = Replica.from_state(number, raws[:ended])
        except DamagedEntry as error:
            raise ProtocolBroken(f"the state of slot {slot_index} makes no sense: {error}") from None
        last = number
        for raw in raws[ended:]:
            if (found := _unpack(raw, 0)[6]) > last + 1:
                raise ProtocolBroken(f"the state of slot {slot_index} has a gap")
            last = max(last, found)
        if slot.number > last and slot.history and slot.history[-1][0] >= epoch:
            return
        slot.history[:] = history
        slot.number = number
        slot.epoch = epoch_of(history, number)
        self.replicas[slot_index] = replica
        local = self.log.group.local
        local.append(data[:state_bytes])
        for raw in raws[ended:]:
            _, _, _, _, _, entry_epoch, entry_number = _unpack(raw, 0)
            if entry_number <= slot.number:
                continue  # it was in the state already
            extend(slot.history, entry_epoch, entry_number)
            slot.epoch = entry_epoch
            slot.number = entry_number
            replica.append(raw)
            local.append(raw)

    def _take_entries(self, peer: Peer, data: bytes) -> None:
        """The hot path of a backup: entries of all slots that the peer leads, in order."""
        slots = self.log.slots
        replicas = self.replicas
        led_by = self._led_by
        incoming = self._incoming
        taken: list[bytes] | None = None  # None: all so far, so the bytes can go to the disk as they are
        offset = accepted = 0
        end = len(data)
        fold: set[int] | None = None
        try:
            while offset < end:
                _, length, _, _, slot_index, epoch, number = _unpack(data, offset)
                start = offset
                offset = start + 8 + length
                if offset > end or slot_index >= SLOT_COUNT:
                    raise ProtocolBroken("its entries are cut short or make no sense")
                slot = slots[slot_index]
                if led_by[slot_index] is peer and slot_index not in incoming and number == slot.number + 1:
                    if epoch != slot.epoch:
                        if epoch < slot.epoch or epoch > slot.promised:
                            raise ProtocolBroken(f"slot {slot_index}: an entry of epoch {epoch}")
                        extend(slot.history, epoch, number)
                        slot.epoch = epoch
                    slot.number = number
                    raw = data[start:offset]
                    replica = replicas[slot_index]
                    assert replica is not None
                    tail = replica.tail
                    tail.append(raw)
                    accepted = offset
                    if taken is not None:
                        taken.append(raw)
                    if len(tail) >= FOLD_AT:
                        fold = fold or set()
                        fold.add(slot_index)
                    continue
                if taken is None:
                    taken = [data[:start]] if start else []
                self._take_odd(peer, slot_index, number, data[start:offset], taken)
        except StructError:
            raise ProtocolBroken("its entries are cut short") from None
        finally:
            if taken is not None:
                self.log.group.local += taken
            elif accepted:
                self.log.group.local.append(data if accepted == end else data[:accepted])
        if fold:
            for slot_index in fold:
                replica = replicas[slot_index]
                if replica is not None and replica.wants_fold():
                    replica.fold()

    def _take_odd(self, peer: Peer, slot_index: int, number: int, raw: bytes, taken: list[bytes]) -> None:
        """An entry that is not simply the next one."""
        if self._led_by[slot_index] is not peer:
            # A later primary was promised (rule 2): the sender learns it before any acknowledgement.
            promised = self.log.slots[slot_index].promised
            answers = peer.frame.answers
            answer = Answer(slot_index, promised, REJECTED, 0)
            if not answers or answers[-1] != answer:
                answers.append(answer)
            return
        incoming = self._incoming.get(slot_index)
        if incoming is not None:
            incoming[3].append(raw)
            return
        slot = self.log.slots[slot_index]
        if number <= slot.number:
            return  # it was in the state already
        raise ProtocolBroken(f"slot {slot_index}: entry {number} follows {slot.number}")

    def _append(self, peer: Peer, slot_index: int, raw: bytes) -> None:
        slot = self.log.slots[slot_index]
        _, _, _, _, _, epoch, number = _unpack(raw, 0)
        if number <= slot.number:
            return
        if number != slot.number + 1:
            raise ProtocolBroken(f"slot {slot_index}: entry {number} follows {slot.number}")
        extend(slot.history, epoch, number)
        slot.epoch = epoch
        slot.number = number
        replica = self.replicas[slot_index]
        assert replica is not None
        replica.append(raw)
        self.log.group.local.append(raw)


def _tail(
    lead: Lead, history: History, number: int, last: int, recent: Sequence[bytes]
) -> list[bytes] | None:
    """The slot's entries `number` + 1 to `last`; None when they are not all kept."""
    if number >= last:
        return [] if number == last else None
    # Only the run that ends with `last` and is of this log: the slot may have been led elsewhere in between,
    # and what was written here before may have been cut off and its numbers used again.
    expected = last
    start = len(recent)
    while start and int.from_bytes(recent[start - 1][16:24], "big") == expected:
        if int.from_bytes(recent[start - 1][12:16], "big") != epoch_of(history, expected):
            break
        start -= 1
        expected -= 1
    if expected <= number:
        return list(recent[start + number - expected :])
    if lead.inherited is None or lead.inherited.number != expected:
        return None
    inherited = lead.inherited.entries_from(number + 1)
    return None if inherited is None else [*inherited, *recent[start:]]
