"""One blocking Gearman connection: what a client, a worker or an administrator is to the server."""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

from cluster.wire import PACKETS, TEXT, Decoder, request
from cluster.wire import packets as wire
from cluster.wire.packets import split_arguments
from tests.support.waiting import WAIT_SECONDS

_READ_BYTES = 256 * 1024

SUBMITS = {
    (False, "normal"): wire.SUBMIT_JOB,
    (False, "high"): wire.SUBMIT_JOB_HIGH,
    (False, "low"): wire.SUBMIT_JOB_LOW,
    (True, "normal"): wire.SUBMIT_JOB_BG,
    (True, "high"): wire.SUBMIT_JOB_HIGH_BG,
    (True, "low"): wire.SUBMIT_JOB_LOW_BG,
}


class PeerTimeout(AssertionError):
    """Nothing, or not enough, came within the time."""


class PeerClosed(AssertionError):
    """The server closed the connection while something was expected from it."""


class Packet(NamedTuple):
    """What came: a packet with its arguments, or a text line as the only argument of TEXT."""

    type: int
    arguments: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return "TEXT" if self.type == TEXT else PACKETS[self.type].name

    def __repr__(self) -> str:
        return f"{self.name}{self.arguments!r}"


class Peer:
    """Connect, send, receive. Every wait is bounded."""

    _tokens = count(1)

    def __init__(self, host: str, port: int, *, source_host: str | None = None) -> None:
        self.socket = socket.create_connection(
            (host, port), timeout=WAIT_SECONDS, source_address=(source_host, 0) if source_host else None
        )
        with suppress(OSError):  # closed already by a server that wants no more connections
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder(from_server=True)
        self._received: deque[Packet] = deque()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # ---- sending

    def send_bytes(self, data: bytes) -> None:
        self.socket.settimeout(WAIT_SECONDS)
        self.socket.sendall(data)

    def send(self, packet_type: int, *arguments: bytes) -> None:
        self.send_bytes(request(packet_type, *arguments))

    # ---- receiving

    def receive(self, timeout_seconds: float = WAIT_SECONDS) -> Packet:
        """The next packet or text line."""
        deadline = time.monotonic() + timeout_seconds
        while not self._received:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise PeerTimeout(f"nothing came within {timeout_seconds} s")
            self.socket.settimeout(left_seconds)
            try:
                data = self.socket.recv(_READ_BYTES)
            except TimeoutError:
                raise PeerTimeout(f"nothing came within {timeout_seconds} s") from None
            except ConnectionError as problem:
                raise PeerClosed(f"the server broke the connection: {problem}") from None
            if not data:
                raise PeerClosed("the server closed the connection")
            self._decode(data)
        return self._received.popleft()

    def _decode(self, data: bytes) -> None:
        for packet_type, body in self._decoder.feed(data):
            arguments = [body] if packet_type == TEXT else split_arguments(packet_type, body)
            self._received.append(Packet(packet_type, tuple(arguments)))
        if self._decoder.error is not None:
            raise self._decoder.error

    def expect(self, packet_type: int, *arguments: bytes, timeout_seconds: float = WAIT_SECONDS) -> Any:
        """The next packet must be of this type and begin with these arguments.

        Returns its arguments; a single one comes bare, none at all as None.
        """
        packet = self.receive(timeout_seconds)
        wanted = Packet(packet_type, arguments)
        assert packet.type == packet_type, f"expected {wanted!r}, got {packet!r}"
        assert packet.arguments[: len(arguments)] == arguments, f"expected {wanted!r}, got {packet!r}"
        if not packet.arguments:
            return None
        return packet.arguments[0] if len(packet.arguments) == 1 else packet.arguments

    def expect_error(self, code: bytes) -> bytes:
        """The next packet must be an ERROR of this code; returns its text."""
        text: bytes = self.expect(wire.ERROR, code)[1]
        assert text, f"an ERROR {code!r} without a sentence for a person"
        return text

    def expect_closed(self, timeout_seconds: float = WAIT_SECONDS) -> list[Packet]:
        """The server must close the connection; returns what it said before."""
        said = []
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                said.append(self.receive(max(deadline - time.monotonic(), 0.001)))
        except PeerTimeout:
            raise AssertionError(f"still open after {timeout_seconds} s; said {said!r}") from None
        except PeerClosed:
            return said

    def ask(self, packet_type: int, *arguments: bytes) -> Packet:
        """Send and return the next packet."""
        self.send(packet_type, *arguments)
        return self.receive()

    def settle(self) -> None:
        """Return when the server has dealt with all that was sent here, and has said nothing meanwhile.

        Answers on one connection keep the order of the requests, so an echo proves both.
        """
        token = b"settle-%d" % next(self._tokens)
        self.send(wire.ECHO_REQ, token)
        self.expect(wire.ECHO_RES, token)

    # ---- text commands

    def line(self, command: str) -> str:
        """A text command that is answered by one line; returns it without its end."""
        self.send_bytes(command.encode() + b"\n")
        return str(self.expect(TEXT), "utf-8")

    def table(self, command: str) -> list[str]:
        """A text command that is answered by lines and a dot; returns the lines."""
        self.send_bytes(command.encode() + b"\n")
        lines = []
        # Another test may have left a function whose name is no text.
        while (line := self.expect(TEXT).decode(errors="backslashreplace")) != ".":
            assert not line.startswith("ERR "), f"{command!r} was refused: {line}"
            lines.append(line)
        return lines

    # ---- a client

    def submit(
        self,
        function: bytes,
        payload: bytes = b"",
        unique: bytes = b"",
        *,
        background: bool = False,
        priority: str = "normal",
    ) -> bytes:
        """Submit a job; returns its handle once the server has acknowledged it."""
        self.send(SUBMITS[background, priority], function, unique, payload)
        handle = self.expect(wire.JOB_CREATED)
        assert isinstance(handle, bytes)
        return handle

    # ---- a worker

    def can_do(self, *functions: bytes) -> None:
        """Register; the server knows it when this returns."""
        for function in functions:
            self.send(wire.CAN_DO, function)
        self.settle()

    def grab(self) -> Grabbed | None:
        """Ask for a job."""
        packet = self.ask(wire.GRAB_JOB_UNIQ)
        if packet.type == wire.NO_JOB:
            return None
        assert packet.type == wire.JOB_ASSIGN_UNIQ, f"expected a job or NO_JOB, got {packet!r}"
        return Grabbed(*packet.arguments)

    def grab_one(self) -> Grabbed:
        """Ask for a job; there must be one."""
        job = self.grab()
        assert job is not None, "expected a job, got NO_JOB"
        return job

    def sleep(self) -> None:
        """Send PRE_SLEEP; the worker sleeps on the server when this returns."""
        self.send(wire.PRE_SLEEP)
        self.settle()

    def wait_for_job(self, timeout_seconds: float = WAIT_SECONDS) -> Grabbed:
        """What a worker's loop does: grab, else sleep until a NOOP and grab again."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            job = self.grab()
            if job is not None:
                return job
            self.send(wire.PRE_SLEEP)
            self.expect(wire.NOOP, timeout_seconds=max(deadline - time.monotonic(), 0.001))

    def complete(self, handle: bytes, result: bytes = b"") -> None:
        self.send(wire.WORK_COMPLETE, handle, result)


class Grabbed(NamedTuple):
    """A job as GRAB_JOB_UNIQ gives it."""

    handle: bytes
    function: bytes
    unique: bytes
    payload: bytes
