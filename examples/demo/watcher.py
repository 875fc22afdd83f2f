"""How the fleet stands, as its nodes say: asked all the time, in a thread with an event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from cluster.drill.history import History
from cluster.server.control import ControlClient, ControlError, FleetStatus
from examples.demo.processes import HOST, Node

ASK_EVERY_SECONDS = 0.1
ANSWER_SECONDS_MAX = 0.5  # who takes longer does not serve
DRAIN_SECONDS_MAX = 60.0

Answer = TypeVar("Answer")


class Watcher:
    """Asks each node in turn. `status` is the newest answer, `answering` who gave one just now."""

    def __init__(self, nodes: Sequence[Node], history: History) -> None:
        self._nodes = nodes
        self._history = history
        self._epochs: dict[int, int] = {}  # by slot, the newest that is in the history
        self._revision = -1  # of the map that is in the history
        self._latest: dict[str, FleetStatus] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    @property
    def status(self) -> FleetStatus | None:
        return max(list(self._latest.values()), key=lambda status: status.revision, default=None)

    @property
    def answering(self) -> frozenset[str]:
        return frozenset(self._latest)

    def serving(self) -> int:
        """Slots whose primary is there and has not lost too many copies."""
        status = self.status
        if status is None:
            return 0
        led = sum(node.leads for node in status.nodes if node.name in self.answering)
        return max(0, led - status.unavailable)

    def serving_exactly(self) -> int:
        """The same, by what each primary says of each slot. Takes some milliseconds."""

        async def ask(node: Node) -> FleetStatus | None:
            try:
                return await _ask(node, lambda client: client.describe(slots=True))
            except ControlError:
                return None

        async def ask_all() -> int:
            names = self.answering
            found = await asyncio.gather(*(ask(node) for node in self._nodes if node.name in names))
            return sum(
                slot.serving and slot.primary == status.answered_by
                for status in found
                if status is not None
                for slot in status.slots
            )

        return self._do(ask_all())

    def whole(self) -> bool:
        """All nodes are up, each slot has all its copies, and who leads what is settled."""
        status = self.status
        if status is None or not status.nodes or len(self.answering) < len(self._nodes):
            return False
        leads = [node.leads for node in status.nodes]
        return (
            status.under_replicated == 0
            and all(node.state == "up" and not node.learning for node in status.nodes)
            and max(leads) - min(leads) <= 0.05 * sum(leads)
            and self.serving() == sum(leads) > 0
        )

    def drain(self, name: str) -> None:
        """`gearfleet drain NAME`, asked of another node. Returns when it has given everything away."""
        via = next(node for node in self._nodes if node.name != name)

        async def run() -> None:
            async with ControlClient(HOST, via.peer_port, timeout_seconds=DRAIN_SECONDS_MAX) as client:
                async for _ in client.drain(name):
                    pass

        self._do(run())

    def _do(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DRAIN_SECONDS_MAX)

    def _run(self) -> None:
        tasks = [self._loop.create_task(self._follow(node)) for node in self._nodes]
        self._loop.run_forever()
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _follow(self, node: Node) -> None:
        while True:
            if node.runs:
                try:
                    status = await _ask(node, lambda client: client.describe())
                    self._latest[node.name] = status
                    if status.revision > self._revision:
                        self._revision = status.revision
                        self._note_leaders(await _ask(node, lambda client: client.describe(slots=True)))
                except ControlError:
                    self._latest.pop(node.name, None)
            else:
                self._latest.pop(node.name, None)
            await asyncio.sleep(ASK_EVERY_SECONDS)

    def _note_leaders(self, status: FleetStatus) -> None:
        for slot in status.slots:
            if slot.primary and slot.epoch > self._epochs.get(slot.slot, -1):
                self._epochs[slot.slot] = slot.epoch
                self._history.leads(slot.primary, slot.slot, slot.epoch)


async def _ask(node: Node, question: Callable[[ControlClient], Awaitable[Answer]]) -> Answer:
    async with ControlClient(HOST, node.peer_port, timeout_seconds=ANSWER_SECONDS_MAX) as client:
        return await question(client)
