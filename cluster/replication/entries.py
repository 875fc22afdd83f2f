"""One change of a slot's job state, as bytes.

    offset  size  field
    0       4     CRC-32 of all that follows
    4       4     length of all that follows this field
    8       1     version of the format (1)
    9       1     kind
    10      2     slot; 65535 for entries of the node itself
    12      4     epoch in which the entry was first written (rule 7: it keeps it)
    16      8     number within the slot
    24            body, by kind

All numbers are big-endian. The same bytes are written to the journal and sent to backups: they are
encoded once, on the primary.

    kind            body
    SUBMITTED       priority (1), handle NUL function NUL unique NUL payload
    JOB             the whole state of a job: see JobRecord
    ASSIGNED        handle; given to a worker
    REQUEUED        handle; the worker was lost
    PROGRESS        handle NUL numerator NUL denominator
    DONE            outcome (1), handle
    LIMITS          high, normal, low (8 each), function
    SLOT            nothing: the slot's epoch and number as of a checkpoint
    START           a node's start: incarnation in `number`, version text
    STATE           the whole state of a slot begins, as of `number`; epoch: the promised one; its history
    STATE_END       it is complete: it replaces what was there before
    EPOCH           the slot's promised epoch (rule 2)
    CUT             entries behind `number` are cut off (rule 7)
    REMEMBERED      only within a state: a completed job that is remembered; see encode_remembered

The last five are a node's own: they are not numbered and not sent as entries. Between STATE and STATE_END
stand SUBMITTED, JOB, ASSIGNED and REMEMBERED entries with whatever numbers they have.

In SUBMITTED the priority byte, in DONE the outcome byte carries REMEMBER when the client asked for it; such a
DONE has the Unix time (4) between outcome and handle.

ASSIGNED, REQUEUED and PROGRESS are hints: losing one costs a count or a repeat, never a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple
from zlib import crc32

VERSION: Final = 1
NODE_SLOT: Final = 0xFFFF

SUBMITTED: Final = 1
JOB: Final = 2
ASSIGNED: Final = 3
REQUEUED: Final = 4
PROGRESS: Final = 5
DONE: Final = 6
LIMITS: Final = 7
SLOT: Final = 8
START: Final = 9
STATE: Final = 10
STATE_END: Final = 11
EPOCH: Final = 12
CUT: Final = 13
REMEMBERED: Final = 14
KINDS: Final = frozenset(range(SUBMITTED, REMEMBERED + 1))
# What a log consists of: numbered one after the other, sent to backups.
LOGGED: Final = frozenset((SUBMITTED, JOB, ASSIGNED, REQUEUED, PROGRESS, DONE))
REMEMBER: Final = 0x80

# Outcomes of DONE.
COMPLETED: Final = 0
FAILED: Final = 1
EXCEPTION: Final = 2
TIMED_OUT: Final = 3
CANCELLED: Final = 4
OUT_OF_RETRIES: Final = 5

_AFTER_CRC: Final = Struct(">IBBHIQ")  # length, version, kind, slot, epoch, number
_WITH_BYTE: Final = Struct(">IBBHIQB")
_WHOLE: Final = Struct(">IIBBHIQ")
_LIMITS: Final = Struct(">QQQ")
HEADER_BYTES: Final = _WHOLE.size
LENGTH_BASE: Final = HEADER_BYTES - 8
assert HEADER_BYTES == 24

unpack_header: Final = _WHOLE.unpack_from  # crc, length, version, kind, slot, epoch, number
_pack = _AFTER_CRC.pack
_pack_with_byte = _WITH_BYTE.pack
_unpack_whole = _WHOLE.unpack_from


class DamagedEntry(Exception):
    """Bytes that are no entry: torn, rotten or foreign."""


class Entry(NamedTuple):
    """One decoded entry."""

    kind: int
    slot: int
    epoch: int
    number: int
    body: bytes


def encode(kind: int, slot: int, epoch: int, number: int, body: bytes) -> bytes:
    """An entry of any kind."""
    rest = _pack(LENGTH_BASE + len(body), VERSION, kind, slot, epoch, number) + body
    return crc32(rest).to_bytes(4, "big") + rest


def encode_submitted(
    slot: int, epoch: int, number: int, priority: int, handle: bytes, packet_body: bytes
) -> bytes:
    """SUBMITTED from the body of a submit packet (`function NUL unique NUL payload`), as it came."""
    rest = b"%b%b\0%b" % (
        _pack_with_byte(
            LENGTH_BASE + 2 + len(handle) + len(packet_body),
            VERSION,
            SUBMITTED,
            slot,
            epoch,
            number,
            priority,
        ),
        handle,
        packet_body,
    )
    return crc32(rest).to_bytes(4, "big") + rest


def encode_done(slot: int, epoch: int, number: int, outcome: int, handle: bytes) -> bytes:
    rest = (
        _pack_with_byte(LENGTH_BASE + 1 + len(handle), VERSION, DONE, slot, epoch, number, outcome) + handle
    )
    return crc32(rest).to_bytes(4, "big") + rest


def encode_done_remembered(
    slot: int, epoch: int, number: int, outcome: int, handle: bytes, wall_seconds: int
) -> bytes:
    """DONE of a job whose unique key is remembered from now on."""
    return encode(
        DONE, slot, epoch, number, b"%c%b%b" % (outcome | REMEMBER, wall_seconds.to_bytes(4, "big"), handle)
    )


def done_handle(body: bytes) -> bytes:
    """The handle in a DONE entry's body."""
    return body[5:] if body[0] & REMEMBER else body[1:]


def done_seconds(body: bytes) -> int | None:
    """When a remembered job ended (Unix time); None when it is not remembered."""
    return int.from_bytes(body[1:5], "big") if body[0] & REMEMBER else None


_PAIR: Final = Struct(">IQ")


def encode_state(slot: int, promised: int, number: int, history: Sequence[tuple[int, int]]) -> bytes:
    """STATE: `history` has (epoch, number of its first entry), oldest first."""
    return encode(STATE, slot, promised, number, b"".join(_PAIR.pack(*pair) for pair in history))


def decode_history(body: bytes) -> list[tuple[int, int]]:
    if len(body) % _PAIR.size:
        raise DamagedEntry("a slot's history is cut short")
    return [(epoch, number) for epoch, number in _PAIR.iter_unpack(body)]


def encode_remembered(slot: int, wall_seconds: int, handle: bytes, key: bytes) -> bytes:
    """REMEMBERED: when it ended, its handle, its key."""
    return encode(REMEMBERED, slot, 0, wall_seconds, handle + b"\0" + key)


def decode_raw(data: bytes | memoryview, offset: int) -> tuple[Entry, int]:
    """As `decode`, but `body` is the whole entry as it is stored."""
    entry, end = decode(data, offset)
    return Entry(entry.kind, entry.slot, entry.epoch, entry.number, bytes(data[offset:end])), end


def decode(data: bytes | memoryview, offset: int) -> tuple[Entry, int]:
    """The entry at an offset and the offset behind it; raises DamagedEntry."""
    try:
        crc, length, version, kind, slot, epoch, number = _unpack_whole(data, offset)
    except StructError:
        raise DamagedEntry("shorter than an entry's header") from None
    end = offset + 8 + length
    if length < LENGTH_BASE or end > len(data):
        raise DamagedEntry(f"announces {length} bytes where {len(data) - offset - 8} are left")
    body = bytes(data[offset + HEADER_BYTES : end])
    if crc32(body, crc32(data[offset + 4 : offset + HEADER_BYTES])) != crc:
        raise DamagedEntry("checksum does not match")
    if version != VERSION or kind not in KINDS:
        raise DamagedEntry(f"is of version {version}, kind {kind}: written by a newer release?")
    return Entry(kind, slot, epoch, number, body), end


_JOB: Final = Struct(">BBIIQ")  # flags, priority, retries, deliveries, due
JOB_HANDLE_OFFSET: Final = HEADER_BYTES + _JOB.size  # in a whole JOB entry: length (2), handle
_BACKGROUND, _ASSIGNED, _HAS_REDUCER, _HAS_CRON, _REMEMBER, _ASKED_PAUSE = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The whole state of a job, as in entry JOB."""

    handle: bytes
    function: bytes
    key_rest: bytes  # the key behind `function NUL`
    payload: bytes
    priority: int
    retries: int = 0
    deliveries: int = 0
    due_seconds: int = 0
    assigned: bool = False
    reducer: bytes | None = None  # `reducer NUL aggregate`
    cron: tuple[bytes, ...] | None = None
    remember: bool = False
    asked_pause: bool = False  # a worker asked for the time in `due_seconds`

    def encode(self) -> bytes:
        """The body of a JOB entry."""
        flags = (
            _BACKGROUND
            | (_ASSIGNED if self.assigned else 0)
            | (_HAS_REDUCER if self.reducer is not None else 0)
            | (_HAS_CRON if self.cron is not None else 0)
            | (_REMEMBER if self.remember else 0)
            | (_ASKED_PAUSE if self.asked_pause else 0)
        )
        fields = [self.handle, self.function, self.key_rest]
        if self.reducer is not None:
            fields.append(self.reducer)
        if self.cron is not None:
            fields.append(b" ".join(field.replace(b" ", b"") or b"*" for field in self.cron))
        head = _JOB.pack(flags, self.priority, self.retries, self.deliveries, self.due_seconds)
        return b"".join([head, *(len(field).to_bytes(2, "big") + field for field in fields), self.payload])

    @classmethod
    def decode(cls, body: bytes) -> JobRecord:
        """Raises DamagedEntry when the body is no job."""
        try:
            flags, priority, retries, deliveries, due = _JOB.unpack_from(body)
        except StructError:
            raise DamagedEntry("job state is cut short") from None
        offset = _JOB.size
        fields = []
        for present in (True, True, True, flags & _HAS_REDUCER, flags & _HAS_CRON):
            field = b""
            if present:
                end = offset + 2 + int.from_bytes(body[offset : offset + 2], "big")
                if end > len(body):
                    raise DamagedEntry("job state is cut short")
                field = body[offset + 2 : end]
                offset = end
            fields.append(field)
        return cls(
            handle=fields[0],
            function=fields[1],
            key_rest=fields[2],
            payload=body[offset:],
            priority=priority,
            retries=retries,
            deliveries=deliveries,
            due_seconds=due,
            assigned=bool(flags & _ASSIGNED),
            reducer=fields[3] if flags & _HAS_REDUCER else None,
            cron=tuple(fields[4].split(b" ")) if flags & _HAS_CRON else None,
            remember=bool(flags & _REMEMBER),
            asked_pause=bool(flags & _ASKED_PAUSE),
        )


def encode_limits(high: int, normal: int, low: int, function: bytes) -> bytes:
    return _LIMITS.pack(high, normal, low) + function


def decode_limits(body: bytes) -> tuple[int, int, int, bytes]:
    if len(body) < _LIMITS.size:
        raise DamagedEntry("limits are cut short")
    high, normal, low = _LIMITS.unpack_from(body)
    return high, normal, low, body[_LIMITS.size :]
