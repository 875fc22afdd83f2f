"""LineLimit: how many log lines a second strangers may cause."""

from __future__ import annotations

from typing import Final

LINES_PER_SECOND_MAX: Final = 10


class LineLimit:
    """Of what happens more often some is logged, and the rest counted."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self.left_out = 0

    def allows(self, monotonic_seconds: float) -> bool:
        """Whether there is a line for it."""
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
