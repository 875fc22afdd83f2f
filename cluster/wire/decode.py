"""Bytes to packets, however the bytes are cut.

The first byte of each message decides what it is: NUL begins a binary packet, anything else a text line
(PROTOCOL, "Administrative Protocol"). A connection may mix both, packet by packet.

The decoder holds at most one incomplete message: `packet_bytes_max` plus one read. It copies each
payload once, also when a large one arrives in thousands of pieces.
"""

from typing import Final

from cluster.wire.encode import HEADER
from cluster.wire.packets import (
    HEADER_BYTES,
    MAGIC_REQUEST,
    MAGIC_RESPONSE,
    PACKET_BYTES_MAX_DEFAULT,
    TEXT_LINE_BYTES_MAX,
)

# Stand in a packet's place for its type; no type on the wire is negative.
TEXT: Final = -1  # the body is a text line without its line end
MISDIRECTED: Final = -2  # a well-formed packet whose magic belongs to the other direction

# No text command begins with a control character. A TLS hello does (0x16), has no line end to wait for, and
# its sender waits for an answer.
_NEVER_BEGINS_TEXT: Final = frozenset(range(0x20)) - frozenset(b"\t\r\n")

_unpack_header = HEADER.unpack_from


class ProtocolError(Exception):
    """The peer sent what is no Gearman message; nothing after it can be understood."""


class Decoder:
    """Feed it what arrived; it returns the packets that are complete.

    After a fault `error` is set, what came before the fault is still returned, and the rest is dropped:
    the caller answers what it has, says the error and closes.
    """

    __slots__ = ("_expected", "_held", "_needed_bytes", "_other", "error", "packet_bytes_max")

    def __init__(
        self, *, from_server: bool = False, packet_bytes_max: int = PACKET_BYTES_MAX_DEFAULT
    ) -> None:
        self._expected = MAGIC_RESPONSE if from_server else MAGIC_REQUEST
        self._other = MAGIC_REQUEST if from_server else MAGIC_RESPONSE
        self.packet_bytes_max = packet_bytes_max
        self.error: ProtocolError | None = None
        # The incomplete message. One growing buffer and not a list of pieces: a peer that sends byte by
        # byte would make the list many times as large as what it sent.
        self._held = bytearray()
        self._needed_bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the complete packets as (type, body); type may be TEXT or MISDIRECTED."""
        if self._held:
            self._held += data
            # A text line has no announced length: look at each piece for its end.
            if len(self._held) < self._needed_bytes:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        packets: list[tuple[int, bytes]] = []
        if self.error is not None:
            return packets
        append = packets.append
        expected = self._expected
        size_max = self.packet_bytes_max
        offset = 0
        length = len(data)
        needed = HEADER_BYTES
        while offset < length:
            if data[offset]:
                offset, complete = self._text_line(data, offset, packets)
                if complete:
                    continue
                needed = length - offset + 1
                break
            body = offset + HEADER_BYTES
            if body > length:
                needed = HEADER_BYTES
                break
            magic, packet_type, size = _unpack_header(data, offset)
            if magic != expected and magic != self._other:
                self.error = ProtocolError(
                    f"a packet begins with {magic!r} where {expected!r} belongs: "
                    "this is not the Gearman protocol"
                )
                return packets
            if size > size_max:
                self.error = ProtocolError(
                    f"a packet of type {packet_type} announces {size} bytes; the limit is {size_max} bytes"
                )
                return packets
            end = body + size
            if end > length:
                needed = HEADER_BYTES + size
                break
            append((packet_type if magic == expected else MISDIRECTED, data[body:end]))
            offset = end
        if self.error is None and offset < length:
            self._held += data[offset:] if offset else data
            self._needed_bytes = needed
        return packets

    def _text_line(self, data: bytes, offset: int, packets: list[tuple[int, bytes]]) -> tuple[int, bool]:
        """Take one text line; return the offset behind it and whether it was complete."""
        if data[offset] in _NEVER_BEGINS_TEXT:
            self.error = ProtocolError(
                f"a message begins with the byte 0x{data[offset]:02x}: this is not the Gearman protocol "
                "(0x16 is TLS)"
            )
            return len(data), False
        end = data.find(b"\n", offset, offset + TEXT_LINE_BYTES_MAX)
        if end < 0:
            if len(data) - offset >= TEXT_LINE_BYTES_MAX:
                self.error = ProtocolError(f"a text line is longer than {TEXT_LINE_BYTES_MAX} bytes")
                return len(data), False
            return offset, False
        packets.append((TEXT, data[offset:end].rstrip(b"\r")))
        return end + 1, True
