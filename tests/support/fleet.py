"""Fleet: an etcd and several real nodes on this machine, and what befalls them.

    with Fleet(directory) as fleet:         # a, b and c
        fleet.start()                       # returns when every slot has a primary that serves
        fleet.kill("a")
        fleet.wait_until_serving()
        fleet.restart("a")
        fleet.wait_until_in_sync()

Each node has the same ports for life, of those that no outgoing connection gets: else a node that is started
again may find its port taken, and a connect to a dead node may meet itself.

The benchmarks use it, too.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from cluster.server.control import ControlClient, ControlError, DrainStep, FleetStatus
from tests.support.etcd import Etcd
from tests.support.node import Node, _event
from tests.support.peer import Peer
from tests.support.ports import lasting_port
from tests.support.waiting import eventually

FLEET_SECONDS = 30.0  # for what takes a second on an idle machine
LOOK_SECONDS = 0.05  # between two looks at the whole fleet, which cost its nodes something
# Leases that run out soon: for tests that wait for it.
SHORT_LEASE = ("--lease-seconds", "2", "--keepalive-seconds", "0.3", "--rpc-timeout-seconds", "0.5")

Answer = TypeVar("Answer")


class Refused(NamedTuple):
    """How a node ended that did not want to start."""

    status: int
    reason: str


class FleetNode(Node):
    """A node of a fleet; see Fleet."""

    def __init__(self, name: str, data_dir: Path, *options: str, **settings: Any) -> None:
        super().__init__(data_dir, **settings)
        self.name = name
        self.port, self.peer_port, self.http_port = (lasting_port() for _ in range(3))
        self.frozen = False
        self.options = [
            *("--name", name, "--advertise", self.host, "--port", str(self.port)),
            *("--peer-port", str(self.peer_port), "--http-port", str(self.http_port)),
            *options,
        ]

    def spawn(self) -> None:
        self.start_line = len(self.log_lines)
        super().spawn()

    @property
    def serves(self) -> bool:
        """It runs, and is not frozen."""
        return self.running and not self.frozen

    def suspend(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self.frozen = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)
        self.frozen = False

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of its last start with this event."""
        lines = self.log_lines[self.start_line :]
        return [event for event in _events(lines) if event.get("event") == name]

    def reasons(self, part: str) -> list[str]:
        """What its log gives as a reason, where this is part of it; of its last start."""
        events = _events(self.log_lines[self.start_line :])
        return [str(event["reason"]) for event in events if part in str(event.get("reason", ""))]

    def wait_for_end(self, timeout_seconds: float = FLEET_SECONDS) -> Refused:
        """Wait until it has ended by itself; returns its status and the last error in its log."""
        status = self.wait_for_exit(timeout_seconds)
        errors = [event for event in _events(self.log_lines) if event.get("level") == "error"]
        reasons = [str(event["reason"]) for event in errors if "reason" in event]
        return Refused(status, reasons[-1] if reasons else self.log_tail())

    def ask(self, question: Callable[[ControlClient], Awaitable[Answer]]) -> Answer:
        """One question at its control service."""

        async def run() -> Answer:
            async with ControlClient(self.host, self.peer_port) as client:
                return await question(client)

        return asyncio.run(run())

    def describe(self, *, slots: bool = False) -> FleetStatus:
        """The fleet as this node sees it. Raises ControlError."""
        return self.ask(lambda client: client.describe(slots=slots))


class Fleet:
    """See the module's docstring."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = ("a", "b", "c"),
        *options: str,
        etcd: Etcd | None = None,
        fleet: str = "test",
        durability: str = "fsync",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`etcd`: one that others share; without it the fleet has its own."""
        self.directory = directory
        self.fleet = fleet
        self.etcd = etcd if etcd is not None else Etcd()
        self._own_etcd = etcd is None
        self._options = options
        self._settings: dict[str, Any] = {"durability": durability, "environment": environment}
        self.nodes: dict[str, FleetNode] = {}
        for name in names:
            self.make(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- life

    def make(self, name: str, *options: str, **settings: Any) -> FleetNode:
        """A node that is not started yet."""
        settings = {**self._settings, **settings}
        data_dir = settings.pop("data_dir", self.directory / name)
        etcd = ("--etcd", self.etcd.address, "--fleet", self.fleet)
        node = FleetNode(name, data_dir, *etcd, *self._options, *options, **settings)
        self.nodes[name] = node
        return node

    def start(self, *, wait: bool = True) -> Self:
        """Start etcd and all nodes that do not run, and wake those that are frozen."""
        if self._own_etcd:
            self.etcd.start()
        for node in self.nodes.values():
            if node.running and node.frozen:
                node.resume()
        for node in self.nodes.values():
            if not node.running:
                node.spawn()
        if wait:
            self.wait_until_serving()
        return self

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        if self._own_etcd:
            self.etcd.close()

    def add(self, name: str, *options: str, **settings: Any) -> FleetNode:
        """One node more, started."""
        node = self.make(name, *options, **settings)
        node.spawn()
        return node

    def kill(self, *names: str) -> None:
        """kill -9, all at once."""
        for name in names:
            self.nodes[name].signal(signal.SIGKILL)
        for name in names:
            self.nodes[name].kill()

    def freeze(self, name: str) -> None:
        self.nodes[name].suspend()

    def wake(self, name: str) -> None:
        self.nodes[name].resume()

    def restart(self, *names: str) -> None:
        """Start nodes again that have ended."""
        for name in names:
            self.nodes[name].spawn()

    def drain(self, name: str, *, restart: bool = False, timeout_seconds: float = FLEET_SECONDS) -> DrainStep:
        """`gearfleet drain`: the node gives everything away and ends."""

        async def follow(client: ControlClient) -> DrainStep:
            steps = [step async for step in client.drain(name, restart=restart)]
            return steps[-1]

        last = self.nodes[name].ask(follow)
        self.nodes[name].wait_for_exit(timeout_seconds)
        return last

    # ---- how it stands

    @property
    def addresses(self) -> str:
        """Where clients find all nodes."""
        return ",".join(node.address for node in self.nodes.values())

    @property
    def serving_nodes(self) -> list[FleetNode]:
        """Those that run and are not frozen."""
        return [node for node in self.nodes.values() if node.serves]

    def status(self, *, slots: bool = False) -> FleetStatus:
        """The fleet as the first node sees it that answers."""
        nodes = self.serving_nodes
        for node in nodes[:-1]:
            try:
                return node.describe(slots=slots)
            except ControlError:
                continue
        return nodes[-1].describe(slots=slots)

    def leads(self) -> dict[str, int]:
        """How many slots each node leads."""
        return {node.name: node.leads for node in self.status().nodes}

    def primaries(self) -> list[str]:
        """Who leads each slot."""
        return [slot.primary for slot in self.status(slots=True).slots]

    def unserved(self) -> str:
        """Why not all slots are served, in the words of the nodes themselves; empty: they are."""
        served: set[int] = set()
        total = 0
        for node in self.serving_nodes:
            try:
                status = node.describe(slots=True)
            except ControlError as error:
                return f"{node.name}: {error}"
            if not status.slots:
                return f"{node.name} has no map yet"
            total = len(status.slots)
            served |= {slot.slot for slot in status.slots if slot.primary == node.name and slot.serving}
        if len(served) < total or not total:
            return f"{total - len(served)} slots are not served"
        return ""

    def wait_until_serving(self, timeout_seconds: float = FLEET_SECONDS) -> None:
        """Wait until every slot is served by one of the nodes that run."""
        self._wait(self.unserved, "serves", timeout_seconds)

    def out_of_sync(self) -> str:
        """What the fleet still has to mend; empty: every copy that it can have is there."""
        try:
            status = self.status()
        except ControlError as error:
            return str(error)
        nodes = {node.name: node for node in status.nodes}
        for node in self.serving_nodes:
            if node.name not in nodes or nodes[node.name].state != "up":
                return f"{node.name} is not up"
        if status.under_replicated:
            return f"{status.under_replicated} slots are under-replicated"
        if learning := sum(node.learning for node in status.nodes):
            return f"{learning} copies are being made"
        leads = [node.leads for node in status.nodes if node.state == "up"]
        if max(leads) - min(leads) > max(2, sum(leads) // 20):
            return f"leadership is uneven: {leads}"
        return self.unserved()

    def wait_until_in_sync(self, timeout_seconds: float = FLEET_SECONDS) -> None:
        """Wait until nothing is left to mend: all copies are there, leadership is even."""
        self._wait(self.out_of_sync, "is in sync", timeout_seconds)

    def _wait(self, problem: Callable[[], str], what: str, timeout_seconds: float) -> None:
        last = ""

        def done() -> bool:
            nonlocal last
            last = problem()
            return not last

        try:
            eventually(done, timeout_seconds=timeout_seconds, poll_seconds=LOOK_SECONDS)
        except AssertionError as error:
            logs = "\n".join(f"-- {node.name}\n{node.log_tail()}" for node in self.nodes.values())
            raise AssertionError(f"{error}\nno fleet that {what}: {last}\n{logs}") from None

    # ---- connections

    def connect(self, name: str) -> Peer:
        return self.nodes[name].connect()


def _events(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [event for line in lines if (event := _event(line)) is not None]
