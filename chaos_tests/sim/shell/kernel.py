"""The kernel under the shell: virtual time, processes with event loops of their own, one thread, one seed.

    world = World(seed)
    with world.installed():             # time, dice, disk and gRPC of the shell are the world's (replaced.py)
        host = world.host("a")          # a machine: address, clock, disk, network; outlives its processes
        process = world.process(host)   # one start of a program on it
        process.spawn(main())           # a coroutine on its loop
        world.run(10.0)                 # that many virtual seconds; or run_until(condition, seconds_max)

What a part that stands for something below the shell (gRPC, etcd) may use:

    world.now                         virtual seconds, monotonic, the same for all
    world.current                     the process whose callback runs, None between callbacks
    world.at(when, act, *arguments)   an event of the world, not of a process; .cancel(); also world.after(…)
    world.say("words", value)         a line of the trace; what is said is part of the run's digest
    world.dice_for("name")            a Random for each name: its draws do not disturb other parts
    world.network                     connections, see below and network.py
    world.fail("rule", "what is wrong")    the run is broken: Broken is raised from world.run

    process.loop                      a SimLoop; asyncio.get_running_loop() while its callbacks run
    process.post(act, *arguments)     act is run as a callback of this process when the dice choose it; never
                                      when it is dead, later when it is frozen. A process without coroutines
                                      (a simulated etcd member) lives on these alone
    process.alive, process.frozen     a dead one never runs again; make a new one on the same host
    process.kill()                    kill -9: peers get EOF or reset, the page cache stays
    process.freeze(), .thaw()         SIGSTOP, SIGCONT
    host.cut_power()                  its processes die, peers hear nothing, what was not fsynced may be lost
    host.power_on()                   connections from before are reset now
    host.clock_offset                 added to its wall clock (time.time) only

The scheduler picks one of the processes that have something ready, by dice, and runs ONE callback of it.
When nobody has, time jumps to the next timer, delivery or event. A crash can thus come between any two
callbacks, and every await of the shell is a border of callbacks.

Messages between processes (network.py): any object, in order inside a connection, late by dice:

    port = network.listen(process, port, accept)         # accept(end) runs in the process, for each of them
    end = await network.connect(process, host, port)     # ConnectionRefusedError, or TimeoutError (ETIMEDOUT)
    end.listen(on_message, on_lost)   # on_message(message): in the receiving process, a callback each.
                                      # on_lost(error), once: None the other side closed, else an OSError
    end.send(message, size)           # never blocks; end.unsent: bytes that the other process has not taken
    end.close(), end.abort()          # EOF behind what was sent; reset. Nothing is heard here afterwards
    end.local, end.remote             # (address, port)

What stands in place of grpc, time and so on is one list: `names` in replaced.py.

What is gone with its process needs no tidying: a dead process's finalizers may call all of the above, to no
effect.
"""

# mypy: disable-error-code="override"
# What asyncio's types promise of a loop is more than anybody here asks for.

from __future__ import annotations

import asyncio
import contextlib
import itertools
from asyncio import events as asyncio_events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from heapq import heappop, heappush
from random import Random
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from chaos_tests.sim.worlds import Broken

if TYPE_CHECKING:
    from chaos_tests.sim.shell.disk import Disk, JournalWatcher
    from chaos_tests.sim.shell.network import Network

START_SECONDS: Final = 1000.0
EPOCH_SECONDS: Final = 1_800_000_000.0  # what the hosts' wall clocks show at START_SECONDS
CALLBACK_SECONDS: Final = 5e-6  # how far each callback moves the time

_set_running_loop = asyncio_events._set_running_loop
_unregister_task = asyncio.tasks._unregister_task


class Killed(BaseException):
    """Unwinds what a dying process was doing. Nothing catches it, and nothing that it does then counts."""


class Event:
    """Something that happens at a time; or, of a process, is ready. Stands for asyncio's handles, too."""

    __slots__ = ("_act", "_arguments", "_cancelled", "_context", "_when", "process")

    def __init__(
        self,
        act: Callable[..., object],
        arguments: tuple[Any, ...],
        when: float = 0.0,
        process: Process | None = None,
        context: Context | None = None,
    ) -> None:
        self._act = act
        self._arguments = arguments
        self._when = when
        self._cancelled = False
        self._context = context
        self.process = process

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class World:
    """One run."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        from chaos_tests.sim.shell.network import Network

        self.seed = seed
        self.trace = trace
        self.now = START_SECONDS
        self.current: Process | None = None
        self.loop: SimLoop | None = None  # the running one, as asyncio knows it
        self.hosts: dict[str, Host] = {}
        self.processes: list[Process] = []
        self.callbacks = 0  # that have run
        self.on_step: Callable[[], None] = lambda: None  # every `step_callbacks`
        self.step_callbacks = 10
        self.failure: Broken | None = None
        self.error: BaseException | None = None  # behind the failure
        self._heap: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count(1)
        self._picked = bytearray()  # whose callback ran, one after the other
        self._said = 0  # checksum of the trace
        self._runnable: list[Process] = []
        self._pick = Random(f"{seed} scheduler").random
        self.network: Network = Network(self)

    @property
    def digest(self) -> int:
        """Of who ran in which order, and what was said when: the same for the same run."""
        return self._said << 32 | crc32(self._picked)

    def dice_for(self, name: str) -> Random:
        """The same name gives a new Random that begins the same."""
        return Random(f"{self.seed} {name}")

    def number(self) -> int:
        """Another one each time: for whatever needs an order that does not depend on addresses."""
        return next(self._numbers)

    def host(self, name: str) -> Host:
        """The machine of that name; made when first asked for."""
        found = self.hosts.get(name)
        if found is None:
            found = self.hosts[name] = Host(self, name, f"10.0.0.{len(self.hosts) + 1}")
        return found

    def process(self, host: Host, name: str = "") -> Process:
        """A new process; it does nothing until something is spawned or posted."""
        process = Process(self, host, name or host.name)
        self.processes.append(process)
        host.processes.append(process)
        return process

    def at(self, when: float, act: Callable[..., object], *arguments: Any) -> Event:
        """An event of the world itself."""
        event = Event(act, arguments, when)
        heappush(self._heap, (when, next(self._numbers), event))
        return event

    def after(self, seconds: float, act: Callable[..., object], *arguments: Any) -> Event:
        return self.at(self.now + seconds, act, *arguments)

    def say(self, *words: object) -> None:
        """A line of the trace."""
        text = " ".join(map(str, words))
        self._said = crc32(b"%a %b" % (self.now, text.encode("utf-8", "replace")), self._said)
        if self.trace:
            who = self.current.name if self.current is not None else "-"
            print(f"{self.now - START_SECONDS:10.6f} {self.callbacks:7} {who:>8} {text}", flush=True)

    def fail(self, rule: str, text: str = "") -> None:
        """The first failure ends the run. `rule`: what was broken, without a word on who broke it."""
        if self.failure is None:
            self.failure = Broken(rule, text)
            self.say("BROKEN", self.failure)

    def fail_by(self, error: BaseException, text: str = "") -> None:
        """Something was raised that nobody expects: a broken promise, or a defect of whatever ran."""
        if self.failure is not None:
            return
        self.error = error
        if isinstance(error, Broken):
            self.fail(error.rule, error.text)
        else:
            frames = extract_tb(error.__traceback__)
            where = f" in {frames[-1].name}" if frames else ""
            self.fail(f"{type(error).__name__}{where}", f"{text}: {error!r}" if text else repr(error))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Everything below the shell is this world's."""
        from chaos_tests.sim.shell.replaced import replaced

        with replaced(self):
            try:
                yield
            finally:
                self._end()

    def _end(self) -> None:
        """All is dropped, while finalizers still find what they were made with."""
        for process in self.processes:
            process.at_death.clear()
            process.alive = False
            process.ready.clear()
        self._runnable.clear()
        self._heap.clear()
        self.network.ends.clear()
        self.on_step = lambda: None
        for process in self.processes:
            _set_running_loop(process.loop)
            while tasks := asyncio.all_tasks(process.loop):
                for task in sorted(tasks, key=hash):
                    with contextlib.suppress(Exception, Killed):
                        task.get_coro().close()
                    _unregister_task(task)
            _set_running_loop(None)

    # ---- running

    def run(self, seconds: float) -> None:
        """Let this much time pass. Raises Broken."""
        self.run_until(lambda: False, seconds)

    def run_until(self, condition: Callable[[], bool], seconds_max: float) -> bool:
        """Run until the condition holds, which is looked at whenever time is about to pass; whether it does.

        Raises Broken.
        """
        try:
            return self._run_until(condition, self.now + seconds_max)
        finally:
            self.loop = None
            _set_running_loop(None)

    def _run_until(self, condition: Callable[[], bool], end: float) -> bool:
        heap, runnable, pick, picked = self._heap, self._runnable, self._pick, self._picked.append
        step_callbacks = self.step_callbacks
        while True:
            while heap and heap[0][0] <= self.now:
                event = heappop(heap)[2]
                if not event._cancelled:
                    self._fire(event)
            if self.failure is not None:
                raise self.failure from self.error
            if runnable:
                count = len(runnable)
                index = int(pick() * count) if count > 1 else 0
                process = runnable[index]
                picked(process.number & 255)
                event = process.ready.popleft()
                if not process.ready:
                    runnable[index] = runnable[-1]
                    runnable.pop()
                    process.listed = False
                if event._cancelled:
                    continue
                self.callbacks += 1
                self.now += CALLBACK_SECONDS
                process.execute(event)
                if self.callbacks % step_callbacks == 0:
                    self.on_step()
                continue
            if condition():
                return True
            if not heap or heap[0][0] > end:
                self.now = max(self.now, end)
                return False
            self.now = heap[0][0]

    def _fire(self, event: Event) -> None:
        process = event.process
        if process is None:
            event._act(*event._arguments)
        else:
            process.make_ready(event)


class Host:
    """A machine."""

    def __init__(self, world: World, name: str, address: str) -> None:
        from chaos_tests.sim.shell.disk import Disk

        self.world = world
        self.name = name
        self.address = address
        self.up = True
        self.clock_offset = 0.0
        self.processes: list[Process] = []
        self.disk: Disk = Disk(world, name)

    def cut_power(self) -> None:
        """Its processes are gone, and what was not fsynced may be lost; nobody is told."""
        self.world.say("power cut", self.name)
        self.up = False
        for process in self.processes:
            process.die(quietly=True)
        self.disk.lose_power()

    def power_on(self) -> None:
        """It is back, without processes; old connections are reset when the others next say something."""
        self.world.say("power on", self.name)
        self.up = True
        self.world.network.host_is_back(self)


class Process:
    """One start of a program on a host."""

    def __init__(self, world: World, host: Host, name: str) -> None:
        self.world = world
        self.host = host
        self.name = name
        self.number = len(world.processes) + 1
        self.alive = True
        self.frozen = False
        self.ready: deque[Event] = deque()
        self.listed = False  # among the world's runnable ones
        self.dice = world.dice_for(f"process {self.number} {name}")
        self.disk_operations_left = -1  # before it dies in the middle of one; -1 = it does not
        self.callbacks_left = -1  # before `fuse` is called; -1 = none is set
        self.fuse: Callable[[], None] = lambda: None
        self.journal_watcher: JournalWatcher | None = None
        self.at_death: list[
            Callable[[], None]
        ] = []  # threads that die in the middle of their work, and so on
        self.loop = SimLoop(self)  # type: ignore[abstract]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine on its loop. A failure of it is a failure of the run."""
        task: asyncio.Task[Any] = self.loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self.alive and not isinstance(error, Killed):
            self.world.fail_by(error, self.name)

    def post(self, act: Callable[..., object], *arguments: Any) -> Event:
        """Run something in this process when the dice choose it."""
        event = Event(act, arguments)
        self.make_ready(event)
        return event

    def make_ready(self, event: Event) -> None:
        if self.alive:
            self.ready.append(event)
            if not self.listed and not self.frozen:
                self.listed = True
                self.world._runnable.append(self)

    def execute(self, event: Event) -> None:
        """One callback."""
        world = self.world
        world.current = self
        if world.loop is not self.loop:
            world.loop = self.loop
            _set_running_loop(self.loop)
        try:
            if event._context is None:
                event._act(*event._arguments)
            else:
                event._context.run(event._act, *event._arguments)
        except Killed:
            pass
        except Exception as error:
            self.loop.call_exception_handler({"message": f"callback {event._act}", "exception": error})
        finally:
            world.current = None
        if self.callbacks_left > 0:
            self.callbacks_left -= 1
            if self.callbacks_left == 0:
                self.callbacks_left = -1
                self.fuse()

    def kill(self) -> None:
        """kill -9."""
        self.world.say("kill", self.name)
        self.die(quietly=False)

    def die(self, *, quietly: bool) -> None:
        """It never runs again. `quietly`: nobody hears of it (its machine is gone, too)."""
        if not self.alive:
            return
        for act in self.at_death:
            act()
        self.alive = False
        self.ready.clear()
        self._unlist()
        self.world.network.process_died(self, quietly=quietly)
        self.host.disk.process_died(self)

    def freeze(self) -> None:
        """SIGSTOP: the kernel goes on taking connections and bytes for it."""
        self.world.say("freeze", self.name)
        self.frozen = True
        self._unlist()

    def thaw(self) -> None:
        """SIGCONT."""
        self.world.say("thaw", self.name)
        self.frozen = False
        if self.ready and self.alive and not self.listed:
            self.listed = True
            self.world._runnable.append(self)

    def _unlist(self) -> None:
        if self.listed:
            self.listed = False
            self.world._runnable.remove(self)


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, work: Any, number: int, **arguments: Any) -> None:
        self._number = number
        super().__init__(work, **arguments)
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """What the shell asks of its event loop."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world = process.world
        self._exception_handler: Callable[[Any, dict[str, Any]], object] | None = None

    # ---- callbacks and timers

    def time(self) -> float:
        return self.world.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        event = Event(callback, args, 0.0, None, context)
        self.process.make_ready(event)
        return event

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        event = Event(callback, args, when, self.process, context)
        if self.process.alive:
            heappush(self.world._heap, (when, next(self.world._numbers), event))
        return event

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        number = next(self.world._numbers)
        return SimTask(coro, number, loop=self, name=name or f"t{number}", context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """A thread's work is one event, at a moment that the disk's dice choose."""
        future = self.create_future()
        self.process.host.disk.in_thread(self.process, lambda: self._run_in_thread(future, func, args))
        return future

    def _run_in_thread(self, future: asyncio.Future[Any], func: Any, args: tuple[Any, ...]) -> None:
        try:
            result = func(*args)
        except Exception as error:
            self.call_soon(_settle, future, None, error)
        else:
            self.call_soon(_settle, future, result, None)

    # ---- the rest of a loop's life

    def is_running(self) -> bool:
        return self.process.alive

    def is_closed(self) -> bool:
        return not self.process.alive

    def get_debug(self) -> bool:
        return False

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        """Nobody sends signals here."""

    def set_exception_handler(self, handler: Any) -> None:
        self._exception_handler = handler

    def get_exception_handler(self) -> Any:
        return self._exception_handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback raised, or a task's error was looked at by nobody: a defect in whatever ran."""
        if self.process.alive:
            error = context.get("exception")
            text = f"{self.process.name}: {context.get('message')}"
            if isinstance(error, BaseException):
                self.world.fail_by(error, text)
            else:
                self.world.fail("an error of a loop", text)

    # ---- network

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        return self.world.network.resolve(host, port)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        await self.world.network.reach(self.process, address[0], address[1])

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        return await self.world.network.create_connection(self.process, protocol_factory, host, port)

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if sock is not None:
            port = sock.getsockname()[1]
        return self.world.network.create_server(self.process, protocol_factory, port)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
