"""Plain TCP connections, served straight from the loop's selector (see turns.py).

One wait for events is one turn: it takes what every ready connection has, ends, and writes each answered
connection once.

Each connection is read at most RECEIVE_BYTES a turn, so that no one keeps the others waiting. While it has
more than that, its answers wait: an answer to a peer that has sent all and gone makes the peer's kernel throw
away what it has not delivered yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cluster.server.peer import UNREAD_HIGH_WATER_BYTES, new_connection, set_options, take, tell_lost
from cluster.server.turns import EVENTS_PER_TURN, TurnSelector
from cluster.wire import Decoder

if TYPE_CHECKING:
    from cluster.node import Connection
    from cluster.server.server import Server

RECEIVE_BYTES: Final = 64 * 1024
# How many reads in a row answers wait for the rest of what a peer sends; a probe must not take it for dead.
WITHHELD_READS_MAX: Final = 128
ACCEPTS_PER_TURN: Final = 256
# Under load a turn looks again for what became ready while it worked.
GATHERS_PER_TURN: Final = 2
GATHERED_EVENTS_MIN: Final = 2
# How long a connection that was closed by us is read on, so that the last answer is not destroyed by a
# reset (the peer may still be sending).
LINGER_SECONDS: Final = 2.0
# The same while it has not taken all that it is owed, from the last byte that it took.
LINGER_UNSENT_SECONDS: Final = 60.0
# After running out of descriptors, how long nothing is accepted.
ACCEPT_PAUSE_SECONDS: Final = 0.5

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT


class PlainPeer:
    """One connection's socket; has the few methods of an asyncio transport that the server uses."""

    __slots__ = (
        "_ended",
        "_mask",
        "_port",
        "_send",
        "_sock",
        "_unread_bytes",
        "_unsent",
        "connection",
        "decoder",
        "full_reads",
        "linger_until",
        "receive",
        "withholds",
    )

    def __init__(
        self, port: PlainPort, sock: socket.socket, connection: Connection, decoder: Decoder
    ) -> None:
        self._port = port
        self._sock = sock
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self.receive = sock.recv
        self.connection: Connection | None = connection
        self.decoder = decoder
        self._mask = _IN
        self._unsent: deque[bytes | memoryview] = deque()
        self._unread_bytes = 0
        self.linger_until = 0.0
        self._ended = False  # the peer sends no more
        self.full_reads = 0  # in a row, and those that followed at once
        self.withholds = False  # answers wait until what it sends has been read

    def write(self, data: bytes) -> None:
        """Send now what the socket takes, keep the rest."""
        if not self._unsent and not self.withholds:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._deafen()
                return
            if sent == len(data):
                return
            self._unsent.append(memoryview(data)[sent:])
            self._unread_bytes = len(data) - sent
            self._watch(self._mask | _OUT)
        else:
            self._unsent.append(data)
            self._unread_bytes += len(data)
            self._watch(self._mask | _OUT)
        if self._unread_bytes > UNREAD_HIGH_WATER_BYTES and self._mask & _IN and self.connection is not None:
            # It does not read: do not let it ask for more.
            self._port.server.slow[self.connection] = None
            self._watch(self._mask & ~_IN)

    def has_more(self) -> None:
        """A read was full, so there is more to come; a short one after it may only have been quick."""
        self.full_reads += 1
        self.withholds = self.full_reads <= WITHHELD_READS_MAX

    def has_no_more(self) -> None:
        """The socket takes answers, and there is nothing to read."""
        self.full_reads = 0
        self.withholds = False

    def flush(self) -> None:
        """The socket takes more."""
        unsent = self._unsent
        try:
            while unsent:
                chunk = unsent[0]
                sent = self._send(chunk)
                self._unread_bytes -= sent
                if sent < len(chunk):
                    unsent[0] = memoryview(chunk)[sent:]
                    break
                unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._deafen()
            return
        mask = self._mask
        if self.linger_until:
            self.linger_until = time.monotonic() + LINGER_UNSENT_SECONDS
        if self._unread_bytes <= UNREAD_HIGH_WATER_BYTES // 2 and not mask & _IN and not self._ended:
            mask |= _IN
            if self.connection is not None:
                self._port.server.slow.pop(self.connection, None)
        if not unsent:
            mask &= ~_OUT
            if self.linger_until:
                self._finish()
        self._watch(mask)

    def _deafen(self) -> None:
        """It takes no more answers. What it had sent before is in the socket still, and is taken."""
        if self.linger_until or self._ended or self.connection is None:
            self._port.lost(self)
            return
        self._send = len  # from now on answers go nowhere
        self._unsent.clear()
        self._unread_bytes = 0
        self._port.server.slow.pop(self.connection, None)
        self._watch((self._mask | _IN) & ~_OUT)

    def ended(self) -> None:
        """The peer sends no more; what it has asked is answered, then the connection is closed."""
        connection = self.connection
        if connection is None or self._ended:
            if not self._unsent:
                self._port.lost(self)
                return
        elif not connection.closing:
            self._port.server.node.ended(connection)
        self.has_no_more()
        # The end of input would be reported again and again.
        self._ended = True
        self._watch(self._mask & ~_IN)

    def close(self) -> None:
        """Close after what is unsent has left."""
        if self.linger_until:
            return
        patience = LINGER_UNSENT_SECONDS if self._unsent else LINGER_SECONDS
        self.linger_until = time.monotonic() + patience
        self._port.lingering[self] = None
        self.withholds = False
        if not self._ended:
            self._watch(self._mask | _IN)  # what it still sends is read and dropped
        self._port.detach(self)
        if not self._unsent:
            self._finish()

    def _finish(self) -> None:
        """All is sent: say so, then wait for the peer to close."""
        if self._ended:
            self._port.lost(self)
            return
        self.linger_until = time.monotonic() + LINGER_SECONDS
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._port.lost(self)

    def abort(self) -> None:
        self._port.lost(self)

    def is_closing(self) -> bool:
        return self.linger_until > 0

    def get_write_buffer_size(self) -> int:
        return self._unread_bytes

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self._sock if name == "socket" else None

    def pause_reading(self) -> None:
        self._watch(self._mask & ~_IN)

    def _watch(self, mask: int) -> None:
        if mask != self._mask and self._sock.fileno() >= 0:
            self._mask = mask
            self._port.epoll.modify(self._sock.fileno(), mask)

    def fileno(self) -> int:
        return self._sock.fileno()

    def destroy(self) -> None:
        self._unsent.clear()
        self._sock.close()


class PlainPort:
    """The listening sockets and all their connections."""

    def __init__(
        self, server: Server, selector: TurnSelector, listeners: Sequence[socket.socket], backlog: int
    ) -> None:
        self.server = server
        self.epoll = selector.epoll
        self.lingering: dict[PlainPeer, None] = {}
        self.quiet = asyncio.Event()  # nothing lingers
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._peers: dict[int, PlainPeer] = {}
        self._loop = asyncio.get_running_loop()
        for descriptor, listener in self._listeners.items():
            listener.setblocking(False)
            listener.listen(backlog)
            self.epoll.register(descriptor, select.EPOLLIN)
        selector.on_ready = self._ready

    def close(self) -> None:
        """Accept no more."""
        for descriptor, listener in self._listeners.items():
            with contextlib.suppress(OSError):  # out of it while descriptors are short
                self.epoll.unregister(descriptor)
            listener.close()
        self._listeners.clear()

    def destroy(self) -> None:
        """Drop every connection."""
        self.close()
        for peer in list(self._peers.values()):
            self.lost(peer)

    # ---- events

    def _ready(self, events: list[tuple[int, int]]) -> None:
        """One turn for everything that is ready, and for what becomes ready meanwhile."""
        server = self.server
        server.begin()
        self._serve(events)
        for _ in range(GATHERS_PER_TURN):
            # One write then answers what would have been two.
            if len(events) < GATHERED_EVENTS_MIN:
                break
            events = self.epoll.poll(0, EVENTS_PER_TURN)
            self._serve(events)
        server.end()

    def _serve(self, events: list[tuple[int, int]]) -> None:
        server = self.server
        peers = self._peers
        for descriptor, mask in events:
            peer = peers.get(descriptor)
            if peer is None:
                listener = self._listeners.get(descriptor)
                if listener is not None:
                    self._accept(listener)
                continue
            if mask & _OUT:
                if peer.withholds and mask == _OUT:
                    peer.has_no_more()
                if not peer.withholds:
                    peer.flush()
            if mask & ~_OUT:
                try:
                    data = peer.receive(RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if peer.connection is not None:
                        tell_lost(server, peer.connection, error)
                    self.lost(peer)
                    continue
                if not data:
                    peer.ended()
                    continue
                connection = peer.connection
                if connection is not None and not connection.closing:
                    if len(data) == RECEIVE_BYTES or peer.withholds:
                        peer.has_more()
                    elif peer.full_reads:
                        peer.has_no_more()
                    take(server, connection, peer.decoder, data)

    def _accept(self, listener: socket.socket) -> None:
        server = self.server
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    server.log.error(
                        "cannot accept connections",
                        reason=error.strerror,
                        remedy="raise the limit on open files (ulimit -n) or lower --max-connections",
                    )
                    self.epoll.unregister(listener)
                    self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._accept_again, listener)
                    return
                continue  # that one was gone before we took it
            if not server.has_room():
                server.turned_away()
                sock.close()
                continue
            sock.setblocking(False)
            set_options(sock, server.settings)
            connection = new_connection(sock.fileno(), address)
            peer = PlainPeer(
                self, sock, connection, Decoder(packet_bytes_max=server.settings.max_payload_bytes)
            )
            connection.transport = peer
            self._peers[sock.fileno()] = peer
            self.epoll.register(sock.fileno(), _IN)
            server.node.connected(connection)
            server.beginnings.arrived(connection, peer.decoder, server.node.context.monotonic_seconds)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self.epoll.register(listener, select.EPOLLIN)

    # ---- the end of a connection

    def detach(self, peer: PlainPeer) -> None:
        """The node has no more to do with it."""
        connection, peer.connection = peer.connection, None
        if connection is not None:
            self.server.turn()
            self.server.left(connection)

    def lost(self, peer: PlainPeer) -> None:
        """The socket is of no more use."""
        descriptor = peer.fileno()
        if descriptor >= 0:
            self._peers.pop(descriptor, None)
            self.lingering.pop(peer, None)
            if not self.lingering:
                self.quiet.set()
            peer.destroy()  # which takes it out of the epoll too
        self.detach(peer)

    def drop_lingering(self, now_seconds: float) -> None:
        """Close what the peers did not close in time."""
        for peer in [peer for peer in self.lingering if peer.linger_until <= now_seconds]:
            self.lost(peer)
