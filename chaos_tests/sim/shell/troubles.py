"""What goes wrong in a run: a numbered schedule made from the seed, and how each trouble is done and undone.

Each trouble has a time and dice of its own, so that leaving one out changes nothing of the others but by what
the fleet makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from chaos_tests.sim.shell.etcd_cluster import COMMIT_SECONDS
from chaos_tests.sim.shell.fleet import LEASE_SECONDS, Node
from chaos_tests.sim.shell.restoring import Restoring
from cluster.drill.history import Kind

if TYPE_CHECKING:
    from chaos_tests.sim.shell.run import Run

CROWD_SECONDS: Final = 0.2
BURSTS_SHARE: Final = 0.15
CALMEST_SECONDS: Final = 0.3  # of the beginning: the fleet may be struck while it is made


@dataclass(frozen=True, slots=True)
class Trouble:
    """One of a run's schedule."""

    number: int  # from 1
    at: float  # seconds since the run began
    kind: str
    seed: str  # of its dice

    def __str__(self) -> str:
        return f"{self.number} {self.kind} at {self.at:.3f}"


# Kind -> how often, relative to the others.
KINDS: Final[dict[str, float]] = {
    "kill": 4,
    "kill_in_disk_operation": 3,
    "power_cut": 4,
    "strike": 6,
    "blackout": 1,
    "stop": 1,
    "drain": 1,
    "freeze": 3,
    "cut": 4,
    "cut_from_etcd": 3,
    "cut_user": 2,
    "reset": 2,
    "slow_link": 2,
    "kill_user": 3,
    "freeze_user": 2,
    "slow_disk": 3,
    "full_disk": 1,
    "failing_fsync": 1,
    "rot": 1,
    "clock": 1,
    "etcd_leader": 2,
    "etcd_member": 2,
    "etcd_outage": 1,
    "etcd_compacted": 1,
    "etcd_slow": 2,
    "etcd_answers_lost": 2,
    "etcd_full": 1,
    "etcd_restored": 0.5,
    "remove_key": 1,
}


def has_bursts(seed: int) -> bool:
    """Whether the run is one of few troubles and long queues: so that the order of jobs can be judged."""
    return Random(f"{seed} bursts").random() < BURSTS_SHARE


def schedule(seed: int, seconds: float) -> list[Trouble]:
    """Each run has its own mix, so that some go far into one kind of trouble."""
    dice = Random(f"{seed} schedule")
    weights = [weight * dice.choice((0, 0, 1, 1, 3)) for weight in KINDS.values()]
    weights[dice.randrange(len(weights))] += 2
    count = dice.choice((1, 2) if has_bursts(seed) else (2, 5, 8, 12, 20))
    first = dice.choice((CALMEST_SECONDS, 1.0, 1.0, 1.0))
    times = [dice.uniform(first, seconds)]
    crowded = dice.choice((0.0, 0.3, 0.6))
    while len(times) < count:
        if dice.random() < crowded:  # soon after another one, while that is being dealt with
            times.append(min(seconds, dice.choice(times) + dice.expovariate(1 / CROWD_SECONDS)))
        else:
            times.append(dice.uniform(first, seconds))
    times.sort()
    kinds = dice.choices(list(KINDS), weights, k=count)
    return [
        Trouble(number, at, kind, f"{seed} trouble {number}")
        for number, (at, kind) in enumerate(zip(times, kinds, strict=True), 1)
    ]


class Troubles:
    """Does them to a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.world = run.world
        self.nodes = run.nodes
        self.names = [node.name for node in run.nodes]
        self.struck: list[Callable[[], None]] = []  # what happens at the next acknowledgement
        self.disks_lost = 0
        self.over = False

    def begin(self, trouble: Trouble) -> None:
        if not self.over:
            self.world.say("trouble", trouble)
            getattr(self, trouble.kind)(Random(trouble.seed))

    def _lasts(self, dice: Random) -> float:
        return math.exp(dice.uniform(math.log(0.05), math.log(4 * LEASE_SECONDS)))

    def _fault(self, name: str, *touches: str) -> int:
        """Troubles of etcd touch nobody: what they explain is that leases run out (Run._look_at_leases)."""
        return self.run.history.fault(name, *touches)

    def _for_a_while(
        self, seconds: float, undo: Callable[..., object], *arguments: Any, fault: int = 0
    ) -> None:
        def heal() -> None:
            if not self.over:
                undo(*arguments)
                self.run.history.healed(fault)

        self.world.after(seconds, heal)

    # ---- nodes

    def kill(self, dice: Random) -> None:
        """Between two callbacks, some time after this moment."""
        node = dice.choice(self.nodes)
        self._kill_after(node, dice.randint(0, 300), dice, power=False)

    def power_cut(self, dice: Random) -> None:
        node = dice.choice(self.nodes)
        self._kill_after(node, dice.randint(0, 300), dice, power=True)

    def _kill_after(self, node: Node, callbacks: int, dice: Random, *, power: bool) -> None:
        pause = self._lasts(dice)
        process = node.process
        if not node.running or process is None:
            return
        if not callbacks:
            self._down(node, pause, power=power)
            return
        process.callbacks_left = callbacks
        process.fuse = lambda: self._down(node, pause, power=power)

    def _down(self, node: Node, pause: float, *, power: bool) -> None:
        if not node.running or self.over:
            return
        assert node.process is not None
        fault = self._fault("power cut" if power else "kill", node.name)
        if power:
            node.host.cut_power()
        else:
            node.process.kill()
        node.died()
        self._for_a_while(pause, self._up, node, fault=fault)

    def _up(self, node: Node) -> None:
        if not node.host.up:
            node.host.power_on()
        if not node.running and node.wanted:
            node.start()

    def kill_in_disk_operation(self, dice: Random) -> None:
        """The process, or its machine, dies in front of one of its next operations on the disk."""
        node = dice.choice(self.nodes)
        left, power, pause = dice.randint(0, 12), dice.random() < 0.5, self._lasts(dice)
        process = node.process
        if not node.running or process is None:
            return
        process.disk_operations_left = left

        def look() -> None:
            if process.alive and process.disk_operations_left == 0:
                self._down(node, pause, power=power)
            elif process.alive and not self.over:
                self.world.after(0.0001, look)

        look()

    def strike(self, dice: Random) -> None:
        """Right behind the next acknowledgement: some or all nodes go down."""

        def disaster() -> None:
            for node in dice.sample(self.nodes, dice.randint(1, len(self.nodes))):
                self._kill_after(node, dice.choice((0, 0, 1, 5, 30)), dice, power=dice.random() < 0.6)

        self.struck.append(disaster)

    def blackout(self, dice: Random) -> None:
        """All at once."""
        for node in self.nodes:
            self._kill_after(node, 0, dice, power=True)

    def stop(self, dice: Random) -> None:
        """SIGTERM; a supervisor starts it again. What it explains begins when it exits (Run._exited)."""
        node = dice.choice(self.nodes)
        if node.running and node.server is not None:
            self.run.history.healed(self._fault("stop"))
            assert node.process is not None
            node.process.post(node.server.stop)

    def drain(self, dice: Random) -> None:
        """SIGUSR1."""
        node = dice.choice(self.nodes)
        if node.running and node.server is not None:
            self.run.history.healed(self._fault("drain"))
            assert node.process is not None
            node.process.post(node.server.drain)

    def freeze(self, dice: Random) -> None:
        node, seconds = dice.choice(self.nodes), self._lasts(dice)
        process = node.process
        if node.running and process is not None and not process.frozen:
            fault = self._fault("freeze", node.name)
            process.freeze()
            self._for_a_while(seconds, process.thaw, fault=fault)

    def clock(self, dice: Random) -> None:
        node = dice.choice(self.nodes)
        self.run.history.healed(self._fault("clock jump"))  # it explains nothing
        node.host.clock_offset += dice.choice((-86400.0, -60.0, -2.0, 2.0, 60.0, 86400.0))
        self.world.say("clock", node.name, node.host.clock_offset)

    # ---- network

    def _cut(self, one: str, other: str, dice: Random, touches: tuple[str, ...]) -> None:
        pairs = dice.choice(([(one, other)], [(other, one)], [(one, other), (other, one)]))
        seconds = dice.choice((self._lasts(dice), dice.uniform(0.02, 0.3), dice.uniform(9.0, 14.0)))
        fault = self._fault("cut", *touches)
        network = self.world.network
        for pair in pairs:
            network.cut(*pair)

        def undo() -> None:
            for pair in pairs:
                network.heal(*pair)

        self._for_a_while(seconds, undo, fault=fault)

    def cut(self, dice: Random) -> None:
        one, other = dice.sample(self.names, 2)
        if dice.random() < 0.4:  # from all others
            for name in self.names:
                if name != one:
                    self._cut(one, name, dice, (one, name))
        else:
            self._cut(one, other, dice, (one, other))

    def cut_from_etcd(self, dice: Random) -> None:
        node = dice.choice(self.names)
        members = self.run.etcd.names
        for member in dice.choice((members, dice.sample(members, 1))):
            self._cut(node, member, dice, (node,))

    def cut_user(self, dice: Random) -> None:
        node, user = dice.choice(self.names), dice.choice(list(self.run.users))
        self._cut(user, node, dice, (node, user))

    def reset(self, dice: Random) -> None:
        one = dice.choice(self.names)
        other = dice.choice([name for name in (*self.names, *list(self.run.users)) if name != one])
        self.run.history.healed(self._fault("reset", one, other))
        self.world.network.reset(one, other)

    def slow_link(self, dice: Random) -> None:
        one, other = dice.sample(self.names, 2)
        slow = dice.choice((0.005, 0.05, 0.5))
        fault = self._fault("slow link", one, other)
        network = self.world.network
        network.slow(one, other, slow)
        self._for_a_while(2 * self._lasts(dice), network.slow, one, other, 0.0, fault=fault)

    # ---- users

    def kill_user(self, dice: Random) -> None:
        user = self.run.users[dice.choice(list(self.run.users))]
        pause = self._lasts(dice)
        if user.process.alive:
            fault = self._fault("user killed", user.name)
            user.kill()
            self._for_a_while(pause, lambda: user.start(user.until), fault=fault)

    def freeze_user(self, dice: Random) -> None:
        user, seconds = self.run.users[dice.choice(list(self.run.users))], self._lasts(dice)
        process = user.process
        if process.alive and not process.frozen:
            fault = self._fault("user frozen", user.name)
            process.freeze()
            self._for_a_while(seconds, process.thaw, fault=fault)

    # ---- disks

    def slow_disk(self, dice: Random) -> None:
        node = dice.choice(self.nodes)
        disk = node.host.disk
        fault = self._fault("slow disk", node.name)
        disk.fsync_seconds = dice.choice((0.02, 0.2, 2.0, 6.0))
        self.world.say("slow disk", node.name, disk.fsync_seconds)
        self._for_a_while(2 * self._lasts(dice), setattr, disk, "fsync_seconds", 0.0, fault=fault)

    def full_disk(self, dice: Random) -> None:
        node = dice.choice(self.nodes)
        fault = self._fault("full disk", node.name)
        self.world.say("full disk", node.name)
        node.host.disk.full = True
        self._for_a_while(self._lasts(dice), setattr, node.host.disk, "full", False, fault=fault)

    def _may_lose_disk(self, node: Node) -> bool:
        """One in a run, and only while all copies are there: more is more than the fleet promises to bear."""
        if self.disks_lost or not node.identity or not self.run.whole():
            return False
        self.disks_lost += 1
        return True

    def failing_fsync(self, dice: Random) -> None:
        node = dice.choice(self.nodes)
        if self._may_lose_disk(node):
            self._fault("failing fsync", node.name)
            self.world.say("failing fsync", node.name)
            node.host.disk.fsync_fails = 1

    def rot(self, dice: Random) -> None:
        """A bit flips in a part of the journal that has a successor: without one it cannot be told from what
        was torn, and would have to be taken for it."""
        node = dice.choice(self.nodes)
        if not self._may_lose_disk(node):
            return
        file, end = node.rotting_place(dice)
        if file is None:
            return
        self._fault("rot", node.name)
        at = dice.randrange(end)
        self.world.say("rot", node.name, at)
        node.rot(file, at)
        self._kill_after(node, 0, dice, power=False)

    # ---- etcd

    def etcd_leader(self, dice: Random) -> None:
        self.run.history.healed(self._fault("etcd leader"))
        self.run.etcd.cluster.depose()

    def etcd_member(self, dice: Random) -> None:
        etcd = self.run.etcd
        number = dice.randrange(len(etcd.names))
        fault = self._fault("etcd member")
        how = dice.choice(("kill", "freeze", "cut", "lag"))
        self.world.say("etcd member", number, how)
        if how == "freeze":
            etcd.freeze(number)
            self._for_a_while(self._lasts(dice), etcd.thaw, number, fault=fault)
        elif how == "kill":
            etcd.kill(number)
            self._for_a_while(self._lasts(dice), etcd.restart, number, fault=fault)
        elif how == "cut":
            etcd.cluster.cut(number)
            self._for_a_while(self._lasts(dice), etcd.cluster.join, number, fault=fault)
        else:
            member = etcd.cluster.members[number]
            member.lag_seconds = dice.uniform(0.1, 3.0)
            self._for_a_while(self._lasts(dice), setattr, member, "lag_seconds", 0.0, fault=fault)

    def etcd_outage(self, dice: Random) -> None:
        etcd = self.run.etcd
        fault = self._fault("etcd outage")
        down = dice.sample(range(len(etcd.names)), dice.randint(2, len(etcd.names)))
        begin, end = dice.choice(
            (
                (etcd.kill, etcd.restart),
                (etcd.kill, etcd.restart),
                (etcd.freeze, etcd.thaw),
                (etcd.cluster.cut, etcd.cluster.join),
            )
        )
        for number in down:
            begin(number)
        self._for_a_while(2 * self._lasts(dice), lambda: [end(number) for number in down], fault=fault)

    def etcd_compacted(self, dice: Random) -> None:
        """A member that has watches misses something, and its history is gone when it catches up."""
        cluster = self.run.etcd.cluster
        watched = [member for member in cluster.members if member.watches and member.connected]
        member = dice.choice(watched or cluster.members)
        self.world.say("etcd compacted, behind member", member.number)
        cluster.cut(member.number)
        seconds, node = dice.uniform(0.05, 2.5), dice.choice((None, *self.names))

        def catch_up() -> None:
            cluster.compact()
            cluster.join(member.number)

        self._for_a_while(seconds, catch_up, fault=self._fault("etcd compacted"))
        if node is not None:
            self.world.after(seconds / 2, self._remove_key, node)

    def etcd_slow(self, dice: Random) -> None:
        cluster = self.run.etcd.cluster
        fault = self._fault("etcd slow")
        cluster.commit_seconds = (0.01, dice.choice((0.1, 0.4, 1.0)))
        cluster.watch_delay_seconds = dice.choice((0.0, 0.5, 3.0))
        self.world.say("etcd slow", *cluster.commit_seconds, cluster.watch_delay_seconds)

        def undo() -> None:
            cluster.commit_seconds, cluster.watch_delay_seconds = COMMIT_SECONDS, 0.0

        self._for_a_while(self._lasts(dice), undo, fault=fault)

    def etcd_answers_lost(self, dice: Random) -> None:
        cluster = self.run.etcd.cluster
        fault = self._fault("etcd answers lost")
        cluster.answers_lost = 0.5
        self._for_a_while(self._lasts(dice), setattr, cluster, "answers_lost", 0.0, fault=fault)

    def etcd_full(self, dice: Random) -> None:
        """The space alarm: it answers, and takes nothing."""
        state = self.run.etcd.cluster.state
        fault = self._fault("etcd full")
        state.full = True
        self.world.say("etcd full")
        self._for_a_while(self._lasts(dice), setattr, state, "full", False, fault=fault)

    def etcd_restored(self, dice: Random) -> None:
        """From a backup of this moment, or it is wiped. A lost disk beside it would be too much."""
        if self.disks_lost:
            return
        self.disks_lost += 1
        backup = None
        if dice.random() < 0.7:
            backup = self.run.etcd.cluster.state.backup(same_cluster=dice.random() < 0.5)
        patience = dice.choice((0.5, 3.0, 8.0))

        def strike() -> None:
            if not self.over:
                fault = self._fault("etcd restored", "all")
                Restoring(self.run, backup, lambda: self.run.history.healed(fault)).strike(patience)

        self.world.after(dice.uniform(0.0, 5.0), strike)

    def remove_key(self, dice: Random) -> None:
        """Somebody deletes a node's key, as a wrong proof of death does."""
        self._remove_key(dice.choice(self.names))

    def _remove_key(self, node: str) -> None:
        if not self.over:
            self.run.history.healed(self._fault("key removed", node))
            self.run.remove_key(node)

    # ---- the end of it

    def heal(self) -> None:
        """Nothing is wrong any more, and nothing goes wrong from now on."""
        self.over = True
        self.world.say("healed")
        self.world.network.heal_all()
        self.run.etcd.heal()
        for node in self.nodes:
            disk = node.host.disk
            disk.full, disk.fsync_fails, disk.fsync_seconds = False, 0, 0.0
            process = node.process
            if process is not None and process.alive:
                process.callbacks_left = -1
                if process.disk_operations_left == 0:
                    process.kill()
                    node.died()
                else:
                    process.disk_operations_left = -1
                    if process.frozen:
                        process.thaw()
            self._up(node)
        for user in self.run.users.values():
            if not user.process.alive:
                user.start(user.until)
            elif user.process.frozen:
                user.process.thaw()
        self._tell_healed()

    def _tell_healed(self) -> None:
        """A fault that lasts explains all that comes after it. A backup's operator tells that himself."""
        history = self.run.history
        healed = {event.fault for event in history.events if event.kind is Kind.HEALED}
        for event in list(history.events):
            if event.kind is Kind.FAULT and event.fault not in healed and "all" not in event.touches:
                history.healed(event.fault)
