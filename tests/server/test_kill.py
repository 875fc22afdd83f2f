"""kill -9 under load, again and again: no acknowledged job is lost."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable

from cluster.wire import packets as wire
from tests.support import Node, Peer, PeerClosed

StartNode = Callable[..., Node]

KILLS = 5
IN_FLIGHT = 64


class Load:
    """A submitter and a worker on one node, until it is killed. What was acknowledged and what was run is
    kept over the kills."""

    def __init__(self) -> None:
        self.submitted = 0
        self.acknowledged: set[bytes] = set()
        self.ran: Counter[bytes] = Counter()
        self.progress = threading.Condition()

    def submit_until_killed(self, node: Node) -> None:
        sent: deque[bytes] = deque()
        with node.connect() as client:
            try:
                while True:
                    while len(sent) < IN_FLIGHT:
                        self.submitted += 1
                        name = b"job-%d" % self.submitted
                        client.send(wire.SUBMIT_JOB_BG, b"f", name, name)
                        sent.append(name)
                    client.expect(wire.JOB_CREATED)
                    with self.progress:
                        self.acknowledged.add(sent.popleft())
                        self.progress.notify_all()
            except (PeerClosed, OSError):
                return

    def work_until_killed(self, node: Node, dice: random.Random) -> None:
        with node.connect() as worker:
            try:
                worker.can_do(b"f")
                while True:
                    job = worker.wait_for_job()
                    self.ran[job.payload] += 1
                    if dice.random() < 0.9:  # some are being run when the kill comes
                        worker.complete(job.handle)
            except (PeerClosed, OSError):
                return

    def run_until(self, node: Node, acknowledged: int, dice: random.Random) -> None:
        """Load the node, kill it once so many more jobs have been acknowledged."""
        threads = [
            threading.Thread(target=self.submit_until_killed, args=(node,)),
            threading.Thread(target=self.work_until_killed, args=(node, dice)),
        ]
        goal = len(self.acknowledged) + acknowledged
        for thread in threads:
            thread.start()
        try:
            with self.progress:
                assert self.progress.wait_for(lambda: len(self.acknowledged) >= goal, timeout=60)
        finally:
            node.kill()
            for thread in threads:
                thread.join()


def test_five_kills_under_load_lose_nothing(start_node: StartNode) -> None:
    # Given a node under load, killed five times at any moment and started again
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    node = start_node("--segment-bytes", "256K", "--reclaim-seconds", "0.1")
    load = Load()
    for _ in range(KILLS):
        load.run_until(node, dice.randrange(1, 500), dice)
        node.restart()

    # When a worker takes all that is left
    with node.connect() as worker:
        worker.can_do(b"f")
        while node.status(b"f") != (0, 0, 1):
            job = worker.wait_for_job()
            load.ran[job.payload] += 1
            worker.complete(job.handle)
            while (grabbed := worker.grab()) is not None:
                load.ran[grabbed.payload] += 1
                worker.complete(grabbed.handle)

    # Then every acknowledged job was run; some twice, as at-least-once delivery has it
    lost = load.acknowledged - set(load.ran)
    assert not lost, f"seed {seed}: lost {len(lost)} of {len(load.acknowledged)}: {sorted(lost)[:10]}"
    assert len(load.acknowledged) > KILLS


def test_a_client_learns_of_the_kill_at_once(start_node: StartNode) -> None:
    node = start_node()
    with node.connect() as client:
        handle = client.submit(b"f")
        node.kill()
        assert client.expect_closed() == []
        assert handle


def test_the_port_is_free_again_at_once(start_node: StartNode) -> None:
    # Connections of the dead process must not keep the port from its successor
    node = start_node()
    peers = [node.connect() for _ in range(10)]
    try:
        port = node.port
        node.kill()
        node.options += ["--port", str(port)]
        node.restart()
        assert node.port == port
        assert node.line("version").startswith("OK")
    finally:
        for peer in peers:
            peer.close()


def test_peers_see_the_end(start_node: StartNode) -> None:
    node = start_node()
    peer = Peer(node.host, node.port)
    with peer:
        node.terminate()
        peer.expect_closed()
