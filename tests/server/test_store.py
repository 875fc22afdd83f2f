"""The store against real etcd: leases, watches, swaps, and an etcd that fails, forgets or refuses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from cluster.placement.encoding import encode_member
from cluster.placement.view import FleetConfig, FleetMap, Member, SlotRow, Swap
from cluster.server.directory import Nonces
from cluster.server.errors import (
    BadContent,
    Denied,
    NameTaken,
    Regressed,
    StartError,
    StoreError,
    Superseded,
    Unreachable,
)
from cluster.server.etcd import EtcdOptions
from cluster.server.settings import load_settings, parse_endpoints
from cluster.server.store import Store, StoreOptions, store_options
from tests.conftest import StartEtcd
from tests.support import Certificates, Etcd, FleetEtcd, make_certificates
from tests.support.ports import lasting_port
from tests.support.waiting import WAIT_SECONDS

pytestmark = [pytest.mark.usefixtures("_needs_etcd")]

LEASE_SECONDS = 1
TIMEOUT_SECONDS = 0.3

A = Member("a", "a" * 32, 5, "host-a", 4730, 4731)
B = Member("b", "b" * 32, 1, "host-b", 4730, 4731)
CONFIG = FleetConfig(1, 1, 1)


@pytest.fixture
def _needs_etcd() -> None:
    from tests.support.etcd import needs_etcd

    mark = needs_etcd()
    if mark.args[0]:
        pytest.skip(mark.kwargs["reason"])


def a_map(epoch: int = 1) -> FleetMap:
    return FleetMap((SlotRow(epoch, "a", 5, (A.identity,)),), {A.identity: "a"})


class Watched:
    """A store, and what it has told its owner."""

    def __init__(self, address: str, fleet: str = "f", **etcd_options: Any) -> None:
        self.hints = 0
        self.leases: list[float] = []
        self.failures: list[StoreError] = []
        etcd = EtcdOptions(parse_endpoints(address), TIMEOUT_SECONDS, **etcd_options)
        self.store = Store(
            StoreOptions(etcd, fleet, LEASE_SECONDS, keepalive_seconds=0.1, poll_seconds=60),
            on_hint=self._hint,
            on_lease=self.leases.append,
            on_failure=self.failures.append,
        )

    def _hint(self) -> None:
        self.hints += 1

    async def settle(self) -> None:
        """Wait until it watches."""
        await until(lambda: self.hints > 0)

    async def hint_after(self, change: Callable[[], Any]) -> None:
        before = self.hints
        change()
        await until(lambda: self.hints > before)


@contextlib.asynccontextmanager
async def a_store(where: FleetEtcd | Etcd | str, **options: Any) -> AsyncIterator[Watched]:
    if isinstance(where, FleetEtcd):
        options["fleet"] = where.fleet
    watched = Watched(where if isinstance(where, str) else where.address, **options)
    try:
        watched.store.start()
        yield watched
    finally:
        await watched.store.close()


async def until(observe: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait for what some task of the loop is about to notice."""
    deadline = time.monotonic() + timeout_seconds
    while not observe():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s in vain"
        await asyncio.sleep(0.01)


async def until_answered(read: Callable[[], Awaitable[Any]], timeout_seconds: float = WAIT_SECONDS) -> Any:
    """Try until it is no longer Unreachable."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return await read()
        except Unreachable:
            assert time.monotonic() < deadline, f"waited {timeout_seconds} s in vain"
            await asyncio.sleep(0.05)


async def until_members(store: Store, expected: set[str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while (names := set((await until_answered(store.read)).members)) != expected:
        assert time.monotonic() < deadline, f"waited for {expected}, have {names}"
        await asyncio.sleep(0.02)


class Scenario(Protocol):
    def __call__(self) -> Coroutine[Any, Any, None]: ...


def run(scenario: Scenario) -> None:
    """Run it; afterwards no task is left."""

    async def whole() -> None:
        async with asyncio.timeout(2 * WAIT_SECONDS):
            await scenario()
        # gRPC's tasks of cancelled calls end by themselves, a little later.
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, 2.0)

    asyncio.run(whole())


# ---- reading and changing


def test_a_new_fleet_has_nothing(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            view = await watched.store.read()
            assert (view.config, view.map, dict(view.members)) == (None, None, {})
            assert view.revision >= 1
            assert (watched.store.reachable, watched.store.error) == (True, None)
            assert time.monotonic() - watched.store.last_good_at < WAIT_SECONDS

    run(scenario)


def test_what_one_node_writes_the_others_read(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as one, a_store(etcd) as other:
            revision = await one.store.register(A)
            view = await other.store.read()
            assert view.members["a"] == A
            assert view.members["a"].revision == revision

            bootstrap = Swap(a_map(), 0, {"a": revision}, CONFIG)
            assert await one.store.swap(bootstrap) is True
            view = await other.store.read()
            assert (view.config, view.map) == (CONFIG, a_map())
            assert view.map is not None
            assert view.map.revision > revision

            # The map is not sent again, and is as of the same revision as the rest all the same.
            draining = await one.store.update(replace(A, draining=True))
            again = await other.store.read()
            assert again.map is view.map
            assert again.members["a"].draining
            assert again.members["a"].revision == draining > revision
            assert again.revision >= draining

    run(scenario)


def test_every_change_is_a_hint_and_so_is_the_beginning_of_a_watch(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            await watched.settle()
            await watched.hint_after(lambda: etcd.server.put(etcd.key("policies/f"), "x"))
            await watched.hint_after(lambda: etcd.server.delete(etcd.key("policies/f")))

    run(scenario)


def test_a_watch_that_has_gone_silent_is_replaced(etcd: FleetEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.server.etcd.WATCH_PROBE_SECONDS", 0.05)

    async def scenario() -> None:
        async with Proxy(etcd.address) as proxy, a_store(proxy.address, fleet=etcd.fleet) as watched:
            await watched.settle()
            connections = proxy.connections
            await until(lambda: proxy.answers > 20)  # an idle watch is asked, and stays
            assert (watched.hints, proxy.connections) == (1, connections)
            proxy.mute = True
            await until(lambda: proxy.connections > connections)
            proxy.mute = False
            await until(lambda: watched.hints > 1)

    run(scenario)


def test_without_a_watch_the_poll_hints(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        hints = []
        options = StoreOptions(EtcdOptions(parse_endpoints(etcd.address)), etcd.fleet, poll_seconds=0.01)
        store = Store(options, on_hint=lambda: hints.append(1))
        store.start()
        await until(lambda: len(hints) > 5)
        await store.close()

    run(scenario)


@pytest.mark.parametrize("stores", [5])
def test_of_several_swaps_of_one_revision_exactly_one_is_made(etcd: FleetEtcd, stores: int) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            racers = [(await stack.enter_async_context(a_store(etcd))).store for _ in range(stores)]
            assert await racers[0].swap(Swap(a_map(), 0, {}, CONFIG)) is True
            for epoch in range(2, 12):
                view = await racers[0].read()
                assert view.map is not None
                maps = [FleetMap(a_map(epoch).slots, a_map().names, n + 1) for n in range(stores)]
                swaps = [Swap(one, view.map.revision, {}) for one in maps]
                made = await asyncio.gather(*map(Store.swap, racers, swaps))
                assert sorted(made) == [False] * (stores - 1) + [True]  # type: ignore[type-var]
                assert (await racers[-1].read()).map == maps[made.index(True)]

    run(scenario)


def test_a_swap_compares_the_map_the_members_and_that_there_is_no_config(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            store = watched.store
            revision = await store.register(A)
            assert await store.swap(Swap(a_map(), 1, {})) is False  # there is no map
            assert await store.swap(Swap(a_map(), 0, {"a": 0})) is False  # a is not absent
            assert await store.swap(Swap(a_map(), 0, {"a": revision + 1})) is False
            assert await store.swap(Swap(a_map(), 0, {"a": revision, "b": 1})) is False  # b is absent
            assert (await store.read()).map is None
            assert await store.swap(Swap(a_map(), 0, {"a": revision, "b": 0}, CONFIG)) is True
            etcd.server.delete(etcd.key("map"))
            assert await store.swap(Swap(a_map(), 0, {}, CONFIG)) is False  # there is a config

    run(scenario)


class Proxy:
    """Between a store and etcd; may swallow the answers, or be gone."""

    def __init__(self, upstream: str) -> None:
        self._upstream = parse_endpoints(upstream)[0]
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.mute = False
        self.connections = 0
        self.answers = 0
        self.address = ""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            self._writers |= {writer, up_writer}
            await asyncio.gather(
                self._pump(reader, up_writer, lambda: False), self._pump(up_reader, writer, self._swallow)
            )

    def _swallow(self) -> bool:
        self.answers += 1
        return self.mute

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not swallow():
                    writer.write(data)
        writer.transport.abort()


def test_a_swap_without_an_answer_is_neither_made_nor_refused(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.address) as proxy, a_store(proxy.address, fleet=etcd.fleet) as watched:
            store = watched.store
            await store.read()
            proxy.mute = True
            started_at = time.monotonic()
            assert await store.swap(Swap(a_map(), 0, {}, CONFIG)) is None
            assert time.monotonic() - started_at < 2 * TIMEOUT_SECONDS + 1
            assert not store.reachable
            assert "does not answer in time" in (store.error or "")
            with pytest.raises(Unreachable):
                await store.read()
            proxy.mute = False
            view = await until_answered(store.read)  # on a new connection
            assert view.map == a_map()
            assert (store.reachable, store.error) == (True, None)

    run(scenario)


# ---- this node's key


def test_a_key_stays_while_its_node_lives_and_goes_with_its_lease(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as other:
            async with a_store(etcd) as one:
                await one.store.register(A)
                began_at = time.monotonic()
                await until(lambda: len(one.leases) > 3)
                assert one.leases == sorted(one.leases)
                assert one.leases[-1] == one.store.last_lease_at <= time.monotonic()
                # Longer than the lease.
                await until(lambda: one.leases[-1] > began_at + 1.2 * LEASE_SECONDS)
                assert set((await other.store.read()).members) == {"a"}
                await other.settle()
                hints = other.hints
            # As after a kill: nobody has told etcd.
            await until(lambda: other.hints > hints)
            assert dict((await other.store.read()).members) == {}

    run(scenario)


def test_a_node_that_leaves_takes_its_key_with_it(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as other, a_store(etcd) as one:
            await one.store.register(A)
            await one.store.close(leave=True)
            assert dict((await other.store.read()).members) == {}

    run(scenario)


def test_a_lost_lease_is_replaced_and_the_same_key_is_put_back(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as other, a_store(etcd) as one:
            revision = await one.store.register(A)
            etcd.server.revoke(etcd.server.lease_of(etcd.key("nodes/a")))
            await until_members(other.store, {"a"})
            member = (await other.store.read()).members["a"]
            assert member == A
            assert member.revision > revision
            assert one.failures == []

    run(scenario)


def test_a_node_wrongly_proved_dead_puts_its_key_back(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as other, a_store(etcd) as one:
            revision = await one.store.register(A)
            await one.settle()
            assert await other.store.remove_member("a", A.incarnation, revision + 1) is False
            assert await other.store.remove_member("a", A.incarnation, revision) is True
            await until_members(other.store, {"a"})
            member = (await other.store.read()).members["a"]
            assert member == A
            assert member.revision > revision
            # The proof was for the key that was read, not for this one.
            assert await other.store.remove_member("a", A.incarnation, revision) is False

    run(scenario)


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", encode_member(replace(A, host="elsewhere"))])
def test_a_key_of_a_living_node_that_was_edited_is_put_back(etcd: FleetEtcd, value: bytes) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as one:
            await one.store.register(A)
            await one.settle()
            etcd.server.put(etcd.key("nodes/a"), value)
            await until(lambda: etcd.server.get(etcd.key("nodes/a")) == encode_member(A))
            await until(lambda: etcd.server.lease_of(etcd.key("nodes/a")))
            await one.store.read()
            assert one.store.error is None

    run(scenario)


def test_also_when_only_the_lease_is_missing_and_the_watch_tells_nothing(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        watched = Watched(etcd.address, etcd.fleet)  # not started: no watch, no poll
        await watched.store.register(A)
        etcd.server.put(etcd.key("nodes/a"), encode_member(A))
        await watched.store.read()
        await until(lambda: etcd.server.lease_of(etcd.key("nodes/a")))
        await watched.store.close()

    run(scenario)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"{", "nodes/b cannot be used: it is no JSON"),
        (encode_member(A), 'is "a", not what the key ends in'),
        (encode_member(B), "nodes/b was written by hand, without a lease, and would never expire"),
    ],
)
def test_a_key_that_no_node_writes_is_left_out_and_told(etcd: FleetEtcd, value: bytes, message: str) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as one:
            await one.store.register(A)
            etcd.server.put(etcd.key("nodes/b"), value)
            view = await one.store.read()
            assert set(view.members) == {"a"}
            assert message in (one.store.error or "")
            assert "delete the key" in (one.store.error or "")
            # Whoever takes the node for absent is refused: its key is there.
            assert await one.store.swap(Swap(a_map(), 0, {"b": 0}, CONFIG)) is False
            etcd.server.delete(etcd.key("nodes/b"))
            await one.store.read()
            assert one.store.error is None

    run(scenario)


def test_two_nodes_with_one_name_are_told_apart(etcd: FleetEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.server.store.HOLDER_MARGIN_SECONDS", 0.1)

    async def scenario() -> None:
        async with a_store(etcd) as one, a_store(etcd) as other:
            await one.store.register(A)
            began_at = time.monotonic()
            with pytest.raises(NameTaken) as error:
                await other.store.register(replace(B, name="a"))
            assert time.monotonic() - began_at >= LEASE_SECONDS
            for part in (
                "two nodes are named a",
                "host-a:4730",
                A.identity,
                "host-b:4730",
                B.identity,
                "--node",
            ):
                assert part in str(error.value)
            assert (await one.store.read()).members["a"] == A
            assert one.failures == other.failures == []

    run(scenario)


def test_the_name_of_a_node_that_died_is_free_when_its_lease_is_over(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as one:
            await one.store.register(A)
        async with a_store(etcd) as other:
            newcomer = replace(B, name="a")
            await other.store.register(newcomer)
            assert (await other.store.read()).members["a"] == newcomer

    run(scenario)


def test_a_name_that_nobody_keeps_is_free_after_the_wait(
    etcd: FleetEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.server.store.HOLDER_MARGIN_SECONDS", 0.1)

    async def scenario() -> None:
        etcd.server.put(etcd.key("nodes/b"), encode_member(replace(A, name="b")))
        async with a_store(etcd) as one:
            await one.store.register(B)
            assert (await one.store.read()).members["b"] == B

    run(scenario)


def test_a_node_that_lost_its_name_meanwhile_has_to_stop(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as other, a_store(etcd) as one:
            await other.store.register(B)
            await one.store.register(A)
            await one.settle()
            usurper = encode_member(replace(B, name="a"))
            etcd.server.put(etcd.key("nodes/a"), usurper, etcd.server.lease_of(etcd.key("nodes/b")))
            await until(lambda: one.failures)
            assert isinstance(one.failures[0], NameTaken)
            assert "two nodes are named a" in (one.store.error or "")
            assert etcd.server.get(etcd.key("nodes/a")) == usurper

    run(scenario)


def test_a_later_start_of_the_same_directory_replaces_the_earlier_at_once(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as earlier, a_store(etcd) as later:
            await earlier.store.register(A)
            await earlier.settle()
            began_at = time.monotonic()
            await later.store.register(replace(A, incarnation=6))
            assert time.monotonic() - began_at < LEASE_SECONDS
            # The earlier one, were it still there, does not fight.
            await until(lambda: earlier.failures)
            assert isinstance(earlier.failures[0], Superseded)
            with pytest.raises(Superseded, match="etcd has start 6 at host-a:4730, this one is 5"):
                await earlier.store.register(A)
            assert (await later.store.read()).members["a"].incarnation == 6

    run(scenario)


# ---- an etcd that fails


def test_compaction_does_not_end_the_hints(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            await watched.settle()
            for _ in range(3):
                await watched.hint_after(lambda: etcd.server.put(etcd.key("policies/f"), "x"))
                etcd.server.compact()

    run(scenario)


def test_etcd_may_be_compacted_and_restarted(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        async with a_store(etcd) as watched:
            store = watched.store
            await store.register(A)
            await watched.settle()
            assert await store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            before = await store.read()
            etcd.compact()
            etcd.kill()
            with pytest.raises(Unreachable, match=r"cannot be reached.*look whether etcd runs there"):
                await store.read()
            assert not store.reachable
            assert await store.swap(Swap(a_map(2), before.map.revision, {})) is None  # type: ignore[union-attr]
            hints = watched.hints
            etcd.start()
            etcd.put("/other", "x")
            etcd.compact()
            await until(lambda: watched.hints > hints)
            await until_members(store, {"a"})
            assert (await store.read()).map == a_map()
            held = len(watched.leases)
            await until(lambda: len(watched.leases) > held)
            await watched.hint_after(lambda: etcd.put("/gearfleet/f/policies/g", "x"))
            assert (store.reachable, store.error, watched.failures) == (True, None, [])

    run(scenario)


def test_a_frozen_etcd_is_survived_and_every_call_ends(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        async with a_store(etcd) as watched:
            store = watched.store
            await store.register(A)
            await watched.settle()
            etcd.suspend()
            frozen_at = time.monotonic()
            for call in (store.read, lambda: store.update(replace(A, draining=True))):
                began_at = time.monotonic()
                with pytest.raises(Unreachable):
                    await call()
                assert time.monotonic() - began_at < 2 * TIMEOUT_SECONDS + 1
            assert await store.remove_member("a", A.incarnation, 1) is False
            # Counted from when it was sent: nothing was answered since.
            assert store.last_lease_at < frozen_at + 0.05
            hints = watched.hints
            etcd.resume()
            await until_answered(store.read)
            await until(lambda: watched.hints > hints)
            deadline = time.monotonic() + WAIT_SECONDS
            while not getattr((await until_answered(store.read)).members.get("a"), "draining", False):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert watched.failures == []

    run(scenario)


def test_a_store_closes_while_etcd_is_frozen(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        async with a_store(etcd) as watched:
            await watched.store.register(A)
            etcd.suspend()
            with pytest.raises(Unreachable):
                await watched.store.read()
            began_at = time.monotonic()
            await watched.store.close(leave=True)
            assert time.monotonic() - began_at < 2 * TIMEOUT_SECONDS + 1
            with pytest.raises(Unreachable, match="the node is stopping"):
                await watched.store.read()

    run(scenario)


def test_the_fleet_goes_on_when_etcd_loses_its_leader(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd(3)
        leader = etcd.leader()
        # All begin at the leader.
        first = [leader, *(member for member in etcd.members if member is not leader)]
        address = ",".join(member.address for member in first)
        async with a_store(address) as watched, a_store(etcd) as other:
            await watched.store.register(A)
            await watched.settle()
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            view = await watched.store.read()
            assert view.map is not None
            leader.kill()
            view = await until_answered(watched.store.read)
            made = None
            while made is None:  # unknown: look again
                view = await until_answered(watched.store.read)
                assert view.map is not None
                if view.map == a_map(2):
                    break
                made = await watched.store.swap(Swap(a_map(2), view.map.revision, {}))
            assert made is not False
            await until_members(other.store, {"a"})
            await watched.settle()
            await other.settle()
            for one in (watched, other):
                hints = one.hints
                while one.hints == hints:
                    etcd.put("/gearfleet/f/policies/f", "x")
                    with contextlib.suppress(AssertionError):
                        await until(lambda one=one, hints=hints: one.hints > hints, 0.3)
            assert watched.failures == []

    run(scenario)


def test_endpoints_that_are_down_or_silent_are_passed_over(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        silent = start_etcd()
        silent.suspend()
        address = f"127.0.0.1:{lasting_port()},{silent.address},{etcd.address}"
        async with a_store(address) as watched:
            began_at = time.monotonic()
            await until_answered(watched.store.read)
            assert time.monotonic() - began_at < 2 * TIMEOUT_SECONDS + 2
            await watched.store.register(A)
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            await watched.settle()

    run(scenario)


def test_a_full_etcd_says_so(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd(1, "--quota-backend-bytes", "200000")
        async with a_store(etcd) as watched:
            await watched.store.read()

            def is_full() -> bool:
                try:
                    etcd.put("/other", b"x" * 100_000)
                except AssertionError:
                    return True
                return False

            await until(is_full)
            await until(lambda: etcd.call("maintenance/alarm", {"action": "GET"}).get("alarms"))
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is False
            assert "is full and takes no writes" in (watched.store.error or "")
            with pytest.raises(Denied, match="etcdctl alarm disarm"):
                await watched.store.register(A)

    run(scenario)


# ---- an etcd that refuses


@pytest.fixture
def locked_etcd(start_etcd: StartEtcd) -> Etcd:
    """An etcd that wants user and password."""
    etcd = start_etcd()
    etcd.enable_auth("node", "secret")
    return etcd


def test_user_and_password_are_given_and_a_token_that_etcd_forgot_is_renewed(locked_etcd: Etcd) -> None:
    async def scenario() -> None:
        async with a_store(locked_etcd, user="node", password="secret") as watched:
            store = watched.store
            await store.register(A)
            await watched.settle()
            await store.read()
            # A restart forgets all tokens, as their age does.
            locked_etcd.kill()
            hints = watched.hints
            locked_etcd.start()
            await until_answered(store.read)
            assert await store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            await until_members(store, {"a"})
            await until(lambda: watched.hints > hints)
            assert (store.error, watched.failures) == (None, [])

    run(scenario)


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ({}, "wants a user: set etcd_user and etcd_password_file"),
        ({"user": "node", "password": "wrong"}, "refuses user or password: correct etcd_user"),
        ({"user": "nobody", "password": "secret"}, "refuses user or password"),
    ],
)
def test_a_wrong_user_is_told_what_to_set(
    locked_etcd: Etcd, credentials: dict[str, str], message: str
) -> None:
    async def scenario() -> None:
        async with a_store(locked_etcd, **credentials) as watched:
            with pytest.raises(Denied, match=message):
                await watched.store.read()
            assert message in (watched.store.error or "")
            assert "secret" not in (watched.store.error or "")

    run(scenario)


def test_a_user_without_the_right_is_told_which(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        etcd.enable_auth("node", "secret", prefix="/other/")
        async with a_store(etcd, user="node", password="secret") as watched:
            with pytest.raises(Denied, match="grant its role readwrite on the prefix /gearfleet/"):
                await watched.store.read()

    run(scenario)


def test_an_etcd_that_asks_nobody_takes_a_user_too(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd, user="node", password="secret") as watched:
            await watched.store.read()

    run(scenario)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_etcd_with_tls_and_client_certificates(
    start_etcd: StartEtcd, certificates: Certificates, tmp_path: Path
) -> None:
    async def scenario() -> None:
        etcd = start_etcd(tls=certificates)
        ca = certificates.ca.read_bytes()
        pair = {
            "certificate": certificates.client_certificate.read_bytes(),
            "key": certificates.client_key.read_bytes(),
        }
        async with a_store(etcd, ca=ca, **pair) as watched:
            await watched.store.register(A)
            await watched.settle()
            await until_members(watched.store, {"a"})
        stranger = make_certificates(tmp_path / "stranger").ca.read_bytes()
        for wrong in ({"ca": ca}, {"ca": stranger, **pair}, {}):
            async with a_store(etcd, **wrong) as watched:
                with pytest.raises(Unreachable):
                    await watched.store.read()
                assert watched.store.error

    run(scenario)


# ---- an etcd that forgets


def test_a_wiped_etcd_is_noticed_and_nothing_is_written_to_it(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        async with a_store(etcd) as watched:
            await watched.store.register(A)
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            await watched.store.read()
            etcd.wipe()
            with pytest.raises(
                Regressed, match="was wiped or restored from a backup; stop all nodes and use"
            ):
                await until_answered(watched.store.read)
            hints = watched.hints
            await until(lambda: watched.hints > hints)  # the keep-alive has noticed, too
            assert etcd.get("/gearfleet/f/nodes/a") is None
            assert "gearfleet fleet restore" in (watched.store.error or "")

    run(scenario)


@pytest.mark.parametrize("known", ["map", "config"])
def test_also_when_it_has_overtaken_what_was_seen(start_etcd: StartEtcd, known: str) -> None:
    async def scenario() -> None:
        etcd = start_etcd()
        async with a_store(etcd) as watched:
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            before = await watched.store.read()
            if known == "config":  # then the map alone looks like a later one
                async with a_store(etcd, fleet="spare") as spare:
                    assert await spare.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
                data, config = etcd.get("/gearfleet/f/map"), etcd.get("/gearfleet/f/config")
                assert data is not None
                assert config is not None
            etcd.wipe()
            while etcd.revision <= before.revision + 1:
                etcd.put("/other", "x")
            if known == "config":
                etcd.put("/gearfleet/f/config", config)
                etcd.put("/gearfleet/f/map", data)
            with pytest.raises(Regressed, match="is not the one that was there before"):
                await until_answered(watched.store.read)

    run(scenario)


def test_an_endpoint_of_another_etcd_is_told_from_the_fleets(start_etcd: StartEtcd) -> None:
    async def scenario() -> None:
        etcd, stranger = start_etcd(), start_etcd()
        async with a_store(f"{etcd.address},{stranger.address}") as watched:
            await watched.store.read()
            etcd.suspend()
            with pytest.raises(Regressed, match=rf"{stranger.address} is another cluster than before"):
                await until_answered(watched.store.read)
            etcd.resume()
            # Regressed is about that endpoint: the other one still serves.
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                with contextlib.suppress(Unreachable, Regressed):
                    await watched.store.read()
                    break
                assert time.monotonic() < deadline
            assert watched.store.error is None

    run(scenario)


@pytest.mark.parametrize("key", ["map", "config"])
@pytest.mark.parametrize("value", [b"", b"{}", b'{"version":2}', b"\xff\xfe"])
def test_a_map_or_config_edited_by_hand_is_refused_until_it_is_mended(
    etcd: FleetEtcd, key: str, value: bytes
) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            assert await watched.store.swap(Swap(a_map(), 0, {}, CONFIG)) is True
            good = etcd.server.get(etcd.key(key))
            assert good is not None
            etcd.server.put(etcd.key(key), value)
            with pytest.raises(BadContent, match=rf"the etcd key {etcd.key(key)} cannot be used"):
                await watched.store.read()
            assert etcd.key(key) in (watched.store.error or "")
            etcd.server.put(etcd.key(key), good)
            assert (await watched.store.read()).map == a_map()
            assert watched.store.error is None

    run(scenario)


# ---- copies of a data directory (rule 10)

IDENTITY = "d" * 32
N1, N2, N3, N4 = (digit * 32 for digit in "1234")


def test_each_start_swaps_its_nonce_and_a_copy_is_found_out(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            start = watched.store.start_directory
            assert await start(IDENTITY, Nonces(("",), N1, ())) == "ok"
            assert await start(IDENTITY, Nonces(("",), N1, ())) == "ok"  # asked again
            assert await start(IDENTITY, Nonces((N1,), N2, ())) == "ok"
            # A copy of the time when N1 was the last, and one from before the first start.
            assert await start(IDENTITY, Nonces((N1,), N3, ())) == "copied"
            assert await start(IDENTITY, Nonces(("",), N3, ())) == "copied"
            # A crash between writing N3 and the swap, or after it.
            assert await start(IDENTITY, Nonces((N2, N3), N4, (N1,))) == "ok"
            assert etcd.server.get(etcd.key(f"dirs/{IDENTITY}")) == N4.encode()

    run(scenario)


def test_of_two_copies_that_start_at_once_one_wins(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as one, a_store(etcd) as other:
            assert await one.store.start_directory(IDENTITY, Nonces(("",), N1, ())) == "ok"
            states = await asyncio.gather(
                one.store.start_directory(IDENTITY, Nonces((N1,), N2, ())),
                other.store.start_directory(IDENTITY, Nonces((N1,), N3, ())),
            )
            assert sorted(states) == ["copied", "ok"]

    run(scenario)


def test_an_etcd_that_went_back_costs_no_directory(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            start = watched.store.start_directory
            etcd.server.put(etcd.key(f"dirs/{IDENTITY}"), N1)  # as restored from a backup
            with pytest.raises(Regressed, match="does not know the last start"):
                await start(IDENTITY, Nonces((N3,), N4, (N1, N2)))
            assert await watched.store.forget_directories() is True
            with pytest.raises(Regressed, match="stop all nodes and use `gearfleet fleet restore`"):
                await start(IDENTITY, Nonces((N3,), N4, (N1, N2)))
            assert await start(IDENTITY, Nonces((N3,), N4, (N1, N2)), missing_ok=True) == "ok"
            assert await watched.store.forget_directories([IDENTITY]) is True
            assert etcd.server.get(etcd.key(f"dirs/{IDENTITY}")) is None

    run(scenario)


def test_a_nonce_edited_by_hand_costs_no_directory(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with a_store(etcd) as watched:
            etcd.server.put(etcd.key(f"dirs/{IDENTITY}"), "x")
            with pytest.raises(BadContent, match=r"holds 'x', which no node writes\. Mend: write back"):
                await watched.store.start_directory(IDENTITY, Nonces((N3,), N4, ()))

    run(scenario)


def test_a_nonce_whose_swap_was_not_answered_is_looked_up(etcd: FleetEtcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.address) as proxy, a_store(proxy.address, fleet=etcd.fleet) as watched:
            await watched.store.read()
            nonces = Nonces(("",), N1, ())
            proxy.mute = True
            with pytest.raises(Unreachable):
                await watched.store.start_directory(IDENTITY, nonces)
            proxy.mute = False
            again = watched.store.start_directory
            assert await until_answered(lambda: again(IDENTITY, nonces)) == "ok"

    run(scenario)


# ---- options


def test_the_options_are_read_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\nnot this\n")
    (tmp_path / "ca").write_text("pem")
    settings = load_settings(
        {
            "etcd": "etcd-1,etcd-2:1",
            "fleet": "g",
            "lease_seconds": "9",
            "etcd_user": "u",
            "etcd_password_file": str(tmp_path / "password"),
            "etcd_ca": str(tmp_path / "ca"),
        }
    )
    options = store_options(settings)
    assert (options.fleet, options.lease_seconds, options.keepalive_seconds) == ("g", 9, 1.0)
    assert [str(endpoint) for endpoint in options.etcd.endpoints] == ["etcd-1:2379", "etcd-2:1"]
    assert (options.etcd.user, options.etcd.password, options.etcd.ca) == ("u", "secret", b"pem")
    assert options.etcd.rpc_timeout_seconds == 1.5
    assert "secret" not in repr(options)
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("", "no password"), ("\nx", "no password"), ("x" * 4097, "no")],
)
def test_a_password_file_without_a_password_is_told(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)
    settings = load_settings({"etcd": "e", "etcd_user": "u", "etcd_password_file": str(path)})
    with pytest.raises(StartError, match=message):
        store_options(settings)


# ---- the fleet's secret


def test_a_fleet_without_a_secret_gets_one_from_whoever_comes_first(etcd: FleetEtcd) -> None:
    async def scene() -> None:
        async with a_store(etcd) as one, a_store(etcd) as other:
            await asyncio.gather(one.store.have_secret(b"1" * 32), other.store.have_secret(b"2" * 32))
            known = one.store.secrets
            assert known in ((b"1" * 32,), (b"2" * 32,))
            assert other.store.secrets == known
            # Deleted by somebody, it is put back and not made anew.
            etcd.server.delete(etcd.key("secret"))
            await other.store.have_secret(b"3" * 32)
            await one.store.read()
            assert one.store.secrets == other.store.secrets == known

    asyncio.run(scene())


def test_a_secret_is_exchanged_only_for_the_one_that_was_read(etcd: FleetEtcd) -> None:
    async def scene() -> None:
        async with a_store(etcd) as watched:
            store, (one, two) = watched.store, (b"1" * 32, b"2" * 32)
            await store.have_secret(one)
            assert await store.change_secret((two, one), (one,)) is True
            assert await store.change_secret((one,), (one,)) is False
            await store.read()
            assert store.secrets == (two, one)

    asyncio.run(scene())


def test_what_is_no_secret_is_told_and_the_one_that_was_known_stays(etcd: FleetEtcd) -> None:
    async def scene() -> None:
        async with a_store(etcd) as watched:
            store, one = watched.store, b"1" * 32
            await store.have_secret(one)
            etcd.server.put(etcd.key("secret"), "a password")
            await store.read()
            assert store.secrets == (one,)
            assert store.error is not None
            assert "delete the key" in store.error
            assert "a password" not in store.error
        async with a_store(etcd) as newcomer:
            with pytest.raises(BadContent, match="delete the key"):
                await newcomer.store.have_secret(one)

    asyncio.run(scene())
