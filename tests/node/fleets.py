"""A whole fleet in one thread: real Nodes, and for the rest a clock, disks that are lists, streams that are
queues, an etcd that is an object. Nothing happens but what a test does, or `settle` does for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cluster.node import Connection, Node, NodeSettings
from cluster.node.fleet import FleetSettings
from cluster.placement import Member, Swap, View, bootstrap, decode_map, encode_map
from cluster.placement.view import FleetConfig
from cluster.replication import SLOT_COUNT, entries, slot_of
from cluster.replication.frames import Frame, Hello
from cluster.replication.replicator import ProtocolBroken
from cluster.replication.restore import ReplicaRestorer
from cluster.wire import Decoder, request
from cluster.wire import packets as wire

PEER_PROTOCOL = 1
SMALL_SLOTS = 8


class Etcd:
    """Keys with revisions and a compare-and-swap; as linearizable as a single thread is."""

    def __init__(self) -> None:
        self.revision = 1
        self.view = View(1)
        self.up = True

    def put(self, member: Member) -> None:
        self.revision += 1
        members = {**self.view.members, member.name: replace(member, revision=self.revision)}
        self.view = replace(self.view, revision=self.revision, members=members)

    def delete(self, name: str) -> None:
        if name in self.view.members:
            self.revision += 1
            members = {key: member for key, member in self.view.members.items() if key != name}
            self.view = replace(self.view, revision=self.revision, members=members)

    def swap(self, swap: Swap) -> bool:
        view = self.view
        if (view.map.revision if view.map else 0) != swap.compare_revision:
            return False
        for name, revision in swap.compare_members.items():
            found = view.members.get(name)
            if (found.revision if found else 0) != revision:
                return False
        self.revision += 1
        fleet_map = decode_map(encode_map(swap.map), self.revision)
        self.view = replace(view, revision=self.revision, map=fleet_map, config=swap.config or view.config)
        return True


@dataclass
class Client:
    """A connection of the Gearman port."""

    host: Host
    connection: Connection
    decoder: Decoder = field(default_factory=lambda: Decoder(from_server=True))
    inbox: list[tuple[int, bytes]] = field(default_factory=list)

    def send(self, packet_type: int, *arguments: bytes) -> None:
        decoder = Decoder()
        self.host.turn(
            lambda: self.host.node.receive(self.connection, decoder.feed(request(packet_type, *arguments)))
        )

    def take(self) -> list[tuple[int, bytes]]:
        found, self.inbox = self.inbox, []
        return found


class Host:
    """One node with its disk and its clients; `crash` keeps what was fsynced."""

    def __init__(self, fleet: FleetInOneThread, name: str, identity: str, **settings: object) -> None:
        self.fleet = fleet
        self.name = name
        self.identity = identity
        self.disk: list[bytes] = []  # durable
        self.incarnation = 0
        self.alive = False
        self.frozen = False
        self.settings = settings
        self.node: Node
        self.unwritten: deque[tuple[int, list[bytes]]] = deque()

    def start(self) -> None:
        self.incarnation += 1
        self.alive = True
        self.frozen = False
        self.unwritten.clear()
        self.node = Node(
            NodeSettings(handle_prefix=b"H:" + self.name.encode(), reclaim_seconds=2.0, pause_seconds_max=2.0)
        )
        self.member = Member(
            name=self.name,
            identity=self.identity,
            incarnation=self.incarnation,
            host="127.0.0.1",
            port=4730,
            peer_port=4731,
            empty=True,
        )
        self.part = self.node.join(
            self.member,
            FleetSettings(**{"bootstrap_nodes": self.fleet.size, **self.settings}),  # type: ignore[arg-type]
        )
        restorer = ReplicaRestorer(self.part.replicator)
        data = b"".join(self.disk)
        offset = 0
        while offset < len(data):
            entry, offset = entries.decode_raw(data, offset)
            restorer.apply(entry)
        self.member = replace(self.member, empty=restorer.empty)
        self.part.begin(self.member)
        if self.fleet.etcd.up:
            self.fleet.etcd.put(self.member)
        self.turn(lambda: None)

    def crash(self, *, keep_unwritten: bool = False) -> None:
        if keep_unwritten:
            for _, records in self.unwritten:
                self.disk += records
        self.alive = False
        self.unwritten.clear()
        for other in self.fleet.hosts.values():
            self.fleet.cut(self.name, other.name)

    def turn(self, act: Callable[[], object]) -> None:
        """One turn; what is to be written waits for `write`."""
        if not self.alive or self.frozen:
            return
        node = self.node
        node.begin_turn(self.fleet.now, self.fleet.now)
        act()
        self.end()

    def end(self) -> None:
        output = self.node.end_turn(cut=True)
        if output.group is not None:
            self.unwritten.append((output.group.number, output.group.for_disk()))
        for connection, data in output.sends:
            client = connection.transport
            if client is not None:
                client.inbox += client.decoder.feed(data)

    def write(self) -> bool:
        """The disk has the oldest group."""
        if not self.alive or self.frozen or not self.unwritten:
            return False
        number, records = self.unwritten.popleft()
        self.disk += records
        self.turn(lambda: self.part.on_disk(number))
        return True

    def connect(self) -> Client:
        connection = Connection(1, "client")
        client = Client(self, connection)
        connection.transport = client
        self.node.connected(connection)
        return client


class FleetInOneThread:
    """Start it, then `settle`."""

    def __init__(self, size: int = 3, **settings: object) -> None:
        self.now = 1000.0
        self.size = size
        self.etcd = Etcd()
        self.hosts: dict[str, Host] = {}
        self.links: set[frozenset[str]] = set()
        self.blocked: set[frozenset[str]] = set()
        self.wires: dict[tuple[str, str], deque[Frame]] = {}
        self.settings = settings
        for number in range(size):
            self.add("abcdefgh"[number])

    def add(self, name: str) -> Host:
        host = self.hosts[name] = Host(self, name, f"{len(self.hosts) + 1:032x}", **self.settings)
        return host

    def start(self) -> FleetInOneThread:
        for host in self.hosts.values():
            host.start()
        self.settle()
        return self

    def living(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.alive and not host.frozen]

    # ---- streams

    def cut(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if pair in self.links:
            self.links.discard(pair)
            for first, second in ((one, other), (other, one)):
                self.wires.pop((first, second), None)
                host = self.hosts[first]
                if host.alive:
                    host.turn(lambda host=host, second=second: host.part.peer_down(second))  # type: ignore[misc]

    def connect_all(self) -> bool:
        did = False
        living = [host for host in self.hosts.values() if host.alive]
        for index, one in enumerate(living):
            for other in living[index + 1 :]:
                pair = frozenset((one.name, other.name))
                if pair in self.links or pair in self.blocked or one.frozen or other.frozen:
                    continue
                self.links.add(pair)
                did = True
                for first, second in ((one, other), (other, one)):
                    self.wires[first.name, second.name] = deque()
                    hello = Hello(
                        "f", second.name, second.identity, second.incarnation, PEER_PROTOCOL, SLOT_COUNT, "1"
                    )
                    first.turn(lambda first=first, hello=hello: first.part.peer_up(hello, self.now))  # type: ignore[misc]
        return did

    def send_frames(self) -> bool:
        did = False
        for host in self.living():
            for name in host.part.frames_waiting():
                frame = host.part.take_frame(name, self.now)
                if frame is not None:
                    self.wires[host.name, name].append(frame)
                    did = True
            host.turn(lambda: None)
        return did

    def deliver(self, count: int = 1) -> bool:
        did = False
        for (source, target), queue in list(self.wires.items()):
            host = self.hosts[target]
            for _ in range(count):
                if not queue or not host.alive or host.frozen:
                    break
                frame = queue.popleft()
                did = True

                def receive(host: Host = host, source: str = source, frame: Frame = frame) -> None:
                    try:
                        host.part.receive(source, frame, self.now)
                    except ProtocolBroken as error:
                        raise AssertionError(f"{source} to {host.name}: {error}") from error

                host.turn(receive)
        return did

    # ---- etcd

    def look(self) -> bool:
        """Everybody reads etcd and proposes."""
        did = False
        if not self.etcd.up:
            return False
        for host in self.living():
            found = self.etcd.view.members.get(host.name)
            if found is None:
                self.etcd.put(host.member)
                did = True
            host.part.lease(self.now)
            if host.part.view is not self.etcd.view:
                host.turn(lambda host=host: host.part.see(self.etcd.view))  # type: ignore[misc]
                did = True
            proposals: list[Swap] = []

            def ask(host: Host = host, proposals: list[Swap] = proposals) -> None:
                swap = host.part.propose()
                if swap is not None:
                    proposals.append(swap)

            host.turn(ask)
            for swap in proposals:
                self.etcd.swap(swap)
                host.part.swapped()
                host.turn(lambda host=host: host.part.see(self.etcd.view))  # type: ignore[misc]
                did = True
        return did

    def settle(self, rounds: int = 2000) -> None:
        """Let everything happen until nothing does."""
        for _ in range(rounds):
            did = self.connect_all()
            did |= self.look()
            did |= self.send_frames()
            did |= self.deliver(16)
            for host in self.living():
                did |= host.write()
                if host.part.busy:
                    host.turn(lambda: None)
                    did = True
            if not did:
                return
        raise AssertionError("it does not come to rest")

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for host in self.living():
                host.turn(host.node.tick)
            self.settle()

    # ---- looking

    def leads(self) -> dict[str, int]:
        return {host.name: sum(slot.serving for slot in host.node.log.slots) for host in self.living()}

    def host_of(self, function: bytes, unique: bytes) -> Host:
        """The primary of a key."""
        fleet_map = self.etcd.view.map
        assert fleet_map is not None
        return self.hosts[fleet_map.slots[slot_of(function + b"\0" + unique)].primary]


class SmallFleet(FleetInOneThread):
    """With few slots, and its map made at once: for tests in which the number of slots does not matter."""

    def begin(self) -> None:
        """All run, and nobody has done anything yet."""
        for host in self.hosts.values():
            host.start()
        swap = bootstrap(self.etcd.view, FleetConfig(SMALL_SLOTS, 3, 2), self.size)
        assert swap is not None
        assert self.etcd.swap(swap)

    def start(self) -> FleetInOneThread:
        self.begin()
        self.settle()
        return self


def small_uniques(function: bytes, of_each_slot: int = 2) -> list[bytes]:
    """Keys of the slots that a small fleet has."""
    found: dict[int, list[bytes]] = {slot: [] for slot in range(SMALL_SLOTS)}
    number = 0
    while any(len(some) < of_each_slot for some in found.values()):
        unique = b"u%d" % number
        slot = slot_of(function + b"\0" + unique)
        if slot < SMALL_SLOTS and len(found[slot]) < of_each_slot:
            found[slot].append(unique)
        number += 1
    return [unique for some in found.values() for unique in some]


def handles(packets: Iterable[tuple[int, bytes]]) -> list[bytes]:
    return [body for packet_type, body in packets if packet_type == wire.JOB_CREATED]
