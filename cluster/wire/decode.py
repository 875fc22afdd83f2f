"""Bytes to packets, however the bytes are cut.

The first byte of each message decides what it is: NUL begins a binary packet, anything else a text line
(PROTOCOL, "Administrative Protocol"). A connection may mix both, packet by packet.

The decoder holds at most one incomplete message: `packet_bytes_max` plus one read. It copies each
payload once, also when a large one arrives in thousands of pieces.
"""

from struct import Struct
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
# How an HTTP request's first line ends; its sender waits for an answer that it can read, or for the end.
_HTTP_VERSIONS: Final = (b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0")

_unpack_header = HEADER.unpack_from
_unpack_numbers: Final = Struct(">III").unpack_from  # the magic as a number: cheaper to compare


class ProtocolError(Exception):
    """The peer sent what is no Gearman message; nothing after it can be understood."""


class Decoder:
    """Feed it what arrived; it returns the packets that are complete.

    After a fault `error` is set, what came before the fault is still returned, and the rest is dropped:
    the caller answers what it has, says the error and closes.
    """

    __slots__ = (
        "_expected",
        "_expected_number",
        "_held",
        "_needed_bytes",
        "_other",
        "begun",
        "error",
        "held_bytes",
        "packet_bytes_max",
    )

    def __init__(
        self, *, from_server: bool = False, packet_bytes_max: int = PACKET_BYTES_MAX_DEFAULT
    ) -> None:
        self._expected = MAGIC_RESPONSE if from_server else MAGIC_REQUEST
        self._expected_number = int.from_bytes(self._expected, "big")
        self._other = MAGIC_REQUEST if from_server else MAGIC_RESPONSE
        self.packet_bytes_max = packet_bytes_max
        self.error: ProtocolError | None = None
        # The incomplete message. One growing buffer and not a list of pieces: a peer that sends byte by
        # byte would make the list many times as large as what it sent.
        self._held = bytearray()
        self.held_bytes = 0  # of it
        self.begun = False  # something has come
        self._needed_bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the complete packets as (type, body); type may be TEXT or MISDIRECTED."""
        packets: list[tuple[int, bytes]] = []
        self.begun = True
        if self._held:
            self._held += data
            # A text line has no announced length: look at each piece for its end.
            if len(self._held) < self._needed_bytes:
                self.held_bytes = len(self._held)
                return packets
            data = bytes(self._held)
            self.drop()
        length = len(data)
        offset = 0
        if self.error is None:
            # What nearly all of it is: whole packets with the right magic.
            append = packets.append
            expected = self._expected_number
            size_max = self.packet_bytes_max
            body = HEADER_BYTES
            while body <= length:
                magic, packet_type, size = _unpack_numbers(data, offset)
                end = body + size
                if magic != expected or end > length or size > size_max:
                    break
                append((packet_type, data[body:end]))
                offset = end
                body = end + HEADER_BYTES
            if offset < length:
                self._rest(data, offset, packets)
        return packets

    def drop(self) -> None:
        """Forget the incomplete message."""
        self._held = bytearray()
        self.held_bytes = 0

    def _rest(self, data: bytes, offset: int, packets: list[tuple[int, bytes]]) -> None:
        """Text, faults, packets of the other direction, and the beginning of what is not complete."""
        append = packets.append
        expected = self._expected
        size_max = self.packet_bytes_max
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
                return
            if size > size_max:
                self.error = ProtocolError(
                    f"a packet of type {packet_type} announces {size} bytes; the limit is {size_max} bytes"
                )
                return
            end = body + size
            if end > length:
                needed = HEADER_BYTES + size
                break
            append((packet_type if magic == expected else MISDIRECTED, data[body:end]))
            offset = end
        if self.error is None and offset < length:
            self._held += memoryview(data)[offset:]
            self.held_bytes = length - offset
            self._needed_bytes = needed

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
        line = data[offset:end].rstrip(b"\r")
        if line.endswith(_HTTP_VERSIONS):
            self.error = ProtocolError("a text line is an HTTP request: this is not the Gearman protocol")
            return len(data), False
        packets.append((TEXT, line))
        return end + 1, True
