"""A seed becomes steps; then everything is mended, and everybody gets what is owed."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from chaos_tests.sim.turns.etcd import Etcd
from chaos_tests.sim.turns.nodes import Nodes
from chaos_tests.sim.turns.stage import SLOTS, Stage, few_slots, runs
from chaos_tests.sim.turns.streams import Streams
from chaos_tests.sim.turns.users import User, Users
from chaos_tests.sim.worlds import STEPS, Broken
from tests.node.fleets import Host

HEAL_SECONDS = 90.0  # within which there is rest
HEAL_DICE = (1 << 20) - 1  # a step of its own


def run(
    seed: int, *, steps: int = STEPS, trace: bool = False, skip: frozenset[int] = frozenset()
) -> Simulation:
    """Play a seed; raises Broken, or whatever the nodes raise, with the step in `step`."""
    with few_slots():
        simulation = Simulation(seed, trace=trace)
        try:
            simulation.run(steps, skip)
        except Exception as error:
            error.step = min(simulation.stage.step, steps)  # type: ignore[attr-defined]
            raise
        return simulation


class Simulation:
    """One seed."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.stage = stage = Stage(seed, trace=trace)
        self.account = stage.account
        self.users = users = Users(stage)
        self.streams = streams = Streams(stage)
        self.etcd = Etcd(stage)
        self.nodes = Nodes(stage, streams, self.etcd, users)
        self._proposed: dict[str, tuple[object, ...]] = {}  # in a round: what a node did so on
        # How often a promise is at once followed by a disaster: that is when promises break.
        self._malice = stage.dice.choice((0.0, 0.2, 0.6))

    def run(self, steps: int, skip: frozenset[int]) -> None:
        stage = self.stage
        stage.fleet.begin()
        if stage.dice.random() < 0.8:
            for _ in range(12):
                self.round()
        for _ in range(3):
            self.users.come()
        for host in stage.fleet.hosts.values():
            if stage.dice.random() < 0.8:
                self.users.come(worker=True, host=host)
        actions, weights = zip(*self._actions(), strict=True)
        for step, action in enumerate(stage.dice.choices(actions, weights, k=steps), 1):
            if step in skip:
                continue
            stage.roll(step)
            action()
            self.check()
            if stage.tempting:
                stage.tempting = False
                if stage.dice.random() < self._malice:
                    self.disaster()
                    self.check()
        stage.roll(HEAL_DICE)
        self.heal()

    def _actions(self) -> list[tuple[Callable[[], object], float]]:
        """What may happen, and how often."""
        streams, nodes, etcd, users = self.streams, self.nodes, self.etcd, self.users
        usual: list[tuple[Callable[[], object], float]] = [
            (self.flow, 30),
            (self.calm, 12),
            (streams.deliver, 40),
            (streams.send, 20),
            (nodes.write, 20),
            (nodes.turn, 10),
            (streams.connect, 12),
            (etcd.look, 14),
            (self.propose, 10),
            (users.submit, 30),
            (users.question, 6),
            (users.work, 30),
            (users.bring_late, 8),
            (users.cancel, 2),
            (self.time, 8),
            (users.come, 2),
            (users.go, 1),
            (etcd.late_swap, 4),
            (self.late_view, 8),
            (self.overtake, 5),
            (self.inherit, 3),
            (self.give_away, 3),
            (streams.notice, 6),
        ]
        troubles: list[tuple[Callable[[], object], float]] = [
            (streams.break_one, 3),
            (streams.block, 2),
            (streams.isolate, 2),
            (streams.slow_down, 3),
            (streams.unblock, 3),
            (nodes.slow_disk, 3),
            (nodes.mend_disks, 3),
            (nodes.crash, 3),
            (nodes.restart, 5),
            (nodes.freeze, 2),
            (nodes.unfreeze, 4),
            (nodes.lose_disk, 1),
            (nodes.checkpoint, 1),
            (etcd.expire, 4),
            (etcd.false_delete, 2),
            (etcd.go_down, 1),
            (etcd.come_up, 3),
            (etcd.drain, 1),
            (etcd.undrain, 1),
        ]
        # Each run has its own troubles, so that some go far into one of them.
        share = self.stage.dice.choice((0.3, 1.0, 2.0, 4.0))
        some = [
            (action, weight * share * self.stage.dice.choice((0, 1, 1, 3))) for action, weight in troubles
        ]
        # What heals is always possible.
        cures = (streams.unblock, nodes.unfreeze, nodes.restart, nodes.mend_disks, etcd.come_up)
        return [*usual, *some, *((cure, 1) for cure in cures)]

    # ---- what more than one of them does

    def flow(self) -> None:
        """What is on its way goes on for a while."""
        dice, streams, nodes = self.stage.dice, self.streams, self.nodes
        for _ in range(dice.randint(3, 30)):
            dice.choice((streams.deliver, streams.deliver, streams.send, nodes.write, nodes.turn))()
            self.check()

    def calm(self, rounds_max: int = 5) -> None:
        """Everybody gets on with it, as far as the troubles let them."""
        work = self.stage.dice.choice((-1.0, 0.3, 1.0))  # how many of the workers do something
        for _ in range(self.stage.dice.randint(1, rounds_max)):
            self.round(work=work, outcome="")
            self.check()

    def press(self, host: Host) -> None:
        """Sometimes: jobs for a node that does not know what its swap has come to; and not everybody hears of
        them, best of all somebody of whom it may have forgotten that his disk counts."""
        dice = self.stage.dice
        doubtful = self.etcd.doubtful(host)
        if dice.random() >= self._malice * (2 if doubtful else 1):
            return
        if dice.random() < 0.5:
            self.etcd.see_again(host)
        self.streams.slow_down(host.name, dice.choice(doubtful) if doubtful else "")
        for _ in range(dice.randint(1, 6)):
            self.users.submit(host)
        if dice.random() < 0.3:
            self.flow()
        else:
            for _ in range(4):
                self.traffic()
            self.check()
        if dice.random() < 0.5:
            self.etcd.late_swap()

    def propose(self) -> None:
        self.etcd.propose()
        if self.etcd.unsure is not None:
            host, self.etcd.unsure = self.etcd.unsure, None
            self.press(host)

    def late_view(self) -> None:
        host = self.etcd.late_view()
        if host is not None:
            self.press(host)

    def time(self, seconds: float = 0.0) -> None:
        stage = self.stage
        stage.fleet.now += seconds or stage.dice.choice((0.05, 0.1, 0.3, 1.0, 2.5))
        self.streams.pass_time()
        for host in stage.fleet.living():
            stage.turn(host, host.node.tick)
        self.users.listen()
        self.users.check()

    def disaster(self) -> None:
        """The power fails, or a node is cut off; what is left takes over at once, and may have worked."""
        dice = self.stage.dice
        if dice.random() < 0.5:
            self.nodes.power_cut()
            for _ in range(dice.randint(0, 3)):
                self.etcd.look()
                self.etcd.propose(outcome="good")
        elif (host := self._primary_of_latest() or self.stage.some_host()) is not None:
            self.streams.isolate(host.name)
            self.etcd.declare_dead(host)
            self.calm(rounds_max=12)
            if dice.random() < 0.3:
                for _ in range(3):
                    self.time(2.5)
            self.users.rush(host)
        if dice.random() < 0.3:
            self.calm()
        self.users.bring_late()

    def overtake(self) -> None:
        """Sometimes: a node reaches nobody any more, and has nothing to do; others lead its slots and end its
        jobs; then its clients come back to it."""
        host = self._primary_of_latest()
        if host is None or self.stage.dice.random() >= self._malice or not self.stage.fleet.etcd.up:
            return
        self.streams.unblock()
        self.nodes.mend_disks()
        for other in self.stage.fleet.living():
            self.users.come(host=host)
            self.users.come(worker=True, host=other)
        self.traffic()
        self.streams.isolate(host.name, "etcd and nodes")
        self.etcd.declare_dead(host)
        for _ in range(self.stage.dice.randint(8, 14)):
            self.round(idle=host)
            self.check()
        self.users.rush(host)
        self.traffic()

    def _with_runners(self) -> tuple[Host, User] | None:
        """Sometimes: a primary that nothing hinders, and a worker there that runs some of its jobs."""
        host = self._primary_of_latest()
        if host is None or self.stage.dice.random() >= self._malice or not self.stage.fleet.etcd.up:
            return None
        self.streams.unblock()
        self.nodes.mend_disks()
        self.users.come(host=host)
        for _ in range(2):
            self.users.submit(host)
        self.traffic()
        worker = self.users.come(worker=True, host=host)
        assert worker is not None
        for _ in range(2):
            self.users.work(worker)
        self.traffic()
        self.check()
        return host, worker

    def inherit(self) -> None:
        """A node dies, and its workers bring their results to the next primary, which waits for them."""
        found = self._with_runners()
        if found is not None:
            host, _ = found
            self.nodes.stop(host)
            self.etcd.declare_dead(host)
            for other in self.stage.fleet.living():
                self.users.come(worker=True, host=other)
            for _ in range(self.stage.dice.randint(4, 10)):
                self.round(work=-1.0)
            self.check()
            for _ in range(3):
                self.users.bring_late()
            self.check()

    def give_away(self) -> None:
        """A node gives its slots to others; meanwhile a worker of its jobs leaves, or one is cancelled."""
        found = self._with_runners()
        if found is None:
            return
        host, worker = found
        dice, streams, nodes, etcd = self.stage.dice, self.streams, self.nodes, self.etcd
        etcd.set_draining(host, draining=True)
        leaves, cancels = dice.randint(1, 60), dice.randint(1, 60)
        for moment in range(60):
            some = dice.choice((streams.deliver, streams.send, nodes.write, nodes.turn, etcd.look, None))
            if some is None:
                etcd.propose(host if dice.random() < 0.5 else None, outcome="good")
            else:
                some()
            if moment == leaves and worker in self.users.users and runs(worker.host):
                self.users.leave(worker)
            if moment == cancels:
                self.users.cancel(host)
            self.check()
        etcd.unsure = None

    def _primary_of_latest(self) -> Host | None:
        """Of the job that was acknowledged last."""
        fleet = self.stage.fleet
        fleet_map = fleet.etcd.view.map
        assert fleet_map is not None
        row = fleet_map.slots[crc32(b"\0".join(self.users.latest)) % SLOTS]
        host = fleet.hosts[row.primary]
        return host if runs(host) else None

    def check(self) -> None:
        self.users.listen()
        if self.account.changed:
            fleet = self.stage.fleet
            self.account.check(fleet.hosts, fleet.etcd.view)

    # ---- mending

    def heal(self) -> None:
        fleet = self.stage.fleet
        self._malice = 0.0
        self.streams.heal()
        self.nodes.mend_disks()
        self.etcd.heal()
        for host in fleet.hosts.values():
            host.frozen = False
            if not host.alive:
                self.nodes.start(host)
            if host.member.draining:
                self.etcd.set_draining(host, draining=False)
        for host in fleet.hosts.values():
            self.users.come(worker=True, host=host)
        self.users.served.clear()
        self.stage.say("healed")
        end = fleet.now + HEAL_SECONDS
        while fleet.now < end:
            self.users.try_all_slots()
            for _ in range(60):
                if not self.round():
                    break
            if not self.users.owed():
                self.check()
                return
            self.time(0.5)
            self.account.changed = True  # a slot may be served again in its epoch, and nothing else tells
            self.check()
        raise Broken("no rest after healing", self.users.owed())

    def round(self, *, work: float = 1.0, outcome: str = "good", idle: Host | None = None) -> bool:
        """Everybody does what there is to do; false when there is nothing. Workers of `idle` do nothing."""
        dice = self.stage.dice
        fleet = self.stage.fleet
        before = fleet.etcd.revision
        did = self.streams.notice_all()
        names = [host.name for host in fleet.living()]
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                did |= self.streams.connect(one, other)
        for host in fleet.living():
            self.etcd.look(host)
            # What a node proposes follows from these; to ask it again is what most of a round's time went to.
            state = (host.incarnation, host.part.view, host.node.log.committed, fleet.now)
            if self._proposed.get(host.name) != state:
                self._proposed[host.name] = state
                self.etcd.propose(host, outcome=outcome)
                if host is self.etcd.unsure:
                    self.etcd.unsure = None
                    self.press(host)
        did |= self.traffic()
        for user in list(self.users.users):
            if user.worker and work >= dice.random() and user.host is not idle:
                did |= self.users.work(user, honest=True)
        self.users.listen()
        return did or fleet.etcd.revision != before

    def traffic(self) -> bool:
        """Disks have what they were given, frames leave and arrive; false when there was nothing."""
        did = False
        for host in self.stage.fleet.living():
            while self.nodes.write(host):
                did = True
            if host.part.busy:
                self.stage.turn(host)
                did = True
            for name in host.part.frames_waiting():
                did |= self.streams.send(host, name)
        for pair, queue in list(self.stage.fleet.wires.items()):
            while queue and self.streams.deliver(pair):
                did = True
        return did
