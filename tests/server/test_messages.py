"""What peers say, as bytes: nothing changes on the way, and the short cut writes what protobuf would."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.replication.frames import ACCEPTED, NEEDS_STATE, Answer, Frame, Hello, Offer, Piece
from cluster.server.generated import replication_pb2 as pb
from cluster.server.generated.__main__ import stale
from cluster.server.messages import (
    KEEP_ALIVE,
    BadMessage,
    Refusal,
    pack_frame,
    pack_hello,
    pack_refusal,
    unpack,
)

numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
small = st.integers(0, 2**32 - 1)
texts = st.text(max_size=20)
data = st.binary(max_size=300)
common_frames = st.builds(Frame, group=numbers, entries=data, acknowledged=numbers)
frames = st.builds(
    Frame,
    group=numbers,
    entries=data,
    acknowledged=numbers,
    offers=st.lists(
        st.builds(Offer, small, small, st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple), numbers),
        max_size=3,
    ),
    answers=st.lists(
        st.builds(Answer, small, small, st.integers(ACCEPTED, NEEDS_STATE), numbers), max_size=3
    ),
    pieces=st.lists(st.builds(Piece, small, small, data, st.booleans()), max_size=3),
    requests=data,
    replies=data,
    silent=st.lists(texts, max_size=3).map(tuple),
)


@given(st.one_of(common_frames, frames))
def test_a_frame_arrives_as_it_was_sent(frame: Frame) -> None:
    assert unpack(pack_frame(frame)) == frame


@given(common_frames)
def test_the_short_cut_writes_what_protobuf_would(frame: Frame) -> None:
    message = pb.Message(
        frame=pb.Frame(group=frame.group, entries=frame.entries, acknowledged=frame.acknowledged)
    )
    assert pack_frame(frame) == message.SerializeToString()


@given(st.builds(Hello, texts, texts, texts, numbers, small, small, texts), texts)
def test_hello_and_refusal_arrive_as_they_were_sent(hello: Hello, reason: str) -> None:
    assert unpack(pack_hello(hello)) == hello
    assert unpack(pack_refusal(reason)) == Refusal(reason)


def test_a_keep_alive_is_an_empty_frame() -> None:
    assert pack_frame(Frame()) == KEEP_ALIVE
    assert unpack(KEEP_ALIVE) == Frame()


@given(st.binary(max_size=200))
def test_garbage_is_a_bad_message_or_a_message_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(BadMessage):
        assert isinstance(unpack(garbage), Hello | Frame | Refusal)


def test_half_a_pair_in_a_history_is_a_bad_message() -> None:
    message = pb.Message()
    message.frame.offers.add(slot=1, epoch=1, history=[1, 2, 3])
    with pytest.raises(BadMessage, match="no list of pairs"):
        unpack(message.SerializeToString())


def test_fields_of_a_newer_protocol_are_passed_over() -> None:
    newer = b"\x12\x06" + b"\x08\x05" + b"\xa2\x06\x01x"  # group 5, and a field 100
    assert unpack(newer) == Frame(group=5)


def test_a_message_of_a_newer_kind_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="newer protocol"):
        unpack(b"\xa2\x06\x01x")


def test_the_generated_code_is_what_proto_says() -> None:
    pytest.importorskip("grpc_tools")
    assert stale() == [], "run make proto and commit cluster/server/generated"
