"""What became of slots, gathered into few sentences: 512 slots that are taken over are one line of the log.

The Fleet says of each slot what happened; a batch of slots with one story (taken over from b, handed over to
c) is told when nothing has been added to it for `SETTLE_SECONDS` and none of its slots is still on the way.
What cannot be served is told with its reason, once, and once more when it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SETTLE_SECONDS: Final = 1.0
# A batch of which slots are on the way for longer is told of as it is.
LATE_SECONDS: Final = 5.0
EVENTS_MAX: Final = 64  # that nobody has taken
REASONS_MAX: Final = 8  # told of at a time

TOOK_OVER: Final = "took over slots"
GOT: Final = "got slots"
LEADS_AGAIN: Final = "leads slots again"
HANDED_OVER: Final = "handed over slots"
LOST: Final = "slots were taken over by another node"
LATE: Final = "slots cannot be served yet"
UNAVAILABLE: Final = "slots unavailable"
AVAILABLE: Final = "slots available again"
REFUSES: Final = "background jobs are refused"
TAKES: Final = "background jobs are taken again"
WARNINGS: Final = frozenset({LATE, LOST, UNAVAILABLE, REFUSES})


_OTHER: Final = {
    TOOK_OVER: "from_node",
    GOT: "from_node",
    LEADS_AGAIN: "from_node",
    HANDED_OVER: "to_node",
    LOST: "to_node",
}


class SlotEvent(NamedTuple):
    """One line: an event of those above, and what is known of it."""

    what: str
    fields: dict[str, object]


@dataclass(slots=True)
class _Batch:
    began: float
    changed: float
    slots: set[int] = field(default_factory=set)
    on_the_way: set[int] = field(default_factory=set)
    late_told: bool = False


class SlotNews:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._batches: dict[tuple[str, str], _Batch] = {}  # (what, other node)
        self._on_the_way: dict[int, _Batch] = {}
        self._unavailable: dict[str, int] = {}  # reason -> slots, as told
        self._found: dict[str, int] = {}  # the same as it is
        self._found_at = 0.0
        self._unavailable_since = 0.0
        self._refused_since: float | None = None
        self._events: deque[SlotEvent] = deque(maxlen=EVENTS_MAX)

    def gained(self, slot: int, what: str, other: str, now: float) -> None:
        """This node is to lead the slot; `served` says that it does."""
        batch = self._add(slot, what, other, now)
        batch.on_the_way.add(slot)
        self._on_the_way[slot] = batch

    def served(self, slots: Iterable[int], now: float) -> None:
        for slot in slots:
            batch = self._on_the_way.pop(slot, None)
            if batch is not None:
                batch.on_the_way.discard(slot)
                batch.changed = now

    def gave(self, slot: int, what: str, other: str, now: float) -> None:
        """This node leads the slot no more."""
        self.served((slot,), now)
        self._add(slot, what, other, now)

    def _add(self, slot: int, what: str, other: str, now: float) -> _Batch:
        batch = self._batches.get((what, other))
        if batch is None:
            batch = self._batches[what, other] = _Batch(now, now)
        batch.slots.add(slot)
        batch.changed = now
        return batch

    def unreachable(self, reasons: Mapping[int, str], now: float) -> None:
        """All slots that no node can serve, with the reason."""
        found: dict[str, int] = {}
        for reason in reasons.values():
            found[reason] = found.get(reason, 0) + 1
        if found != self._found:
            self._found, self._found_at = found, now

    def refused(self, reason: str | None, now: float) -> None:
        """Background jobs are refused because no commit comes; None: they are taken again."""
        if reason is not None:
            self._refused_since = now
            self._events.append(SlotEvent(REFUSES, {"reason": reason}))
        elif self._refused_since is not None:
            self._events.append(SlotEvent(TAKES, {"seconds": round(now - self._refused_since, 1)}))
            self._refused_since = None

    def take(self, now: float, waits_for: Iterable[str] = ()) -> list[SlotEvent]:
        """What is to be told now. `waits_for`: nodes that do not answer."""
        events = list(self._events)
        self._events.clear()
        for key, batch in list(self._batches.items()):
            what, other = key
            if not batch.on_the_way and now - batch.changed >= SETTLE_SECONDS:
                del self._batches[key]
                events.append(
                    SlotEvent(
                        what,
                        {
                            "slots": len(batch.slots),
                            _OTHER[what]: other,
                            "seconds": round(batch.changed - batch.began, 2),
                        },
                    )
                )
            elif batch.on_the_way and not batch.late_told and now - batch.began >= LATE_SECONDS:
                batch.late_told = True
                events.append(
                    SlotEvent(
                        LATE,
                        {
                            "slots": len(batch.on_the_way),
                            "waits_for": ", ".join(waits_for) or "copies to catch up",
                        },
                    )
                )
        if self._found != self._unavailable and now - self._found_at >= SETTLE_SECONDS:
            events += self._availability()
        return events

    def _availability(self) -> list[SlotEvent]:
        found, before = self._found, self._unavailable
        self._unavailable = found
        if not found:
            seconds = round(self._found_at - self._unavailable_since, 1)
            return [SlotEvent(AVAILABLE, {"slots": sum(before.values()), "seconds": seconds})]
        if not before:
            self._unavailable_since = self._found_at
        most = sorted(found, key=lambda reason: (-found[reason], reason))[:REASONS_MAX]
        return [SlotEvent(UNAVAILABLE, {"slots": found[reason], "reason": reason}) for reason in most]
