"""What a node should propose now: one swap's changes, legal by construction.

Everything follows from the view and a few facts that only this node knows. First comes what lets slots serve
again: takeovers, and dead members that leave. A node that has to take over proposes nothing else: the rest
can wait for the next call. Nothing is remembered between calls; an interrupted swap is proposed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.placement.changes import Change, Enter, HandOver, Learn, Leave, TakeOver
from cluster.placement.errors import BadValue, IllegalChange, NotEmpty
from cluster.placement.plan import Copy, Leading, Node, Plan, Spreading, plan
from cluster.placement.succession import takeovers
from cluster.placement.view import (
    FleetConfig,
    FleetMap,
    Member,
    SlotRow,
    Swap,
    View,
    holders,
    leads,
    lengthened,
)

MOVES_MAX: Final = 256  # learners of a node at a time, so that a join does not flood it
HAND_OVERS_MAX: Final = 512  # slots in one swap: each is without a primary for a moment


@dataclass(frozen=True, slots=True)
class Facts:
    """What this node knows and the view does not show."""

    caught_up: frozenset[tuple[int, str]] = frozenset()  # slot, learner: rule 6 holds, by me as primary
    settled: frozenset[int] | None = None  # slots led here with nothing inherited open; None: all
    away: frozenset[str] = frozenset()  # nodes that are down for longer than replace_after
    missed: frozenset[str] = frozenset()  # silent to this node and to enough others (rule 8)
    silent: frozenset[str] = frozenset()  # silent to this node: it strikes them from its own slots (rule 4)
    planner: bool = False  # the first live node by name, or one that waited long enough for it
    moves_max: int = MOVES_MAX
    hand_overs_max: int = HAND_OVERS_MAX


def propose(view: View, me: str, facts: Facts) -> list[Change]:
    """What node `me` should propose now; nothing if all is as it should be."""
    own = view.members.get(me)
    if own is None or view.config is None or view.map is None:
        return []
    return _Proposing(view, view.config, view.map, own, facts).changes()


class _Proposing:
    """One call of `propose`."""

    __slots__ = ("_config", "_facts", "_giving", "_led", "_map", "_me", "_present", "_quiet", "_view")

    def __init__(
        self, view: View, config: FleetConfig, fleet_map: FleetMap, me: Member, facts: Facts
    ) -> None:
        self._view = view
        self._config = config
        self._map = fleet_map
        self._me = me
        self._facts = facts
        self._present = holders(view.members)
        self._quiet = (facts.silent | facts.missed) - {me.name}
        # Nodes that are being drained and still lead slots.
        self._giving = {member.name for member in view.members.values() if member.draining}
        if self._giving:
            self._giving &= {row.primary for row in fleet_map.slots}
        self._led = [(slot, row) for slot, row in enumerate(fleet_map.slots) if leads(row, me)]

    def changes(self) -> list[Change]:
        found: list[Change] = [*self._take_over()]
        urgent = bool(found)
        touched: set[int] = set()
        for slot, row in self._led:
            change = self._strike_dead(slot, row) or self._make_enough(slot, row)
            if change is not None:
                found.append(change)
                touched.add(slot)
        if urgent:
            return found
        wanted = plan(self._view, self._facts.away)
        hand_overs = self._facts.hand_overs_max
        leading: dict[str, int] | None = None
        for slot, row in self._led:
            if slot in touched:
                continue
            if leading is None:
                leading = self._leading()
            change = self._next_step(slot, row, wanted, leading, hand_overs)
            if change is not None:
                found.append(change)
                touched.add(slot)
                hand_overs -= isinstance(change, HandOver)
        if self._facts.planner:
            found += self._learn(wanted, touched)
        return found

    # what lets slots serve again

    def _take_over(self) -> list[TakeOver]:
        mine = [
            slot
            for slot, name in takeovers(self._view, self._facts.missed - {self._me.name}).items()
            if name == self._me.name
        ]
        if not mine:
            return []
        # A data directory that moved here from another node name takes over all of that one's slots at
        # once, or none: a slot's primary is named in its in-sync set.
        before = self._map.names.get(self._me.identity, self._me.name)
        if before != self._me.name:
            taken = set(mine)
            for slot, row in enumerate(self._map.slots):
                if row.primary == before and self._me.identity in row.in_sync and slot not in taken:
                    return []
        return [TakeOver(slot, self._map.slots[slot].epoch) for slot in sorted(mine)]

    def _strike_dead(self, slot: int, row: SlotRow) -> Change | None:
        if len(row.in_sync) <= self._config.min_in_sync:
            return None
        for identity in row.in_sync:
            if not self._answers(identity) and identity != self._me.identity:
                return Leave(slot, row.epoch, identity)
        return None

    def _make_enough(self, slot: int, row: SlotRow) -> Change | None:
        """Fewer than min_in_sync answer: whoever has caught up enters, wanted or not."""
        answering = sum(map(self._answers, row.in_sync))
        if answering >= self._config.min_in_sync or not row.learners:
            return None
        for identity in row.learners:
            change = self._enter(slot, row, identity)
            if change is not None:
                return change
        return None

    # what makes the map as it is planned

    def _next_step(
        self, slot: int, row: SlotRow, wanted: Plan, leading: dict[str, int], hand_overs: int
    ) -> Change | None:
        copies = wanted.replicas[slot]
        if self._me.draining:
            change = self._give_away(slot, row, wanted, leading, hand_overs)
            if change is not None:
                return change
        if row.learners:
            for identity in row.learners:
                if identity in copies:
                    change = self._enter(slot, row, identity)
                    if change is not None:
                        return change
        if copies != row.in_sync:
            change = self._strike_surplus(slot, row, copies)
            if change is not None:
                return change
        if not self._me.draining and wanted.primaries[slot] != self._me.identity:
            return self._give_away(slot, row, wanted, leading, hand_overs)
        return None

    def _enter(self, slot: int, row: SlotRow, identity: str) -> Change | None:
        if (slot, identity) not in self._facts.caught_up or not self._answers(identity):
            return None
        name = self._present[identity].name
        for other in row.in_sync:
            if self._map.names[other] == name:
                if other in self._present:
                    return None
                return Enter(slot, row.epoch, identity, other)
        return Enter(slot, row.epoch, identity, None)

    def _strike_surplus(self, slot: int, row: SlotRow, copies: tuple[str, ...]) -> Change | None:
        """A copy that is not wanted leaves once all that are wanted are in sync and answer. One that is
        being drained does not wait for those that are down: its node would never get away."""
        missing = [i for i in copies if i not in row.in_sync or not self._answers(i)]
        hurry = not any(map(self._answers, missing))
        if len(row.in_sync) <= self._config.min_in_sync:  # all answer: others were struck before
            return None
        for identity in row.in_sync:
            if identity in copies or identity == self._me.identity:
                continue
            member = self._present.get(identity)
            if member is not None and member.name in self._giving:
                continue  # first what it leads: two nodes' swaps would stand in each other's way
            if not missing or (hurry and member is not None and member.draining):
                return Leave(slot, row.epoch, identity)
        return None

    def _give_away(
        self, slot: int, row: SlotRow, wanted: Plan, leading: dict[str, int], hand_overs: int
    ) -> Change | None:
        if hand_overs <= 0 or (self._facts.settled is not None and slot not in self._facts.settled):
            return None
        name = self._able_to_lead(row, wanted.primaries[slot])
        if name is None and self._me.draining:
            names = [self._able_to_lead(row, identity) for identity in row.in_sync]
            name = min(
                (name for name in names if name is not None),
                key=lambda name: (leading[name], name),
                default=None,
            )
        if name is None:
            return None
        leading[name] += 1
        leading[self._me.name] -= 1
        return HandOver(slot, row.epoch, name)

    def _able_to_lead(self, row: SlotRow, identity: str) -> str | None:
        member = self._present.get(identity)
        if (
            member is None
            or member.draining
            or member.name == self._me.name
            or identity not in row.in_sync
            or member.name in self._quiet
            or self._map.names[identity] != member.name
        ):
            return None
        return member.name

    def _learn(self, wanted: Plan, touched: set[int]) -> list[Change]:
        """The planner's part: learners as planned, no more than `moves_max` new ones on a node."""
        learning = dict.fromkeys(self._view.members, 0)
        for row in self._map.slots:
            for identity in row.learners:
                member = self._present.get(identity)
                if member is not None:
                    learning[member.name] += 1
        found: list[Change] = []
        for slot, row in enumerate(self._map.slots):
            copies = wanted.replicas[slot]
            if slot in touched or (not row.learners and copies == row.in_sync):
                continue
            learners = [identity for identity in row.learners if identity in copies]
            for identity in row.learners:
                if identity not in copies and identity in self._present:
                    learning[self._present[identity].name] -= 1
            for identity in copies:
                if identity in row.in_sync or identity in row.learners or identity not in self._present:
                    continue
                name = self._present[identity].name
                if learning[name] < self._facts.moves_max:
                    learning[name] += 1
                    learners.append(identity)
            if tuple(sorted(learners)) != row.learners:
                found.append(Learn(slot, row.epoch, tuple(sorted(learners))))
        return found

    # what they share

    def _answers(self, identity: str) -> bool:
        member = self._present.get(identity)
        return member is not None and member.name not in self._quiet

    def _leading(self) -> dict[str, int]:
        """How many slots each node leads."""
        led = dict.fromkeys(self._view.members, 0)
        for row in self._map.slots:
            if row.primary in led:
                led[row.primary] += 1
        return led


def bootstrap(view: View, config: FleetConfig, expected: int) -> Swap | None:
    """The first map, once `expected` nodes are there, all without data; None: wait, or there is a map.

    Any node may propose it: all make the same map of the same members.
    """
    if view.map is not None:
        return None
    if view.config is not None:
        raise BadValue(
            "the fleet's configuration is in etcd, but not its map: the key was deleted. Mend: stop all "
            "nodes and write the newest map found in their data: `gearfleet fleet restore`"
        )
    for name, member in sorted(view.members.items()):
        if not member.empty:
            raise NotEmpty(
                f"{name} has jobs in its data directory, and etcd has no map of the fleet: a node with data "
                "never makes a new fleet. If etcd was lost or restored: `gearfleet fleet restore`. If this "
                f"is to be a new fleet: stop {name} and start it with an empty data directory"
            )
    members = [member for _, member in sorted(view.members.items()) if not member.draining]
    if len(members) < max(expected, config.min_in_sync, 1):
        return None
    owner: dict[str, str] = {}
    for member in members:
        if member.identity in owner:
            raise IllegalChange(
                f"{owner[member.identity]} and {member.name} show one data directory, {member.identity}: "
                "give one of them an empty directory"
            )
        owner[member.identity] = member.name
    nodes = [
        Node(member.name, member.identity, member.zone or f"\0{member.name}", True) for member in members
    ]
    nothing: list[dict[int, Copy]] = [{}] * config.slots
    copies = Spreading(nodes, nothing, [-1] * config.slots, config.replicas).spread()
    leaders = Leading([True] * len(nodes), copies, nothing).balance()
    rows = tuple(
        SlotRow(
            1,
            members[leader].name,
            members[leader].incarnation,
            tuple(sorted(members[node].identity for node in copies[slot])),
        )
        for slot, leader in enumerate(leaders)
    )
    listed = {identity for row in rows for identity in row.in_sync}
    names = {identity: owner[identity] for identity in sorted(listed)}
    compare = {member.name: member.revision for member in members}
    return Swap(FleetMap(rows, names, lineage=lengthened((), 0, *members)), 0, compare, config)
