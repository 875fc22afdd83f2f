"""AsyncHAWorker: tasks that are coroutines, all in one event loop."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, TypeVar

from client_ha.addresses import AddressRemap, Server
from client_ha.arguments import check_count, check_wait
from client_ha.context import JobContext
from client_ha.discovery import Discovery
from client_ha.errors import CallerMistake, InvalidArgument, NoServerAvailable
from client_ha.interrupt import is_interrupt
from client_ha.log import logger
from client_ha.tasks import completed, raised
from client_ha.timing import Timing
from client_ha.worker import DRAIN_SECONDS, TIMEOUT_GRACE_SECONDS, BaseWorker
from client_ha.worker_engine import Run
from client_ha.worker_log import shown_on_stderr
from cluster.wire import request
from cluster.wire.packets import WORK_FAIL

AsyncTaskFunction = Callable[[JobContext], Awaitable[bytes | str | None]]
AnyAsyncTaskFunction = TypeVar("AnyAsyncTaskFunction", bound=AsyncTaskFunction)


class AsyncHAWorker(BaseWorker):
    """Runs coroutines for jobs from all servers; options as for HAWorker.

        worker = AsyncHAWorker("10.0.0.1:4730,10.0.0.2:4730", concurrency=100)

        @worker.task("fetch", timeout_seconds=60)
        async def fetch(job):
            return await download(job.text)

        asyncio.run(worker.run())

    run() does not touch signals unless told to: run(signals=(signal.SIGTERM, signal.SIGINT)). As an
    asynchronous context manager it works in the background of the same loop.
    """

    def __init__(
        self,
        servers: "str | Iterable[str | Server | Discovery] | None" = None,
        *,
        concurrency: int = 1,
        client_id: str = "",
        max_jobs: int | None = None,
        drain_seconds: float = DRAIN_SECONDS,
        tls: ssl.SSLContext | None = None,
        timing: Timing | None = None,
        address_remap: AddressRemap | None = None,
    ) -> None:
        super().__init__(servers, concurrency, client_id, max_jobs, drain_seconds, tls, timing, address_remap)
        self._stop: asyncio.Event | None = None
        self._background: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    def task(
        self, name: str | bytes, *, timeout_seconds: float | None = None
    ) -> Callable[[AnyAsyncTaskFunction], AnyAsyncTaskFunction]:
        """Make a coroutine function the task of this name; see HAWorker.task.

        timeout_seconds     told to the servers, and a second later the coroutine is cancelled and the job
                            reported as failed, should its server not have taken it back
        """

        def register(handler: AnyAsyncTaskFunction) -> AnyAsyncTaskFunction:
            is_coroutine_function: bool = iscoroutinefunction(handler)
            if not is_coroutine_function:
                raise InvalidArgument(f"task {name!r} is no coroutine function; use HAWorker for it")
            self._add(name, handler, timeout_seconds)
            return handler

        return register

    async def run(self, *, signals: Iterable[int] = ()) -> None:
        """Work until stop(), one of `signals`, or `max_jobs`. Raises CallerMistake without tasks.

        Cancelling it ends it at once: the servers give running jobs to other workers. It logs as
        HAWorker does.
        """
        with shown_on_stderr():
            await self._run(signals)

    async def _run(self, signals: Iterable[int] = ()) -> None:
        if self._engine is not None:
            raise CallerMistake("the worker runs already")
        loop = asyncio.get_running_loop()
        self._running = running = set[asyncio.Task[None]]()
        ending = _Ending(running)

        async def work(run: Run) -> None:
            limit = run.task.timeout_seconds
            try:
                async with asyncio.timeout(None if limit is None else limit + TIMEOUT_GRACE_SECONDS) as watch:
                    output = await run.task.handler(run.context)
                packet = completed(run.handle, output)
            except TimeoutError as error:
                if watch.expired():
                    logger.error("%s ran longer than its %.3g s and was cancelled", run.context, limit)
                    packet = request(WORK_FAIL, run.handle)
                else:
                    packet = raised(run.handle, run.task.name, error)
            except BaseException as error:
                if ending.explains(error):
                    # The job is the server's again when the connection closes.
                    raise
                packet = raised(run.handle, run.task.name, error)
            engine.finish(run, packet)

        def begin(run: Run) -> None:
            task = loop.create_task(work(run))
            running.add(task)
            task.add_done_callback(running.discard)

        engine = self._make_engine(begin, lambda run, packet: engine.report(run, packet))
        self._stop = stop = asyncio.Event()
        try:
            await self._serve(engine, stop, asyncio.Event(), signals)
        finally:
            self._stop = None
            ending.given_up = True
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def stop(self) -> None:
        """Drain and end; waits for it when the worker runs as a context manager, except in its own tasks."""
        if self._engine is not None:
            self._engine.drain()  # here and now: not one grab more
        if self._stop is not None:
            self._stop.set()
        background = self._background
        if background is not None and asyncio.current_task() not in self._running:
            await background
            self._background = None

    @property
    def connected(self) -> tuple[Server, ...]:
        """The servers that it is registered with now."""
        return self._connected

    async def wait_connected(self, count: int = 1, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Wait until it is registered with `count` servers; see HAWorker.wait_connected."""
        check_count("count", count, least=0)
        check_wait(timeout)
        try:
            async with asyncio.timeout(timeout):
                while len(self._connected) < count:
                    await self._connected_event()
        except TimeoutError:
            what = f"the worker's registration with {count} servers"
            raise NoServerAvailable(what, timeout, self._unconnected()) from None

    async def __aenter__(self) -> "AsyncHAWorker":
        if self._background is not None:
            raise CallerMistake("the worker runs already")
        self._background = asyncio.get_running_loop().create_task(self._run())
        await asyncio.sleep(0)  # so that it has begun, and stop() finds it
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class _Ending:
    """Tells what comes from outside and ends the worker from what is a task's own doing and ends its job.

    A task may raise the same: by awaiting something cancelled, by cancelling itself, or just so.
    """

    def __init__(self, running: set[asyncio.Task[None]]) -> None:
        self.given_up = False  # the worker cancels what still runs
        self._running = running
        self._worker = _current_task()
        self._cancelled_before = 0 if self._worker is None else self._worker.cancelling()

    def explains(self, error: BaseException) -> bool:
        """Whether this error, which ended a task, is the worker's end and not the task's."""
        kind = type(error)  # not isinstance: that asks `__class__`, which is the task's own code
        if issubclass(kind, asyncio.CancelledError):
            # At a loop's end all are cancelled at once, and a task may hear of it before its worker does.
            worker = self._worker
            return self.given_up or (worker is not None and worker.cancelling() > self._cancelled_before)
        if issubclass(kind, GeneratorExit):
            return _current_task() not in self._running  # a loop that is gone left it, and it is freed
        return is_interrupt(error)


def _current_task() -> "asyncio.Task[Any] | None":
    """The task that runs now; None also where no loop runs."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
