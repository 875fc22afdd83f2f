"""A worker whose machine vanished, so that no packet ever says so, is found within seconds."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer, need_command, needs_root
from tests.support.machine import NEEDS
from tests.support.peer import PeerTimeout

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]

pytestmark = needs_root()

KERNEL = tuple(int(digits) for digits in re.findall(r"\d+", os.uname().release)[:2])
CLONE_NEWNET = 0x40000000
SERVER_ADDRESS = "10.213.7.1"
WORKER_ADDRESS = "10.213.7.2"
# What the defaults promise: 5 s of silence, then three probes 2 s apart; and the margin of a busy machine.
FOUND_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class TwoMachines:
    """Two network namespaces of their own, joined by a cable that can be pulled."""

    ip: str
    server: str
    worker: str

    def prefix(self, namespace: str) -> list[str]:
        return [self.ip, "netns", "exec", namespace]

    def connect(self, namespace: str, host: str, port: int) -> Peer:
        """A connection that is made in a namespace and stays in it."""
        peers: list[Peer] = []
        problems: list[BaseException] = []

        def enter_and_connect() -> None:
            try:
                # Only this thread changes its namespace; the socket keeps it.
                descriptor = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(descriptor)
                peers.append(Peer(host, port))
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=enter_and_connect)
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return peers[0]

    def pull_the_cable(self) -> None:
        """From now on every packet between the two is lost, and neither is told."""
        subprocess.run([self.ip, "-n", self.worker, "link", "set", "cable", "down"], check=True)


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    ip = need_command("ip")
    name = uuid.uuid4().hex[:8]
    two = TwoMachines(ip, f"gf-server-{name}", f"gf-worker-{name}")

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True)

    try:
        run("netns", "add", two.server)
        run("netns", "add", two.worker)
        # Both ends are made inside: nothing of this touches the machine's own network.
        run(
            *("-n", two.server, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "cable", "netns", two.worker),
        )
        for namespace, address in ((two.server, SERVER_ADDRESS), (two.worker, WORKER_ADDRESS)):
            run("-n", namespace, "address", "add", f"{address}/24", "dev", "cable")
            run("-n", namespace, "link", "set", "cable", "up")
            run("-n", namespace, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as problem:
        _remove(ip, two)
        pytest.skip(f"{NEEDS}network namespaces: {problem.stderr.decode().strip()}")
    yield two
    _remove(ip, two)


def _remove(ip: str, two: TwoMachines) -> None:
    for namespace in (two.server, two.worker):
        subprocess.run([ip, "netns", "delete", namespace], check=False, capture_output=True)


def test_a_vanished_worker_s_job_is_given_to_another_within_seconds(
    machines: TwoMachines, start_node: StartNode
) -> None:
    # Given a node on one machine, and a worker on another that holds a job
    node = start_node(prefix=machines.prefix(machines.server), host="0.0.0.0", durability="memory")
    with (
        machines.connect(machines.server, "127.0.0.1", node.port) as client,
        machines.connect(machines.server, "127.0.0.1", node.port) as second,
        machines.connect(machines.worker, SERVER_ADDRESS, node.port) as vanished,
    ):
        handle = client.submit(b"f", b"payload")
        vanished.can_do(b"f")
        assert vanished.grab_one().handle == handle
        second.can_do(b"f")
        second.sleep()
        # When the worker's machine vanishes
        machines.pull_the_cable()
        began = time.monotonic()
        # Then another worker is woken for its job within seconds
        second.expect(wire.NOOP, timeout_seconds=FOUND_SECONDS_MAX)
        assert second.grab_one().handle == handle
        assert time.monotonic() - began < FOUND_SECONDS_MAX
        # And the client, which knows nothing of this, gets its result
        second.complete(handle, b"result")
        client.expect(wire.WORK_COMPLETE, handle, b"result")


def test_a_vanished_client_with_output_on_the_way_is_found_too(
    machines: TwoMachines, start_node: StartNode
) -> None:
    # Given a client on another machine, which waits for a job, and short times
    options = ["--keepalive-idle-seconds", "60", "--user-timeout-seconds", "2"]
    node = start_node(*options, prefix=machines.prefix(machines.server), host="0.0.0.0", durability="memory")
    with (
        machines.connect(machines.worker, SERVER_ADDRESS, node.port) as vanished,
        machines.connect(machines.server, "127.0.0.1", node.port) as worker,
    ):
        handle = vanished.submit(b"f")
        worker.can_do(b"f")
        worker.grab_one()
        # When its machine vanishes while data for it are on their way
        machines.pull_the_cable()
        worker.send(wire.WORK_DATA, handle, b"data")
        # Then it is found by what it does not acknowledge
        deadline = time.monotonic() + FOUND_SECONDS_MAX
        while WORKER_ADDRESS in "".join(worker.table("workers")):
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)


@pytest.mark.skipif(KERNEL < (6, 15), reason=f"{NEEDS}Linux 6.15 or newer: else probes are minutes apart")
def test_a_vanished_client_whose_window_was_closed_is_found_too(
    machines: TwoMachines, start_node: StartNode
) -> None:
    # Given a client on another machine that does not read, so that its window is closed
    options = ["--keepalive-idle-seconds", "60", "--user-timeout-seconds", "2"]
    node = start_node(*options, prefix=machines.prefix(machines.server), host="0.0.0.0", durability="memory")
    with (
        machines.connect(machines.worker, SERVER_ADDRESS, node.port) as vanished,
        machines.connect(machines.server, "127.0.0.1", node.port) as worker,
    ):
        handle = vanished.submit(b"f")
        worker.can_do(b"f")
        worker.grab_one()
        for _ in range(16):
            worker.send(wire.WORK_DATA, handle, bytes(1024 * 1024))
        worker.settle()
        # And its kernel's answers to several probes have kept it alive
        with pytest.raises(PeerTimeout):
            worker.receive(timeout_seconds=5)
        assert WORKER_ADDRESS in "".join(worker.table("workers"))
        # When its machine vanishes
        machines.pull_the_cable()
        # Then it is found by the probes that nobody answers, and the log says so
        event = node.wait_for_event(
            "disconnected a peer that acknowledges nothing", timeout_seconds=FOUND_SECONDS_MAX
        )
        assert event["peer"] == WORKER_ADDRESS
