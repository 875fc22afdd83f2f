"""The checker against histories that nobody thought of: those of a server that keeps its promises are valid,
and of any others it says what a dumb comparison of everything with everything says."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.drill.checker import check
from cluster.drill.history import Event, History, Kind

KEYS = ("f/1", "f/2", "f/3")
WORKERS = ("w1", "w2")
FAR = 1 << 62


@dataclass
class Server:
    """One slot of a fleet that does everything right, its workers, its callers and its faults."""

    history: History = field(default_factory=lambda: History(Ticks()))
    epoch: int = 1
    made: int = 0
    queue: deque[tuple[str, str]] = field(default_factory=deque)
    living: dict[str, str] = field(default_factory=dict)  # key -> handle
    running: dict[str, tuple[str, str]] = field(default_factory=dict)  # worker -> key, handle
    calls: list[tuple[int, str]] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    orders: int = 0

    def __post_init__(self) -> None:
        self.lead()

    def lead(self) -> None:
        self.history.leads("abc"[self.epoch % 3], 1, self.epoch)

    def submit(self, choice: int) -> None:
        self.orders += 1
        key = KEYS[choice % 3]
        self.calls.append((self.history.submit(key, order=self.orders), key))

    def take(self, choice: int) -> None:
        """A call that is under way reaches the server, or never does."""
        if not self.calls:
            return
        call, key = self.calls.pop(choice % len(self.calls))
        if choice % 7 == 0:
            self.history.refused(call)
        elif choice % 7 == 1:
            self.history.unknown(call)
        else:
            if key not in self.living:
                self.made += 1
                self.living[key] = f"H:{'abc'[self.epoch % 3]}:1.{self.epoch:x}.{self.made:x}"
                self.queue.append((key, self.living[key]))
            self.answers.append((call, self.living[key]))

    def answer(self, choice: int) -> None:
        if self.answers:
            call, handle = self.answers.pop(choice % len(self.answers))
            if choice % 5 == 0:
                self.history.unknown(call)
            else:
                self.history.ack(call, handle=handle)

    def grab(self, choice: int) -> None:
        worker = WORKERS[choice % 2]
        if worker not in self.running and self.queue:
            key, handle = self.running[worker] = self.queue.popleft()
            self.history.run(key, worker=worker, handle=handle)

    def finish(self, choice: int) -> None:
        worker = WORKERS[choice % 2]
        if worker in self.running:
            key, handle = self.running.pop(worker)
            (self.history.failed if choice % 3 == 0 else self.history.done)(key, worker=worker, handle=handle)
            del self.living[key]

    def kill_worker(self, choice: int) -> None:
        worker = WORKERS[choice % 2]
        fault = self.history.fault("kill", worker)
        if worker in self.running:
            key, handle = self.running.pop(worker)
            self.history.abandoned(key, worker=worker, handle=handle)
            self.queue.appendleft((key, handle))
        self.history.healed(fault)

    def take_over(self, choice: int) -> None:
        fault = self.history.fault("kill", "abc"[self.epoch % 3])
        self.epoch += 1
        self.lead()
        self.history.healed(fault)

    def drain(self) -> None:
        while self.calls:
            self.take(2)
        while self.answers:
            self.answer(1)
        while self.queue or self.running:
            for number in range(2):
                self.grab(number)
                self.finish(number)


class Ticks:
    """A clock that never shows the same time twice."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return float(self.now)


STEPS = (
    Server.submit,
    Server.take,
    Server.answer,
    Server.grab,
    Server.finish,
    Server.kill_worker,
    Server.take_over,
)
# Faults are rare, or they would excuse everything.
OFTEN = (*STEPS[:5] * 4, *STEPS[5:])
steps = st.lists(st.tuples(st.sampled_from(OFTEN), st.integers(0, 209)), min_size=20, max_size=120)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_what_a_server_does_that_keeps_its_promises_is_valid(
    taken: list[tuple[object, int]],
) -> None:
    server = Server()
    server.submit(0)
    server.take(2)
    server.answer(1)
    for step, choice in taken:
        step(server, choice)  # type: ignore[operator]
    server.drain()
    assert check(server.history, drained=True, grace_seconds=3).problems == []


class Forgets(Server):
    """What it acknowledged is gone with its node."""

    def take_over(self, choice: int) -> None:
        super().take_over(choice)
        for key, handle in self.queue:
            if self.living.get(key) == handle:
                del self.living[key]
        self.queue.clear()


class LastComesFirst(Server):
    def grab(self, choice: int) -> None:
        self.queue.reverse()
        super().grab(choice)
        self.queue.reverse()


class NeverJoins(Server):
    def take(self, choice: int) -> None:
        self.living.clear()
        super().take(choice)

    def finish(self, choice: int) -> None:
        for key, _ in self.running.values():
            self.living.setdefault(key, "")
        super().finish(choice)


class RunsTwice(Server):
    """A job goes to a second worker while the first one has it and nothing is wrong."""

    def grab(self, choice: int) -> None:
        super().grab(choice)
        first, second = WORKERS[choice % 2], WORKERS[1 - choice % 2]
        if choice % 5 == 0 and first in self.running and second not in self.running:
            key, handle = self.running[first]
            self.history.run(key, worker=second, handle=handle)
            self.history.done(key, worker=second, handle=handle)


class TakesWhatItRefused(Server):
    def take(self, choice: int) -> None:
        waiting = list(self.calls)
        super().take(choice)
        gone = [key for call, key in waiting if (call, key) not in self.calls]
        if choice % 7 == 0 and gone and gone[0] not in self.living:
            self.made += 1
            self.living[gone[0]] = f"H:{'abc'[self.epoch % 3]}:1.{self.epoch:x}.{self.made:x}"
            self.queue.append((gone[0], self.living[gone[0]]))


class LeadsOn(Server):
    """The old primary does not notice that it is none any more."""

    def take(self, choice: int) -> None:
        newest = self.epoch
        if choice % 2 and newest > 1:
            self.epoch -= 1
        super().take(choice)
        self.epoch = newest


@pytest.mark.parametrize(
    ("kind", "server"),
    [
        ("lost", Forgets),
        ("order_broken", LastComesFirst),
        ("coalescing_broken", NeverJoins),
        ("duplicated_unexplained", RunsTwice),
        ("unexpected", TakesWhatItRefused),
        ("split", LeadsOn),
    ],
)
def test_a_server_that_breaks_one_promise_is_found(kind: str, server: type[Server]) -> None:
    """Within a hundred short histories, most of which give it no opportunity."""
    found = 0
    for seed in range(100):
        dice = random.Random(seed)
        liar = server()
        for _ in range(80):
            step = dice.choice(OFTEN).__name__
            getattr(liar, step)(dice.randrange(210))
        liar.drain()
        verdict = check(liar.history, drained=True, grace_seconds=3)
        found += bool(getattr(verdict, kind))
    assert found


# ---- any events at all

handles = st.sampled_from(("H:a:1.1.1", "H:a:1.1.2", "H:b:1.2.3", "H:b:1.2.4"))
keys = st.sampled_from(KEYS[:2])
any_events = st.lists(
    st.one_of(
        st.builds(lambda key, order: (Kind.SUBMIT, {"key": key, "order": order}), keys, st.integers(0, 1)),
        st.builds(
            lambda back, handle: (Kind.ACK, {"call": back, "handle": handle}), st.integers(0, 2), handles
        ),
        st.builds(lambda back: (Kind.UNKNOWN, {"call": back}), st.integers(0, 2)),
        st.builds(
            lambda kind, key, handle, worker: (kind, {"key": key, "handle": handle, "worker": worker}),
            st.sampled_from((Kind.RUN, Kind.RUN, Kind.DONE, Kind.ABANDONED)),
            keys,
            handles,
            st.sampled_from(WORKERS),
        ),
    ),
    min_size=4,
    max_size=24,
)


def history_of(events: list[tuple[Kind, dict[str, object]]]) -> History:
    """Each answer is one of the last calls that have none; a handle keeps the key that it came with."""
    history = History(Ticks())
    waiting: list[int] = []
    key_of: dict[str, str] = {}
    call_keys: dict[int, str] = {}
    for kind, more in events:
        if kind is Kind.SUBMIT:
            call = history.submit(str(more["key"]), order=int(str(more["order"])) and len(history.events) + 1)
            waiting.append(call)
            call_keys[call] = str(more["key"])
        elif kind is Kind.ACK or kind is Kind.UNKNOWN:
            if not waiting:
                continue
            call = waiting[-1 - min(int(str(more["call"])), len(waiting) - 1)]
            handle = str(more.get("handle", ""))
            if handle and key_of.setdefault(handle, call_keys[call]) != call_keys[call]:
                continue
            waiting.remove(call)
            history.add(kind, call=call, handle=handle)
        elif key_of.setdefault(str(more["handle"]), str(more["key"])) == more["key"]:
            history.add(kind, **more)
    return history


class Dumb:
    """The same promises, without any index: everything is looked for in the whole history each time."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.handles = sorted({event.handle for event in events if event.handle})

    def places(self, kind: Kind, handle: str) -> list[int]:
        return [i for i, event in enumerate(self.events) if event.kind is kind and event.handle == handle]

    def call_of(self, ack: int) -> int:
        number = self.events[ack].call
        return next(i for i, e in enumerate(self.events) if e.kind is Kind.SUBMIT and e.call == number)

    def key(self, handle: str) -> str:
        for place, event in enumerate(self.events):
            if event.handle == handle:
                return event.key or self.events[self.call_of(place)].key
        raise AssertionError(handle)

    def known_from(self, handle: str) -> int:
        runs = [
            place for kind in (Kind.RUN, Kind.DONE, Kind.ABANDONED) for place in self.places(kind, handle)
        ]
        return min([*self.places(Kind.ACK, handle), *runs], default=FAR)

    def ended(self, handle: str) -> int:
        return min(self.places(Kind.DONE, handle), default=FAR)

    def lost(self) -> set[str]:
        return {h for h in self.handles if self.places(Kind.ACK, h) and self.ended(h) == FAR}

    def overlapping_keys(self) -> set[str]:
        found = set()
        for one in self.handles:
            for other in self.handles:
                if one != other and self.key(one) == self.key(other):
                    begun = max(self.known_from(one), self.known_from(other))
                    if begun < min(self.ended(one), self.ended(other)):
                        found.add(self.key(one))
        return found

    def unexpected(self) -> set[str]:
        """Only those whose key nobody had asked for."""
        found = set()
        for handle in self.handles:
            begun = min(
                [p for kind in (Kind.RUN, Kind.DONE, Kind.ABANDONED) for p in self.places(kind, handle)],
                default=FAR,
            )
            asked = any(e.kind is Kind.SUBMIT and e.key == self.key(handle) for e in self.events[:begun])
            if begun < FAR and not asked:
                found.add(handle)
        return found


@settings(max_examples=200, deadline=None)
@given(any_events)
def test_of_any_history_the_checker_says_what_a_dumb_comparison_says(
    events: list[tuple[Kind, dict[str, object]]],
) -> None:
    history = history_of(events)
    verdict = check(history, drained=True)
    dumb = Dumb(history.events)

    assert {finding.handle for finding in verdict.lost} == dumb.lost()
    never_asked_for = {f.handle for f in verdict.unexpected if not f.text.endswith("no submit made it")}
    assert never_asked_for == dumb.unexpected()
    overlapping = {finding.key for finding in verdict.coalescing_broken if finding.text.startswith("made")}
    assert overlapping == dumb.overlapping_keys()


# ---- jobs without a unique

keyless_steps = st.lists(
    st.tuples(
        st.sampled_from(("submit", "ack", "unknown", "refused", "fault", "heal", "run", "run")),
        st.integers(0, 9),
    ),
    min_size=4,
    max_size=40,
)
GRACE = 3


@settings(max_examples=200, deadline=None)
@given(keyless_steps)
def test_of_jobs_without_a_unique_as_many_are_unexpected_as_a_dumb_comparison_cannot_match(
    taken: list[tuple[str, int]],
) -> None:
    """Handles that nobody was told of, with unanswered calls, and with each fault of each call."""
    history = History(Ticks())
    calls: dict[int, list[float]] = {}  # begun, over
    answers: dict[int, str] = {}
    faults: dict[int, list[float]] = {}  # begun, healed
    strangers: list[float] = []
    for step, choice in taken:
        waiting = [call for call in calls if call not in answers]
        at = history.events[-1].at + 1 if history.events else 1.0
        if step == "submit":
            calls[history.submit("f/")] = [at, FAR]
        elif step in ("ack", "unknown", "refused") and waiting:
            call = waiting[choice % len(waiting)]
            answers[call], calls[call][1] = step, at
            if step == "ack":
                history.ack(call, handle=f"H:a:1.1.{call:x}")
            else:
                history.add(Kind(step), call=call)
        elif step == "fault":
            fault = history.fault("trouble", "a" if choice else "w1")
            if choice:  # a worker's says nothing of nodes
                faults[fault] = [at, FAR]
        elif step == "heal" and faults:
            fault = list(faults)[choice % len(faults)]
            if faults[fault][1] == FAR:
                history.healed(fault)
                faults[fault][1] = at
        elif step == "run":
            strangers.append(at)
            history.run("f/", worker="w1", handle=f"H:a:1.1.{0x100 + len(strangers):x}")

    sources = [begun for call, (begun, _) in calls.items() if answers.get(call) in (None, "unknown")]
    for call, (begun, over) in calls.items():
        answer = answers.get(call)
        for began, healed in faults.values():
            late = over + GRACE if answer == "unknown" else over
            if answer != "refused" and began <= late and healed >= begun - GRACE:
                sources.append(max(begun, began))
    taken_by: dict[int, int] = {}

    def match(stranger: int, seen: set[int]) -> bool:
        for source, since in enumerate(sources):
            if since < strangers[stranger] and source not in seen:
                seen.add(source)
                if source not in taken_by or match(taken_by[source], seen):
                    taken_by[source] = stranger
                    return True
        return False

    matched = sum(match(stranger, set()) for stranger in range(len(strangers)))
    verdict = check(history, drained=True, grace_seconds=GRACE)
    assert len(verdict.unexpected) == len(strangers) - matched


# ---- order

jobs = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(0, 5), st.integers(0, 40), st.integers(0, 5), st.integers(0, 2)
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(jobs)
def test_of_any_queue_the_checker_finds_those_whom_a_dumb_comparison_finds(
    times: list[tuple[int, int, int, int, int]],
) -> None:
    """Each job has a worker of its own, which was surely busy until some time before."""
    moments: list[tuple[float, int, int]] = []
    for job, (begun, waited, run, busy, _) in enumerate(times):
        # Submit, acknowledgement, end of what the worker did before, run.
        for what, at in enumerate((begun, begun + waited, 100 + run - busy, 100 + run)):
            moments.append((at + what / 4, job, what))
    moments.sort()
    clock = Ticks()
    history = History(clock)
    calls: dict[int, int] = {}
    index: dict[tuple[int, int], int] = {}
    for number, (_, job, what) in enumerate(moments):
        index[job, what] = number
        handle, worker = f"H:a:1.1.{job:x}", f"w{job}"
        priority = ("high", "normal", "low")[times[job][4]]
        if what == 0:
            calls[job] = history.submit(f"f/{job}", priority=priority, order=job + 1)
        elif what == 1:
            history.ack(calls[job], handle=handle)
        elif what == 2:
            history.abandoned("f/before", worker=worker, handle=f"H:a:2.1.{job:x}")
        else:
            history.run(f"f/{job}", worker=worker, handle=handle)

    late = set()
    for job, mine in enumerate(times):
        for other, others in enumerate(times):
            surely_after = index[other, 3] < index[job, 2]
            came_later = mine[4] == others[4] and index[job, 1] < index[other, 0]
            less_urgent = mine[4] < others[4] and index[job, 1] < index[other, 2]
            if surely_after and (came_later or less_urgent):
                late.add(f"f/{job}")
    verdict = check(history, drained=False)
    assert {finding.key for finding in verdict.order_broken} == late
