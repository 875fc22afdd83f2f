"""Deadlines of very many things, cheaply: one timer for all, buckets instead of a heap.

A job that ends in time, as almost all do, costs one insertion into a set and one removal. The price is
precision: a deadline is noticed up to `BUCKET_SECONDS` late.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

BUCKET_SECONDS: Final = 0.02

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Calls `expired(item)` for each item whose time is over."""

    __slots__ = ("_armed", "_buckets", "_expired", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Item], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._buckets: dict[int, set[Item]] = {}
        self._armed: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: float, item: Item) -> int:
        """Watch an item until `deadline` (the loop's clock); return the ticket for `discard`."""
        ticket = int(deadline / BUCKET_SECONDS) + 1
        bucket = self._buckets.get(ticket)
        if bucket is None:
            self._buckets[ticket] = {item}
            if self._armed is None or ticket < self._armed:
                self._arm(ticket)
        else:
            bucket.add(item)
        return ticket

    def discard(self, ticket: int, item: Item) -> None:
        """Forget an item."""
        bucket = self._buckets.get(ticket)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._buckets[ticket]

    def close(self) -> None:
        """Forget all."""
        self._buckets.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, ticket: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = ticket
        self._timer = self._loop.call_at(ticket * BUCKET_SECONDS, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._armed = None
        now = self._loop.time()
        due = sorted(ticket for ticket in self._buckets if ticket * BUCKET_SECONDS <= now)
        for ticket in due:
            for item in self._buckets.pop(ticket, ()):
                self._expired(item)
        if self._buckets:
            first = min(self._buckets)
            if self._armed is None or first < self._armed:
                self._arm(first)
