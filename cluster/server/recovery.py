"""Rule 15: etcd was lost or went back; write the fleet's newest map into it anew.

    read_saved(data directory)  what one stopped node knows: the map it acted on last, and the highest epoch
                                that it has promised or written, slot by slot
    plan_restore(all of those)  the newest map, with every epoch beyond any that a node knows: no entry of
                                before can be taken for one of after
    restore()                   into etcd, in one transaction that fails when any node is up

The new map has no primary's incarnation, so every slot is taken over anew, by an in-sync data directory
(rule 8), and a generation of its own, so that each node sees that it replaces the map it knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aetcd import rpc  # type: ignore[import-untyped]

from cluster.placement import (
    BadValue,
    FleetConfig,
    FleetMap,
    decode_config,
    decode_map,
    descends,
    encode_config,
    encode_map,
    raise_epochs,
)
from cluster.replication import SLOT_COUNT, entries
from cluster.server.directory import DataDirectory
from cluster.server.errors import DirectoryError
from cluster.server.etcd import Etcd, EtcdOptions, delete, get, put, range_end, transaction, unchanged
from cluster.server.journal import Replay, read_journal

FORMAT: Final = 1  # of the files that `gearfleet fleet saved-map` writes


class RestoreRefused(Exception):
    """It would do harm, or cannot be done; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What one data directory knows."""

    source: str  # where that was read, for messages
    fleet: str
    identity: str
    promised: tuple[int, ...]  # by slot: the highest epoch that it has promised, or has entries of
    map: FleetMap | None = None
    config: FleetConfig | None = None  # None where an older release saved the map
    damage: str = ""  # what could not be read of it
    nonces: tuple[str, ...] = ()  # etcd has one of these; () where an older release saved the map
    past_nonces: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()  # identities that the directory had; what they had is gone

    def would_refuse(self, generation: int, nonce: str) -> bool:
        """Whether its node would not start with what etcd has: a map of this generation, and this nonce for
        its last start, "" for none. FleetLife.look decides so."""
        if not self.nonces or nonce in self.nonces:
            return False
        if not nonce:
            return self.map is None or generation <= self.map.generation
        return nonce in self.past_nonces

    @property
    def age(self) -> tuple[int, int]:
        """Of two maps the one with more is newer: etcd's revisions begin anew with each generation."""
        return (self.map.generation, self.map.revision) if self.map is not None else (0, 0)


@dataclass(frozen=True, slots=True)
class Restore:
    """What is to be written."""

    fleet: str
    map: FleetMap
    config: FleetConfig | None  # None: the nodes do not say it
    newest: Saved
    saved: tuple[Saved, ...]  # what all the nodes know
    lost: tuple[int, ...]  # slots that none of these data directories has a whole copy of

    @property
    def known(self) -> tuple[FleetMap, ...]:
        """All maps that the nodes have acted on."""
        return tuple(each.map for each in self.saved if each.map is not None)


# ---- what a node knows


def read_saved(path: Path) -> Saved:
    """Read a stopped node's data directory. Raises DirectoryError, above all when the node runs.

    As at a start, a torn tail of the journal is cut, and what does not count any more after a failed fsync is
    put aside; nothing else is changed.
    """
    try:
        content = json.loads((path / "identity").read_bytes())
        fleet = content.get("fleet")
    except (OSError, ValueError, AttributeError):
        raise DirectoryError(
            f"{path} is no data directory of a node: give what the node has as --data-dir"
        ) from None
    if fleet is None:
        raise DirectoryError(f"{path} belongs to no fleet: its node stood alone, or never found etcd")
    directory = DataDirectory(path, fleet)
    try:
        damage = []
        fleet_map = config = None
        try:
            saved = directory.load_map()
            if saved is not None:
                fleet_map = decode_map(saved.data, saved.revision, key=str(path / "map"))
                if saved.config:
                    config = decode_config(saved.config, key=str(path / "map"))
        except (DirectoryError, BadValue) as error:
            damage.append(str(error))
        promised = [0] * SLOT_COUNT
        replay = Replay()
        # Damage does not matter for this, and the node that starts on it begins with nothing.
        for entry in read_journal(
            directory.journal_path, directory.identity, replay, salvage=True, decode=entries.decode_raw
        ):
            if entry.slot < SLOT_COUNT:
                promised[entry.slot] = max(promised[entry.slot], entry.epoch)
        if replay.skipped_bytes:
            damage.append(
                f"{replay.skipped_bytes} bytes of the journal in {path} are damaged: its node will begin "
                "with nothing and catch up from the others"
            )
        return Saved(
            str(path),
            fleet,
            directory.identity.hex,
            tuple(promised),
            fleet_map,
            config,
            "; ".join(damage),
            *directory.nonces,
            directory.formerly,
        )
    finally:
        directory.close()


def encode_saved(saved: Saved) -> str:
    """As a file that can be carried to another machine."""
    fleet_map, config = saved.map, saved.config
    return json.dumps(
        {
            "format": FORMAT,
            "source": saved.source,
            "fleet": saved.fleet,
            "identity": saved.identity,
            "revision": fleet_map.revision if fleet_map is not None else 0,
            "config": json.loads(encode_config(config)) if config is not None else None,
            "map": json.loads(encode_map(fleet_map)) if fleet_map is not None else None,
            "promised": list(saved.promised),
            "damage": saved.damage,
            "nonces": saved.nonces,
            "past_nonces": saved.past_nonces,
            "formerly": saved.formerly,
        }
    )


def decode_saved(text: str | bytes, source: str) -> Saved:
    """Raises RestoreRefused."""
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise RestoreRefused(
                f"{source} has format {value['format']}, this release knows {FORMAT}: use the release that "
                "wrote it"
            )
        promised = tuple(value["promised"])
        if len(promised) != SLOT_COUNT or not all(type(epoch) is int and epoch >= 0 for epoch in promised):
            raise ValueError
        revision = int(value["revision"])
        found: tuple[FleetMap | None, FleetConfig | None] = (
            decode_map(_dump(value["map"]), revision, key=source) if value["map"] is not None else None,
            decode_config(_dump(value["config"]), key=source) if value["config"] is not None else None,
        )
        nonces = [tuple(map(str, value.get(name, ()))) for name in ("nonces", "past_nonces", "formerly")]
        return Saved(
            source,
            str(value["fleet"]),
            str(value["identity"]),
            promised,
            *found,
            str(value["damage"]),
            *nonces,
        )
    except (ValueError, KeyError, TypeError, BadValue):
        raise RestoreRefused(
            f"{source} is no output of gearfleet fleet saved-map: make it again, on its node's machine"
        ) from None


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- what is to be written


def plan_restore(fleet: str, saved: Sequence[Saved], without: Collection[str] = ()) -> Restore:
    """The newest map, beyond all that anybody knows. Raises RestoreRefused.

    `without`: nodes whose data is lost. All others that the map lists have to be there: one that is not might
    have acted on a newer map.
    """
    by_identity: dict[str, Saved] = {}
    for each in saved:
        if each.fleet != fleet:
            raise RestoreRefused(
                f"{each.source} is of the fleet {each.fleet}, not of {fleet}: correct --fleet, or leave it "
                "out"
            )
        if each.identity in by_identity:
            raise RestoreRefused(
                f"{each.source} and {by_identity[each.identity].source} are copies of one data directory: "
                "leave the copy out"
            )
        by_identity[each.identity] = each
    newest = max(saved, key=lambda each: each.age, default=None)
    if newest is None or newest.map is None:
        raise RestoreRefused("none of these data directories holds a map: give those of all nodes")
    others = [
        each.source
        for each in saved
        if each.map is not None
        and each.map.generation == newest.map.generation
        and each.map.lineage
        and not descends(newest.map, each.map)
    ]
    if others:
        raise RestoreRefused(
            f"the fleet has two histories: that of {newest.source} does not continue that of "
            f"{', '.join(others)}. Nodes went on with a restored etcd, and each side may have jobs that the "
            "other has not. Leave one side out: say --without for its nodes, and start them with empty data "
            "directories"
        )
    names = newest.map.names
    heard_of = by_identity.keys() | {identity for each in saved for identity in each.formerly}
    unknown = set(without) - set(names.values())
    if unknown:
        raise RestoreRefused(
            f"the newest map lists no node called {', '.join(sorted(unknown))}; it has "
            f"{', '.join(sorted(set(names.values())))}: correct --without"
        )
    missing = {
        name
        for identity, name in names.items()
        if identity not in heard_of and identity not in newest.map.forgotten
    }
    if missing - set(without):
        raise RestoreRefused(
            f"what {', '.join(sorted(missing - set(without)))} knows is missing, and might be newer: give "
            "all nodes' data directories or saved maps. For one whose disk is lost say --without NODE"
        )
    known = tuple(each.map for each in saved if each.map is not None)
    above = {
        slot: max(
            *(each.promised[slot] for each in saved),
            *(fleet_map.slots[slot].epoch for fleet_map in known if slot < len(fleet_map.slots)),
        )
        for slot in range(len(newest.map.slots))
    }
    generation = max(fleet_map.generation for fleet_map in known)
    lost = [slot for slot, row in enumerate(newest.map.slots) if by_identity.keys().isdisjoint(row.in_sync)]
    return Restore(
        fleet=fleet,
        map=raise_epochs(newest.map, above, generation),
        config=newest.config,
        newest=newest,
        saved=tuple(saved),
        lost=tuple(lost),
    )


# ---- etcd


async def restore(
    options: EtcdOptions,
    plan: Restore,
    *,
    config: FleetConfig | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> tuple[FleetMap, FleetConfig]:
    """Write it. `config` where neither the nodes nor etcd say it. `force`: also over a map that needs no
    restoring. Raises RestoreRefused and StoreError; after Unreachable nobody knows, and it may be repeated.
    """
    prefix = f"/gearfleet/{plan.fleet}/".encode()
    config_key, map_key, nodes = prefix + b"config", prefix + b"map", prefix + b"nodes/"
    directories = prefix + b"dirs/"
    etcd = Etcd(options)
    try:
        reads = [get(config_key), get(map_key), *(get(key, range_end(key)) for key in (nodes, directories))]
        reply = await etcd.read(transaction([], reads))
        found_config, found_map, found_nodes, found_nonces = (
            response.response_range.kvs for response in reply.responses
        )
        if found_nodes:
            up = ", ".join(value.key[len(nodes) :].decode("utf-8", "replace") for value in found_nodes)
            raise RestoreRefused(
                f"{up} is up, or was a moment ago: stop all nodes of the fleet {plan.fleet} first, and wait "
                "until their keys in etcd have expired (--lease-seconds)"
            )
        fleet_map = plan.map
        if found_map:
            nonces = {
                value.key[len(directories) :].decode("utf-8", "replace"): value.value.decode(
                    "utf-8", "replace"
                )
                for value in found_nonces
            }
            fleet_map = _beyond(found_map[0], plan, nonces, force)
        written = plan.config or config or _decoded_config(found_config)
        if written is None:
            raise RestoreRefused(
                "neither these nodes nor etcd say how many copies the fleet keeps: give --replicas and "
                "--min-in-sync as they were when it was made (3 and 2 unless somebody chose others)"
            )
        if written.slots != len(fleet_map.slots):
            raise RestoreRefused(
                f"the configuration has {written.slots} slots, the map {len(fleet_map.slots)}: these data "
                "directories are not of one fleet"
            )
        if dry_run:
            return fleet_map, written
        compare = [
            unchanged(config_key, found_config[0].mod_revision if found_config else 0),
            unchanged(map_key, found_map[0].mod_revision if found_map else 0),
            _none_below(nodes),
        ]
        changes = [
            put(config_key, encode_config(written)),
            put(map_key, encode_map(fleet_map)),
            # After a restore a start whose nonce etcd does not have is accepted, one that it has for
            # another start is not.
            delete(directories, range_end(directories)),
        ]
        reply = await etcd.write(transaction(compare, changes))
        if not reply.succeeded:
            raise RestoreRefused(
                "somebody else wrote to the fleet's keys at the same moment: see to it that all nodes are "
                "stopped, then repeat it"
            )
        return fleet_map, written
    finally:
        await etcd.close()


def _beyond(value: Any, plan: Restore, nonces: Mapping[str, str], force: bool) -> FleetMap:
    """The plan's map, beyond the one that is in etcd, too. `nonces`: those in etcd, by identity."""
    try:
        present = decode_map(value.value, value.mod_revision)
    except BadValue:
        return plan.map  # edited by hand, or damaged
    # The map may be the same, and etcd have forgotten a start: then that node would not start any more.
    forgotten = any(
        each.would_refuse(present.generation, nonces.get(each.identity, "")) for each in plan.saved
    )
    if not force and not forgotten and all(descends(present, known) for known in plan.known):
        raise RestoreRefused(
            "nothing was lost: the map in etcd is the one that these nodes know, or came from it. Start the "
            "nodes. --force writes a new one all the same"
        )
    epochs = {slot: row.epoch for slot, row in enumerate(present.slots)}
    generation = max(present.generation, plan.map.generation - 1)
    return raise_epochs(plan.map, epochs, generation)


def _decoded_config(found: Sequence[Any]) -> FleetConfig | None:
    try:
        return decode_config(found[0].value) if found else None
    except BadValue:
        return None


def _none_below(prefix: bytes) -> Any:
    """Of a transaction: no key begins so."""
    return rpc.Compare(
        result=rpc.Compare.EQUAL,
        target=rpc.Compare.MOD,
        key=prefix,
        range_end=range_end(prefix),
        mod_revision=0,
    )


__all__ = [
    "Restore",
    "RestoreRefused",
    "Saved",
    "decode_saved",
    "encode_saved",
    "plan_restore",
    "read_saved",
    "restore",
]
