"""How long a job that came back waits before it runs again.

A job that kills each of its workers, or never gets done within its time limit, must not keep others from
running: from its second return on it waits, and then stands behind them.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

PAUSE_SECONDS: Final = 1.0  # the first one; each is twice as long as the one before
PAUSE_SECONDS_MAX: Final = 300.0
ASKED_PAUSE_SECONDS_MAX: Final = 86_400.0  # a worker may ask for a longer one (GIVE_BACK), but not than this
_DOUBLINGS_MAX: Final = 20
_JITTER: Final = 0.25  # a pause is shorter by at most this part, so that jobs do not come back all at once


def pause_seconds(handle: bytes, pauses: int, seconds_max: float) -> float:
    """The length of a job's pause, when it has had `pauses` before.

    The jitter is made of the handle and the count: the same on every node.
    """
    whole: float = min(seconds_max, PAUSE_SECONDS * 2.0 ** min(pauses, _DOUBLINGS_MAX))
    return whole * (1 - _JITTER * (crc32(b"%b %d" % (handle, pauses)) & 0xFFFF) / 0x10000)
