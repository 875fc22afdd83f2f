"""The values in etcd: JSON, with a version in each, believed only after every field was looked at.

An operator may have edited a key by hand. What cannot be right raises BadValue, which names the key, what
is wrong and the mend. Fields that this version does not know are passed over; another `version` is refused.

The map lists identities and primaries once, in tables; a slot is a row of indices:
`[epoch, primary, [in sync, ...]]`, then `[learners, ...]` and `1` for lossy where there are any.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from cluster.placement.errors import BadValue
from cluster.placement.view import LINEAGE_MAX, FleetConfig, FleetMap, Member, SlotRow

VERSION: Final = 1  # of the values' layout
SLOTS_MAX: Final = 65_536
REPLICAS_MAX: Final = 64
NUMBER_MAX: Final = 2**63 - 1  # of epochs, incarnations, generations
TEXT_CHARACTERS_MAX: Final = 255  # names, hosts, zones

_IDENTITY: Final = re.compile(r"[0-9a-f]{32}")
_MEND_CONFIG: Final = 'write back what it was, e.g. {"version":1,"slots":1024,"replicas":3,"min_in_sync":2}'
_MEND_MEMBER: Final = "delete the key: a node that is up puts it back by itself"
_MEND_MAP: Final = "stop all nodes and write the newest map found in their data: `gearfleet fleet restore`"


def encode_config(config: FleetConfig) -> bytes:
    return _dump(
        {
            "version": VERSION,
            "slots": config.slots,
            "replicas": config.replicas,
            "min_in_sync": config.min_in_sync,
        }
    )


def decode_config(data: bytes, revision: int = 0, *, key: str = "config") -> FleetConfig:
    """`revision` is taken for the sake of symmetry: the configuration is written once."""
    value = _Value(data, key, _MEND_CONFIG)
    slots = value.number("slots", 1, SLOTS_MAX)
    if slots & (slots - 1):
        value.wrong(f'"slots" is {slots}, which is no power of two')
    replicas = value.number("replicas", 1, REPLICAS_MAX)
    return FleetConfig(slots, replicas, value.number("min_in_sync", 1, replicas))


def encode_member(member: Member) -> bytes:
    return _dump(
        {
            "version": VERSION,
            "name": member.name,
            "identity": member.identity,
            "incarnation": member.incarnation,
            "host": member.host,
            "port": member.port,
            "peer_port": member.peer_port,
            "http_port": member.http_port,
            "zone": member.zone,
            "release": member.version,
            "protocol": member.protocol,
            "draining": member.draining,
            "restarting": member.restarting,
            "empty": member.empty,
        }
    )


def decode_member(data: bytes, revision: int = 0, *, key: str = "nodes/NODE") -> Member:
    """With the whole `key` the name inside is compared with the one that the key ends in."""
    value = _Value(data, key, _MEND_MEMBER)
    name = value.text("name")
    if key != "nodes/NODE" and key.rpartition("/")[2] != name:
        value.wrong(f'"name" is {_short(name)}, not what the key ends in')
    if "/" in name:
        value.wrong(f'"name" is {_short(name)}: a name has no slash')
    return Member(
        name=name,
        identity=value.identity("identity"),
        incarnation=value.number("incarnation", 1, NUMBER_MAX),
        host=value.text("host"),
        port=value.number("port", 1, 65_535),
        peer_port=value.number("peer_port", 1, 65_535),
        http_port=value.number("http_port", 0, 65_535, 0),
        zone=value.text("zone", ""),
        version=value.text("release", "0"),
        protocol=value.number("protocol", 1, NUMBER_MAX, 1),
        draining=value.truth("draining", False),
        restarting=value.truth("restarting", False),
        empty=value.truth("empty", False),
        revision=revision,
    )


def encode_map(fleet_map: FleetMap) -> bytes:
    identities = sorted(fleet_map.names)
    index = {identity: number for number, identity in enumerate(identities)}
    primaries = sorted({(row.primary, row.incarnation) for row in fleet_map.slots})
    leader = {primary: number for number, primary in enumerate(primaries)}
    lists: dict[tuple[str, ...], list[int]] = {}  # most rows list the same few sets
    rows: list[list[Any]] = []
    for epoch, primary, incarnation, in_sync, learners, lossy in fleet_map.slots:
        for listed in (in_sync, learners):
            if listed not in lists:
                lists[listed] = [index[identity] for identity in listed]
        row: list[Any] = [epoch, leader[primary, incarnation], lists[in_sync]]
        if learners or lossy:
            row.append(lists[learners])
        if lossy:
            row.append(1)
        rows.append(row)
    return _dump(
        {
            "version": VERSION,
            "generation": fleet_map.generation,
            "identities": [[identity, fleet_map.names[identity]] for identity in identities],
            "primaries": primaries,
            "forgotten": sorted(fleet_map.forgotten),
            "lineage": fleet_map.lineage,
            "slots": rows,
        }
    )


def decode_map(data: bytes, revision: int = 0, *, key: str = "map") -> FleetMap:
    value = _Value(data, key, _MEND_MAP)
    generation = value.number("generation", 1, NUMBER_MAX)
    names: dict[str, str] = {}
    for pair in value.list("identities"):
        if not (isinstance(pair, list) and len(pair) == 2 and _is_identity(pair[0]) and _is_name(pair[1])):
            value.wrong(f'"identities" has {_short(pair)} instead of [32 hexadecimal digits, node name]')
        if pair[0] in names:
            value.wrong(f'"identities" has {pair[0]} twice')
        names[pair[0]] = pair[1]
    primaries: list[tuple[str, int]] = []
    for pair in value.list("primaries"):
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and _is_name(pair[0])
            and _is_number(pair[1], 0, NUMBER_MAX)
        ):
            value.wrong(f'"primaries" has {_short(pair)} instead of [node name, incarnation]')
        primaries.append((pair[0], pair[1]))
    forgotten = value.list("forgotten", [])
    if not all(_is_identity(identity) for identity in forgotten):
        value.wrong('"forgotten" has something that is no identity of 32 hexadecimal digits')
    lineage = value.list("lineage", [])
    if len(lineage) > LINEAGE_MAX or not all(_is_number(mark, 0, NUMBER_MAX) for mark in lineage):
        value.wrong(f'"lineage" is no list of at most {LINEAGE_MAX} numbers')
    rows = _Rows(value, names, primaries)
    slots = tuple([rows.row(slot, row) for slot, row in enumerate(value.list("slots"))])
    if not slots or len(slots) > SLOTS_MAX or len(slots) & (len(slots) - 1):
        value.wrong(f'"slots" has {len(slots)} rows, which is no power of two up to {SLOTS_MAX}')
    names = {identity: names[identity] for identity in rows.listed()}
    return FleetMap(slots, names, generation, frozenset(forgotten), tuple(lineage), revision)


class _Rows:
    """Reads the rows of a map; equal sets become the same tuple."""

    __slots__ = ("_identities", "_names", "_primaries", "_sets", "_value")

    def __init__(self, value: _Value, names: dict[str, str], primaries: list[tuple[str, int]]) -> None:
        self._value = value
        self._identities = list(names)
        self._names = names
        self._primaries = primaries
        self._sets: dict[tuple[Any, ...], tuple[str, ...]] = {(): ()}

    def row(self, slot: int, row: Any) -> SlotRow:
        if not isinstance(row, list) or not 3 <= len(row) <= 5:
            self._wrong(slot, f"is {_short(row)} instead of [epoch, primary, [in sync], [learners], lossy]")
        epoch, primary = row[0], row[1]
        if not _is_number(epoch, 1, NUMBER_MAX):
            self._wrong(slot, f"has the epoch {_short(epoch)}, which is no number from 1")
        if not _is_number(primary, 0, len(self._primaries) - 1):
            self._wrong(slot, f'names the primary {_short(primary)}, which "primaries" does not have')
        in_sync = self._set(slot, row[2])
        learners = self._set(slot, row[3]) if len(row) > 3 else ()
        if len(row) > 4 and not _is_number(row[4], 0, 1):
            self._wrong(slot, f"says {_short(row[4])} for lossy, which is 0 or 1")
        name, incarnation = self._primaries[primary]
        names = [self._names[identity] for identity in in_sync]
        if name not in names:
            self._wrong(slot, f"does not have its primary {_short(name)} in the in-sync set")
        if len(set(names)) != len(names):
            self._wrong(slot, "has two identities of one node in sync")
        if learners and not set(in_sync).isdisjoint(learners):
            self._wrong(slot, "has a learner that is in sync")
        return SlotRow(epoch, name, incarnation, in_sync, learners, len(row) > 4 and bool(row[4]))

    def listed(self) -> list[str]:
        """All identities that some row names."""
        found: set[str] = set()
        return sorted(found.union(*self._sets.values()))

    def _set(self, slot: int, indices: Any) -> tuple[str, ...]:
        if not isinstance(indices, list) or not all(
            _is_number(index, 0, len(self._identities) - 1) for index in indices
        ):
            self._wrong(slot, f'lists {_short(indices)}, which "identities" does not have')
        key = tuple(indices)
        identities = self._sets.get(key)
        if identities is None:
            identities = tuple(sorted({self._identities[index] for index in key}))
            if len(identities) != len(key):
                self._wrong(slot, f"lists an identity twice: {_short(indices)}")
            self._sets[key] = identities
        return identities

    def _wrong(self, slot: int, what: str) -> NoReturn:
        self._value.wrong(f"slot {slot} {what}")


class _Value:
    """A JSON object out of etcd, and how to complain about it."""

    __slots__ = ("_fields", "_key", "_mend")

    def __init__(self, data: bytes, key: str, mend: str) -> None:
        self._key = key
        self._mend = mend
        try:
            fields = json.loads(data.decode(), object_pairs_hook=_unambiguous, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self.wrong(f"it is no JSON: {error}")
        if not isinstance(fields, dict):
            self.wrong(f"it is {_short(fields)} instead of a JSON object")
        self._fields: dict[str, Any] = fields
        version = self.number("version", 1, NUMBER_MAX)
        if version != VERSION:
            self._mend = "start a release that knows this version, or upgrade this node"
            self.wrong(f"its version is {version}; this release reads version {VERSION} only")

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        found = self._get(name, default)
        if not _is_number(found, least, most):
            self.wrong(f'"{name}" is {_short(found)} instead of a number from {least} to {most}')
        return int(found)

    def text(self, name: str, default: str | None = None) -> str:
        found = self._get(name, default)
        if not isinstance(found, str) or (found != default and not _is_name(found)):
            self.wrong(
                f'"{name}" is {_short(found)} instead of a text of 1 to {TEXT_CHARACTERS_MAX} characters'
            )
        return found

    def truth(self, name: str, default: bool) -> bool:
        found = self._get(name, default)
        if not isinstance(found, bool):
            self.wrong(f'"{name}" is {_short(found)} instead of true or false')
        return found

    def identity(self, name: str) -> str:
        found = self._get(name, None)
        if not _is_identity(found):
            self.wrong(f'"{name}" is {_short(found)} instead of 32 hexadecimal digits')
        return str(found)

    def list(self, name: str, default: list[Any] | None = None) -> list[Any]:
        found = self._get(name, default)
        if not isinstance(found, list):
            self.wrong(f'"{name}" is {_short(found)} instead of a list')
        return found

    def wrong(self, what: str) -> NoReturn:
        raise BadValue(f"the etcd key {self._key} cannot be used: {what}. Mend: {self._mend}")

    def _get(self, name: str, default: Any) -> Any:
        found = self._fields.get(name, default)
        if found is None:
            self.wrong(f'"{name}" is missing')
        return found


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _is_number(found: Any, least: int, most: int) -> bool:
    return type(found) is int and least <= found <= most  # true and false are no numbers here


def _is_name(found: Any) -> bool:
    return isinstance(found, str) and 0 < len(found) <= TEXT_CHARACTERS_MAX and found.isprintable()


def _is_identity(found: Any) -> bool:
    return isinstance(found, str) and _IDENTITY.fullmatch(found) is not None


def _short(found: Any) -> str:
    """What was found, in JSON, short enough for a message."""
    text = json.dumps(found, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
