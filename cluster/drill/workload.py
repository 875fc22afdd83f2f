"""A drill's own jobs: a few clients and workers beside the real ones, on a function of their own.

    background, each with its own key     most of them, of all three priorities
    background, one key from two clients  they must become one job
    foreground                            the result must be what was sent
    in order                              one caller who waits for each acknowledgement, one worker that takes
                                          one job at a time, a function of their own (FUNCTION.order)

Some jobs of each kind take two seconds, so that some run whenever a node dies. Everything is recorded in a
history. All keys begin with the drill's id, and nothing is left behind: the workers go on until the queues
are empty. A job with another key is somebody's: it is kept and not done, and is the fleet's again when the
worker ends.

Two drills at once would break two nodes at once. So each has a worker for one function more, of which there
is never a job: where the nodes list such a worker no other drill begins, whatever its own functions are.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from client_ha import AsyncHAClient, AsyncHAWorker, GearfleetError, JobContext, Server
from client_ha.flight import Priority
from cluster.drill.history import History
from cluster.drill.recorded import Recorder
from cluster.replication import slot_of

RATE_DEFAULT: Final = 50.0
WORKERS_DEFAULT: Final = 2
CONCURRENCY: Final = 10  # jobs at a time, of each worker
CLIENTS: Final = 2
LOCK: Final = "gearfleet.drill"  # the function whose worker says that a drill is going on
PAYLOAD_BYTES: Final = 64
SUBMIT_SECONDS: Final = 30.0  # then a submit is given up, and nobody knows what became of it
RESULT_SECONDS: Final = 120.0  # for a foreground job
UNDER_WAY_MAX: Final = 1_000  # calls without an answer; at that nothing more is submitted
WORK_SECONDS: Final = 0.005
LONG_WORK_SECONDS: Final = 2.0
LONG_EVERY: Final = 47  # jobs; no multiple of the cycle's length, or all of them would be of one kind
DRAIN_SECONDS: Final = 3.0  # for the workers' last jobs
ANSWER_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.2
EMPTY_LOOKS: Final = 2
FORGET_TRIES: Final = 10
FORGET_SECONDS: Final = 0.1  # between two of them
ORDERED_SLOTS: Final = 2  # all jobs in order are in so few, so that there is an order to be kept
ORDERED_SHARE: Final = 0.1  # of all jobs, beside the others
_WINDOW_SECONDS: Final = 5.0  # for the rate that is shown
# What the jobs are, over and over.
_PRIORITIES: Final[tuple[Priority, ...]] = ("normal", "high", "normal", "low")
_CYCLE: Final = ("background",) * 6 + ("foreground",) + ("background",) * 2 + ("coalescing",)


class NotReady(Exception):
    """The workload cannot begin; the text says why."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What the nodes say about the function, added up."""

    jobs: int = 0
    running: int = 0
    workers: int = 0

    @property
    def waiting(self) -> int:
        return self.jobs - self.running


@dataclass(slots=True)
class Counts:
    """For whoever watches."""

    submitted: int = 0
    acknowledged: int = 0
    unknown: int = 0
    done: int = 0
    results: int = 0
    wrong: int = 0  # results that were not what was sent


class Workload:
    """Jobs from `start` to `finish`. `targets` are asked about their queues: all nodes, if that can be."""

    def __init__(
        self,
        history: History,
        servers: Sequence[Server],
        *,
        drill_id: str,
        function: str,
        rate: float = RATE_DEFAULT,
        workers: int = WORKERS_DEFAULT,
        tls: ssl.SSLContext | None = None,
        node_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`node_of`: a node's name, by the address that its jobs come from."""
        self.functions = (function, f"{function}.order")
        self.counts = Counts()
        self.problems: list[str] = []  # promises that were broken, and no history shows
        self.defects: list[str] = []  # of the drill itself
        self.strange_job = ""  # one that came to the workers and is somebody else's: its handle
        self._recorder = Recorder(history, node_of)
        self._servers = tuple(servers)
        self._id = drill_id
        self._rate = rate
        self._worker_count = workers
        self._tls = tls
        self._clients: list[AsyncHAClient] = []
        self._workers: list[AsyncHAWorker] = []
        self._submitting: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._acknowledged_at: deque[float] = deque()

    @property
    def take_off(self) -> str:
        """The command for jobs that nobody will work on any more."""
        return f"gearfleet work {' '.join(self.functions)} -- true"

    @property
    def under_way(self) -> int:
        """Calls without an answer, and foreground jobs without a result."""
        return len(self._calls)

    def acknowledged_per_second(self) -> float:
        """Over the last seconds."""
        since = time.monotonic() - _WINDOW_SECONDS
        while self._acknowledged_at and self._acknowledged_at[0] < since:
            self._acknowledged_at.popleft()
        return len(self._acknowledged_at) / _WINDOW_SECONDS

    # ---- life

    async def check_unused(self) -> None:
        """Raises NotReady when another drill goes on, somebody uses the functions, or a server does not
        answer."""
        try:
            others = await self._drills()
            queue = await self.queue()
        except OSError as error:
            raise NotReady(
                f"{error}. Before a drill all nodes must answer here; --servers tells where they do"
            ) from None
        _refuse(others)
        functions = " or ".join(self.functions)
        if queue.workers:
            raise NotReady(
                f"{functions} is in use ({queue.jobs} jobs, {queue.workers} workers): choose a --function "
                "that nobody has"
            )
        if queue.jobs:
            raise NotReady(
                f"{functions} has {queue.jobs} jobs, and no workers: if a drill has left them, "
                f"{self.take_off} takes them off. Else choose a --function that nobody has"
            )

    async def start(self) -> None:
        """Connect everybody, then submit. Raises NotReady."""
        await self._lock()
        for number in range(1, self._worker_count + 1):
            await self._start_worker(f"w{number}", self.functions[0], CONCURRENCY)
        await self._start_worker("w-order", self.functions[1], 1)
        for _ in range(CLIENTS):
            self._clients.append(AsyncHAClient(self._servers, submit_timeout=SUBMIT_SECONDS, tls=self._tls))
        self._submitting = [
            asyncio.create_task(self._submit_all()),
            asyncio.create_task(self._submit_in_order()),
        ]

    async def _lock(self) -> None:
        """Say that a drill goes on, then look whether another one says so. Of two that begin at the same time
        each may find the other; at least one does. Raises NotReady."""
        await self._start_worker("lock", LOCK, 1)
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while not await self._drills(ours=True) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
            _refuse(await self._drills())
        except OSError as error:
            raise NotReady(str(error)) from None

    async def _drills(self, *, ours: bool = False) -> set[str]:
        """The workers of other drills, as some server lists them; or ours, as all servers do."""
        prefix = self._client_id("")
        found: list[set[str]] = []
        for answer in await self._ask_all("workers"):
            rows = (line.partition(" :") for line in answer.splitlines())
            listed = {row[0].split()[-1] for row in rows if LOCK in row[2].split() and row[0]}
            found.append({each for each in listed if each.startswith(prefix) == ours})
        return set.intersection(*found) if ours else set().union(*found)

    def _client_id(self, name: str) -> str:
        return f"drill-{self._id}-{name}"

    async def _start_worker(self, name: str, function: str, concurrency: int) -> None:
        worker = AsyncHAWorker(
            self._servers,
            concurrency=concurrency,
            client_id=self._client_id(name),
            drain_seconds=DRAIN_SECONDS,
            tls=self._tls,
        )
        worker.task(function)(self._task(name))
        await worker.__aenter__()
        self._workers.append(worker)
        try:
            await worker.wait_connected(1)
        except GearfleetError as error:
            raise NotReady(str(error)) from None

    async def stop_submitting(self) -> None:
        """No new jobs; what was submitted gets its answer, or has waited long enough for one."""
        for submitting in self._submitting:
            submitting.cancel()
        await asyncio.gather(*self._submitting, return_exceptions=True)
        self._submitting = []

    async def drain(self, timeout_seconds: float, told: Callable[[str], object] = lambda _: None) -> Queue:
        """Wait until nothing is under way and the queues are empty, for so long; what is left then.

        Raises OSError when a server does not say what is left.
        """
        await self.stop_submitting()
        deadline = time.monotonic() + timeout_seconds
        looks = 0  # that found nothing; a hand-over may hide a job from one of them
        while True:
            fault: OSError | None = None
            queue = Queue()
            try:
                queue = await self.queue()
            except OSError as error:
                fault = error
            looks = looks + 1 if fault is None and not queue.jobs and not self._calls else 0
            if looks == EMPTY_LOOKS:
                return queue
            told(str(fault) if fault else f"{queue.jobs} jobs left, {self.under_way} calls without an answer")
            if time.monotonic() >= deadline:
                if fault is not None:
                    raise fault
                return queue
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Let go of everything, however it stands."""
        await self.stop_submitting()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for client in self._clients:
            await client.close()
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        if self._workers:
            await self._forget(LOCK)
        self._clients, self._workers = [], []

    async def forget(self) -> None:
        """The servers need not list the functions any more. What cannot be asked stays."""
        await self._forget(*self.functions)

    async def _forget(self, *functions: str) -> None:
        """A server keeps what has jobs or somebody else's workers."""

        async def ask(server: Server) -> None:
            with contextlib.suppress(OSError):
                for function in functions:
                    for _ in range(FORGET_TRIES):
                        answer = await self._ask(server, f"drop function {function}", b"\n")
                        if b"still connected" not in answer:
                            break
                        await asyncio.sleep(FORGET_SECONDS)  # our own worker may just be leaving

        await asyncio.gather(*(ask(server) for server in self._servers))

    # ---- the submits

    async def _submit_all(self) -> None:
        began = time.monotonic()
        number = 0
        while True:
            for _ in range(int((time.monotonic() - began) * self._rate) - number):
                number += 1
                if len(self._calls) < UNDER_WAY_MAX:
                    self._submit(number)
            await asyncio.sleep(min(0.1, 0.5 / self._rate))

    async def _submit_in_order(self) -> None:
        function = self.functions[1]
        uniques = (f"{self._id}-o{number}" for number in count(1))
        slots = {_slot(function, unique) for unique in islice(uniques, ORDERED_SLOTS)}
        for order, unique in enumerate((each for each in uniques if _slot(function, each) in slots), 1):
            await asyncio.sleep(1 / (self._rate * ORDERED_SHARE))
            # A call of its own: one that is under way at the end gets its answer.
            await asyncio.wait([self._spawn(self._background(self._clients[0], unique, "normal", order))])

    def _submit(self, number: int) -> None:
        unique = f"{self._id}-{number}"
        priority = _PRIORITIES[number // len(_CYCLE) % len(_PRIORITIES)]
        kind = _CYCLE[number % len(_CYCLE)]
        if kind == "foreground":
            self._spawn(self._foreground(unique, priority))
            return
        for client in self._clients if kind == "coalescing" else [self._clients[number % CLIENTS]]:
            self._spawn(self._background(client, unique, priority))

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            await work

        call = asyncio.create_task(run())
        self._calls.add(call)
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            self.defects.append(f"a submit failed within the drill: {error!r}")

    async def _background(
        self, client: AsyncHAClient, unique: str, priority: Priority, order: int = 0
    ) -> None:
        self.counts.submitted += 1
        function = self.functions[1 if order else 0]
        job = await self._recorder.background(
            client, function, unique, self._payload(unique), priority=priority, order=order
        )
        if job is None:
            self.counts.unknown += 1
        else:
            self._acknowledged()

    async def _foreground(self, unique: str, priority: Priority) -> None:
        payload = self._payload(unique)
        self.counts.submitted += 1
        end = await self._recorder.foreground(
            self._clients[0],
            self.functions[0],
            unique,
            payload,
            timeout_seconds=RESULT_SECONDS,
            priority=priority,
            told=self._acknowledged,
        )
        if end is None:
            self.counts.unknown += 1
        elif isinstance(end, bytes):
            self.counts.results += 1
            if end != payload:
                self.counts.wrong += 1
                self.problems.append(f"{self._key(unique)}: the result is not what was sent")
        # A failure is judged by the checker: a fault may have taken what the fleet knew of the job.

    def _acknowledged(self) -> None:
        self.counts.acknowledged += 1
        self._acknowledged_at.append(time.monotonic())

    def _key(self, unique: str) -> str:
        return f"{self.functions[0]}/{unique}"

    def _payload(self, unique: str) -> bytes:
        return unique.encode().ljust(PAYLOAD_BYTES, b".")

    # ---- the work

    def _task(self, worker: str) -> Callable[[JobContext], Awaitable[bytes]]:
        async def work(job: JobContext) -> bytes:
            if not job.unique.startswith(f"{self._id}-"):
                self.strange_job = job.handle
                await asyncio.Event().wait()
            with self._recorder.run(job, worker):
                await asyncio.sleep(_work_seconds(job.unique))
            self.counts.done += 1
            return job.payload

        return work

    # ---- the queues

    async def queue(self) -> Queue:
        """What all servers hold of both functions. Raises OSError when one does not answer."""
        jobs = running = workers = 0
        for answer in await self._ask_all("status"):
            for line in answer.splitlines():
                name, *numbers = line.split("\t")
                if name in self.functions and len(numbers) == 3:
                    jobs += int(numbers[0])
                    running += int(numbers[1])
                    workers = max(workers, int(numbers[2]))
        return Queue(jobs, running, workers)

    async def _ask_all(self, command: str) -> list[str]:
        """A command whose answer is lines and a dot. Raises OSError when one server does not answer."""
        asked = (self._ask(server, command, b"\n.\n") for server in self._servers)
        return [answer.decode("utf-8", "replace") for answer in await asyncio.gather(*asked)]

    async def _ask(self, server: Server, command: str, end: bytes) -> bytes:
        """One text command. Raises OSError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection(server.host, server.port, ssl=self._tls)
                try:
                    writer.write(command.encode() + b"\n")
                    answer = b""
                    while not (answer == b".\n" or answer.endswith(end)):
                        part = await reader.read(65536)
                        if not part:
                            raise OSError(f"{server} closed the connection")
                        answer += part
                    return answer
                finally:
                    writer.close()
        except TimeoutError:
            raise OSError(f"{server} did not answer within {ANSWER_SECONDS:g} s") from None
        except OSError as error:
            raise OSError(f"{server}: {error.strerror or error}") from None


def _refuse(others: set[str]) -> None:
    if others:
        raise NotReady(
            f"another drill goes on in this fleet: its worker is {', '.join(sorted(others))}, see gearfleet "
            "workers. One at a time"
        )


def _slot(function: str, unique: str) -> int:
    return slot_of(f"{function}\0{unique}".encode())


def _work_seconds(unique: str) -> float:
    number = unique.rpartition("-")[2]
    long = number.isdigit() and int(number) % LONG_EVERY == 0
    return LONG_WORK_SECONDS if long else WORK_SECONDS


__all__ = ["RATE_DEFAULT", "WORKERS_DEFAULT", "Counts", "NotReady", "Queue", "Workload"]
