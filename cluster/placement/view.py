"""What a node can read in etcd: configuration, members, the map, all as of one revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

PROTOCOL_VERSION = 1  # of peer messages and etcd values; N talks to N and N+1
LINEAGE_MAX: Final = 256  # changes of the map by which its descent is told exactly


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """Written once, at bootstrap."""

    slots: int
    replicas: int
    min_in_sync: int


@dataclass(frozen=True, slots=True)
class Member:
    """A node's leased key: who it is, where it is reached."""

    name: str
    identity: str  # of its data directory, 32 hexadecimal digits
    incarnation: int  # of its process; larger at each start
    host: str  # the advertised address, for peers and clients
    port: int  # Gearman
    peer_port: int  # gRPC
    http_port: int = 0  # 0 = none
    zone: str = ""
    version: str = "0"
    protocol: int = PROTOCOL_VERSION
    draining: bool = False  # leads nothing new and leaves
    restarting: bool = False  # draining, but it comes back soon: its copies are not made anew elsewhere
    empty: bool = False  # its data directory holds nothing: it may take part in a bootstrap
    revision: int = field(default=0, compare=False)  # mod_revision of its key; not part of the value


class SlotRow(NamedTuple):
    """One slot in the map."""

    epoch: int
    primary: str  # the node's name
    incarnation: int  # of the primary's process that may lead in this epoch
    in_sync: tuple[str, ...]  # identities; sorted; the primary's own is one of them
    learners: tuple[str, ...] = ()  # identities that are catching up; sorted
    lossy: bool = False  # once taken over from less than an in-sync set (rule 9)


@dataclass(frozen=True, slots=True)
class FleetMap:
    """Slot -> epoch, primary, in-sync set, learners. One value in etcd."""

    slots: tuple[SlotRow, ...]
    names: Mapping[str, str]  # identity -> its node's name, for every identity in `slots`
    generation: int = 1  # raised by `gearfleet fleet restore`
    forgotten: frozenset[str] = frozenset()  # identities that an operator said will not come back
    lineage: tuple[int, ...] = field(default=(), compare=False)  # marks of the last changes, this one's last
    revision: int = field(default=0, compare=False)  # mod_revision in etcd; not part of the value


@dataclass(frozen=True, slots=True)
class View:
    """One linearizable read of all of it."""

    revision: int  # of etcd, when it was read
    config: FleetConfig | None = None
    map: FleetMap | None = None
    members: Mapping[str, Member] = field(default_factory=dict)  # name -> Member: keys that are present


@dataclass(frozen=True, slots=True)
class Swap:
    """A proposed change: compare, then write. Applied only if all comparisons hold.

    Compares the map's mod_revision with `compare_revision` (0: there is none yet), and the mod_revision of
    each node's key in `compare_members` (0: the key is absent).
    """

    map: FleetMap
    compare_revision: int
    compare_members: Mapping[str, int]
    config: FleetConfig | None = None  # written too, at bootstrap; compared to be absent


def holders(members: Mapping[str, Member]) -> dict[str, Member]:
    """Identity -> the present member that shows it."""
    return {members[name].identity: members[name] for name in sorted(members, reverse=True)}


def primary_identity(row: SlotRow, names: Mapping[str, str]) -> str | None:
    """The in-sync identity of a slot's primary; None only in a map that was edited by hand."""
    return next((identity for identity in row.in_sync if names.get(identity) == row.primary), None)


def leads(row: SlotRow, member: Member | None) -> bool:
    """May this very process lead the slot? Name, incarnation and data directory have to fit."""
    return (
        member is not None
        and row.primary == member.name
        and row.incarnation == member.incarnation
        and member.identity in row.in_sync
    )


def lengthened(lineage: tuple[int, ...], revision: int, *proposers: Member) -> tuple[int, ...]:
    """With the mark of one more change: of the map of this revision (0: there was none), by these processes.

    A process changes a map of one revision once, so no other change has the same mark, also when etcd was
    restored and what follows has the revisions of what followed before.
    """
    about = [f"{lineage[-1] if lineage else 0} {revision}"]
    about += [f"{member.identity} {member.incarnation}" for member in proposers]
    mark = int.from_bytes(blake2b("\n".join(about).encode(), digest_size=4).digest(), "big")
    return (*lineage[-(LINEAGE_MAX - 1) :], mark)


def descends(fleet_map: FleetMap, known: FleetMap) -> bool:
    """Rule 15: whether a map in etcd has come from one that a node has acted on.

    Not by the revision alone: an etcd that was restored may have gone on, and overtaken it. The lineage tells
    exactly, as far as it goes back. Before that: an epoch has one primary, so where that is another one, this
    is another history.
    """
    if fleet_map.generation != known.generation:
        return fleet_map.generation > known.generation
    if fleet_map.revision < known.revision:
        return False
    if fleet_map.lineage and known.lineage:
        if known.lineage[-1] in fleet_map.lineage:
            return True
        # It goes back to before the known one parted, or to its own beginning.
        if len(fleet_map.lineage) < LINEAGE_MAX or not set(known.lineage).isdisjoint(fleet_map.lineage):
            return False
    return all(
        new.epoch > old.epoch or new[:3] == old[:3]
        for new, old in zip(fleet_map.slots, known.slots, strict=False)
    )
