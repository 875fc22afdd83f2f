"""Histories written by hand: one line each, a second apart unless said otherwise."""

from cluster.drill.account import place
from cluster.drill.checker import Verdict, check
from cluster.drill.history import History


class Story:
    """A history with a clock that the writer moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history = History(lambda: self.now)
        self.faults: dict[str, int] = {}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, key: str, *, priority: str = "normal", order: int = 0, foreground: bool = False) -> int:
        self.now += 1
        return self.history.submit(key, priority=priority, order=order, foreground=foreground)

    def ack(self, call: int, handle: str, node: str = "") -> None:
        self.now += 1
        self.history.ack(call, handle=handle, node=node)

    def refuse(self, call: int) -> None:
        self.now += 1
        self.history.refused(call, "QUEUE_ERROR")

    def give_up(self, call: int) -> None:
        self.now += 1
        self.history.unknown(call, "timed out")

    def result(self, call: int, failure: str = "") -> None:
        self.now += 1
        self.history.result(call, text=failure)

    def promise(
        self,
        key: str,
        handle: str,
        *,
        priority: str = "normal",
        order: int = 0,
        foreground: bool | None = None,
    ) -> int:
        """Submitted and acknowledged; in the foreground if the handle is of a foreground job."""
        if foreground is None:
            foreground = place(handle)[2]
        call = self.submit(key, priority=priority, order=order, foreground=foreground)
        self.ack(call, handle)
        return call

    def run(self, key: str, handle: str, worker: str = "w1", node: str = "") -> None:
        self.now += 1
        self.history.run(key, worker=worker, handle=handle, node=node)

    def done(self, key: str, handle: str, worker: str = "w1") -> None:
        self.now += 1
        self.history.done(key, worker=worker, handle=handle)

    def failed(self, key: str, handle: str, worker: str = "w1") -> None:
        self.now += 1
        self.history.failed(key, worker=worker, handle=handle)

    def abandoned(self, key: str, handle: str, worker: str = "w1") -> None:
        self.now += 1
        self.history.abandoned(key, worker=worker, handle=handle)

    def work(self, key: str, handle: str, worker: str = "w1") -> None:
        """Run and done."""
        self.run(key, handle, worker)
        self.done(key, handle, worker)

    def fault(self, name: str, *touches: str) -> int:
        self.now += 1
        return self.history.fault(name, *touches)

    def heal(self, fault: int) -> None:
        self.now += 1
        self.history.healed(fault)

    def leads(self, node: str, slot: int, epoch: int) -> None:
        self.history.leads(node, slot, epoch)

    def check(
        self,
        *,
        drained: bool = True,
        queued: int = 0,
        grace_seconds: float = 1.5,
        remember_seconds: float = 0.0,
    ) -> Verdict:
        return check(
            self.history,
            drained=drained,
            queued=queued,
            grace_seconds=grace_seconds,
            remember_seconds=remember_seconds,
        )
