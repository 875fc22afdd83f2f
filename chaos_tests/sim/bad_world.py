"""A world for tests of whoever plays worlds: some of its seeds never end, or kill their process."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

from chaos_tests.sim.worlds import STEPS, Broken

NAME: Final = "chaos_tests.sim.bad_world"
BROKEN: Final = 3
NEVER_ENDS: Final = 5
DIES: Final = 7


def run(seed: int, *, steps: int = STEPS, trace: bool = False, skip: frozenset[int] = frozenset()) -> None:
    """Most seeds are good."""
    if seed == BROKEN:
        raise Broken("a promise", "scripted")
    if seed == NEVER_ENDS:
        asyncio.run(_spin())
    if seed == DIES:
        os._exit(1)


async def _spin() -> None:
    while True:
        with suppress(Exception):
            _work()


def _work() -> None:
    sum(range(1000))
