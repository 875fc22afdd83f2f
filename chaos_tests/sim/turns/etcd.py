"""What nodes read in etcd, when they see it, and what becomes of their swaps."""

from __future__ import annotations

from dataclasses import replace

from chaos_tests.sim.turns.stage import Stage, runs
from cluster.placement import Swap, View
from tests.node.fleets import Host

OUTCOMES = ("good", "answer lost", "lost", "late")


class Etcd:
    """Reads and swaps of all nodes, and the leases."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._etcd = stage.fleet.etcd
        self._views: dict[str, list[View]] = {}  # read, not seen yet
        self._late: list[Swap] = []
        self.unsure: Host | None = None  # has just missed an answer
        # In some runs hardly any answer to a swap comes.
        self._outcomes = stage.dice.choice(((6, 1, 1, 1), (3, 1, 1, 1), (1, 3, 1, 1), (1, 6, 0, 2)))

    def look(self, host: Host | None = None) -> None:
        """A node reads etcd, and sees what it read, now or later."""
        stage, etcd = self._stage, self._etcd
        host = host or stage.some_host()
        if host is None or not stage.reaches_etcd(host):
            return
        found = etcd.view.members.get(host.name)
        if found is None or found.incarnation != host.incarnation:
            etcd.put(host.member)
            self._stage.account.changed = True
        stage.leased[host.name] = stage.fleet.now
        host.part.lease(stage.fleet.now)
        view = etcd.view
        if stage.dice.random() < 0.2:
            self._views.setdefault(host.name, []).append(view)
        elif host.part.view is not view:
            stage.turn(host, lambda: host.part.see(view))

    def late_view(self) -> Host | None:
        """A node sees a read that was long on its way."""
        host = self._stage.some_host()
        if host is None or not self._views.get(host.name):
            return None
        views = self._views[host.name]
        view = self._stage.dice.choice([view for view in views if self._misses(host, view)] or views)
        views.remove(view)
        self._stage.turn(host, lambda: host.part.see(view))
        return host

    def _misses(self, host: Host, view: View) -> bool:
        """Whether a read shows less than the members that count now, in an epoch that this node leads."""
        assert self._etcd.view.map is not None
        return view.map is not None and any(
            row.epoch == before.epoch and row.primary == host.name and set(row.in_sync) - set(before.in_sync)
            for row, before in zip(self._etcd.view.map.slots, view.map.slots, strict=True)
        )

    def see_again(self, host: Host) -> None:
        """What it saw last: read before its swap arrived, and on its way for longer."""
        self._stage.turn(host, lambda: host.part.see(host.part.view))

    def doubtful(self, host: Host) -> list[str]:
        """Nodes that count in a slot of this one, or may soon, as only its own proposal or only etcd says."""
        assert self._etcd.view.map is not None
        rows = self._etcd.view.map.slots
        found: set[str] = set()
        for slot, lead in host.part.replicator.leads.items():
            found.update(lead.pending, set(rows[slot].in_sync) - {host.identity, *lead.in_sync})
        return [other.name for other in self._stage.fleet.hosts.values() if other.identity in found]

    def stopped(self, host: Host) -> None:
        self._views.pop(host.name, None)

    def propose(self, host: Host | None = None, outcome: str = "") -> None:
        stage = self._stage
        host = host or stage.some_host()
        if host is None or not stage.reaches_etcd(host):
            return
        part = host.part
        asked: list[Swap] = []
        stage.turn(host, lambda: asked.extend(filter(None, [part.propose()])))
        for swap in asked:
            outcome = outcome or stage.dice.choices(OUTCOMES, self._outcomes)[0]
            applied = self._etcd.swap(swap) if outcome in ("good", "answer lost") else None
            stage.account.changed = True
            if outcome == "late":
                self._late.append(swap)
            if outcome != "good":
                self.unsure = host
            stage.say("propose", host.name, outcome, applied, swap.compare_revision)
            part.swapped()
            if outcome == "good":
                if applied and stage.dice.random() < 0.3:  # a read from before is still on its way
                    self._views.setdefault(host.name, []).append(part.view)
                stage.turn(host, lambda: part.see(self._etcd.view))

    def late_swap(self) -> None:
        """One arrives of which its proposer has heard nothing."""
        if self._late and self._etcd.up:
            swap = self._late.pop(self._stage.dice.randrange(len(self._late)))
            self._stage.say("late swap", self._etcd.swap(swap))
            self._stage.account.changed = True

    def heal(self) -> None:
        self._etcd.up = True
        for swap in self._late:
            self._etcd.swap(swap)
        self._late.clear()
        self._views.clear()
        self._stage.account.changed = True

    # ---- leases and outages

    def expire(self) -> None:
        """The lease of a node that is not there runs out."""
        stage = self._stage
        host = stage.some(
            list(stage.fleet.hosts.values()),
            lambda host: (
                host.name in self._etcd.view.members and (not runs(host) or host.name in stage.no_etcd)
            ),
        )
        if host is not None and self._etcd.up:
            self._delete("expire", host)

    def false_delete(self) -> None:
        """A node is declared dead, and is not."""
        host = self._stage.some_host()
        if host is not None:
            self.declare_dead(host)

    def declare_dead(self, host: Host) -> None:
        if self._etcd.up:
            self._delete("false delete", host)

    def _delete(self, why: str, host: Host) -> None:
        self._stage.say(why, host.name)
        self._etcd.delete(host.name)
        self._stage.account.changed = True

    def go_down(self) -> None:
        self._stage.say("etcd down")
        self._etcd.up = False

    def come_up(self) -> None:
        self._etcd.up = True

    # ---- drains

    def drain(self) -> None:
        host = self._stage.some_host()
        if host is not None and self._stage.reaches_etcd(host):
            self.set_draining(host, draining=True)

    def undrain(self) -> None:
        host = self._stage.some(self._stage.fleet.living(), lambda host: host.member.draining)
        if host is not None and self._stage.reaches_etcd(host):
            self.set_draining(host, draining=False)

    def set_draining(self, host: Host, *, draining: bool) -> None:
        self._stage.say("drain" if draining else "undrain", host.name)
        host.member = replace(host.member, draining=draining)
        self._etcd.put(host.member)
        self._stage.account.changed = True
