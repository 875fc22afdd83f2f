"""A job as the one who submitted it sees it: handle, progress, result."""

import asyncio
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from client_ha.arguments import check_wait
from client_ha.errors import (
    GearfleetError,
    JobException,
    JobTimeout,
    NoResult,
    NoServerAvailable,
    WrongThread,
)
from client_ha.interrupt import reraise_interrupt
from client_ha.log import logger


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a server says about a job. A finished job and one that never was look the same: not known."""

    known: bool
    running: bool
    numerator: int
    denominator: int
    clients: int | None = None  # attached clients; only asked by unique key


AnyJob = TypeVar("AnyJob", bound="BaseJob")


@dataclass(frozen=True, slots=True)
class Callbacks(Generic[AnyJob]):
    """Functions that hear of a job. Each gets the job first. What they return or raise changes nothing."""

    on_data: Callable[[AnyJob, bytes], object] | None = None
    on_warning: Callable[[AnyJob, bytes], object] | None = None
    on_status: Callable[[AnyJob, int, int], object] | None = None
    on_complete: Callable[[AnyJob, bytes], object] | None = None
    on_fail: Callable[[AnyJob, GearfleetError], object] | None = None
    on_exception: Callable[[AnyJob, bytes], object] | None = None


class BaseJob:
    """What the jobs of both clients have in common. The engine calls the methods that begin with `_hear`.

    function, unique      as submitted; the unique key is a made one when none was given
    background            no result comes back for it
    index                 position among the payloads of map() or submit_many(), else 0
    handle, server        who acknowledged it and as what; None before. A foreground job whose server died
                          gets new ones
    numerator, denominator  progress, as the worker last reported it
    """

    __slots__ = (
        "_callbacks",
        "_output",
        "_when_done",
        "background",
        "deadline",
        "denominator",
        "error",
        "finished",
        "flight",
        "function",
        "handle",
        "index",
        "numerator",
        "server",
        "ticket",
        "unique",
    )

    def __init__(
        self,
        function: str,
        unique: str,
        *,
        background: bool,
        callbacks: "Callbacks[Any] | None",
        index: int = 0,
    ) -> None:
        self.function = function
        self.unique = unique
        self.background = background
        self.index = index
        self.handle: str | None = None
        self.server: str | None = None
        self.numerator = 0
        self.denominator = 0
        self.error: GearfleetError | None = None
        self.finished = False  # ended, or, in the background, acknowledged
        self._output = b""
        self._callbacks = callbacks
        self._when_done: Callable[[Any], object] | None = None
        # The engine's own notes.
        self.flight: Any = None
        self.deadline = 0.0
        self.ticket = -1

    def __repr__(self) -> str:
        state = "unacknowledged" if self.handle is None else self.handle
        if self.finished and not self.background:
            state = "complete" if self.error is None else type(self.error).__name__
        return f"<{type(self).__name__} {self.function} unique={self.unique} {state}>"

    @property
    def reference(self) -> str | None:
        """ "host:port//handle": what to store when another process shall ask for the status later."""
        return None if self.handle is None else f"{self.server}//{self.handle}"

    def _timed_out(self, seconds: float | None) -> GearfleetError:
        """Why there is no result yet, as an error."""
        waiting = self.flight.why_unacknowledged() if self.flight is not None and self.handle is None else ()
        spent = 0.0 if seconds is None else seconds
        if waiting:
            return NoServerAvailable(f"{self.function!r}", spent, waiting)
        where = f"accepted by {self.server} as {self.handle}" if self.handle else "not acknowledged yet"
        return JobTimeout(
            f"no result of {self.function!r} within {spent:.3g} s ({where}, progress "
            f"{self.numerator}/{self.denominator}). Ask result() again, or look whether a worker for it runs"
        )

    def _outcome(self) -> bytes:
        self.raise_if_unacknowledged()
        if self.background:
            raise NoResult(
                f"{self.function!r} was submitted in the background, so its result is sent to nobody. It is "
                "acknowledged; client.status() tells whether it is done. To wait for a result submit it "
                "without background=True, at= and cron="
            )
        return self._output

    def raise_if_unacknowledged(self) -> None:
        """Raise what went wrong, if something did: all that there is to know of a background job."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    # The engine tells. All in the event loop's thread.

    def _hear_created(self, handle: str, server: str) -> None:
        self.handle = handle
        self.server = server

    def _hear_data(self, data: bytes) -> None:
        if self._callbacks is not None and self._callbacks.on_data is not None:
            self._call(self._callbacks.on_data, data)

    def _hear_warning(self, data: bytes) -> None:
        if self._callbacks is not None and self._callbacks.on_warning is not None:
            self._call(self._callbacks.on_warning, data)

    def _hear_status(self, numerator: int, denominator: int) -> None:
        self.numerator = numerator
        self.denominator = denominator
        if self._callbacks is not None and self._callbacks.on_status is not None:
            self._call(self._callbacks.on_status, numerator, denominator)

    def _hear_end(self, output: bytes, error: GearfleetError | None) -> None:
        if self.finished:
            return
        self._output = output
        self.error = error
        self.flight = None
        callbacks = self._callbacks
        if callbacks is not None:
            if error is None:
                if callbacks.on_complete is not None and not self.background:
                    self._call(callbacks.on_complete, output)
            elif isinstance(error, JobException) and callbacks.on_exception is not None:
                self._call(callbacks.on_exception, error.payload)
            elif callbacks.on_fail is not None:
                self._call(callbacks.on_fail, error)
        self._conclude()

    def _conclude(self) -> None:
        """All callbacks were called, or are on their way: let those who wait go on."""
        self.finished = True
        self._release()
        if self._when_done is not None:
            self._when_done(self)

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        run_callback(callback, self, *arguments)

    def _release(self) -> None:
        raise NotImplementedError


def run_callback(callback: Callable[..., object], job: BaseJob, *arguments: object) -> None:
    """Call a user's function; what it raises is logged, the job goes on."""
    try:
        callback(job, *arguments)
    except BaseException as error:
        # Also SystemExit: callbacks have one thread, and all who wait for a job wait for that.
        reraise_interrupt(error)
        logger.exception("a callback of %r raised; the job is not affected", job)


class AsyncJob(BaseJob):
    """A job submitted by AsyncHAClient. `await job` is `await job.result()`."""

    __slots__ = ("_waiters",)

    def __init__(
        self,
        function: str,
        unique: str,
        *,
        background: bool,
        callbacks: "Callbacks[AsyncJob] | None" = None,
        index: int = 0,
    ) -> None:
        super().__init__(function, unique, background=background, callbacks=callbacks, index=index)
        self._waiters: list[asyncio.Future[None]] | None = None

    def _release(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait at most `timeout` seconds until it ended; return whether it did."""
        check_wait(timeout)
        if not self.finished:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(timeout):
                    await waiter
            except TimeoutError:
                if self._waiters is not None and waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self.finished

    async def result(self, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """The worker's result; waits for it at most `timeout` seconds, None: as long as it takes.

        Raises NoResult for a background job, which has none; JobFailed, JobException, JobTimeout, JobLost,
        NoServerAvailable, ServerRefused, ClientClosed.
        """
        check_wait(timeout)
        if not self.finished and not await self.wait(timeout):
            raise self._timed_out(timeout)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, bytes]:
        return self.result().__await__()


class Job(BaseJob):
    """A job submitted by HAClient. Any thread may wait for it."""

    __slots__ = ("_callback_thread", "_client", "_gate")

    def __init__(
        self,
        function: str,
        unique: str,
        *,
        background: bool,
        callbacks: "Callbacks[Job] | None" = None,
        index: int = 0,
        callback_thread: "CallbackThread | None" = None,
    ) -> None:
        super().__init__(function, unique, background=background, callbacks=callbacks, index=index)
        # A bare lock, held until the end: twenty times cheaper than an Event, and there is one per job.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._callback_thread = callback_thread
        # A client that nobody else holds must live until the job ends: HAClient(...).submit(...).result()
        self._client: object = None

    def keep(self, client: object) -> None:
        """Hold the client until the job ends."""
        self._client = client
        if self.finished:
            self._client = None

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        if self._callback_thread is None:
            run_callback(callback, self, *arguments)
        else:
            self._callback_thread.run(callback, self, *arguments)

    def _conclude(self) -> None:
        # result() returns only after the callbacks were called, so that they may be relied on.
        # The acknowledgement of a background job waits for none, so that callbacks may submit such.
        if self._callback_thread is None or self._callbacks is None or self.background:
            super()._conclude()
        else:
            self._callback_thread.run(_conclude, self, super()._conclude)

    def _release(self) -> None:
        self._gate.release()
        self._client = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until it ended; return whether it did."""
        check_wait(timeout)
        if not self.finished:
            # Only jobs with callbacks end by way of that thread; others may be waited for in it.
            by_callbacks = self._callbacks is not None and not self.background
            if by_callbacks and self._callback_thread is not None and self._callback_thread.is_current():
                raise WrongThread(
                    "result() or wait() was called inside a callback, for a job with callbacks that has not "
                    "ended: callbacks have one thread, so it never would. Wait in another thread"
                )
            if self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                self._gate.release()
        return self.finished

    def result(self, timeout: float | None = None) -> bytes:
        """The worker's result; waits for it at most `timeout` seconds, None: as long as it takes.

        Raises NoResult for a background job, which has none; JobFailed, JobException, JobTimeout, JobLost,
        NoServerAvailable, ServerRefused, ClientClosed;
        WrongThread inside a callback of the same client.
        """
        check_wait(timeout)
        if not self.finished and not self.wait(timeout):
            raise self._timed_out(timeout)
        return self._outcome()


def _conclude(_: BaseJob, conclude: Callable[[], None]) -> None:
    conclude()


class CallbackThread:
    """The thread in which a synchronous client calls callbacks, in order; it starts with the first.

    Not the event loop's thread: a slow callback must not look like a dead server, and a callback may submit.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def run(self, callback: Callable[..., object], *arguments: object) -> None:
        """Queue a call. Only the event loop's thread calls this."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gearfleet callbacks", daemon=True)
            self._thread.start()
        self._calls.put((callback, arguments))

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def close(self, timeout_seconds: float) -> None:
        """Let what is queued run, then end the thread."""
        if self._thread is not None:
            self._calls.put(None)
            if not self.is_current():
                self._thread.join(timeout_seconds)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            callback, arguments = call
            run_callback(callback, *arguments)


__all__ = ["AsyncJob", "BaseJob", "CallbackThread", "Callbacks", "Job", "JobStatus", "run_callback"]
