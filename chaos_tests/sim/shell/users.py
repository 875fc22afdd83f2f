"""Stock clients and workers, as scripts on the simulated network.

A client submits jobs at one node, waits for each answer, of foreground jobs also for the end, and goes to
another node when that takes too long. A worker is registered on every node, grabs, works for a while,
reports.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from chaos_tests.sim.shell.fleet import GEARMAN_PORT
from cluster.drill.account import place
from cluster.wire import Decoder, request
from cluster.wire import packets as wire

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import Process, World
    from cluster.drill.history import History

FUNCTION: Final = b"f"
KEYS: Final = 60  # different unique keys: some coalesce
FOREGROUND_SHARE: Final = 0.1
LEAVES_SHARE: Final = 0.01  # of jobs that a worker leaves in the middle
PATIENCE_SECONDS: Final = 25.0
SUBMITS: Final = (wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_LOW_BG)
FOREGROUND_SUBMITS: Final = (wire.SUBMIT_JOB, wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB_LOW)
ENDS: Final = (wire.WORK_COMPLETE, wire.WORK_FAIL)
RESULT: Final = b"r"  # what stock workers answer
PRIORITIES: Final = {
    wire.SUBMIT_JOB_BG: "normal",
    wire.SUBMIT_JOB_HIGH_BG: "high",
    wire.SUBMIT_JOB_LOW_BG: "low",
    wire.SUBMIT_JOB: "normal",
    wire.SUBMIT_JOB_HIGH: "high",
    wire.SUBMIT_JOB_LOW: "low",
}


class Connection(asyncio.Protocol):
    """Packets over one connection."""

    def __init__(self) -> None:
        self._decoder = Decoder(from_server=True)
        self._packets: deque[tuple[int, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._packets += self._decoder.feed(data)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self, packet_type: int, *arguments: bytes) -> None:
        self.transport.write(request(packet_type, *arguments))

    async def packet(self) -> tuple[int, bytes]:
        """The next one. Raises ConnectionError."""
        while not self._packets:
            if self._lost:
                raise ConnectionError
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._packets.popleft()


async def _connect(node: str) -> Connection:
    async with asyncio.timeout(3.0):
        _, connection = await asyncio.get_running_loop().create_connection(Connection, node, GEARMAN_PORT)
    return connection


@dataclass
class Told:
    """What users were told, for whoever judges the fleet."""

    history: History
    acknowledged: dict[bytes, bytes] = field(default_factory=dict)  # handle -> key
    news: deque[tuple[bytes, bytes, bool]] = field(default_factory=deque)  # of them: handle, key, over before
    done: dict[bytes, None] = field(default_factory=dict)  # handles whose end a worker reported
    payloads: dict[bytes, set[bytes]] = field(default_factory=dict)  # by key: one job has many submits

    def submitted(self, key: bytes, payload: bytes) -> None:
        self.payloads.setdefault(key, set()).add(payload)

    def may_be_result(self, key: bytes, result: bytes) -> bool:
        """Workers send back what one of the key's submits had brought."""
        return result == RESULT or result in self.payloads[key]

    def acknowledge(self, handle: bytes, key: bytes) -> None:
        self.acknowledged[handle] = key
        self.news.append((handle, key, False))


class Client:
    """See the module's docstring."""

    def __init__(self, world: World, name: str, nodes: list[str], told: Told, haste: float = 1.0) -> None:
        """`haste`: how many times more it submits than usual."""
        self.haste = haste
        self.dice = world.dice_for(f"client {name}")
        self.world = world
        self.name = name
        self.nodes = nodes
        self.told = told
        self.until = 0.0  # when it stops submitting
        self.counter = 0
        self.awaited: dict[int, None] = {}  # foreground calls whose end it waits for
        self.process: Process

    def start(self, until: float) -> None:
        self.until = until
        self.process = self.world.process(self.world.host(self.name))
        self.process.spawn(self._run())

    def kill(self) -> None:
        """kill -9. It can be started again."""
        self.process.kill()
        self._give_up("its client was killed")

    def _give_up(self, text: str) -> None:
        while self.awaited:
            self.told.history.unknown(self.awaited.popitem()[0], text)

    @property
    def waiting(self) -> int:
        return len(self.awaited)

    async def _run(self) -> None:
        while self.world.now < self.until:
            try:
                await self._visit(self.dice.choice(self.nodes))
            except (OSError, TimeoutError):
                await asyncio.sleep(self.dice.uniform(0.02, 0.5))

    async def _visit(self, node: str) -> None:
        connection = await _connect(node)
        try:
            if self.dice.random() < 0.3:
                connection.send(wire.OPTION_REQ, wire.OPTION_GEARFLEET)
            pace = self.dice.choice((0.06, 0.5, 1.0)) / self.haste
            for _ in range(self.dice.randint(1, 25)):
                if self.world.now > self.until:
                    break
                if self.dice.random() < FOREGROUND_SHARE:
                    await self._foreground(connection, node)
                else:
                    await self._submit(connection, self.dice.choice((1, 1, 1, 2, 8)))
                await asyncio.sleep(self.dice.expovariate(1 / pace))
        finally:
            connection.transport.abort() if self.dice.random() < 0.3 else connection.transport.close()

    async def _submit(self, connection: Connection, count: int) -> None:
        """So many at once; then all answers."""
        calls: deque[tuple[int, bytes, int]] = deque()
        history = self.told.history
        for _ in range(count):
            unique, payload = self._next()
            verb = self.dice.choice(SUBMITS)
            call = history.submit(f"{FUNCTION.decode()}/{unique.decode()}", priority=PRIORITIES[verb])
            calls.append((call, unique, len(self.told.done)))
            connection.send(verb, FUNCTION, unique, payload)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while calls:
                    packet_type, body = await connection.packet()
                    if packet_type == wire.JOB_CREATED:
                        call, unique, _ = calls.popleft()
                        self._acknowledged(call, unique, body)
                    elif packet_type == wire.ERROR:
                        call, unique, _ = calls.popleft()
                        # It may have been taken all the same, and only its commit be late.
                        history.unknown(call, body.decode("utf-8", "replace"))
        except (OSError, TimeoutError) as error:
            for call, _, _ in calls:
                history.unknown(call, type(error).__name__)
            raise

    def _next(self) -> tuple[bytes, bytes]:
        """A job's unique and payload."""
        self.counter += 1
        if self.dice.random() < 0.15:
            unique, key = b"", b"%s/%s.%d" % (FUNCTION, self.name.encode(), self.counter)
            unique = key if self.dice.random() < 0.5 else b""
        else:
            unique = b"u%d" % self.dice.randrange(KEYS)
        payload = b"%s %d" % (self.name.encode(), self.counter)
        self.told.submitted(unique, payload)
        return unique, payload

    async def _foreground(self, connection: Connection, node: str) -> None:
        """One job, and its end."""
        history = self.told.history
        unique, payload = self._next()
        verb = self.dice.choice(FOREGROUND_SUBMITS)
        key = f"{FUNCTION.decode()}/{unique.decode()}"
        call = history.submit(key, priority=PRIORITIES[verb], foreground=True)
        self.awaited[call] = None
        connection.send(verb, FUNCTION, unique, payload)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.awaited:
                    packet_type, body = await connection.packet()
                    if packet_type == wire.JOB_CREATED:
                        history.ack(call, handle=body.decode(), node=node)
                    elif packet_type == wire.ERROR:
                        self._give_up(body.decode("utf-8", "replace"))
                    elif packet_type in ENDS:
                        failed = packet_type == wire.WORK_FAIL
                        history.result(call, text="failed" if failed else "")
                        del self.awaited[call]
                        result = body.partition(b"\0")[2]
                        self.world.say("result", unique.decode(), result)
                        if not failed and not self.told.may_be_result(unique, result):
                            self.world.fail(
                                "the result of another job", f"{self.name}, {unique!r}: {result!r}"
                            )
        except (OSError, TimeoutError) as error:
            self._give_up(type(error).__name__)
            raise

    def _acknowledged(self, call: int, unique: bytes, handle: bytes) -> None:
        told = self.told
        name = handle.decode()
        if joined_foreground(name):
            told.history.unknown(call, f"joined {name}")
        else:
            told.history.ack(call, handle=name)
        told.acknowledge(handle, unique)
        self.world.say("acknowledged", handle.decode(), unique.decode())


def joined_foreground(handle: str) -> bool:
    """Whether a background submit that was told this handle made a foreground job one that lasts. A history
    knows nothing of such jobs; that they end is looked at all the same (Run._owed)."""
    return place(handle)[2]


class Worker:
    """See the module's docstring."""

    def __init__(self, world: World, name: str, nodes: list[str], told: Told) -> None:
        self.dice = world.dice_for(f"worker {name}")
        self.world = world
        self.name = name
        self.told = told
        self.work_seconds = self.dice.choice((0.002, 0.05, 0.4))
        self.until = 0.0
        self.nodes = nodes
        self.process: Process

    def start(self, until: float) -> None:
        """It works for ever; `until` is of those who submit."""
        self.until = until
        self.process = self.world.process(self.world.host(self.name))
        for node in self.nodes:
            self.process.spawn(self._serve(node, self.world.dice_for(f"worker {self.name} at {node}")))

    def kill(self) -> None:
        """kill -9. It can be started again."""
        self.process.kill()

    async def _serve(self, node: str, dice: Random) -> None:
        while True:
            try:
                connection = await _connect(node)
                try:
                    connection.send(wire.CAN_DO, FUNCTION)
                    await self._work(connection, node, dice)
                finally:
                    connection.transport.close()
            except (OSError, TimeoutError):
                await asyncio.sleep(dice.uniform(0.05, 0.5))

    async def _work(self, connection: Connection, node: str, dice: Random) -> None:
        history = self.told.history
        while True:
            connection.send(wire.GRAB_JOB_UNIQ)
            packet_type, body = await connection.packet()
            while packet_type == wire.NOOP:
                packet_type, body = await connection.packet()
            if packet_type == wire.NO_JOB:
                connection.send(wire.PRE_SLEEP)
                while (await connection.packet())[0] != wire.NOOP:
                    pass
                continue
            if packet_type != wire.JOB_ASSIGN_UNIQ:
                continue  # a late result that nobody wanted
            handle, function, unique, _ = body.split(b"\0", 3)
            name = handle.decode()
            history.run(f"{function.decode()}/{unique.decode()}", worker=self.name, handle=name, node=node)
            await asyncio.sleep(dice.expovariate(1 / self.work_seconds))
            if dice.random() < LEAVES_SHARE:
                history.healed(history.fault("worker leaves", self.name))
                raise ConnectionError
            self.world.say("done", name)
            self.told.done[handle] = None
            history.done(worker=self.name, handle=name, node=node)
            connection.send(wire.WORK_COMPLETE, handle, RESULT)
