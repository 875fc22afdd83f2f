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

ASSIGNED, REQUEUED and PROGRESS are hints: losing one costs a count or a repeat, never a job.
"""

from __future__ import annotations

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
KINDS: Final = frozenset(range(SUBMITTED, START + 1))

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
_BACKGROUND, _ASSIGNED, _HAS_REDUCER, _HAS_CRON = 1, 2, 4, 8


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

    def encode(self) -> bytes:
        """The body of a JOB entry."""
        flags = (
            _BACKGROUND
            | (_ASSIGNED if self.assigned else 0)
            | (_HAS_REDUCER if self.reducer is not None else 0)
            | (_HAS_CRON if self.cron is not None else 0)
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
        )


def encode_limits(high: int, normal: int, low: int, function: bytes) -> bytes:
    return _LIMITS.pack(high, normal, low) + function


def decode_limits(body: bytes) -> tuple[int, int, int, bytes]:
    if len(body) < _LIMITS.size:
        raise DamagedEntry("limits are cut short")
    high, normal, low = _LIMITS.unpack_from(body)
    return high, normal, low, body[_LIMITS.size :]
