"""StrangerLog: the log's lines about people at the Gearman port, who may not be its friends.

Whoever can connect can change what a node holds (cancel, maxqueue, create, drop), and try to stop it. So who
did it is written down, with the address; but not so often that he could fill the disk with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cluster.node.events import Command

LINES_PER_SECOND_MAX: Final = 10


class _Limit:
    """How many lines a second there may be of one kind."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self.left_out = 0

    def allows(self, monotonic_seconds: float) -> bool:
        second = int(monotonic_seconds)
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND_MAX:
            self.left_out += 1
            return False
        self._lines += 1
        return True

    def not_logged(self) -> dict[str, int]:
        """A field of the next line: how many are missing before it."""
        count, self.left_out = self.left_out, 0
        return {"not_logged_before": count} if count else {}


class StrangerLog:
    """Each kind has its own limit: a flood of one hides no other."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._changes = _Limit()
        self._refused = _Limit()
        self._tls = _Limit()

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


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
