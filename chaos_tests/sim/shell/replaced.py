"""The one list of names in the shell that stand for what is below it, and what stands there in a world."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog

from chaos_tests.sim.shell.disk import SimFcntl, SimJournal, SimOs

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import World

SLOTS: Final = 8  # production has 1,024: a run would take as many times longer


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


class Dice:
    """Stands for the modules `random` and `secrets`, and for `uuid4`: the dice of the process that runs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._spare = world.dice_for("outside of processes")

    @property
    def _dice(self) -> Random:
        return self._spare if self._world.current is None else self._world.current.dice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dice, name)

    def token_bytes(self, size: int) -> bytes:
        return self._dice.randbytes(size)

    def token_hex(self, size: int) -> str:
        return self._dice.randbytes(size).hex()

    def uuid4(self) -> UUID:
        return UUID(int=self._dice.getrandbits(128), version=4)


class _NoCollector:
    """Stands for `gc` in server.py: the simulation's own collector is the run's business."""

    def __getattr__(self, name: str) -> Any:
        return lambda: None


class _Limits:
    """Stands for `resource`."""

    RLIMIT_NOFILE = 7

    def getrlimit(self, what: int) -> tuple[int, int]:
        return 1024, 1024

    def getpagesize(self) -> int:
        return 4096


def names(world: World) -> list[tuple[str, str, Any]]:
    """(module, name, what stands there)."""
    time, dice, system, slots = Time(world), Dice(world), SimOs(world), SLOTS
    rows: list[tuple[str, str, Any]] = [
        *[(f"cluster.server.{module}", "time", time) for module in
          ("server", "fleet", "etcd", "store", "journal", "directory", "plain")],
        ("cluster.server.peers", "random", dice),
        *[(f"cluster.server.{module}", "token_bytes", dice.token_bytes) for module in
          ("peers", "control", "fleet")],
        ("cluster.server.journal", "secrets", dice),
        ("cluster.server.directory", "uuid4", dice.uuid4),
        ("cluster.server.journal", "os", system),
        ("cluster.server.directory", "os", system),
        ("cluster.server.directory", "fcntl", SimFcntl(world)),
        ("cluster.server.server", "os", system),
        ("cluster.server.server", "gc", _NoCollector()),
        ("cluster.server.server", "resource", _Limits()),
        ("cluster.server.server", "_resident_bytes", lambda: 0),
        ("cluster.server.server", "Journal", SimJournal),
        ("cluster.server.server", "Whereabouts", lambda *_: None),
        *[(f"cluster.{module}", "SLOT_COUNT", slots) for module in
          ("server.server", "server.fleet", "server.recovery", "replication", "replication.log",
           "replication.replicator", "replication.restore",
           "node.client", "node.context", "node.fleet", "node.node", "node.restore")],
        ("cluster.replication.log", "SLOT_MASK", slots - 1),
        ("cluster.node.client", "SLOT_MASK", slots - 1),
    ]  # fmt: skip
    from chaos_tests.sim.shell import grpc_aio, workload

    return rows + grpc_aio.names(world) + workload.names(world, dice)


@contextlib.contextmanager
def replaced(world: World) -> Iterator[None]:
    """Put them in place, and back."""
    before: list[tuple[Any, str, Any]] = []
    collects = gc.isenabled()
    gc.disable()  # when it would run is no matter of the seed
    log = structlog.get_config()
    structlog.configure(
        processors=[lambda _, level, values: _say(world, level, values)],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=lambda *arguments: None,
        cache_logger_on_first_use=False,
    )
    try:
        for module, name, value in names(world):
            found = import_module(module)
            before.append((found, name, getattr(found, name)))
            setattr(found, name, value)
        yield
    finally:
        for found, name, value in reversed(before):
            setattr(found, name, value)
        structlog.configure(**log)
        if collects:
            gc.enable()


def _say(world: World, level: str, values: MutableMapping[str, Any]) -> Any:
    """A line of a server's log is one of the trace; what it calls a defect is a failure of the run."""
    event = values.pop("event")
    error = values.pop("exc_info", None)
    process = world.current
    if process is None or not process.alive:
        raise structlog.DropEvent
    world.say(f"[{level}]", event, *(f"{name}={value}" for name, value in values.items()))
    if error:
        import sys

        raised = error if isinstance(error, BaseException) else sys.exc_info()[1]
        if raised is not None:
            world.fail_by(raised, f"{process.name}: {event}")
    raise structlog.DropEvent
