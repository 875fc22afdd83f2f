"""Hello, Frame and Refusal as bytes of proto/replication.proto, and back.

Entries are large and nearly all frames hold nothing else but two numbers: those are put together and taken
apart here by hand, which copies the entries once instead of twice. The rest goes through protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from cluster.replication.frames import Answer, Frame, Hello, Offer, Piece
from cluster.server.generated import replication_pb2 as pb

KEEP_ALIVE: Final = b"\x12\x00"  # a Message with an empty Frame
NO_FRAME: Final = Frame()


class BadMessage(Exception):
    """Bytes that are no message of proto/replication.proto."""


class Refusal(NamedTuple):
    """Why a stream is not wanted, and what to do."""

    reason: str


class Greeting(NamedTuple):
    """One of the messages that open a stream, see proof.py."""

    content: Hello | Refusal | None  # None: a proof alone
    nonce: bytes = b""  # none: of a release that knows no proofs
    proofs: tuple[bytes, ...] = ()


def pack_hello(hello: Hello, nonce: bytes = b"", proofs: Sequence[bytes] = ()) -> bytes:
    message = pb.Message(hello=pb.Hello(**hello._asdict()), nonce=nonce, proofs=proofs)
    return bytes(message.SerializeToString())


def pack_proofs(proofs: Sequence[bytes]) -> bytes:
    return bytes(pb.Message(proofs=proofs).SerializeToString())


def pack_refusal(reason: str) -> bytes:
    return bytes(pb.Message(refusal=pb.Refusal(reason=reason)).SerializeToString())


def pack_frame(frame: Frame) -> bytes:
    if (
        frame.offers or frame.answers or frame.pieces or frame.requests or frame.replies or frame.silent
    ):  # fmt: skip
        return _pack_any_frame(frame)
    entries = frame.entries
    head = b""
    if frame.group:
        head = b"\x08" + _varint(frame.group)
    if entries:
        head += b"\x12" + _varint(len(entries))
    tail = b"\x18" + _varint(frame.acknowledged) if frame.acknowledged else b""
    return b"".join((b"\x12", _varint(len(head) + len(entries) + len(tail)), head, entries, tail))


def _varint(number: int) -> bytes:
    """Protobuf's: seven bits a byte, the least first."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _pack_any_frame(frame: Frame) -> bytes:
    message = pb.Message()
    out = message.frame
    out.SetInParent()
    out.group = frame.group
    out.entries = frame.entries
    out.acknowledged = frame.acknowledged
    for offer in frame.offers:
        flat = [number for pair in offer.history for number in pair]
        out.offers.add(slot=offer.slot, epoch=offer.epoch, history=flat, number=offer.number)
    for answer in frame.answers:
        out.answers.add(
            slot=answer.slot, epoch=answer.epoch, verdict=answer.verdict, number=answer.number
        )  # fmt: skip
    for piece in frame.pieces:
        out.pieces.add(slot=piece.slot, epoch=piece.epoch, data=piece.data, last=piece.last)
    out.requests = frame.requests
    out.replies = frame.replies
    out.silent.extend(frame.silent)
    return bytes(message.SerializeToString())


def unpack(data: bytes) -> Hello | Frame | Refusal:
    """Raises BadMessage."""
    return _content(_parse(data))


def unpack_greeting(data: bytes) -> Greeting:
    """Raises BadMessage. Frames, which may be large, are not looked into."""
    message = _parse(data)
    kind = message.WhichOneof("content")
    if kind is None and message.proofs:
        return Greeting(None, message.nonce, tuple(message.proofs))
    content = NO_FRAME if kind == "frame" else _content(message)
    if isinstance(content, Frame):
        raise BadMessage("a frame before the stream was opened")
    return Greeting(content, message.nonce, tuple(message.proofs))


def _parse(data: bytes) -> pb.Message:
    try:
        message: pb.Message = pb.Message.FromString(data)
        return message
    except DecodeError:
        raise BadMessage(f"{len(data)} bytes that are no message of this protocol") from None


def _content(message: pb.Message) -> Hello | Frame | Refusal:
    content = message.WhichOneof("content")
    if content == "frame":
        return _frame(message.frame)
    if content == "hello":
        hello = message.hello
        return Hello(*(getattr(hello, name) for name in Hello._fields))
    if content == "refusal":
        return Refusal(message.refusal.reason)
    raise BadMessage("a message without content: of a newer protocol?")


def _frame(message: pb.Frame) -> Frame:
    frame = Frame(message.group, message.entries, message.acknowledged)
    for offer in message.offers:
        flat = offer.history
        if len(flat) % 2:
            raise BadMessage("an offer whose history is no list of pairs")
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        frame.offers.append(Offer(offer.slot, offer.epoch, pairs, offer.number))
    for answer in message.answers:
        frame.answers.append(Answer(answer.slot, answer.epoch, answer.verdict, answer.number))
    for piece in message.pieces:
        frame.pieces.append(Piece(piece.slot, piece.epoch, piece.data, piece.last))
    frame.requests = message.requests
    frame.replies = message.replies
    frame.silent = tuple(message.silent)
    return frame
