"""Where the copies of each slot and its primary should be: one function of the view, the same on every node.

It begins with what is there and changes as little as it can:

1. a slot's copies are its in-sync identities and its learners, those whose node stays: up and not being
   drained, or down for a short time (such a node keeps its place and gets nothing new);
2. too many: strike out, first where two are in one zone, then on nodes that hold more than others;
3. too few: add the least loaded nodes, in zones that the slot is not in yet;
4. two copies in a zone although another zone has a node: move one;
5. uneven: move a copy from the most to the least loaded node, as long as they differ by more than
   COPIES_SPREAD_SHARE of a node's share; zones come before evenness;
6. primaries stay where they are; then from the most to the least leading node, over third ones if need be,
   until they differ by no more than a few slots.

A learner that is listed is the memory of a move that was begun: steps 2 and 5 prefer it, so that the next
plan, made on the map as it is then, carries on instead of beginning another move.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cluster.placement.succession import takeovers
from cluster.placement.view import FleetConfig, FleetMap, SlotRow, View, holders, leads, primary_identity

COPIES_SPREAD_SHARE: Final = 0.02  # of a node's fair share: the most and the least loaded may differ by it
LEADERSHIP_SPREAD_SHARE: Final = 0.05  # the same for primaries,
LEADERSHIP_SPREAD_SLOTS_MAX: Final = 3  # and never by more slots than this

_IN_SYNC: Final = 0  # and up
_LEARNER: Final = 1  # and up
_PLACEHOLDER: Final = 2  # down, or the lost identity of a node that is up

Copies = tuple[int, ...]  # nodes, as indices in the order of their names, ascending


class Plan(NamedTuple):
    """What is wanted, by slot: identities of the copies, sorted, and the identity of the primary."""

    replicas: tuple[tuple[str, ...], ...]
    primaries: tuple[str, ...]


class Node(NamedTuple):
    """One that may hold copies."""

    name: str
    identity: str  # "" while it is down
    zone: str  # one of its own if it says none
    up: bool


class Copy(NamedTuple):
    """What a slot has on a node now."""

    state: int
    identity: str


def plan(view: View, away: frozenset[str] = frozenset()) -> Plan:
    """`away` are names of nodes that are down for so long that their copies are made anew elsewhere."""
    if view.config is None or view.map is None:
        return Plan((), ())
    return _Planning(view, view.config, view.map, away).plan()


def leadership_spread_max(slots: int, nodes: int) -> int:
    """By how many slots the most and the least leading node may differ."""
    share = slots / max(nodes, 1)
    return max(1, min(LEADERSHIP_SPREAD_SLOTS_MAX, int(share * LEADERSHIP_SPREAD_SHARE)))


def copies_spread_max(copies: int, nodes: int) -> int:
    """By how many copies the most and the least loaded node may differ."""
    return max(1, int(copies / max(nodes, 1) * COPIES_SPREAD_SHARE))


class _Planning:
    """One call of `plan`."""

    __slots__ = (
        "_config",
        "_found",
        "_known",
        "_map",
        "_nodes",
        "_place_of",
        "_present",
        "_rows",
        "_view",
    )

    def __init__(self, view: View, config: FleetConfig, fleet_map: FleetMap, away: frozenset[str]) -> None:
        self._view = view
        self._config = config
        self._map = fleet_map
        self._rows = fleet_map.slots
        self._present = holders(view.members)
        self._nodes = _nodes(view, fleet_map, away)
        places = {node.name: index for index, node in enumerate(self._nodes)}
        self._place_of: dict[str, tuple[int, bool]] = {}  # identity -> node (-1: none), and is it there
        for identity, name in fleet_map.names.items():
            member = self._present.get(identity)
            if member is not None:
                self._place_of[identity] = (places.get(member.name, -1), True)
            elif name in view.members or identity not in fleet_map.forgotten:
                self._place_of[identity] = (places.get(name, -1), False)
            else:
                self._place_of[identity] = (-1, False)
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[int, Copy]] = {}
        self._found = [self._copies(row) for row in self._rows]

    def plan(self) -> Plan:
        copies = Spreading(self._nodes, self._found, self._primary_nodes(), self._config.replicas).spread()
        primaries = self._lead(copies)
        named: dict[tuple[object, ...], tuple[str, ...]] = {}  # most slots have one of a few sets
        replicas: list[tuple[str, ...]] = []
        leaders: list[str] = []
        for slot, row in enumerate(self._rows):
            key = (copies[slot], row.in_sync, row.learners)
            if key not in named:
                named[key] = self._identities(copies[slot], self._found[slot], row)
            replicas.append(named[key])
            leader = primaries[slot]
            if leader >= 0:
                leaders.append(self._nodes[leader].identity)
            else:
                leaders.append(primary_identity(row, self._map.names) or row.in_sync[0])
        return Plan(tuple(replicas), tuple(leaders))

    def _copies(self, row: SlotRow) -> dict[int, Copy]:
        """What there is of a slot on nodes that stay. Equal rows share one answer."""
        key = (row.in_sync, row.learners)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = {}
            for identities, state in ((row.in_sync, _IN_SYNC), (row.learners, _LEARNER)):
                for identity in identities:
                    node, there = self._place_of[identity]
                    copy = Copy(state if there else _PLACEHOLDER, identity)
                    if node >= 0 and (node not in found or copy.state < found[node].state):
                        found[node] = copy
        return found

    def _primary_nodes(self) -> list[int]:
        """The node of each slot's primary, whether it is up or not; -1 if it does not stay."""
        places = {node.name: index for index, node in enumerate(self._nodes)}
        return [places.get(row.primary, -1) for row in self._rows]

    def _lead(self, copies: list[Copies]) -> list[int]:
        """The node that should lead each slot; -1: nobody can, leave it as it is."""
        heirs = takeovers(self._view)
        places = {node.name: index for index, node in enumerate(self._nodes)}
        leading = Leading([node.up for node in self._nodes], copies, self._found)
        for slot, row in enumerate(self._rows):
            name = heirs.get(slot, row.primary)
            if slot in heirs or leads(row, self._view.members.get(name)):
                leading.stay(slot, places.get(name, -1))
        return leading.balance()

    def _identities(self, copies: Copies, found: dict[int, Copy], row: SlotRow) -> tuple[str, ...]:
        wanted = {
            self._nodes[node].identity if self._nodes[node].up else found[node].identity for node in copies
        }
        if not any(node.up for node in self._nodes):  # the whole fleet is being drained
            wanted.update(row.in_sync)
        # Where too few nodes stay, those that are there have to do: drained or down, but in sync.
        spare = sorted(
            (identity not in self._present, identity) for identity in row.in_sync if identity not in wanted
        )
        for _, identity in spare:
            if len(wanted) < self._config.min_in_sync:
                wanted.add(identity)
        return tuple(sorted(wanted))


def _nodes(view: View, fleet_map: FleetMap, away: frozenset[str]) -> list[Node]:
    """All that stay, in the order of their names."""
    found = {
        member.name: Node(member.name, member.identity, member.zone or f"\0{member.name}", True)
        for member in view.members.values()
        if not member.draining
    }
    present = holders(view.members)
    for identity, name in fleet_map.names.items():
        holder = present.get(identity)
        if holder is not None and holder.draining and holder.restarting:
            found[name] = Node(name, "", f"\0{name}", False)
            continue
        gone = name in view.members or holder is not None or identity in fleet_map.forgotten or name in away
        if not gone:
            found[name] = Node(name, "", f"\0{name}", False)
    return [found[name] for name in sorted(found)]


class Spreading:
    """Steps 2 to 5: on which nodes each slot should have copies."""

    __slots__ = ("_copies", "_found", "_loads", "_nodes", "_primaries", "_replicas", "_up")

    def __init__(
        self, nodes: list[Node], found: list[dict[int, Copy]], primaries: list[int], replicas: int
    ) -> None:
        self._nodes = nodes
        self._up = [index for index, node in enumerate(nodes) if node.up]
        self._found = found
        self._primaries = primaries
        self._replicas = replicas
        self._copies: list[Copies] = [tuple(sorted(copies)) for copies in found]
        self._loads = [0] * len(nodes)
        for copies in self._copies:
            for node in copies:
                self._loads[node] += 1

    def spread(self) -> list[Copies]:
        self._strike()
        self._fill()
        if len({node.zone for node in self._nodes}) < len(self._nodes):
            self._separate()
        self._even()
        return self._copies

    def _strike(self) -> None:
        even = self._spread_max()
        for slot, copies in enumerate(self._copies):
            while len(copies) > self._replicas:
                least = min(self._loads[node] for node in copies)
                crowd = self._crowds(copies)
                most = max(crowd.values())
                node = max(
                    copies,
                    key=lambda node: (
                        most > 1 and crowd[self._nodes[node].zone] == most,
                        self._loads[node] > least + even,
                        self._found[slot][node].state,
                        node != self._primaries[slot],
                        self._loads[node],
                        node,
                    ),
                )
                copies = tuple(other for other in copies if other != node)
                self._loads[node] -= 1
            self._copies[slot] = copies

    def _fill(self) -> None:
        for slot, copies in enumerate(self._copies):
            while len(copies) < min(self._replicas, len(self._nodes)):
                crowd = self._crowds(copies)
                free = [node for node in self._up if node not in copies]
                if not free:
                    break
                node = min(
                    free,
                    key=lambda node: (
                        crowd.get(self._nodes[node].zone, 0),
                        self._loads[node],
                        _die(slot, node),
                    ),
                )
                copies = tuple(sorted((*copies, node)))
                self._loads[node] += 1
            self._copies[slot] = copies

    def _separate(self) -> None:
        known: dict[Copies, bool] = {}  # can a set be made better?
        for slot in range(len(self._copies)):
            while True:
                copies = self._copies[slot]
                if known.get(copies) is False:
                    break
                crowd = self._crowds(copies)
                most = max(crowd.values(), default=0)
                better = [
                    node
                    for node in self._up
                    if node not in copies and crowd.get(self._nodes[node].zone, 0) <= most - 2
                ]
                known[copies] = bool(better)
                if not better:
                    break
                target = min(
                    better,
                    key=lambda node: (
                        crowd.get(self._nodes[node].zone, 0),
                        self._loads[node],
                        _die(slot, node),
                    ),
                )
                crowded = [node for node in copies if crowd[self._nodes[node].zone] == most]
                self._move(slot, max(crowded, key=lambda node: self._cheapness(slot, node)), target)

    def _even(self) -> None:
        even = self._spread_max()
        choices: dict[tuple[int, int], list[int]] = {}
        while True:
            move = self._next_move(even, choices)
            if move is None:
                return
            self._move(*move)

    def _next_move(self, even: int, choices: dict[tuple[int, int], list[int]]) -> tuple[int, int, int] | None:
        """Slot, from, to: between the two nodes that differ most and have a slot to move."""
        sources = sorted(range(len(self._nodes)), key=lambda node: (-self._loads[node], node))
        targets = sorted(self._up, key=lambda node: (self._loads[node], node))
        for source in sources:
            for target in targets:
                if self._loads[source] - self._loads[target] <= even:
                    break
                if (source, target) not in choices:
                    choices[source, target] = self._choices(source, target)
                left = choices[source, target]
                while left:
                    slot = left.pop()
                    if self._fits(slot, source, target):
                        return slot, source, target
        return None

    def _choices(self, source: int, target: int) -> list[int]:
        """Slots that could move, the best last: a move that was begun already, then what costs least."""
        slots = [slot for slot in range(len(self._copies)) if self._fits(slot, source, target)]
        slots.sort(key=lambda slot: (target in self._found[slot], self._cheapness(slot, source), -slot))
        return slots

    def _cheapness(self, slot: int, node: int) -> tuple[int, bool, int]:
        """How little is lost when a slot leaves a node."""
        copy = self._found[slot].get(node)
        state = _PLACEHOLDER if copy is None else copy.state
        return (state, node != self._primaries[slot], self._loads[node])

    def _fits(self, slot: int, source: int, target: int) -> bool:
        """Does the move keep one copy a node, and make no zone more crowded than it makes another less?"""
        copies = self._copies[slot]
        if source not in copies or target in copies:
            return False
        zone, other = self._nodes[source].zone, self._nodes[target].zone
        if zone == other:
            return True
        crowd = self._crowds(copies)
        return crowd.get(other, 0) <= crowd[zone] - 1

    def _move(self, slot: int, source: int, target: int) -> None:
        copies = self._copies[slot]
        self._copies[slot] = tuple(sorted(target if node == source else node for node in copies))
        self._loads[source] -= 1
        self._loads[target] += 1

    def _crowds(self, copies: Copies) -> dict[str, int]:
        """Zone -> how many of these copies are in it."""
        crowd: dict[str, int] = {}
        for node in copies:
            zone = self._nodes[node].zone
            crowd[zone] = crowd.get(zone, 0) + 1
        return crowd

    def _spread_max(self) -> int:
        replicas = min(self._replicas, len(self._nodes))
        return copies_spread_max(len(self._copies) * replicas, len(self._nodes))


class Leading:
    """Step 6: which of a slot's copies should lead it."""

    __slots__ = ("_able", "_copies", "_found", "_leader", "_led", "_ways")

    def __init__(self, able: list[bool], copies: list[Copies], found: list[dict[int, Copy]]) -> None:
        self._able = able
        self._copies = copies
        self._found = found
        self._leader = [-1] * len(copies)
        self._led = [0] * len(able)
        self._ways: list[list[set[tuple[int, int]]]] = []  # from, to: (not in sync there yet, slot)

    def stay(self, slot: int, node: int) -> None:
        """The slot is led by this node, or will be in a moment."""
        if node >= 0 and self._able[node] and node in self._copies[slot]:
            self._leader[slot] = node
            self._led[node] += 1

    def balance(self) -> list[int]:
        """The leader of every slot; -1 where no copy can lead."""
        self._place()
        able = [node for node in range(len(self._able)) if self._able[node]]
        allowed = leadership_spread_max(len(self._copies), len(able))
        led = self._led
        if able and max(led[node] for node in able) - min(led[node] for node in able) > allowed:
            self._open_ways()
            while self._shift(able, allowed):
                pass
        return self._leader

    def _place(self) -> None:
        """Slots whose primary is dead or does not stay: the least leading, at best one that is in sync."""
        for slot, leader in enumerate(self._leader):
            if leader >= 0:
                continue
            able = [node for node in self._copies[slot] if self._able[node]]
            if able:
                node = min(able, key=lambda node: (self._lags(slot, node), self._led[node], node))
                self._leader[slot] = node
                self._led[node] += 1

    def _open_ways(self) -> None:
        count = len(self._able)
        self._ways = [[set() for _ in range(count)] for _ in range(count)]
        for slot, leader in enumerate(self._leader):
            if leader >= 0:
                self._list(slot, leader)

    def _list(self, slot: int, leader: int) -> None:
        for node in self._copies[slot]:
            if node != leader and self._able[node]:
                self._ways[leader][node].add((self._lags(slot, node), slot))

    def _shift(self, able: list[int], allowed: int) -> bool:
        """One slot less for a node that leads much, one more for one that leads little."""
        for source in sorted(able, key=lambda node: (-self._led[node], node)):
            came_from = self._reachable(source, able)
            target = min(came_from, key=lambda node: (self._led[node], node))
            if self._led[source] - self._led[target] <= allowed:
                continue
            while target != source:
                before = came_from[target]
                slot = min(self._ways[before][target])[1]
                for node in self._copies[slot]:
                    self._ways[before][node].discard((self._lags(slot, node), slot))
                self._leader[slot] = target
                self._led[before] -= 1
                self._led[target] += 1
                self._list(slot, target)
                target = before
            return True
        return False

    def _reachable(self, source: int, able: Iterable[int]) -> dict[int, int]:
        """Nodes that a slot can be passed on to, over others, -> whom they would have it from."""
        came_from = {source: source}
        edge = [source]
        while edge:
            following: list[int] = []
            for node in edge:
                for other in able:
                    if other not in came_from and self._ways[node][other]:
                        came_from[other] = node
                        following.append(other)
            edge = following
        return came_from

    def _lags(self, slot: int, node: int) -> int:
        copy = self._found[slot].get(node)
        return 0 if copy is not None and copy.state == _IN_SYNC else 1


def _die(slot: int, node: int) -> int:
    """Breaks ties differently for each slot, so that any two nodes share some slots."""
    mixed = (slot * 0x9E3779B97F4A7C15 + node * 0xC2B2AE3D27D4EB4F + 1) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 27)) & 0xFFFFFFFF
