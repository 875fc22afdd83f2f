"""The seeds of seeds.txt."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Kept(NamedTuple):
    """A line."""

    world: str
    seed: int
    steps: int


def kept_seeds(world: str) -> list[Kept]:
    """Every seed of a world that ever failed."""
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    found = []
    for line in lines:
        fields = line.partition("#")[0].split()
        if fields:
            found.append(Kept(fields[0], int(fields[1]), int(fields[2]) if len(fields) > 2 else 0))
    return [kept for kept in found if kept.world == world]
