"""kill -9 under load, again and again: every acknowledged job must be worked in the end.

Clients submit background jobs with unique keys, and workers complete them meanwhile. A job counts as
acknowledged when its JOB_CREATED was read, and as worked when its WORK_COMPLETE was handed to a connection
that was still there: a job that a worker had got and not answered when the node died must come again.
"""

import argparse
import random
import select
import socket
import time
from collections import Counter

from benchmarks import report
from benchmarks.million import queued_jobs
from benchmarks.servers import HOST, Server, gearfleet, running
from cluster.wire import Decoder, packets, request, split_arguments

FUNCTION = b"kills"
# Submits wait while so many jobs are queued: submits and completions then go on side by side until the kill.
QUEUED_MAX = 20_000
DRAIN_SECONDS_MAX = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=20, help="how often the node is killed (%(default)s)")
    parser.add_argument(
        "--load-seconds", type=float, default=0.3, help="between two kills, at most (%(default)s)"
    )
    parser.add_argument("--in-flight", type=int, default=64, help="submits per client (%(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="(%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=4, help="connections that work meanwhile (%(default)s)"
    )
    parser.add_argument(
        "--durability",
        default="fsync",
        choices=("memory", "os", "fsync"),
        help="memory must lose jobs: it shows that this test can fail (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the moments of the kills; a new one each time"
    )


class Ledger:
    """What was promised and what was done."""

    def __init__(self) -> None:
        self.submitted = 0
        self.refused = 0
        self.acknowledged: set[bytes] = set()
        self.worked: Counter[bytes] = Counter()

    def full(self) -> bool:
        return len(self.acknowledged) - len(self.worked) >= QUEUED_MAX

    def lost(self) -> set[bytes]:
        return self.acknowledged - self.worked.keys()

    def repeated(self) -> int:
        return sum(count - 1 for count in self.worked.values())


class SubmittingPeer:
    """A connection that keeps submits in flight; answers come in the order of the submits."""

    def __init__(self, address: tuple[str, int], ledger: Ledger, in_flight: int) -> None:
        self.connection = socket.create_connection(address)
        self._decoder = Decoder(from_server=True)
        self._ledger = ledger
        self._waiting: list[bytes] = []
        self._in_flight = in_flight
        self.submit()

    def submit(self) -> None:
        """Fill up what may be in flight."""
        count = self._in_flight - len(self._waiting)
        if count <= 0 or self._ledger.full():
            return
        uniques = [b"job-%d" % (self._ledger.submitted + number) for number in range(count)]
        self._ledger.submitted += count
        self._waiting += uniques
        submits = (
            request(packets.SUBMIT_JOB_BG, FUNCTION, unique, b"payload of " + unique) for unique in uniques
        )
        self.connection.sendall(b"".join(submits))

    def take(self, data: bytes, *, more: bool) -> None:
        answers = self._decoder.feed(data)
        for unique, (packet_type, _) in zip(self._waiting, answers, strict=False):
            if packet_type == packets.JOB_CREATED:
                self._ledger.acknowledged.add(unique)
            else:
                self._ledger.refused += 1
        del self._waiting[: len(answers)]
        if more:
            self.submit()


class WorkingPeer:
    """A connection that completes one job after the other."""

    def __init__(self, address: tuple[str, int], ledger: Ledger) -> None:
        self.connection = socket.create_connection(address)
        self._decoder = Decoder(from_server=True)
        self._ledger = ledger
        self.connection.sendall(request(packets.CAN_DO, FUNCTION) + request(packets.GRAB_JOB_UNIQ))

    def take(self, data: bytes, *, more: bool) -> None:
        for packet_type, body in self._decoder.feed(data):
            if packet_type == packets.JOB_ASSIGN_UNIQ:
                handle, _, unique, payload = split_arguments(packet_type, body)
                if payload != b"payload of " + unique:
                    raise AssertionError(f"job {unique!r} came back with another payload: {payload!r}")
                if more:
                    done = request(packets.WORK_COMPLETE, handle, b"") + request(packets.GRAB_JOB_UNIQ)
                    self.connection.sendall(done)
                    self._ledger.worked[unique] += 1
            elif packet_type == packets.NO_JOB:
                self.connection.sendall(request(packets.PRE_SLEEP))
            elif packet_type == packets.NOOP:
                self.connection.sendall(request(packets.GRAB_JOB_UNIQ))


Peers = dict[int, SubmittingPeer | WorkingPeer]


def run(options: argparse.Namespace) -> int:
    report.header(options)
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    report.note(f"seed {seed}")
    dice = random.Random(seed)
    ledger = Ledger()
    back_seconds = []
    with running(gearfleet(options.durability)) as server:
        for kill in range(options.times):
            report.progress(f"kill {kill + 1}/{options.times}, {len(ledger.acknowledged):,} acknowledged")
            load_until_kill(server, ledger, options, dice.uniform(0.1, 1.0) * options.load_seconds)
            back_seconds.append(server.start())
        drain(server, ledger, options.workers)
    lost = ledger.lost()
    report.table(
        f"kill -9 of the node, {options.times} times under load, durability {options.durability}",
        ("submitted", "refused", "acknowledged", "worked", "lost", "run twice", "restart s, median"),
        [
            (
                *(report.number(ledger.submitted), report.number(ledger.refused)),
                *(report.number(len(ledger.acknowledged)), report.number(len(ledger.worked))),
                *(report.number(len(lost)), report.number(ledger.repeated())),
                f"{report.median(back_seconds) or 0:.2f}",
            )
        ],
    )
    for unique in sorted(lost)[:10]:
        report.note(f"lost: {unique.decode()}")
    return 1 if lost else 0


def load_until_kill(server: Server, ledger: Ledger, options: argparse.Namespace, seconds: float) -> None:
    address = (HOST, server.port)
    peers: Peers = {}
    try:
        for _ in range(options.workers):
            _add(peers, WorkingPeer(address, ledger))
        for _ in range(options.clients):
            _add(peers, SubmittingPeer(address, ledger, options.in_flight))
        _serve(peers, time.monotonic() + seconds)
        server.kill()
        # What had left the node before it died counts: it was promised.
        for peer in peers.values():
            _read_rest(peer)
    finally:
        for peer in peers.values():
            peer.connection.close()


def drain(server: Server, ledger: Ledger, workers: int) -> None:
    """Work until the node says that nothing is left, or time is up."""
    peers: Peers = {}
    for _ in range(max(1, workers)):
        _add(peers, WorkingPeer((HOST, server.port), ledger))
    limit = time.monotonic() + DRAIN_SECONDS_MAX
    while time.monotonic() < limit:
        _serve(peers, time.monotonic() + 0.5)
        # Idle workers are not enough: a node may hold back a job for the worker that had it.
        if queued_jobs(server) == 0:
            break
    else:
        report.note(f"the node still lists {queued_jobs(server)} jobs after {DRAIN_SECONDS_MAX:.0f} s")
    for peer in peers.values():
        peer.connection.close()


def _add(peers: Peers, peer: SubmittingPeer | WorkingPeer) -> None:
    peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peers[peer.connection.fileno()] = peer


def _serve(peers: Peers, until: float) -> None:
    """Answer what arrives until the time is up; a connection that ends earlier is an error."""
    poller = select.poll()
    for descriptor in peers:
        poller.register(descriptor, select.POLLIN)
    submitting = [peer for peer in peers.values() if isinstance(peer, SubmittingPeer)]
    while (left := until - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left * 1000):
            data = peers[descriptor].connection.recv(65536)
            if not data:
                raise ConnectionError("the node closed a connection although it was not killed")
            peers[descriptor].take(data, more=True)
        for peer in submitting:
            peer.submit()


def _read_rest(peer: SubmittingPeer | WorkingPeer) -> None:
    try:
        while data := peer.connection.recv(65536):
            peer.take(data, more=False)
    except ConnectionError:
        pass
