"""A fleet node's journal back into replicas. Nothing is led until the map says so."""

from __future__ import annotations

from cluster.replication import entries
from cluster.replication.entries import DamagedEntry
from cluster.replication.history import cut, epoch_of, extend
from cluster.replication.log import SLOT_COUNT
from cluster.replication.replica import Replica
from cluster.replication.replicator import Replicator


class ReplicaRestorer:
    """Feed it entries (`entries.decode_raw`) in the order of the journal, then `finish`."""

    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator
        self._log = replicator.log
        self._states: dict[int, tuple[int, list[tuple[int, int]], list[bytes]]] = {}
        self._behind: dict[int, int] = {}  # slot -> number of the last entry that is behind no state
        self.limits: list[tuple[int, bytes]] = []  # number, body of LIMITS entries

    def apply(self, entry: entries.Entry) -> None:
        """One entry, raw; raises DamagedEntry when it does not fit."""
        kind, slot_index, epoch, number, raw = entry
        if slot_index == entries.NODE_SLOT:
            if kind == entries.START:
                self._states.clear()  # a state that another process began is not ended by this one
                self._log.incarnation = max(self._log.incarnation, number)
            elif kind == entries.LIMITS:
                self.limits.append((number, raw[entries.HEADER_BYTES :]))
            return
        if slot_index >= SLOT_COUNT:
            raise DamagedEntry(f"names slot {slot_index}; there are {SLOT_COUNT}")
        slot = self._log.slots[slot_index]
        replicas = self._replicator.replicas
        if kind == entries.STATE:
            slot.promised = max(slot.promised, epoch)
            history = entries.decode_history(raw[entries.HEADER_BYTES :])
            self._states[slot_index] = (number, history, [])
            return
        state = self._states.get(slot_index)
        if state is not None:
            if kind != entries.STATE_END:
                state[2].append(raw)
                return
            del self._states[slot_index]
            self._behind.pop(slot_index, None)
            slot.number, slot.history, _ = state
            slot.epoch = epoch_of(slot.history, slot.number)
            replicas[slot_index] = Replica.from_state(slot.number, state[2])
            return
        replica = replicas[slot_index]
        assert replica is not None
        if kind in entries.LOGGED:
            if not slot.number and number == self._behind.get(slot_index, number - 1) + 1 != 1:
                # The segments before were dropped: the slot's state was written after this entry.
                self._behind[slot_index] = number
                slot.promised = max(slot.promised, epoch)
                return
            if number != slot.number + 1:
                raise DamagedEntry(f"is number {number} of slot {slot_index} behind {slot.number}")
            slot.promised = max(slot.promised, epoch)
            extend(slot.history, epoch, number)
            slot.epoch = epoch
            slot.number = number
            replica.append(raw)
            if replica.wants_fold():
                replica.fold()
        elif kind == entries.EPOCH:
            slot.promised = max(slot.promised, epoch)
        elif kind == entries.CUT:
            slot.promised = max(slot.promised, epoch)
            if number < self._behind.get(slot_index, 0):
                self._behind[slot_index] = number
            if number < slot.number:
                if not replica.cut(number):
                    raise DamagedEntry(f"cuts slot {slot_index} at {number}, which is folded")
                slot.number = number
                cut(slot.history, number)
                slot.epoch = epoch_of(slot.history, number)
        else:
            raise DamagedEntry(f"of kind {kind} does not belong to a fleet node's journal")

    @property
    def headless(self) -> list[int]:
        """Slots of which there are entries, but not those before them, and no state: at the end of a journal
        that is damage."""
        return sorted(self._behind)

    @property
    def empty(self) -> bool:
        """Nothing was ever written or promised: such a node may take part in a bootstrap."""
        return not any(slot.number or slot.promised for slot in self._log.slots)
