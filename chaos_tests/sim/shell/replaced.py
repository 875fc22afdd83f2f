"""The one list of names in the shell that stand for what is below it, and what stands there in a world."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import World


class Time:
    """Stands for the module `time`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    perf_counter = monotonic

    def time(self) -> float:
        from chaos_tests.sim.shell.kernel import EPOCH_SECONDS, START_SECONDS

        world = self._world
        offset = world.current.host.clock_offset if world.current is not None else 0.0
        return world.now - START_SECONDS + EPOCH_SECONDS + offset

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


def names(world: World) -> list[tuple[str, str, Any]]:
    """(module, name, what stands there). A dotted name is an attribute of the module's name."""
    return []


@contextlib.contextmanager
def replaced(world: World) -> Iterator[None]:
    """Put them in place, and back."""
    yield
