"""A node on a bench: real packets in and out, a disk that is a list, clocks that are set by hand.

Nothing is faked of the node. What the bench stands for is the server around it: it ends the turns, takes
the groups, says when they are on the disk, and keeps what is on the disk in segments as the journal does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.jobs import Job
from cluster.node import Connection, Node, NodeSettings, Output
from cluster.replication import Group, entries
from cluster.wire import TEXT, Decoder, request, split_arguments
from cluster.wire import packets as wire

Packet = tuple[Any, ...]  # its type, then its arguments
WALL_SECONDS = 1_700_000_000.0  # 2023-11-14 22:13:20, a Tuesday


class Peer:
    """A client or worker: what it says, what it has heard."""

    def __init__(self, bench: Bench, number: int, *, local: bool = True) -> None:
        self.bench = bench
        self.connection = Connection(number, f"10.0.0.{number}", local=local)
        self.heard_bytes = b""
        self.here = True
        self._decoder = Decoder()

    def say(self, packet_type: int, *arguments: bytes) -> None:
        """One packet; the turn goes on."""
        self.say_bytes(request(packet_type, *arguments))

    def say_bytes(self, data: bytes) -> None:
        packets = self._decoder.feed(data)
        self.bench.node.receive(self.connection, packets)
        if self._decoder.error is not None:
            self.bench.node.protocol_error(self.connection, str(self._decoder.error))

    def ask(self, packet_type: int, *arguments: bytes) -> list[Packet]:
        """One packet, and what is heard when all that it caused is on disk."""
        self.say(packet_type, *arguments)
        self.bench.settle()
        return self.heard()

    def command(self, line: str) -> bytes:
        """A text command and the bytes of its reply."""
        assert not self.heard_bytes
        self.say_bytes(line.encode() + b"\n")
        self.bench.settle()
        reply, self.heard_bytes = self.heard_bytes, b""
        return reply

    def heard(self) -> list[Packet]:
        """The packets that have come since the last look."""
        packets = Decoder(from_server=True).feed(self.heard_bytes)
        self.heard_bytes = b""
        return [
            (kind, body) if kind == TEXT else (kind, *split_arguments(kind, body)) for kind, body in packets
        ]

    def leave(self) -> None:
        self.here = False
        self.bench.node.disconnected(self.connection)


class Bench:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        records: Sequence[bytes] = (),
        incarnation: int = 1,
        wall: float = WALL_SECONDS,
        **settings: Any,
    ) -> None:
        self.node = Node(NodeSettings(**settings))
        self.settings = settings
        self.incarnation = incarnation
        self.wall = wall
        self.monotonic = 1000.0
        self.writing: deque[tuple[int, Group]] = deque()  # (segment, group): given to the disk
        self.segments: dict[int, list[bytes]] = {1: []}  # on the disk
        self.segment = 1
        self.peers: dict[Connection, Peer] = {}
        self.closed: list[Connection] = []
        self.stopped: Any = None
        self.committed_group = 0
        self._peer_count = 0
        self._checkpoint: Iterator[None] | None = None
        self._checkpoint_after = 0  # begins when this group is on disk
        self._checkpoint_group = 0  # complete when this group is on disk
        self.node.begin_turn(self.wall, self.monotonic)
        restorer = self.node.restorer()
        for record in records:
            entry, end = entries.decode(record, 0)
            assert end == len(record)
            restorer.apply(entry)
        self.restored = restorer.finish()
        self.node.lead_all(incarnation, "test")
        self.segments[1] += records
        self.settle()

    # ---- peers

    def peer(self, **options: Any) -> Peer:
        self._peer_count += 1
        peer = Peer(self, self._peer_count, **options)
        self.peers[peer.connection] = peer
        self.node.connected(peer.connection)
        return peer

    def worker(self, *functions: bytes, **options: Any) -> Peer:
        peer = self.peer(**options)
        for function in functions:
            peer.say(wire.CAN_DO, function)
        return peer

    # ---- turns and commits

    def end_turn(self, *, cut: bool = True) -> Output:
        if self._checkpoint is not None and next(self._checkpoint, self) is self:
            self._checkpoint = None
            self._checkpoint_group = self.node.log.group.number
            self.node.log.append_node(entries.START, self.node.log.incarnation, b"checkpointed")
        output = self.node.end_turn(cut=cut)
        if output.group is not None:
            self.writing.append((self.segment, output.group))
        for connection, data in output.sends:
            self.peers[connection].heard_bytes += data
        self.closed += output.closes
        self.stopped = output.stop or self.stopped
        self.node.begin_turn(self.wall, self.monotonic)
        return output

    def commit(self) -> bool:
        """The oldest group is on the disk; false when there is none."""
        if not self.writing:
            return False
        segment, group = self.writing.popleft()
        self.segments[segment] += group.records
        self.committed_group = group.number
        self.node.committed(group.number)
        if self._checkpoint_after and group.number >= self._checkpoint_after:
            self._checkpoint_after = 0
            self._checkpoint = self.node.checkpoint()
        if self._checkpoint_group and group.number >= self._checkpoint_group:
            self._checkpoint_group = 0
            for number in [number for number in self.segments if number < self.segment]:
                del self.segments[number]
        return True

    def settle(self) -> None:
        """End turns and commit until nothing is owed to anybody."""
        self.end_turn()
        while self.commit() or self._checkpoint is not None:
            self.end_turn()

    def fail(self, reason: str = "the disk is full") -> list[bytes]:
        """Nothing that the disk was given since the last commit can be written."""
        first = self.writing[0][1].number
        self.writing.clear()
        self.node.refuse_background(reason)
        return self.node.group_failed(first, reason)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds
        self.node.begin_turn(self.wall, self.monotonic)
        self.node.tick()

    # ---- checkpoints and restarts

    @property
    def checkpointing(self) -> bool:
        return bool(self._checkpoint_after or self._checkpoint_group or self._checkpoint is not None)

    def start_checkpoint(self) -> None:
        """A new segment for the groups from now on; the checkpoint begins when the others are on disk."""
        if self.checkpointing:
            return
        self.segment += 1
        self.segments[self.segment] = []
        if self.writing:
            self._checkpoint_after = self.writing[-1][1].number
        else:
            self._checkpoint = self.node.checkpoint()

    @property
    def records(self) -> list[bytes]:
        """All that is on the disk."""
        return [record for number in sorted(self.segments) for record in self.segments[number]]

    @property
    def unwritten(self) -> list[bytes]:
        """What the disk was given, but has not said that it holds."""
        return [record for _, group in self.writing for record in group.records]

    def killed(self, unacknowledged: int = 0) -> Bench:
        """Kill -9 and start again, with the first few of the records that were being written."""
        return Bench(
            records=self.records + self.unwritten[:unacknowledged],
            incarnation=self.incarnation + 1,
            wall=self.wall,
            **self.settings,
        )

    def job(self, handle: bytes) -> Job | None:
        return self.node.context.find_handle(handle)
