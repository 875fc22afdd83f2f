"""What runs while things go wrong: clients and workers of every kind, at a steady, moderate rate.

    background     most of the jobs, of three priorities; each tenth repeats a recent key, to be coalesced
    ordered        one caller who waits for each acknowledgement, and one worker that takes one job at a time
    foreground     callers who wait for the result, and check it
    stock          a libgearman client and worker in processes of their own (see stock.py)

HAClients and HAWorkers are their asyncio kin, all in one thread. Each reaches the nodes over links of its
own, so that each can be cut off by itself. Everything is recorded in a history; nothing is concluded here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Protocol
from zlib import crc32

from benchmarks.fleet_load import LoopInThread
from chaos_tests.live.stock import StockProcess, need_stock, stock_client, stock_worker
from client_ha import AsyncHAClient, AsyncHAWorker, JobContext, JobFailed
from client_ha.flight import Priority
from cluster.drill.history import History, Kind
from cluster.drill.recorded import Recorder
from tests.support.waiting import eventually

SLOTS: Final = 1024
ASKERS: Final = 4
ORDERED_WORKER: Final = "w-ordered"
ORDERED_JOB_SECONDS: Final = 0.005
STOCK_PERIOD_MS: Final = 100
STOCK_JOB_MS: Final = 20
ORDERED_PERIOD_SECONDS: Final = 0.05
ASK_PERIOD_SECONDS: Final = 0.2
SUBMIT_SECONDS: Final = 60.0  # longer than any fault lasts: then a caller gives up, and nobody knows
CONCURRENCY: Final = 16  # jobs at a time, of each worker
REPEAT_EVERY: Final = 10  # background jobs
FAIL_EVERY: Final = 100
RECENT_KEYS: Final = 30
SCHEDULED_SECONDS_MAX: Final = 5
WARM_UP_JOBS: Final = 50
_PRIORITIES: Final[tuple[Priority, ...]] = ("normal", "high", "normal", "low")


Part = Literal["work", "ordered", "ask", "stock"]
PARTS: Final[tuple[Part, ...]] = ("work", "ordered", "ask", "stock")


class Count(NamedTuple):
    """Jobs of a function."""

    acknowledged: int
    run: int


class Counts:
    """What a history tells of each function, as far as it has come."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._read = 0
        self._functions: dict[int, str] = {}  # by call
        self._acknowledged: Counter[str] = Counter()
        self._run: Counter[str] = Counter()

    def of(self, function: str) -> Count:
        events = self._history.events
        while self._read < len(events):
            event = events[self._read]
            self._read += 1
            if event.kind is Kind.SUBMIT:
                self._functions[event.call] = event.key.partition("/")[0]
            elif event.kind is Kind.ACK:
                self._acknowledged[self._functions.get(event.call, "")] += 1
            elif event.kind is Kind.RUN:
                self._run[event.key.partition("/")[0]] += 1
        return Count(self._acknowledged[function], self._run[function])


class Roads(Protocol):
    """How somebody reaches the nodes; a ChaosFleet."""

    def servers(self, who: str) -> Sequence[str]:
        """Addresses of the links of this client or worker, one for each node."""

    def remap(self, who: str) -> Mapping[tuple[str, int], tuple[str, int]]:
        """From what nodes advertise to those links."""

    def node_at(self, server: str) -> str:
        """The node that such a link leads to."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of what. The defaults leave a small machine room for the fleet."""

    rate: float = 60.0  # background jobs a second, at most
    callers: int = 32  # of them; each waits for its acknowledgement
    job_seconds: float = 0.02  # on average; ordered jobs take ORDERED_JOB_SECONDS
    payload_bytes: int = 64
    clients: tuple[str, ...] = ("client",)
    workers: tuple[str, ...] = ("w1", "w2")
    stock: bool = False  # a stock client and worker beside them; skips where there is none
    askers: int = ASKERS
    ordered: bool = True
    scheduled: bool = False  # background jobs are for a time in the next seconds
    seed: int = 1


class Workload:
    """See the module's docstring. A context manager: entering returns when jobs flow."""

    def __init__(
        self,
        roads: Roads,
        history: History,
        name: str,
        shape: Shape | None = None,
        *,
        directory: Path = Path(),
    ) -> None:
        """`name` begins the names of its functions, so that nobody else's jobs are taken for its own.
        `directory`: for the histories of stock clients and workers."""
        self.history = history
        self.shape = shape or Shape()
        self.name = name
        self.directory = directory
        self.acknowledged = 0
        self.under_way = 0  # runs that have begun and not ended
        self.problems: list[str] = []  # that no history shows
        self._roads = roads
        self._recorder = Recorder(history, roads.node_at)
        self._dice = random.Random(self.shape.seed)
        self._payload = bytes(self.shape.payload_bytes)
        self._numbers = itertools.count()
        self._not_before: dict[str, int] = {}  # of scheduled jobs: seconds since 1970
        self._counts = Counts(history)
        self._recent: deque[str] = deque(maxlen=RECENT_KEYS)
        self._stop = asyncio.Event()
        self._clients: list[AsyncHAClient] = []
        self._workers: list[AsyncHAWorker] = []
        self._callers: list[asyncio.Task[None]] = []
        self._thread: LoopInThread | None = None
        self._stock: list[StockProcess] = []
        self._at_exit = ExitStack()

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{part}" for part in PARTS)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that this load has."""
        has = {"ordered": self.shape.ordered, "ask": self.shape.askers > 0, "stock": self.shape.stock}
        return tuple(part for part in PARTS if has.get(part, True))

    # ---- life

    def __enter__(self) -> Workload:
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            stack.callback(self._leave)
            if self.shape.stock:
                self._start_stock()
            self._thread = LoopInThread("workload")
            self._thread.run(self._start())
            self.flow(WARM_UP_JOBS)
            self._at_exit = stack.pop_all()
        return self

    def _start_stock(self) -> None:
        need_stock()
        self.directory.mkdir(parents=True, exist_ok=True)
        function, client, worker = self.functions[3], self.directory / "client", self.directory / "worker"
        self._stock = [
            stock_client(client, function, self._roads.servers("client"), period_ms=STOCK_PERIOD_MS),
            stock_worker(worker, function, self._roads.servers("w-stock"), "w-stock", job_ms=STOCK_JOB_MS),
        ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._at_exit.close()

    def _leave(self) -> None:
        if self._thread is not None:
            self._thread.run(self._close())
            self._thread.close()
            self._thread = None
        for process in self._stock:
            process.kill()

    async def _start(self) -> None:
        work, ordered, ask, stock = self.functions
        for name in self.shape.workers:
            await self._start_worker(name, CONCURRENCY, work, ask, stock)
        if self.shape.ordered:
            await self._start_worker(ORDERED_WORKER, 1, ordered)
        for name in self.shape.clients:
            self._clients.append(
                AsyncHAClient(
                    self._roads.servers(name),
                    address_remap=self._roads.remap(name),
                    submit_timeout=SUBMIT_SECONDS,
                )
            )
        callers: list[Coroutine[Any, Any, None]] = [
            self._submit_work(number) for number in range(self.shape.callers)
        ]
        callers += [self._ask(number) for number in range(self.shape.askers)]
        if self.shape.ordered:
            callers.append(self._submit_in_order())
        self._callers = [asyncio.create_task(caller) for caller in callers]

    async def _start_worker(self, name: str, concurrency: int, *functions: str) -> None:
        worker = AsyncHAWorker(
            self._roads.servers(name),
            address_remap=self._roads.remap(name),
            concurrency=concurrency,
            client_id=name,
            drain_seconds=5.0,
        )
        for function in functions:
            worker.task(function)(self._task(name))
        await worker.__aenter__()
        self._workers.append(worker)

    def stop(self) -> None:
        """No more submits; returns when those under way have ended, one way or the other."""
        assert self._thread is not None

        async def ended() -> None:
            self._stop.set()
            await asyncio.gather(*self._callers)

        self._thread.run(ended())
        for process in self._stock[:1]:
            process.kill()

    def whole_history(self) -> History:
        """With what the stock client and worker wrote, if there are any; after the end."""
        if not self._stock:
            return self.history
        own = self.directory / "own"
        self.history.save(own)
        return History.merge([own, *(process.history for process in self._stock)])

    async def _close(self) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for worker in self._workers:
            await worker.__aexit__(None, None, None)

    # ---- for whoever waits

    def flow(self, jobs: int = 30, timeout_seconds: float = SUBMIT_SECONDS) -> None:
        """Wait until so many more background jobs of our own clients are acknowledged."""
        until = self.acknowledged + jobs
        eventually(lambda: self.acknowledged >= until, timeout_seconds=timeout_seconds)

    def count(self, part: Part) -> Count:
        """How many jobs of this kind were acknowledged, and how many were given to workers."""
        paths = [process.history for process in self._stock if process.history.exists()]
        counts = [self._counts, *(Counts(History.load(path)) for path in paths if part == "stock")]
        found = [each.of(self.functions[PARTS.index(part)]) for each in counts]
        return Count(sum(each.acknowledged for each in found), sum(each.run for each in found))

    def flow_of(self, part: Part, jobs: int = 1, timeout_seconds: float = SUBMIT_SECONDS) -> None:
        """Wait until so many more of one kind are acknowledged, and so many more run."""
        before = self.count(part)

        def missing() -> str:
            for process in self._stock:
                assert process.running, f"a stock user has ended: {process.log_tail()}"
            now = self.count(part)
            enough = min(now.acknowledged - before.acknowledged, now.run - before.run) >= jobs
            return "" if enough else f"{part}: {before} and now {now}"

        eventually(lambda: missing() or "enough", "enough", timeout_seconds=timeout_seconds)

    def flow_of_each(self) -> None:
        """Wait until some of every kind that this load has are acknowledged, and some run."""
        for part in self.parts:
            self.flow_of(part)

    def run_for(self, seconds: float) -> None:
        """Let it go on for so long, whether anything is acknowledged or not."""
        until = self.history.now() + seconds
        eventually(lambda: self.history.now() >= until, timeout_seconds=2 * seconds + 10)

    # ---- callers

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not when it is time to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _submit_work(self, number: int) -> None:
        period = self.shape.callers / self.shape.rate
        await self._pause(period * number / self.shape.callers)
        client = self._clients[number % len(self._clients)]
        while not self._stop.is_set():
            unique = f"{next(self._numbers):06d}"
            if self._recent and self._dice.randrange(REPEAT_EVERY) == 0:
                unique = self._dice.choice(self._recent)
            self._recent.append(unique)
            priority = self._dice.choice(_PRIORITIES)
            await self._call(client, self.functions[0], unique, priority)
            await self._pause(period * self._dice.uniform(0.5, 1.5))

    async def _submit_in_order(self) -> None:
        """Into two slots only, so that there is an order to be kept."""
        function = self.functions[1]
        slots = {_slot(function, f"ordered-{number}") for number in range(2)}
        uniques = (f"o{number:06d}" for number in itertools.count())
        for order, unique in enumerate((u for u in uniques if _slot(function, u) in slots), 1):
            if self._stop.is_set():
                return
            await self._call(self._clients[0], function, unique, "normal", order)
            await self._pause(ORDERED_PERIOD_SECONDS)

    async def _ask(self, number: int) -> None:
        """Foreground jobs. One that is submitted again by the client is still the same call."""
        client = self._clients[number % len(self._clients)]
        function = self.functions[2]
        while not self._stop.is_set():
            unique = f"a{next(self._numbers):06d}"
            end = await self._recorder.foreground(
                client, function, unique, unique.encode(), timeout_seconds=SUBMIT_SECONDS
            )
            # A failure is judged by the checker: a fault may have taken what the fleet knew of the job.
            if isinstance(end, bytes) and end != unique.encode():
                self.problems.append(f"the result of {function}/{unique} is {end!r}")
            await self._pause(ASK_PERIOD_SECONDS)

    async def _call(
        self, client: AsyncHAClient, function: str, unique: str, priority: Priority, order: int = 0
    ) -> None:
        at: int | None = None
        if self.shape.scheduled and not order:
            priority = "normal"
            later = 1 + self._dice.randrange(SCHEDULED_SECONDS_MAX)
            at = self._not_before.setdefault(f"{function}/{unique}", int(time.time()) + later)
        job = await self._recorder.background(
            client, function, unique, self._payload, priority=priority, order=order, at=at
        )
        if job is not None:
            self.acknowledged += 1

    # ---- the work

    def _task(self, worker: str) -> Callable[[JobContext], Coroutine[Any, Any, bytes]]:
        async def run(job: JobContext) -> bytes:
            with self._recorder.run(job, worker):
                key = f"{job.function}/{job.unique}"
                if time.time() < self._not_before.get(key, 0):
                    self.problems.append(f"{key} ran before its time")
                self.under_way += 1
                mean_seconds = ORDERED_JOB_SECONDS if worker == ORDERED_WORKER else self.shape.job_seconds
                try:
                    await asyncio.sleep(mean_seconds * 2 * self._dice.random())
                finally:
                    self.under_way -= 1
                if crc32(job.unique.encode()) % FAIL_EVERY == 0 and not job.unique.startswith("a"):
                    raise JobFailed
            return job.payload

        return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged of nodes that die: that is the point here."""
    logger = logging.getLogger("client_ha")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _slot(function: str, unique: str) -> int:
    return crc32(f"{function}\0{unique}".encode()) & (SLOTS - 1)
