"""The fleet's map as any of its nodes tells it on the Gearman port: who leads which slot.

A job's key (function and unique) has one slot for ever: slot = crc32(function NUL unique) & (slots - 1). The
map says which node leads the slot now. docs/protocol-extensions.md has the format and test vectors.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeGuard
from zlib import crc32

from client_ha.addresses import Server

SLOTS_MAX: Final = 65_536  # a map with more is refused: it would not be one
NODES_MAX: Final = 4_096

NodeState = Literal["up", "draining", "down"]
_STATES: Final[tuple[NodeState, ...]] = ("up", "draining", "down")

# PREFIX:<slot>.<epoch>.<count>, and for foreground jobs PREFIX:<slot>.t<incarnation>.<count>; hexadecimal.
_HANDLE: Final = re.compile(rb"(?:\A|:)([0-9a-f]{1,8})\.(t?)[0-9a-f]+\.[0-9a-f]+\Z")


class BadMap(ValueError):
    """What came as a map is none."""


class MapNode(NamedTuple):
    """One node of the fleet."""

    name: str
    server: Server | None  # None: it is away, and nobody knows where it will be
    state: NodeState
    zone: str = ""


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Slot to node. A later revision replaces an earlier one."""

    fleet: str
    revision: int
    nodes: tuple[MapNode, ...]
    primaries: tuple[int, ...]  # per slot an index into nodes, -1: nobody now

    def slot_of(self, function: bytes, unique: bytes) -> int:
        return crc32(function + b"\0" + unique) & (len(self.primaries) - 1)

    def primary(self, slot: int) -> MapNode | None:
        """Who leads the slot now."""
        index = self.primaries[slot] if slot < len(self.primaries) else -1
        return None if index < 0 else self.nodes[index]

    def at(self, where: Callable[[Server], Server]) -> "SlotMap":
        """The same map with its nodes at other addresses."""
        nodes = (
            node if node.server is None else node._replace(server=where(node.server)) for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))

    def node(self, name: str | None) -> MapNode | None:
        return next((node for node in self.nodes if node.name == name), None)


class HandlePlace(NamedTuple):
    """What a fleet's handle says of its job."""

    slot: int
    foreground: bool


def place_of_handle(handle: bytes) -> HandlePlace | None:
    """Read a fleet's handle; None when it is another server's."""
    match = _HANDLE.search(handle)
    return None if match is None else HandlePlace(int(match[1], 16), bool(match[2]))


def parse_map(body: bytes) -> tuple[SlotMap | None, str | None]:
    """Read MAP_RES: the map and the name of the node that sent it, where it says so.

    No map: the node stands alone. What the format does not have is ignored, so that it can grow.
    Raises BadMap.
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise BadMap(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadMap("it is no JSON object")
    name = value.get("self")
    if name is not None and not isinstance(name, str):
        raise BadMap("'self' is no text")
    fleet = value.get("fleet")
    if fleet is None:
        return None, name
    revision, slots, primaries = value.get("revision"), value.get("slots"), value.get("primaries")
    if not isinstance(fleet, str) or not _is_count(revision):
        raise BadMap("'fleet' must be text and 'revision' a number")
    if not _is_count(slots) or not 0 < slots <= SLOTS_MAX or slots & (slots - 1):
        raise BadMap(f"'slots' is {slots!r}; it must be a power of two up to {SLOTS_MAX}")
    nodes = value.get("nodes")
    if not isinstance(nodes, list) or len(nodes) > NODES_MAX:
        raise BadMap(f"'nodes' must be a list of at most {NODES_MAX}")
    read = tuple(_node(node) for node in nodes)
    if len({node.name for node in read}) != len(read):
        raise BadMap("two nodes have one name")
    if primaries == []:
        primaries = [-1] * slots  # a fleet that has no map yet
    if not isinstance(primaries, list) or len(primaries) != slots:
        raise BadMap(f"'primaries' must be a list of {slots}, one for each slot")
    if not all(type(index) is int and -1 <= index < len(read) for index in primaries):
        raise BadMap("'primaries' names a node that is not in 'nodes'")
    return SlotMap(fleet, revision, read, tuple(primaries)), name


def _node(value: Any) -> MapNode:
    if not isinstance(value, dict):
        raise BadMap("a node is no JSON object")
    name, host, port = value.get("name"), value.get("host"), value.get("port")
    state, zone = value.get("state"), value.get("zone", "")
    if not (isinstance(name, str) and isinstance(host, str) and isinstance(zone, str) and name):
        raise BadMap("a node needs a name and a host")
    if not host and state == "down":
        return MapNode(name, None, "down", zone)
    if not host:
        raise BadMap(f"node {name!r} has no host")
    if not _is_count(port) or not 0 < port < 65536:
        raise BadMap(f"node {name!r}: the port is {port!r}")
    # A state of a later release: not one to send work to first.
    return MapNode(name, Server(host, port), state if state in _STATES else "draining", zone)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0
