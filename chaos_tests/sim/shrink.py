"""The shortest history that still fails."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from chaos_tests.sim.limits import SEED_SECONDS_MAX, Hangs, limited
from chaos_tests.sim.worlds import Broken, play

HANGS: Final = "hangs"
DIES: Final = "the process that played it died"


@dataclass(frozen=True)
class Failure:
    """A history that broke a promise."""

    world: str
    seed: int
    steps: int  # that it took, or that were asked for
    what: str  # the rule that was broken, or where the code raised: what a shorter history has to do too
    text: str
    skip: frozenset[int] = frozenset()

    @property
    def kept(self) -> list[int]:
        return [step for step in range(1, self.steps + 1) if step not in self.skip]

    @property
    def command(self) -> str:
        """What plays it again."""
        options = f"--world {self.world} --seed {self.seed} --steps {self.steps}"
        if self.skip:
            options += f" --keep {text_of(self.kept)}"
        return f"python -m chaos_tests.sim {options}"


def attempt(
    world: str,
    seed: int,
    steps: int,
    skip: frozenset[int] = frozenset(),
    *,
    seconds_max: float = SEED_SECONDS_MAX,
) -> Failure | None:
    """Play it; None when nothing is wrong."""
    try:
        with limited(seconds_max):
            play(world, seed, steps=steps, skip=skip)
    except Hangs as error:
        return Failure(world, seed, steps, HANGS, f"{HANGS} {error}", skip)
    except Exception as error:
        if isinstance(error, Broken):
            what = error.rule
        else:
            what = f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"
        known: int | None = getattr(error, "step", None)
        reached = steps if known is None else known
        skipped = frozenset(step for step in skip if step <= reached)
        return Failure(world, seed, reached, what, f"{type(error).__name__}: {error}", skipped)
    return None


def shrink(failure: Failure, seconds: float = 30.0) -> Failure:
    """Leave out steps as long as the same promise is broken, and there is time.

    What hangs, or kills whoever plays it, stays as it is.
    """
    if failure.what in (HANGS, DIES):
        return failure
    end = time.monotonic() + seconds
    best = failure

    def fails(kept: Sequence[int]) -> bool:
        nonlocal best
        steps = max(kept, default=0)
        skip = frozenset(range(1, steps + 1)) - frozenset(kept)
        left = max(end - time.monotonic(), 1.0)
        found = attempt(best.world, best.seed, steps, skip, seconds_max=left)
        if found is None or found.what != best.what:
            return False
        best = found
        return True

    smallest(best.kept, fails, lambda: time.monotonic() < end)
    return best


def smallest(
    items: Sequence[int], fails: Callable[[Sequence[int]], bool], goes_on: Callable[[], bool]
) -> list[int]:
    """Delta debugging: a part of `items` that still fails, and of which no single item can be spared."""
    items = list(items)
    parts = 2
    while items and goes_on():
        size = -(-len(items) // parts)
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            if not goes_on():
                return items
            if fails(rest):
                items, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(items))
    return items


def text_of(numbers: Sequence[int]) -> str:
    """3, 7, 8, 9 as `3,7-9`; `0` for none."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans) or "0"


def numbers_of(text: str) -> frozenset[int]:
    """The other way. Raises ValueError."""
    found: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
