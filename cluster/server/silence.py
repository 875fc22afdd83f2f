"""Peers whose kernel acknowledges nothing any more.

While a connection is idle the kernel probes it (keepalive). While bytes are on the way it does not, and takes
a quarter of an hour to give up; TCP_USER_TIMEOUT would be quicker, but counts a closed window as death,
however faithfully the peer's kernel answers. So the kernel is asked, rarely and a few connections at a time:
who has bytes or probes outstanding, and how long nothing has been heard of it. Jobs and turns pay nothing.
"""

from __future__ import annotations

import contextlib
import socket
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.node import Connection
    from cluster.server.server import Server

# How many connections are looked at in a second; beside these, all that are suspect.
LOOKS_MAX: Final = 1000
# Of struct tcp_info: probes without an answer, segments without one, and the milliseconds since data and
# since an acknowledgement came.
_TCP_INFO: Final = Struct("=3xB20xI24xII")


class SilenceWatch:
    """Finds connections that have outstanding bytes and hear nothing for `user_timeout_seconds`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._round: list[Connection] = []  # not looked at yet
        self._since: dict[Connection, float] = {}  # who has something outstanding: since when it is silent

    def look(self, now_seconds: float) -> None:
        """Once a second."""
        suspects = list(self._since)
        if not self._round:
            self._round = list(self._server.node.context.connections)
        looked_at, self._round = self._round[:LOOKS_MAX], self._round[LOOKS_MAX:]
        for connection in dict.fromkeys(suspects + looked_at):
            self._look_at(connection, now_seconds)

    def _look_at(self, connection: Connection, now_seconds: float) -> None:
        transport = connection.transport
        heard_seconds = None if transport is None else _heard_seconds(transport.get_extra_info("socket"))
        if heard_seconds is None:
            self._since.pop(connection, None)
            return
        # What was sent just now after a long rest has not been silent for all that time.
        since = max(self._since.get(connection, now_seconds), now_seconds - heard_seconds)
        self._since[connection] = since
        if now_seconds - since >= self._server.settings.user_timeout_seconds:
            del self._since[connection]
            self._server.stranger_log.peer(
                "disconnected a peer that acknowledges nothing",
                connection.address,
                now_seconds,
                seconds=round(now_seconds - since, 1),
            )
            transport.abort()


def _heard_seconds(sock: socket.socket | None) -> float | None:
    """How long ago the peer's kernel was heard of; None when nothing is outstanding."""
    info = b""
    with contextlib.suppress(OSError, AttributeError):  # no TCP, or closed meanwhile
        assert sock is not None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return None
    probes, unacknowledged, data_ms, acknowledged_ms = _TCP_INFO.unpack(info)
    if not probes and not unacknowledged:
        return None
    return float(min(data_ms, acknowledged_ms)) / 1000
