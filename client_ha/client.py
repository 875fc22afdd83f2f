"""HAClient: submit jobs to a fleet, or to several gearmands, from ordinary threads."""

import contextlib
import os
import queue
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final

from client_ha.addresses import AddressRemap, Server
from client_ha.arguments import check_connecting, check_count, check_list, check_seconds, got, text_bytes
from client_ha.discovery import Discovery, parse_sources
from client_ha.engine import Engine, UniqueKeys, prepare
from client_ha.errors import ClientClosed, GearfleetError, InvalidArgument, NotAllAcknowledged
from client_ha.flight import Priority, function_bytes, unique_bytes
from client_ha.job import BaseJob, Callbacks, CallbackThread, Job, JobStatus
from client_ha.loop_thread import LoopThread, let_go
from client_ha.routing import Router, SlotRouter
from client_ha.task_set import Task, TaskSet
from client_ha.timing import MAP_IN_FLIGHT, SUBMIT_MANY_IN_FLIGHT, Timing

SUBMIT_TIMEOUT_SECONDS: Final = 30.0
STATUS_TIMEOUT_SECONDS: Final = 10.0
CANCEL_TIMEOUT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0

_CLIENTS: "weakref.WeakSet[HAClient]" = weakref.WeakSet()


class _Core:
    """What one process has of a client: thread, engine, keys. A forked child gets a new one."""

    def __init__(
        self,
        router: Router,
        timing: Timing,
        tls: ssl.SSLContext | None,
        discoveries: Sequence[Discovery],
        address_remap: AddressRemap | None,
    ) -> None:
        self.keys = UniqueKeys()
        self.callbacks = CallbackThread()
        self.thread = LoopThread("gearfleet client")

        async def make() -> Engine:
            return Engine(router, timing, tls=tls, discoveries=discoveries, address_remap=address_remap)

        self.engine = self.thread.run(make())

    def close(self) -> None:
        if self.thread.loop.is_closed():
            return
        if self.thread.is_current():
            # The garbage collector found the client here: this thread must not wait for itself.
            closing = self.thread.loop.create_task(self.engine.close())
            closing.add_done_callback(lambda _: self.thread.stop())
            return
        self.thread.run(self.engine.close())
        self.thread.stop()
        self.callbacks.close(_CLOSE_SECONDS)


class HAClient:
    """Submits jobs; safe to use from any number of threads, and after a fork.

        client = HAClient("10.0.0.1:4730,10.0.0.2:4730")
        job = client.submit("resize", photo, unique="photo-42")
        small = job.result(timeout=30)

    servers         "host:port,host:port", or a sequence of such; IPv6 as [::1]:4730; port 4730 when left out;
                    dns://NAME:PORT (every address of the name) and etcd://HOST:PORT/FLEET find servers;
                    None reads the environment's GEARMAN_SERVERS. Of a fleet, one node that is up will do
    submit_timeout  seconds that a job may be without a server that has acknowledged it, while servers are
                    down or say "try again"; 30
    tls             an ssl.SSLContext, or None for plain TCP
    timing          how soon a silent server counts as dead, and so on
    address_remap   function or mapping from the (host, port) that a node tells to the one to connect to,
                    where that is another: behind NAT, through tunnels. Not for what `servers` lists
    router          another rule than "the node that leads the job's slot; without a fleet, the server that
                    the key prefers, then the next"

    Connections are made in the background, in one daemon thread, at first use. Raises InvalidArgument for a
    bad address; a server that is down raises nothing here.
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
        self._lock = threading.Lock()
        self._current: _Core | None = None
        self._closed = False
        self._finalizer: weakref.finalize[[], HAClient] | None = None
        _CLIENTS.add(self)

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers it knows: those given, those found, and the nodes of the fleet's map."""
        return tuple(self._router.servers)

    def _core(self) -> _Core:
        core = self._current
        if core is not None:
            return core
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed; make a new one")
            if self._current is None:
                self._current = _Core(
                    self._router, self._timing, self._tls, self._discoveries, self._address_remap
                )
                # A client that is simply forgotten lets go of its thread and its connections, too.
                self._finalizer = weakref.finalize(self, self._current.close)
            return self._current

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
        """Submit a job.

        In the background: returns when a server has acknowledged it. In the foreground: returns at once, and
        `job.result()` waits; should the job's server die, it is submitted again by itself.

        payload     bytes, or str, which is sent as UTF-8
        unique      jobs of one function and key that are under way together are one job. Without one the job
                    gets one of its own, so that a repeat after a lost connection joins the first
        priority    "high", "normal" or "low"
        at          datetime or seconds since 1970: not before; in the background, whole seconds, rounded up
        cron        "minute hour day-of-month month day-of-week", in UTC: a schedule, which makes a background
                    job each time. It needs `unique`, its name; cancel(job) ends it. For nodes of Gearfleet:
                    gearmand refuses it (ServerRefused)
        timeout     seconds. In the background: until acknowledged, None: `submit_timeout` of the client. In
                    the foreground: for the whole job, None: no limit, but `submit_timeout` still ends it when
                    no server takes it
        on_...      called with the job first, in order, in a thread of the client's own; before result()
                    returns. on_fail hears every bad end that on_exception does not

        Raises InvalidArgument, ClientClosed, TooManyJobs; in the background NoServerAvailable, ServerBusy,
        ServerRefused. In the foreground result() raises those.
        """
        core = self._core()
        callbacks = None
        if on_data or on_warning or on_status or on_complete or on_fail or on_exception:
            callbacks = Callbacks(on_data, on_warning, on_status, on_complete, on_fail, on_exception)
        job = self._prepare(
            core, function, payload, unique, priority, background, at, timeout, cron=cron, callbacks=callbacks
        )
        job.keep(self)
        core.thread.post(core.engine.submit, job, timeout)
        if job.background:
            job.wait()
            job.raise_if_unacknowledged()
        return job

    def _prepare(
        self,
        core: _Core,
        function: str | bytes,
        payload: bytes | str,
        unique: str | bytes | None,
        priority: Priority,
        background: bool,
        at: datetime | float | int | None,
        timeout: float | None,
        *,
        cron: str | None = None,
        callbacks: Callbacks[Job] | None = None,
        index: int = 0,
    ) -> Job:
        return prepare(
            Job,
            core.keys,
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
            callback_thread=core.callbacks,
        )

    def _submit_tasks(self, tasks: Sequence[Task]) -> list[Job]:
        """For TaskSet: check all, then send all."""
        core = self._core()
        jobs = [
            self._prepare(
                core,
                task.function,
                task.payload,
                task.unique,
                task.priority,
                task.background,
                task.at,
                task.timeout,
                cron=task.cron,
                callbacks=task.callbacks,
                index=index,
            )
            for index, task in enumerate(tasks)
        ]
        for job, task in zip(jobs, tasks, strict=True):
            core.thread.post(core.engine.submit, job, task.timeout)
        return jobs

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
        """Submit many background jobs, pipelined; return them when all are acknowledged.

        uniques     one key for each payload, in the same order
        timeout     seconds in which each must be acknowledged; None: `submit_timeout` of the client
        in_flight   at most so many are unacknowledged at a time

        Raises NotAllAcknowledged, with `jobs` and `failed`, after all were tried; InvalidArgument at the
        first bad argument (what was sent before it stays sent); ClientClosed.
        """
        core = self._core()
        window = _Window(in_flight)
        jobs: list[Job] = []
        check_list("payloads", payloads)
        if uniques is not None:
            check_list("uniques", uniques)
        check_seconds("timeout", timeout)
        keys = None if uniques is None else iter(uniques)
        batch: list[Job] = []
        batch_max = max(1, min(256, in_flight // 4))

        def send() -> None:
            window.take(len(batch))
            core.thread.post(_submit_batch, core.engine, tuple(batch), timeout)
            batch.clear()

        for index, payload in enumerate(payloads):
            unique = None
            if keys is not None:
                unique = next(keys, None)
                if unique is None:
                    raise InvalidArgument(f"uniques has only {index} keys; give one for each payload")
            job = self._prepare(core, function, payload, unique, priority, True, at, timeout, index=index)
            job._when_done = window.done
            jobs.append(job)
            batch.append(job)
            if len(batch) >= batch_max:
                send()
        if batch:
            send()
        window.drain()
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
    ) -> Iterator[Job]:
        """Submit a foreground job for each payload and yield the jobs that have ended, as they end.

        in_flight   at most so many are under way; payloads are only taken as there is room
        ordered     yield in the order of the payloads
        timeout     seconds for each job

        Each job's `index` is its payload's position; its result() returns, or raises, at once. A failed job
        does not stop the others.
        """
        check_count("in_flight", in_flight, least=1)
        check_list("payloads", payloads)
        check_seconds("timeout", timeout)
        return self._map(function, iter(payloads), in_flight, ordered, priority, timeout)

    def _map(
        self,
        function: str | bytes,
        payloads: Iterator[bytes | str],
        in_flight: int,
        ordered: bool,
        priority: Priority,
        timeout: float | None,
    ) -> Iterator[Job]:
        core = self._core()
        ended: queue.SimpleQueue[Job] = queue.SimpleQueue()
        held: dict[int, Job] = {}
        submitted = yielded = 0
        exhausted = False
        while True:
            # With `ordered`, those that ended early count, too: they are held in memory.
            while not exhausted and submitted - yielded < in_flight:
                try:
                    payload = next(payloads)
                except StopIteration:
                    exhausted = True
                    break
                job = self._prepare(
                    core, function, payload, None, priority, False, None, timeout, index=submitted
                )
                job._when_done = ended.put
                core.thread.post(core.engine.submit, job, timeout)
                submitted += 1
            if yielded == submitted:
                return
            if ordered:
                while yielded not in held:
                    job = ended.get()
                    held[job.index] = job
                yield held.pop(yielded)
            else:
                yield ended.get()
            yielded += 1

    def task_set(self) -> TaskSet:
        """An empty set of tasks: add to it, run it, as in the PHP and Perl clients."""
        return TaskSet(self._submit_tasks)

    def status(
        self, job: Job | str, *, server: str | None = None, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> JobStatus:
        """What the servers say about a job.

        job         a Job, its `reference` ("host:port//handle"), or a bare handle
        server      who issued a bare handle; asked first. None: all are asked
        timeout     seconds to wait for an answer

        A job that has ended is not known any more. Raises NoServerAvailable, ServerRefused, ClientClosed.
        """
        core = self._core()
        return core.thread.run(ask_status(core.engine, job, server, timeout))

    def status_unique(self, unique: str | bytes, *, timeout: float = STATUS_TIMEOUT_SECONDS) -> JobStatus:
        """As `status`, by unique key: all servers are asked; `clients` says how many wait for the job.

        Raises InvalidArgument, NoServerAvailable, ServerRefused, ClientClosed.
        """
        core = self._core()
        return core.thread.run(core.engine.status_unique(unique_bytes(unique), timeout))

    def cancel(
        self, job: Job | str, *, server: str | None = None, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """Take a job from its server, or end a schedule; return whether there was one.

        job         as for `status`; one that no server has acknowledged yet is waited for. Its result()
                    raises JobCancelled; other clients that wait for it are told that it failed
        server      who issued a bare handle; asked first
        timeout     seconds to wait for an answer

        A job that runs already cannot be stopped: its result is dropped (gearmand cancels only jobs that
        wait, and tells their clients nothing). Gearman cancels by handle; keep `job.reference`.
        Raises InvalidArgument, NoServerAvailable, ServerRefused, ClientClosed.
        """
        core = self._core()
        return core.thread.run(cancel_job(core.engine, job, server, timeout))

    def cancel_unique(
        self, function: str | bytes, unique: str | bytes, *, timeout: float = CANCEL_TIMEOUT_SECONDS
    ) -> bool:
        """As `cancel`, by function and unique key, on nodes of Gearfleet; not for schedules.

        gearmand does not tell handles by key (ServerRefused). Raises as `cancel`.
        """
        core = self._core()
        return core.thread.run(
            core.engine.cancel_unique(function_bytes(function), unique_bytes(unique), timeout)
        )

    def close(self) -> None:
        """Close the connections; jobs under way end with ClientClosed. Background jobs are not affected."""
        with self._lock:
            self._closed = True
            core, self._current = self._current, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if core is not None:
            core.close()

    def __enter__(self) -> "HAClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forked(self) -> None:
        """In the child: the thread is gone and the connections are the parent's."""
        self._lock = threading.Lock()
        core, self._current = self._current, None
        if core is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            with contextlib.suppress(Exception):
                let_go(core.engine.filenos(), core)


def _forked() -> None:
    for client in list(_CLIENTS):
        client._forked()


os.register_at_fork(after_in_child=_forked)


def _submit_batch(engine: Engine, jobs: Sequence[Job], timeout: float | None) -> None:
    for job in jobs:
        engine.submit(job, timeout)


def status_question(job: BaseJob | str, server: str | None) -> tuple[str, str | None]:
    """The handle to ask for, and who issued it. Raises InvalidArgument."""
    if isinstance(job, BaseJob):
        if job.handle is None:
            raise InvalidArgument(f"{job!r} has no handle yet: no server has acknowledged it")
        return job.handle, job.server
    if not isinstance(job, str):
        raise InvalidArgument(f"job={got(job)}: give a job, its reference or its handle")
    if server is not None and not isinstance(server, str):
        raise InvalidArgument(f"server={got(server)}: give 'host:port', or None")
    text_bytes("job", job)
    issuer, slashes, handle = job.partition("//")
    return (handle, issuer) if slashes else (job, server)


async def ask_status(engine: Engine, job: BaseJob | str, server: str | None, seconds: float) -> JobStatus:
    """See HAClient.status."""
    if isinstance(job, BaseJob):
        seconds = await engine.acknowledged(job, seconds)
    handle, issuer = status_question(job, server)
    return await engine.status(handle, issuer, seconds)


async def cancel_job(engine: Engine, job: BaseJob | str, server: str | None, seconds: float) -> bool:
    """See HAClient.cancel."""
    if isinstance(job, BaseJob):
        seconds = await engine.acknowledged(job, seconds)
    handle, issuer = status_question(job, server)
    return await engine.cancel(handle, issuer, seconds)


class _Window:
    """Counts what is unacknowledged and lets the submitting thread wait for room."""

    def __init__(self, size: int) -> None:
        check_count("in_flight", size, least=1)
        self._size = size
        self._out = 0
        self._changed = threading.Condition(threading.Lock())
        self._wanted: int | None = None  # wake the waiter when no more than so many are out

    def take(self, count: int) -> None:
        with self._changed:
            if self._out and self._out + count > self._size:
                # Not at the first free place: one wake-up for many jobs.
                self._wanted = min(self._size // 2, self._size - count)
                self._changed.wait_for(lambda: self._out <= max(0, self._wanted or 0))
                self._wanted = None
            self._out += count

    def done(self, _: Any) -> None:
        with self._changed:
            self._out -= 1
            if self._wanted is not None and self._out <= max(0, self._wanted):
                self._changed.notify()

    def drain(self) -> None:
        with self._changed:
            self._wanted = 0
            self._changed.wait_for(lambda: self._out == 0)
