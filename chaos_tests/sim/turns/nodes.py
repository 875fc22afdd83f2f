"""Turns, disks, and everything that stops a node."""

from __future__ import annotations

from chaos_tests.sim.turns.etcd import Etcd
from chaos_tests.sim.turns.stage import Stage, runs
from chaos_tests.sim.turns.streams import Streams
from chaos_tests.sim.turns.users import Users
from tests.node.fleets import Host

NEW_IDENTITY = f"{99:032x}"


class Nodes:
    """The processes and their data directories."""

    def __init__(self, stage: Stage, streams: Streams, etcd: Etcd, users: Users) -> None:
        self._stage = stage
        self._streams = streams
        self._etcd = etcd
        self._users = users
        self._lost_disks = 0
        self._slow_disks: set[str] = set()

    def write(self, host: Host | None = None) -> bool:
        """A disk has its oldest group."""
        stage = self._stage
        if host is None:
            hosts = list(stage.fleet.hosts.values())
            host = stage.some(hosts, lambda host: runs(host) and self._writes(host))
        if host is None or not self._writes(host):
            return False
        if stage.trace:
            stage.say("write", host.name, host.unwritten[0][0])
        host.write()
        stage.account.changed = True
        stage.account.watch(host, stage.fleet.now)
        return True

    def _writes(self, host: Host) -> bool:
        return bool(host.unwritten) and host.name not in self._slow_disks

    def turn(self) -> None:
        host = self._stage.some_host()
        if host is not None:
            self._stage.turn(host)

    def checkpoint(self) -> None:
        host = self._stage.some_host()
        if host is not None and not host.part.to_write:
            self._stage.say("checkpoint", host.name)
            steps = host.node.checkpoint()
            self._stage.turn(host, lambda: next(steps, None))

    # ---- troubles

    def slow_disk(self) -> None:
        """An fsync takes long."""
        host = self._stage.some_host()
        if host is not None:
            self._stage.say("slow disk", host.name)
            self._slow_disks.add(host.name)

    def mend_disks(self) -> None:
        self._slow_disks.clear()

    def crash(self) -> None:
        host = self._stage.some_host()
        if host is not None:
            self.stop(host)

    def stop(self, host: Host, keep: int | None = None) -> None:
        """It is over, with some of the groups that were on their way to the disk."""
        stage = self._stage
        kept = stage.dice.randint(0, len(host.unwritten)) if keep is None else keep
        stage.say("crash", host.name, "keeps", kept, "of", len(host.unwritten))
        for _ in range(kept):
            host.disk += host.unwritten.popleft()[1]
        host.alive = False
        host.unwritten.clear()
        stage.account.stopped(host)
        self._streams.stopped(host)
        self._etcd.stopped(host)
        self._users.stopped(host)

    def restart(self) -> None:
        host = self._stage.some(list(self._stage.fleet.hosts.values()), lambda host: not host.alive)
        if host is not None:
            self.start(host)

    def start(self, host: Host) -> None:
        stage = self._stage
        stage.say("start", host.name)
        self._streams.started(host)
        up, stage.fleet.etcd.up = stage.fleet.etcd.up, stage.reaches_etcd(host)
        host.start()
        stage.fleet.etcd.up = up
        stage.account.started(host)
        stage.account.watch(host, stage.fleet.now)

    def lose_disk(self, host: Host | None = None) -> None:
        """One directory in a run."""
        host = host or self._stage.some_host()
        if self._lost_disks or host is None:
            return
        self._lost_disks += 1
        self._stage.say("lose disk", host.name)
        self.stop(host)
        self._stage.account.lost_disk(host.identity)
        host.disk = []
        host.identity = NEW_IDENTITY

    def freeze(self) -> None:
        host = self._stage.some_host()
        if host is not None:
            self._stage.say("freeze", host.name)
            host.frozen = True

    def unfreeze(self) -> None:
        host = self._stage.some(
            list(self._stage.fleet.hosts.values()), lambda host: host.alive and host.frozen
        )
        if host is not None:
            self._stage.say("unfreeze", host.name)
            host.frozen = False

    def power_cut(self) -> None:
        """Some or all lose their power, and what is unwritten; some come back, others' leases run out."""
        stage = self._stage
        running = stage.fleet.living()
        for host in stage.dice.sample(running, stage.dice.randint(min(1, len(running)), len(running))):
            if not self._lost_disks and stage.dice.random() < 0.05:
                self.lose_disk(host)
            else:
                self.stop(host, keep=0)
            if stage.dice.random() < 0.5:
                self.start(host)
            if stage.dice.random() < 0.6 and stage.fleet.etcd.up:
                stage.fleet.etcd.delete(host.name)
                stage.account.changed = True
