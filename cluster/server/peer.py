"""One TCP connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, cast

from cluster.node import Connection
from cluster.wire import Decoder

if TYPE_CHECKING:
    from cluster.server.server import Server
    from cluster.server.settings import Settings

# Above this a peer that does not read its answers is not read from either.
WRITE_HIGH_WATER_BYTES: Final = 1024 * 1024


class Peer(asyncio.Protocol):
    """Bytes between one connection and the node; nothing is decided here."""

    __slots__ = ("_decoder", "_server", "connection", "transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder(packet_bytes_max=server.settings.max_payload_bytes)
        self.connection: Connection | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        server = self._server
        if not server.has_room():
            server.turned_away()
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            set_options(sock, server.settings)
        address, local = _address(transport.get_extra_info("peername"))
        connection = Connection(sock.fileno() if sock is not None else 0, address, local=local)
        connection.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.connection = connection
        self.transport = transport
        server.turn()
        server.node.connected(connection)

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        if connection is None or connection.closing:
            return
        server = self._server
        server.turn()
        decoder = self._decoder
        packets = decoder.feed(data)
        try:
            server.node.receive(connection, packets)
        except Exception:
            # A defect of ours: the others must not suffer for it.
            server.log.exception("failed on a packet", peer=connection.address)
            server.node.context.close(connection)
        if decoder.error is not None:
            server.log.info("no Gearman", peer=connection.address, error=str(decoder.error))
            server.node.protocol_error(connection, str(decoder.error))

    def connection_lost(self, exc: Exception | None) -> None:
        connection = self.connection
        if connection is not None:
            self.connection = None
            server = self._server
            server.turn()
            server.node.disconnected(connection)
            connection.transport = None
            server.slow.pop(connection, None)
            server.left()

    def pause_writing(self) -> None:
        """The peer does not read: do not let it ask for more."""
        assert self.transport is not None
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()
        assert self.connection is not None
        self._server.slow[self.connection] = None

    def resume_writing(self) -> None:
        assert self.transport is not None
        if self.connection is not None:
            self._server.slow.pop(self.connection, None)
        if not self.transport.is_closing():
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()


def _address(peername: object) -> tuple[str, bool]:
    """The peer's address as text, and whether it is of this machine."""
    if isinstance(peername, tuple) and peername:
        host = str(peername[0])
        with contextlib.suppress(ValueError):
            parsed = ip_address(host.split("%")[0])
            mapped = getattr(parsed, "ipv4_mapped", None)
            return host, (mapped or parsed).is_loopback
        return host, False
    return "local", True


def set_options(sock: socket.socket, settings: Settings) -> None:
    """Find peers that vanished: by probes when idle, by unacknowledged bytes when not."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, settings.keepalive_idle_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, settings.keepalive_interval_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, settings.keepalive_count)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.user_timeout_seconds * 1000)
