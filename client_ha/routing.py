"""Which server a job goes to: the one that its key prefers, and who comes next when that is down.

Rendezvous hashing: each server gets a weight from (server, key), the highest wins. When a server goes, only
its own keys move, spread over all others; when it comes back, only they return. The hash is part of the
contract between clients: two processes, or two releases, must send one key to one server, or a repeat of a
job would not find the first. So it is never Python's hash(), and it does not change.

This is the seam for a slot map learnt from the servers: another Router with the same two methods.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

from client_ha.addresses import Server

_MASK: Final = (1 << 64) - 1


class Router(Protocol):
    """Key to servers, best first."""

    @property
    def servers(self) -> Sequence[Server]:
        """All servers one should be connected to."""

    def order(self, function: bytes, unique: bytes) -> Sequence[Server]:
        """All servers, the preferred one first."""


def _hash_64(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


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
        weighted = []
        for seed, server in self._seeds:
            # The finalizer of MurmurHash3: one blake2b per key, not one per server.
            weight = key ^ seed
            weight = ((weight ^ (weight >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
            weight = ((weight ^ (weight >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
            weighted.append((weight ^ (weight >> 33), seed, server))
        weighted.sort(reverse=True)
        return [server for _, _, server in weighted]
