"""etcd's troubles as disturbances of a run: one at a time, each for a while, each a fault in the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aetcd import rpc  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from chaos_tests.sim.shell.etcd_members import EtcdMembers
    from cluster.drill.history import History

SECONDS: Final = (0.5, 2.0, 6.0, 15.0)  # about so long
SLOW_COMMIT_SECONDS: Final = (0.05, 0.6)
LATE_WATCH_SECONDS: Final = 8.0
LAG_SECONDS: Final = 1.5

Heal = Callable[[], None]


class EtcdTroubles:
    """`strike` begins one, if none is going on; `heal` ends it."""

    def __init__(self, etcd: EtcdMembers, history: History, nodes: list[str], fleet: str = "default") -> None:
        self._etcd = etcd
        self._world = etcd.world
        self._history = history
        self._nodes = nodes
        self._prefix = f"/gearfleet/{fleet}/nodes/"
        self._dice = etcd.world.dice_for("etcd troubles")
        self._struck: tuple[int, Heal] | None = None  # the fault's number, and how it ends
        self._kinds: tuple[Callable[[], tuple[str, tuple[str, ...], Heal]], ...] = (
            self._leader_change,
            self._leader_change,
            self._outage,
            self._no_majority,
            self._one_cut,
            self._one_killed,
            self._one_frozen,
            self._lagging,
            self._slow,
            self._full,
            self._late_watches,
            self._lost_answers,
            self._compaction,
            self._cut_from_node,
            self._cut_from_node,
            self._resets,
            self._key_deleted,
        )

    def strike(self) -> None:
        if self._struck is not None:
            return
        name, touches, heal = self._dice.choice(self._kinds)()
        self._struck = self._history.fault(name, *touches), heal
        self._world.say("etcd:", name, *touches)
        about = self._dice.choice(SECONDS)
        self._world.after(about * self._dice.uniform(0.5, 1.5), self.heal)

    def heal(self) -> None:
        if self._struck is not None:
            number, heal = self._struck
            self._struck = None
            self._world.say("etcd healed")
            heal()
            self._history.healed(number)

    # ---- kinds: what it is called, what it touches, how it ends

    def _member(self) -> int:
        return self._dice.randrange(len(self._etcd.names))

    def _leader_change(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.depose()
        return "etcd leader change", ("etcd",), lambda: None

    def _outage(self) -> tuple[str, tuple[str, ...], Heal]:
        for number in range(len(self._etcd.names)):
            self._etcd.kill(number)
        return "etcd outage", ("etcd",), self._etcd.heal

    def _no_majority(self) -> tuple[str, tuple[str, ...], Heal]:
        alive = self._member()
        how = self._dice.choice((self._etcd.kill, self._etcd.freeze, self._etcd.cluster.cut))
        for number in range(len(self._etcd.names)):
            if number != alive:
                how(number)
        return "etcd without majority", ("etcd",), self._etcd.heal

    def _one_cut(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.cut(self._member())
        return "etcd member cut off", ("etcd",), self._etcd.heal

    def _one_killed(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.kill(self._member())
        return "etcd member killed", ("etcd",), self._etcd.heal

    def _one_frozen(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.freeze(self._member())
        return "etcd member frozen", ("etcd",), self._etcd.heal

    def _lagging(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.members[self._member()].lag_seconds = self._dice.uniform(0.0, LAG_SECONDS)
        return "etcd member lags", ("etcd",), self._etcd.heal

    def _slow(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.commit_seconds = SLOW_COMMIT_SECONDS
        return "etcd slow", ("etcd",), self._etcd.heal

    def _full(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.state.full = True
        return "etcd full", ("etcd",), self._etcd.heal

    def _late_watches(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.watch_delay_seconds = LATE_WATCH_SECONDS
        if self._dice.random() < 0.5:
            self._world.after(self._dice.uniform(0.0, LATE_WATCH_SECONDS), self._etcd.cluster.compact)
        return "etcd watches late", ("etcd",), self._etcd.heal

    def _lost_answers(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.answers_lost = self._dice.choice((0.2, 0.6))
        return "etcd answers lost", ("etcd",), self._etcd.heal

    def _compaction(self) -> tuple[str, tuple[str, ...], Heal]:
        self._etcd.cluster.compact()
        return "etcd compacted", ("etcd",), lambda: None

    def _cut_from_node(self) -> tuple[str, tuple[str, ...], Heal]:
        """One direction or both, to one member or all."""
        node = self._dice.choice(self._nodes)
        there, back = self._dice.choice(((True, True), (True, False), (False, True)))
        members = self._etcd.names if self._dice.random() < 0.7 else (self._dice.choice(self._etcd.names),)
        cuts = [(node, member) for member in members if there] + [
            (member, node) for member in members if back
        ]
        network = self._world.network
        for source, target in cuts:
            network.cut(source, target)

        def heal() -> None:
            for source, target in cuts:
                network.heal(source, target)

        touches = [f"{node}>etcd"] * there + [f"etcd>{node}"] * back
        return "etcd cut off", tuple(touches), heal

    def _resets(self) -> tuple[str, tuple[str, ...], Heal]:
        node = self._dice.choice(self._nodes)
        for member in self._etcd.names:
            self._world.network.reset(node, member)
        return "etcd connections reset", (f"{node}>etcd",), lambda: None

    def _key_deleted(self) -> tuple[str, tuple[str, ...], Heal]:
        """By hand, as with `etcdctl del`."""
        node = self._dice.choice(self._nodes)
        deletion = rpc.DeleteRangeRequest(key=(self._prefix + node).encode())
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_delete_range=deletion)])
        self._etcd.cluster.txn(self._member(), request, lambda reply: None)
        return "key deleted by hand", (node,), lambda: None
