"""Packets to bytes."""

from struct import Struct
from typing import Final

from cluster.wire.packets import ERROR, HEADER_BYTES, MAGIC_REQUEST, MAGIC_RESPONSE

HEADER: Final = Struct(">4sII")
assert HEADER.size == HEADER_BYTES

_pack_header = HEADER.pack


def request(packet_type: int, *arguments: bytes) -> bytes:
    """A packet from a client or worker. Only the last argument may contain NULs."""
    body = b"\0".join(arguments)
    return _pack_header(MAGIC_REQUEST, packet_type, len(body)) + body


def response(packet_type: int, *arguments: bytes) -> bytes:
    """A packet from a server. Only the last argument may contain NULs."""
    body = b"\0".join(arguments)
    return _pack_header(MAGIC_RESPONSE, packet_type, len(body)) + body


def error(code: bytes, text: str) -> bytes:
    """An ERROR packet: a code that libgearman knows and a sentence for a person."""
    return response(ERROR, code, text.encode("utf-8", "replace").replace(b"\0", b"?"))
