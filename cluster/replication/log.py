"""Slots with their epochs and numbers, and the groups in which entries are committed.

All entries of one turn are one group: one write, one fsync, one message to each backup. An entry
is committed when its group is; groups are committed in order. Whatever promises something to a client
waits for a group: its own entry's, or the one that is open (an empty group will do: rule 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from cluster.replication import entries

SLOT_COUNT: Final = 1024
SLOT_MASK: Final = SLOT_COUNT - 1
assert SLOT_COUNT & SLOT_MASK == 0


def slot_of(key: bytes) -> int:
    """The slot of `function NUL unique`: stable over processes, versions and languages (CRC-32)."""
    return crc32(key) & SLOT_MASK


class Slot:
    """One share of the key space: how far its log goes, and as its primary what numbers it."""

    __slots__ = (
        "epoch",
        "foreground_prefix",
        "handle_prefix",
        "history",
        "index",
        "number",
        "promised",
        "serving",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.epoch = 0  # in which the next entry is written (a primary), or the last one was
        self.number = 0  # of the last entry
        self.promised = 0  # the highest epoch acknowledged or led here (rule 2)
        self.history: list[tuple[int, int]] = []  # see history.py
        self.serving = False  # its jobs are here: submits and results are taken on the spot
        self.handle_prefix = b""
        self.foreground_prefix = b""

    def lead(self, epoch: int, incarnation: int, node_prefix: bytes) -> None:
        """Begin to number entries in an epoch.

        A background job's handle is made of the slot, the epoch and a counter, a foreground job's of the
        slot, the node's incarnation and a counter: neither ever comes back.
        """
        self.epoch = epoch
        self.handle_prefix = b"%b:%x.%x." % (node_prefix, self.index, epoch)
        self.name_foreground(incarnation, node_prefix)

    def name_foreground(self, incarnation: int, node_prefix: bytes) -> None:
        self.foreground_prefix = b"%b:%x.t%x." % (node_prefix, self.index, incarnation)


@dataclass(slots=True)
class Group:
    """What one turn wrote, and who waits for it."""

    number: int
    records: list[bytes] = field(default_factory=list)  # of slots led here; sent to backups
    local: list[bytes] = field(default_factory=list)  # for this node's disk only: others' entries, promises
    jobs: list[Any] = field(default_factory=list)  # queued at commit; opaque here
    joined: bool = False  # a job may be in `jobs` twice: as a foreground job and as what it became
    waiting: list[Any] = field(default_factory=list)  # connections with held answers; opaque here
    promises: set[int] = field(default_factory=set)  # slots of answers without an entry of their own
    needed: bool = False  # to be cut although nothing is in it

    def for_disk(self) -> list[bytes]:
        """All that is journalled, in order.

        Own entries first: a slot changes hands at most once in a turn, from here to another node; the other
        way there is a group between (see replicator.lead).
        """
        return self.records + self.local if self.local else self.records


class Log:
    """The entries of all slots that this node leads."""

    def __init__(self) -> None:
        self.slots = [Slot(index) for index in range(SLOT_COUNT)]
        self.group = Group(1)  # the open one
        self.committed = 0
        self.incarnation = 0
        self.replicated = False  # backups get `records`: what is the node's own goes into `local`

    def lead_all(self, incarnation: int, node_prefix: bytes) -> None:
        """Standalone: lead every slot; each start is an epoch of its own (rule 8: no two starts ever
        append in one epoch)."""
        self.incarnation = incarnation
        for slot in self.slots:
            slot.lead(max(incarnation, slot.epoch + 1), incarnation, node_prefix)
            slot.serving = True

    def append(self, slot_index: int, kind: int, body: bytes) -> None:
        """Add an entry to the open group."""
        slot = self.slots[slot_index]
        slot.number += 1
        self.group.records.append(entries.encode(kind, slot_index, slot.epoch, slot.number, body))

    def append_done(self, slot_index: int, outcome: int, handle: bytes) -> None:
        slot = self.slots[slot_index]
        slot.number += 1
        self.group.records.append(entries.encode_done(slot_index, slot.epoch, slot.number, outcome, handle))

    def append_node(self, kind: int, number: int, body: bytes) -> None:
        """Add an entry of the node itself."""
        group = self.group
        records = group.local if self.replicated else group.records
        records.append(entries.encode(kind, entries.NODE_SLOT, 0, number, body))

    def cut(self) -> Group | None:
        """Close the open group and return it, or None when nobody needs it."""
        group = self.group
        if not group.records and not group.waiting and not group.local and not group.needed:
            return None
        self.group = Group(group.number + 1)
        return group
