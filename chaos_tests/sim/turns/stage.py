"""What everybody in the world shares: the fleet, the dice, the trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Final, TypeVar

from chaos_tests.sim.turns.account import Account
from cluster.node.fleet import FleetSettings
from cluster.placement import bootstrap
from cluster.placement.view import FleetConfig
from cluster.replication import SLOT_COUNT
from tests.node.fleets import FleetInOneThread, Host

SLOTS: Final = 4
RECLAIM_SECONDS: Final = 2.0  # as tests/node/fleets.py sets it
LEASE_SECONDS: Final = FleetSettings().lease_seconds
SILENCE_SECONDS: Final = FleetSettings().silence_seconds

T = TypeVar("T")


@contextmanager
def few_slots() -> Iterator[None]:
    """Nodes have few slots meanwhile: to make 1,024 of everything is what a node's start costs."""
    constants = {"SLOT_COUNT": (SLOT_COUNT, SLOTS), "SLOT_MASK": (SLOT_COUNT - 1, SLOTS - 1)}
    modules = [
        module for name, module in list(sys.modules.items()) if name.startswith(("cluster.", "tests.node."))
    ]
    changed = []
    for module in modules:
        for name, (usual, few) in constants.items():
            if getattr(module, name, None) == usual:
                changed.append((module, name, usual))
                setattr(module, name, few)
    try:
        yield
    finally:
        for module, name, usual in changed:
            setattr(module, name, usual)


class Fleet(FleetInOneThread):
    """Its map is made at once."""

    def begin(self) -> None:
        for host in self.hosts.values():
            host.start()
        swap = bootstrap(self.etcd.view, FleetConfig(SLOTS, 3, 2), self.size)
        assert swap is not None
        assert self.etcd.swap(swap)


class Stage:
    """The fleet of one seed, and the dice of the step that is being played."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.dice = Random()
        self.trace = trace
        self.step = 0
        self.roll(0)
        self.fleet = Fleet(self.dice.choice((3, 3, 3, 4, 5)))
        self.account = Account(SLOTS, RECLAIM_SECONDS, exact=True)
        self.no_etcd: set[str] = set()  # nodes that do not reach it
        self.tempting = False  # something was just promised: the moment for a disaster
        self.leased: dict[str, float] = {}  # node -> when its lease was last renewed
        self.heard: dict[tuple[str, str], float] = {}  # node, other -> when it last heard that one

    def roll(self, step: int) -> None:
        """The dice of a step know nothing of those before: so any of them can be left out."""
        self.step = step
        self.dice.seed(self.seed << 20 | step)

    def say(self, *words: object) -> None:
        if self.trace:
            print(f"{self.step:4} {self.fleet.now:8.2f}", *words)

    def some(self, things: Sequence[T], fits: Callable[[T], bool]) -> T | None:
        """One that fits: the same one as long as it does, whoever else there is."""
        if things:
            start = self.dice.randrange(len(things))
            for index in range(start - len(things), start):
                if fits(things[index]):
                    return things[index]
        return None

    def some_host(self) -> Host | None:
        """One that runs."""
        return self.some(list(self.fleet.hosts.values()), runs)

    def reaches_etcd(self, host: Host) -> bool:
        return self.fleet.etcd.up and host.name not in self.no_etcd

    def is_cut_off(self, host: Host) -> bool:
        """Rule 11: it has lost its lease and reaches nobody, so that it gives nothing out."""
        now = self.fleet.now
        heard = max((at for (name, _), at in self.heard.items() if name == host.name), default=0.0)
        return now > self.leased.get(host.name, 0.0) + LEASE_SECONDS and now > heard + SILENCE_SECONDS + 0.2

    def turn(self, host: Host, act: Callable[[], object] = lambda: None) -> None:
        """One turn of a node, and what it did."""
        host.turn(act)
        self.account.watch(host, self.fleet.now)


def runs(host: Host) -> bool:
    return host.alive and not host.frozen
