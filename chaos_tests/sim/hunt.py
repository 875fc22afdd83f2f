"""Many seeds, of one world or of several, in several processes.

The worlds share the time of the processes, not the seeds: whichever has had the least of it gets the next
process that is free. So a world whose seeds are slow is hunted for as long as one whose seeds are fast.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice, tee
from multiprocessing import get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Final, NamedTuple

from chaos_tests.sim.limits import SEED_SECONDS_MAX, limited_process
from chaos_tests.sim.shrink import DIES, Failure, attempt

# Played in one go by one process: a few seconds' worth, so that a failure is soon told.
SEEDS_AT_A_TIME: Final = {"turns": 25, "shell": 4}
FAILURES_MAX: Final = 5
PROGRESS_SECONDS: Final = 60.0


@dataclass
class Share:
    """What was played of one world."""

    seeds: int = 0
    seconds: float = 0.0  # of all processes together

    @property
    def seeds_per_second(self) -> float:
        """Of one process."""
        return self.seeds / self.seconds if self.seconds else 0.0


@dataclass
class Found:
    """What a hunt has come to."""

    shares: dict[str, Share]
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        return sum(share.seeds for share in self.shares.values())

    def __str__(self) -> str:
        worlds = ", ".join(
            f"{share.seeds} seeds of {world} ({share.seeds_per_second:.1f} a second and process)"
            for world, share in self.shares.items()
        )
        return f"{self.seconds:.0f} s: {worlds}: {len(self.failures) or 'none'} failed"


class Played(NamedTuple):
    """Some seeds of one world."""

    failures: list[Failure]
    seconds: float


def play_all(world: str, seeds: Iterable[int], steps: int) -> list[Failure]:
    """What fails of these seeds."""
    with few_collections():
        return list(filter(None, (attempt(world, seed, steps) for seed in seeds)))


# In a process of the pool: what each chunk is at, for whoever finds that the process has died.
_playing: SynchronizedArray[int]
_NOTHING: Final = -1


def _begin(playing: SynchronizedArray[int]) -> None:
    global _playing
    _playing = playing


def _play(world: str, seeds: Sequence[int], steps: int, place: int, seconds_max: float) -> Played:
    began = time.monotonic()
    failures = []
    with few_collections():
        for seed in seeds:
            _playing[place] = seed
            with limited_process(seconds_max):
                failure = attempt(world, seed, steps, seconds_max=seconds_max)
            if failure is not None:
                failures.append(failure)
    _playing[place] = _NOTHING
    return Played(failures, time.monotonic() - began)


@contextmanager
def few_collections() -> Iterator[None]:
    """A run leaves cycles behind: to collect them once is a fifth cheaper than all the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def hunt(
    worlds: Sequence[str],
    seeds: Iterable[int],
    *,
    steps: int,
    jobs: int,
    seconds: float | None = None,
    seed_seconds_max: float = SEED_SECONDS_MAX,
    on_failure: Callable[[Failure], object] = lambda failure: None,
    on_progress: Callable[[Found], object] = lambda found: None,
) -> Found:
    """Play these seeds in each world, until there are no more, or time is up, or enough have failed.

    A seed that takes longer than `seed_seconds_max` has failed. When a process dies, the seeds that were
    being played have, and the hunt is over: nobody knows which of them it was.

    `on_failure` is called for each seed that fails, as soon as that is known, `on_progress` once a minute.
    """
    began = time.monotonic()
    told_at = began
    found = Found({world: Share() for world in worlds})
    left = dict(zip(worlds, tee(seeds, len(worlds)), strict=True))
    given = dict.fromkeys(worlds, 0.0)  # seconds, with those that are expected of what is being played
    context = get_context("spawn")
    playing = context.Array("q", [_NOTHING] * 2 * jobs)
    with ProcessPoolExecutor(jobs, context, _begin, (playing,)) as pool:
        # World, seeds, seconds expected, place in `playing`.
        running: dict[Future[Played], tuple[str, int, float, int]] = {}

        def submit(place: int) -> None:
            while left:
                world = min(left, key=given.__getitem__)
                chunk = list(islice(left[world], SEEDS_AT_A_TIME.get(world, 1)))
                if chunk:
                    share = found.shares[world]
                    expected = len(chunk) / share.seeds_per_second if share.seconds else 1.0
                    given[world] += expected
                    future = pool.submit(_play, world, chunk, steps, place, seed_seconds_max)
                    running[future] = world, len(chunk), expected, place
                    return
                del left[world]

        for place in range(2 * jobs):
            submit(place)
        while running:
            done, _ = wait(running, told_at + PROGRESS_SECONDS - time.monotonic(), FIRST_COMPLETED)
            for future in done:
                world, number, expected, place = running.pop(future)
                try:
                    played = future.result()
                except BrokenProcessPool:
                    left.clear()
                    seed = playing[place]
                    if seed != _NOTHING:
                        text = f"{DIES}, or another one at that time"
                        failure = Failure(world, seed, steps, DIES, text)
                        found.failures.append(failure)
                        on_failure(failure)
                    continue
                share = found.shares[world]
                share.seeds += number
                share.seconds += played.seconds
                given[world] += played.seconds - expected
                found.failures += played.failures
                for failure in played.failures:
                    on_failure(failure)
                over = seconds is not None and time.monotonic() - began >= seconds
                if len(found.failures) < FAILURES_MAX and not over:
                    with suppress(BrokenProcessPool):
                        submit(place)
            found.seconds = time.monotonic() - began
            if time.monotonic() - told_at >= PROGRESS_SECONDS:
                told_at = time.monotonic()
                on_progress(found)
    found.seconds = time.monotonic() - began
    return found


def fresh_seeds() -> tuple[int, Iterator[int]]:
    """The first one, from the clock; and all from there."""
    first = int(time.time())
    return first, count(first)
