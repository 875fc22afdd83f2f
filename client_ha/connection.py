"""One TCP connection to one server: packets in, bytes out, and the watch that notices a silent peer.

Writes are gathered and leave once per turn of the event loop. Death is noticed by a broken connection, or by
silence: when something is outstanding and nothing was heard for `silence_seconds`, an ECHO_REQ goes out; when
that is not answered within `answer_seconds`, the connection is given up.
"""

import asyncio
import contextlib
import socket
from typing import Final, Protocol, cast

from client_ha.addresses import Server
from client_ha.timing import Timing
from cluster.wire import Decoder, request
from cluster.wire.packets import ECHO_REQ

_PROBE: Final = request(ECHO_REQ, b"gearfleet")


class ConnectionOwner(Protocol):
    """What a connection tells, and asks, whoever uses it."""

    def received(self, connection: "Connection", packets: list[tuple[int, bytes]]) -> None: ...

    def outstanding(self, connection: "Connection") -> bool:
        """Is an answer awaited? Then silence is suspicious."""

    def lost(self, connection: "Connection", reason: str) -> None: ...


class Connection(asyncio.Protocol):
    """Lives from connect to loss; a Link makes the next one."""

    __slots__ = (
        "_decoder",
        "_heard_at",
        "_loop",
        "_out",
        "_owner",
        "_probed_at",
        "_reason",
        "_timing",
        "_transport",
        "_unsent_bytes",
        "_watch",
        "_watch_due",
        "closed",
        "closing",
        "server",
        "silent",
        "state",
    )

    def __init__(
        self,
        server: Server,
        owner: ConnectionOwner,
        timing: Timing,
        loop: asyncio.AbstractEventLoop,
        state: object,
    ) -> None:
        self.server = server
        self.state = state  # whatever its owner keeps per connection
        self.closed = False
        self.closing = False  # this side has closed it
        self.silent = False  # given up for its silence
        self._owner = owner
        self._timing = timing
        self._loop = loop
        self._decoder = Decoder(from_server=True)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._reason = ""
        self._heard_at = loop.time()
        self._probed_at: float | None = None
        self._unsent_bytes = 0
        self._watch: asyncio.TimerHandle | None = None
        self._watch_due = 0.0

    def write(self, packet: bytes) -> None:
        """Send with whatever else is written in this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packet)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def probe(self) -> None:
        """Ask for an answer; without one in time the connection is given up."""
        self._probed_at = self._loop.time()
        self.write(_PROBE)

    def close(self, reason: str) -> None:
        """Send what is gathered, then close; `lost` follows."""
        self.closing = True
        self._reason = self._reason or reason
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; `lost` follows."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def fileno(self) -> int:
        """The socket's number, -1 when there is none."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return -1 if sock is None else cast(int, sock.fileno())

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # the probes find a dead peer without these, only later
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._heard_at = self._loop.time()
        self._arm()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._probed_at = None
        packets = self._decoder.feed(data)
        if packets:
            self._owner.received(self, packets)
        if self._decoder.error is not None:
            self.abort(f"it does not speak Gearman: {self._decoder.error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._out.clear()
        self._owner.lost(self, self._reason or (str(exc) if exc else "the server closed the connection"))

    # The watch.

    def _arm(self) -> None:
        timing = self._timing
        pause = min(timing.silence_seconds, timing.answer_seconds, timing.idle_probe_seconds) / 2
        self._watch_due = self._loop.time() + pause
        self._watch = self._loop.call_at(self._watch_due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        timing = self._timing
        # When this process itself was held up, bytes may lie unread: the silence proves nothing.
        held_up = now - self._watch_due > timing.silence_seconds / 2
        self._arm()
        transport = self._transport
        assert transport is not None
        unsent_bytes = transport.get_write_buffer_size()
        if held_up or unsent_bytes < self._unsent_bytes:
            # A peer that takes bytes is alive, however long a large payload takes.
            self._heard_at = now
            if self._probed_at is not None:
                self._probed_at = now
        self._unsent_bytes = unsent_bytes
        if self._probed_at is not None:
            silent_seconds = now - self._probed_at
            if silent_seconds >= timing.answer_seconds:
                self.silent = True
                self.abort(f"silent: it did not answer a probe within {timing.answer_seconds:.3g} s")
            return
        limit = timing.silence_seconds if self._owner.outstanding(self) else timing.idle_probe_seconds
        if now - self._heard_at >= limit:
            self.probe()
