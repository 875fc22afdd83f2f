"""The other nodes of a fleet, from one of them, on the Gearman port (docs/protocol-extensions.md)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from client_ha.addresses import Server
from client_ha.slot_map import BadMap, SlotMap, parse_map
from cluster.cli.admin import Admin
from cluster.cli.peer import Peer, Unreachable
from cluster.cli.servers import Servers, ask_all, ask_some
from cluster.wire import request
from cluster.wire.packets import GET_MAP, MAP_RES, OPTION_GEARFLEET, OPTION_REQ, OPTION_RES

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Source:
    """Who said something: a server, a node of a fleet, or a fleet as a whole."""

    server: Server | None = None
    fleet: str = ""
    node: str = ""

    def __str__(self) -> str:
        if self.server is None:
            return f"fleet {self.fleet}"
        return self.node or str(self.server)

    @property
    def columns(self) -> dict[str, str]:
        """For JSON."""
        found = {"server": str(self.server) if self.server is not None else ""}
        return {
            key: value for key, value in (found | {"fleet": self.fleet, "node": self.node}).items() if value
        }


@dataclass(frozen=True, slots=True)
class Told(Generic[Answer]):
    source: Source
    answer: Answer


def find_fleet(server: Server, servers: Servers) -> tuple[SlotMap, str] | None:
    """The map that a server tells, and its own name; None when it is no node of a fleet."""
    try:
        with Peer(server, timeout_seconds=servers.timeout_seconds, tls=servers.tls) as peer:
            peer.send(request(OPTION_REQ, OPTION_GEARFLEET))
            if peer.packet()[0] != OPTION_RES:
                return None  # gearmand would close the connection at the next packet
            peer.send(request(GET_MAP))
            kind, body = peer.packet()
            while kind != MAP_RES:
                kind, body = peer.packet()
        slot_map, name = parse_map(body)
    except (Unreachable, TimeoutError, BadMap):
        return None
    return None if slot_map is None else (slot_map, name or "")


def ask_fleet(servers: Servers, question: Callable[[Admin], Answer]) -> list[Told[Answer]]:
    """Ask the servers that were named, and where one is a node of a fleet all its other nodes, too.

    Those that do not answer are named on standard error. Raises NoServer and Failed.
    """
    answers: list[Told[Answer]] = []
    known: set[tuple[str, str]] = set()
    others: dict[tuple[str, str], Server] = {}
    for server, answer in ask_all(servers, question):
        found = find_fleet(server, servers)
        if found is None:
            answers.append(Told(Source(server), answer))
            continue
        slot_map, name = found
        if (slot_map.fleet, name) in known:
            continue  # the same node under another address
        known.add((slot_map.fleet, name))
        answers.append(Told(Source(server, slot_map.fleet, name), answer))
        for node in slot_map.nodes:
            if node.server is not None and node.state != "down":
                others[slot_map.fleet, node.name] = node.server
    for (fleet, name), server in others.items():
        if (fleet, name) not in known:
            for _, answer in ask_some(replace(servers, addresses=(server,)), question):
                answers.append(Told(Source(server, fleet, name), answer))
    return answers


def whole_fleets(servers: Servers) -> Servers:
    """The servers that were named and all other nodes of their fleets."""
    known: set[tuple[str, str]] = set()
    others: dict[tuple[str, str], Server] = {}
    for server in servers.addresses:
        found = find_fleet(server, servers)
        if found is not None:
            slot_map, name = found
            known.add((slot_map.fleet, name))
            others |= {(slot_map.fleet, node.name): node.server for node in slot_map.nodes if node.server}
    added = [server for node, server in others.items() if node not in known]
    return replace(servers, addresses=tuple(dict.fromkeys([*servers.addresses, *added])))
