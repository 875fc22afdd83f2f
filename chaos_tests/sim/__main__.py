"""Play, or hunt for, seeds of the simulation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress

from chaos_tests.sim.hunt import fresh_seeds, hunt
from chaos_tests.sim.limits import SEED_SECONDS_MAX, Hangs, limited
from chaos_tests.sim.shrink import DIES, HANGS, Failure, numbers_of, shrink
from chaos_tests.sim.worlds import STEPS, WORLDS, play
from tests.support.ending import end_with_this_process


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos_tests.sim", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="play this seed, and tell what happens")
    what.add_argument("--seeds", metavar="FIRST:LAST", help="play these seeds (LAST is not one of them)")
    what.add_argument("--minutes", type=float, help="play new seeds for so long")
    parser.add_argument(
        "--world", choices=[*WORLDS], help="only this one (default: hunt in all; --seed plays it in turns)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="of each seed; in world shell, troubles (default %(default)s)",
    )
    parser.add_argument("--keep", metavar="3,7-12", help="with --seed: only these steps")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument(
        "--shrink-seconds", type=float, default=30.0, help="for each seed that fails (default %(default)s)"
    )
    options = parser.parse_args()
    end_with_this_process()
    if options.seed is not None:
        kept = numbers_of(options.keep) if options.keep else range(1, options.steps + 1)
        skip = frozenset(range(1, options.steps + 1)) - frozenset(kept)
        play(options.world or "turns", options.seed, steps=options.steps, trace=True, skip=skip)
        print(f"seed {options.seed}: all promises kept")
        return 0
    if options.seeds is not None:
        first, last = map(int, options.seeds.split(":"))
        seeds: Iterable[int] = range(first, last)
        seconds = None
    else:
        first, seeds = fresh_seeds()
        seconds = options.minutes * 60
        print(f"first seed {first}", flush=True)
    found = hunt(
        [options.world] if options.world else [*WORLDS],
        seeds,
        steps=options.steps,
        jobs=options.jobs,
        seconds=seconds,
        on_failure=tell,
        on_progress=lambda found: print(found, flush=True),
    )
    print(found, flush=True)
    for failure in found.failures:
        explain(shrink(failure, options.shrink_seconds))
    return 1 if found.failures else 0


def tell(failure: Failure) -> None:
    """At once: the rest of the hunt may take long."""
    print(f"FAILED  {failure.world} seed {failure.seed}: {failure.text}\n    {failure.command}", flush=True)


def explain(failure: Failure) -> None:
    """The seed, its shortest history, and how to play it again."""
    print(
        f"\n{failure.world} seed {failure.seed}, {len(failure.kept)} of {failure.steps} steps: {failure.text}"
    )
    if failure.what not in (HANGS, DIES):
        with limited(SEED_SECONDS_MAX), suppress(Exception, Hangs):
            play(failure.world, failure.seed, steps=failure.steps, trace=True, skip=failure.skip)
    print(f"{failure.text}\n\n    {failure.command}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
