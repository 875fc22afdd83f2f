"""The real Store on the simulated etcd: all goes well, and all of etcd's troubles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from chaos_tests.sim.shell.etcd_members import EtcdMembers
from chaos_tests.sim.shell.kernel import World
from cluster.placement.view import FleetConfig, FleetMap, Member, SlotRow, Swap
from cluster.server.errors import StoreError
from cluster.server.etcd import EtcdOptions
from cluster.server.settings import parse_endpoints
from cluster.server.store import Store, StoreOptions

A = Member("a", "a" * 32, 5, "host-a", 4730, 4731)
CONFIG = FleetConfig(1, 1, 1)


def a_map(epoch: int = 1, generation: int = 1) -> FleetMap:
    return FleetMap((SlotRow(epoch, "a", 5, (A.identity,)),), {A.identity: "a"}, generation)


def a_store(etcd: EtcdMembers, hints: list[float] | None = None) -> Store:
    options = StoreOptions(EtcdOptions(parse_endpoints(etcd.endpoints), 1.5), "f", 2, keepalive_seconds=0.5)
    world = etcd.world
    return Store(options, on_hint=lambda: hints.append(world.now) if hints is not None else None)


async def until_read(store: Store, wanted: Callable[[object], bool] = lambda view: True) -> None:
    while True:
        with contextlib.suppress(StoreError):
            if wanted(await store.read()):
                return
        await asyncio.sleep(0.05)


def run(scenario: Callable[[World, EtcdMembers], Awaitable[None]], seed: int, seconds: float = 120.0) -> int:
    """In a world of its own; the digest of the run."""
    world = World(seed)
    with world.installed():
        etcd = EtcdMembers(world)
        etcd.start()
        task = world.process(world.host("a")).spawn(scenario(world, etcd))  # type: ignore[arg-type]
        assert world.run_until(task.done, seconds)
    return world.digest


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_one_writes_another_reads_and_is_hinted_at(seed: int) -> None:
    async def scenario(world: World, etcd: EtcdMembers) -> None:
        hints: list[float] = []
        one, other = a_store(etcd), a_store(etcd, hints)
        other.start()
        revision = await one.register(A)
        assert await one.swap(Swap(a_map(), 0, {"a": revision}, CONFIG)) is True
        assert await one.swap(Swap(a_map(2), 0, {"a": revision})) is False
        view = await other.read()
        assert (view.config, view.map, view.members["a"]) == (CONFIG, a_map(), A)
        await asyncio.sleep(1.0)
        told = len(hints)
        assert view.map is not None
        assert await one.swap(Swap(a_map(2), view.map.revision, {"a": revision})) is True
        await asyncio.sleep(1.0)
        assert len(hints) > told
        await one.close(leave=True)
        assert dict((await other.read()).members) == {}
        await other.close()

    run(scenario, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_stays_through_changes_of_the_leader_and_goes_with_its_lease(seed: int) -> None:
    async def scenario(world: World, etcd: EtcdMembers) -> None:
        one, other = a_store(etcd), a_store(etcd)
        revision = await one.register(A)
        for _ in range(3):
            etcd.cluster.depose()
            await asyncio.sleep(4.0)
        view = await other.read()
        assert view.members["a"].revision == revision
        await one.close()
        await until_read(other, lambda view: not view.members)  # type: ignore[attr-defined]
        await other.close()

    run(scenario, seed)


def disturb(etcd: EtcdMembers, dice: Random) -> None:
    number = dice.randrange(3)
    cluster = etcd.cluster
    dice.choice(
        (
            cluster.depose,
            cluster.compact,
            etcd.heal,
            lambda: cluster.cut(number),
            lambda: etcd.kill(number),
            lambda: etcd.freeze(number),
            lambda: setattr(cluster, "answers_lost", 0.5),
            lambda: setattr(cluster, "watch_delay_seconds", 3.0),
            lambda: setattr(cluster.members[number], "lag_seconds", 1.0),
            lambda: setattr(cluster.state, "full", True),
        )
    )()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_revision_is_swapped_once_and_nobody_reads_what_is_older(seed: int) -> None:
    made: dict[int, int] = {}  # revision that was compared -> generation that was written
    written: dict[int, int] = {}  # generation that a swap wanted to write -> what it compared
    last = 0

    async def racer(etcd: EtcdMembers, store: Store, number: int, rounds: int) -> None:
        nonlocal last
        for turn in range(rounds):
            await asyncio.sleep(0.1)
            with contextlib.suppress(StoreError):
                floor = last
                view = await store.read()
                revision = view.map.revision if view.map is not None else 0
                assert revision >= floor
                last = max(last, revision)
                generation = 1000 * (number + 1) + turn
                written[generation] = revision
                config = CONFIG if view.config is None else None
                if await store.swap(Swap(a_map(1, generation), revision, {}, config)):
                    assert revision not in made
                    made[revision] = generation

    async def scenario(world: World, etcd: EtcdMembers) -> None:
        dice = world.dice_for("troubles")
        stores = [a_store(etcd) for _ in range(3)]
        for store in stores:
            store.start()
        racers = [asyncio.create_task(racer(etcd, store, n, 60)) for n, store in enumerate(stores)]
        waiting = asyncio.gather(*racers)
        while not waiting.done():
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            disturb(etcd, dice)
        await waiting
        etcd.heal()
        for store in stores:
            await until_read(store)
            await store.close()

    first = run(scenario, seed, 3600.0)
    assert made
    made.clear()
    last = 0
    assert run(scenario, seed, 3600.0) == first
