"""StrangerLog: the log's lines about people at the Gearman port, who may not be its friends.

Whoever can connect can change what a node holds (cancel, maxqueue, create, drop), and try to stop it. So who
did it is written down, with the address; but not so often that he could fill the disk with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from cluster.node.events import Command
from cluster.server.line_limit import LineLimit


class StrangerLog:
    """Each kind has its own limit: a flood of one hides no other."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._changes = LineLimit()
        self._refused = LineLimit()
        self._tls = LineLimit()
        self._peers: defaultdict[str, LineLimit] = defaultdict(LineLimit)

    def commands(self, commands: Sequence[Command], left_out: int, monotonic_seconds: float) -> None:
        """What text commands have done; `left_out`: how many more there were."""
        self._changes.left_out += left_out
        for command in commands:
            limit = self._refused if command.refused else self._changes
            if not limit.allows(monotonic_seconds):
                continue
            fields: dict[str, Any] = {"command": _text(command.line), "address": command.address}
            if command.client_id != b"-":
                fields["client_id"] = _text(command.client_id)
            if command.refused:
                self._log.warning(
                    "refused a text command", reason=_text(command.refused), **fields, **limit.not_logged()
                )
            else:
                self._log.info("text command", **fields, **limit.not_logged())

    def tls_refused(self, address: str, reason: str, monotonic_seconds: float) -> None:
        if self._tls.allows(monotonic_seconds):
            self._log.warning("no TLS with a peer", address=address, reason=reason, **self._tls.not_logged())

    def peer(
        self,
        event: str,
        address: str,
        monotonic_seconds: float,
        *,
        level: Literal["info", "warning", "error", "exception"] = "warning",
        **fields: object,
    ) -> None:
        """What one connection has brought about, and many can as well; the kind is the event."""
        limit = self._peers[event]
        if limit.allows(monotonic_seconds):
            getattr(self._log, level)(event, peer=address, **fields, **limit.not_logged())


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
