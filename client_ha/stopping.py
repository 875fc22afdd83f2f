"""What a worker makes of the signals that ask it to stop: the first drains, a later one ends it at once."""

from typing import Final

# One wish often arrives twice: `timeout` signals its command and then the group, and so do shells and inits
# that pass on what the whole group has got. What comes so soon after the first is the same wish.
SAME_WISH_SECONDS: Final = 1.0


class Patience:
    """Tells the second wish from the first one's echo. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self._first_at: float | None = None

    def signalled(self, now: float) -> bool:
        """A signal has come; return whether whoever sends them has lost patience."""
        if self._first_at is None:
            self._first_at = now
        return now - self._first_at >= SAME_WISH_SECONDS
