"""A fleet on paper: nodes with data directories, and an etcd that compares before it writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from cluster.placement import (
    Change,
    Facts,
    FleetConfig,
    FleetMap,
    Member,
    SlotRow,
    Swap,
    View,
    apply_changes,
    bootstrap,
    propose,
)


def identity_of(number: int) -> str:
    return f"{number:032x}"


class Fleet:
    """Names are single letters; the first node's identity ends in 1, and so on."""

    def __init__(
        self,
        names: str = "abc",
        *,
        slots: int = 4,
        replicas: int = 3,
        min_in_sync: int = 2,
        zones: dict[str, str] | None = None,
        made: bool = True,
    ) -> None:
        self.revision = 100
        self.incarnation = 1000
        self.identities = 0
        self.config: FleetConfig | None = None
        self.map: FleetMap | None = None
        self.members: dict[str, Member] = {}
        self.nodes: dict[str, Member] = {}  # what each node would put into its key, up or not
        self.zones = zones or {}
        for name in names:
            self.join(name)
        if made:
            swap = bootstrap(self.view(), FleetConfig(slots, replicas, min_in_sync), len(names))
            assert swap is not None
            assert self.commit(swap)

    # etcd

    def view(self) -> View:
        return View(self.revision, self.config, self.map, dict(self.members))

    def commit(self, swap: Swap) -> bool:
        """Compare, then write; False if a comparison fails."""
        if swap.compare_revision != (0 if self.map is None else self.map.revision):
            return False
        for name, revision in swap.compare_members.items():
            if (self.members[name].revision if name in self.members else 0) != revision:
                return False
        if swap.config is not None:
            if self.config is not None:
                return False
            self.config = swap.config
        self.revision += 1
        self.map = replace(swap.map, revision=self.revision)
        return True

    def put_key(self, name: str) -> None:
        self.revision += 1
        self.nodes[name] = replace(self.nodes[name], revision=self.revision)
        self.members[name] = self.nodes[name]

    def lose_key(self, name: str) -> None:
        self.revision += 1
        del self.members[name]

    # what happens to nodes

    def join(self, name: str, identity: str | None = None) -> str:
        """A node is started for the first time; with `identity`, on a directory that was another's."""
        if identity is None:
            self.identities += 1
            identity = identity_of(self.identities)
        self.nodes[name] = Member(
            name, identity, 0, "localhost", 4730, 4731, zone=self.zones.get(name, ""), empty=True
        )
        self.start(name)
        return identity

    def start(self, name: str) -> None:
        """The process starts (again) and puts its key over whatever is there."""
        self.incarnation += 1
        self.nodes[name] = replace(self.nodes[name], incarnation=self.incarnation, draining=False)
        self.put_key(name)

    def wipe(self, name: str) -> str:
        """It starts again with an empty directory in place of the one it had."""
        self.identities += 1
        self.nodes[name] = replace(self.nodes[name], identity=identity_of(self.identities))
        self.start(name)
        return self.nodes[name].identity

    def drain(self, name: str, draining: bool = True, *, restarting: bool = False) -> None:
        self.nodes[name] = replace(self.nodes[name], draining=draining, restarting=restarting)
        self.put_key(name)

    # the map

    def row(self, slot: int) -> SlotRow:
        assert self.map is not None
        return self.map.slots[slot]

    @property
    def rows(self) -> tuple[SlotRow, ...]:
        assert self.map is not None
        return self.map.slots

    def set_row(self, slot: int, **changed: object) -> None:
        """An arbitrary row, as history may have left it."""
        assert self.map is not None
        rows = list(self.map.slots)
        rows[slot] = rows[slot]._replace(**changed)
        names = dict(self.map.names)
        for node in self.nodes.values():
            names.setdefault(node.identity, node.name)
        self.revision += 1
        self.map = replace(self.map, slots=tuple(rows), names=names, revision=self.revision)

    def identity(self, name: str) -> str:
        return self.nodes[name].identity

    def ids(self, names: str) -> tuple[str, ...]:
        return tuple(sorted(self.identity(name) for name in names))

    def in_sync(self, slot: int) -> str:
        """The names in the in-sync set, in order."""
        return self._names(self.row(slot).in_sync)

    def learners(self, slot: int) -> str:
        return self._names(self.row(slot).learners)

    def led_by(self, name: str) -> list[int]:
        return [slot for slot, row in enumerate(self.rows) if row.primary == name]

    def led(self) -> Counter[str]:
        return Counter(row.primary for row in self.rows)

    def copies(self) -> Counter[str]:
        assert self.map is not None
        return Counter(self.map.names[identity] for row in self.rows for identity in row.in_sync)

    def _names(self, identities: tuple[str, ...]) -> str:
        assert self.map is not None
        return "".join(sorted(self.map.names[identity] for identity in identities))

    # changes

    def swap(self, name: str, *changes: Change, missed: str = "") -> Swap:
        return apply_changes(self.view(), self.nodes[name], changes, missed=frozenset(missed))

    def change(self, name: str, *changes: Change, missed: str = "") -> None:
        assert self.commit(self.swap(name, *changes, missed=missed))

    def all_learners(self) -> frozenset[tuple[int, str]]:
        return frozenset((slot, learner) for slot, row in enumerate(self.rows) for learner in row.learners)

    def facts(self, name: str, **facts: object) -> Facts:
        """As if every learner had caught up."""
        facts.setdefault("caught_up", self.all_learners())
        facts.setdefault("planner", name == min(self.members))
        return Facts(**facts)  # type: ignore[arg-type]

    def propose(self, name: str, **facts: object) -> list[Change]:
        return propose(self.view(), name, self.facts(name, **facts))

    def turn(self, name: str, **facts: object) -> list[Change]:
        """The node proposes and its swap is made."""
        changes = self.propose(name, **facts)
        if changes:
            missed = facts.get("missed", frozenset())
            assert isinstance(missed, frozenset)
            assert self.commit(apply_changes(self.view(), self.nodes[name], changes, missed=missed))
        return changes

    def settle(self, rounds_max: int = 60, **facts: object) -> list[Change]:
        """Everybody's turn, again and again, until nobody has anything to propose."""
        made: list[Change] = []
        for _ in range(rounds_max):
            before = len(made)
            for name in sorted(self.members):
                made += self.turn(name, **facts)
            if len(made) == before:
                return made
        raise AssertionError(f"no fixed point in {rounds_max} rounds: {made[-20:]}")
