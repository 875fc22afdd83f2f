"""Clients and workers: what they ask, and what they are owed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from zlib import crc32

from chaos_tests.sim.turns.stage import SLOTS, Stage, runs
from chaos_tests.sim.worlds import Broken
from cluster.node.context import slot_of_handle
from cluster.wire import TEXT
from cluster.wire import packets as wire
from tests.node.fleets import Client, Host

FUNCTIONS: Final = (b"f", b"g")
KEYS: Final = tuple((function, b"u%d" % number) for function in FUNCTIONS for number in range(8))
ANSWER_SECONDS_MAX: Final = 45.0  # drop + park + stall, twice in the worst order, and what ticks add
RUNNING_MAX: Final = 3  # of one worker
BACKGROUND: Final = (wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_LOW_BG)
DIRECT: Final = frozenset(
    (wire.JOB_CREATED, wire.ERROR, wire.ECHO_RES, wire.STATUS_RES, wire.CLAIM_RES, wire.OPTION_RES)
)
ANSWER_TO: Final = {
    wire.ECHO_REQ: wire.ECHO_RES,
    wire.GET_STATUS: wire.STATUS_RES,
    wire.CLAIM_JOB: wire.CLAIM_RES,
    wire.OPTION_REQ: wire.OPTION_RES,
}
# Told by the handle and not by the dice, so that a seed goes on as it did.
GIVEN_BACK_ONE_IN: Final = 8
GIVEN_BACK_MAX: Final = 3  # times of one job


@dataclass
class Asked:
    """A request of a client."""

    packet_type: int
    arguments: tuple[bytes, ...]
    at: float
    over: int  # how many jobs were over then
    results: int  # how many results workers had brought


@dataclass(eq=False)
class User:
    """A client's or worker's connection, and what it waits for."""

    client: Client
    asked: deque[Asked] = field(default_factory=deque)
    running: dict[bytes, None] = field(default_factory=dict)  # jobs that it was given
    remember: bool = False
    worker: bool = False
    awaited: set[bytes] = field(default_factory=set)  # foreground jobs whose end it has yet to be told
    taken: dict[bytes, User] = field(default_factory=dict)  # jobs that it claimed; from which connection
    grabs: int = 0  # not answered yet

    @property
    def host(self) -> Host:
        return self.client.host


class Users:
    """All of them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._account = stage.account
        self.users: list[User] = []
        self._given_back: dict[bytes, int] = {}  # how often, by handle
        self._claimed: set[bytes] = set()  # by another worker than the one that was given it
        self._submits = 0
        self.served: set[int] = set()  # slots of which a job was acknowledged
        self._results: list[bytes] = []  # handles whose end a worker has told, in order
        self.latest = (b"", b"")  # key of the last job with one that was acknowledged: function, unique
        self._trying: User | None = None
        self._grabbing: User | None = None  # who has just asked for a job, and is answered at once
        self._bursts = stage.dice.choice((0.0, 0.05, 0.2))
        # With few keys most submits join a job.
        self._keys = stage.dice.sample(KEYS, stage.dice.choice((1, 3, 16)))

    # ---- coming and going

    def come(self, *, worker: bool = False, host: Host | None = None) -> User | None:
        stage = self._stage
        host = host or stage.some_host()
        if host is None:
            return None
        user = User(host.connect(), worker=worker or stage.dice.random() < 0.4)
        user.remember = not user.worker and stage.dice.random() < 0.5
        self.users.append(user)
        self._introduce(user)
        return user

    def go(self) -> None:
        user = self._stage.some(self.users, lambda user: runs(user.host))
        if user is not None:
            self.leave(user)

    def leave(self, user: User) -> None:
        host = user.host
        self._stage.say("user leaves", host.name)
        self._remove(user)
        self._stage.turn(host, lambda: host.node.disconnected(user.client.connection))

    def _remove(self, user: User) -> None:
        self.users.remove(user)
        self._forget_grabs(user)
        for handle, other in user.taken.items():
            # The worker itself is there as long as one of its connections.
            if handle in user.running and other in self.users:
                other.running[handle] = None

    def _forget_grabs(self, user: User) -> None:
        if user.grabs:
            self._account.unheard[user.host.name] -= user.grabs
            self._account.lose_sight(user.host)
            user.grabs = 0

    def stopped(self, host: Host) -> None:
        """Most of its clients and workers go to another node; workers keep what they run."""
        for user in [user for user in self.users if user.host is host]:
            other = self._stage.some_host()
            if other is None or self._stage.dice.random() < 0.2:
                self._remove(user)
            else:
                user.asked.clear()
                user.awaited.clear()
                user.grabs = 0
                user.client = other.connect()
                self._introduce(user)

    def _introduce(self, user: User) -> None:
        if user.worker:
            for function in FUNCTIONS:
                user.client.send(wire.CAN_DO, function)
        elif user.remember:
            self.ask(user, wire.OPTION_REQ, b"gearfleet")

    def _some(self, *, worker: bool, host: Host | None = None) -> User | None:
        return self._stage.some(
            self.users,
            lambda user: user.worker == worker and runs(user.host) and host in (None, user.host),
        )

    # ---- clients

    def ask(self, user: User, packet_type: int, *arguments: bytes) -> None:
        if user.host.frozen:
            return
        if self._stage.trace:
            self._stage.say("ask", user.host.name, packet_type, *arguments)
        over, results = len(self._account.over), len(self._results)
        user.asked.append(Asked(packet_type, arguments, self._stage.fleet.now, over, results))
        if packet_type == TEXT:
            host, connection, line = user.host, user.client.connection, b"cancel job " + arguments[0]
            host.turn(lambda: host.node.receive(connection, [(TEXT, line)]))
        else:
            user.client.send(packet_type, *arguments)
        self._account.watch(user.host, self._stage.fleet.now)

    def submit(self, host: Host | None = None) -> None:
        """Sometimes a second client has the same idea."""
        dice = self._stage.dice
        if dice.random() < self._bursts:
            self._burst(host)
            return
        function, unique = dice.choice(self._keys)
        if dice.random() < 0.1:
            unique = b""
        verb = dice.choice(BACKGROUND)
        if unique and dice.random() < 0.15:
            verb = wire.SUBMIT_JOB
        for _ in range(2 if dice.random() < 0.2 else 1):
            user = self._some(worker=False, host=host)
            if user is not None:
                self._submits += 1
                self.ask(user, verb, function, unique, b"%d" % self._submits)

    def _burst(self, host: Host | None) -> None:
        """Many jobs at once, of which none joins another."""
        dice = self._stage.dice
        user = self._some(worker=False, host=host)
        if user is not None:
            function = dice.choice(FUNCTIONS)
            for _ in range(dice.randint(3, 10)):
                self._submits += 1
                unique = b"" if dice.random() < 0.3 else b"n%d" % self._submits
                self.ask(user, dice.choice(BACKGROUND), function, unique, b"%d" % self._submits)

    def cancel(self, host: Host | None = None) -> None:
        """Best of all where the answer may turn out to be wrong: at the job's primary."""
        dice, stage = self._stage.dice, self._stage
        handles = [
            handle
            for handle in self._account.owed
            if b".t" not in handle and host in (None, self._primary(handle))
        ]
        if not handles:
            return
        handle = handles[-1] if dice.random() < 0.5 else dice.choice(handles)
        near = self._some(worker=False, host=self._primary(handle)) if dice.random() < 0.7 else None
        user = near or self._some(worker=False)
        if user is not None:
            self._account.cancelling.add(handle)
            self.ask(user, TEXT, handle)
            stage.tempting = True

    def _primary(self, handle: bytes) -> Host:
        """Of a job's slot, as etcd has it."""
        fleet = self._stage.fleet
        slot = slot_of_handle(handle)
        assert slot is not None
        assert fleet.etcd.view.map is not None
        return fleet.hosts[fleet.etcd.view.map.slots[slot].primary]

    def try_all_slots(self) -> None:
        """Every slot has to take a job again."""
        if self._trying is None or self._trying not in self.users:
            self._trying = User(self._stage.fleet.living()[0].connect())
            self.users.append(self._trying)
        if not self._trying.asked:
            for slot in set(range(SLOTS)) - self.served:
                unique = next(b"%d" % n for n in count(100) if crc32(b"f\0%d" % n) % SLOTS == slot)
                self.ask(self._trying, wire.SUBMIT_JOB_BG, b"f", unique, b"")

    def rush(self, host: Host) -> None:
        """Its clients and workers want something of it, all at once: first the latest job once more."""
        for user in [user for user in self.users if not user.worker and user.host is host]:
            if self.latest[1]:
                self._submits += 1
                self.ask(user, wire.SUBMIT_JOB_BG, *self.latest, b"%d" % self._submits)
        for _ in range(self._stage.dice.randint(0, 2)):
            self.submit(host)
        for user in list(self.users):
            if user.worker and user.host is host:
                self.work(user)
                self.work(user)

    def question(self) -> None:
        user = self._some(worker=False)
        if user is None:
            return
        if self._stage.dice.random() < 0.5 or not self._account.acknowledged:
            self._submits += 1
            self.ask(user, wire.ECHO_REQ, b"%d" % self._submits)
        else:
            self.ask(user, wire.GET_STATUS, self._stage.dice.choice(sorted(self._account.acknowledged)))

    # ---- workers

    def work(self, user: User | None = None, *, honest: bool = False) -> bool:
        """A worker grabs, ends what it has, claims it elsewhere, or goes away."""
        user = user or self._some(worker=True)
        if user is None or user not in self.users or not runs(user.host):
            return False
        self.listen()
        what = self._stage.dice.random()
        if user.running and (honest or what < 0.45):
            self._end_job(user, elsewhere=not honest and what < 0.15)
            return True
        if user.running and not honest and what < 0.55:
            carrier = self._some(worker=True) or user
            handle = self._stage.dice.choice(sorted(user.running))
            self._claimed.add(handle)
            self._account.claimed(carrier.host, handle)
            self.ask(carrier, wire.CLAIM_JOB, handle)
        elif len(user.running) < RUNNING_MAX:
            before = len(user.running)
            self._grab(user)
            return len(user.running) > before
        return False

    def _grab(self, user: User) -> None:
        account, now = self._account, self._stage.fleet.now
        if self._stage.trace:
            self._stage.say("grab", user.host.name)
        account.watch(user.host, now)
        if not account.unheard[user.host.name]:
            self._grabbing = user
        user.grabs += 1
        account.unheard[user.host.name] += 1
        user.client.send(wire.GRAB_JOB_UNIQ)
        self.listen()
        self._grabbing = None
        account.watch(user.host, now)

    def _end_job(self, user: User, *, elsewhere: bool) -> None:
        """Its result; or late, over another connection: its own is gone."""
        handle = self._stage.dice.choice(sorted(user.running))
        del user.running[handle]
        carrier = user
        if self._given_back.get(handle, 0) < GIVEN_BACK_MAX and not crc32(handle) % GIVEN_BACK_ONE_IN:
            self._give_back(user, handle)
            return
        if elsewhere:
            carrier = self._some(worker=True) or user
            if carrier is not user:
                self.leave(user)
        self._bring(handle, carrier)

    def _give_back(self, user: User, handle: bytes) -> None:
        """It is to run again; from the second time on after a pause."""
        self._stage.say("given back", user.host.name, handle)
        self._given_back[handle] = self._given_back.get(handle, 0) + 1
        user.client.send(wire.OPTION_REQ, wire.OPTION_GEARFLEET)
        user.client.send(wire.GIVE_BACK, handle, b"")
        self._account.watch(user.host, self._stage.fleet.now)

    def bring_late(self) -> None:
        """A worker that lost its node brings its result to the next primary, which waits for it."""
        account = self._account
        for user in self.users:
            for handle in user.running:
                host, slot = self._primary(handle), slot_of_handle(handle)
                assert slot is not None
                epoch = account.served(host, slot)
                if not epoch or host.frozen or not account.waits_for(handle, epoch):
                    continue
                carrier = self._some(worker=True, host=host)
                if carrier is not None:
                    del user.running[handle]
                    self._bring(handle, carrier)
                    return

    def _bring(self, handle: bytes, carrier: User) -> None:
        dice = self._stage.dice
        self._stage.say("result", carrier.host.name, handle)
        self._account.ran.add(handle)
        self._account.reached(carrier.host, handle, carrier.client.connection)
        self._results.append(handle)
        if dice.random() < 0.8:
            carrier.client.send(wire.WORK_COMPLETE, handle, b"r")
        else:
            carrier.client.send(wire.WORK_FAIL, handle)
        self._account.watch(carrier.host, self._stage.fleet.now)

    # ---- answers

    def listen(self) -> None:
        """What has come on all connections: in the order of the requests."""
        for user in self.users:
            if user.client.inbox:
                for packet_type, body in user.client.take():
                    self._hear(user, packet_type, body)

    def _hear(self, user: User, packet_type: int, body: bytes) -> None:
        asked = user.asked
        if packet_type in (wire.JOB_ASSIGN_UNIQ, wire.NO_JOB):
            user.grabs -= 1
            self._account.unheard[user.host.name] -= 1
            if packet_type == wire.JOB_ASSIGN_UNIQ:
                self._given(user, body.split(b"\0", 1)[0])
        elif packet_type in (wire.WORK_COMPLETE, wire.WORK_FAIL):
            user.awaited.discard(body.split(b"\0", 1)[0])
        elif packet_type == wire.ECHO_RES and user.remember:
            # A fleet-aware client's passes others that wait.
            asked.remove(next(item for item in asked if item.arguments == (body,)))
        elif packet_type == TEXT:
            self._answered_cancel(asked.popleft(), body)
        elif packet_type not in DIRECT:
            return
        elif packet_type in (wire.ERROR, wire.OPTION_RES) and user.worker:
            return  # a late result that nobody wanted, or an option that was granted
        elif not asked:
            raise Broken("an answer to nothing", f"{packet_type} {body!r}")
        else:
            self._answered(user, asked.popleft(), packet_type, body)

    def _given(self, user: User, handle: bytes) -> None:
        stage = self._stage
        kept = handle not in self._claimed and any(
            handle in other.running and runs(other.host) for other in self.users if other is not user
        )
        user.running[handle] = None
        stage.tempting = True
        if stage.is_cut_off(user.host) and b".t" not in handle:
            raise Broken("a job was given out without a lease", f"{handle!r} by {user.host.name}")
        view = stage.fleet.etcd.view
        self._account.assigned(user.host, handle, view, stage.fleet.now, kept=kept)
        if user is self._grabbing:
            self._account.grabbed(user.host, handle, user.client.connection, view)
        else:
            self._account.heard_late(handle)

    def _took(self, user: User, handle: bytes) -> None:
        """A claim was granted: the job goes with this connection from now on, wherever the other one goes.

        Also when its result was told before the grant: who granted it takes it from nobody else.
        """
        for other in self.users:
            if other is not user and handle in other.running:
                del other.running[handle]
                user.taken[handle] = other
        user.running[handle] = None

    def _answered(self, user: User, asked: Asked, packet_type: int, body: bytes) -> None:
        expected = ANSWER_TO.get(asked.packet_type)
        if expected is not None:
            if packet_type != expected or body.split(b"\0", 1)[0] != asked.arguments[0]:
                raise Broken("another answer", f"{packet_type} {body!r} answers {asked}")
            if packet_type == wire.CLAIM_RES and body.endswith(b"\0kept"):
                self._took(user, asked.arguments[0])
            return
        if packet_type == wire.ERROR:
            return
        function, unique = asked.arguments[:2]
        slot = slot_of_handle(body)
        if packet_type != wire.JOB_CREATED or (unique and slot != crc32(function + b"\0" + unique) % SLOTS):
            raise Broken("another answer", f"{packet_type} {body!r} answers {asked}")
        if asked.packet_type not in BACKGROUND:
            user.awaited.add(body)
            return
        self._stage.say("acknowledged", body, asked.arguments)
        if unique:
            self.latest = (function, unique)
        ended = self._account.over.get(body)
        # One that was over for others may have run here, too, and ended only after this was asked.
        again = body in self._results[asked.results :]
        over = ended is not None and ended < asked.over and not user.remember and not again
        if slot is not None:
            self.served.add(slot)
        self._account.acknowledge(body, function, unique, over)
        self._stage.tempting = True

    def _answered_cancel(self, asked: Asked, line: bytes) -> None:
        """After an OK the job is over; after anything else, who knows."""
        (handle,) = asked.arguments
        if asked.packet_type != TEXT or not line.startswith((b"OK", b"ERR ")):
            raise Broken("another answer", f"{line!r} answers {asked}")
        self._stage.say("cancel", handle, line)
        if line.startswith(b"OK"):
            fleet = self._stage.fleet
            self._account.cancelled(fleet.hosts.values(), handle, fleet.etcd.view)
            self._stage.tempting = True

    def check(self) -> None:
        """Nobody waits too long."""
        limit = self._stage.fleet.now - ANSWER_SECONDS_MAX
        for user in self.users:
            if user.asked and user.asked[0].at < limit and runs(user.host):
                waited = self._stage.fleet.now - user.asked[0].at
                raise Broken("no answer", f"{user.asked[0]} at {user.host.name} for {waited:.1f} s")

    def owed(self) -> str:
        """What everybody still waits for."""
        parts = [f"{user.host.name}: {list(user.asked)}" for user in self.users if user.asked]
        parts += [f"{user.host.name}: ends of {user.awaited}" for user in self.users if user.awaited]
        account = self._account
        parts += [f"slot {slot} takes no jobs" for slot in range(SLOTS) if slot not in self.served]
        parts += [f"job {handle!r}" for handle in account.owed]
        fleet = self._stage.fleet
        parts += account.left(fleet.hosts.values(), fleet.etcd.view)
        return "; ".join(parts)
