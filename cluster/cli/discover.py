"""The other nodes of a fleet, from one of them, on the Gearman port (docs/protocol-extensions.md)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from client_ha.addresses import Server
from client_ha.slot_map import BadMap, MapNode, SlotMap, parse_map
from cluster.cli.admin import Admin, WholeAnswer
from cluster.cli.peer import Peer, Unreachable
from cluster.cli.servers import Servers, ask_each, complain, no_answer
from cluster.wire import request
from cluster.wire.packets import GET_MAP, MAP_RES, OPTION_GEARFLEET, OPTION_REQ, OPTION_RES

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Source:
    """Who said something: a server, a node of a fleet, or a fleet as a whole."""

    server: Server | None = None
    fleet: str = ""
    node: str = ""
    incomplete: bool = False  # a fleet of which a node did not answer
    no_worker_on: tuple[str, ...] = ()  # nodes on which jobs wait, and all who could work are on others

    def __str__(self) -> str:
        if self.node:
            return self.node
        return f"fleet {self.fleet}" if self.server is None else str(self.server)

    @property
    def columns(self) -> dict[str, object]:
        """For JSON."""
        found = {
            "server": str(self.server) if self.server is not None else "",
            "fleet": self.fleet,
            "node": self.node,
            "incomplete": self.incomplete,
            "no_worker_on": self.no_worker_on,
        }
        return {key: value for key, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Told(Generic[Answer]):
    source: Source
    answer: Answer


@dataclass(frozen=True, slots=True)
class Silent:
    """Who did not answer, and why in a few words."""

    source: Source
    what: str


@dataclass(slots=True)
class Heard(Generic[Answer]):
    """What all told, and who told nothing."""

    told: list[Told[Answer]] = field(default_factory=list)
    silent: list[Silent] = field(default_factory=list)
    maps: dict[str, SlotMap] = field(default_factory=dict)  # by fleet
    led: dict[Source, int | None] = field(default_factory=dict)  # slots that each leads; None: it cannot tell
    unloaded: dict[Source, int] = field(default_factory=dict)  # slots whose jobs a node cannot count yet

    def missing(self, fleet: str) -> str:
        """Whose jobs are missing from a sum, in words."""
        names = [f"on {each.source}" for each in self.silent if each.source.fleet == fleet]
        names += [
            f"in {count:,} slots that {source} leads and cannot serve yet"
            for source, count in self.unloaded.items()
            if source.fleet == fleet
        ]
        return ", ".join(names) or "in slots that nobody leads now"

    def incomplete(self, fleet: str) -> bool:
        """Whether jobs of the fleet may be missing from a sum: a node is up and silent, or slots are led by
        none of those that answered, or cannot be served. What a dead node had led is with others a second
        later, and counted."""
        if any(source.fleet == fleet for source in self.unloaded):
            return True
        slot_map = self.maps[fleet]
        led = [count for source, count in self.led.items() if source.fleet == fleet]
        # A slot that moves between two nodes while they are asked is counted by neither of them.
        if None not in led and sum(filter(None, led)) != len(slot_map.primaries):
            return True
        down = {node.name for node in slot_map.nodes if node.state == "down"}
        if any(silent.source.node not in down for silent in self.silent if silent.source.fleet == fleet):
            return True
        answered = {told.source.node for told in self.told if told.source.fleet == fleet}
        leaders = {index if index < 0 else slot_map.nodes[index].name for index in set(slot_map.primaries)}
        return not leaders <= answered


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


def ask_fleet(servers: Servers, question: Callable[[Admin], Answer]) -> Heard[Answer]:
    """Ask the servers that were named, and where one is a node of a fleet all its other nodes, too.

    Those that do not answer are named on standard error, and in what is returned. Raises NoServer and Failed.
    """

    def ask(admin: Admin) -> WholeAnswer[Answer]:
        return admin.ask_whole(question)

    def hear(source: Source, whole: WholeAnswer[Answer]) -> None:
        heard.told.append(Told(source, whole.answer))
        heard.led[source] = whole.led
        if whole.unsure:
            heard.unloaded[source] = whole.unsure

    answers, silences = ask_each(servers, ask)
    if not answers:
        raise no_answer(silences)
    heard: Heard[Answer] = Heard()
    known: set[tuple[str, str]] = set()
    nodes: dict[tuple[str, str], MapNode] = {}
    for server, answer in answers:
        found = find_fleet(server, servers)
        if found is None:
            hear(Source(server), answer)
            continue
        slot_map, name = found
        heard.maps[slot_map.fleet] = slot_map
        nodes |= {(slot_map.fleet, node.name): node for node in slot_map.nodes}
        if (slot_map.fleet, name) not in known:  # else the same node under another address
            known.add((slot_map.fleet, name))
            hear(Source(server, slot_map.fleet, name), answer)
    others: dict[Server, tuple[str, str]] = {}
    for node_key, node in nodes.items():
        if node_key in known:
            continue
        if node.server is None or node.state == "down":
            heard.silent.append(Silent(Source(node.server, *node_key), "it is down"))
        else:
            others[node.server] = node_key
    answers, silent_others = ask_each(replace(servers, addresses=tuple(others)), ask)
    for server, answer in answers:
        hear(Source(server, *others[server]), answer)
    listed = {silent.source.server for silent in heard.silent}
    for silence in dict.fromkeys([*silences, *silent_others]):
        complain(silence.sentence)
        if silence.server not in listed:
            listed.add(silence.server)
            heard.silent.append(
                Silent(Source(silence.server, *others.get(silence.server, ("", ""))), silence.what)
            )
    return heard


class Followed:
    """The servers that were named and all other nodes of their fleets, as they come and go."""

    def __init__(self, servers: Servers) -> None:
        self._named = servers
        self._asked = servers.addresses
        self._names: dict[Server, tuple[str, str]] = {}

    def look(self) -> Servers:
        """The servers there are now: each node under one address, the named one first."""
        nodes: dict[tuple[str, str], Server] = {}
        for server in self._asked:
            found = find_fleet(server, self._named)
            if found is not None:
                slot_map, name = found
                self._names[server] = (slot_map.fleet, name)
                nodes |= {(slot_map.fleet, node.name): node.server for node in slot_map.nodes if node.server}
        if not nodes:
            return replace(self._named, addresses=self._asked)  # nobody knows better
        shown: dict[object, Server] = {}
        for server in self._named.addresses:
            shown.setdefault(self._names.get(server, server), server)
        for key, server in nodes.items():
            shown.setdefault(key, server)
        self._asked = tuple(dict.fromkeys(shown.values()))
        return replace(self._named, addresses=self._asked)
