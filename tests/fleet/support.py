"""What the fleet's tests do as its users: keys of a node's slots, workers on all nodes, load, CLAIM_JOB."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from zlib import crc32

from cluster.wire import packets as wire
from tests.support import Fleet, FleetNode, Peer, PeerClosed, eventually
from tests.support.fleet import FLEET_SECONDS

SLOTS = 1024
_numbers = count()


def slot_of(function: bytes, unique: bytes) -> int:
    return crc32(function + b"\0" + unique) & (SLOTS - 1)


def slot_of_handle(handle: bytes) -> int:
    return int(handle.rpartition(b":")[2].split(b".")[0], 16)


def keys_led_by(fleet: Fleet, name: str, function: bytes, how_many: int = 1) -> list[bytes]:
    """New unique keys whose slots this node leads now."""
    primaries = fleet.primaries()
    found: list[bytes] = []
    while len(found) < how_many:
        unique = b"key-%d" % next(_numbers)
        if primaries[slot_of(function, unique)] == name:
            found.append(unique)
    return found


def key_led_by(fleet: Fleet, name: str, function: bytes) -> bytes:
    return keys_led_by(fleet, name, function)[0]


def extended(node: FleetNode) -> Peer:
    """A connection on which the extension was granted."""
    peer = node.connect()
    peer.send(wire.OPTION_REQ, b"gearfleet")
    peer.expect(wire.OPTION_RES, b"gearfleet")
    return peer


def work_off(fleet: Fleet, function: bytes, expected: Sequence[bytes] | set[bytes]) -> Counter[bytes]:
    """Stock workers on all nodes do what is queued until all of `expected` were done; how often each was."""
    done: Counter[bytes] = Counter()
    peers = [node.connect() for node in fleet.serving_nodes]
    try:
        for peer in peers:
            peer.can_do(function)

        def work() -> set[bytes]:
            for peer in peers:
                while (job := peer.grab()) is not None:
                    peer.complete(job.handle, b"")
                    done[job.unique] += 1
            return set(expected) - set(done)

        eventually(lambda: not work(), timeout_seconds=FLEET_SECONDS)
    finally:
        for peer in peers:
            peer.settle()
            peer.close()
    return done


class StockClient:
    """A client that knows one node: it submits background jobs one after the other, each with its own key,
    from a thread. When its connection breaks it takes the next node and sends again what was not answered."""

    def __init__(self, nodes: Sequence[FleetNode], function: bytes, in_flight: int = 8) -> None:
        self._nodes = list(nodes)
        self._function = function
        self._in_flight = in_flight
        self._stop = threading.Event()
        self.acknowledged: set[bytes] = set()
        self.errors: list[bytes] = []
        self.broken = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> StockClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, how_many: int) -> None:
        """Wait until so many more are acknowledged."""
        until = len(self.acknowledged) + how_many
        eventually(lambda: len(self.acknowledged) >= until, timeout_seconds=FLEET_SECONDS)

    def _run(self) -> None:
        again: list[bytes] = []
        while not self._stop.is_set():
            with suppress(PeerClosed, OSError), self._nodes[0].connect() as peer:
                self._serve(peer, again)
            if not self._stop.is_set():
                self.broken += 1
                self._nodes.append(self._nodes.pop(0))

    def _serve(self, peer: Peer, under_way: list[bytes]) -> None:
        for unique in under_way:
            peer.send(wire.SUBMIT_JOB_BG, self._function, unique, b"payload")
        while not self._stop.is_set() or under_way:
            while len(under_way) < self._in_flight and not self._stop.is_set():
                under_way.append(b"stock-%d" % next(_numbers))
                peer.send(wire.SUBMIT_JOB_BG, self._function, under_way[-1], b"payload")
            packet = peer.receive(FLEET_SECONDS)
            unique = under_way.pop(0)
            if packet.type == wire.JOB_CREATED:
                self.acknowledged.add(unique)
            else:
                self.errors.append(b" ".join(packet.arguments))
