"""All jobs of a node and every transition between their states.

Invariants, kept by every method:
  - a living job is in exactly one slot's `jobs`; a coalescing one also in that slot's `uniques`;
  - `function.total` counts its living jobs, `function.running` those in RUNNING;
  - a job is in a queue if and only if it is QUEUED, but for husks (cancelled, counted in `husks`);
  - `ready[priority]` holds exactly the functions whose queue of that priority is not empty;
  - a RUNNING job is in its worker's `running`, and nowhere else's.

Nothing here grows with the depth of a queue: submit, grab and completion are a few dictionary and deque
operations each. The tables are kept per slot so that no dictionary ever grows large enough for its
resizing to be felt, and so that a slot can move to another node whole.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from cluster.jobs.function import IDLE_FUNCTIONS_MAX, PRIORITIES, Function
from cluster.jobs.job import FINISHED, PENDING, QUEUED, RUNNING, Job
from cluster.jobs.worker import Worker

COUNTED_FUNCTIONS_MAX: Final = 10_000  # forgotten names whose totals are kept; all others share one row
OTHER_FUNCTIONS: Final = b"(other)"


class SlotTable:
    """The living jobs of one slot."""

    __slots__ = ("jobs", "remembered", "uniques")

    def __init__(self) -> None:
        self.jobs: dict[bytes, Job] = {}  # by handle
        self.uniques: dict[bytes, Job] = {}  # by key
        # Keys of jobs that are over and whose submits may be repeated: handle, when it ended.
        self.remembered: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()


class Ledger:
    """See the module's docstring."""

    def __init__(
        self, slot_count: int, *, idle_seconds: float = 0.0, idle_functions_max: int = IDLE_FUNCTIONS_MAX
    ) -> None:
        self.idle_seconds = idle_seconds  # how long a function without a job and a worker stays in the list
        self.idle_functions_max = idle_functions_max
        self.monotonic_seconds = 0.0  # the turn's
        # Since when functions are idle, the longest first. Some may have come back to life meanwhile: to
        # notice that at once would cost each submit something.
        # Those that no worker ever served stand apart, and go first when there are too many: who only invents
        # names must not push out those of the others.
        self.resting: OrderedDict[Function, float] = OrderedDict()
        self.resting_unserved: OrderedDict[Function, float] = OrderedDict()
        self.functions: dict[bytes, Function] = {}
        self.payload_bytes = 0  # of all living jobs
        self.tables = [SlotTable() for _ in range(slot_count)]
        self.ready: tuple[dict[Function, None], ...] = tuple({} for _ in range(PRIORITIES))
        # Totals of functions that are forgotten, by name: a counter must not fall.
        self.counts: dict[bytes, list[int]] = {}
        # The functions of the jobs that were enqueued since the sleepers were last woken, one for each job.
        self.stirred: list[Function] = []

    # ---- functions

    def function(self, name: bytes) -> Function:
        """The function of this name, made if need be."""
        function = self.functions.get(name)
        if function is None:
            function = self.functions[name] = Function(name, self.counts.pop(name, None))
        return function

    def _keep_counts(self, function: Function) -> None:
        if any(function.counts):
            name = function.name
            if len(self.counts) >= COUNTED_FUNCTIONS_MAX:
                name = OTHER_FUNCTIONS
            before = self.counts.get(name, [0] * len(function.counts))
            self.counts[name] = list(map(sum, zip(before, function.counts, strict=True)))

    def rest_if_idle(self, function: Function) -> None:
        """A function without a job and a worker stays in the list for a while: an alarm on "no worker" must
        not fall silent when the last worker dies. Not for ever, and not too many: names cost memory too."""
        if not function.idle:
            return
        if self.idle_seconds <= 0:
            self.forget_if_idle(function)
            return
        self._drop_husks(function)
        self._no_longer_rests(function)
        resting = self.resting if function.served else self.resting_unserved
        resting[function] = self.monotonic_seconds
        while len(self.resting) + len(self.resting_unserved) > self.idle_functions_max:
            self._forget_longest_resting(self.resting_unserved or self.resting)

    def forget_rested(self) -> None:
        """Forget the functions that have been idle for long enough."""
        before = self.monotonic_seconds - self.idle_seconds
        for resting in (self.resting, self.resting_unserved):
            while resting and next(iter(resting.values())) <= before:
                self._forget_longest_resting(resting)

    def _forget_longest_resting(self, resting: OrderedDict[Function, float]) -> None:
        function, _ = resting.popitem(last=False)
        self.forget_if_idle(function)

    def _no_longer_rests(self, function: Function) -> None:
        self.resting.pop(function, None)
        self.resting_unserved.pop(function, None)

    def forget_if_idle(self, function: Function) -> None:
        """Keep no function that has no job, no worker and no limit."""
        if function.idle and self.functions.pop(function.name, None) is not None:
            self._keep_counts(function)
            self._no_longer_rests(function)
            self._drop_husks(function)

    def _drop_husks(self, function: Function) -> None:
        for priority, queue in enumerate(function.queues):
            if queue:
                queue.clear()
                function.husks[priority] = 0
                self.ready[priority].pop(function, None)

    # ---- a job's life

    def add(self, job: Job) -> None:
        """A new job, PENDING or on its way to a queue."""
        table = self.tables[job.slot]
        table.jobs[job.handle] = job
        function = job.function
        if len(job.key) > len(function.bare_key):
            table.uniques[job.key] = job
        function.total += 1
        self.payload_bytes += len(job.payload)

    def enqueue(self, job: Job, *, first: bool = False) -> None:
        """The job may run: put it behind the others of its priority, or before them."""
        job.state = QUEUED
        function = job.function
        priority = job.priority
        queue = function.queues[priority]
        if not queue:
            self.ready[priority][function] = None
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)
        if function.sleepers:
            self.stirred.append(function)

    def enqueue_all(self, jobs: Iterable[Job]) -> None:
        """`enqueue` for the many jobs of a group that wait for nothing but their commit."""
        stir = self.stirred.append
        ready = self.ready
        for job in jobs:
            job.state = QUEUED
            function = job.function
            priority = job.priority
            queue = function.queues[priority]
            if not queue:
                ready[priority][function] = None
            queue.append(job)
            if function.sleepers:
                stir(function)

    def adopt(self, worker: Worker, job: Job) -> None:
        """A worker kept a job that waits to be run again (RECLAIM; QUEUED or SCHEDULED after a delivery)."""
        if job.state == QUEUED:
            # No husk: should this worker be lost too, the job would be in the queue twice. It is near the
            # head, among the others that were put back.
            function = job.function
            queue = function.queues[job.priority]
            queue.remove(job)
            if not queue:
                del self.ready[job.priority][function]
        job.state = RUNNING
        job.worker = worker
        job.function.running += 1
        worker.running[job.handle] = job

    def grab(self, worker: Worker) -> Job | None:
        """Give the worker its next job: the highest priority over all its functions, first in first
        out within one, the function that it was served least recently first."""
        abilities = worker.abilities
        for priority, ready in enumerate(self.ready):
            while ready:
                if len(abilities) == 1:
                    (function,) = abilities
                    if function not in ready:
                        break
                else:
                    if len(ready) < len(abilities):
                        candidates = [function for function in ready if function in abilities]
                    else:
                        candidates = [function for function in abilities if function in ready]
                    if not candidates:
                        break
                    function = min(candidates, key=abilities.__getitem__)
                queue = function.queues[priority]
                job = queue.popleft()
                if not queue:
                    del ready[function]
                if job.state == QUEUED:
                    if len(abilities) > 1:
                        worker.served += 1
                        abilities[function] = worker.served
                    job.state = RUNNING
                    job.worker = worker
                    job.deliveries += 1
                    function.running += 1
                    worker.running[job.handle] = job
                    return job
                function.husks[priority] -= 1
        return None

    def release(self, job: Job) -> None:
        """Take a running job from its worker."""
        worker = job.worker
        if worker is not None:
            del worker.running[job.handle]
            job.worker = None
            job.function.running -= 1
            job.progress = None

    def withhold(self, job: Job) -> None:
        """Take back what was just grabbed, and keep it out of its queue; `enqueue` puts it there again."""
        self.release(job)
        job.deliveries -= 1
        job.state = PENDING

    def finish(self, job: Job) -> None:
        """The job is over, from whatever state."""
        state = job.state
        function = job.function
        handle = job.handle
        if state == RUNNING:
            worker = job.worker
            assert worker is not None
            del worker.running[handle]
            job.worker = None
            function.running -= 1
        table = self.tables[job.slot]
        del table.jobs[handle]
        key = job.key
        if len(key) > len(function.bare_key):
            del table.uniques[key]
        job.state = FINISHED
        function.total -= 1
        self.payload_bytes -= len(job.payload)
        if state == QUEUED:
            function.leave_husk(job.priority)
            if not function.queues[job.priority]:
                self.ready[job.priority].pop(function, None)
        if not function.total and not function.workers:
            self.rest_if_idle(function)

    # ---- workers

    def can_do(self, worker: Worker, name: bytes, timeout_seconds: float = 0.0) -> None:
        """CAN_DO and CAN_DO_TIMEOUT; a repeat changes the time limit only."""
        function = self.function(name)
        if function not in worker.abilities:
            # As in gearmand: what was registered last comes first, and before all that has been served.
            worker.registered += 1
            worker.abilities[function] = -worker.registered
        function.workers[worker] = None
        if worker.asleep:
            function.sleepers[worker] = None
            self.stirred.append(function)
        if timeout_seconds > 0:
            worker.timeouts[function] = timeout_seconds
        else:
            worker.timeouts.pop(function, None)

    def cannot_do(self, worker: Worker, function: Function) -> None:
        worker.abilities.pop(function, None)
        worker.timeouts.pop(function, None)
        function.workers.pop(worker, None)
        function.sleepers.pop(worker, None)
        self.rest_if_idle(function)

    def sleep(self, worker: Worker, *, anyway: bool = False) -> bool:
        """PRE_SLEEP: true when the worker sleeps now, false when there is a job for it (`anyway`: which it
        would not get)."""
        abilities = worker.abilities
        for priority in range(0 if anyway else PRIORITIES):
            ready = self.ready[priority]
            if len(ready) < len(abilities):
                if any(
                    function in abilities for function in list(ready) if self._has_job(function, priority)
                ):
                    return False
            elif any(function in ready and self._has_job(function, priority) for function in abilities):
                return False
        worker.asleep = True
        for function in abilities:
            function.sleepers[worker] = None
        return True

    def _has_job(self, function: Function, priority: int) -> bool:
        """Whether more than husks is in a queue that is not empty; clears one that is husks only."""
        if function.queued(priority):
            return True
        function.queues[priority].clear()
        function.husks[priority] = 0
        self.ready[priority].pop(function, None)
        return False

    def wake(self, count_max: int) -> list[Worker]:
        """The sleepers to be woken for what was enqueued since the last call.

        At most `count_max` for each job, 0 = all. Those left out keep their place in the row.
        """
        woken: list[Worker] = []
        stirred = Counter(self.stirred) if count_max else dict.fromkeys(self.stirred, 0)
        for function, jobs in stirred.items():
            if not function.sleepers or not any(map(function.queued, range(PRIORITIES))):
                continue
            limit = count_max * jobs or len(function.sleepers)
            count = 0
            for worker in list(function.sleepers):
                if count >= limit:
                    break
                del function.sleepers[worker]
                if worker.asleep:
                    worker.asleep = False
                    woken.append(worker)
                    count += 1
        self.stirred.clear()
        return woken

    def stir(self, worker: Worker) -> None:
        """A worker that was woken leaves without having grabbed: others are woken in its place."""
        for function in worker.abilities:
            if function.sleepers:
                self.stirred.append(function)

    # ---- looking

    def find_unique(self, slots: Iterator[tuple[int, bytes]]) -> Job | None:
        """The best job among (slot, key) pairs: a running one, else the first that lives."""
        found: Job | None = None
        for slot, key in slots:
            job = self.tables[slot].uniques.get(key)
            if job is not None:
                if job.state == RUNNING:
                    return job
                found = found or job
        return found

    def all_jobs(self) -> Iterator[Job]:
        """Every living job, slot by slot."""
        for table in self.tables:
            yield from table.jobs.values()

    def count(self) -> int:
        """How many jobs live."""
        return sum(function.total for function in self.functions.values())
