"""Who takes over from the dead: the same answer on every node that sees the same view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cluster.placement.view import Member, SlotRow, View, holders, primary_identity


class _Heirs(NamedTuple):
    """Of all slots with one dead primary and one in-sync set."""

    names: tuple[str, ...]
    itself: str | None  # the restarted primary


def takeovers(view: View, missed: frozenset[str] = frozenset()) -> dict[int, str]:
    """Slots whose primary is dead -> the node that should take each over.

    A restarted primary takes over from itself; of the others the one that leads least. Nodes that are being
    drained, or are missed themselves, only where there is nobody else.
    """
    if view.map is None:
        return {}
    led = dict.fromkeys(view.members, 0)
    alive: dict[tuple[str, int], bool] = {}
    dead: list[tuple[int, SlotRow]] = []
    for slot, row in enumerate(view.map.slots):
        process = (row.primary, row.incarnation)
        if process not in alive:
            member = view.members.get(row.primary)
            alive[process] = (
                member is not None and member.incarnation == row.incarnation and row.primary not in missed
            )
        if alive[process]:
            led[row.primary] += 1
        else:
            dead.append((slot, row))
    if not dead:
        return {}
    present = holders(view.members)
    known: dict[tuple[str, tuple[str, ...]], _Heirs] = {}
    assigned: dict[int, str] = {}
    waiting: list[tuple[int, tuple[str, ...]]] = []
    for slot, row in dead:
        key = (row.primary, row.in_sync)
        heirs = known.get(key)
        if heirs is None:
            heirs = known[key] = _heirs(row, view, view.map.names, present, missed)
        if heirs.itself is not None:
            assigned[slot] = heirs.itself
            led[heirs.itself] += 1
        elif heirs.names:
            waiting.append((slot, heirs.names))
    for slot, names in waiting:
        heir = min(names, key=lambda name: (led[name], name))
        assigned[slot] = heir
        led[heir] += 1
    return assigned


def _heirs(
    row: SlotRow,
    view: View,
    names: Mapping[str, str],
    present: Mapping[str, Member],
    missed: frozenset[str],
) -> _Heirs:
    able = [
        present[identity]
        for identity in row.in_sync
        if identity in present and not _moving(present[identity], view, names)
    ]
    best = (
        [member for member in able if not member.draining and member.name not in missed]
        or [member for member in able if member.name not in missed]
        or able
    )
    heirs = tuple(member.name for member in best)
    old = present.get(primary_identity(row, names) or "")
    itself = old.name if old is not None and old.name in heirs and old.name not in missed else None
    return _Heirs(heirs, itself)


def _moving(member: Member, view: View, names: Mapping[str, str]) -> bool:
    """Its data directory came from another node name, whose key still shows it."""
    before = view.members.get(names.get(member.identity, member.name))
    return before is not None and before.name != member.name and before.identity == member.identity
