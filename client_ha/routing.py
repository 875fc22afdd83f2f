"""Which server a job goes to: the one that leads its slot, or that its key prefers; and who comes next.

Two rules, one Router each. Servers that know nothing of each other, such as gearmands, are ordered by
rendezvous hashing: each gets a weight from (server, key), the highest wins. When a server goes, only its own
keys move, spread over all others; when it comes back, only they return. The hash is part of the contract
between clients: two processes, or two releases, must send one key to one server, or a repeat of a job would
not find the first. So it is never Python's hash(), and it does not change.

The nodes of a fleet tell who leads which slot (slot_map.py). Any other node of the fleet takes the job too
and passes it on, so an old map costs a hop and nothing else.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, Protocol
from zlib import crc32

from client_ha.addresses import Server
from client_ha.slot_map import SlotMap

_MASK: Final = (1 << 64) - 1
_RANKS: Final = {"up": 0, "draining": 1, "down": 2}


class Router(Protocol):
    """Key to servers, best first."""

    @property
    def servers(self) -> Sequence[Server]:
        """All servers one should be connected to."""

    def order(self, function: bytes, unique: bytes) -> Sequence[Server]:
        """All servers, the preferred one first."""


def _hash_64(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _weight(key: int, seed: int) -> int:
    """The finalizer of MurmurHash3: one blake2b per key, not one per server."""
    weight = key ^ seed
    weight = ((weight ^ (weight >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    weight = ((weight ^ (weight >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return weight ^ (weight >> 33)


class RendezvousRouter:
    """A fixed list of servers that know nothing of each other."""

    __slots__ = ("_seeds", "servers")

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers: Sequence[Server] = tuple(servers)
        self._seeds = [(_hash_64(str(server).encode()), server) for server in servers]

    def order(self, function: bytes, unique: bytes) -> Sequence[Server]:
        if len(self._seeds) == 1:
            return self.servers
        key = _hash_64(function + b"\0" + unique)
        weighted = [(_weight(key, seed), seed, server) for seed, server in self._seeds]
        weighted.sort(reverse=True)
        return [server for _, _, server in weighted]


class SlotRouter:
    """The nodes of a fleet once their map is known; before that, and without a fleet, as RendezvousRouter.

    `order`: the slot's primary if it is up; then the other nodes, those that are up first, draining and down
    ones last, each kind in rendezvous order of the slot; then servers that are in no map.
    """

    __slots__ = ("_map", "_mask", "_orders", "_plain", "_reached", "configured", "servers")

    def __init__(self, servers: Sequence[Server]) -> None:
        self.configured: Sequence[Server] = tuple(servers)
        self.servers: Sequence[Server] = self.configured
        self._plain = RendezvousRouter(self.configured)
        self._map: SlotMap | None = None
        self._reached: Mapping[str, Server] = {}
        self._mask = 0
        self._orders: list[Sequence[Server] | None] | None = None  # per slot, made when first asked for

    def follow(
        self, servers: Sequence[Server], slot_map: SlotMap | None, reached: Mapping[str, Server]
    ) -> None:
        """Route by this map from now on. `reached`: by node's name, which of `servers` it is reached at."""
        if servers != self.servers:
            self.servers = tuple(servers)
            self._plain = RendezvousRouter(self.servers)
        self._map = slot_map
        self._reached = reached
        self._orders = None
        if slot_map is not None:
            self._orders = [None] * len(slot_map.primaries)
            self._mask = len(slot_map.primaries) - 1

    def order(self, function: bytes, unique: bytes) -> Sequence[Server]:
        orders = self._orders
        if orders is None:
            return self._plain.order(function, unique)
        slot = crc32(function + b"\0" + unique) & self._mask
        return orders[slot] or self._order_of(slot, orders)

    def _order_of(self, slot: int, orders: list[Sequence[Server] | None]) -> Sequence[Server]:
        assert self._map is not None
        reached = self._reached
        primary = self._map.primary(slot)
        key = _hash_64(b"%d" % slot)
        ranked = sorted(
            (
                # A primary that drains or is down is no better than others of its kind.
                -1 if node is primary and node.state == "up" else _RANKS[node.state],
                -_weight(key, _hash_64(node.name.encode())),
                reached[node.name],
            )
            for node in self._map.nodes
            if node.name in reached
        )
        order = dict.fromkeys(server for _, _, server in ranked)
        order |= dict.fromkeys(self.servers)
        orders[slot] = found = tuple(order)
        return found
