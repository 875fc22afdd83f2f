"""What was begun is mended: also what began late, was cut short, or that nobody can be asked about."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from client_ha.addresses import Server
from cluster.drill import faults
from cluster.drill.faults import Drain, EtcdOutage, FaultFailed, Kill, Means, make_means
from cluster.drill.watch import Watch
from cluster.server.control import (
    ControlService,
    ControlUnreachable,
    DrainStep,
    FleetStatus,
    NodeStatus,
)
from tests.support.peering import SECRETS, hello


class Folder:
    """A fleet of one node: commands say what becomes of it by the files that they make in a folder."""

    def __init__(self, path: Path, port: int = 1) -> None:
        self.path = path
        self.node = NodeStatus("a", incarnation=1, host="127.0.0.1", port=port, peer_port=1)
        self.watch = Watch([])
        self.dead: Callable[[], bool] = lambda: self.has("killed-a")
        self.silent_when_dead = False
        self.joined = 0
        self.drained = asyncio.Event()  # nothing of a drain is told before

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def command(self, script: str) -> str:
        return f"sh -c 'cd {self.path}; {script}'"

    def means(self, kill: str = "touch killed-{node}", start: str = "touch started-{node}") -> Means:
        return make_means(kill_command=self.command(kill), start_command=self.command(start))

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        service = ControlService(self, hello("a"), secrets=lambda: SECRETS, trust_loopback=True)
        server.add_generic_rpc_handlers((service.handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.watch = Watch([Server("127.0.0.1", port)])
        try:
            yield
        finally:
            await server.stop(None)

    # ---- ControlOwner

    async def describe(self, *, slots: bool) -> FleetStatus:
        node = self.node
        if self.has("started-a") and self.dead():
            node = NodeStatus("a", incarnation=2, host="127.0.0.1", port=1, peer_port=1)
        elif self.dead():
            if self.silent_when_dead:
                raise ControlUnreachable("it is dead")
            node = NodeStatus("a", state="down")
        return FleetStatus("f", "b", 1, 1, 1, nodes=(node,))

    async def drain(self, node: str, *, restart: bool) -> AsyncIterator[DrainStep]:
        await self.drained.wait()
        yield DrainStep(1, 0)
        (self.path / "killed-a").touch()
        yield DrainStep(0, 0, done=True, message="given away")

    async def join(self, node: str) -> str:
        self.joined += 1
        return "takes part again"

    async def forget(self, node: str) -> str:
        raise NotImplementedError

    async def promote(self, node: str, slots: Sequence[int], *, lossy: bool) -> str:
        raise NotImplementedError


def play(folder: Path, scene: Callable[[Folder], Awaitable[None]]) -> None:
    async def run() -> None:
        fleet = Folder(folder)
        async with fleet.answering():
            await scene(fleet)

    asyncio.run(run())


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_a_node_is_started_again_where_nobody_is_left_who_could_tell_of_it(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        fleet.silent_when_dead = True
        told: list[str] = []
        fault = Kill(fleet.node, fleet.means(), fleet.watch)
        await fault.begin(told.append)
        assert told[-1] == "nobody answers: a counts as killed"
        await fault.mend(told.append)
        assert fleet.has("started-a")

    play(tmp_path, scene)


def test_a_node_that_dies_after_its_kill_command_failed_is_started_again(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        began = time.monotonic()
        fleet.dead = lambda: time.monotonic() > began + 3.0
        with socket.create_server(("127.0.0.1", 0)) as listening:
            fleet.node = NodeStatus("a", incarnation=1, host="127.0.0.1", port=listening.getsockname()[1])
            start = "test -e dead-{node} || exit 1; touch started-{node}"
            fault = Kill(fleet.node, fleet.means("touch killed-{node}; exit 1", start), fleet.watch)
            with pytest.raises(FaultFailed, match="ended with 1"):
                await fault.begin(str)
            mending = asyncio.create_task(fault.mend(str))
            await until(fleet.dead)
            (tmp_path / "dead-a").touch()
        await mending
        assert fleet.has("started-a")

    play(tmp_path, scene)


def test_a_node_that_is_up_as_before_is_started_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what the kill command still does, and one start too many does no harm."""
    monkeypatch.setattr(faults, "NOTICE_SECONDS", 0.1)

    async def scene(fleet: Folder) -> None:
        fault = Kill(fleet.node, fleet.means("true {node}"), fleet.watch)
        with pytest.raises(FaultFailed, match="a is up as before: does it kill the right process"):
            await fault.begin(str)
        await fault.mend(str)
        assert fleet.has("started-a")

    play(tmp_path, scene)


def test_a_command_that_cannot_be_run_has_nothing_to_be_mended(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        means = make_means(kill_command="/nonexistent {node}", start_command=fleet.command("touch x{node}"))
        fault = Kill(fleet.node, means, fleet.watch)
        with pytest.raises(FaultFailed, match="cannot be run"):
            await fault.begin(str)
        await fault.mend(str)
        assert not fleet.has("xa")

    play(tmp_path, scene)


def test_a_drained_node_is_started_again_where_nobody_is_left_who_could_tell_of_it(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        fleet.silent_when_dead = True
        fleet.drained.set()
        fault = Drain(fleet.node, fleet.means(), fleet.watch)
        await fault.begin(str)
        await fault.mend(str)
        assert fleet.has("started-a")

    play(tmp_path, scene)


def test_a_drain_that_was_given_up_before_it_began_is_called_off(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        fault = Drain(fleet.node, fleet.means(), fleet.watch)
        beginning = asyncio.create_task(fault.begin(str))
        await asyncio.wait({beginning}, timeout=0.1)
        beginning.cancel()
        mending = asyncio.create_task(fault.mend(str))
        await asyncio.wait({mending}, timeout=0.1)
        assert not mending.done()
        fleet.dead = lambda: False
        fleet.drained.set()
        await mending
        assert fleet.joined
        assert not fleet.has("started-a")

    play(tmp_path, scene)


def test_etcd_is_started_after_it_has_stopped_also_by_who_gives_up_meanwhile(tmp_path: Path) -> None:
    async def scene(fleet: Folder) -> None:
        stop = fleet.command("touch stopping; while test ! -e go; do sleep 0.02; done; touch stopped")
        start = fleet.command("test -e stopped || exit 1; touch started")
        another = fleet.command("touch another")
        fault = EtcdOutage(make_means(etcd_stop=(stop, another), etcd_start=(start,)))
        beginning = asyncio.create_task(fault.begin(str))
        await until(lambda: fleet.has("stopping"))
        beginning.cancel()
        await asyncio.wait({beginning})
        mending = asyncio.create_task(fault.mend(str))
        await asyncio.wait({mending}, timeout=0.1)
        assert not mending.done()
        (tmp_path / "go").touch()
        await mending
        assert fleet.has("started")
        assert not fleet.has("another")

    play(tmp_path, scene)


def test_etcd_is_started_once_more_when_it_may_stop_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "LATE_SECONDS", 0.05)

    async def scene(fleet: Folder) -> None:
        start = fleet.command("echo x >>started")
        fault = EtcdOutage(make_means(etcd_stop=("false",), etcd_start=(start,)))
        with pytest.raises(FaultFailed, match="false: ended with 1"):
            await fault.begin(str)
        await fault.mend(str)
        assert (tmp_path / "started").read_text() == "x\nx\n"

    play(tmp_path, scene)
