"""AsyncHAClient: HAClient for asyncio, without a thread."""

# ruff: noqa: ASYNC109  (the timeouts are part of the API, the same as in HAClient)

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType

from client_ha.addresses import AddressRemap, Server
from client_ha.arguments import check_connecting, check_count, check_list, check_seconds
from client_ha.client import (
    CANCEL_TIMEOUT_SECONDS,
    STATUS_TIMEOUT_SECONDS,
    SUBMIT_TIMEOUT_SECONDS,
    ask_status,
    cancel_job,
)
from client_ha.discovery import Discovery, parse_sources
from client_ha.engine import Engine, UniqueKeys, prepare
from client_ha.errors import CallerMistake, ClientClosed, GearfleetError, InvalidArgument, NotAllAcknowledged
from client_ha.flight import Priority, function_bytes, unique_bytes
from client_ha.job import AsyncJob, Callbacks, JobStatus
from client_ha.routing import Router, SlotRouter
from client_ha.task_set import AsyncTaskSet, Task
from client_ha.timing import MAP_IN_FLIGHT, SUBMIT_MANY_IN_FLIGHT, Timing


class AsyncHAClient:
    """Submits jobs from one event loop; arguments and errors are those of HAClient.

        async with AsyncHAClient("10.0.0.1:4730,10.0.0.2:4730") as client:
            job = await client.submit("resize", photo, unique="photo-42")
            small = await job.result(timeout=30)

    It connects at first use, in the loop that runs then, and belongs to that loop. Callbacks are called in
    the loop, so they must not block.
    """

    def __init__(
        self,
        servers: "str | Iterable[str | Server | Discovery] | None" = None,
        *,
        submit_timeout: float = SUBMIT_TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
        timing: Timing | None = None,
        address_remap: AddressRemap | None = None,
        router: Router | None = None,
    ) -> None:
        self._discoveries: Sequence[Discovery] = ()
        if router is None:
            sources = parse_sources(servers)
            router, self._discoveries = SlotRouter(sources.servers), sources.discoveries
        self._router = router
        check_seconds("submit_timeout", submit_timeout, or_none=False)
        check_connecting(tls, timing, address_remap)
        self._submit_timeout = submit_timeout
        self._tls = tls
        self._timing = timing or Timing()
        self._address_remap = address_remap
        self._keys = UniqueKeys()
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers it knows: those given, those found, and the nodes of the fleet's map."""
        return tuple(self._router.servers)

    def _started(self) -> Engine:
        if self._closed:
            raise ClientClosed("the client is closed; make a new one")
        loop = asyncio.get_running_loop()
        if self._engine is None:
            self._engine = Engine(
                self._router,
                self._timing,
                tls=self._tls,
                discoveries=self._discoveries,
                address_remap=self._address_remap,
            )
            self._loop = loop
        elif loop is not self._loop:
            raise CallerMistake("an AsyncHAClient belongs to the loop of its first use; make one per loop")
        return self._engine

    async def submit(
        self,
        function: str | bytes,
        payload: bytes | str = b"",
        *,
        unique: str | bytes | None = None,
        priority: Priority = "normal",
        background: bool = False,
        at: datetime | float | int | None = None,
        cron: str | None = None,
        timeout: float | None = None,
        on_data: Callable[[AsyncJob, bytes], object] | None = None,
        on_warning: Callable[[AsyncJob, bytes], object] | None = None,
        on_status: Callable[[AsyncJob, int, int], object] | None = None,
        on_complete: Callable[[AsyncJob, bytes], object] | None = None,
        on_fail: Callable[[AsyncJob, GearfleetError], object] | None = None,
        on_exception: Callable[[AsyncJob, bytes], object] | None = None,
    ) -> AsyncJob:
        """Submit a job; see HAClient.submit. In the background it waits for the acknowledgement."""
        engine = self._started()
        callbacks = None
        if on_data or on_warning or on_status or on_complete or on_fail or on_exception:
            callbacks = Callbacks(on_data, on_warning, on_status, on_complete, on_fail, on_exception)
        job = self._prepare(
            function, payload, unique, priority, background, at, timeout, callbacks, cron=cron
        )
        engine.submit(job, timeout)
        if job.background:
            await job.wait()
            job.raise_if_unacknowledged()
        return job

    def _prepare(
        self,
        function: str | bytes,
        payload: bytes | str,
        unique: str | bytes | None,
        priority: Priority,
        background: bool,
        at: datetime | float | int | None,
        timeout: float | None,
        callbacks: Callbacks[AsyncJob] | None = None,
        index: int = 0,
        cron: str | None = None,
    ) -> AsyncJob:
        return prepare(
            AsyncJob,
            self._keys,
            function,
            payload,
            unique=unique,
            priority=priority,
            background=background,
            at=at,
            cron=cron,
            submit_seconds=self._submit_timeout if timeout is None else timeout,
            callbacks=callbacks,
            index=index,
        )

    def _submit_tasks(self, tasks: Sequence[Task]) -> list[AsyncJob]:
        """For AsyncTaskSet: check all, then send all."""
        engine = self._started()
        jobs = [
            self._prepare(
                task.function,
                task.payload,
                task.unique,
                task.priority,
                task.background,
                task.at,
                task.timeout,
                task.callbacks,
                index,
                task.cron,
            )
            for index, task in enumerate(tasks)
        ]
        for job, task in zip(jobs, tasks, strict=True):
            engine.submit(job, task.timeout)
        return jobs

    async def submit_many(
        self,
        function: str | bytes,
        payloads: Iterable[bytes | str],
        *,
        uniques: Iterable[str | bytes] | None = None,
        priority: Priority = "normal",
        at: datetime | float | int | None = None,
        timeout: float | None = None,
        in_flight: int = SUBMIT_MANY_IN_FLIGHT,
    ) -> list[AsyncJob]:
        """Submit many background jobs, pipelined; see HAClient.submit_many."""
        check_count("in_flight", in_flight, least=1)
        engine = self._started()
        check_list("payloads", payloads)
        if uniques is not None:
            check_list("uniques", uniques)
        check_seconds("timeout", timeout)
        keys = None if uniques is None else iter(uniques)
        jobs: list[AsyncJob] = []
        room = _Room(in_flight)
        for index, payload in enumerate(payloads):
            unique = None
            if keys is not None:
                unique = next(keys, None)
                if unique is None:
                    raise InvalidArgument(f"uniques has only {index} keys; give one for each payload")
            job = self._prepare(function, payload, unique, priority, True, at, timeout, index=index)
            job._when_done = room.release
            jobs.append(job)
            engine.submit(job, timeout)
            if room.taken():
                await room.half_free()
        await room.all_free()
        failed = [job for job in jobs if job.error is not None]
        if failed:
            raise NotAllAcknowledged(jobs, failed)
        return jobs

    def map(
        self,
        function: str | bytes,
        payloads: Iterable[bytes | str],
        *,
        in_flight: int = MAP_IN_FLIGHT,
        ordered: bool = False,
        priority: Priority = "normal",
        timeout: float | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """Submit a foreground job for each payload and yield those that have ended; see HAClient.map."""
        check_count("in_flight", in_flight, least=1)
        check_list("payloads", payloads)
        check_seconds("timeout", timeout)
        return self._map(function, iter(payloads), in_flight, ordered, priority, timeout)

    async def _map(
        self,
        function: str | bytes,
        payloads: Iterator[bytes | str],
        in_flight: int,
        ordered: bool,
        priority: Priority,
        timeout: float | None,
    ) -> AsyncIterator[AsyncJob]:
        engine = self._started()
        ended: deque[AsyncJob] = deque()
        something = asyncio.Event()
        held: dict[int, AsyncJob] = {}
        submitted = yielded = 0
        exhausted = False

        def hear(job: AsyncJob) -> None:
            ended.append(job)
            something.set()

        while True:
            while not exhausted and submitted - yielded < in_flight:
                try:
                    payload = next(payloads)
                except StopIteration:
                    exhausted = True
                    break
                job = self._prepare(function, payload, None, priority, False, None, timeout, index=submitted)
                job._when_done = hear
                engine.submit(job, timeout)
                submitted += 1
            if yielded == submitted:
                return
            while not (yielded in held if ordered else ended):
                while ordered and ended:
                    job = ended.popleft()
                    held[job.index] = job
                if ordered and yielded in held:
                    break
                something.clear()
                await something.wait()
            yield held.pop(yielded) if ordered else ended.popleft()
            yielded += 1

    def task_set(self) -> AsyncTaskSet:
        """An empty set of tasks: add to it, `await run()`."""
        return AsyncTaskSet(self._submit_tasks)

    async def status(
        self, job: AsyncJob | str, *, server: str | None = None, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """What the servers say about a job; see HAClient.status."""
        return await ask_status(self._started(), job, server, timeout)

    async def status_unique(
        self, unique: str | bytes, *, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """As `status`, by unique key; see HAClient.status_unique."""
        return await self._started().status_unique(unique_bytes(unique), timeout)

    async def cancel(
        self, job: AsyncJob | str, *, server: str | None = None, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """Take a job from its server, or end a schedule; see HAClient.cancel."""
        return await cancel_job(self._started(), job, server, timeout)

    async def cancel_unique(
        self, function: str | bytes, unique: str | bytes, *, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As `cancel`, by function and unique key; see HAClient.cancel_unique."""
        return await self._started().cancel_unique(function_bytes(function), unique_bytes(unique), timeout)

    async def close(self) -> None:
        """Close the connections; jobs under way end with ClientClosed. Background jobs are not affected."""
        self._closed = True
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def __aenter__(self) -> "AsyncHAClient":
        self._started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Room:
    """Counts what is unacknowledged; one wake-up for many jobs."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._out = 0
        self._wanted = -1
        self._free = asyncio.Event()

    def taken(self) -> bool:
        """One more is out; is it full now?"""
        self._out += 1
        return self._out >= self._size

    def release(self, _: AsyncJob) -> None:
        self._out -= 1
        if self._out <= self._wanted:
            self._free.set()

    async def half_free(self) -> None:
        await self._at_most(self._size // 2)

    async def all_free(self) -> None:
        await self._at_most(0)

    async def _at_most(self, count: int) -> None:
        if self._out > count:
            self._wanted = count
            self._free.clear()
            await self._free.wait()
            self._wanted = -1
