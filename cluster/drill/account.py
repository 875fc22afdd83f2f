"""A history in tables: which call got which job, who ran it, who led its slot, which faults touched it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import attrgetter, itemgetter
from typing import Final

from cluster.drill.history import Event, History, Kind

NEVER: Final = 1 << 62  # after all events


class Call:
    """A submit."""

    __slots__ = (
        "acked",
        "begun",
        "foreground",
        "gave_up",
        "handle",
        "key",
        "order",
        "outcome",
        "over",
        "priority",
        "result",
        "slot",
        "told_failure",
    )

    def __init__(self, begun: int, event: Event) -> None:
        self.begun = begun  # event
        self.over = NEVER  # the last event of it
        self.key = event.key
        self.priority = event.priority
        self.order = event.order
        self.foreground = event.foreground
        self.slot = event.slot
        self.outcome: Kind | None = None
        self.acked = NEVER
        self.gave_up = NEVER  # a foreground caller: waiting for the end, after it had been acknowledged
        self.handle = ""
        self.result = NEVER  # the first
        self.told_failure = False  # and not of success

    @property
    def open(self) -> bool:
        """Whether it may have made a job that nobody was told of."""
        return self.outcome is None or self.outcome is Kind.UNKNOWN


class Run:
    """A job with a worker. `free`: the worker's last end before, so it was not given earlier; -1: none."""

    __slots__ = ("begun", "ended", "free", "node", "outcome", "worker")

    def __init__(self, begun: int, worker: str, node: str, free: int) -> None:
        self.begun = begun
        self.worker = worker
        self.node = node
        self.free = free
        self.ended = NEVER
        self.outcome: Kind | None = None


class Job:
    """What has one handle."""

    __slots__ = (
        "acked",
        "begun",
        "call",
        "ended",
        "epoch",
        "failed",
        "foreground",
        "handle",
        "key",
        "promised",
        "runs",
        "slot",
    )

    def __init__(self, handle: str, key: str) -> None:
        self.handle = handle
        self.key = key
        self.call: Call | None = None  # the first that was acknowledged with it
        self.acked = NEVER  # then
        self.promised = NEVER  # the first time that a background submit was acknowledged with it
        self.begun = NEVER  # the earliest call that may have made it
        self.ended = NEVER  # the first end of a run
        self.failed = False
        self.runs: list[Run] = []
        self.slot, self.epoch, self.foreground = place(handle)

    @property
    def first_run(self) -> int:
        return self.runs[0].begun if self.runs else NEVER

    @property
    def known_from(self) -> int:
        """It was there then, at the latest."""
        return min(self.acked, self.first_run)


def place(handle: str) -> tuple[int, int, bool]:
    """Slot and epoch of a handle, and whether its job is a foreground job; -1 where it does not tell."""
    parts = handle[handle.rfind(":") + 1 :].split(".")
    try:
        if len(parts) != 3:
            return -1, -1, False
        if parts[1][0] == "t":
            return int(parts[0], 16), -1, True
        return int(parts[0], 16), int(parts[1], 16), False
    except (ValueError, IndexError):
        return -1, -1, False


def has_unique(key: str) -> bool:
    """Whether jobs of this key join."""
    return key.partition("/")[2] != ""


class Fault:
    """From when to when; one that was never healed lasts."""

    __slots__ = ("event", "healed")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.healed = float("inf")


class Worker:
    """When it was given its last job, and ended one."""

    __slots__ = ("busy", "free", "several")

    def __init__(self) -> None:
        self.busy = -1  # since this event
        self.free = -1  # since this event
        self.several = False  # it takes several jobs at a time


class Account:
    """Calls, jobs, runs and leaders of a history; events are named by their index in `events`."""

    def __init__(self, history: History) -> None:
        # Sorted already, or nearly, except for what other hands have put together.
        self.events = sorted(history.events, key=attrgetter("at"))
        self.calls: dict[int, Call] = {}
        self.jobs: dict[str, Job] = {}  # by handle
        # By key: nearly all have one call and one job, so only others have a list.
        self.first_call: dict[str, Call] = {}
        self.several_calls: dict[str, list[Call]] = {}
        self.first_job: dict[str, Job] = {}
        self.several_jobs: dict[str, list[Job]] = {}
        self.workers: dict[str, Worker] = {}
        self.faults: dict[int, Fault] = {}
        self.nodes: set[str] = set()
        self.leads: dict[int, list[tuple[float, str]]] = {}  # slot -> since when who led it
        # Slot and epoch -> who led, or made handles, and the first event that tells.
        self.leaders: dict[tuple[int, int], dict[str, int]] = {}
        self.makers: dict[tuple[int, int], dict[str, int]] = {}
        self.two_jobs: list[tuple[int, Job, str]] = []  # where a job's handle comes for another, and its key
        self._read()
        self._attribute_jobs()
        self._attribute_slots()

    # ---- reading

    def _read(self) -> None:
        bare: list[tuple[int, Event]] = []
        for index, event in enumerate(self.events):
            kind = event.kind
            if kind is Kind.SUBMIT:
                call = self.calls[event.call] = Call(index, event)
                first = self.first_call.setdefault(event.key, call)
                if first is not call:
                    self.several_calls.setdefault(event.key, [first]).append(call)
            elif kind is Kind.ACK:
                self._acknowledged(index, event)
            elif kind is Kind.RUN or kind is Kind.DONE or kind is Kind.FAILED or kind is Kind.ABANDONED:
                if event.node:
                    self.nodes.add(event.node)
                if event.handle:
                    self._ran(index, event, self._job(event.handle, event.key))
                else:
                    bare.append((index, event))
            elif kind is Kind.REFUSED or kind is Kind.UNKNOWN:
                self._not_acknowledged(index, event)
            elif kind is Kind.RESULT:
                if (waiting := self.calls.get(event.call)) is not None and waiting.result == NEVER:
                    waiting.result = waiting.over = index
                    waiting.told_failure = event.text != ""
            elif kind is Kind.FAULT:
                self.faults[event.fault] = Fault(event)
            elif kind is Kind.HEALED:
                if (fault := self.faults.get(event.fault)) is not None:
                    fault.healed = min(fault.healed, event.at)
            elif kind is Kind.LEADS:
                self.nodes.add(event.node)
                self.leads.setdefault(event.slot, []).append((event.at, event.node))
                self.leaders.setdefault((event.slot, event.epoch), {}).setdefault(event.node, index)
        for index, event in bare:
            self._ran(index, event, self._job_of_bare_run(index, event))

    def _job(self, handle: str, key: str) -> Job:
        job = self.jobs.get(handle)
        if job is None:
            job = self.jobs[handle] = Job(handle, key)
            if key:
                self._index(job)
        elif key and not job.key:
            job.key = key
            self._index(job)
        return job

    def _index(self, job: Job) -> None:
        first = self.first_job.setdefault(job.key, job)
        if first is not job:
            self.several_jobs.setdefault(job.key, [first]).append(job)

    def _acknowledged(self, index: int, event: Event) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        if event.node:
            self.nodes.add(event.node)
        job = self._job(event.handle or f"? {call.key}", call.key)
        if job.key != call.key or (job.call not in (None, call) and not has_unique(call.key)):
            self.two_jobs.append((index, job, call.key))
        # A foreground job that its client submitted again has another handle then: the last one counts.
        call.outcome, call.handle, call.acked, call.over = Kind.ACK, job.handle, index, index
        if call.slot < 0:
            call.slot = job.slot
        job.begun = min(job.begun, call.begun)
        if job.call is None:
            job.call = call
            job.acked = index
        if job.promised == NEVER and not call.foreground:
            job.promised = index

    def _not_acknowledged(self, index: int, event: Event) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        call.over = index
        if call.outcome is not Kind.ACK:
            call.outcome = event.kind
        elif call.foreground:
            call.outcome = Kind.UNKNOWN  # it had begun
            call.gave_up = index

    def _job_of_bare_run(self, index: int, event: Event) -> Job:
        """Whoever wrote this does not know handles: the first job of the key that has not ended, else the
        last."""
        jobs = [job for job in self.jobs_of(event.key) if job.call is not None and job.call.begun < index]
        if not jobs:
            return self._job(f"? {event.key}", event.key)
        return next((job for job in jobs if job.ended == NEVER), jobs[-1])

    def _ran(self, index: int, event: Event, job: Job) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            worker = self.workers[event.worker] = Worker()
        if event.kind is Kind.RUN:
            if event.key and job.key != event.key:
                self.two_jobs.append((index, job, event.key))
            worker.busy = index
            job.runs.append(Run(index, event.worker, event.node, worker.free))
            return
        run = next((r for r in reversed(job.runs) if r.worker == event.worker and r.outcome is None), None)
        if run is None:  # its beginning was not written down
            run = Run(index, event.worker, event.node, -1)
            job.runs.append(run)
        elif run.begun < worker.busy:  # a run that never ends was cut off, and proves nothing of the next
            worker.several = True
        worker.free = index
        run.ended, run.outcome = index, event.kind
        if event.kind is not Kind.ABANDONED and job.ended == NEVER:
            job.ended = index
            job.failed = event.kind is Kind.FAILED

    def _attribute_jobs(self) -> None:
        """When each job may have been made first."""
        first_open: dict[str, int] = {}
        for call in self.calls.values():
            if call.handle:
                job = self.jobs[call.handle]
                job.begun = min(job.begun, call.begun)
            elif call.slot < 0 and (known := self.first_job.get(call.key)) is not None:
                call.slot = known.slot
            if call.open:
                first_open.setdefault(call.key, call.begun)
        for key, begun in first_open.items():
            for job in self.jobs_of(key):
                job.begun = min(job.begun, begun)

    def _attribute_slots(self) -> None:
        """Who led what, as far as handles tell: a node's begin with H:NAME, unless it was told otherwise."""
        made: dict[int, list[tuple[int, str]]] = {}
        for job in self.jobs.values():
            if job.epoch < 0 or job.known_from == NEVER:
                continue
            prefix = job.handle[: job.handle.rfind(":")]
            makers = self.makers.setdefault((job.slot, job.epoch), {})
            if job.known_from < makers.get(prefix, NEVER):
                makers[prefix] = job.known_from
        prefixes = {prefix for makers in self.makers.values() for prefix in makers}
        named = any(prefix.startswith("H:") and prefix[2:] in self.nodes for prefix in prefixes)
        for where, makers in self.makers.items():
            for prefix, index in makers.items():
                name = prefix.removeprefix("H:")
                made.setdefault(where[0], []).append((index, name))
                # Where one node's handles have its name, H:NAME is a node, too, of which nothing else tells.
                if name in self.nodes or (named and prefix != name and where in self.leaders):
                    self.leaders.setdefault(where, {}).setdefault(name, index)
        for slot, rows in made.items():
            if slot not in self.leads:
                self.leads[slot] = [(self.events[index].at, name) for index, name in sorted(rows)]

    def calls_of(self, key: str) -> list[Call]:
        more = self.several_calls.get(key)
        if more is not None:
            return more
        one = self.first_call.get(key)
        return [] if one is None else [one]

    def jobs_of(self, key: str) -> list[Job]:
        more = self.several_jobs.get(key)
        if more is not None:
            return more
        one = self.first_job.get(key)
        return [] if one is None else [one]

    # ---- who led, what was touched

    def led(self, slot: int, begin: float, end: float) -> set[str]:
        """Who led the slot in this time, as far as known."""
        leads = self.leads.get(slot, [])
        first = bisect_left(leads, begin, key=itemgetter(0))
        last = bisect_right(leads, end, key=itemgetter(0))
        # With who led when it began; or, if that is not known, with the first of whom it is.
        return {node for _, node in leads[max(0, first - 1) : max(1, last)]}

    def fault_of(
        self,
        workers: Iterable[str],
        nodes: set[str],
        begin: float,
        end: float,
        *,
        all_end: float = 0.0,
        foreground: bool = False,
    ) -> Fault | None:
        """The last that touched any of them in this time; those that touch all, until `all_end` if that is
        later. No nodes: nobody knows which, so any may be."""
        for fault in reversed(self.faults.values()):
            last = max(end, all_end) if "all" in fault.event.touches else end
            lasted = fault.event.at <= last and fault.healed >= begin
            if lasted and self.concerns(fault, workers, nodes, foreground=foreground):
                return fault
        return None

    def concerns(
        self, fault: Fault, workers: Iterable[str], nodes: set[str], *, foreground: bool = False
    ) -> bool:
        """Whether it touches any of them. No nodes: nobody knows which, so any may be."""
        return any(self._touches(touched, workers, nodes, foreground) for touched in fault.event.touches)

    def _touches(self, touched: str, workers: Iterable[str], nodes: set[str], foreground: bool) -> bool:
        if touched in ("all", "etcd"):
            return True
        ends = touched.split(">")
        for end in ends:
            if end in self.workers:  # the link of another worker is none of our business
                return end in workers
        if "client" in ends and not foreground:
            return False
        return any(not nodes or end in nodes for end in ends if end not in ("client", "etcd", "worker"))
