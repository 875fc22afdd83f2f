"""What is due when: a heap whose cancelled items are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
DEAD_BEFORE_SWEEP: Final = 1024


class Timers(Generic[Item]):
    """Items by the time at which they are due.

    `alive(item, due)` tells whether an entry still counts; so a cancel costs nothing and memory is
    bounded: the dead are swept when they are more than half.
    """

    def __init__(self, alive: Callable[[Item, float], bool]) -> None:
        self._alive = alive
        self.heap: list[tuple[float, int, Item]] = []
        self._sequence = 0
        self._sweep_at = DEAD_BEFORE_SWEEP

    def add(self, due: float, item: Item) -> None:
        self._sequence += 1
        heappush(self.heap, (due, self._sequence, item))
        if len(self.heap) >= self._sweep_at:
            self.heap = [entry for entry in self.heap if self._alive(entry[2], entry[0])]
            heapify(self.heap)
            self._sweep_at = max(DEAD_BEFORE_SWEEP, 2 * len(self.heap))

    def next_due(self) -> float | None:
        """When the next living item is due."""
        heap = self.heap
        while heap and not self._alive(heap[0][2], heap[0][0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float, count_max: int) -> Iterator[Item]:
        """Remove and give out at most `count_max` living items that are due, earliest first.

        Each is looked at when it is its turn: what an earlier one has cancelled is not given out.
        """
        count = 0
        while count < count_max and self.heap and self.heap[0][0] <= now:
            when, _, item = heappop(self.heap)
            if self._alive(item, when):
                count += 1
                yield item
