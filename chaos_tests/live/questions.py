"""Questions to servers, over a link or straight, and whether they are answered within a time.

So it shows whether a fault of a link or of a process is in force: whoever answers as ever is not cut off.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Final, Literal

Server = Literal["node", "peer", "etcd"]  # a node's port for clients, its port for peers, etcd
Answer = Literal["answered", "ended", "refused", "silent"]

SMALL: Final = 64
LARGE: Final = 32 * 1024  # bytes: whatever counts or slices bytes has something to do
_ECHO_REQUEST: Final = 16
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _PING, _UNKNOWN = 4, 6, 0xFA  # types of frames; those that nobody knows are passed over
_FRAME_BYTES: Final = 16_000
_ACKNOWLEDGED: Final = 1


def _frame(kind: int, content: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("!I", len(content))[1:] + struct.pack("!BBI", kind, flags, 0) + content


def _echo(count: int) -> tuple[bytes, Callable[[bytes], bool]]:
    packet = struct.pack("!4sII", b"\0REQ", _ECHO_REQUEST, count) + bytes(count)
    return packet, lambda got: len(got) >= len(packet)


def _ping(count: int) -> tuple[bytes, Callable[[bytes], bool]]:
    padding = [_frame(_UNKNOWN, bytes(min(_FRAME_BYTES, count - at))) for at in range(0, count, _FRAME_BYTES)]
    question = b"".join([_PREFACE, _frame(_SETTINGS), *padding, _frame(_PING, b"question")])
    answer = _frame(_PING, b"question", _ACKNOWLEDGED)
    return question, lambda got: answer in got


def _look(count: int) -> tuple[bytes, Callable[[bytes], bool]]:
    body = json.dumps({"key": b64encode(bytes(count)).decode(), "serializable": True})
    head = f"POST /v3/kv/range HTTP/1.1\r\nHost: etcd\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode(), lambda got: b'"header"' in got


_QUESTIONS: Final = {"node": _echo, "peer": _ping, "etcd": _look}


def ask(address: tuple[str, int], server: Server, within_seconds: float, count: int = SMALL) -> Answer:
    """Ask with so many bytes, on a connection of its own."""
    question, complete = _QUESTIONS[server](count)
    until = time.monotonic() + within_seconds
    got = b""
    try:
        with socket.create_connection(address, timeout=within_seconds) as connection:
            connection.sendall(question)
            while not complete(got):
                connection.settimeout(max(0.001, until - time.monotonic()))
                piece = connection.recv(65536)
                if not piece:
                    return "ended"
                got += piece
    except TimeoutError:
        return "silent"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "ended"
    return "answered" if time.monotonic() <= until else "silent"


def hears_the_end(address: tuple[str, int], server: Server, within_seconds: float) -> bool:
    """Whether who ends its side of a connection is told the end of the other side within this time."""
    question, _ = _QUESTIONS[server](SMALL)
    with socket.create_connection(address, timeout=within_seconds) as connection:
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + within_seconds
        try:
            while (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                if not connection.recv(65536):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            pass
        return False
