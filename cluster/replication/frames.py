"""What two nodes say to each other: at most one frame in each direction and turn.

A stream between two nodes carries both roles at once. As a primary a node sends entries of the slots that
it leads and, before the first entry of a slot on this stream, an offer; as a backup it answers offers and
acknowledges groups that are on its disk. Frames are handled in order; within one frame: rejections and
answers, acknowledgement, offers, pieces, entries, requests, replies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

ACCEPTED: Final = 1  # number: the receiver holds the sender's log up to it, on disk
REJECTED: Final = 2  # epoch: the higher one that the receiver has promised
NEEDS_STATE: Final = 3  # the logs have no common point that is kept: send the whole state


class Hello(NamedTuple):
    """The first message of each side of a stream."""

    fleet: str
    node: str
    identity: str
    incarnation: int
    protocol: int
    slots: int
    version: str


class Offer(NamedTuple):
    """A slot that the sender leads: compare your tail with this (rule 7)."""

    slot: int
    epoch: int
    history: tuple[tuple[int, int], ...]  # (epoch, number of its first entry), oldest first
    number: int  # of the last entry


class Answer(NamedTuple):
    """To an offer; REJECTED also to entries of an epoch that is over."""

    slot: int
    epoch: int
    verdict: int
    number: int


class Piece(NamedTuple):
    """A part of a slot's whole state, as entries between STATE and STATE_END."""

    slot: int
    epoch: int
    data: bytes
    last: bool


@dataclass(slots=True)
class Frame:
    """One message. Empty fields are not sent."""

    group: int = 0  # the sender's last group whose entries are in this frame or before it
    entries: bytes = b""
    acknowledged: int = 0  # all groups of the receiver's up to this one are on the sender's disk
    offers: list[Offer] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    requests: bytes = b""  # Gearman packets for slots that the receiver leads
    replies: bytes = b""  # Gearman packets in answer to such
    silent: tuple[str, ...] = ()  # nodes that the sender has not heard for long (rule 8)

    def __bool__(self) -> bool:
        return bool(
            self.entries
            or self.acknowledged
            or self.group
            or self.offers
            or self.answers
            or self.pieces
            or self.requests
            or self.replies
        )
