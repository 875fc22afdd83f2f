"""A long run under load, with one random fault after the other, sometimes two at once.

    python -m chaos_tests.live.soak --jobs 1000000 --minutes 15

It goes on until both are reached, then heals, drains and checks. The report is written to chaos-output/soak.
The faults come from the seed, which is told at the beginning; when each strikes depends on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random
from typing import Final

from rich.console import Console

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.proxies import bandwidth, latency, limit_data, reset_peer, slicer
from chaos_tests.live.workload import Shape, Workload
from cluster.drill.checker import Verdict
from cluster.drill.report import show
from tests.support.ending import end_with_this_process
from tests.support.fleet import FLEET_SECONDS

REPORT: Final = Path("chaos-output/soak")
FAULT_SECONDS: Final = (1.0, 8.0)  # from, to
QUIET_JOBS: Final = (20, 2000)  # acknowledged between two faults
TWO_AT_ONCE: Final = 0.25  # of the faults have company
TELL_SECONDS: Final = 30.0
CALLERS: Final = 128
Fault = Callable[[ChaosFleet, Random], AbstractContextManager[None]]


def _one(fleet: ChaosFleet, dice: Random) -> str:
    return dice.choice(sorted(fleet.nodes))


def _kill(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.killed(_one(fleet, dice))


def _kill_two(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.killed(*dice.sample(sorted(fleet.nodes), 2))


def _kill_all(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.killed(*sorted(fleet.nodes))


@contextmanager
def _vanish(fleet: ChaosFleet, dice: Random) -> Iterator[None]:
    name = _one(fleet, dice)
    fleet.wait_until_in_sync(2 * FLEET_SECONDS)  # one that only starts would refuse, and not be silent
    fleet.vanish(name)
    try:
        yield
    finally:
        fleet.restart(name)


@contextmanager
def _torn(fleet: ChaosFleet, dice: Random) -> Iterator[None]:
    """Killed, and the end of what it was writing is half there."""
    name = _one(fleet, dice)
    with fleet.killed(name):
        fleet.tear_journal(name)
        yield


def _freeze(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.frozen(_one(fleet, dice))


@contextmanager
def _restart(fleet: ChaosFleet, dice: Random) -> Iterator[None]:
    """A drain, and a new start, as for a new release."""
    name = _one(fleet, dice)
    fleet.wait_until_in_sync(2 * FLEET_SECONDS)
    number = fleet.history.fault("restart", name)
    fleet.drain(name, restart=True)
    fleet.shown(number)  # the node has ended
    fleet.nodes[name].spawn()
    fleet.history.healed(number)
    yield


def _cut_off(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    """From the other nodes, and perhaps from etcd."""
    name = _one(fleet, dice)
    others = "".join(sorted(fleet.nodes.keys() - {name}))
    return fleet.partition(name, others, etcd=dice.choice((None, others, name)))


def _all_apart(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.partition(*sorted(fleet.nodes))


def _no_etcd(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    reach = "".join(dice.sample(sorted(fleet.nodes), dice.randrange(3)))
    return fleet.partition("".join(sorted(fleet.nodes)), etcd=reach)


def _one_way(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    speaker, listener = dice.sample([*sorted(fleet.nodes), "etcd"], 2)
    return fleet.one_way(listener, "etcd") if speaker == "etcd" else fleet.one_way(speaker, listener)


def _poison(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    """Some links are slow, narrow, or break all the time."""
    toxic = dice.choice(
        (
            latency(dice.choice((20, 200)), jitter_ms=20),
            bandwidth(dice.choice((20, 400))),
            slicer(50, variation_bytes=30, delay_us=100),
            reset_peer(dice.choice((50, 500))),
            limit_data(dice.choice((1000, 100_000))),
        )
    )
    name = _one(fleet, dice)
    links: Sequence[str] = dice.choice(
        ((f"*>{name}", f"{name}>*"), (f"*>{name}",), ("w1>*",), ("client*>*",), ("*>etcd-*",))
    )
    return fleet.poisoned(toxic, *links)


def _refuse(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    """A client or a worker reaches only some nodes."""
    who = dice.choice(("client", "w1", "w2"))
    return fleet.refused(*(f"{who}>{name}" for name in dice.sample(sorted(fleet.nodes), 2)))


def _slow_disk(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.slow_disk(_one(fleet, dice), dice.choice((0.01, 0.2, 2.5)))


def _etcd_leader(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    leader = fleet.etcd.leader()
    return fleet.etcd_killed(leader) if dice.random() < 0.5 else fleet.etcd_frozen(leader)


def _etcd_gone(fleet: ChaosFleet, dice: Random) -> AbstractContextManager[None]:
    return fleet.etcd_killed(*fleet.etcd.members[: dice.choice((2, 3))])


FAULTS: Final[tuple[tuple[Fault, int], ...]] = (
    (_kill, 6),
    (_kill_two, 2),
    (_kill_all, 1),
    (_vanish, 3),
    (_torn, 3),
    (_freeze, 5),
    (_restart, 3),
    (_cut_off, 4),
    (_all_apart, 1),
    (_no_etcd, 3),
    (_one_way, 4),
    (_poison, 6),
    (_refuse, 3),
    (_slow_disk, 3),
    (_etcd_leader, 3),
    (_etcd_gone, 2),
)
# These need everything else to be well, or undo what the other one did.
ALONE: Final = frozenset((_restart, _kill_all, _vanish, _etcd_leader, _etcd_gone))


def strike(fleet: ChaosFleet, load: Workload, dice: Random) -> None:
    """One fault, or two at once, for a while; then everything is mended, though not yet in sync."""
    faults, weights = zip(*FAULTS, strict=True)
    first = dice.choices(faults, weights)[0]
    with first(fleet, dice):
        load.run_for(dice.uniform(*FAULT_SECONDS))
        if first not in ALONE and dice.random() < TWO_AT_ONCE:
            second = dice.choice([_poison, _refuse, _slow_disk, _no_etcd, _one_way])
            with second(fleet, dice):
                load.run_for(dice.uniform(*FAULT_SECONDS))


def run(jobs: int, minutes: float, seed: int, rate: float) -> Verdict:
    """Raises AssertionError when a promise was broken."""
    dice = Random(seed)
    print(f"seed {seed}: until {jobs:,} jobs are acknowledged and {minutes:g} minutes are over", flush=True)
    shape = Shape(rate=rate, job_seconds=0.0, callers=CALLERS, seed=seed)
    with (
        tempfile.TemporaryDirectory(prefix="gearfleet-soak-") as directory,
        ChaosFleet(Path(directory) / "fleet", "abc") as fleet,
    ):
        fleet.report_as(REPORT, keep=True)
        with fleet.under_load(shape) as load:
            began = told = time.monotonic()
            faults = 0
            while load.acknowledged < jobs or time.monotonic() - began < minutes * 60:
                strike(fleet, load, dice)
                faults += 1
                load.flow(dice.randint(*QUIET_JOBS))
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    acknowledged = f"{load.acknowledged:,} acknowledged"
                    print(f"{told - began:.0f} s: {acknowledged}, {faults} faults", flush=True)
    return fleet.verdicts[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos_tests.live.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="background jobs, at least")
    parser.add_argument("--minutes", type=float, default=15.0, help="at least")
    parser.add_argument("--rate", type=float, default=2500.0, help="submits a second, at most")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    end_with_this_process()
    verdict = run(chosen.jobs, chosen.minutes, chosen.seed, chosen.rate)
    show(verdict, Console())
    print(f"the picture: {REPORT}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
