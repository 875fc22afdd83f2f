"""What plain and TLS connections have in common."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from cluster.node import Connection

if TYPE_CHECKING:
    from cluster.server.server import Server
    from cluster.server.settings import Settings
    from cluster.wire import Decoder

# The longest pause between two probes of a closed window, or two repeats of what is not acknowledged: without
# it they come two minutes apart in the end, and so late is a vanished peer found. From Linux 6.15 on.
PROBE_PAUSE_SECONDS_MAX: Final = 5
_TCP_RTO_MAX_MS: Final = 44
# Above this a peer that does not read its answers is not read from either.
UNREAD_HIGH_WATER_BYTES: Final = 1024 * 1024


def new_connection(number: int, peername: object) -> Connection:
    """The node's side of an accepted socket."""
    address, local = address_of(peername)
    return Connection(number, address, local=local)


def take(server: Server, connection: Connection, decoder: Decoder, data: bytes) -> None:
    """Give the node what a peer sent."""
    begun = decoder.held_bytes
    server.received_bytes += len(data)
    try:
        packets = decoder.feed(data)
    except MemoryError:
        server.out_of_memory(connection)
        return
    try:
        server.node.receive(connection, packets)
    except MemoryError:
        server.out_of_memory(None)
    except Exception:
        # A defect of ours: the others must not suffer for it.
        now_seconds = server.node.context.monotonic_seconds
        server.stranger_log.peer("failed on a packet", connection.address, now_seconds, level="exception")
        server.node.context.close(connection)
    if decoder.error is not None:
        error = str(decoder.error)
        now_seconds = server.node.context.monotonic_seconds
        server.stranger_log.peer(
            "not a Gearman peer", connection.address, now_seconds, level="info", error=error
        )
        server.node.protocol_error(connection, error)
    if begun or decoder.held_bytes:
        now_seconds = server.node.context.monotonic_seconds
        server.beginnings.changed(connection, decoder, now_seconds, anew=bool(packets))


def address_of(peername: object) -> tuple[str, bool]:
    """The peer's address as text, and whether it is of this machine."""
    if isinstance(peername, tuple) and peername:
        host = str(peername[0])
        with contextlib.suppress(ValueError):
            parsed = ip_address(host.split("%")[0])
            mapped = getattr(parsed, "ipv4_mapped", None)
            return str(mapped or host), (mapped or parsed).is_loopback
        return host, False
    return "local", True


def set_options(sock: socket.socket, settings: Settings) -> None:
    """Find peers that vanished: by the kernel's probes when idle, otherwise see silence.py.

    Not by TCP_USER_TIMEOUT: with it Linux ends a connection whose window stays closed although each of its
    probes is answered, which is a peer that is slow and not dead.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, settings.keepalive_idle_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, settings.keepalive_interval_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, settings.keepalive_count)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, PROBE_PAUSE_SECONDS_MAX * 1000)


def tell_lost(server: Server, connection: Connection, error: Exception | None) -> None:
    """Say that the kernel gave a peer up; one that closed or reset its connection is no news."""
    if isinstance(error, OSError) and error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        server.stranger_log.peer("lost a peer that answers no probes", connection.address, time.monotonic())
