"""Many seeds, in several processes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from multiprocessing import get_context
from typing import Final

from chaos_tests.sim.shrink import Failure, attempt

SEEDS_AT_A_TIME: Final = 25
FAILURES_MAX: Final = 5


@dataclass
class Found:
    """What a hunt has come to."""

    seeds: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def seeds_per_second(self) -> float:
        return self.seeds / self.seconds if self.seconds else 0.0


def play_all(world: str, seeds: Iterable[int], steps: int) -> list[Failure]:
    """What fails of these seeds."""
    with few_collections():
        return list(filter(None, (attempt(world, seed, steps) for seed in seeds)))


@contextmanager
def few_collections() -> Iterator[None]:
    """A run leaves cycles behind: to collect them once is a fifth cheaper than all the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def hunt(world: str, seeds: Iterable[int], *, steps: int, jobs: int, seconds: float | None = None) -> Found:
    """Play seeds until there are no more, or time is up, or enough have failed."""
    started = time.monotonic()
    found = Found()
    numbers = iter(seeds)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[list[Failure]], int] = {}

        def submit() -> None:
            chunk = list(islice(numbers, SEEDS_AT_A_TIME))
            if chunk:
                running[pool.submit(play_all, world, chunk, steps)] = len(chunk)

        for _ in range(2 * jobs):
            submit()
        while running:
            done = next(as_completed(running))
            found.seeds += running.pop(done)
            found.failures += done.result()
            over = seconds is not None and time.monotonic() - started >= seconds
            if len(found.failures) < FAILURES_MAX and not over:
                submit()
    found.seconds = time.monotonic() - started
    return found


def fresh_seeds() -> tuple[int, Iterator[int]]:
    """The first one, from the clock; and all from there."""
    first = int(time.time())
    return first, count(first)
