"""HAClients and HAWorkers as processes of a world: the real engines of client_ha, each on a loop of its own.

They know some of the nodes, and find the others by the map. What they see goes into the history that stock
users write, too (users.py).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from chaos_tests.sim.shell.fleet import GEARMAN_PORT
from chaos_tests.sim.shell.users import FUNCTION, KEYS, Told, joined_foreground
from client_ha import AsyncHAClient, AsyncHAWorker, JobContext, JobFailed
from client_ha.flight import Priority
from client_ha.job import AsyncJob
from client_ha.link import Link
from cluster.drill.recorded import Recorder

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import Process, World

NAME: Final = FUNCTION.decode()
SUBMIT_SECONDS: Final = 30.0
RESULT_SECONDS: Final = 40.0
PRIORITIES: Final[tuple[Priority, ...]] = ("normal", "high", "low")
FAILING_SHARE: Final = 0.03
BURST: Final = 60
BURST_SECONDS: Final = 5.0  # from one to the next
BURST_WORK_SECONDS: Final = 0.04


def _addresses(world: World, nodes: list[str]) -> list[str]:
    return [f"{world.host(node).address}:{GEARMAN_PORT}" for node in nodes]


def _node_of(world: World, server: str | None) -> str:
    """A node's name by "host:port"."""
    address = (server or "").rpartition(":")[0]
    return next((host.name for host in world.hosts.values() if address in (host.address, host.name)), "")


class _BackgroundRecorder(Recorder):
    """Some of the jobs that it is told of are foreground jobs that were there."""

    def _acknowledged(self, call: int, job: AsyncJob) -> None:
        if joined_foreground(job.handle or ""):
            self.history.unknown(call, f"joined {job.handle}")
        else:
            super()._acknowledged(call, job)


class HAClient:
    """One process with one AsyncHAClient: jobs one after the other, or several at once."""

    def __init__(
        self, world: World, name: str, nodes: list[str], told: Told, *, bursts: bool = False
    ) -> None:
        """`bursts`: nothing but jobs whose order matters, faster than they are done."""
        self.bursts = bursts
        self.world = world
        self.name = name
        self.told = told
        self.until = 0.0
        self.dice = world.dice_for(f"client {name}")
        self.process: Process
        self._recorder = Recorder(told.history, partial(_node_of, world))
        self._background_recorder = _BackgroundRecorder(told.history, partial(_node_of, world))
        self._servers = _addresses(world, self.dice.sample(nodes, self.dice.randint(1, len(nodes))))
        self._counter = 0
        self._order = 0

    def start(self, until: float) -> None:
        """Submit until then; what is under way is waited for after it."""
        self.until = until
        self.process = self.world.process(self.world.host(self.name))
        self.process.spawn(self._run())

    def kill(self) -> None:
        """kill -9: nobody is there any more to be told anything. It can be started again."""
        self.process.kill()
        self._recorder.give_up("its client was killed")
        self._background_recorder.give_up("its client was killed")

    @property
    def waiting(self) -> int:
        """Calls whose end is awaited."""
        return len(self._recorder.under_way) + len(self._background_recorder.under_way)

    async def _run(self) -> None:
        dice = self.dice
        while self.world.now < self.until:
            async with AsyncHAClient(self._servers, submit_timeout=SUBMIT_SECONDS) as client:
                if self.bursts:
                    await self._burst(client)
                    continue
                for _ in range(dice.randint(5, 60)):
                    if self.world.now >= self.until:
                        break
                    await self._submit(client)
                    await asyncio.sleep(dice.expovariate(1 / dice.choice((0.03, 0.2, 0.6))))

    async def _burst(self, client: AsyncHAClient) -> None:
        """Several hands, each of which waits for its acknowledgement: only then is an order promised."""
        next_at = self.world.now + BURST_SECONDS

        async def hand() -> None:
            for _ in range(BURST // 3):
                if self.world.now < self.until:
                    await self._background(client, self._own_key(), in_order=True)

        await asyncio.gather(hand(), hand(), hand())
        await asyncio.sleep(max(0.0, min(next_at, self.until) - self.world.now))

    async def _submit(self, client: AsyncHAClient) -> None:
        kind = self.dice.random()
        if kind < 0.5:
            await self._background(client, self._own_key(), in_order=True)
        elif kind < 0.65:
            await self._background(client, f"u{self.dice.randrange(KEYS)}")
        elif kind < 0.75:
            count = self.dice.randint(2, 10)
            await asyncio.gather(*(self._background(client, self._own_key()) for _ in range(count)))
        elif kind < 0.85:
            await self._foreground(client, self._own_key())
        elif kind < 0.93:
            await self._foreground(client, f"u{self.dice.randrange(KEYS)}")
        else:
            await self._both(client, f"u{self.dice.randrange(KEYS)}")

    async def _both(self, client: AsyncHAClient, unique: str) -> None:
        """A foreground and a background submit of one key, either of which may come first."""
        submits = [self._foreground(client, unique), self._background(client, unique)]
        self.dice.shuffle(submits)
        await asyncio.gather(*submits)

    def _own_key(self) -> str:
        self._counter += 1
        return f"{self.name}.{self._counter}"

    async def _background(self, client: AsyncHAClient, unique: str, *, in_order: bool = False) -> None:
        order = 0
        if in_order:
            self._order += 1
            order = self._order
        priority = self.dice.choice(PRIORITIES)
        payload = self._payload(unique)
        job = await self._background_recorder.background(
            client, NAME, unique, payload, priority=priority, order=order
        )
        if job is not None:
            assert job.handle is not None
            self.told.acknowledge(job.handle.encode(), unique.encode())
            self.world.say("acknowledged", job.handle, unique)

    async def _foreground(self, client: AsyncHAClient, unique: str) -> None:
        payload = self._payload(unique)
        end = await self._recorder.foreground(client, NAME, unique, payload, timeout_seconds=RESULT_SECONDS)
        if isinstance(end, bytes):
            self.world.say("result", unique)
            if not self.told.may_be_result(unique.encode(), end):
                self.world.fail("the result of another job", f"{self.name}, {unique}: {end!r}")

    def _payload(self, unique: str) -> bytes:
        payload = unique.encode() + b"." * self.dice.choice((0, 0, 10, 1000))
        self.told.submitted(unique.encode(), payload)
        return payload


class HAWorker:
    """One process with one AsyncHAWorker, for ever."""

    def __init__(
        self, world: World, name: str, nodes: list[str], told: Told, *, bursts: bool = False
    ) -> None:
        """`bursts`: one job at a time, while many wait."""
        self.world = world
        self.name = name
        self.told = told
        self.dice = world.dice_for(f"worker {name}")
        self._servers = _addresses(world, self.dice.sample(nodes, self.dice.randint(1, len(nodes))))
        self._concurrency = self.dice.choice((1, 1, 4))
        self._work_seconds = self.dice.choice((0.002, 0.05, 0.5))
        if bursts:
            self._concurrency, self._work_seconds = 1, BURST_WORK_SECONDS
        self._recorder = Recorder(told.history, partial(_node_of, world))
        self.until = 0.0
        self.process: Process

    def start(self, until: float) -> None:
        """It works for ever; `until` is of those who submit."""
        self.until = until
        self.process = self.world.process(self.world.host(self.name))
        self.process.spawn(self._run())

    def kill(self) -> None:
        """kill -9. It can be started again."""
        self.process.kill()

    async def _run(self) -> None:
        while True:
            worker = AsyncHAWorker(self._servers, concurrency=self._concurrency, client_id=self.name)
            worker.task(NAME)(self._work)
            async with worker:
                await asyncio.sleep(self.dice.expovariate(1 / 20.0))
                # It drains, ends and begins anew, as at an update of its program.

    async def _work(self, job: JobContext) -> bytes:
        with self._recorder.run(job, self.name):
            await asyncio.sleep(self.dice.expovariate(1 / self._work_seconds))
            self.told.done[job.handle.encode()] = None
            self.world.say("done", job.handle)
            if self.dice.random() < FAILING_SHARE:
                raise JobFailed
        return job.payload


class _Log:
    """Stands for the library's logger: its lines belong to the trace."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _say(self, level: str, text: str, *arguments: object) -> None:
        if self._world.current is not None and self._world.current.alive:
            self._world.say(f"[{level}]", text % arguments if arguments else text)

    def __getattr__(self, level: str) -> Any:
        return partial(self._say, level)

    def debug(self, text: str, *arguments: object) -> None:
        pass


def names(world: World, dice: Any) -> list[tuple[str, str, Any]]:
    """For replaced.py."""
    log = _Log(world)
    modules = ("async_worker", "engine", "job", "roster", "tasks", "worker", "worker_engine")
    return [
        *((f"client_ha.{module}", "logger", log) for module in modules),
        ("client_ha.engine", "random", dice),
        ("client_ha.engine", "uuid", dice),
        ("client_ha.roster", "random", dice),
        ("client_ha.roster", "Link", partial(Link, dice=lambda: dice.random())),
    ]
