"""What a node holds of a slot that it does not lead: entries as bytes, not jobs.

A backup must not pay a primary's price per entry. So it keeps the entries as they came, the newest in
`tail`, and folds them now and then into `base`, which has one entry for each living job: memory follows the
living jobs. Only when the node takes the slot over are jobs made of it.

`base` stands for the log up to `base_number`. A cut below that number is not possible: then the whole state
is sent instead (rule 7).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

from cluster.replication import entries
from cluster.replication.entries import DamagedEntry

# Entries that are never folded, so that a cut of what was not committed needs no whole state.
UNFOLDED_MIN: Final = 64
FOLD_AT: Final = 256
_KIND: Final = 9


class Replica:
    """The raw state of one slot."""

    __slots__ = ("base", "base_number", "highest", "hints", "remembered", "tail")

    def __init__(self, base_number: int = 0) -> None:
        self.base: dict[bytes, bytes] = {}  # handle -> SUBMITTED or JOB entry
        self.hints: dict[bytes, tuple[int, int, bool]] = {}  # handle -> deliveries, retries, with a worker
        self.remembered: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()  # key -> handle, ended
        self.tail: list[bytes] = []
        self.base_number = base_number
        self.highest = base_number  # how far it reached when it was cut

    @property
    def number(self) -> int:
        """Of the last entry."""
        return self.base_number + len(self.tail)

    def append(self, raw: bytes) -> None:
        self.tail.append(raw)

    def wants_fold(self) -> bool:
        return len(self.tail) >= FOLD_AT and len(self.tail) >= 2 * len(self.base)

    def cut(self, number: int) -> bool:
        """Drop all entries behind `number`; false when they may be folded already.

        May: a restart folds at other moments than this process did, and has to be able to cut again. So no
        more can be cut, in however many cuts, than is never folded.
        """
        keep = number - self.base_number
        self.highest = max(self.highest, self.number)
        if keep < 0 or number < self.highest - UNFOLDED_MIN:
            return False
        del self.tail[keep:]
        return True

    def entries_from(self, number: int) -> list[bytes] | None:
        """All entries from this number on; None when the first of them is folded."""
        index = number - self.base_number - 1
        return None if index < 0 else self.tail[index:]

    def fold(self, unfolded: int = UNFOLDED_MIN) -> None:
        """Apply all but the newest entries to `base`. Raises DamagedEntry."""
        count = len(self.tail) - unfolded
        if count <= 0:
            return
        for raw in self.tail[:count]:
            self.apply(raw)
        del self.tail[:count]
        self.base_number += count

    def apply(self, raw: bytes) -> None:
        """One entry's effect on `base`; also of those that stand in a whole state. Raises DamagedEntry."""
        kind = raw[_KIND]
        if kind == entries.SUBMITTED:
            end = raw.find(b"\0", entries.HEADER_BYTES + 1)
            if end < 0:
                raise DamagedEntry("a submitted job is cut short")
            self.base[raw[entries.HEADER_BYTES + 1 : end]] = raw
        elif kind == entries.DONE:
            body = raw[entries.HEADER_BYTES :]
            handle = entries.done_handle(body)
            old = self.base.pop(handle, None)
            self.hints.pop(handle, None)
            ended = entries.done_seconds(body)
            if ended is not None and old is not None:
                key = key_of(old)
                self.remembered[key] = (handle, ended)
                self.remembered.move_to_end(key)  # the oldest comes first
        elif kind == entries.ASSIGNED:
            handle = raw[entries.HEADER_BYTES :]
            if handle in self.base:
                deliveries, retries, _ = self.hints.get(handle, (0, 0, False))
                self.hints[handle] = (deliveries + 1, retries, True)
        elif kind == entries.REQUEUED:
            handle = raw[entries.HEADER_BYTES :]
            if handle in self.base:
                deliveries, retries, _ = self.hints.get(handle, (0, 0, False))
                self.hints[handle] = (deliveries, retries + 1, False)
        elif kind == entries.JOB:
            offset = entries.JOB_HANDLE_OFFSET
            end = offset + 2 + int.from_bytes(raw[offset : offset + 2], "big")
            handle = raw[offset + 2 : end]
            # Whole states replace each other, but not in the order of the queue.
            self.base[handle] = raw
            self.hints.pop(handle, None)
        elif kind == entries.REMEMBERED:
            handle, _, key = raw[entries.HEADER_BYTES :].partition(b"\0")
            self.remembered[key] = (handle, int.from_bytes(raw[16:24], "big"))

    def forget_remembered(self, before_seconds: int, count_max: int) -> None:
        """Drop what ended before a Unix time, and the oldest beyond `count_max`."""
        remembered = self.remembered
        while remembered:
            key = next(iter(remembered))
            if remembered[key][1] >= before_seconds and len(remembered) <= count_max:
                return
            del remembered[key]

    def state(self, slot: int, promised: int, history: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """`base` as entries between STATE and STATE_END; `history` is the whole log's."""
        known = [pair for pair in history if pair[1] <= self.base_number]
        yield entries.encode_state(slot, promised, self.base_number, known)
        for handle, raw in self.base.items():
            yield raw
            hint = self.hints.get(handle)
            if hint is not None:
                deliveries, retries, assigned = hint
                again = assigned and retries > 0  # the last hint says whether it is with a worker
                for _ in range(deliveries - again):
                    yield entries.encode(entries.ASSIGNED, slot, 0, 0, handle)
                for _ in range(retries):
                    yield entries.encode(entries.REQUEUED, slot, 0, 0, handle)
                if again:
                    yield entries.encode(entries.ASSIGNED, slot, 0, 0, handle)
        for key, (handle, ended) in self.remembered.items():
            yield entries.encode_remembered(slot, ended, handle, key)
        yield entries.encode(entries.STATE_END, slot, promised, self.base_number, b"")

    @classmethod
    def from_state(cls, number: int, raws: Sequence[bytes]) -> Replica:
        """What `state` wrote, without the two entries around it."""
        replica = cls(number)
        for raw in raws:
            replica.apply(raw)
        return replica


def key_of(raw: bytes) -> bytes:
    """`function NUL unique` of a SUBMITTED or JOB entry, as it is coalesced on."""
    if raw[_KIND] == entries.JOB:
        record = entries.JobRecord.decode(raw[entries.HEADER_BYTES :])
        return b"%b\0%b" % (record.function, record.key_rest)
    handle_end = raw.find(b"\0", entries.HEADER_BYTES + 1)
    name_end = raw.find(b"\0", handle_end + 1)
    unique_end = raw.find(b"\0", name_end + 1)
    key = raw[handle_end + 1 : unique_end]
    if unique_end == name_end + 2 and key[-1:] == b"-":
        return b"%b\0%b" % (key, blake2b(raw[unique_end + 1 :], digest_size=16).digest())
    return key
