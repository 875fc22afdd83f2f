"""A client for users' own tests: no server, no threads, no waiting; tasks run in the test's own process.

    from client_ha.testing import StubClient
    from myapp import worker                       # an HAWorker with its tasks

    def test_thumbnail():
        client = StubClient(worker)
        assert client.submit("resize", photo).result() == small

A foreground job runs at once, inside submit(). A background job waits until `run_queued()`, as it would wait
for a worker, so a test can look at what was submitted: `client.queued`. Jobs of one function and unique key
that are queued together are one job, as with a server. `client.reports` has what tasks reported.
"""

# ruff: noqa: ASYNC109  (the timeouts are part of the API, the same as in AsyncHAClient)

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Generic, Literal, TypeVar

from client_ha.addresses import Server
from client_ha.arguments import check_list, check_seconds
from client_ha.client import CANCEL_TIMEOUT_SECONDS, STATUS_TIMEOUT_SECONDS, status_question
from client_ha.context import JobContext
from client_ha.engine import UniqueKeys, prepare
from client_ha.errors import (
    ClientClosed,
    GearfleetError,
    InvalidArgument,
    JobException,
    JobFailed,
    JobTimeout,
    Retry,
)
from client_ha.flight import Flight, Priority, function_bytes, unique_bytes
from client_ha.job import AsyncJob, BaseJob, Callbacks, Job, JobStatus
from client_ha.task_set import AsyncTaskSet, Task, TaskSet
from client_ha.tasks import completed, failure_text, gives_back, raised
from client_ha.timing import MAP_IN_FLIGHT, SUBMIT_MANY_IN_FLIGHT
from client_ha.worker import BaseWorker
from cluster.wire.packets import (
    HEADER_BYTES,
    SUBMIT_JOB_EPOCH,
    SUBMIT_JOB_SCHED,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_STATUS,
)

STUB_SERVER: Final = Server("stub.invalid")
RETRIES_MAX: Final = 100  # a task that raises Retry so often will do so for ever
# Others have two: function and unique key.
_ARGUMENTS_BEFORE_PAYLOAD: Final = {SUBMIT_JOB_EPOCH: 3, SUBMIT_JOB_SCHED: 7}

AnyJob = TypeVar("AnyJob", bound=BaseJob)


@dataclass(frozen=True, slots=True)
class Report:
    """What a task reported while it ran."""

    function: str
    unique: str
    kind: Literal["data", "warning", "status"]
    data: bytes  # for "status": b"numerator/denominator"


@dataclass(slots=True)
class QueuedJob:
    """A job that waits for `run_queued`."""

    function: str
    unique: str
    handle: str
    payload: bytes
    priority: Priority
    at_epoch_seconds: int | None
    cron: str | None = None  # a schedule; run_queued leaves it alone


class _Stub(Generic[AnyJob]):
    """What both stubs have in common: a queue, handles, reports."""

    def __init__(self, *workers: BaseWorker) -> None:
        self.queued: list[QueuedJob] = []
        self.reports: list[Report] = []
        self._workers = workers
        self._keys = UniqueKeys()
        self._handles = itertools.count(1)
        self._closed = False
        self._running: dict[str, tuple[str, JobStatus]] = {}  # handle -> unique, status
        self._job_class: type[AnyJob]

    @property
    def servers(self) -> tuple[Server, ...]:
        return (STUB_SERVER,)

    def _handler(self, function: bytes) -> Callable[[JobContext], Any] | None:
        for worker in self._workers:
            task = worker.tasks.get(function)
            if task is not None:
                handler: Callable[[JobContext], Any] = task.handler
                return handler
        return None

    def _make(
        self,
        function: str | bytes,
        payload: bytes | str,
        unique: str | bytes | None,
        priority: Priority,
        background: bool,
        at: datetime | float | int | None,
        callbacks: Callbacks[Any] | None,
        index: int = 0,
        cron: str | None = None,
    ) -> tuple[AnyJob, bytes]:
        """Check as the real client does; return the job and its payload. Raises what that raises."""
        if self._closed:
            raise ClientClosed("the client is closed; make a new one")
        job = prepare(
            self._job_class,
            self._keys,
            function,
            payload,
            unique=unique,
            priority=priority,
            background=background,
            at=at,
            cron=cron,
            submit_seconds=0.0,
            callbacks=callbacks,
            index=index,
        )
        flight: Flight = job.flight
        body = flight.packet[HEADER_BYTES:]
        arguments = body.split(b"\0", _ARGUMENTS_BEFORE_PAYLOAD.get(flight.packet[7], 2))
        job.flight = None
        data = arguments[-1]
        handle = f"H:stub:{next(self._handles)}"
        if job.background:
            for queued in self.queued:
                if (queued.function, queued.unique, queued.cron) == (job.function, job.unique, cron):
                    handle = queued.handle
                    break
            else:
                epoch = int(arguments[2]) if len(arguments) == 4 else None
                self.queued.append(QueuedJob(job.function, job.unique, handle, data, priority, epoch, cron))
        job._hear_created(handle, str(STUB_SERVER))
        if job.background:
            job._hear_end(b"", None)
        return job, data

    def _context(
        self, job: AnyJob | None, function: str, unique: str, handle: str, data: bytes
    ) -> JobContext:
        self._running[handle] = (unique, JobStatus(True, True, 0, 0, 1 if job is not None else 0))

        def report(packet: bytes) -> None:
            kind = packet[7]
            _, _, rest = packet[HEADER_BYTES:].partition(b"\0")
            if kind == WORK_STATUS:
                numerator, _, denominator = rest.partition(b"\0")
                numbers = int(numerator), int(denominator)
                self.reports.append(Report(function, unique, "status", b"%d/%d" % numbers))
                known = self._running[handle][1]
                self._running[handle] = (unique, JobStatus(True, True, *numbers, known.clients))
                if job is not None:
                    job._hear_status(*numbers)
            elif kind == WORK_DATA:
                self.reports.append(Report(function, unique, "data", rest))
                if job is not None:
                    job._hear_data(rest)
            else:
                self.reports.append(Report(function, unique, "warning", rest))
                if job is not None:
                    job._hear_warning(rest)

        return JobContext(
            function=function,
            unique=unique,
            handle=handle,
            payload=data,
            server=str(STUB_SERVER),
            send=report,
            stopping=lambda: False,
        )

    def _ended(self, job: AnyJob | None, handle: str, packet: bytes) -> None:
        self._running.pop(handle, None)
        if job is None:
            return
        _, _, rest = packet[HEADER_BYTES:].partition(b"\0")
        if packet[7] == WORK_COMPLETE:
            job._hear_end(rest, None)
        elif packet[7] == WORK_EXCEPTION:
            job._hear_end(b"", JobException(rest, repr(job.function)))
        else:
            # A failure's text comes before it as a warning.
            first = packet[HEADER_BYTES : HEADER_BYTES + int.from_bytes(packet[8:12])]
            text = failure_text(first.partition(b"\0")[2])
            job._hear_end(b"", JobFailed(text) if text else JobFailed())

    def _next_queued(self) -> QueuedJob | None:
        """By priority, then by age; only those that a worker has a task for, and whose time has come."""
        rank = {"high": 0, "normal": 1, "low": 2}
        now = time.time()
        ready = [
            queued
            for queued in self.queued
            if self._handler(queued.function.encode()) is not None
            and (queued.at_epoch_seconds is None or queued.at_epoch_seconds <= now)
            and queued.cron is None
        ]
        return min(ready, key=lambda queued: rank[queued.priority], default=None)

    def _cancel(self, handle: str) -> bool:
        for queued in self.queued:
            if queued.handle == handle:
                self.queued.remove(queued)
                return True
        return False

    def _cancel_unique(self, function: str, unique: str) -> bool:
        for queued in self.queued:
            if (queued.function, queued.unique, queued.cron) == (function, unique, None):
                return self._cancel(queued.handle)
        return False

    def _look_up(self, handle: str | None, unique: str | None) -> JobStatus:
        for known_handle, (known_unique, status) in self._running.items():
            if known_handle == handle or known_unique == unique:
                return status
        for queued in self.queued:
            if queued.handle == handle or queued.unique == unique:
                return JobStatus(True, False, 0, 0, 0)
        return JobStatus(False, False, 0, 0)


class StubClient(_Stub[Job]):
    """Has the methods of HAClient; runs the tasks of the workers it is given."""

    def __init__(self, *workers: BaseWorker) -> None:
        super().__init__(*workers)
        self._job_class = Job

    def submit(
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
        on_data: Callable[[Job, bytes], object] | None = None,
        on_warning: Callable[[Job, bytes], object] | None = None,
        on_status: Callable[[Job, int, int], object] | None = None,
        on_complete: Callable[[Job, bytes], object] | None = None,
        on_fail: Callable[[Job, GearfleetError], object] | None = None,
        on_exception: Callable[[Job, bytes], object] | None = None,
    ) -> Job:
        """As HAClient.submit; a foreground job has ended when it returns.

        One for whose function no worker has a task raises JobTimeout at once from its result().
        """
        callbacks = Callbacks(on_data, on_warning, on_status, on_complete, on_fail, on_exception)
        return self._submit(function, payload, unique, priority, background, at, callbacks, cron=cron)

    def _submit(
        self,
        function: str | bytes,
        payload: bytes | str,
        unique: str | bytes | None,
        priority: Priority,
        background: bool,
        at: datetime | float | int | None,
        callbacks: Callbacks[Any] | None,
        index: int = 0,
        cron: str | None = None,
    ) -> Job:
        job, data = self._make(function, payload, unique, priority, background, at, callbacks, index, cron)
        if not job.background:
            self._run(job, job.function, job.unique, str(job.handle), data)
        return job

    def _run(self, job: Job | None, function: str, unique: str, handle: str, data: bytes) -> None:
        name = function.encode()
        handler = self._handler(name)
        if handler is None:
            if job is not None:
                job._hear_end(b"", _nobody(function))
            return
        context = self._context(job, function, unique, handle, data)
        for _ in range(RETRIES_MAX):
            try:
                packet = completed(handle.encode(), handler(context))
            except (Exception, SystemExit) as error:
                packet = raised(handle.encode(), name, error)
            if not gives_back(packet):
                self._ended(job, handle, packet)
                return
        raise _retried_for_ever(function)

    def run_queued(self) -> int:
        """Run the background jobs that wait, also those that they submit; return how many ran."""
        count = 0
        while (queued := self._next_queued()) is not None:
            self.queued.remove(queued)
            self._run(None, queued.function, queued.unique, queued.handle, queued.payload)
            count += 1
        return count

    def submit_many(
        self,
        function: str | bytes,
        payloads: Iterable[bytes | str],
        *,
        uniques: Iterable[str | bytes] | None = None,
        priority: Priority = "normal",
        at: datetime | float | int | None = None,
        timeout: float | None = None,
        in_flight: int = SUBMIT_MANY_IN_FLIGHT,
    ) -> list[Job]:
        """As HAClient.submit_many."""
        return [
            self._submit(function, payload, unique, priority, True, at, None, index)
            for index, (payload, unique) in enumerate(_with_keys(payloads, uniques))
        ]

    def map(
        self,
        function: str | bytes,
        payloads: Iterable[bytes | str],
        *,
        in_flight: int = MAP_IN_FLIGHT,
        ordered: bool = False,
        priority: Priority = "normal",
        timeout: float | None = None,
    ) -> Iterator[Job]:
        """As HAClient.map; in order, whatever `ordered` says."""
        check_list("payloads", payloads)
        check_seconds("timeout", timeout)
        for index, payload in enumerate(payloads):
            yield self._submit(function, payload, None, priority, False, None, None, index)

    def task_set(self) -> TaskSet:
        """As HAClient.task_set."""
        return TaskSet(self._submit_tasks)

    def _submit_tasks(self, tasks: Sequence[Task]) -> list[Job]:
        return [
            self._submit(
                task.function,
                task.payload,
                task.unique,
                task.priority,
                task.background,
                task.at,
                task.callbacks,
                index,
                task.cron,
            )
            for index, task in enumerate(tasks)
        ]

    def status(
        self, job: Job | str, *, server: str | None = None, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """As HAClient.status."""
        return self._look_up(status_question(job, server)[0], None)

    def status_unique(self, unique: str | bytes, *, timeout: float = STATUS_TIMEOUT_SECONDS) -> JobStatus:
        """As HAClient.status_unique."""
        return self._look_up(None, unique_bytes(unique).decode())

    def cancel(
        self, job: Job | str, *, server: str | None = None, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As HAClient.cancel."""
        return self._cancel(status_question(job, server)[0])

    def cancel_unique(
        self, function: str | bytes, unique: str | bytes, *, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As HAClient.cancel_unique."""
        return self._cancel_unique(function_bytes(function).decode(), unique_bytes(unique).decode())

    def close(self) -> None:
        """As HAClient.close."""
        self._closed = True

    def __enter__(self) -> "StubClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StubAsyncClient(_Stub[AsyncJob]):
    """Has the methods of AsyncHAClient; runs the tasks of AsyncHAWorkers, and of HAWorkers."""

    def __init__(self, *workers: BaseWorker) -> None:
        super().__init__(*workers)
        self._job_class = AsyncJob
        self._tasks: set[asyncio.Task[None]] = set()

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
        """As AsyncHAClient.submit; a foreground job runs as a task of the loop."""
        callbacks = Callbacks(on_data, on_warning, on_status, on_complete, on_fail, on_exception)
        return self._submit(function, payload, unique, priority, background, at, callbacks, cron=cron)

    def _submit(
        self,
        function: str | bytes,
        payload: bytes | str,
        unique: str | bytes | None,
        priority: Priority,
        background: bool,
        at: datetime | float | int | None,
        callbacks: Callbacks[Any] | None,
        index: int = 0,
        cron: str | None = None,
    ) -> AsyncJob:
        job, data = self._make(function, payload, unique, priority, background, at, callbacks, index, cron)
        if not job.background:
            running = self._run(job, job.function, job.unique, str(job.handle), data)
            task = asyncio.get_running_loop().create_task(running)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return job

    async def _run(self, job: AsyncJob | None, function: str, unique: str, handle: str, data: bytes) -> None:
        name = function.encode()
        handler = self._handler(name)
        if handler is None:
            if job is not None:
                job._hear_end(b"", _nobody(function))
            return
        context = self._context(job, function, unique, handle, data)
        for _ in range(RETRIES_MAX):
            try:
                output = handler(context)
                if asyncio.iscoroutine(output):
                    output = await output
                packet = completed(handle.encode(), output)
            except (Exception, SystemExit) as error:
                packet = raised(handle.encode(), name, error)
            if not gives_back(packet):
                self._ended(job, handle, packet)
                return
        if job is not None:
            job._hear_end(b"", _retried_for_ever(function))

    async def run_queued(self) -> int:
        """Run the background jobs that wait, also those that they submit; return how many ran."""
        count = 0
        while (queued := self._next_queued()) is not None:
            self.queued.remove(queued)
            await self._run(None, queued.function, queued.unique, queued.handle, queued.payload)
            count += 1
        return count

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
        """As AsyncHAClient.submit_many."""
        return [
            self._submit(function, payload, unique, priority, True, at, None, index)
            for index, (payload, unique) in enumerate(_with_keys(payloads, uniques))
        ]

    async def map(
        self,
        function: str | bytes,
        payloads: Iterable[bytes | str],
        *,
        in_flight: int = MAP_IN_FLIGHT,
        ordered: bool = False,
        priority: Priority = "normal",
        timeout: float | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """As AsyncHAClient.map; one at a time and in order, whatever `ordered` says."""
        check_list("payloads", payloads)
        check_seconds("timeout", timeout)
        for index, payload in enumerate(payloads):
            job = self._submit(function, payload, None, priority, False, None, None, index)
            await job.wait(timeout)
            yield job

    def task_set(self) -> AsyncTaskSet:
        """As AsyncHAClient.task_set."""
        return AsyncTaskSet(self._submit_tasks)

    def _submit_tasks(self, tasks: Sequence[Task]) -> list[AsyncJob]:
        return [
            self._submit(
                task.function,
                task.payload,
                task.unique,
                task.priority,
                task.background,
                task.at,
                task.callbacks,
                index,
                task.cron,
            )
            for index, task in enumerate(tasks)
        ]

    async def status(
        self, job: AsyncJob | str, *, server: str | None = None, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """As AsyncHAClient.status."""
        return self._look_up(status_question(job, server)[0], None)

    async def status_unique(
        self, unique: str | bytes, *, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """As AsyncHAClient.status_unique."""
        return self._look_up(None, unique_bytes(unique).decode())

    async def cancel(
        self, job: AsyncJob | str, *, server: str | None = None, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As AsyncHAClient.cancel."""
        return self._cancel(status_question(job, server)[0])

    async def cancel_unique(
        self, function: str | bytes, unique: str | bytes, *, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As AsyncHAClient.cancel_unique."""
        return self._cancel_unique(function_bytes(function).decode(), unique_bytes(unique).decode())

    async def close(self) -> None:
        """As AsyncHAClient.close."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> "StubAsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _with_keys(
    payloads: Iterable[bytes | str], uniques: Iterable[str | bytes] | None
) -> Iterator[tuple[bytes | str, str | bytes | None]]:
    check_list("payloads", payloads)
    if uniques is not None:
        check_list("uniques", uniques)
    if uniques is None:
        yield from ((payload, None) for payload in payloads)
        return
    keys = iter(uniques)
    for index, payload in enumerate(payloads):
        key = next(keys, None)
        if key is None:
            raise InvalidArgument(f"uniques has only {index} keys; give one for each payload")
        yield payload, key


def _nobody(function: str) -> GearfleetError:
    return JobTimeout(
        f"no worker given to the stub has a task {function!r}: a real client would wait until its timeout"
    )


def _retried_for_ever(function: str) -> GearfleetError:
    return Retry(f"the task {function!r} raised Retry {RETRIES_MAX} times in a row")
