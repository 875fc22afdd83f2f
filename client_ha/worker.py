"""HAWorker: tasks in threads, or in processes, for jobs from every server of a fleet."""

import asyncio
import queue
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, Final, TypeVar

from client_ha.addresses import AddressRemap, Server
from client_ha.arguments import check_connecting, check_count, check_seconds, check_wait, text_bytes
from client_ha.context import JobContext
from client_ha.discovery import Discovery, parse_sources
from client_ha.errors import CallerMistake, InvalidArgument, NoServerAvailable
from client_ha.log import logger
from client_ha.loop_thread import Outbox
from client_ha.prefork import END, Prefork
from client_ha.stopping import Patience
from client_ha.tasks import Task, completed, make_task, raised
from client_ha.timing import Timing
from client_ha.worker_engine import Run, WorkerEngine, WorkerStats
from client_ha.worker_log import greet, shown_on_stderr
from cluster.wire.packets import CLIENT_ID_BYTES_MAX

DRAIN_SECONDS: Final = 30.0
TIMEOUT_GRACE_SECONDS: Final = 1.0  # the server's clock decides first; the worker's own is this much later
WORKER_TIMING: Final = Timing(idle_probe_seconds=5.0)  # a sleeping worker must notice that it is not heard

TaskFunction = Callable[[JobContext], bytes | str | None]
AnyTaskFunction = TypeVar("AnyTaskFunction", bound=TaskFunction)


class BaseWorker:
    """What both workers have in common: options, tasks, and one run from start to drain."""

    def __init__(
        self,
        servers: "str | Iterable[str | Server | Discovery] | None",
        concurrency: int,
        client_id: str,
        max_jobs: int | None,
        drain_seconds: float,
        tls: ssl.SSLContext | None,
        timing: Timing | None,
        address_remap: AddressRemap | None,
    ) -> None:
        sources = parse_sources(servers)
        self.servers = sources.servers
        self._discoveries = sources.discoveries
        check_count("concurrency", concurrency, least=1)
        check_count("max_jobs", max_jobs, least=1, or_none=True)
        check_seconds("drain_seconds", drain_seconds, or_none=False)
        check_connecting(tls, timing, address_remap)
        self._client_id = text_bytes("client_id", client_id)
        if len(self._client_id) > CLIENT_ID_BYTES_MAX or any(c <= 32 for c in self._client_id):
            raise InvalidArgument(f"client_id={client_id!r}: at most {CLIENT_ID_BYTES_MAX} bytes, no blanks")
        self.concurrency = concurrency
        self._max_jobs = max_jobs
        self._drain_seconds = drain_seconds
        self._tls = tls
        self._timing = timing or WORKER_TIMING
        self._address_remap = address_remap
        self.tasks: dict[bytes, Task[Any]] = {}
        self._engine: WorkerEngine | None = None
        self._stats = WorkerStats()
        self._connected: tuple[Server, ...] = ()
        self._connected_changed = threading.Condition()
        self._connected_waiting: list[asyncio.Future[None]] = []

    def _add(self, name: str | bytes, handler: Any, timeout_seconds: float | None) -> None:
        task = make_task(name, handler, timeout_seconds)
        if self._engine is not None:
            raise CallerMistake(f"task {name!r} was added while the worker runs; add tasks before run()")
        if task.name in self.tasks:
            raise InvalidArgument(f"task {name!r} is defined twice in this worker")
        self.tasks[task.name] = task

    def _make_engine(
        self, begin: Callable[[Run], None], send: Callable[[Run, bytes], object]
    ) -> WorkerEngine:
        if not self.tasks:
            raise CallerMistake("the worker has no tasks; define some with @worker.task('name')")
        return WorkerEngine(
            self.servers,
            self.tasks,
            begin,
            send,
            self._timing,
            concurrency=self.concurrency,
            client_id=self._client_id,
            max_jobs=self._max_jobs,
            tls=self._tls,
            discoveries=self._discoveries,
            address_remap=self._address_remap,
            stats=self._stats,
            changed=self._note_connected,
        )

    def _greet(self, processes: int = 0) -> None:
        greet(self.tasks, [*self.servers, *self._discoveries], self.concurrency, processes)

    @property
    def stats(self) -> WorkerStats:
        """What it has done since it was made, jobs moved and results dropped. Not known for processes."""
        return replace(self._stats)

    def _unconnected(self) -> list[tuple[str, str]]:
        """Each server, and whether it is registered there."""
        connected = self._connected
        servers = dict.fromkeys([*self.servers, *connected])
        states = [(str(s), "registered" if s in connected else "not connected") for s in servers]
        return states + [(str(discovery), "looked up") for discovery in self._discoveries]

    def _note_connected(self) -> None:
        with self._connected_changed:
            self._connected = () if self._engine is None else tuple(self._engine.connected())
            self._connected_changed.notify_all()
        waiting, self._connected_waiting = self._connected_waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _connected_event(self) -> None:
        """Wait for the next change of `connected`; in the worker's own loop."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connected_waiting.append(future)
        await future

    async def _serve(
        self,
        engine: WorkerEngine,
        stop: asyncio.Event,
        hurry: asyncio.Event,
        signals: Iterable[int],
        *,
        greets: bool = True,
    ) -> None:
        """Run an engine until stopped or out of jobs, then drain it."""
        loop = asyncio.get_running_loop()
        patience = Patience()

        def asked_to_stop() -> None:
            if patience.signalled(loop.time()) and not hurry.is_set():
                logger.warning("asked again to stop: giving up the jobs that run")
                hurry.set()
            stop.set()

        before = {number: signal.getsignal(number) for number in signals}
        for number in before:
            loop.add_signal_handler(number, asked_to_stop)
        self._engine = engine
        if greets:
            self._greet()
        engine.start()
        try:
            await _first(stop.wait(), engine.finished.wait())
            engine.drain()
            drained_at = loop.time()
            await _first(engine.idle.wait(), hurry.wait(), timeout_seconds=self._drain_seconds)
            if not engine.idle.is_set():
                logger.error(
                    "jobs still run after %.3g s of draining; their servers will give them to other workers",
                    loop.time() - drained_at,
                )
        finally:
            await engine.close()
            self._engine = None
            self._note_connected()
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


async def _first(*waits: Any, timeout_seconds: float | None = None) -> None:
    """Wait for the first of several; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class HAWorker(BaseWorker):
    """Runs tasks for jobs from all servers.

        worker = HAWorker("10.0.0.1:4730,10.0.0.2:4730", concurrency=4)

        @worker.task("resize", timeout_seconds=60)
        def resize(job):
            job.progress(1, 10)
            return smaller(job.payload)

        worker.run()

    servers         as for HAClient; servers that are down join in when they are up
    concurrency     jobs at a time, each in a thread; in each process, if there are several
    processes       0: run here. N: fork N processes and replace those that die
    client_id       what the servers' `workers` command shows
    max_jobs        end after so many jobs (of each process, which is then replaced); None: no limit
    drain_seconds   how long stop() and SIGTERM let running jobs go on; 30
    tls, timing, address_remap      as for HAClient

    SIGTERM and SIGINT drain: nothing new is taken, what runs is finished. Another signal, a second later or
    more, ends it at once; the servers then give the jobs to other workers. As a context manager it runs in a
    background thread.
    """

    def __init__(
        self,
        servers: "str | Iterable[str | Server | Discovery] | None" = None,
        *,
        concurrency: int = 1,
        processes: int = 0,
        client_id: str = "",
        max_jobs: int | None = None,
        drain_seconds: float = DRAIN_SECONDS,
        tls: ssl.SSLContext | None = None,
        timing: Timing | None = None,
        address_remap: AddressRemap | None = None,
    ) -> None:
        super().__init__(servers, concurrency, client_id, max_jobs, drain_seconds, tls, timing, address_remap)
        check_count("processes", processes, least=0)
        self._processes = processes
        self._lock = threading.Lock()
        self._stop_wanted = False
        self._stop_now: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._task_threads: list[threading.Thread] = []

    def task(
        self, name: str | bytes, *, timeout_seconds: float | None = None
    ) -> Callable[[AnyTaskFunction], AnyTaskFunction]:
        """Make a function the task of this name. It is given a JobContext and returns bytes, str or None.

        timeout_seconds     told to the servers: gearmand then gives the job to another worker. Should the
                            server not have acted a second later, the worker reports failure. A thread cannot
                            be stopped, so the task goes on, in its slot; its result is dropped

        What it raises goes to the client as JobException; JobFailed as failure; Retry gives the job back.
        Raises InvalidArgument.
        """

        def register(handler: AnyTaskFunction) -> AnyTaskFunction:
            if iscoroutinefunction(handler):
                raise InvalidArgument(f"task {name!r} is a coroutine function; use AsyncHAWorker for it")
            self._add(name, handler, timeout_seconds)
            return handler

        return register

    def run(self) -> None:
        """Work until stop(), SIGTERM, SIGINT, or `max_jobs`. Raises CallerMistake without tasks.

        It logs what it does at INFO, as "client_ha"; to standard error where logging is not set up.
        """
        with shown_on_stderr():
            self._run()

    def _run(self) -> None:
        if not self.tasks:
            raise CallerMistake("the worker has no tasks; define some with @worker.task('name')")
        if self._processes:
            self._greet(self._processes)
            prefork = Prefork(self._processes, self._run_child, self._drain_seconds)
            with self._lock:
                self._stop_now = prefork.stop
                if self._stop_wanted:
                    prefork.stop()
            try:
                prefork.run()
            finally:
                with self._lock:
                    self._stop_now, self._stop_wanted = None, False
        else:
            in_main = threading.current_thread() is threading.main_thread()
            self._run_here((signal.SIGTERM, signal.SIGINT) if in_main else ())

    def start(self) -> None:
        """Work in a thread in the background until stop()."""
        if self._thread is not None and self._thread.is_alive():
            raise CallerMistake("the worker runs already")
        if not self.tasks:
            raise CallerMistake("the worker has no tasks; define some with @worker.task('name')")
        self._thread = threading.Thread(target=self._run, name="gearfleet worker", daemon=True)
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """Drain and end. From any thread. `wait`: until it has ended, if start() began it; not in a task."""
        with self._lock:
            self._stop_wanted = True
            if self._stop_now is not None:
                self._stop_now()
        thread = self._thread
        if threading.current_thread() in self._task_threads:
            return  # it would wait for itself
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()
            self._thread = None
            with self._lock:
                self._stop_wanted = False

    @property
    def connected(self) -> tuple[Server, ...]:
        """The servers that it is registered with now. Not known for processes."""
        return self._connected

    def wait_connected(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until it is registered with `count` servers; at most `timeout` seconds.

        Raises InvalidArgument, NoServerAvailable.
        """
        check_count("count", count, least=0)
        check_wait(timeout)
        with self._connected_changed:
            if not self._connected_changed.wait_for(lambda: len(self._connected) >= count, timeout):
                what = f"the worker's registration with {count} servers"
                raise NoServerAvailable(what, timeout, self._unconnected())

    def __enter__(self) -> "HAWorker":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # One process.

    def _run_child(self, parent: socket.socket) -> None:
        self._lock = threading.Lock()  # the parent may have held it while it forked
        self._stop_now, self._stop_wanted = None, False
        self._run_here((signal.SIGTERM,), parent)

    def _run_here(self, signals: Iterable[int], parent: socket.socket | None = None) -> None:
        asyncio.run(self._main(tuple(signals), parent))

    async def _main(self, signals: tuple[int, ...], parent: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        stop, hurry = asyncio.Event(), asyncio.Event()
        outbox = Outbox(loop)
        runs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()

        def overdue(run: Run) -> None:
            logger.error(
                "%s runs longer than its %.3g s; it is reported as failed, its thread cannot be stopped",
                run.context,
                run.task.timeout_seconds,
            )
            engine.expire(run)

        def begin(run: Run) -> None:
            limit = run.task.timeout_seconds
            if limit is not None:
                run.timer = loop.call_later(limit + TIMEOUT_GRACE_SECONDS, overdue, run)
            runs.put(run)

        def work() -> None:
            while (run := runs.get()) is not None:
                try:
                    packet = completed(run.handle, run.task.handler(run.context))
                except BaseException as error:
                    packet = raised(run.handle, run.task.name, error)
                outbox.post(engine.finish, run, packet)

        engine = self._make_engine(begin, lambda run, packet: outbox.post(engine.report, run, packet))
        # Daemons: a task that never returns must not keep the process from ending.
        threads = [
            threading.Thread(target=work, name=f"gearfleet task {number}", daemon=True)
            for number in range(self.concurrency)
        ]
        self._task_threads = threads
        for thread in threads:
            thread.start()

        def stop_now() -> None:
            engine.drain()  # here and now: not one grab more
            stop.set()

        with self._lock:
            self._stop_now = lambda: outbox.post(stop_now)
            if self._stop_wanted:
                stop.set()
        if parent is not None:

            def parent_says() -> None:
                word = parent.recv(1)
                if not word:  # it is gone
                    loop.remove_reader(parent)
                if word == END:
                    hurry.set()
                stop.set()

            loop.add_reader(parent, parent_says)
        try:
            await self._serve(engine, stop, hurry, signals, greets=parent is None)
        finally:
            with self._lock:
                self._stop_now = None
                if self._thread is None:
                    self._stop_wanted = False
            outbox.close()
            for _ in threads:
                runs.put(None)
