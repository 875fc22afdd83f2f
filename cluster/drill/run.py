"""One drill, from the first look to the last job.

    work undisturbed -> for each step: the fleet is whole -> break -> hold -> mend -> the fleet is whole
                     -> no more submits -> the queues run empty -> the verdict

One fault at a time, and none while a slot lacks a copy. What was begun is mended on every way out: an error,
a signal, a fleet that does not recover. A fault is over when the fleet is whole again, not when its mending
said so. Mending is never interrupted; only a second Ctrl-C leaves at once, and says what is still broken.
Other signals are no second Ctrl-C: a terminal that closes may send two of them within a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cluster.drill.checker import Verdict, check
from cluster.drill.faults import (
    Drain,
    EtcdOutage,
    Fault,
    FaultFailed,
    Kill,
    Means,
    NotMended,
    SlowLink,
)
from cluster.drill.history import History
from cluster.drill.scenarios import LEADER, PAUSE_SECONDS_DEFAULT, Scenario, Step, clock
from cluster.drill.watch import NotWhole, Watch
from cluster.drill.workload import NotReady, Queue, Workload
from cluster.server.control import ControlError, FleetStatus

RECOVERY_SECONDS_DEFAULT: Final = 120.0
MEND_TRIES: Final = 3
MEND_PAUSE_SECONDS: Final = 2.0
STRANGERS_SECONDS: Final = 3.0  # for the drill's jobs to end beside somebody else's
STATUS_SECONDS: Final = 1.0  # between two looks at the fleet, for the display and the timeline
SECOND_SECONDS: Final = 1.0  # so long after the first signal a Ctrl-C leaves at once
INTERRUPTED: Final = "interrupted"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Exit(IntEnum):
    KEPT = 0  # the fleet kept its promises
    BROKEN = 1  # it broke one
    USAGE = 2  # the drill could not begin, a fault could not be done, or it proved nothing
    NOT_RECOVERED = 3  # the fleet did not become whole again, or a fault could not be mended
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drill does; see cluster.drill.scenarios."""

    steps: tuple[Step, ...]  # one round
    nodes: tuple[str, ...]  # all must be up before a fault, and after it
    targets: tuple[str, ...]  # of these, those that may be killed and drained
    duration_seconds: float | None = None  # None: one round
    pause_seconds: float = PAUSE_SECONDS_DEFAULT
    recovery_seconds: float = RECOVERY_SECONDS_DEFAULT
    remember_seconds: float = 0.0  # so long every node knows a finished job's key


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a drill ended. `reasons`: what its exit code is for, in words."""

    code: Exit
    reasons: tuple[str, ...]
    verdict: Verdict | None = None
    faults: int = 0
    seconds: float = 0.0


class Drill:
    """`tell` hears what happens, a line each; the attributes are for a display that looks by itself."""

    def __init__(
        self,
        plan: Plan,
        means: Means,
        watch: Watch,
        workload: Workload,
        history: History,
        tell: Callable[[str], object],
        leave: Callable[[list[str]], object] = lambda _: os._exit(Exit.INTERRUPTED),
    ) -> None:
        """`leave`: end the process at once, after it has told what is still broken."""
        self.plan = plan
        self.workload = workload
        self.status: FleetStatus | None = watch.last
        self.doing = "starting"  # now, in a few words
        self.faults = 0  # begun
        self._means = means
        self._watch = watch
        self._history = history
        self._say = tell
        self._leave = leave
        self._began = time.monotonic()
        self._broken: Fault | None = None  # begun, and the fleet has not been whole since
        self._mended = True  # as far as its mending can tell
        self._last: Fault | None = None  # begun; what it did may come to pass later than anybody waited
        self._open = 0  # the number of the fault that the fleet has not got over yet
        self._interrupted = False
        self._may_leave = False  # the next Ctrl-C does
        self._arming: asyncio.TimerHandle | None = None
        self._breaking: asyncio.Task[None] | None = None
        self._judging: asyncio.Task[tuple[Queue, bool]] | None = None
        self._seen: list[FleetStatus] = []  # since the fault began
        self._away: frozenset[str] = frozenset()  # the nodes that this drill has taken away
        self._starts: dict[str, int] = {}  # of each node, the incarnation that was last up
        self._strange: dict[str, int] = {}  # nodes that went down by themselves, and that fault's number
        self._alarm = asyncio.Event()  # set while there are such
        self._leads: dict[int, tuple[str, int]] = {}
        self._stopped_for_strangers = False
        self._reasons: list[str] = []
        self._code = Exit.KEPT

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def tell(self, text: str) -> None:
        self._say(f"{clock(self.seconds):>6}  {text}")

    # ---- from first to last

    async def run(self) -> Outcome:
        """Everything. Errors of the fleet and of commands are outcomes, not exceptions."""
        self._began = time.monotonic()
        try:
            with self._heeding_signals():
                return await self._run()
        finally:
            await self.workload.close()

    async def _run(self) -> Outcome:
        try:
            await self.workload.check_unused()
            await self.workload.start()
        except NotReady as error:
            self._fail(Exit.USAGE, str(error))
            return self._outcome(None)
        watching = asyncio.create_task(self._look_again_and_again())
        try:
            if not self._interrupted:
                self._breaking = asyncio.create_task(self._break())
                await asyncio.wait({self._breaking})
                self._learn(self._breaking)
            self._note_interruption()
            if self._broken is not None and not self._mended:
                self._fail(Exit.NOT_RECOVERED, self._broken.remedy)
            elif self._code not in (Exit.KEPT, Exit.NOT_RECOVERED):
                # After an interruption or a fault that failed: mended, and perhaps not yet whole.
                await self._whole_at_the_end()
            return self._outcome(await self._judge())
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _note_interruption(self) -> None:
        if self._interrupted and INTERRUPTED not in self._reasons:
            self._fail(Exit.INTERRUPTED, INTERRUPTED)

    def _learn(self, breaking: asyncio.Task[None]) -> None:
        """How the faults ended."""
        if breaking.cancelled() or (error := breaking.exception()) is None:
            return
        if isinstance(error, (NotWhole, NotMended)):
            self._fail(Exit.NOT_RECOVERED, str(error))
        elif isinstance(error, (FaultFailed, ControlError)):
            self._fail(Exit.USAGE, str(error))
        else:
            # Not a broken promise of the fleet, and its exit code must not look like one.
            with contextlib.suppress(OSError):
                traceback.print_exception(error)
            self._fail(Exit.USAGE, f"the drill itself failed ({error!r}): this is a defect")

    async def _judge(self) -> Verdict:
        """Let the queues run empty, then look at the history."""
        self._judging = asyncio.create_task(self._run_empty())
        await asyncio.wait({self._judging})
        self._note_interruption()
        if self._judging.cancelled():
            queue, drained = await self._what_is_left(), False
        else:
            queue, drained = self._judging.result()
        await self.workload.close()
        if drained:
            await self.workload.forget()
        self.doing = "done"
        return check(
            self._history,
            drained=drained,
            queued=queue.waiting,
            running=queue.running,
            remember_seconds=self.plan.remember_seconds,
        )

    async def _run_empty(self) -> tuple[Queue, bool]:
        """What is left in the queues in the end, and whether that is nothing at all."""
        everywhere = await self._all_is_served()
        self.doing = "letting the queues run empty"
        self.tell("no more submits; waiting for the last jobs")
        limit = self.plan.recovery_seconds
        if self._stopped_for_strangers:
            limit = min(limit, STRANGERS_SECONDS)
        try:
            queue = await self.workload.drain(limit)
        except OSError as error:
            self._fail(Exit.NOT_RECOVERED, f"nobody knows what is left in the queues: {error}")
            return Queue(), False
        if queue.jobs and not self._stopped_for_strangers:
            self._fail(Exit.NOT_RECOVERED, self._left(queue, f" after {limit:g} s"))
        return queue, everywhere and not queue.jobs

    async def _what_is_left(self) -> Queue:
        """For whoever would not wait until they are empty."""
        await self.workload.stop_submitting()
        try:
            queue = await self.workload.queue()
        except OSError as error:
            self._fail(Exit.INTERRUPTED, f"nobody knows what is left in the queues: {error}")
            return Queue()
        if queue.jobs:
            self._fail(Exit.INTERRUPTED, self._left(queue))
        if self._code is not Exit.NOT_RECOVERED and (lacks := await self._watch.problem(self.plan.nodes)):
            self._fail(Exit.NOT_RECOVERED, _and_remedy(f"the fleet is not whole: {lacks}", self._last))
        return queue

    def _left(self, queue: Queue, when: str = "") -> str:
        functions = " and ".join(self.workload.functions)
        return f"{queue.jobs} jobs of {functions} are left{when}: {self.workload.take_off} takes them off"

    async def _all_is_served(self) -> bool:
        """Jobs of slots that nobody serves are in no queue that can be asked."""
        if self._code is Exit.NOT_RECOVERED:
            # Why, has been said.
            if not await self._watch.problem(self.plan.nodes):
                return True
            self._fail(Exit.NOT_RECOVERED, "jobs may be left where nobody can see them")
            return False
        try:
            await self._watch.wait_whole(self.plan.nodes, self.plan.recovery_seconds)
        except NotWhole as error:
            text = _and_remedy(str(error), self._last)
            self._fail(Exit.NOT_RECOVERED, f"{text}. Jobs may be left where nobody can see them")
            return False
        return True

    def _outcome(self, verdict: Verdict | None) -> Outcome:
        for defect in self.workload.defects[:1]:
            self._fail(Exit.USAGE, f"{defect}: this is a defect")
        problems = [*self.workload.problems, *(verdict.problems if verdict is not None else ())]
        broken = bool(self.workload.problems) or (verdict is not None and verdict.broken)
        if broken and self._code is not Exit.NOT_RECOVERED:
            self._code = Exit.BROKEN
        elif problems and self._code is Exit.KEPT:
            self._code = Exit.USAGE  # a history that proves nothing is no broken promise
        return Outcome(self._code, (*self._reasons, *problems), verdict, self.faults, self.seconds)

    def _fail(self, code: Exit, reason: str) -> None:
        """The worst of several codes stays: a fleet that is still broken."""
        self.tell(reason)
        self._history.note(reason)
        self._reasons.append(reason)
        if self._code is not Exit.NOT_RECOVERED:
            self._code = code

    # ---- the faults

    async def _break(self) -> None:
        """Round after round. Raises NotWhole, NotMended, FaultFailed and ControlError."""
        plan = self.plan
        rounds = itertools.cycle(plan.steps) if plan.duration_seconds is not None else iter(plan.steps)
        self.tell(f"{' and '.join(self.workload.functions)}: submitting")
        for step in rounds:
            await self._work_undisturbed(plan.pause_seconds)
            if (
                plan.duration_seconds is not None
                and self.faults
                and self.seconds + step.expected_seconds > plan.duration_seconds
            ):
                break
            await self._do(step)
        left = plan.pause_seconds if plan.duration_seconds is None else plan.duration_seconds - self.seconds
        await self._work_undisturbed(max(0.0, left))

    async def _work_undisturbed(self, seconds: float) -> None:
        self.doing = "working undisturbed"
        await asyncio.sleep(seconds)

    async def _do(self, step: Step) -> None:
        await self._whole(f"waiting until the fleet is whole, then: {step.words}")
        status = await self._watch.look()
        fault = self._make(step, status)
        self.faults += 1
        self.doing = fault.what
        self.tell(f"{fault.what}  ({step.scenario})")
        self._open = self._history.fault(fault.what, *fault.touches, note=step.scenario)
        self._broken, self._mended, self._last = fault, False, fault
        self._away = fault.away
        self._seen.clear()
        began = time.monotonic()
        try:
            await fault.begin(self._detail)
            await self._hold(step.hold_seconds)
            if doubt := fault.doubt(self._seen):
                self._detail(doubt)
        finally:
            await uninterrupted(self._mend(fault))
        await self._whole(f"{fault.what}: waiting until the fleet is whole")
        self._over()
        self.tell(f"whole again, {time.monotonic() - began:.1f} s after it began")

    async def _hold(self, seconds: float) -> None:
        """Until the time is over, or more is broken than this drill has broken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._alarm.wait()

    def _make(self, step: Step, status: FleetStatus) -> Fault:
        """Raises FaultFailed."""
        if step.scenario is Scenario.ETCD_OUTAGE:
            return EtcdOutage(self._means)
        if step.scenario is Scenario.SLOW_LINK:
            proxy = next(each for each in self._means.slow_proxies if each.name == step.target)
            return SlowLink(proxy, self._means, status.nodes)
        if step.target == LEADER:
            targets = [each for each in status.nodes if each.name in self.plan.targets]
            node = max(targets, key=lambda each: each.leads)
        else:
            node = next(each for each in status.nodes if each.name == step.target)
        kind = Drain if step.scenario is Scenario.DRAIN else Kill
        return kind(node, self._means, self._watch)

    async def _mend(self, fault: Fault) -> None:
        """Several tries. Raises NotMended."""
        self.doing = f"mending: {fault.what}"
        for left in reversed(range(MEND_TRIES)):
            try:
                await fault.mend(self._detail)
            except NotMended as error:
                if not left:
                    raise
                self._detail(f"{error}; trying again")
                await asyncio.sleep(MEND_PAUSE_SECONDS)
            else:
                self._mended = True
                return

    async def _whole(self, doing: str) -> None:
        """Wait for it; then nothing is broken any more. Raises NotWhole."""
        self.doing = doing

        def told(lacks: str) -> None:
            self.doing = f"{doing}: {lacks}"

        try:
            await self._watch.wait_whole(self.plan.nodes, self.plan.recovery_seconds, told)
        except NotWhole as error:
            raise NotWhole(_and_remedy(str(error), self._broken)) from None
        self._broken = None

    async def _whole_at_the_end(self) -> None:
        mended = "" if self._broken is None else "mended what was begun; "
        self.tell(f"{mended}waiting until the fleet is whole")
        try:
            await self._whole("waiting until the fleet is whole")
        except NotWhole as error:
            self._fail(Exit.NOT_RECOVERED, str(error))
        else:
            self._over()

    def _over(self) -> None:
        if self._open:
            self._history.healed(self._open)
            self._open = 0
        for name in self._away:
            self._starts.pop(name, None)  # it has another one now, which may not have been seen yet
        self._away = frozenset()

    def _detail(self, text: str) -> None:
        self._history.note(text)
        self.tell(f"  {text}")

    # ---- the fleet, for the display and the timeline

    async def _look_again_and_again(self) -> None:
        while True:
            with contextlib.suppress(ControlError):
                self.status = status = await self._watch.look(slots=True)
                self._seen.append(status)
                self._note_leaders(status)
                self._note_strange_deaths(status)
            self._stop_for_strangers()
            await asyncio.sleep(STATUS_SECONDS)

    def _stop_for_strangers(self) -> None:
        """Somebody's job came to the drill's workers, who must not do it."""
        if self.workload.strange_job and not self._stopped_for_strangers:
            self._stopped_for_strangers = True
            self._fail(
                Exit.USAGE,
                f"somebody else uses {' or '.join(self.workload.functions)} "
                f"(job {self.workload.strange_job}): choose a --function that nobody has. Their jobs stay in "
                "the queue, and so may some of the drill's",
            )
            if self._breaking is not None:
                self._breaking.cancel()

    def _note_leaders(self, status: FleetStatus) -> None:
        for slot in status.slots:
            if slot.primary and self._leads.get(slot.slot) != (slot.primary, slot.epoch):
                self._leads[slot.slot] = (slot.primary, slot.epoch)
                self._history.leads(slot.primary, slot.slot, slot.epoch)

    def _note_strange_deaths(self, status: FleetStatus) -> None:
        """Nodes that died of something else: that explains what it explains, as any fault does."""
        starts = {node.name: node.incarnation for node in status.nodes if node.state != "down"}
        for name in self.plan.nodes:
            start = starts.get(name, 0)
            if name in self._away:
                self._starts[name] = start or self._starts.get(name, 0)
                continue
            if start != self._starts.setdefault(name, start) and name not in self._strange:
                self._alarm.set()
                self._strange[name] = self._history.fault(f"{name} went down", name, note="not by this drill")
                self.tell(f"{name} went down, and not by this drill")
            if start and name in self._strange:
                self._history.healed(self._strange.pop(name))
                self.tell(f"{name} is back")
            self._starts[name] = start or self._starts[name]
        if not self._strange:
            self._alarm.clear()

    # ---- signals

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # Under nohup a hang-up is ignored, and stays so.
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in heeded:
            loop.add_signal_handler(number, self._heed, number)
        try:
            yield
        finally:
            if self._arming is not None:
                self._arming.cancel()
            for number in heeded:
                loop.remove_signal_handler(number)

    def _heed(self, number: signal.Signals) -> None:
        if self._interrupted:
            if number == signal.SIGINT and self._may_leave:
                self._leave(self.still_broken())
            return
        self._interrupted = True
        self._arming = asyncio.get_running_loop().call_later(SECOND_SECONDS, self._let_leave)
        if self._judging is not None and not self._judging.done():
            self.tell("stopping: the last jobs are not waited for")
            self._judging.cancel()
            return
        self.tell("stopping: everything is mended first")
        if self._breaking is not None:
            self._breaking.cancel()

    def _let_leave(self) -> None:
        self._may_leave = True
        self.tell("a second Ctrl-C leaves at once")

    def still_broken(self) -> list[str]:
        """What somebody has to mend who leaves now, and how."""
        lines = [] if self._broken is None else [self._broken.remedy]
        functions = " and ".join(self.workload.functions)
        lines.append(f"{functions} may have jobs left: {self.workload.take_off} takes them off")
        return lines


def _and_remedy(text: str, fault: Fault | None) -> str:
    return text if fault is None else f"{text}. {fault.remedy}"


async def uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Do it to its end, also when this task is cancelled meanwhile, once or several times."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def node_names(status: FleetStatus) -> Callable[[str], str]:
    """A node's name by the address at which it serves clients; the address itself when nobody has it."""
    names = {f"{node.host}:{node.port}": node.name for node in status.nodes if node.host}
    return lambda address: names.get(address, address)


__all__ = ["Drill", "Exit", "Outcome", "Plan", "node_names", "uninterrupted"]
