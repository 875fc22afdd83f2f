"""Random histories of a node, with a deliberately dumb account of what was promised to whom beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from cluster.wire import packets as wire
from tests.node.bench import Bench, Packet, Peer

FUNCTIONS = (b"f", b"g")
UNIQUES = (b"", b"u", b"v", b"-")
BACKGROUND = (wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_LOW_BG)
FOREGROUND = (wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB, wire.SUBMIT_JOB_LOW)
RESULTS = (wire.WORK_COMPLETE, wire.WORK_FAIL, wire.WORK_EXCEPTION)

_function = st.sampled_from(FUNCTIONS)
_unique = st.sampled_from(UNIQUES)
_who = st.integers(0, 2)
submits = st.tuples(st.just("submit"), _who, st.sampled_from(BACKGROUND), _function, _unique)
steps = st.one_of(
    submits,
    submits,
    st.tuples(st.just("submit"), _who, st.sampled_from(FOREGROUND), _function, _unique),
    st.tuples(st.just("epoch"), _who, _function, _unique, st.sampled_from((-5, 30, 90))),
    st.tuples(st.just("schedule"), _who, _function, _unique),
    st.tuples(st.just("reduce"), _who, _function, _unique),
    st.tuples(st.just("grab"), _who),
    st.tuples(st.just("grab"), _who),
    st.tuples(st.just("result"), _who, st.sampled_from(RESULTS)),
    st.tuples(st.just("progress"), _who),
    st.tuples(st.just("late"), st.sampled_from(RESULTS)),
    st.tuples(st.just("worker leaves"), _who),
    st.tuples(st.just("client leaves"), _who),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("time"), st.sampled_from((1, 20, 61))),
    st.just(("end turn",)),
    st.just(("end turn",)),
    st.just(("end turn, disk busy",)),
    st.just(("commit",)),
    st.just(("settle",)),
    st.just(("settle",)),
    st.just(("checkpoint",)),
)


def histories(length: int) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Long enough for something to happen in them."""
    return st.lists(steps, min_size=length // 3, max_size=length)


@dataclass
class Submitted:
    """What a client asked for."""

    order: int
    function: bytes
    unique: bytes
    payload: bytes
    priority: int
    kind: str


@dataclass
class History:
    """Drives a bench and keeps account. It looks at nothing but packets and the numbers of groups."""

    bench: Bench
    asked: dict[bytes, list[Submitted]] = field(default_factory=dict)  # by payload
    awaited: dict[Peer, list[bool]] = field(default_factory=dict)  # submits: background?
    acknowledged: dict[bytes, None] = field(default_factory=dict)  # background handles
    handles: dict[bytes, None] = field(default_factory=dict)
    held: dict[Peer, list[bytes]] = field(default_factory=dict)
    dropped: list[bytes] = field(default_factory=list)  # were with a worker that left
    delivered: dict[bytes, None] = field(default_factory=dict)
    grabs: dict[Peer, list[int]] = field(default_factory=dict)  # how many jobs were over at each
    over: dict[bytes, int] = field(default_factory=dict)  # handle -> the group that says so

    def __post_init__(self) -> None:
        self.count = 0
        self.clients = [self.bench.peer() for _ in range(3)]
        self.workers = [self.bench.worker(*FUNCTIONS) for _ in range(3)]
        self.admin = self.bench.peer()

    def run(self, history: list[tuple[Any, ...]]) -> None:
        for step, *arguments in history:
            getattr(self, step.replace(",", "").replace(" ", "_"))(*arguments)
            self.listen()

    # ---- what clients do

    def _payload(self, unique: bytes) -> bytes:
        self.count += 1
        return b"same" if unique == b"-" else b"p%d" % self.count

    def _ask(
        self, who: int, verb: int, function: bytes, unique: bytes, kind: str, *more: bytes, priority: int = 1
    ) -> None:
        client = self.clients[who]
        payload = self._payload(unique)
        self.asked.setdefault(payload, []).append(
            Submitted(self.count, function, unique, payload, priority, kind)
        )
        self.awaited.setdefault(client, []).append(kind != "foreground")
        client.say(verb, function, unique, *more, payload)

    def submit(self, who: int, verb: int, function: bytes, unique: bytes) -> None:
        verbs, kind = (BACKGROUND, "plain") if verb in BACKGROUND else (FOREGROUND, "foreground")
        self._ask(who, verb, function, unique, kind, priority=verbs.index(verb))

    def epoch(self, who: int, function: bytes, unique: bytes, seconds: int) -> None:
        when = b"%d" % (self.bench.wall + seconds)
        self._ask(who, wire.SUBMIT_JOB_EPOCH, function, unique, "epoch", when)

    def schedule(self, who: int, function: bytes, unique: bytes) -> None:
        self._ask(who, wire.SUBMIT_JOB_SCHED, function, unique, "schedule", *[b"*"] * 5)

    def reduce(self, who: int, function: bytes, unique: bytes) -> None:
        verb = wire.SUBMIT_REDUCE_JOB_BACKGROUND
        self._ask(who, verb, function, unique, "plain", b"reducer", b"aggregate")

    def client_leaves(self, who: int) -> None:
        client = self.clients[who]
        client.leave()
        self.awaited.pop(client, None)
        self.clients[who] = self.bench.peer()

    def cancel(self, which: int) -> None:
        if self.handles:
            handle = list(self.handles)[-1 - which % len(self.handles)]
            self.over.setdefault(handle, self.bench.node.log.group.number)
            self.admin.say_bytes(b"cancel job " + handle + b"\n")

    # ---- what workers do

    def grab(self, who: int) -> None:
        self.grabs.setdefault(self.workers[who], []).append(len(self.over))
        self.workers[who].say(wire.GRAB_JOB_UNIQ)

    def result(self, who: int, verb: int) -> None:
        held = self.held.get(self.workers[who])
        if held:
            self._end(self.workers[who], verb, held.pop(0))

    def late(self, verb: int) -> None:
        """A result from a worker that left, for a job that nobody else was given meanwhile."""
        self.bench.end_turn()
        self.listen()
        held = [handle for handles in self.held.values() for handle in handles]
        while self.dropped:
            handle = self.dropped.pop(0)
            if handle not in held:
                # It is an error when the node does not know that the job was given to anybody: that is
                # written, but nobody waits for it.
                self._end(self.bench.peer(), verb, handle)
                break

    def _end(self, worker: Peer, verb: int, handle: bytes) -> None:
        group = self.bench.node.log.group.number
        worker.say(verb, handle, *([] if verb == wire.WORK_FAIL else [b"result"]))
        if worker not in self.workers:
            self.bench.end_turn()
            if worker.heard():
                return
        self.over.setdefault(handle, group)

    def progress(self, who: int) -> None:
        for handle in self.held.get(self.workers[who], []):
            self.workers[who].say(wire.WORK_STATUS, handle, b"1", b"2")
            self.workers[who].say(wire.WORK_DATA, handle, b"data")

    def worker_leaves(self, who: int) -> None:
        worker = self.workers[who]
        worker.leave()
        self.dropped += self.held.pop(worker, [])
        self.workers[who] = self.bench.worker(*FUNCTIONS)

    # ---- what the server does

    def time(self, seconds: int) -> None:
        self.bench.pass_time(seconds)

    def end_turn(self) -> None:
        self.bench.end_turn()

    def end_turn_disk_busy(self) -> None:
        self.bench.end_turn(cut=False)

    def commit(self) -> None:
        self.bench.commit()

    def settle(self) -> None:
        self.bench.settle()

    def checkpoint(self) -> None:
        self.bench.start_checkpoint()

    # ---- what is heard

    def listen(self) -> None:
        for worker in self.workers:
            for packet in worker.heard():
                self._hear_worker(worker, packet)
        for client in self.clients:
            for kind, *arguments in client.heard():
                if kind == wire.JOB_CREATED:
                    (handle,) = arguments
                    self.handles[handle] = None
                    if self.awaited[client].pop(0):
                        self.acknowledged[handle] = None
                else:
                    assert kind != wire.ERROR, arguments
        self.admin.heard_bytes = b""

    def _hear_worker(self, worker: Peer, packet: Packet) -> None:
        over_count = self.grabs[worker].pop(0) if packet[0] in (wire.JOB_ASSIGN_UNIQ, wire.NO_JOB) else 0
        if packet[0] == wire.JOB_ASSIGN_UNIQ:
            _, handle, function, unique, payload = packet
            self.must_have_been_asked_for(function, unique, payload)
            assert handle not in list(self.over)[:over_count], "a job that is over was handed out"
            assert all(handle not in held for held in self.held.values()), "handed out twice at once"
            self.held.setdefault(worker, []).append(handle)
            self.delivered[handle] = None

    def must_have_been_asked_for(self, function: bytes, unique: bytes, payload: bytes) -> list[Submitted]:
        asked = [
            submit
            for submit in self.asked.get(payload, [])
            if (submit.function, submit.unique) == (function, unique)
        ]
        assert asked, "nobody ever submitted this"
        return asked

    # ---- the account

    @property
    def promised(self) -> list[bytes]:
        """Background jobs that must survive: acknowledged, and not over."""
        return [handle for handle in self.acknowledged if handle not in self.over]

    @property
    def surely_over(self) -> list[bytes]:
        """Jobs whose end is on the disk."""
        return [handle for handle, group in self.over.items() if group <= self.bench.committed_group]
