"""Judges a history: was any promise of the fleet broken?

What is true of this system, and how a history shows that it was not:

lost              An acknowledged background job ends: some run of its handle is DONE or FAILED. A foreground
                  call that was acknowledged ends for its caller: RESULT; or UNKNOWN when it gave up. Without
                  any fault since it was called it must not give up `grace_seconds` and more after the job's
                  end, nor, of a job without an end, so long after its node gave out one that was made later
                  and is not more urgent. With `remember_seconds` no call is answered with a job that ended
                  longer before than that and `grace_seconds`, unless it is run again. Judged only after a
                  full drain; a history that was not drained proves nothing and is not valid.
unexpected        A job that runs was submitted before, by a call that was not refused. A call that timed out
                  (UNKNOWN) or never returned may have made a job, or not. A caller that was told of success
                  has it from a run that was DONE before, under whatever handle. One that was told of a
                  failure (its RESULT has a text): from a run that FAILED or was cut off; or there was a fault
                  meanwhile.
duplicated        A handle is one job for ever, so its second run is a duplicate. So is a handle that no call
                  accounts for: each was made by a call of its own, acknowledged with it or of unknown end.
                  At-least-once delivery allows a duplicate where a fault explains it: one that touched a
                  worker of the two runs, a node that gave them or led the slot meanwhile, or etcd or all, and
                  that lasted into the time from `grace_seconds` before the first run to the second. When the
                  first run was DONE or FAILED the time ends `grace_seconds` after that: by then its end is
                  on disk, and only a fault of all may undo it (a backup is restored). Of two handles for one
                  call the time begins so long before the call. A link touches both its ends, but with a
                  worker at one end only that worker; a link from a client touches only foreground jobs,
                  which their client submits again. When nothing tells which nodes a job was on, a fault of
                  any node may explain. A node submits a foreground job again whose node it lost, and a job
                  without a unique that it did not see committed: each fault of nodes, between `grace_seconds`
                  before a call and its end, explains one more job of it. More of them are unexpected.
coalescing        While a job lives its key has one handle. It lives at least from its first acknowledgement
                  or run to its first end, as end is written down before it is sent. So two handles of one key
                  must not overlap, and no call within that time may be acknowledged with another. With
                  `remember_seconds` the life is longer by that: for fleets where all submits come from
                  clients that repeat (HAClient). Cancelled jobs end unseen: a workload must not cancel.
order             In a slot the jobs of one function and priority are given out in the order of their
                  acknowledgements, and a higher priority first. "First" for submits is: acknowledged before
                  the other was called. For runs: begun before the worker of the other, which takes one job at
                  a time, was free for it. Only first runs count, and only of background jobs submitted with
                  an `order`. Who may have been given out and lost by the way is excused: a fault touched a
                  worker or a node of that slot between submit and run.
split             In an epoch a slot has one primary. Broken when two nodes lead it in one epoch, by LEADS or
                  by the handles they make (who answers a client proves nothing: any node passes submits on;
                  and H:NAME tells of a node only where some node's handles are called after it); when one
                  handle names two jobs; and when a job is made in an epoch after a later one had already
                  acknowledged: each commit of the later one outdated the primary of the earlier one.

All comparisons are of the order of events, not of their times, except for the windows in seconds. Jobs
without a unique join nothing and are known by their handles only. Foreground jobs live on one node, so they
take no part in coalescing and order.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple

from cluster.drill.account import NEVER, Account, Call, Fault, Job, Run, has_unique
from cluster.drill.history import Event, History, Kind

GRACE_SECONDS: Final = 10.0  # a lease: so long after its end a fault still has effects
GAP_SECONDS_MIN: Final = 0.5  # shorter waits for an acknowledgement are no gap worth keeping
NOTICED_SECONDS: Final = 0.1  # shorter ones are everyday's, and not the work of a fault
RETRY_SECONDS: Final = 1.0  # a submit so soon after a refused one waits for the same thing
FEW: Final = 10  # submits of a function, of which none needs to be acknowledged
EXAMPLES: Final = 3  # of each broken promise, in `problems`
_ALL_SLOTS: Final = range(-1, 1 << 30)
_PRIORITIES: Final = {"high": 0, "normal": 1, "low": 2}


class Finding(NamedTuple):
    """One broken promise, or an explained duplicate."""

    at: float
    key: str
    handle: str
    text: str
    fault: int = 0  # that explains it


class Gap(NamedTuple):
    """Submits of a slot waited, and none was acknowledged."""

    slot: int
    begun: float
    seconds: float


class Recovery(NamedTuple):
    """How long after a fault began the last gap was over that overlapped it, in the slots that it struck."""

    fault: Event
    seconds: float | None  # None: there was none of NOTICED_SECONDS, so nobody noticed


@dataclass(slots=True)
class Verdict:
    """What came of a history. `valid`: no promise was broken, and everything is over."""

    submitted: int = 0  # calls
    acknowledged: int = 0  # of these
    ordered: int = 0  # calls with an order; without any, no order was checked
    refused: int = 0
    unknown: int = 0  # timed out, cut off, or not answered by the end
    done: int = 0  # jobs that ended, well or not
    failed: int = 0  # of these: not well
    runs: int = 0
    unfinished: int = 0  # acknowledged background jobs that did not end; after a drain they are lost
    seconds: float = 0.0
    lost: list[Finding] = field(default_factory=list)
    unexpected: list[Finding] = field(default_factory=list)
    duplicated_explained: list[Finding] = field(default_factory=list)
    duplicated_unexplained: list[Finding] = field(default_factory=list)
    coalescing_broken: list[Finding] = field(default_factory=list)
    order_broken: list[Finding] = field(default_factory=list)
    split: list[Finding] = field(default_factory=list)
    longest_gap_seconds: dict[int, float] = field(default_factory=dict)  # by slot; -1: the slot is not known
    gaps: list[Gap] = field(default_factory=list)  # those of GAP_SECONDS_MIN and longer
    recoveries: list[Recovery] = field(default_factory=list)
    ack_seconds_p50: float = 0.0
    ack_seconds_p99: float = 0.0
    ack_seconds_max: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def broken(self) -> bool:
        """Whether the fleet broke a promise. A history can be neither valid nor broken: it proves nothing."""
        return any(
            (
                self.lost,
                self.unexpected,
                self.duplicated_unexplained,
                self.coalescing_broken,
                self.order_broken,
                self.split,
            )
        )


def check(
    history: History,
    *,
    drained: bool,
    queued: int = 0,
    running: int = 0,
    grace_seconds: float = GRACE_SECONDS,
    remember_seconds: float = 0.0,
) -> Verdict:
    """Judge. `drained`: workers ran until nothing came any more; `queued` and `running`: what the fleet says
    that it still holds. For a million jobs about 20 s, and 2 GB with the history.
    """
    # Nothing here is garbage, and there is much of it.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _Check(history, grace_seconds, remember_seconds).verdict(drained, queued, running)
    finally:
        if collecting:
            gc.enable()


class _Given(NamedTuple):
    """The first time a job was given out: before `run` began, and after the event `after`."""

    job: Job
    run: Run
    priority: int
    after: int


def _first_of_the_rest(queue: Sequence[_Given]) -> list[int]:
    """For each position, which of those from there on was run first."""
    first = list(range(len(queue)))
    for position in range(len(queue) - 2, -1, -1):
        if queue[first[position + 1]].run.begun < queue[position].run.begun:
            first[position] = first[position + 1]
    return first


def _is_stranger(job: Job, told: Container[str]) -> bool:
    """Whether it was run, and by then no call had been begun of those that have its handle."""
    return job.handle not in told or job.first_run < job.begun


class _Again:
    """Jobs that calls may have made beside those that their callers were told of."""

    def __init__(self, rows: list[tuple[int, Call, Fault]]) -> None:
        """From which event on, for which call, by which fault."""
        self._rows = sorted(rows, key=itemgetter(0))
        self._next = 0
        self._ready: list[tuple[Call, Fault]] = []

    def take(self, job: Job) -> tuple[Call, Fault] | None:
        """One that may be this; jobs are asked about in the order of their first runs."""
        while self._next < len(self._rows) and self._rows[self._next][0] < job.first_run:
            self._ready.append(self._rows[self._next][1:])
            self._next += 1
        return self._ready.pop() if self._ready else None


def _maker_and_function(job: Job) -> tuple[str, str]:
    return job.handle[: job.handle.rfind(":")], job.key.partition("/")[0]


class _Check:
    """One method for each promise."""

    def __init__(self, history: History, grace_seconds: float, remember_seconds: float) -> None:
        self._account = Account(history)
        self._grace_seconds = grace_seconds
        self._remember_seconds = remember_seconds
        self._result = Verdict()
        self._gaps: list[Gap] = []  # those of NOTICED_SECONDS and longer, by their beginning

    def verdict(self, drained: bool, queued: int, running: int) -> Verdict:
        self._count()
        self._check_ends(drained)
        self._check_results()
        self._check_expected()
        self._check_duplicates()
        self._check_coalescing()
        self._check_order()
        self._check_split()
        self._measure()
        self._say_problems(drained, queued, running)
        return self._result

    def _report(self, into: list[Finding], index: int, job: Job, text: str, fault: int = 0) -> None:
        into.append(Finding(self._account.events[index].at, job.key, job.handle, text, fault))

    # ---- lost, unexpected

    def _count(self) -> None:
        result = self._result
        result.seconds = self._account.events[-1].at if self._account.events else 0.0
        result.submitted = len(self._account.calls)
        for call in self._account.calls.values():
            result.ordered += call.order != 0
            if call.outcome is Kind.REFUSED:
                result.refused += 1
            elif call.outcome is Kind.ACK:
                result.acknowledged += 1
            else:
                result.unknown += 1
        for job in self._account.jobs.values():
            result.runs += len(job.runs)
            result.done += job.ended != NEVER
            result.failed += job.failed

    def _check_ends(self, drained: bool) -> None:
        for job in self._account.jobs.values():
            if job.promised != NEVER and job.ended == NEVER:
                self._result.unfinished += 1
                if drained:
                    how = f"run {len(job.runs)} times and never finished" if job.runs else "never run"
                    self._report(self._result.lost, job.promised, job, f"acknowledged, {how}")
        if not drained:
            return
        if self._remember_seconds:
            self._check_remembered()
        for call in self._account.calls.values():
            if not call.foreground or call.result != NEVER:
                continue
            if call.outcome is Kind.ACK or call.gave_up != NEVER:
                job = self._account.jobs[call.handle]
                if not self._gave_up_with_reason(call, job):
                    self._report(self._result.lost, call.acked, job, "its caller was never told the end")

    def _check_remembered(self) -> None:
        """No call may be answered with a job that was over so long before that its key was forgotten."""
        events = self._account.events
        for call in self._account.calls.values():
            if call.outcome is not Kind.ACK or (job := self._account.jobs[call.handle]).call is call:
                continue
            ends = [run.ended for run in job.runs if run.ended != NEVER and run.outcome is not Kind.ABANDONED]
            if job.foreground or not ends or max(ends) > call.begun:
                continue
            before = events[call.begun].at - events[max(ends)].at
            if before > self._remember_seconds + self._grace_seconds:
                text = f"acknowledged {before:.0f} s after its end, and not run again"
                self._report(self._result.lost, call.acked, job, text)

    def _gave_up_with_reason(self, call: Call, job: Job) -> bool:
        """Whether the job had not ended long before and may have waited for its turn, or a fault may have
        kept its end from the caller."""
        if call.gave_up == NEVER:
            return False
        events = self._account.events
        begun, gave_up = events[call.begun].at - self._grace_seconds, events[call.gave_up].at
        long_before = gave_up - self._grace_seconds
        if events[call.acked if job.ended == NEVER else job.ended].at > long_before:
            return True
        workers = self._account.workers
        if self._account.fault_of(workers, set(), begun, gave_up, foreground=True) is not None:
            return True
        return job.ended == NEVER and not self._was_passed_over(call, job, long_before)

    def _was_passed_over(self, call: Call, job: Job, until: float) -> bool:
        """Whether its node had given out a job by then that was made later and is not more urgent: the queue
        was not too long, so."""
        events = self._account.events
        priority = _PRIORITIES.get(call.priority, 1)
        return any(
            call.acked < later.begun
            and later.first_run != NEVER
            and events[later.first_run].at <= until
            and later.call is not None
            and _PRIORITIES.get(later.call.priority, 1) >= priority
            for later in self._made_by.get(_maker_and_function(job), ())
        )

    @cached_property
    def _made_by(self) -> dict[tuple[str, str], list[Job]]:
        made: dict[tuple[str, str], list[Job]] = {}
        for job in self._account.jobs.values():
            made.setdefault(_maker_and_function(job), []).append(job)
        return made

    def _check_results(self) -> None:
        """Whoever is told the end of a foreground job has it from a run."""
        for number, call in self._account.calls.items():
            if call.result != NEVER and not self._has_end(call):
                how = (
                    "a failure, and no run had failed"
                    if call.told_failure
                    else "success, and no run was done"
                )
                at = self._account.events[call.result].at
                found = Finding(at, call.key, call.handle, f"call {number} was told of {how}")
                self._result.unexpected.append(found)

    def _has_end(self, call: Call) -> bool:
        """Whether a run had ended as its caller was told, of a job that it may have made or joined. The fleet
        may tell of a failure, too: when runs were cut off too often, or a fault took what it knew."""
        events = self._account.events
        begun, told = events[call.begun].at - self._grace_seconds, events[call.result].at
        wanted = Kind.FAILED if call.told_failure else Kind.DONE
        for job in self._jobs_for(call):
            for run in job.runs:
                if run.ended == NEVER or run.outcome is Kind.ABANDONED:
                    if call.told_failure and begun <= events[run.begun].at <= told:
                        return True
                elif run.outcome is wanted and begun <= events[run.ended].at <= told:
                    return True
        if not call.told_failure:
            return False
        return self._account.fault_of((), set(), begun, told, foreground=True) is not None

    def _jobs_for(self, call: Call) -> Iterator[Job]:
        """Those that it may have made or joined."""
        if has_unique(call.key):
            yield from self._account.jobs_of(call.key)
        else:
            if call.handle:
                yield self._account.jobs[call.handle]
            yield from self._of_nobody.get(call.key, ())
        yield from self._of_nobody.get("", ())

    @cached_property
    def _of_nobody(self) -> dict[str, list[Job]]:
        """By key, the jobs without a unique, or without a key, whose handles nobody was told."""
        found: dict[str, list[Job]] = {}
        for job in self._account.jobs.values():
            if job.call is None and not has_unique(job.key):
                found.setdefault(job.key, []).append(job)
        return found

    def _check_expected(self) -> None:
        first_open = min((call.begun for call in self._account.calls.values() if call.open), default=NEVER)
        for job in self._account.jobs.values():
            if not job.runs:
                continue
            begun = job.first_run
            if not job.key:
                if first_open > begun:
                    self._report(self._result.unexpected, begun, job, "run, and nobody was ever told of it")
                continue
            calls = self._account.calls_of(job.key)
            if any(call.begun < begun and call.outcome is not Kind.REFUSED for call in calls):
                continue
            if not calls:
                why = "never submitted"
            elif all(call.begun > begun for call in calls):
                why = "before it was submitted"
            else:
                why = "only ever refused"
            self._report(self._result.unexpected, begun, job, f"run, {why}")

    # ---- duplicates

    def _check_duplicates(self) -> None:
        for job in self._account.jobs.values():
            for first, second in zip(job.runs, job.runs[1:], strict=False):
                fault = self._fault_between(job, first, second)
                self._report_twice(job, second, f"run by {first.worker} and by {second.worker}", fault)
        for key in self._keys_with_strangers():
            self._check_accounted_for(key)

    def _keys_with_strangers(self) -> set[str]:
        """Those of jobs that were run though no call has their handle, or none that was begun by then."""
        told = {call.handle for call in self._account.calls.values()}
        return {
            job.key
            for job in self._account.jobs.values()
            if job.runs and _is_stranger(job, told) and job.key in self._account.first_call
        }

    def _check_accounted_for(self, key: str) -> None:
        calls = self._account.calls_of(key)
        told = {call.handle for call in calls}
        jobs = sorted((job for job in self._account.jobs_of(key) if job.runs), key=lambda job: job.first_run)
        open_calls = [call for call in calls if call.open and not call.handle]
        never_run = [
            call
            for call in calls
            if call.foreground and call.handle and not self._account.jobs[call.handle].runs
        ]
        used = 0
        again: _Again | None = None
        for position, job in enumerate(jobs):
            if not _is_stranger(job, told):
                continue
            if used < len(open_calls) and open_calls[used].begun < job.first_run:
                used += 1
                continue
            moved = next((call for call in never_run if call.begun < job.first_run < call.over), None)
            if moved is not None:  # its node has passed it on again, under another handle
                never_run.remove(moved)
                continue
            if has_unique(key) and len(jobs) > 1:
                others = self._others_of(job, calls)
                if others is None:
                    continue
                others = others or [jobs[position - 1] if position else jobs[1]]
                self._made_twice(job, others)
                continue
            if has_unique(key) and not job.foreground:
                submitted_again = None
            else:
                again = again or self._submitted_again(calls)
                submitted_again = again.take(job)
            if submitted_again is not None:
                self._explain_again(job, *submitted_again)
            elif any(call.begun < job.first_run and call.outcome is not Kind.REFUSED for call in calls):
                self._report(self._result.unexpected, job.first_run, job, "run, and no submit made it")

    def _others_of(self, job: Job, calls: Sequence[Call]) -> list[Job] | None:
        """The jobs that the calls which may have made this one were told of in the end; None when the call
        that was told of this one was told of another later, and that one was never run."""
        jobs = self._account.jobs
        if job.call is not None and job.call.handle != job.handle:
            later = jobs[job.call.handle]
            return [later] if later.runs else None
        under_way = (
            jobs[call.handle] for call in calls if call.handle and call.begun < job.first_run < call.over
        )
        return [other for other in under_way if other is not job and other.runs]

    def _made_twice(self, job: Job, others: Sequence[Job]) -> None:
        """It and one of the others: the first for which a fault explains it, else the last."""
        for other in others:
            first, second = sorted((job.runs[0], other.runs[0]), key=lambda run: run.begun)
            made = min(job.begun, other.begun, first.begun)
            fault = self._fault_between(job, first, second, made=made, by_any_road=job.foreground)
            if fault is not None:
                break
        self._report_twice(job, second, f"run as {other.handle}, too: no submit made both", fault)

    def _submitted_again(self, calls: Sequence[Call]) -> _Again:
        """The calls that a node may have submitted once more, with each fault that may have made it do so: a
        foreground job that it had passed on, which runs then under another handle than its caller was told;
        or a background job that it had not seen committed, and that has no key by which the next primary
        would know it. Each fault gives each call one more job."""
        account = self._account
        events = account.events
        faults = {
            foreground: [
                (bisect_left(events, fault.event.at, key=attrgetter("at")), fault)
                for fault in account.faults.values()
                if account.concerns(fault, (), set(), foreground=foreground)
            ]
            for foreground in (False, True)
        }
        rows: list[tuple[int, Call, Fault]] = []
        for call in calls:
            if call.outcome is Kind.REFUSED:
                continue
            over = call.over
            if call.foreground and call.result == NEVER and call.gave_up == NEVER:
                over = NEVER
            until = float("inf") if over == NEVER else events[over].at
            if call.open:  # its node may have tried on
                until += self._grace_seconds
            begun = events[call.begun].at - self._grace_seconds
            rows += [
                (max(call.begun, began), call, fault)
                for began, fault in faults[call.foreground]
                if fault.event.at <= until and fault.healed >= begun
            ]
        return _Again(rows)

    def _explain_again(self, job: Job, call: Call, fault: Fault) -> None:
        """It is a duplicate unless the job that the caller was told of was never run."""
        if not call.handle or self._account.jobs[call.handle].runs:
            which = call.handle or "what nobody was told of"
            text = f"{which} was submitted again: {fault.event.text}"
            self._report(self._result.duplicated_explained, job.first_run, job, text, fault.event.fault)

    def _fault_between(
        self, job: Job, first: Run, second: Run, *, made: int = NEVER, by_any_road: bool = False
    ) -> Fault | None:
        """What explains both runs. `made`: the call that may have made both, if that is earlier than the
        first run. `by_any_road`: nobody knows by way of which node its client submitted it."""
        events = self._account.events
        begin, end = events[min(made, first.begun)].at - self._grace_seconds, events[second.begun].at
        at_risk = end  # until then the end of the first run may be lost
        if first.ended != NEVER and first.outcome is not Kind.ABANDONED:
            at_risk = min(end, events[first.ended].at + self._grace_seconds)
        nodes = {run.node for run in (first, second) if run.node} | self._account.led(job.slot, begin, end)
        if job.foreground and job.acked != NEVER and (node := events[job.acked].node):
            nodes.add(node)
        if by_any_road:
            nodes.clear()
        workers = (first.worker, second.worker)
        return self._account.fault_of(workers, nodes, begin, at_risk, all_end=end, foreground=job.foreground)

    def _report_twice(self, job: Job, second: Run, text: str, fault: Fault | None) -> None:
        if fault is None:
            self._report(self._result.duplicated_unexplained, second.begun, job, text)
        else:
            into = self._result.duplicated_explained
            self._report(into, second.begun, job, f"{text}: {fault.event.text}", fault.event.fault)

    # ---- coalescing

    def _check_coalescing(self) -> None:
        for key, jobs in self._account.several_jobs.items():
            lives = [
                (job.known_from, self._known_until(job), job)
                for job in jobs
                if has_unique(key) and not job.foreground and job.known_from != NEVER
            ]
            if len(lives) > 1:
                lives.sort(key=lambda life: life[:2])
                self._check_lives(lives)
                self._check_answers(key, lives)

    def _known_until(self, job: Job) -> int:
        """The key belongs to it until then, at least."""
        if job.ended == NEVER or not self._remember_seconds:
            return job.ended
        until = self._account.events[job.ended].at + self._remember_seconds
        return bisect_left(self._account.events, until, key=attrgetter("at"))

    def _check_lives(self, lives: list[tuple[int, int, Job]]) -> None:
        _, longest_until, longest = lives[0]
        for begun, until, job in lives[1:]:
            if begun < longest_until and until > begun:
                text = f"made while {longest.handle} had the key"
                self._report(self._result.coalescing_broken, begun, job, text)
            if until > longest_until:
                longest_until, longest = until, job

    def _check_answers(self, key: str, lives: list[tuple[int, int, Job]]) -> None:
        """Of calls that lie wholly within a job's life, and were answered with a job that was over."""
        begins = [begun for begun, _, _ in lives]
        for call in self._account.calls_of(key):
            position = bisect_right(begins, call.begun) - 1
            if call.outcome is not Kind.ACK or position < 0:
                continue
            _, until, job = lives[position]
            answered = self._account.jobs[call.handle]
            over = answered.known_from < call.begun and not answered.foreground
            if call.acked < until and answered is not job and over:
                text = f"answered while {job.handle} had the key"
                self._report(self._result.coalescing_broken, call.acked, answered, text)

    # ---- order

    def _check_order(self) -> None:
        queues: dict[tuple[str, int], list[_Given]] = {}
        for job in self._account.jobs.values():
            given = self._given(job)
            if given is not None:
                queues.setdefault((job.key.partition("/")[0], job.slot), []).append(given)
        for queue in queues.values():
            for priority in {given.priority for given in queue} if len(queue) > 1 else ():
                same = [given for given in queue if given.priority == priority]
                self._check_first_come(same)
                self._check_priority(same, [given for given in queue if given.priority > priority])

    def _given(self, job: Job) -> _Given | None:
        call = job.call
        if call is None or not call.order or job.foreground or not job.runs or job.slot < 0:
            return None
        several = self._account.several_calls.get(job.key) if has_unique(job.key) else None
        if several is not None and len({one.priority for one in several}) > 1:
            return None  # who knows which of them made it
        run = job.runs[0]
        surely_after = -1 if self._account.workers[run.worker].several else run.free
        return _Given(job, run, _PRIORITIES.get(call.priority, 1), surely_after)

    def _check_first_come(self, queue: list[_Given]) -> None:
        """No job is given out surely after one that was surely submitted after it."""
        queue.sort(key=lambda given: given.job.begun)
        begins = [given.job.begun for given in queue]
        first = _first_of_the_rest(queue)
        for given in queue:
            later = bisect_right(begins, given.job.known_from)
            if later < len(queue):
                self._compare(given, queue[first[later]], "was submitted later")

    def _check_priority(self, queue: list[_Given], lower: list[_Given]) -> None:
        """No job of lower priority is given out surely while one of `queue` waits."""
        lower = sorted((given for given in lower if given.after >= 0), key=lambda given: given.after)
        afters = [given.after for given in lower]
        first = _first_of_the_rest(lower)
        for given in queue:
            later = bisect_right(afters, given.job.known_from)
            if later < len(lower):
                self._compare(given, lower[first[later]], "has a lower priority")

    def _compare(self, given: _Given, other: _Given, which: str) -> None:
        if other.run.begun < given.after and not self._excused(given.job, given.run):
            text = f"given out after {other.job.handle}, which {which}"
            self._report(self._result.order_broken, given.run.begun, given.job, text)

    def _excused(self, job: Job, run: Run) -> bool:
        """It may have been given to a worker that never told, or through a node that was lost."""
        events = self._account.events
        begin = events[min(job.begun, job.acked)].at - self._grace_seconds
        end = events[run.begun].at
        nodes = self._account.led(job.slot, begin, end)
        if run.node:
            nodes.add(run.node)
        return self._account.fault_of(self._account.workers, nodes, begin, end) is not None

    # ---- one primary per epoch

    def _check_split(self) -> None:
        for index, job, key in self._account.two_jobs:
            other = key if key != job.key else f"another {key}"
            self._report(self._result.split, index, job, f"{job.handle} is {job.key}, and it is {other}")
        # Nodes may all have been told one prefix for their handles; two prefixes are two nodes.
        for where in self._account.leaders.keys() | self._account.makers.keys():
            leaders = self._account.leaders.get(where, {})
            makers = self._account.makers.get(where, {})
            both = max(leaders, makers, key=len)
            if len(both) > 1:
                text = f"slot {where[0]}, epoch {where[1]}: {' and '.join(sorted(both))} lead it"
                self._result.split.append(Finding(self._account.events[max(both.values())].at, "", "", text))
        self._check_epochs_grow()

    def _check_epochs_grow(self) -> None:
        newest: dict[int, tuple[list[int], list[int]]] = {}  # slot -> events, and the epoch known by then
        acked = [call for call in self._account.calls.values() if call.outcome is Kind.ACK]
        acked.sort(key=attrgetter("acked"))
        for call in acked:
            job = self._account.jobs[call.handle]
            if job.epoch < 0:
                continue
            events, epochs = newest.setdefault(job.slot, ([], []))
            if not epochs or job.epoch > epochs[-1]:
                events.append(call.acked)
                epochs.append(job.epoch)
            elif job.epoch < epochs[-1] and (
                not has_unique(call.key) or self._account.first_call[call.key] is call
            ):
                # Nobody had asked for this job before, so it was made after the call began.
                known = bisect_left(events, call.begun) - 1
                if known >= 0 and epochs[known] > job.epoch:
                    text = f"made in epoch {job.epoch} after epoch {epochs[known]} had acknowledged"
                    self._report(self._result.split, call.acked, job, text)

    # ---- times

    def _measure(self) -> None:
        events = self._account.events
        waits = sorted(
            events[call.acked].at - events[call.begun].at
            for call in self._account.calls.values()
            if call.outcome is Kind.ACK
        )
        if waits:
            result = self._result
            result.ack_seconds_p50 = waits[len(waits) // 2]
            result.ack_seconds_p99 = waits[min(len(waits) - 1, len(waits) * 99 // 100)]
            result.ack_seconds_max = waits[-1]
        self._measure_gaps()
        self._measure_recoveries()

    def _measure_gaps(self) -> None:
        waiting: dict[int, int] = {}  # slot -> calls
        since: dict[int, float] = {}  # slot -> so long nothing was acknowledged though somebody waited
        refused_at: dict[int, float] = {}  # slot -> when the last of those who waited was refused
        longest = self._result.longest_gap_seconds

        def close(slot: int, end: float) -> None:
            begun = since.pop(slot)
            seconds = end - begun
            if seconds > longest.get(slot, -1.0):
                longest[slot] = seconds
            if seconds >= NOTICED_SECONDS:
                self._gaps.append(Gap(slot, begun, seconds))

        for index, event in enumerate(self._account.events):
            kind = event.kind
            if kind is Kind.SUBMIT:
                slot = self._account.calls[event.call].slot
                if not waiting.get(slot):
                    if slot in since and event.at - refused_at[slot] > RETRY_SECONDS:
                        close(slot, refused_at[slot])
                    since.setdefault(slot, event.at)
                waiting[slot] = waiting.get(slot, 0) + 1
            elif kind is Kind.ACK or kind is Kind.REFUSED or kind is Kind.UNKNOWN:
                call = self._account.calls.get(event.call)
                if call is None or (call.acked != index if kind is Kind.ACK else call.acked < index):
                    continue
                slot = call.slot
                waiting[slot] = left = max(0, waiting.get(slot, 0) - 1)
                if kind is Kind.ACK and slot in since:
                    close(slot, event.at)
                    if left:
                        since[slot] = event.at
                elif not left:
                    refused_at[slot] = event.at
        for slot in list(since):
            close(slot, self._result.seconds if waiting.get(slot) else refused_at[slot])
        self._gaps.sort(key=attrgetter("begun"))
        self._result.gaps = [gap for gap in self._gaps if gap.seconds >= GAP_SECONDS_MIN]

    def _measure_recoveries(self) -> None:
        gaps = self._gaps
        latest = list(accumulate((gap.begun + gap.seconds for gap in gaps), max))
        for fault in self._account.faults.values():
            event = fault.event
            if (struck := self._slots_struck(event)) is None:
                continue
            over = event.at
            position = bisect_right(gaps, fault.healed, key=attrgetter("begun"))
            while position and latest[position - 1] > over:
                position -= 1
                gap = gaps[position]
                if gap.slot in struck or (gap.slot < 0 and struck):  # it may be one of them
                    over = max(over, gap.begun + gap.seconds)
            seconds = over - event.at if over > event.at else None
            self._result.recoveries.append(Recovery(event, seconds))

    def _slots_struck(self, fault: Event) -> Collection[int] | None:
        """Whose submits it concerns; None when it touches only workers."""
        nodes: set[str] = set()
        for touched in fault.touches:
            if touched in ("all", "etcd"):
                return _ALL_SLOTS
            ends = set(touched.split(">"))
            if not ends & self._account.workers.keys():
                nodes |= ends - {"etcd", "client", "worker"}
        if not nodes:
            return None
        leads = self._account.leads
        if not leads:
            return _ALL_SLOTS
        return {slot for slot in leads if self._account.led(slot, fault.at, fault.at) & nodes}

    # ---- conclusion

    def _say_problems(self, drained: bool, queued: int, running: int) -> None:
        result = self._result
        problems = result.problems
        problems += self._what_proves_nothing()
        if not drained:
            problems.append("the fleet was not drained: what is lost cannot be told from what still waits")
        if queued or running:
            problems.append(f"the queues are not empty: {queued} jobs wait, {running} run")
        for findings, what in (
            (result.lost, "lost"),
            (result.unexpected, "unexpected"),
            (result.duplicated_unexplained, "duplicated without a fault that explains it"),
            (result.coalescing_broken, "coalescing broken"),
            (result.order_broken, "order broken"),
            (result.split, "acknowledged in two places in one epoch"),
        ):
            findings.sort(key=attrgetter("at"))
            if findings:
                problems.append(f"{len(findings)} {what}: {_examples(findings)}")
        result.duplicated_explained.sort(key=attrgetter("at"))

    def _what_proves_nothing(self) -> Iterator[str]:
        """Where no promise was broken because none was given."""
        calls: Counter[str] = Counter()
        promises: Counter[str] = Counter()
        for call in self._account.calls.values():
            function = call.key.partition("/")[0]
            calls[function] += 1
            promises[function] += call.acked != NEVER
        if not calls:
            yield "nothing was submitted: this proves nothing"
        elif not promises.total():
            yield f"nothing of {calls.total()} submits was acknowledged: this proves nothing"
        else:
            for function, number in calls.items():
                if number >= FEW and not promises[function]:
                    yield f"nothing of {number} submits of {function} was acknowledged: this proves nothing"


def _examples(findings: list[Finding]) -> str:
    shown = [f"{f.key or f.handle} at {f.at:.3f} s ({f.text})".lstrip() for f in findings[:EXAMPLES]]
    more = len(findings) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
