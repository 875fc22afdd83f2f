"""Any bytes, cut anywhere, give packets or a protocol error: never another exception, a hang or more memory
than one message. The cuts never change the result."""

from __future__ import annotations

import random
import sys
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.wire import MISDIRECTED, PACKETS, TEXT, Decoder, ProtocolError, request, response
from cluster.wire import packets as wire
from cluster.wire.packets import HEADER_BYTES, TEXT_LINE_BYTES_MAX

PACKET_BYTES_MAX = 64

bodies = st.binary(max_size=PACKET_BYTES_MAX + 8)
types = st.one_of(st.sampled_from(sorted(PACKETS)), st.integers(0, 2**32 - 1))
lines = st.binary(max_size=40).map(lambda line: line.replace(b"\0", b".") + b"\n")
requests = st.builds(request, types, bodies)
responses = st.builds(response, types, bodies)
long_lines = st.integers(TEXT_LINE_BYTES_MAX - 2, TEXT_LINE_BYTES_MAX + 2).map(lambda n: b"y" * n + b"\n")
# Mostly good messages, so that faults are also met deep in a stream, and some bytes of any kind.
streams = st.lists(
    st.one_of(lines, requests, requests, responses, long_lines, st.binary(max_size=30)), max_size=12
).map(b"".join)


def cut(data: bytes, seed: int) -> list[bytes]:
    """The data in pieces of random sizes, most of them tiny; some are empty."""
    dice = random.Random(seed)
    pieces = []
    while data:
        size = dice.choice((0, 1, 1, 2, 3, 11, 12, 13, 100, 10_000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def held_bytes(decoder: Decoder) -> int:
    return len(decoder._held)


def outcome(decoder: Decoder, packets: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], str | None]:
    return packets, None if decoder.error is None else str(decoder.error)


@settings(max_examples=400, deadline=None)
@given(data=streams, seed=st.integers(0, 2**32), from_server=st.booleans())
@example(data=b"\0", seed=0, from_server=False)
@example(data=b"\r\n\r\n", seed=0, from_server=False)
@example(data=b"x" * TEXT_LINE_BYTES_MAX, seed=0, from_server=False)
def test_any_bytes_in_any_pieces_give_packets_or_a_protocol_error(
    data: bytes, seed: int, from_server: bool
) -> None:
    # Given the whole stream read in one piece
    whole = Decoder(from_server=from_server, packet_bytes_max=PACKET_BYTES_MAX)
    expected = outcome(whole, whole.feed(data))

    # When the same bytes arrive in pieces
    decoder = Decoder(from_server=from_server, packet_bytes_max=PACKET_BYTES_MAX)
    packets: list[tuple[int, bytes]] = []
    for piece in cut(data, seed):
        packets += decoder.feed(piece)
        # Then no more than one incomplete message is held
        assert held_bytes(decoder) <= max(HEADER_BYTES + PACKET_BYTES_MAX, TEXT_LINE_BYTES_MAX) + len(piece)

    # And the result is the same
    assert outcome(decoder, packets) == expected

    # And it is made of packets, each within its limit
    for packet_type, body in packets:
        assert packet_type >= 0 or packet_type in (TEXT, MISDIRECTED)
        assert len(body) <= (TEXT_LINE_BYTES_MAX if packet_type == TEXT else PACKET_BYTES_MAX)
    assert decoder.error is None or isinstance(decoder.error, ProtocolError)


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(st.tuples(st.sampled_from(sorted(PACKETS)), st.binary(max_size=PACKET_BYTES_MAX))),
    seed=st.integers(0, 2**32),
)
def test_what_was_encoded_is_what_is_decoded(messages: list[tuple[int, bytes]], seed: int) -> None:
    data = b"".join(request(packet_type, body) for packet_type, body in messages)
    decoder = Decoder(packet_bytes_max=PACKET_BYTES_MAX)
    packets = [packet for piece in cut(data, seed) for packet in decoder.feed(piece)]
    assert packets == messages
    assert decoder.error is None
    assert held_bytes(decoder) == 0


@settings(max_examples=100, deadline=None)
@given(data=streams, more=st.binary(max_size=100))
def test_after_a_fault_nothing_more_is_read_or_held(data: bytes, more: bytes) -> None:
    decoder = Decoder(packet_bytes_max=PACKET_BYTES_MAX)
    decoder.feed(data)
    decoder.feed(b"\0bad magic, and enough bytes to see it " + bytes(PACKET_BYTES_MAX))
    decoder.feed(bytes(TEXT_LINE_BYTES_MAX + PACKET_BYTES_MAX))
    assert decoder.error is not None
    first = decoder.error
    assert decoder.feed(more) == []
    assert decoder.error is first
    assert held_bytes(decoder) == 0


def test_a_large_packet_in_thousands_of_pieces_is_copied_once() -> None:
    # Given 8 MiB in pieces of 1 KiB: joining at each piece would copy 32 GiB
    size = 8 * 1024 * 1024
    data = request(wire.ECHO_REQ, bytes(size))
    decoder = Decoder()
    # When they arrive
    began = time.process_time()
    packets = [packet for at in range(0, len(data), 1024) for packet in decoder.feed(data[at : at + 1024])]
    # Then it takes nothing like the minute that the copies would
    assert time.process_time() - began < 5
    assert [(packet_type, len(body)) for packet_type, body in packets] == [(wire.ECHO_REQ, size)]


def test_a_trickled_packet_holds_little_more_than_its_bytes() -> None:
    # Given a peer that sends a large packet two bytes at a time: each piece is dearer than what is in it
    decoder = Decoder()
    data = request(wire.ECHO_REQ, random.Random(1).randbytes(200_000))[:-1]
    # When all but the last byte have come
    for at in range(0, len(data), 2):
        decoder.feed(data[at : at + 2])
    # Then what is held is hardly more than what was sent
    assert held_bytes(decoder) == len(data)
    assert sys.getsizeof(decoder._held) <= 1.25 * len(data)
