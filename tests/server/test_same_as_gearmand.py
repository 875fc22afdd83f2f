"""The same bytes to a node and to Debian's gearmand: the same answers. Where they differ on purpose, see
docs/compatibility.md and the tests beside this one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from cluster.wire import PACKETS, request
from cluster.wire import packets as wire
from tests.support import Gearmand, Node, Packet, Peer
from tests.support.node import ServerProcess

StartNode = Callable[..., Node]

HANDLE_FIRST = frozenset(
    number
    for number, spec in PACKETS.items()
    if spec.from_server and spec.name.startswith(("JOB_", "WORK_", "STATUS_RES")) and number != 42
)


@dataclass
class Stage:
    """Named peers of one server, and all that it answered, with handles numbered in order."""

    server: ServerProcess
    stack: ExitStack
    peers: dict[str, Peer] = field(default_factory=dict)
    handles: list[bytes] = field(default_factory=list)
    heard: list[tuple[str, Packet]] = field(default_factory=list)

    def peer(self, name: str) -> Peer:
        if name not in self.peers:
            self.peers[name] = self.stack.enter_context(self.server.connect())
        return self.peers[name]

    def say(self, name: str, data: bytes) -> None:
        """Send bytes and note all that comes until an echo."""
        peer = self.peer(name)
        peer.send_bytes(data)
        peer.send(wire.ECHO_REQ, b"-- end --")
        while (packet := peer.receive()) != (wire.ECHO_RES, (b"-- end --",)):
            self.heard.append((name, self._numbered(packet)))

    def packet(self, packet_type: int, *arguments: bytes) -> bytes:
        """A request; `<1>` as an argument is the first handle."""
        named = {b"<%d>" % number: handle for number, handle in enumerate(self.handles, 1)}
        return request(packet_type, *(named.get(argument, argument) for argument in arguments))

    def _numbered(self, packet: Packet) -> Packet:
        if packet.type == wire.ERROR:  # the code is for programs, the sentence for people
            return Packet(wire.ERROR, packet.arguments[:1])
        if packet.type not in HANDLE_FIRST or not packet.arguments:
            return packet
        handle, *rest = packet.arguments
        if packet.type == wire.JOB_CREATED and handle not in self.handles:
            self.handles.append(handle)
        if handle in self.handles:
            handle = b"<%d>" % (self.handles.index(handle) + 1)
        return Packet(packet.type, (handle, *rest))


# Each line: who speaks, packet type, arguments; or who speaks and a text command.
Line = tuple[str, int | str] | tuple[str, int, tuple[bytes, ...]]

SCRIPTS: dict[str, list[Line]] = {
    "a job from submit to result": [
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB),
        ("client", wire.SUBMIT_JOB, (b"f", b"u", b"payload")),
        ("client", wire.GET_STATUS, (b"<1>",)),
        ("worker", wire.GRAB_JOB),
        ("client", wire.GET_STATUS, (b"<1>",)),
        ("worker", wire.WORK_STATUS, (b"<1>", b"1", b"2")),
        ("client", wire.GET_STATUS, (b"<1>",)),
        ("worker", wire.WORK_DATA, (b"<1>", b"da\0ta")),
        ("worker", wire.WORK_WARNING, (b"<1>", b"warning")),
        ("worker", wire.WORK_COMPLETE, (b"<1>", b"re\0sult")),
        ("client", wire.GET_STATUS, (b"<1>",)),
        ("worker", wire.WORK_COMPLETE, (b"<1>", b"again")),
        ("worker", wire.WORK_FAIL, (b"<1>",)),
        ("worker", wire.GRAB_JOB_UNIQ),
    ],
    "failures": [
        ("worker", wire.CAN_DO, (b"f",)),
        ("client", wire.SUBMIT_JOB, (b"f", b"", b"1")),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.WORK_FAIL, (b"<1>",)),
        ("client", wire.OPTION_REQ, (b"exceptions",)),
        ("client", wire.OPTION_REQ, (b"nothing",)),
        ("client", wire.SUBMIT_JOB_HIGH, (b"f", b"", b"2")),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.WORK_EXCEPTION, (b"<2>", b"why")),
        ("client", "status"),
    ],
    "background jobs of every priority": [
        ("client", wire.SUBMIT_JOB_LOW_BG, (b"f", b"", b"low")),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"", b"normal")),
        ("client", wire.SUBMIT_JOB_HIGH_BG, (b"f", b"", b"high")),
        ("client", "status"),
        ("client", "prioritystatus"),
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_ALL),
        ("client", "prioritystatus"),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.GRAB_JOB),
        ("client", "status"),
    ],
    "one unique, many clients": [
        ("one", wire.SUBMIT_JOB, (b"f", b"u", b"first")),
        ("two", wire.SUBMIT_JOB_HIGH, (b"f", b"u", b"second")),
        ("two", wire.SUBMIT_JOB, (b"f", b"u", b"third")),
        ("one", wire.GET_STATUS_UNIQUE, (b"u",)),
        ("one", wire.SUBMIT_JOB_BG, (b"f", b"-", b"payload")),
        ("two", wire.SUBMIT_JOB_BG, (b"f", b"-", b"payload")),
        ("two", wire.SUBMIT_JOB_BG, (b"f", b"-", b"other")),
        ("one", "status"),
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("one", wire.GET_STATUS_UNIQUE, (b"u",)),
        ("worker", wire.WORK_COMPLETE, (b"<1>", b"result")),
        ("one", wire.GET_STATUS_UNIQUE, (b"u",)),
    ],
    "sleeping and waking": [
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.PRE_SLEEP),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"", b"1")),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"", b"2")),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.PRE_SLEEP),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.PRE_SLEEP),
    ],
    "map and reduce": [
        ("client", wire.SUBMIT_REDUCE_JOB, (b"f", b"u", b"reducer", b"", b"payload")),
        ("client", wire.SUBMIT_REDUCE_JOB_BACKGROUND, (b"f", b"v", b"reducer", b"", b"payload")),
        ("client", wire.SUBMIT_JOB, (b"f", b"w", b"payload")),
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_ALL),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.GRAB_JOB_ALL),
        ("worker", wire.GRAB_JOB_ALL),
    ],
    "a time in the past": [
        ("client", wire.SUBMIT_JOB_EPOCH, (b"f", b"u", b"1", b"payload")),
        ("client", "prioritystatus"),
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_UNIQ),
    ],
    "numbers that are none": [
        ("worker", wire.CAN_DO_TIMEOUT, (b"f", b"")),
        ("worker", wire.CAN_DO_TIMEOUT, (b"f", b"soon")),
        ("worker", wire.CAN_DO_TIMEOUT, (b"f", b"60000.5")),
        ("client", wire.SUBMIT_JOB, (b"f", b"u", b"payload")),
        ("worker", wire.GRAB_JOB),
        *(
            line
            for numbers in (
                (b"0.5", b"1.0"),
                (b"-1", b"100"),
                (b"50%", b" 7"),
                (b"", b""),
                (b"+3", b"4\0x"),
                (b"0x10", b"1e3"),
            )
            for line in (
                ("worker", wire.WORK_STATUS, (b"<1>", *numbers)),
                ("client", wire.GET_STATUS, (b"<1>",)),
            )
        ),
        ("worker", wire.WORK_COMPLETE, (b"<1>", b"")),
        *(
            ("client", wire.SUBMIT_JOB_EPOCH, (b"f", b"", when, b"payload"))
            for when in (b"1.5", b"soon", b"", b"-3")
        ),
        ("worker", wire.GRAB_JOB),
        ("client", "maxqueue f 10abc"),
        ("client", "maxqueue f -1"),
        ("client", "maxqueue f 1.5"),
        ("client", wire.OPTION_REQ, (b"Exceptions",)),
    ],
    "the function registered last comes first": [
        *(("worker", wire.CAN_DO, (name,)) for name in (b"a", b"b", b"c")),
        *(("client", wire.SUBMIT_JOB_BG, (name, b"", b"")) for name in (b"a", b"b", b"c")),
        *(("worker", wire.GRAB_JOB) for _ in range(3)),
        ("client", wire.SUBMIT_JOB_BG, (b"a", b"", b"")),
        ("worker", wire.CAN_DO, (b"d",)),
        ("client", wire.SUBMIT_JOB_BG, (b"d", b"", b"")),
        *(("worker", wire.GRAB_JOB) for _ in range(2)),
    ],
    "a tab in a name": [
        ("worker", wire.CAN_DO, (b"site\tmail",)),
        ("client", wire.SUBMIT_JOB_BG, (b"site\tmail", b"", b"payload")),
        ("client", "create function site\tother\r"),
        ("client", "status"),
        ("client", "prioritystatus"),
        ("worker", wire.GRAB_JOB),
    ],
    "echo and what is unknown": [
        ("client", wire.ECHO_REQ, (b"a\0b",)),
        ("client", wire.ECHO_REQ, (b"",)),
        ("client", wire.GET_STATUS, (b"H:never:1",)),
        ("client", wire.GET_STATUS_UNIQUE, (b"never",)),
        ("client", wire.WORK_COMPLETE, (b"H:never:1", b"x")),
        ("client", wire.SUBMIT_JOB, (b"f", b"u" * 100, b"x")),
    ],
    "text": [
        ("client", "status"),
        ("client", "create function abc\r"),
        ("client", "status"),
        ("client", "drop function abc"),
        ("client", "drop function abc"),
        ("client", "cancel job H:never:1"),
        ("client", "show nothing"),
        ("client", "show jobs"),
        ("client", "show unique jobs"),
        ("client", "STATUS"),
        ("client", "nonsense"),
        ("client", "nonsense with more"),
        ("client", ""),
        ("client", "maxqueue"),
        ("client", "create function"),
        ("client", "drop function"),
    ],
    "limits": [
        ("worker", wire.CAN_DO, (b"f",)),
        ("client", "maxqueue f 1"),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"u", b"")),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"v", b"")),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"u", b"")),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("client", wire.SUBMIT_JOB, (b"f", b"w", b"")),
        ("client", "maxqueue f 0"),
        ("client", wire.SUBMIT_JOB, (b"f", b"w", b"")),
    ],
    "abilities": [
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.CAN_DO_TIMEOUT, (b"g", b"5000")),
        ("client", "status"),
        ("client", wire.SUBMIT_JOB_BG, (b"f", b"", b"")),
        ("worker", wire.CANT_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.CAN_DO, (b"f",)),
        ("worker", wire.GRAB_JOB_UNIQ),
        ("worker", wire.WORK_COMPLETE, (b"<1>", b"")),
        ("client", "status"),
    ],
}


def play(server: ServerProcess, script: list[Line]) -> list[tuple[str, Packet]]:
    with ExitStack() as stack:
        stage = Stage(server, stack)
        for name, what, *arguments in script:
            if isinstance(what, str):
                stage.say(name, what.encode() + b"\n")
            else:
                stage.say(name, stage.packet(what, *(arguments[0] if arguments else ())))
        # What came for those who did not speak last
        for name in list(stage.peers):
            stage.say(name, b"")
        return stage.heard


def in_any_order(heard: list[tuple[str, Packet]]) -> list[tuple[str, Packet]]:
    """Rows of a text table come in no particular order; everything else does."""
    result: list[tuple[str, Packet]] = []
    rows: list[tuple[str, Packet]] = []
    for name, packet in heard:
        if packet.name == "TEXT" and b"\t" in packet.arguments[0]:
            rows.append((name, packet))
        else:
            result += [*sorted(rows), (name, packet)]
            rows = []
    return result + sorted(rows)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda name: name.replace(" ", "-"))
def test_the_same_answers(script: str, start_node: StartNode, gearmand: Gearmand) -> None:
    theirs = play(gearmand, SCRIPTS[script])
    ours = play(start_node(durability="os"), SCRIPTS[script])
    assert in_any_order(ours) == in_any_order(theirs)
