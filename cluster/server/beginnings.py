"""What peers have begun and not finished: connections without a first byte, packets without their end.

Each packet has a limit of its own, but many begun and left would hold many times that. So all of them
together have one (`max_unfinished_bytes`): beyond it the packet that was begun longest ago is given up, which
leaves room for those that come. One of which nothing more comes is given up after `packet_seconds`. Who has
finished what it sent may then be silent for as long as it likes: that is what a waiting worker does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.wire import Decoder

if TYPE_CHECKING:
    from cluster.node import Connection
    from cluster.server.server import Server

# Around the largest packet: its header, and the read that brought its end.
SPARE_BYTES: Final = 1024 * 1024


class _Begun:
    """One unfinished packet."""

    __slots__ = ("decoder", "held_bytes", "moved_at", "seen_bytes")

    def __init__(self, decoder: Decoder, moved_at: float) -> None:
        self.decoder = decoder
        self.held_bytes = 0
        self.seen_bytes = 0  # at the last look
        self.moved_at = moved_at  # when it last had more than at the look before (monotonic)


class Beginnings:
    """All unfinished packets of a server, and the connections that have sent nothing yet."""

    def __init__(self, server: Server) -> None:
        settings = server.settings
        self.bytes = 0
        self._server = server
        self._bytes_max = max(settings.max_unfinished_bytes, settings.max_payload_bytes + SPARE_BYTES)
        self._packet_seconds = settings.packet_seconds
        self._first_packet_seconds = settings.first_packet_seconds
        self._packets: dict[Connection, _Begun] = {}  # the one begun longest ago first
        self._newcomers: dict[Connection, tuple[Decoder, float]] = {}  # and when they came, in that order
        self._given_up: dict[str, list[str]] = {}  # reason: peers, not told yet

    def arrived(self, connection: Connection, decoder: Decoder, now_seconds: float) -> None:
        """A connection was accepted."""
        if self._first_packet_seconds:
            self._newcomers[connection] = (decoder, now_seconds)

    def changed(self, connection: Connection, decoder: Decoder, now_seconds: float, *, anew: bool) -> None:
        """An unfinished packet has grown or was finished; `anew`: what is unfinished now is another one."""
        held_bytes = decoder.held_bytes
        begun = self._packets.get(connection)
        if begun is not None and (anew or not held_bytes):
            del self._packets[connection]
            self.bytes -= begun.held_bytes
            begun = None
        if not held_bytes:
            return
        if begun is None:
            self._packets[connection] = begun = _Begun(decoder, now_seconds)
        self.bytes += held_bytes - begun.held_bytes
        begun.held_bytes = held_bytes
        while self.bytes > self._bytes_max:
            self._give_up(
                next(iter(self._packets)),
                f"the unfinished packets of all connections are more than {self._bytes_max} bytes, and this "
                "one was begun longest ago",
            )

    def left(self, connection: Connection) -> None:
        """A connection is gone."""
        self._newcomers.pop(connection, None)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        begun = self._packets.pop(connection, None)
        if begun is not None:
            self.bytes -= begun.held_bytes
            begun.decoder.drop()

    def _give_up(self, connection: Connection, reason: str) -> None:
        self._drop(connection)
        self._given_up.setdefault(reason, []).append(connection.address)
        if not connection.closing:
            self._server.node.protocol_error(connection, f"The packet was given up: {reason}")

    def look(self, now_seconds: float) -> None:
        """Once a second: whose time is over?"""
        overdue = self._overdue(now_seconds)
        newcomers = self._silent_newcomers(now_seconds)
        if overdue or newcomers:
            self._server.turn()
            for connection in overdue:
                self._give_up(connection, f"nothing more of it came for {self._packet_seconds} s")
            for connection in newcomers:
                self._server.node.context.close(connection)
        for reason, peers in self._given_up.items():
            self._server.log.warning(
                "closed connections with unfinished packets", reason=reason, count=len(peers), peer=peers[0]
            )
        self._given_up.clear()
        if newcomers:
            self._server.log.info(
                "closed connections that sent nothing",
                seconds=self._first_packet_seconds,
                count=len(newcomers),
                peer=newcomers[0].address,
            )

    def _overdue(self, now_seconds: float) -> list[Connection]:
        overdue = []
        for connection, begun in self._packets.items():
            if begun.held_bytes != begun.seen_bytes or connection in self._server.slow:
                # A slow reader is not read from, so that is not its fault.
                begun.seen_bytes = begun.held_bytes
                begun.moved_at = now_seconds
            elif now_seconds - begun.moved_at >= self._packet_seconds:
                overdue.append(connection)
        return overdue

    def _silent_newcomers(self, now_seconds: float) -> list[Connection]:
        silent = []
        for connection, (decoder, arrived_at) in list(self._newcomers.items()):
            if now_seconds - arrived_at < self._first_packet_seconds:
                break
            del self._newcomers[connection]
            if not decoder.begun:
                silent.append(connection)
        return silent
