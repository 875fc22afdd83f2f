"""The log's lines about single jobs, of which there may be a hundred thousand a second: some are written, all
are counted."""

from __future__ import annotations

from typing import Any, Final

from cluster.node.events import SHORT_LIMIT, Event

LINES_PER_SECOND_MAX: Final = 10
WARNED_MAX: Final = 1024  # pairs of worker and function that are remembered as warned of


class JobLog:
    """Give it the events of each turn, and the monotonic time."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._second = 0
        self._lines = 0
        self.lines_left_out = 0  # not told of yet
        self._warned: dict[tuple[str, bytes], None] = {}

    def write(self, events: list[Event], left_out: int, monotonic_seconds: float) -> None:
        second = int(monotonic_seconds)
        if second != self._second:
            self._second = second
            self._lines = 0
            self.close()
        self.lines_left_out += left_out
        for event in events:
            if event.what == SHORT_LIMIT and not self._first_warning(event):
                continue
            if self._lines >= LINES_PER_SECOND_MAX:
                self.lines_left_out += 1
                continue
            self._lines += 1
            fields = {"worker": event.worker} if event.worker else {}
            if event.handle:
                fields["handle"] = _text(event.handle)
            self._log.warning(event.what, function=_text(event.function), reason=event.reason, **fields)

    def close(self) -> None:
        """Say how many lines were left out."""
        if self.lines_left_out:
            self._log.warning(
                "more jobs failed or were over their time limit than are logged; /metrics counts all",
                not_logged=self.lines_left_out,
            )
            self.lines_left_out = 0

    def _first_warning(self, event: Event) -> bool:
        """Once for each worker, known by its host and id, and function: it may connect again and again."""
        host, _, client_id = event.worker.partition(" ")
        pair = (f"{host.rpartition(':')[0] or host} {client_id}", event.function)
        if pair in self._warned:
            return False
        if len(self._warned) >= WARNED_MAX:
            del self._warned[next(iter(self._warned))]
        self._warned[pair] = None
        return True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
