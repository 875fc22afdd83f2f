"""Openings: calls at the peer port whose callers have not said yet who they are, bounded by host.

A call costs a stranger nothing, and the port takes a number of them only. So he holds no more than his share,
and for a few seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

OPENINGS_PER_HOST_MAX: Final = 32


class Openings:
    """How many there are, by host."""

    def __init__(self) -> None:
        self.by_host: dict[str, int] = {}

    def refusal(self, host: str) -> str:
        """Why one more from this host is not taken; empty: it is."""
        if self.by_host.get(host, 0) < OPENINGS_PER_HOST_MAX:
            return ""
        return f"{OPENINGS_PER_HOST_MAX} calls from {host} have not said yet who they are"

    @contextlib.contextmanager
    def one(self, host: str) -> Iterator[None]:
        """As long as it lasts."""
        self.by_host[host] = self.by_host.get(host, 0) + 1
        try:
            yield
        finally:
            self.by_host[host] -= 1
            if not self.by_host[host]:
                del self.by_host[host]
