"""TLS connections: asyncio's transports do the cryptography. Plain ones too, where the loop is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, cast

from cluster.server.errors import StartError
from cluster.server.files import require_readable
from cluster.server.peer import UNREAD_HIGH_WATER_BYTES, new_connection, set_options, take, tell_lost
from cluster.wire import Decoder

if TYPE_CHECKING:
    from cluster.node import Connection
    from cluster.server.server import Server
    from cluster.server.settings import Settings


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What the settings say of TLS; None for none. Raises StartError."""
    if settings.tls_certificate is None:
        return None
    names = ("tls_certificate", "tls_key", "tls_ca")
    require_readable(**{name: getattr(settings, name) for name in names})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"TLS cannot be set up ({error}): tls_certificate {settings.tls_certificate} and tls_key "
            f"{settings.tls_key} have to be PEM and belong together, tls_ca has to be PEM"
        ) from None
    return context


class TlsPeer(asyncio.Protocol):
    """Bytes between one connection of asyncio's and the node."""

    __slots__ = ("_connection", "_decoder", "_plain", "_server", "_transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder(packet_bytes_max=server.settings.max_payload_bytes)
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._plain = False  # no TLS: the loop is not ours

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # not every loop's is a subclass of it
        server = self._server
        if not server.has_room():
            server.turned_away()
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        set_options(sock, server.settings)
        connection = new_connection(sock.fileno(), transport.get_extra_info("peername"))
        connection.transport = transport
        transport.set_write_buffer_limits(high=UNREAD_HIGH_WATER_BYTES)
        self._connection = connection
        self._transport = transport
        self._plain = transport.get_extra_info("ssl_object") is None
        server.turn()
        server.node.connected(connection)
        server.beginnings.arrived(connection, self._decoder, server.node.context.monotonic_seconds)

    def data_received(self, data: bytes) -> None:
        connection = self._connection
        if connection is not None and not connection.closing:
            self._server.turn()
            take(self._server, connection, self._decoder, data)

    def eof_received(self) -> bool:
        """What it has asked is answered at once: once TLS is ended, asyncio sends nothing more."""
        connection = self._connection
        if connection is not None and not connection.closing:
            self._server.turn()
            self._server.node.ended(connection)
            self._server.end()
        return self._plain and connection is not None

    def connection_lost(self, exc: Exception | None) -> None:
        connection = self._connection
        if connection is not None:
            tell_lost(self._server, connection, exc)
            self._connection = None
            self._server.turn()
            self._server.left(connection)

    def pause_writing(self) -> None:
        """The peer does not read: do not let it ask for more."""
        assert self._transport is not None
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()
        if self._connection is not None:
            self._server.slow[self._connection] = None

    def resume_writing(self) -> None:
        assert self._transport is not None
        if self._connection is not None:
            self._server.slow.pop(self._connection, None)
        if not self._transport.is_closing():
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()
