"""Frames between nodes: each stream in order, late, and gone when it breaks."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Final

from chaos_tests.sim.turns.stage import Stage, runs
from cluster.node.context import slot_of_handle
from cluster.replication import entries
from cluster.replication.frames import NEEDS_STATE, Frame, Hello
from cluster.wire import Decoder
from cluster.wire import packets as wire
from tests.node.fleets import PEER_PROTOCOL, Host

DROP_SECONDS: Final = 10.0  # a stream that was silent for so long is broken, as for the real ones
SLOTS_SHOWN: Final = 1024
SAID: Final = frozenset((wire.CLAIM_JOB, wire.WORK_COMPLETE, wire.WORK_FAIL))


class Streams:
    """All streams of the fleet."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._numbers = count(1)
        self._number_of: dict[tuple[str, str], int] = {}  # as this side knows it
        self._unnoticed: list[tuple[str, str, int]] = []  # host, other: its stream broke, it has to learn
        self.slow: set[tuple[str, str]] = set()  # nothing arrives for now
        # In some runs streams break while a whole state is asked for, or on its way.
        self._breaks = stage.dice.choice((0.0, 0.0, 0.3))

    def connect(self, one: str = "", other: str = "") -> bool:
        stage, fleet = self._stage, self._fleet
        if not one:
            one, other = stage.dice.sample(list(fleet.hosts), 2)
        pair = frozenset((one, other))
        first, second = fleet.hosts[one], fleet.hosts[other]
        if pair in fleet.links or pair in fleet.blocked or not runs(first) or not runs(second):
            return False
        stage.say("connect", one, other)
        fleet.links.add(pair)
        number = next(self._numbers)
        for host, peer in ((first, second), (second, first)):
            fleet.wires[host.name, peer.name] = deque()
            self._number_of[host.name, peer.name] = number
            stage.heard[host.name, peer.name] = fleet.now
            self._greet(host, peer)
        return True

    def _greet(self, host: Host, peer: Host) -> None:
        hello = Hello("f", peer.name, peer.identity, peer.incarnation, PEER_PROTOCOL, SLOTS_SHOWN, "1")
        self._stage.turn(host, lambda: host.part.peer_up(hello, self._fleet.now))

    def cut(self, one: str, other: str) -> None:
        """The stream is gone; each side learns it when it does."""
        pair = frozenset((one, other))
        if pair not in self._fleet.links:
            return
        self._stage.say("cut", one, other)
        self._fleet.links.discard(pair)
        for first, second in ((one, other), (other, one)):
            self._fleet.wires.pop((first, second), None)
            self._unnoticed.append((first, second, self._number_of[first, second]))

    def notice(self) -> bool:
        """A side learns that its stream is gone."""
        if not self._unnoticed:
            return False
        item = self._unnoticed.pop(self._stage.dice.randrange(len(self._unnoticed)))
        one, other, number = item
        host = self._fleet.hosts[one]
        if host.alive and host.frozen:
            self._unnoticed.append(item)
            return False
        if host.alive and self._number_of.get((one, other)) == number:
            self._stage.say("notice", one, other)
            self._stage.turn(host, lambda: host.part.peer_down(other))
        return True

    def notice_all(self) -> bool:
        did = False
        for _ in range(len(self._unnoticed)):
            did |= self.notice()
        return did

    def stopped(self, host: Host) -> None:
        for other in self._fleet.hosts:
            self.cut(host.name, other)

    def started(self, host: Host) -> None:
        for key in [key for key in self._number_of if key[0] == host.name]:
            del self._number_of[key]

    # ---- troubles

    def break_one(self) -> None:
        one, other = self._stage.dice.sample(list(self._fleet.hosts), 2)
        self.cut(one, other)

    def block(self) -> None:
        """Two nodes do not reach each other."""
        if not self._fleet.blocked:
            self._block(*self._stage.dice.sample(sorted(self._fleet.hosts), 2))

    def isolate(self, name: str = "", what: str = "") -> None:
        """A node does not reach etcd, or no other node, or neither; its clients reach it."""
        if self._fleet.blocked or self._stage.no_etcd:
            return
        stage = self._stage
        name = name or stage.dice.choice(sorted(self._fleet.hosts))
        what = what or stage.dice.choice(("etcd", "nodes", "etcd and nodes"))
        stage.say("isolate", name, "from", what)
        if "etcd" in what:
            stage.no_etcd.add(name)
        if "nodes" in what:
            for other in sorted(self._fleet.hosts):
                if other != name:
                    self._block(name, other)

    def _block(self, one: str, other: str) -> None:
        self._stage.say("block", one, other)
        self._fleet.blocked.add(frozenset((one, other)))
        self.cut(one, other)

    def unblock(self) -> None:
        self._stage.say("unblock")
        self._fleet.blocked.clear()
        self._stage.no_etcd.clear()
        self.slow.clear()

    def heal(self) -> None:
        self.unblock()
        self._breaks = 0.0

    def slow_down(self, one: str = "", other: str = "") -> None:
        """What one node says to another is on its way for long."""
        names = sorted(self._fleet.hosts)
        one = one or self._stage.dice.choice(names)
        other = other or self._stage.dice.choice([name for name in names if name != one])
        self._stage.say("slow", one, other)
        self.slow.add((one, other))

    # ---- frames

    def send(self, host: Host | None = None, name: str = "") -> bool:
        stage = self._stage
        if host is None:
            host = stage.some(list(self._fleet.hosts.values()), lambda host: runs(host) and self._waits(host))
            if host is None:
                return False
            name = stage.dice.choice(host.part.frames_waiting())
        frame = host.part.take_frame(name, self._fleet.now)
        stage.turn(host)
        if frame is None:
            return False
        if frame.answers or frame.offers:
            stage.account.promise(host, frame)
            stage.tempting |= bool(host.unwritten)
        wire = self._fleet.wires.get((host.name, name))
        if wire is not None:
            wire.append(frame)
        return True

    @staticmethod
    def _waits(host: Host) -> bool:
        return bool(host.part.frames_waiting())

    def deliver(self, pair: tuple[str, str] | None = None) -> bool:
        stage, fleet = self._stage, self._fleet
        if pair is None:
            pair = stage.some(
                list(fleet.wires),
                lambda pair: bool(fleet.wires[pair]) and pair not in self.slow and runs(fleet.hosts[pair[1]]),
            )
            if pair is None:
                return False
        source, target = pair
        host = fleet.hosts[target]
        if not runs(host) or pair in self.slow or not fleet.wires.get(pair):
            return False
        frame = fleet.wires[pair].popleft()
        if concerns_a_state(frame) and stage.dice.random() < self._breaks:
            self.cut(source, target)
            return True
        stage.heard[target, source] = fleet.now
        if stage.trace and frame:
            stage.say("deliver", *pair, describe(frame))
        slots = host.node.log.slots
        promised = {offer.slot: slots[offer.slot].promised for offer in frame.offers}
        said = self._said(host, source, frame)
        stage.turn(host, lambda: host.part.receive(source, frame, fleet.now))
        for packet_type, handle, epoch in said:
            same = stage.account.served(host, slot_of_handle(handle) or 0) == epoch
            if packet_type == wire.CLAIM_JOB:
                stage.account.claimed(host, handle, source if same else None)
            elif same:
                stage.account.reached(host, handle, source)
        if promised:
            stage.account.offered(host, source, frame, promised)
        return True

    def _said(self, host: Host, source: str, frame: Frame) -> list[tuple[int, bytes, int]]:
        """Claims and results that another node passes on, and the epochs in which their slots are served."""
        if not frame.requests or source not in host.part.replicator.peers:
            return []
        found = []
        for packet_type, body in Decoder().feed(frame.requests):
            if packet_type in SAID:
                handle = body.split(b"\0", 1)[0]
                slot = slot_of_handle(handle)
                assert slot is not None
                found.append((packet_type, handle, self._stage.account.served(host, slot)))
        return found

    def pass_time(self) -> None:
        """Keep-alives go out; streams that were silent for too long break."""
        stage, fleet = self._stage, self._fleet
        for (source, _), queue in fleet.wires.items():
            if runs(fleet.hosts[source]) and not any(queue):
                queue.append(Frame())
        limit = fleet.now - DROP_SECONDS
        for one, other in sorted(tuple(sorted(pair)) for pair in fleet.links):
            if min(stage.heard[one, other], stage.heard[other, one]) < limit:
                self.cut(one, other)


def concerns_a_state(frame: Frame) -> bool:
    return bool(frame.pieces) or any(answer.verdict == NEEDS_STATE for answer in frame.answers)


def describe(frame: Frame) -> str:
    """A frame for the trace."""
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
