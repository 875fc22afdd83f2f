"""Any packets in any order with any arguments: an answer or an error, never an exception."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.node import Connection
from cluster.wire import MISDIRECTED, PACKETS, TEXT
from cluster.wire import packets as wire
from tests.node.bench import Bench

words = st.sampled_from(
    [
        *b"|f|g|u|-|*|0|-1|1|60000|H:node:1.1.1|exceptions|\xff| ".split(b"|"),
        b"9" * 5000,
        b"x" * 700,
        b"r" * 70_000,
    ]
)
bodies = st.lists(words, max_size=9).map(b"\0".join) | st.binary(max_size=40)
verbs = [
    b"workers",
    b"status",
    b"prioritystatus",
    b"show",
    b"cancel",
    b"create",
    b"drop",
    b"maxqueue",
    b"getpid",
]
more = [
    b"job",
    b"function",
    b"jobs",
    b"unique",
    b"f",
    b"1",
    b"-5",
    b"9" * 5000,
    b"H:node:1.1.1",
    b"\0",
    b"\xff",
]
lines = st.lists(st.sampled_from([*verbs, b"verbose", b"version", b"shutdown", *more]), max_size=6).map(
    b" ".join
)
packets = st.one_of(
    st.tuples(st.sampled_from(sorted(PACKETS)), bodies),
    st.tuples(st.sampled_from(sorted(PACKETS)), bodies),
    st.tuples(st.just(TEXT), lines),
    st.tuples(st.just(TEXT), st.binary(max_size=60)),
    st.tuples(st.just(MISDIRECTED), bodies),
    st.tuples(st.integers(0, 2**32 - 1), bodies),
)
# Who sends it, the packet, and whether the turn ends.
events = st.lists(st.tuples(st.integers(0, 2), packets, st.booleans()), max_size=40)


@settings(max_examples=300, deadline=None)
@given(events=events, durable=st.booleans())
@example(events=[(0, (wire.SUBMIT_JOB_EPOCH, b"f\0u\0" + b"9" * 5000 + b"\0"), True)], durable=True)
@example(
    events=[(0, (wire.SUBMIT_REDUCE_JOB_BACKGROUND, b"f\0u\0" + b"r" * 70_000 + b"\0\0"), True)], durable=True
)
def test_any_packets_are_answered(events: list[tuple[int, tuple[int, bytes], bool]], durable: bool) -> None:
    bench = Bench(durable=durable)
    peers = [bench.peer() for _ in range(3)]
    for who, packet, ends in events:
        bench.node.receive(peers[who].connection, [packet])
        if ends:
            bench.pass_time(61)
            bench.settle()
    bench.settle()
    # What the node says is what a decoder understands
    for peer in peers:
        peer.heard()
    # And it still serves
    client, worker = bench.peer(), bench.worker(b"fresh")
    assert client.ask(wire.SUBMIT_JOB_BG, b"fresh", b"", b"p")[0][0] == wire.JOB_CREATED
    assert worker.ask(wire.GRAB_JOB)[-1][3] == b"p"
    # Also from its journal
    if durable:
        bench.killed()


def test_a_packet_from_who_has_just_left_harms_nobody() -> None:
    bench = Bench()
    peer = bench.worker(b"f")
    peer.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    peer.leave()
    bench.settle()
    bench.node.disconnected(peer.connection)
    bench.node.disconnected(Connection(99, "never connected"))
    bench.settle()
    assert bench.peer().command("status") == b"f\t1\t0\t0\n.\n"
