"""etcd is restored from a backup, or wiped, and an operator mends it (rule 15).

Each node that sees it stops, and its supervisor starts it again. The operator stops all nodes and their
supervisors, waits until their keys have run out, reads every data directory, writes the newest map
(`gearfleet fleet restore`), and starts the nodes. A node that saw nothing may have gone on from the old map:
it is left out, and begins with nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from chaos_tests.sim.shell.etcd import State
from cluster.server.errors import DirectoryError, StoreError
from cluster.server.etcd import EtcdOptions
from cluster.server.recovery import RestoreRefused, Saved, plan_restore, read_saved, restore
from cluster.server.settings import parse_endpoints

if TYPE_CHECKING:
    from chaos_tests.sim.shell.run import Run

FLEET: Final = "default"
NODES: Final = f"/gearfleet/{FLEET}/nodes/".encode()
RETRY_SECONDS: Final = 0.7


class Restoring:
    """Begin with `strike`; `over` is called when the nodes are started again."""

    def __init__(self, run: Run, backup: State | None, over: Callable[[], object]) -> None:
        self._run = run
        self._world = run.world
        self._backup = backup
        self._over = over
        self._saved: dict[str, Saved] = {}
        self._without: list[str] = []

    def strike(self, patience_seconds: float) -> None:
        """Now; the operator comes after this time."""
        self._world.say("etcd restored", "wiped" if self._backup is None else self._backup.revision)
        self._run.map_is_lost = True
        self._run.etcd.restore(self._backup)
        self._world.after(patience_seconds, self._stop_all)

    def _again(self, step: Callable[[], None]) -> None:
        self._world.after(RETRY_SECONDS, step)

    def _stop_all(self) -> None:
        self._world.say("operator stops all nodes")
        for node in self._run.nodes:
            node.wanted = False
            if not node.host.up:
                node.host.power_on()
            if node.running and node.process is not None:
                node.process.kill()
                node.died()
        self._wait_for_keys()

    def _wait_for_keys(self) -> None:
        if any(key.startswith(NODES) for key in self._run.etcd.cluster.state.keys):
            self._again(self._wait_for_keys)
        else:
            self._read_next()

    def _read_next(self) -> None:
        """One directory after the other, each on its own machine."""
        for node in self._run.nodes:
            if node.name not in self._saved:
                process = self._world.process(node.host, f"saved-map {node.name}")
                process.post(self._read, node, process)
                return
        self._plan()

    def _read(self, node: Any, process: Any) -> None:
        try:
            self._saved[node.name] = read_saved(node.settings.data_dir)
        except DirectoryError as error:
            # It never got as far as having a map.
            self._world.say("operator:", error)
            self._saved[node.name] = Saved(node.name, "", "", ())
            self._world.after(0.0, self._done_reading, process, 0.0)
        except OSError as error:
            self._world.say("operator:", error)
            self._world.after(0.0, self._done_reading, process, RETRY_SECONDS)
        else:
            self._world.after(0.0, self._done_reading, process, 0.0)

    def _done_reading(self, process: Any, pause: float) -> None:
        process.die(quietly=False)
        self._world.after(pause, self._read_next)

    def _plan(self) -> None:
        saved = [each for each in self._saved.values() if each.fleet]
        if not any(each.map is not None for each in saved):
            self._start_all()
            return
        process = self._world.process(self._run.nodes[0].host, "fleet restore")
        process.spawn(self._write(saved))

    async def _write(self, saved: list[Saved]) -> None:
        options = EtcdOptions(parse_endpoints(self._run.etcd.endpoints), 0.5)
        try:
            plan = plan_restore(FLEET, saved, self._without)
            if plan.lost:
                self._world.fail("a restored map has slots without a copy", str(plan.lost))
            await restore(options, plan)
        except StoreError as error:
            self._world.say("operator:", error)
            self._again(self._plan)
        except RestoreRefused as error:
            self._world.say("operator:", error)
            if "nothing was lost" in str(error):
                self._start_all()
            elif "is up" in str(error) or "at the same moment" in str(error):
                self._again(self._plan)
            elif "two histories" in str(error):
                self._leave_one_out()
                self._again(self._plan)
            else:
                raise
        else:
            self._start_all()

    def _leave_one_out(self) -> None:
        """The node that went on with the old map; alone it can have acknowledged nothing."""
        for node in self._run.nodes:
            others = [each for name, each in self._saved.items() if name != node.name and each.fleet]
            with contextlib.suppress(RestoreRefused):
                plan_restore(FLEET, others, [node.name])
                self._without.append(node.name)
                del self._saved[node.name]
                node.wipe()
                self._run.account.leave_out()
                return
        self._world.fail("no single node makes the two histories")

    def _start_all(self) -> None:
        self._world.say("operator starts all nodes")
        self._run.map_is_lost = False
        for node in self._run.nodes:
            node.wanted = True
            if not node.running:
                self._world.after(0.0, self._start, node)
        self._over()

    def _start(self, node: Any) -> None:
        if node.host.up and not node.running:
            node.start()
