"""Disks with a page cache: what was not fsynced may be lost, in part, when the power goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import Process, World


class Disk:
    """A host's disk."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.dice = world.dice_for(f"disk {name}")

    def in_thread(self, process: Process, act: Callable[..., object], *arguments: Any) -> None:
        """A thread of a process does something, later."""
        self.world.after(self.dice.uniform(0.0002, 0.002), process.post, act, *arguments)

    def lose_power(self) -> None: ...

    def process_died(self, process: Process) -> None: ...
