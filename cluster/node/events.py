"""What a node did with jobs that somebody should read about: gathered in a turn, logged by the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cluster.node.connection import Connection

EVENTS_PER_TURN_MAX: Final = 64  # more are counted only
REASON_CHARACTERS_MAX: Final = 200

FAILED: Final = "a background job failed"
EXPIRED: Final = "a job's time limit is over"
SHORT_LIMIT: Final = "a worker's time limit is very short: CAN_DO_TIMEOUT counts milliseconds"


class Event(NamedTuple):
    """One thing that happened; `what` is one of the above."""

    what: str
    function: bytes
    handle: bytes  # empty: of no single job
    worker: str
    reason: str


class Command(NamedTuple):
    """A text command that changes something, or wanted to: who gave it is of interest afterwards."""

    line: bytes
    address: str
    client_id: bytes
    refused: bytes  # the answer that refuses it; empty: it was done, or another node has been asked to


class Events:
    """The events of a turn, bounded; `take` empties it."""

    __slots__ = ("_events", "_left_out")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._left_out = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: Event) -> None:
        if len(self._events) < EVENTS_PER_TURN_MAX:
            self._events.append(event)
        else:
            self._left_out += 1

    def note(self, what: str, function: bytes, handle: bytes, connection: Connection, reason: str) -> None:
        """What a worker did, by its connection."""
        worker = f"{connection.address} {connection.client_id.decode('utf-8', 'backslashreplace')}"
        self.add(Event(what, function, handle, worker, reason))

    def take(self) -> tuple[list[Event], int]:
        """The events, and how many more there were."""
        taken = self._events, self._left_out
        self._events, self._left_out = [], 0
        return taken


def text(data: bytes) -> str:
    """Bytes of a peer as a reason, cut."""
    return data[: 4 * REASON_CHARACTERS_MAX].decode("utf-8", "backslashreplace")[:REASON_CHARACTERS_MAX]
