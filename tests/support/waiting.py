"""Bounded waits for what no single answer announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

Value = TypeVar("Value")

# Generous: a test that passes never waits this long, and a busy machine is no failure.
WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.01


def eventually(
    observe: Callable[[], Value],
    expected: object = None,
    *,
    timeout_seconds: float = WAIT_SECONDS,
    poll_seconds: float = _POLL_SECONDS,
) -> Value:
    """Observe again and again until it equals `expected` (or is true, when nothing is expected).

    For state that changes when the server notices something on another connection.
    """
    deadline = time.monotonic() + timeout_seconds
    pause = Event()
    while True:
        seen = observe()
        if seen == expected if expected is not None else seen:
            return seen
        if time.monotonic() > deadline:
            wanted = "something true" if expected is None else repr(expected)
            raise AssertionError(f"waited {timeout_seconds} s for {wanted}; last seen: {seen!r}")
        pause.wait(poll_seconds)
