"""What a world of the simulation is: a function that plays one seed, and raises when a promise is broken.

    run(seed, *, steps=300, trace=False, skip=frozenset())

Steps are numbered from 1, and the dice of each depend on the seed and its number only: so a history can be
played again without some of its steps (`skip`). What a world raises tells in `step` how far it came; without
that, it is not shortened. An `AssertionError` with a `rule` says which promise was broken.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

WORLDS: Final = {"turns": "chaos_tests.sim.turns", "shell": "chaos_tests.sim.shell.run"}
STEPS: Final = 300


class Broken(AssertionError):
    """A promise was broken."""

    def __init__(self, rule: str, text: str = "") -> None:
        super().__init__(f"{rule}: {text}" if text else rule)
        self.rule = rule
        self.text = text


def world(name: str) -> Callable[..., object]:
    """The `run` of a world, or of the module of that name. Raises ImportError where it is not installed."""
    run: Callable[..., object] = import_module(WORLDS.get(name, name)).run
    return run


def play(
    name: str, seed: int, *, steps: int = STEPS, trace: bool = False, skip: frozenset[int] = frozenset()
) -> None:
    """One seed; what it raises has a note that tells the seed."""
    run = world(name)
    try:
        run(seed, steps=steps, trace=trace, skip=skip)
    except Exception as error:
        error.add_note(f"world {name}, seed {seed}: python -m chaos_tests.sim --world {name} --seed {seed}")
        raise
