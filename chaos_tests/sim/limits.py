"""How long a seed may take: one that never ends is a failure like any other, and has to be told."""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SEED_SECONDS_MAX: Final = 120.0  # a hundred times what the slowest ones take
AGAIN_SECONDS: Final = 1.0  # whoever swallowed it is told once more
DEAF_SECONDS: Final = 30.0  # beyond the limit: nothing in Python runs any more


class Hangs(SystemExit):
    """The time is over. Of this kind, because an asyncio task lets only such pass."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises Hangs in whatever runs then, in the main thread; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def alarm(_: int, frame: FrameType | None) -> None:
        if not over:
            raise Hangs(f"for {seconds:g} s, at last in {_places(frame)}")

    before = signal.signal(signal.SIGALRM, alarm)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited_process(seconds: float) -> Iterator[None]:
    """For a process that nobody else needs: where even Hangs is not heard, it dies, and says where it was."""
    faulthandler.dump_traceback_later(seconds + DEAF_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _places(frame: FrameType | None) -> str:
    """The innermost functions."""
    found: list[str] = []
    while frame is not None and len(found) < 3:
        code = frame.f_code
        found.append(f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(found)
