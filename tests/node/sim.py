"""A whole fleet under a seeded dice: single frames, lost swaps, crashes, clocks, and an account beside it.

Nodes, replicators and the placement are the real ones; etcd, disks and streams are those of `fleets.py`. The
map has few slots, so that a run takes a fraction of a second.
`python -m tests.node.sim FIRST LAST [STEPS]` hunts; with one number it tells that seed.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from zlib import crc32

from cluster.jobs import FINISHED
from cluster.node.context import slot_of_handle
from cluster.placement import Swap, View
from cluster.replication import SLOT_COUNT, entries
from cluster.replication.frames import Frame, Hello
from cluster.wire import packets as wire
from tests.node.fleets import PEER_PROTOCOL, SMALL_SLOTS, Client, Host, SmallFleet, small_uniques

SLOTS = SMALL_SLOTS
FUNCTIONS = (b"f", b"g")
STREAM_DROP_SECONDS = 10.0  # as the peers' streams: silent for so long, it is broken
ANSWER_SECONDS_MAX = 45.0  # drop + park + stall, twice in the worst order, and what ticks add
BACKGROUND = (wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_LOW_BG)
DIRECT = frozenset(
    (wire.JOB_CREATED, wire.ERROR, wire.ECHO_RES, wire.STATUS_RES, wire.CLAIM_RES, wire.OPTION_RES)
)


UNIQUES = {function: small_uniques(function) for function in FUNCTIONS}


class Broken(AssertionError):
    """A rule was broken."""


@dataclass
class Asked:
    """A request of a client."""

    packet_type: int
    arguments: tuple[bytes, ...]
    at: float


@dataclass
class User:
    """A client's or worker's connection, and what it waits for."""

    client: Client
    asked: deque[Asked] = field(default_factory=deque)
    running: dict[bytes, None] = field(default_factory=dict)  # jobs that it was given
    remember: bool = False
    worker: bool = False
    awaited: set[bytes] = field(default_factory=set)  # foreground jobs whose end it has yet to be told


class Shadow:
    """What a disk holds of one slot, kept the dumb way."""

    def __init__(self) -> None:
        self.base: set[bytes] = set()
        self.base_number = 0
        self.log: list[bytes] = []  # behind the base
        self.coming: tuple[int, list[bytes]] | None = None
        self._jobs: set[bytes] | None = None

    def apply(self, raw: bytes) -> None:
        entry, _ = entries.decode(raw, 0)
        self._jobs = None
        if entry.kind == entries.STATE:
            self.coming = (entry.number, [])
        elif self.coming is not None:
            if entry.kind == entries.STATE_END:
                self.base_number, found = self.coming
                self.base, self.coming, self.log = alive(set(), found), None, []
            else:
                self.coming[1].append(raw)
        elif entry.kind == entries.CUT:
            keep = entry.number - self.base_number
            if keep < 0:
                raise Broken(f"a cut at {entry.number}, below the state of {self.base_number}")
            del self.log[keep:]
        elif entry.kind in entries.LOGGED:
            if entry.number != self.base_number + len(self.log) + 1:
                raise Broken(f"entry {entry.number} behind {self.base_number + len(self.log)} on a disk")
            self.log.append(raw)

    def jobs(self) -> set[bytes]:
        if self._jobs is None:
            self._jobs = alive(set(self.base), self.log)
        return self._jobs

    def entry(self, number: int) -> bytes | None:
        index = number - self.base_number - 1
        return self.log[index] if 0 <= index < len(self.log) else None


def alive(jobs: set[bytes], raws: list[bytes]) -> set[bytes]:
    for raw in raws:
        entry, _ = entries.decode(raw, 0)
        if entry.kind == entries.SUBMITTED:
            jobs.add(entry.body[1:].split(b"\0", 1)[0])
        elif entry.kind == entries.JOB:
            jobs.add(entries.JobRecord.decode(entry.body).handle)
        elif entry.kind == entries.DONE:
            jobs.discard(entries.done_handle(entry.body))
    return jobs


class Simulation:
    """One seed."""

    def __init__(self, seed: int, steps: int = 500, *, trace: bool = False) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.trace = trace
        self.steps = steps
        self.fleet = SmallFleet(self.dice.choice((3, 3, 3, 4, 5)))
        self.users: list[User] = []
        self.acknowledged: dict[bytes, tuple[bytes, bytes]] = {}  # handle -> function, unique
        self.ran: set[bytes] = set()  # a worker has said how it ended
        self.failed_answers = 0
        self.late_swaps: list[Swap] = []
        self.views: dict[str, list[View]] = {}  # read, not seen yet
        self.unnoticed: list[tuple[str, str, int]] = []  # host, other: its stream is broken, it has to learn
        self.stream_ids = count(1)
        self.stream_of: dict[tuple[str, str], int] = {}  # as this side knows it
        self.heard: dict[tuple[str, str], float] = {}
        self.leaders: dict[tuple[int, int], tuple[str, int]] = {}  # slot, epoch -> process
        self.committed: dict[tuple[int, int], bytes] = {}  # slot, number -> entry
        self.groups: dict[str, deque[tuple[int, list[bytes]]]] = {}
        self.shadows: dict[str, list[Shadow]] = {}  # by identity
        self.read_to: dict[str, int] = {}
        self.lost_disks = 0
        self.counter = 0
        self.step = 0
        self.looked: tuple[object, ...] = ()
        # How often an acknowledgement is at once followed by a disaster: that is when promises break.
        self.malice = self.dice.choice((0.0, 0.1, 0.3))
        self.struck = False

    def say(self, *words: object) -> None:
        if self.trace:
            print(f"{self.step:4} {self.fleet.now:8.2f}", *words)

    # ---- running

    def run(self) -> None:
        self.fleet.begin()
        if self.dice.random() < 0.8:
            for _ in range(12):
                self.round()
        for _ in range(3):
            self.new_user()
        for _ in range(2):
            self.new_user(worker=True)
        actions: list[tuple[Callable[[], object], float]] = [
            (self.flow, 30),
            (self.deliver, 60),
            (self.send, 30),
            (self.write, 30),
            (self.turn, 10),
            (self.connect, 12),
            (self.look, 14),
            (self.propose, 10),
            (self.submit, 30),
            (self.question, 6),
            (self.work, 30),
            (self.time, 8),
            (self.new_user, 2),
            (self.user_leaves, 1),
            (self.late_swap, 4),
            (self.late_view, 4),
            (self.notice, 6),
        ]
        # Each run has its own troubles, so that some go far into one of them.
        troubles: list[tuple[Callable[[], object], int]] = [
            (self.break_stream, 3),
            (self.block, 2),
            (self.unblock, 3),
            (self.crash, 3),
            (self.restart, 5),
            (self.freeze, 2),
            (self.unfreeze, 4),
            (self.expire, 4),
            (self.false_delete, 2),
            (self.etcd_down, 1),
            (self.etcd_up, 3),
            (self.drain, 1),
            (self.undrain, 1),
            (self.lose_disk, 1),
            (self.checkpoint, 1),
        ]
        share = self.dice.choice((0.3, 1.0, 2.0, 4.0))
        weighted: list[tuple[Callable[[], object], float]] = [*actions]
        for action, weight in troubles:
            weighted.append((action, weight * share * self.dice.choice((0, 1, 1, 3))))
        # What heals is always possible.
        weighted += [(self.unblock, 1), (self.unfreeze, 1), (self.restart, 1), (self.etcd_up, 1)]
        chosen = self.dice.choices(
            [action for action, _ in weighted], [weight for _, weight in weighted], k=self.steps
        )
        for action in chosen:
            self.step += 1
            action()
            self.check()
            if self.struck:
                self.struck = False
                self.disaster()
        self.heal()

    def heal(self) -> None:
        """Everything is mended; then everybody gets what is owed."""
        fleet = self.fleet
        fleet.blocked.clear()
        self.etcd_up()
        for swap in self.late_swaps:
            fleet.etcd.swap(swap)
        self.late_swaps.clear()
        self.views.clear()
        for host in fleet.hosts.values():
            host.frozen = False
            if not host.alive:
                self.start(host)
            if host.member.draining:
                self.set_draining(host, draining=False)
        for host in fleet.hosts.values():
            self.new_user(worker=True, host=host)
        self.say("healed")
        end = fleet.now + 90.0
        while fleet.now < end:
            for _ in range(60):
                if not self.round():
                    break
            if self.at_rest():
                break
            self.time(0.5)
            self.check()
        else:
            raise Broken(f"no rest after healing: {self.owed()}")
        self.check()

    def round(self) -> bool:
        self.step += 1
        before = self.fleet.etcd.revision
        did = False
        while self.unnoticed:
            self.notice()
            did = True
        names = [host.name for host in self.fleet.living()]
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                did |= self.connect(one, other)
        for host in self.fleet.living():
            self.look(host)
            self.propose(host, outcome="good")
            while host.write():
                did = True
            if host.part.busy:
                host.turn(lambda: None)
                did = True
            for name in host.part.frames_waiting():
                did |= self.send(host, name)
        for pair, queue in list(self.fleet.wires.items()):
            while queue:
                did = True
                self.deliver(pair)
        for user in list(self.users):
            if user.worker:
                did |= self.work(user, honest=True)
        self.listen()
        return did or self.fleet.etcd.revision != before

    def owed(self) -> str:
        parts = [f"{user.client.host.name}: {list(user.asked)}" for user in self.users if user.asked]
        parts += [f"{user.client.host.name}: ends of {user.awaited}" for user in self.users if user.awaited]
        parts += [f"job {handle!r}" for handle in self.acknowledged if handle not in self.ran]
        return "; ".join(parts)

    def at_rest(self) -> bool:
        return not self.owed()

    def flow(self) -> None:
        """What is on its way goes on for a while."""
        for _ in range(self.dice.randint(3, 30)):
            self.dice.choice((self.deliver, self.deliver, self.send, self.write, self.turn))()
            self.check()

    # ---- streams

    def connect(self, one: str = "", other: str = "") -> bool:
        fleet = self.fleet
        if not one:
            if len(fleet.living()) < 2:
                return False
            one, other = (host.name for host in self.dice.sample(fleet.living(), 2))
        pair = frozenset((one, other))
        first, second = fleet.hosts[one], fleet.hosts[other]
        if pair in fleet.links or pair in fleet.blocked or first.frozen or second.frozen:
            return False
        if not first.alive or not second.alive:
            return False
        self.say("connect", one, other)
        fleet.links.add(pair)
        number = next(self.stream_ids)
        for host, peer in ((first, second), (second, first)):
            fleet.wires[host.name, peer.name] = deque()
            self.stream_of[host.name, peer.name] = number
            self.heard[host.name, peer.name] = fleet.now
            hello = Hello("f", peer.name, peer.identity, peer.incarnation, PEER_PROTOCOL, SLOT_COUNT, "1")
            self.turn_of(host, lambda host=host, hello=hello: host.part.peer_up(hello, fleet.now))  # type: ignore[misc]
        return True

    def cut(self, one: str, other: str) -> None:
        """The stream is gone; each side learns it when it does."""
        fleet = self.fleet
        pair = frozenset((one, other))
        if pair not in fleet.links:
            return
        self.say("cut", one, other)
        fleet.links.discard(pair)
        for first, second in ((one, other), (other, one)):
            fleet.wires.pop((first, second), None)
            self.unnoticed.append((first, second, self.stream_of[first, second]))

    def notice(self) -> None:
        if not self.unnoticed:
            return
        one, other, number = self.unnoticed.pop(self.dice.randrange(len(self.unnoticed)))
        host = self.fleet.hosts[one]
        if host.alive and not host.frozen and self.stream_of.get((one, other)) == number:
            self.say("notice", one, other)
            self.turn_of(host, lambda: host.part.peer_down(other))
        elif host.alive and host.frozen:
            self.unnoticed.append((one, other, number))

    def break_stream(self) -> None:
        if self.fleet.links:
            self.cut(*sorted(self.dice.choice(sorted(self.fleet.links, key=sorted))))

    def block(self) -> None:
        if not self.fleet.blocked:
            pair = self.dice.sample(sorted(self.fleet.hosts), 2)
            self.say("block", *pair)
            self.fleet.blocked.add(frozenset(pair))
            self.cut(*pair)

    def unblock(self) -> None:
        self.fleet.blocked.clear()

    def send(self, host: Host | None = None, name: str = "") -> bool:
        if host is None:
            host = self.some_host()
            if host is None or not (waiting := host.part.frames_waiting()):
                return False
            name = self.dice.choice(waiting)
        frame = host.part.take_frame(name, self.fleet.now)
        self.turn_of(host, lambda: None)
        if frame is None:
            return False
        wire_ = self.fleet.wires.get((host.name, name))
        if wire_ is not None:
            wire_.append(frame)
        return True

    def deliver(self, pair: tuple[str, str] | None = None) -> None:
        fleet = self.fleet
        if pair is None:
            pairs = [
                key
                for key, queue in fleet.wires.items()
                if queue and fleet.hosts[key[1]].alive and not fleet.hosts[key[1]].frozen
            ]
            if not pairs:
                return
            pair = self.dice.choice(pairs)
        host = fleet.hosts[pair[1]]
        if not host.alive or host.frozen:
            return
        frame = fleet.wires[pair].popleft()
        self.heard[pair[1], pair[0]] = fleet.now
        if frame:
            self.say("deliver", *pair, describe(frame))
        self.turn_of(host, lambda: host.part.receive(pair[0], frame, fleet.now))

    # ---- nodes

    def some_host(self) -> Host | None:
        living = self.fleet.living()
        return self.dice.choice(living) if living else None

    def turn_of(self, host: Host, act: Callable[[], object]) -> None:
        host.turn(act)
        self.watch(host)

    def watch(self, host: Host) -> None:
        """What the turn has done to disks, commits and leads."""
        if not host.alive:
            return
        groups = self.groups.setdefault(host.name, deque())
        for number, records in host.unwritten:
            if not groups or number > groups[-1][0]:
                groups.append((number, records))
        leads = host.part.replicator.leads
        slots = host.node.log.slots
        while groups and groups[0][0] <= host.node.log.committed:
            inside = False
            for raw in groups.popleft()[1]:
                entry, _ = entries.decode(raw, 0)
                inside = entry.kind == entries.STATE or (inside and entry.kind != entries.STATE_END)
                if inside:
                    continue
                lead = leads.get(entry.slot)
                if entry.kind not in entries.LOGGED or lead is None or lead.epoch != entry.epoch:
                    continue
                if slots[entry.slot].promised != entry.epoch:
                    continue
                known = self.committed.setdefault((entry.slot, entry.number), raw)
                if known != raw:
                    raise Broken(f"slot {entry.slot}: two entries {entry.number} are committed")
        for slot, lead in leads.items():
            process = (host.name, host.incarnation)
            if self.leaders.setdefault((slot, lead.epoch), process) != process:
                raise Broken(f"slot {slot}: epoch {lead.epoch} is led twice")

    def write(self) -> None:
        host = self.some_host()
        if host is not None and host.unwritten:
            self.say("write", host.name, host.unwritten[0][0])
            host.write()
            self.watch(host)

    def turn(self) -> None:
        host = self.some_host()
        if host is not None:
            self.turn_of(host, lambda: None)

    def checkpoint(self) -> None:
        host = self.some_host()
        if host is not None and not host.part.to_write:
            self.say("checkpoint", host.name)
            steps = host.node.checkpoint()
            self.turn_of(host, lambda: next(steps, None))

    def crash(self) -> None:
        host = self.some_host()
        if host is not None:
            self.stop(host)

    def disaster(self) -> None:
        """Some or all lose their power, and what is unwritten; some come back, others' leases run out."""
        living = self.fleet.living()
        for host in self.dice.sample(living, self.dice.randint(min(1, len(living)), len(living))):
            self.stop(host, keep=0)
            if self.dice.random() < 0.5:
                self.start(host)
            if self.dice.random() < 0.6 and self.fleet.etcd.up:
                self.fleet.etcd.delete(host.name)
        for _ in range(self.dice.randint(0, 3)):
            self.look()
            self.propose(outcome="good")
        self.check()

    def stop(self, host: Host, keep: int | None = None) -> None:
        kept = self.dice.randint(0, len(host.unwritten)) if keep is None else keep
        self.say("crash", host.name, "keeps", kept, "of", len(host.unwritten))
        for _ in range(kept):
            host.disk += host.unwritten.popleft()[1]
        host.alive = False
        host.unwritten.clear()
        self.groups.pop(host.name, None)
        self.views.pop(host.name, None)
        for other in self.fleet.hosts:
            self.cut(host.name, other)
        for user in [user for user in self.users if user.client.host is host]:
            self.users.remove(user)

    def restart(self) -> None:
        dead = [host for host in self.fleet.hosts.values() if not host.alive]
        if dead:
            self.start(self.dice.choice(dead))

    def start(self, host: Host) -> None:
        self.say("start", host.name)
        for key in [key for key in self.stream_of if key[0] == host.name]:
            del self.stream_of[key]
        host.start()
        self.watch(host)

    def lose_disk(self) -> None:
        """One directory in a run, and only while all copies are there."""
        fleet_map = self.fleet.etcd.view.map
        host = self.some_host()
        if self.lost_disks or host is None or fleet_map is None:
            return
        self.lost_disks += 1
        self.say("lose disk", host.name)
        self.stop(host)
        host.disk = []
        host.identity = f"{99:032x}"
        self.read_to.pop(host.identity, None)

    def freeze(self) -> None:
        host = self.some_host()
        if host is not None:
            self.say("freeze", host.name)
            host.frozen = True

    def unfreeze(self) -> None:
        frozen = [host for host in self.fleet.hosts.values() if host.alive and host.frozen]
        if frozen:
            host = self.dice.choice(frozen)
            self.say("unfreeze", host.name)
            host.frozen = False

    def time(self, seconds: float = 0.0) -> None:
        fleet = self.fleet
        fleet.now += seconds or self.dice.choice((0.05, 0.1, 0.3, 1.0, 2.5))
        for key, queue in fleet.wires.items():
            source, target = fleet.hosts[key[0]], fleet.hosts[key[1]]
            if source.alive and not source.frozen and not any(queue):
                queue.append(Frame())  # a keep-alive
            del target
        for one, other in [tuple(sorted(pair)) for pair in fleet.links]:
            if (
                min(self.heard[one, other], self.heard[other, one]) < fleet.now - STREAM_DROP_SECONDS
                and seconds == 0.0
            ):
                self.cut(one, other)
        for host in fleet.living():
            self.turn_of(host, host.node.tick)

    # ---- etcd

    def look(self, host: Host | None = None) -> None:
        """A node reads etcd, and sees what it read, now or later."""
        host = host or self.some_host()
        etcd = self.fleet.etcd
        if host is None or not etcd.up:
            return
        found = etcd.view.members.get(host.name)
        if found is None or found.incarnation != host.incarnation:
            etcd.put(host.member)
        host.part.lease(self.fleet.now)
        view = etcd.view
        if self.dice.random() < 0.2:
            self.views.setdefault(host.name, []).append(view)
        else:
            self.turn_of(host, lambda: host.part.see(view))

    def late_view(self) -> None:
        host = self.some_host()
        if host is not None and self.views.get(host.name):
            views = self.views[host.name]
            view = views.pop(self.dice.randrange(len(views)))
            self.turn_of(host, lambda: host.part.see(view))

    def propose(self, host: Host | None = None, outcome: str = "") -> None:
        host = host or self.some_host()
        if host is None or not self.fleet.etcd.up:
            return
        asked: list[Swap] = []
        self.turn_of(host, lambda: asked.extend(filter(None, [host.part.propose()])))
        for swap in asked:
            outcome = outcome or self.dice.choice(("good", "good", "good", "answer lost", "lost", "late"))
            applied = None
            if outcome in ("good", "answer lost"):
                applied = self.fleet.etcd.swap(swap)
            elif outcome == "late":
                self.late_swaps.append(swap)
            self.say("propose", host.name, outcome, applied, swap.compare_revision)
            host.part.swapped()
            if outcome == "good":
                view = self.fleet.etcd.view
                self.turn_of(host, lambda view=view: host.part.see(view))  # type: ignore[misc]

    def late_swap(self) -> None:
        if self.late_swaps and self.fleet.etcd.up:
            swap = self.late_swaps.pop(self.dice.randrange(len(self.late_swaps)))
            self.say("late swap", self.fleet.etcd.swap(swap))

    def expire(self) -> None:
        """The lease of a node that is not there runs out."""
        etcd = self.fleet.etcd
        gone = [
            host
            for host in self.fleet.hosts.values()
            if host.name in etcd.view.members and (not host.alive or host.frozen)
        ]
        if gone and etcd.up:
            host = self.dice.choice(gone)
            self.say("expire", host.name)
            etcd.delete(host.name)

    def false_delete(self) -> None:
        host = self.some_host()
        if host is not None and self.fleet.etcd.up:
            self.say("false delete", host.name)
            self.fleet.etcd.delete(host.name)

    def etcd_down(self) -> None:
        self.fleet.etcd.up = False

    def etcd_up(self) -> None:
        self.fleet.etcd.up = True

    def drain(self) -> None:
        host = self.some_host()
        if host is not None and self.fleet.etcd.up:
            self.set_draining(host, draining=True)

    def undrain(self) -> None:
        for host in self.fleet.living():
            if host.member.draining and self.fleet.etcd.up:
                self.set_draining(host, draining=False)
                return

    def set_draining(self, host: Host, *, draining: bool) -> None:
        self.say("drain" if draining else "undrain", host.name)
        host.member = replace(host.member, draining=draining)
        self.fleet.etcd.put(host.member)

    # ---- clients and workers

    def new_user(self, *, worker: bool = False, host: Host | None = None) -> None:
        host = host or self.some_host()
        if host is None:
            return
        user = User(host.connect(), worker=worker or self.dice.random() < 0.4)
        self.users.append(user)
        if user.worker:
            for function in FUNCTIONS:
                user.client.send(wire.CAN_DO, function)
        elif self.dice.random() < 0.5:
            user.remember = True
            self.ask(user, wire.OPTION_REQ, b"gearfleet")

    def ask(self, user: User, packet_type: int, *arguments: bytes) -> None:
        if user.client.host.frozen:
            return
        self.say("ask", user.client.host.name, packet_type, *arguments)
        user.asked.append(Asked(packet_type, arguments, self.fleet.now))
        user.client.send(packet_type, *arguments)
        self.watch(user.client.host)

    def some_user(self, *, worker: bool) -> User | None:
        found = [
            user
            for user in self.users
            if user.worker == worker and user.client.host.alive and not user.client.host.frozen
        ]
        return self.dice.choice(found) if found else None

    def submit(self) -> None:
        user = self.some_user(worker=False)
        if user is None:
            return
        function = self.dice.choice(FUNCTIONS)
        unique = b"" if self.dice.random() < 0.1 else self.dice.choice(UNIQUES[function])
        self.counter += 1
        if self.dice.random() < 0.15 and unique:
            verb = wire.SUBMIT_JOB
        else:
            verb = self.dice.choice(BACKGROUND)
        self.ask(user, verb, function, unique, b"%d" % self.counter)

    def question(self) -> None:
        user = self.some_user(worker=False)
        if user is None:
            return
        if self.dice.random() < 0.5 or not self.acknowledged:
            self.counter += 1
            self.ask(user, wire.ECHO_REQ, b"%d" % self.counter)
        else:
            self.ask(user, wire.GET_STATUS, self.dice.choice(sorted(self.acknowledged)))

    def work(self, user: User | None = None, *, honest: bool = False) -> bool:
        """A worker grabs, ends what it has, claims it elsewhere, or goes away."""
        user = user or self.some_user(worker=True)
        if user is None or user.client.host.frozen or not user.client.host.alive:
            return False
        self.listen()
        what = self.dice.random()
        if user.running and (honest or what < 0.45):
            handle = self.dice.choice(sorted(user.running))
            del user.running[handle]
            carrier = user
            if not honest and what < 0.15:
                # Late, over another connection: its own is gone.
                carrier = self.some_user(worker=True) or user
                if carrier is not user:
                    self.leave(user)
            self.say("result", carrier.client.host.name, handle)
            self.ran.add(handle)
            verb = wire.WORK_COMPLETE if self.dice.random() < 0.8 else wire.WORK_FAIL
            carrier.client.send(verb, handle, *([b"r"] if verb == wire.WORK_COMPLETE else []))
            self.watch(carrier.client.host)
            return True
        if user.running and not honest and what < 0.55:
            carrier = self.some_user(worker=True) or user
            self.ask(carrier, wire.CLAIM_JOB, self.dice.choice(sorted(user.running)))
        elif len(user.running) < 3:
            before = len(user.running)
            self.say("grab", user.client.host.name)
            user.client.send(wire.GRAB_JOB_UNIQ)
            self.watch(user.client.host)
            self.listen()
            return len(user.running) > before
        return False

    def user_leaves(self) -> None:
        if self.users:
            user = self.dice.choice(self.users)
            if user.client.host.alive and not user.client.host.frozen:
                self.leave(user)

    def leave(self, user: User) -> None:
        host = user.client.host
        self.say("user leaves", host.name)
        self.users.remove(user)
        self.turn_of(host, lambda: host.node.disconnected(user.client.connection))

    def listen(self) -> None:
        """What has come on all connections: in the order of the requests."""
        for user in self.users:
            for packet_type, body in user.client.take():
                if packet_type == wire.JOB_ASSIGN_UNIQ:
                    user.running[body.split(b"\0", 1)[0]] = None
                elif packet_type in (wire.WORK_COMPLETE, wire.WORK_FAIL):
                    user.awaited.discard(body.split(b"\0", 1)[0])
                elif packet_type == wire.ECHO_RES and user.remember:
                    # A fleet-aware client's passes others that wait.
                    user.asked.remove(next(asked for asked in user.asked if asked.arguments == (body,)))
                elif packet_type in DIRECT:
                    if packet_type == wire.ERROR and user.worker and not user.asked:
                        continue  # a late result that nobody wanted
                    if not user.asked:
                        raise Broken(f"an answer to nothing: {packet_type} {body!r}")
                    if (
                        user.worker
                        and packet_type == wire.ERROR
                        and user.asked[0].packet_type == wire.CLAIM_JOB
                    ):
                        continue
                    self.answered(user, user.asked.popleft(), packet_type, body)

    def answered(self, user: User, asked: Asked, packet_type: int, body: bytes) -> None:
        kind = asked.packet_type
        expected = {
            wire.ECHO_REQ: wire.ECHO_RES,
            wire.GET_STATUS: wire.STATUS_RES,
            wire.CLAIM_JOB: wire.CLAIM_RES,
            wire.OPTION_REQ: wire.OPTION_RES,
        }.get(kind)
        if expected is not None:
            if packet_type != expected or body.split(b"\0", 1)[0] != asked.arguments[0]:
                raise Broken(f"{packet_type} {body!r} answers {asked}")
            return
        if packet_type == wire.ERROR:
            self.failed_answers += 1
            return
        if packet_type != wire.JOB_CREATED:
            raise Broken(f"{packet_type} {body!r} answers {asked}")
        function, unique = asked.arguments[:2]
        slot = slot_of_handle(body)
        if unique and slot != crc32(function + b"\0" + unique) % SLOT_COUNT:
            raise Broken(f"{body!r} answers {asked}")
        if kind == wire.SUBMIT_JOB:
            user.awaited.add(body)
        if kind in BACKGROUND:
            if unique and self.acknowledged.get(body, (function, unique)) != (function, unique):
                raise Broken(f"{body!r} answers {asked}, and was {self.acknowledged[body]}")
            self.say("acknowledged", body, asked.arguments)
            self.acknowledged[body] = (function, unique)
            self.struck = self.struck or self.dice.random() < self.malice

    # ---- invariants

    def check(self) -> None:
        self.listen()
        fleet = self.fleet
        for user in self.users:
            host = user.client.host
            if user.asked and host.alive and not host.frozen:
                waited = fleet.now - user.asked[0].at
                if waited > ANSWER_SECONDS_MAX:
                    raise Broken(f"{user.asked[0]} at {host.name} is unanswered for {waited:.1f} s")
        # The rest only when something may be different.
        looks = (
            fleet.etcd.revision,
            len(self.acknowledged),
            len(self.committed),
            *(len(host.disk) for host in fleet.hosts.values()),
            *(host.alive and host.node.log.committed for host in fleet.hosts.values()),
        )
        if looks != self.looked:
            self.looked = looks
            self.check_all()

    def check_all(self) -> None:
        fleet = self.fleet
        fleet_map = fleet.etcd.view.map
        assert fleet_map is not None
        by_identity = {host.identity: host for host in fleet.hosts.values()}
        jobs: dict[tuple[str, int], set[bytes]] = {}
        for host in fleet.hosts.values():
            self.read_disk(host)
        for handle in self.acknowledged:
            if handle in self.ran:
                continue
            slot = slot_of_handle(handle)
            assert slot is not None
            row = fleet_map.slots[slot]
            for identity in row.in_sync:
                if identity not in by_identity:
                    continue  # its disk is lost
                key = (identity, slot)
                if key not in jobs:
                    jobs[key] = self.shadows[identity][slot].jobs()
                if handle not in jobs[key]:
                    raise Broken(
                        f"{handle!r} was acknowledged, and is not on the disk of {by_identity[identity].name}"
                    )
            leader = fleet.hosts[row.primary]
            if leader.alive and leader.incarnation == row.incarnation:
                lead = leader.part.replicator.leads.get(slot)
                if lead is not None and lead.epoch == row.epoch and leader.node.log.slots[slot].serving:
                    job = leader.node.ledger.tables[slot].jobs.get(handle)
                    if job is None or job.state == FINISHED:
                        raise Broken(f"{handle!r} was acknowledged, and {leader.name} does not know it")
        for (slot, number), raw in self.committed.items():
            for identity in fleet_map.slots[slot].in_sync:
                if identity in by_identity:
                    shadow = self.shadows[identity][slot]
                    found = shadow.entry(number)
                    if found != raw and number > shadow.base_number:
                        raise Broken(
                            f"entry {number} of slot {slot} is committed, and not so on the disk of "
                            f"{by_identity[identity].name}"
                        )

    def read_disk(self, host: Host) -> None:
        shadows = self.shadows.get(host.identity)
        if shadows is None:
            shadows = self.shadows[host.identity] = [Shadow() for _ in range(SLOTS)]
        start = self.read_to.get(host.identity, 0)
        for chunk in host.disk[start:]:
            offset = 0
            while offset < len(chunk):
                entry, end = entries.decode(chunk, offset)
                if entry.slot < SLOTS:
                    try:
                        shadows[entry.slot].apply(chunk[offset:end])
                    except Broken as error:
                        raise Broken(f"{host.name}, slot {entry.slot}: {error}") from None
                offset = end
        self.read_to[host.identity] = len(host.disk)


def describe(frame: Frame) -> str:
    parts = []
    if frame.answers:
        parts.append(f"answers {[tuple(answer) for answer in frame.answers]}")
    if frame.offers:
        parts.append(f"offers {[(offer.slot, offer.epoch, offer.number) for offer in frame.offers]}")
    if frame.pieces:
        parts.append(f"pieces {[(piece.slot, piece.epoch, piece.last) for piece in frame.pieces]}")
    if frame.entries:
        found = []
        offset = 0
        while offset < len(frame.entries):
            entry, offset = entries.decode(frame.entries, offset)
            found.append((entry.kind, entry.slot, entry.epoch, entry.number))
        parts.append(f"entries {found}")
    if frame.group or frame.acknowledged:
        parts.append(f"group {frame.group} ack {frame.acknowledged}")
    if frame.requests or frame.replies:
        parts.append(f"requests {frame.requests!r} replies {frame.replies!r}")
    return ", ".join(parts)


def main(first: int, last: int, steps: int) -> None:
    found = 0
    for seed in range(first, last):
        try:
            Simulation(seed, steps).run()
        except Exception as error:
            found += 1
            lines = traceback.format_exc().strip().splitlines()
            print(f"seed {seed}: {type(error).__name__}: {error}", "|", *lines[-4:-1], flush=True)
            if found >= 10:
                return
    print(f"seeds {first} to {last}: {found} broken")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    if len(numbers) == 1:
        Simulation(numbers[0], trace=True).run()
    else:
        main(numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 500)
