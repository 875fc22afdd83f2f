"""Legal changes of the map: every one goes through `apply_changes`, whoever proposes it.

The theory. The map is one value; a change is a swap that compares its revision, so of two proposals made
on the same map one is applied and the other is refused. What a swap may do is decided here, from one view,
by a function without state: it is given the proposer and the epoch that the proposer believes in, and
refuses everything else. What else has to be true at the moment of the swap (a node's key is absent, or is
still what it was) goes into the swap as a comparison.

Invariants of every row that leaves this file:

- the primary's identity is in the in-sync set, and no node has two identities in it;
- one primary in an epoch: who leads changes only together with the epoch;
- the set shrinks only to `min_in_sync` or more, unless an operator promoted a copy with loss;
- no learner is in sync.

What leaves because it is dead, or restarts, stays listed as a learner: it keeps its place until the planner
gives the place away (`plan.py`). What leaves although it is there (drained, surplus) is struck out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from cluster.placement.errors import IllegalChange
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
    primary_identity,
)


class TakeOver(NamedTuple):
    """The proposer becomes the primary of a slot whose primary is dead (rule 8)."""

    slot: int
    epoch: int


class HandOver(NamedTuple):
    """The primary makes another in-sync node the primary."""

    slot: int
    epoch: int
    to: str  # the node's name


class Leave(NamedTuple):
    """The primary strikes an identity from the in-sync set."""

    slot: int
    epoch: int
    identity: str


class Enter(NamedTuple):
    """The primary takes a caught-up identity into the in-sync set (rule 6)."""

    slot: int
    epoch: int
    identity: str
    replaces: str | None = None  # the lost identity of the same node


class Learn(NamedTuple):
    """Sets the learners of a slot; anybody may."""

    slot: int
    epoch: int
    learners: tuple[str, ...]


class Promote(NamedTuple):
    """The proposer takes over from less than an in-sync set: jobs may be lost (rule 9)."""

    slot: int
    epoch: int


class Forget(NamedTuple):
    """An operator's word that an identity will not come back."""

    identity: str


class Touch(NamedTuple):
    """Writes the map as it is, so that its revision moves: a swap still on its way is refused then."""


Change = TakeOver | HandOver | Leave | Enter | Learn | Promote | Forget | Touch


def apply_changes(
    view: View, proposer: Member, changes: Sequence[Change], *, missed: frozenset[str] = frozenset()
) -> Swap:
    """The swap that makes these changes, or IllegalChange.

    `missed` are nodes that the proposer and enough other members have not heard for long: their keys are
    not checked at a takeover (rule 8, last sentence).
    """
    if not changes:
        raise IllegalChange("there is nothing to change: propose at least one change")
    if view.config is None or view.map is None:
        raise IllegalChange("there is no fleet yet: its configuration and map are made by the bootstrap")
    if len(view.map.slots) != view.config.slots:
        raise IllegalChange(
            f"the map has {len(view.map.slots)} slots and the configuration {view.config.slots}: an operator "
            "has to write back the one that was edited"
        )
    own = view.members.get(proposer.name)
    if own is None:
        raise IllegalChange(f"the key of {proposer.name} is gone: put it back, then propose again")
    if (own.identity, own.incarnation) != (proposer.identity, proposer.incarnation):
        raise IllegalChange(
            f"the key of {proposer.name} shows another process: this one is over and may propose nothing"
        )
    return _Changing(view, view.config, view.map, own, missed).apply(changes)


class _Changing:
    """One call of `apply_changes`."""

    __slots__ = (
        "_changed",
        "_compare",
        "_config",
        "_forgotten",
        "_holders",
        "_map",
        "_members",
        "_missed",
        "_names",
        "_proposer",
        "_rows",
    )

    def __init__(
        self, view: View, config: FleetConfig, fleet_map: FleetMap, proposer: Member, missed: frozenset[str]
    ) -> None:
        self._config = config
        self._map = fleet_map
        self._members = view.members
        self._holders = holders(view.members)
        self._proposer = proposer
        self._missed = missed
        self._rows = list(fleet_map.slots)
        self._names = dict(fleet_map.names)
        self._forgotten = set(fleet_map.forgotten)
        self._changed: set[int] = set()  # slots whose membership this swap changes
        self._compare: dict[str, int] = {proposer.name: proposer.revision}

    def apply(self, changes: Sequence[Change]) -> Swap:
        for change in changes:
            match change:
                case TakeOver():
                    self._take_over(change)
                case HandOver():
                    self._hand_over(change)
                case Leave():
                    self._leave(change)
                case Enter():
                    self._enter(change)
                case Learn():
                    self._learn(change)
                case Promote():
                    self._promote(change)
                case Forget():
                    self._forget(change)
                case Touch():
                    pass
        self._tidy()
        old = self._map
        lineage = lengthened(old.lineage, old.revision, self._proposer)
        fleet_map = FleetMap(
            tuple(self._rows), self._names, old.generation, frozenset(self._forgotten), lineage
        )
        return Swap(fleet_map, old.revision, self._compare)

    # one method per change

    def _take_over(self, change: TakeOver) -> None:
        row = self._row(change, membership=True)
        me = self._proposer
        if me.identity not in row.in_sync:
            self._refuse(change, f"{me.name} is not in sync: only an in-sync member takes over")
        if row.primary == me.name:
            if row.incarnation == me.incarnation:
                self._refuse(change, f"{me.name} is the primary already")
        elif row.primary not in self._missed:
            old = self._members.get(row.primary)
            if old is not None and old.incarnation == row.incarnation:
                self._refuse(change, f"the key of its primary {row.primary} is there: wait until it is gone")
            self._compare[row.primary] = 0 if old is None else old.revision
        in_sync, learners = row.in_sync, row.learners
        loser = primary_identity(row, self._names)
        if loser is not None and loser != me.identity and len(in_sync) > self._config.min_in_sync:
            in_sync = _without(in_sync, loser)
            if loser not in self._forgotten:
                learners = _with(learners, loser)
        self._rows[change.slot] = SlotRow(
            row.epoch + 1, me.name, me.incarnation, in_sync, learners, row.lossy
        )

    def _hand_over(self, change: HandOver) -> None:
        row = self._led_row(change)
        target = self._members.get(change.to)
        if target is None:
            self._refuse(change, f"the key of {change.to} is not there: hand over to a node that is up")
        if target.name == self._proposer.name:
            self._refuse(change, f"{change.to} leads it already: hand over to another node")
        if target.draining:
            self._refuse(change, f"{change.to} is being drained: hand over to a node that stays")
        if target.identity not in row.in_sync:
            self._refuse(change, f"{change.to} is not in sync with the data directory that it has now")
        self._compare[target.name] = target.revision
        self._rows[change.slot] = row._replace(
            epoch=row.epoch + 1, primary=target.name, incarnation=target.incarnation
        )

    def _leave(self, change: Leave) -> None:
        row = self._led_row(change)
        if change.identity not in row.in_sync:
            self._refuse(change, f"{self._who(change.identity)} is not in sync")
        if change.identity == self._proposer.identity:
            self._refuse(change, "a primary cannot leave its own set: hand the slot over first")
        if len(row.in_sync) <= self._config.min_in_sync:
            self._refuse(
                change,
                f"fewer than min_in_sync {self._config.min_in_sync} would be left: let another enter first",
            )
        learners = row.learners
        holder = self._holders.get(change.identity)
        if (holder is None or holder.restarting) and change.identity not in self._forgotten:
            learners = _with(learners, change.identity)
        self._rows[change.slot] = row._replace(
            in_sync=_without(row.in_sync, change.identity), learners=learners
        )

    def _enter(self, change: Enter) -> None:
        row = self._led_row(change)
        identity, replaces = change.identity, change.replaces
        member = self._holders.get(identity)
        if member is None:
            self._refuse(change, f"no node that is up shows {self._who(identity)}")
        if identity in row.in_sync:
            self._refuse(change, f"{self._who(identity)} is in sync already")
        in_sync = row.in_sync
        if replaces is None:
            if identity not in row.learners:
                self._refuse(change, f"{self._who(identity)} is no learner: it has to be made one first")
            for other in in_sync:
                if self._names.get(other) == member.name:
                    self._refuse(change, f"it has to replace {self._who(other)}, of the same node")
        else:
            if replaces not in in_sync:
                self._refuse(change, f"{self._who(replaces)}, to be replaced, is not in sync")
            if self._names.get(replaces) != member.name:
                self._refuse(change, f"{self._who(replaces)} is another node's: only its own is replaced")
            if replaces in self._holders:
                self._refuse(change, f"{self._who(replaces)} is not lost: a node that is up shows it")
            in_sync = _without(in_sync, replaces)
        self._compare[member.name] = member.revision
        self._names.setdefault(identity, member.name)
        self._rows[change.slot] = row._replace(
            in_sync=_with(in_sync, identity), learners=_without(row.learners, identity)
        )

    def _learn(self, change: Learn) -> None:
        row = self._row(change)
        learners = tuple(sorted(change.learners))
        if learners == row.learners:
            return
        if len(set(learners)) != len(learners):
            self._refuse(change, "a learner is listed twice")
        for identity in learners:
            if identity in row.in_sync:
                self._refuse(change, f"{self._who(identity)} is in sync: it has nothing to learn")
            if identity not in row.learners:
                member = self._holders.get(identity)
                if member is None:
                    self._refuse(change, f"no node that is up shows {self._who(identity)}")
                self._names.setdefault(identity, member.name)
        self._rows[change.slot] = row._replace(learners=learners)

    def _promote(self, change: Promote) -> None:
        row = self._row(change, membership=True)
        me = self._proposer
        for identity in row.in_sync:
            member = self._holders.get(identity)
            if member is not None:
                self._refuse(
                    change, f"{member.name} is up and in sync: it serves or takes over without losing a job"
                )
            name = self._names[identity]
            found = self._members.get(name)
            self._compare[name] = 0 if found is None else found.revision
        self._names.setdefault(me.identity, me.name)
        learners = tuple(sorted({*row.in_sync, *row.learners} - {me.identity}))
        self._rows[change.slot] = SlotRow(
            row.epoch + 1, me.name, me.incarnation, (me.identity,), learners, lossy=True
        )

    def _forget(self, change: Forget) -> None:
        identity = change.identity
        if identity in self._holders:
            raise IllegalChange(
                f"{self._holders[identity].name} is up and shows {identity}: drain it instead"
            )
        if identity not in self._names:
            raise IllegalChange(f"no slot lists {identity}: there is nothing to forget")
        self._forgotten.add(identity)
        for slot, row in enumerate(self._rows):
            if identity in row.learners:
                self._rows[slot] = row._replace(learners=_without(row.learners, identity))

    # what they share

    def _row(
        self, change: TakeOver | HandOver | Leave | Enter | Learn | Promote, *, membership: bool = False
    ) -> SlotRow:
        """The slot's row, in the epoch that the proposer believes in."""
        if not 0 <= change.slot < len(self._rows):
            self._refuse(change, f"there are slots 0 to {len(self._rows) - 1}")
        row = self._rows[change.slot]
        if membership:
            if change.slot in self._changed:
                self._refuse(change, "one change of a slot's members in one swap: make it in the next")
            self._changed.add(change.slot)
        if change.epoch != row.epoch:
            self._refuse(change, f"it is in epoch {row.epoch}, not {change.epoch}: read the map again")
        return row

    def _led_row(self, change: HandOver | Leave | Enter) -> SlotRow:
        """The same, for what only the slot's primary may do."""
        row = self._row(change, membership=True)
        if not leads(row, self._proposer):
            self._refuse(
                change, f"only its primary may: {row.primary}, incarnation {row.incarnation}, while in sync"
            )
        return row

    def _tidy(self) -> None:
        """Names for all that is listed, and for nothing else; then the invariants."""
        listed: set[str] = set()
        known: set[tuple[str, ...]] = set()  # most rows list the same few sets
        for row in self._rows:
            for identities in (row.in_sync, row.learners):
                if identities not in known:
                    known.add(identities)
                    listed.update(identities)
        names = {identity: self._names[identity] for identity in sorted(listed)}
        for identity, name in names.items():
            member = self._holders.get(identity)
            if member is not None and member.name != name and self._may_rename(identity, member.name):
                names[identity] = member.name
        self._names = names
        self._forgotten = {
            identity for identity in self._forgotten if identity in names and identity not in self._holders
        }
        renamed = any(
            names[identity] != name for identity, name in self._map.names.items() if identity in names
        )
        for slot in range(len(self._rows)) if renamed else sorted(self._changed):
            self._check(slot)

    def _may_rename(self, identity: str, name: str) -> bool:
        """A data directory has moved to another node name. The map follows once no slot is led by the old
        one with it: until then the row's primary would have no identity in its set."""
        return not any(
            identity in row.in_sync
            and (
                row.primary == self._names[identity]
                or any(other != identity and self._names[other] == name for other in row.in_sync)
            )
            for row in self._rows
        )

    def _check(self, slot: int) -> None:
        row = self._rows[slot]
        names = [self._names[identity] for identity in row.in_sync]
        if row.primary not in names:
            raise IllegalChange(
                f"slot {slot}: its primary {row.primary} would have no copy in the in-sync set; a data "
                "directory that moved to another node name takes over all its slots in one swap"
            )
        if len(set(names)) != len(names):
            raise IllegalChange(f"slot {slot}: two data directories of one node in sync: one has to leave")
        if not set(row.in_sync).isdisjoint(row.learners):
            raise IllegalChange(f"slot {slot}: a learner is in sync already")

    def _who(self, identity: str) -> str:
        """A data directory in words."""
        member = self._holders.get(identity)
        name = member.name if member is not None else self._names.get(identity)
        return f"{identity} of {name}" if name is not None else identity

    def _refuse(self, change: Change, why: str) -> NoReturn:
        slot = getattr(change, "slot", None)
        raise IllegalChange(f"{type(change).__name__} of slot {slot}: {why}")


def raise_epochs(fleet_map: FleetMap, above: Mapping[int, int] | int, generation: int) -> FleetMap:
    """The map that a restored etcd gets (rule 15): every epoch beyond `above`, what any node has persisted
    (of all slots, or slot by slot), and no primary's incarnation, so that every slot is taken over anew.

    `generation` is the highest one seen anywhere.
    """
    rows = tuple(
        row._replace(
            epoch=max(row.epoch, above if isinstance(above, int) else above.get(slot, 0)) + 1, incarnation=0
        )
        for slot, row in enumerate(fleet_map.slots)
    )
    return FleetMap(rows, fleet_map.names, max(fleet_map.generation, generation) + 1, fleet_map.forgotten)


def _with(identities: tuple[str, ...], identity: str) -> tuple[str, ...]:
    return tuple(sorted({*identities, identity}))


def _without(identities: tuple[str, ...], identity: str) -> tuple[str, ...]:
    return tuple(other for other in identities if other != identity)
