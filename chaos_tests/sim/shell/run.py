"""One run of the world "shell": a fleet of real servers, users, troubles, and the judgement.

    run(seed)           raises Broken; returns what happened

First the safety phase: troubles happen by schedule (troubles.py), and after every few callbacks no slot may
have two primaries in an epoch, nothing acknowledged may be missing from the disks of in-sync members, and so
on (sim/turns/account.py). Then everything is healed, and the fleet must come to rest: all nodes in sync, all
acknowledged jobs done, all queues empty. At last the history is judged (cluster/drill/checker.py).
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any, Final

from aetcd import rpc  # type: ignore[import-untyped]

from chaos_tests.sim.shell.etcd_members import EtcdMembers
from chaos_tests.sim.shell.fleet import LEASE_SECONDS, RECLAIM_SECONDS, Node
from chaos_tests.sim.shell.kernel import World
from chaos_tests.sim.shell.replaced import SLOTS
from chaos_tests.sim.shell.troubles import Trouble, Troubles, has_bursts, schedule
from chaos_tests.sim.shell.users import Client, Told, Worker
from chaos_tests.sim.shell.workload import HAClient, HAWorker
from chaos_tests.sim.turns.account import Account
from chaos_tests.sim.worlds import STEPS, Broken
from cluster.drill.checker import Verdict, check
from cluster.drill.history import History
from cluster.placement import View, decode_map
from cluster.placement.view import FleetMap

TROUBLED_SECONDS: Final = 12.0
HEALED_SECONDS_MAX: Final = 90.0
ACCOUNT_SECONDS: Final = 0.5  # how often disks are compared with what was promised
# So many callbacks in this time are no work, but a loop that never sleeps.
SPIN_SECONDS: Final = 0.5
SPIN_CALLBACKS: Final = 40_000
LOOK_SECONDS: Final = 0.05  # how often it is looked whether the fleet is at rest
# So long after its end a fault still has effects.
GRACE_SECONDS: Final = LEASE_SECONDS + RECLAIM_SECONDS + 1.0
RESTART_SECONDS: Final = (0.1, 1.5)  # by a supervisor, after a node has ended by itself
MAP_KEY: Final = b"/gearfleet/default/map"
NODES_PREFIX: Final = b"/gearfleet/default/nodes/"


@dataclass
class Result:
    """What came of a run."""

    seed: int
    digest: int  # the same for the same seed
    callbacks: int
    seconds: float  # virtual
    troubles: list[Trouble]
    verdict: Verdict
    history: History = field(repr=False)


class _Time:
    """A history's clock. It lets go of the world when the run is over."""

    def __init__(self, world: World) -> None:
        self.world: World | None = world

    def __call__(self) -> float:
        return self.world.now if self.world is not None else 0.0


class Run:
    """One seed."""

    def __init__(self, seed: int, schedule: list[Trouble], *, trace: bool = False) -> None:
        self.world = world = World(seed, trace=trace)
        self.dice = world.dice_for("run")
        self.etcd = EtcdMembers(world)
        self.account = Account(SLOTS, RECLAIM_SECONDS)
        segment_bytes = self.dice.choice((1024, 8192, 1 << 20))
        self.nodes = [
            Node(world, name, self.etcd.endpoints, 3, self.account, segment_bytes) for name in "abc"
        ]
        self.hosts = {node.name: node for node in self.nodes}
        self._time = _Time(world)
        self.history = History(self._time)
        self.told = Told(self.history)
        names = list(self.hosts)
        self.clients: list[Client | HAClient]
        self.workers: list[Worker | HAWorker]
        if has_bursts(seed):
            other = self.dice.choice((Client, HAClient))(world, "client1", names, self.told)
            self.clients = [HAClient(world, "client0", names, self.told, bursts=True), other]
            self.workers = [HAWorker(world, "worker0", names, self.told, bursts=True)]
        else:
            self.clients = [
                self.dice.choice((Client, HAClient))(world, f"client{number}", names, self.told)
                for number in range(2)
            ]
            self.workers = [
                self.dice.choice((Worker, HAWorker))(world, f"worker{number}", names, self.told)
                for number in range(2)
            ]
        self.users = {user.name: user for user in (*self.clients, *self.workers)}
        self.schedule = schedule
        self.troubles = Troubles(self)
        self.fleet_map: FleetMap | None = None
        self._map_value = 0, b""
        self._led: set[tuple[int, int, str]] = set()  # slot, epoch and node, of all that served
        self.map_is_lost = False  # etcd has an old one, or none, until an operator mends it
        self._without_lease: dict[str, int] = {}  # nodes, and the fault that it is
        self._accounted_at = 0.0
        self._look_at = 0.0
        self._counted = world.now, 0  # callbacks
        self._began = world.now
        for node in self.nodes:
            node.fleet = self  # type: ignore[attr-defined]
            node.on_exit = self._exited
            node.on_assigned = self._assigned
        world.on_step = self._step

    def play(self) -> Result:
        world = self.world
        with world.installed():
            self.etcd.start()
            for node in self.nodes:
                world.after(self.dice.uniform(0.0, 0.1), node.start)
            for user in self.users.values():
                user.start(world.now + TROUBLED_SECONDS)
            for trouble in self.schedule:
                world.at(self._began + trouble.at, self.troubles.begin, trouble)
            world.run(TROUBLED_SECONDS)
            self.troubles.heal()
            if not world.run_until(self._at_rest, HEALED_SECONDS_MAX):
                raise Broken("no rest after healing", self._owed())
            self._check()
            verdict = check(self.history, drained=True, grace_seconds=GRACE_SECONDS)
            if not verdict.valid:
                kinds = [problem.partition(": ")[0].lstrip("0123456789 ") for problem in verdict.problems]
                raise Broken(", ".join(kinds), "; ".join(verdict.problems))
            self._time.world = None
            return Result(
                world.seed,
                world.digest,
                world.callbacks,
                world.now - self._began,
                self.schedule,
                verdict,
                self.history,
            )

    # ---- etcd, as it is

    def view(self) -> View | None:
        """The map of this moment; None while there is none."""
        found = self.etcd.cluster.state.keys.get(MAP_KEY)
        if found is None or self.map_is_lost:
            return None
        if self.fleet_map is None or self._map_value != (found.mod_revision, found.value):
            # An etcd that was wiped counts its revisions anew.
            self._map_value = found.mod_revision, found.value
            self.fleet_map = decode_map(found.value, found.mod_revision)
            self.account.changed = True
            self._accounted_at = 0.0
        return View(found.mod_revision, None, self.fleet_map, {})

    def _note_leaders(self, node: Node) -> None:
        """Slots that it serves, in an epoch that nobody has heard of."""
        for slot, lead in node.part.replicator.leads.items():
            led = slot, lead.epoch, node.name
            if led not in self._led and node.node.log.slots[slot].serving:
                self._led.add(led)
                self.history.leads(node.name, slot, lead.epoch)

    def whole(self) -> bool:
        """All nodes are up and in sync everywhere."""
        view = self.view()
        if view is None or view.map is None:
            return False
        wanted = sorted(node.identity for node in self.nodes)
        return all(node.alive for node in self.nodes) and all(
            list(row.in_sync) == wanted for row in view.map.slots
        )

    def remove_key(self, node: str) -> None:
        key = NODES_PREFIX + node.encode()
        request = rpc.TxnRequest(
            success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))]
        )
        self.world.say("key removed", node)
        members = self.etcd.cluster.members
        member = next((each for each in members if each.connected), members[0])
        self.etcd.cluster.txn(member.number, request, lambda reply: None)

    # ---- nodes that end by themselves

    def _exited(self, node: Node) -> None:
        fault = self.history.fault("exit", node.name, note=node.reason)
        if "is damaged" in node.reason or "no identity file" in node.reason:
            node.wipe()
        pause = self.dice.uniform(*RESTART_SECONDS)

        def restart() -> None:
            self.history.healed(fault)
            if not node.running and node.host.up and node.wanted:
                node.start()

        self.world.after(pause, restart)

    # ---- the rules

    def _step(self) -> None:
        """After every few callbacks."""
        account = self.account
        now = self.world.now
        try:
            for node in self.nodes:
                if node.alive and node.has_changed() and not self.map_is_lost:
                    account.watch(node, now)  # type: ignore[arg-type]
                    self._note_leaders(node)
            self._look_at_leases()
            if self.told.news:
                self._acknowledged()
            if now - self._accounted_at > ACCOUNT_SECONDS:
                self._check()
            if now - self._counted[0] > SPIN_SECONDS:
                if self.world.callbacks - self._counted[1] > SPIN_CALLBACKS:
                    raise Broken("somebody spins")
                self._counted = now, self.world.callbacks
        except AssertionError as error:
            self.world.fail_by(error)

    def _look_at_leases(self) -> None:
        """A node that has none is a fault, whatever it came from."""
        for node in self.nodes:
            until = node.part._lease_until if node.alive else 0.0
            if 0.0 < until <= self.world.now:
                if node.name not in self._without_lease:
                    self._without_lease[node.name] = self.history.fault("lease ran out", node.name)
            elif node.name in self._without_lease:
                self.history.healed(self._without_lease.pop(node.name))

    def _assigned(self, node: Node, handle: bytes) -> None:
        """A job is about to be sent to a worker."""
        view = self.view()
        if view is not None:
            try:
                self.account.assigned(node, handle, view, self.world.now, kept=False)  # type: ignore[arg-type]
            except AssertionError as error:
                self.world.fail_by(error)

    def _acknowledged(self) -> None:
        news, account = self.told.news, self.account
        while news:
            handle, key, over_before = news.popleft()
            account.acknowledge(handle, b"f", key, over_before)
        struck, self.troubles.struck = self.troubles.struck, []
        for disaster in struck:
            disaster()

    def _check(self) -> None:
        self._accounted_at = self.world.now
        view = self.view()
        account = self.account
        account.ran = set(self.told.done)
        if view is not None and account.changed:
            account.check(self.hosts, view)  # type: ignore[arg-type]

    # ---- rest

    def _at_rest(self) -> bool:
        if self.world.now < self._look_at:
            return False
        self._look_at = self.world.now + LOOK_SECONDS
        return not self._owed()

    def _owed(self) -> str:
        if self.world.now < self._began + TROUBLED_SECONDS:
            return "time"
        told = self.told
        missing = [handle.decode() for handle in told.acknowledged if handle not in told.done]
        if missing:
            return f"{len(missing)} jobs, {missing[:5]}"
        if not self.whole():
            return "nodes in sync: " + ", ".join(
                f"{node.name} {'up' if node.alive else 'down'} {node.reason}" for node in self.nodes
            )
        waiting = {client.name: client.waiting for client in self.clients}
        if any(waiting.values()):
            return f"answers to clients: {waiting}"
        left = {node.name: node.node.ledger.count() for node in self.nodes}
        return f"empty queues: {left}" if any(left.values()) else ""


def run(seed: int, *, steps: int = STEPS, trace: bool = False, skip: frozenset[int] = frozenset()) -> Result:
    """Play one seed, with its first `steps` troubles, without those in `skip`. Raises Broken."""
    gc.freeze()  # what is here already need not be looked at when the run is collected
    troubles = [trouble for trouble in schedule(seed, TROUBLED_SECONDS) if trouble.number <= steps]
    try:
        return Run(seed, [each for each in troubles if each.number not in skip], trace=trace).play()
    except Exception as error:
        error.step = len(troubles)  # type: ignore[attr-defined]
        raise
    finally:
        gc.collect()
        gc.unfreeze()


def main(argv: list[str]) -> Any:
    """For those who work on this world: FIRST LAST, or one seed to be told."""
    from time import process_time

    first, last = int(argv[0]), int(argv[-1]) if len(argv) > 1 else 0
    if not last:
        return print(run(first, trace=True))
    began, broken = process_time(), 0
    for seed in range(first, last):
        try:
            run(seed)
        except Exception as error:
            broken += 1
            print(f"{seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    seconds = process_time() - began
    print(f"{broken} of {last - first} broken, {(last - first) / seconds:.2f} seeds a second and core")
    return None


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
