"""The ledger against a model that is too dumb to be wrong: one plain list in the order of the queue."""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.jobs import FINISHED, PENDING, PRIORITIES, QUEUED, RECLAIM, RUNNING, Job, Ledger, Worker

NAMES = (b"f", b"g", b"h")
SLOTS = 3
names = st.sampled_from(NAMES)
which = st.integers(0, 99)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(SLOTS)
        self.numbers = count(1)
        self.living: list[Job] = []
        self.queue: list[Job] = []  # all that is QUEUED, whatever its function; the next one first
        self.running: dict[Worker, list[Job]] = {}
        self.abilities: dict[Worker, list[bytes]] = {}  # the one served least recently first
        self.asleep: list[Worker] = []
        self.over: set[bytes] = set()

    def pick(self, among: Any, index: int) -> Any:
        among = list(among)
        return among[index % len(among)] if among else None

    # ---- jobs

    @rule(
        name=names, priority=st.integers(0, 2), unique=st.sampled_from([b"", b"u", b"v"]), runs=st.booleans()
    )
    def submit(self, name: bytes, priority: int, unique: bytes, runs: bool) -> None:
        slot = (name[0] + len(unique)) % SLOTS
        key = name + b"\0" + unique
        if unique and key in self.ledger.tables[slot].uniques:
            assert any(job.key == key for job in self.living)
            return
        function = self.ledger.function(name)
        job = Job(b"h%d" % next(self.numbers), function, key, b"", priority, True, slot, PENDING)
        self.ledger.add(job)
        self.living.append(job)
        if runs:
            self.ledger.enqueue(job)
            self.queue.append(job)

    @rule(index=which)
    def is_committed(self, index: int) -> None:
        job = self.pick([job for job in self.living if job.state in (PENDING, RECLAIM)], index)
        if job is not None:
            self.ledger.enqueue(job)
            self.queue.append(job)

    @rule(index=which)
    def finish(self, index: int) -> None:
        job = self.pick(self.living, index)
        if job is not None:
            self.ledger.finish(job)
            self.forget(job)
            self.living.remove(job)
            self.over.add(job.handle)

    def forget(self, job: Job) -> None:
        if job in self.queue:
            self.queue.remove(job)
        for jobs in self.running.values():
            if job in jobs:
                jobs.remove(job)

    # ---- workers

    @rule()
    def worker_comes(self) -> None:
        if len(self.running) < 5:
            worker = Worker(None)
            self.running[worker] = []
            self.abilities[worker] = []

    @rule(index=which, name=names)
    def can_do(self, index: int, name: bytes) -> None:
        worker = self.pick(self.running, index)
        if worker is not None:
            self.ledger.can_do(worker, name)
            if name not in self.abilities[worker]:
                # Never served: before all others, and the last one first
                self.abilities[worker].insert(0, name)

    @rule(index=which, name=names)
    def cannot_do(self, index: int, name: bytes) -> None:
        worker = self.pick(self.running, index)
        if worker is not None and name in self.abilities[worker]:
            self.abilities[worker].remove(name)
            self.ledger.cannot_do(worker, self.ledger.functions[name])

    @rule(index=which)
    def grab(self, index: int) -> None:
        worker = self.pick(self.running, index)
        if worker is None:
            return
        worker.asleep = False
        if worker in self.asleep:
            self.asleep.remove(worker)
        able = self.abilities[worker]
        expected = None
        for priority in range(PRIORITIES):
            for name in able:
                waiting = [job for job in self.queue if (job.priority, job.function.name) == (priority, name)]
                if waiting and expected is None:
                    expected = waiting[0]
        assert self.ledger.grab(worker) is expected
        if expected is not None:
            self.queue.remove(expected)
            self.running[worker].append(expected)
            if len(able) > 1:  # with one there are no turns
                able.remove(expected.function.name)
                able.append(expected.function.name)

    @rule(index=which)
    def worker_leaves(self, index: int) -> None:
        worker = self.pick(self.running, index)
        if worker is None:
            return
        for job in reversed(self.running.pop(worker)):
            self.ledger.release(job)
            self.ledger.enqueue(job, first=True)
            self.queue.insert(0, job)
        for name in self.abilities.pop(worker):
            self.ledger.cannot_do(worker, self.ledger.functions[name])
        if worker in self.asleep:
            self.asleep.remove(worker)

    @rule(index=which)
    def node_restarts_for_a_job(self, index: int) -> None:
        """Its worker is not known any more; it waits to be adopted."""
        job = self.pick([job for jobs in self.running.values() for job in jobs], index)
        if job is not None:
            self.forget(job)
            self.ledger.release(job)
            job.state = RECLAIM

    @rule(index=which, other=which)
    def adopt(self, index: int, other: int) -> None:
        worker = self.pick(self.running, other)
        waiting = [
            job for job in self.living if job.state == RECLAIM or (job.state == QUEUED and job.deliveries)
        ]
        job = self.pick(waiting, index)
        if worker is not None and job is not None:
            self.forget(job)
            self.ledger.adopt(worker, job)
            self.running[worker].append(job)

    # ---- sleep

    @rule(index=which)
    def sleep(self, index: int) -> None:
        worker = self.pick(self.running, index)
        if worker is None:
            return
        has_job = any(job.function.name in self.abilities[worker] for job in self.queue)
        if worker in self.asleep:
            self.asleep.remove(worker)
            worker.asleep = False
        assert self.ledger.sleep(worker) is not has_job
        if not has_job:
            self.asleep.append(worker)

    @precondition(lambda self: self.asleep)
    @rule()
    def wake(self) -> None:
        woken = self.ledger.wake(0)
        for worker in woken:
            self.asleep.remove(worker)
            assert not worker.asleep
        # Nobody sleeps beside a job that it can do
        for worker in self.asleep:
            assert worker.asleep
            assert not any(job.function.name in self.abilities[worker] for job in self.queue)

    # ---- ledger.py's invariants

    @invariant()
    def a_living_job_is_in_exactly_one_slot_and_a_coalescing_one_in_its_uniques(self) -> None:
        tables = self.ledger.tables
        assert sorted(job.handle for job in self.ledger.all_jobs()) == sorted(
            job.handle for job in self.living
        )
        for job in self.living:
            assert job.state != FINISHED
            assert [job.handle in table.jobs for table in tables].count(True) == 1
            assert tables[job.slot].jobs[job.handle] is job
            if job.coalesces:
                assert tables[job.slot].uniques[job.key] is job
        assert sum(len(table.uniques) for table in tables) == sum(job.coalesces for job in self.living)

    @invariant()
    def counters_count(self) -> None:
        assert self.ledger.count() == len(self.living)
        assert self.ledger.payload_bytes == sum(len(job.payload) for job in self.living)
        for name, function in self.ledger.functions.items():
            mine = [job for job in self.living if job.function is function]
            assert function.name == name
            assert function.total == len(mine)
            assert function.running == sum(job.state == RUNNING for job in mine)
            for priority in range(PRIORITIES):
                queued = [job for job in self.queue if (job.function, job.priority) == (function, priority)]
                assert function.queued(priority) == len(queued)
        assert all(job.function is self.ledger.functions[job.function.name] for job in self.living)

    @invariant()
    def a_job_is_in_a_queue_if_and_only_if_it_is_queued_but_for_husks(self) -> None:
        for function in self.ledger.functions.values():
            for priority, queue in enumerate(function.queues):
                alive = [job for job in queue if job.state == QUEUED]
                assert alive == [
                    job for job in self.queue if (job.function, job.priority) == (function, priority)
                ]
                husks = [job for job in queue if job.state != QUEUED]
                assert all(job.state == FINISHED for job in husks)
                assert function.husks[priority] == len(husks)

    @invariant()
    def ready_holds_exactly_the_functions_whose_queue_is_not_empty(self) -> None:
        for priority, ready in enumerate(self.ledger.ready):
            assert set(ready) == {
                function for function in self.ledger.functions.values() if function.queues[priority]
            }

    @invariant()
    def a_running_job_is_in_its_worker_s_running_and_nowhere_else_s(self) -> None:
        for worker, jobs in self.running.items():
            assert list(worker.running.values()) == jobs
            assert all(job.worker is worker and job.state == RUNNING for job in jobs)
        running = [job for jobs in self.running.values() for job in jobs]
        assert sorted(job.handle for job in running) == sorted(
            job.handle for job in self.living if job.state == RUNNING
        )

    @invariant()
    def nothing_is_kept_of_functions_that_are_idle(self) -> None:
        able = {name for names in self.abilities.values() for name in names}
        assert set(self.ledger.functions) <= able | {job.function.name for job in self.living}


TestLedgerAgainstAModel = LedgerMachine.TestCase
TestLedgerAgainstAModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
