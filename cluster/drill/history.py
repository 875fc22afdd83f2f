"""What happened, in order: every submit, acknowledgement, run, end and fault, with one clock.

Who takes part says what it saw, when it saw it; nothing is concluded here. `cluster.drill.checker` reads a
history and judges the fleet by it, `cluster.drill.report` draws it.

The order of writing is part of the meaning:

- SUBMIT before the job is sent, and exactly one of ACK, REFUSED and UNKNOWN after it. UNKNOWN is also what a
  call says that gave up waiting; REFUSED only where the server certainly did not take the job.
- RUN before the work, and its DONE before the result is sent: so a job lives at least from its first ACK or
  RUN to its first DONE.
- FAULT before anything is done to the fleet, HEALED when it has been undone.

A history is kept in memory and, given a path, written through: one JSON object per line, in the file before
`add` returns, so a killed process loses no event. A file that cannot be written any more is given up, and
the events are in memory only: whoever drills must mend what it broke all the same. The processes of one
machine share the monotonic clock; each writes a file of its own, and `History.merge` makes one history of
them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from io import FileIO
from pathlib import Path
from sys import intern
from typing import Any, Final

TEXT_LENGTH_MAX: Final = 1_000  # of a note or an error; what is longer is cut


class Kind(StrEnum):
    """What an event tells."""

    SUBMIT = "submit"  # a submit was called
    ACK = "ack"  # it was acknowledged: handle, and the node that answered, if known
    REFUSED = "refused"  # the server said no: this call's job was certainly not taken
    UNKNOWN = "unknown"  # timed out, or the connection died: taken or not
    RUN = "run"  # a worker was given the job
    DONE = "done"  # that run ended well, as the worker says
    FAILED = "failed"  # that run ended the job with a failure or exception
    ABANDONED = "abandoned"  # that run was cut off, or its worker was told that the job is another's
    RESULT = "result"  # a foreground caller was told the end
    FAULT = "fault"  # began
    HEALED = "healed"  # ended
    LEADS = "leads"  # from now on a node serves a slot in an epoch
    NOTE = "note"  # for whoever reads the timeline


_KINDS: Final = {str(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Event:
    """One of them. Which fields are set depends on the kind."""

    at: float  # seconds since the history began
    kind: Kind
    key: str = ""  # "function/unique"; with nothing after the slash the job has no unique, and joins no other
    call: int = 0  # number of the submit call; a key may be submitted several times
    node: str = ""
    worker: str = ""
    handle: str = ""
    slot: int = -1  # -1: see the handle
    epoch: int = 0
    priority: str = ""  # of SUBMIT: high, normal or low
    order: int = 0  # of SUBMIT: sequence within a submitter that waits for each answer; 0: does not matter
    foreground: bool = False  # of SUBMIT: its caller waits for the end, and is promised no more than that
    fault: int = 0  # number, of FAULT and HEALED
    touches: tuple[str, ...] = ()  # of FAULT: nodes "a", workers "w1", links "a>b", "client>a", "etcd", "all"
    text: str = ""  # of FAULT: its name, and a note after a colon


_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(Event)[2:]}


class History:
    """Events in the order in which they were added. `add` may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, path: Path | None = None) -> None:
        """`path`: written through to this file; what is there stays before it. Raises OSError."""
        self.events: list[Event] = []
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._calls = 0
        self._faults = 0
        self.write_error: OSError | None = None  # that ended the writing
        self._file = None if path is None else path.open("ab", buffering=0)
        if self._file is not None:
            # After a line that a kill cut short, too.
            self._file.write(f'\n{{"began":{self._began!r}}}\n'.encode())

    def now(self) -> float:
        """Seconds since the history began."""
        return self._clock() - self._began

    def close(self) -> None:
        """Close the file, if there is one. Events added later stay in memory only."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, kind: Kind, **more: Any) -> Event:
        """Append an event that happens now; `more` are fields of Event."""
        with self._lock:
            event = Event(self._clock() - self._began, kind, **more)
            self.events.append(event)
            if self._file is not None:
                self._write(self._file, _line(event))
        return event

    def _write(self, file: FileIO, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            self.write_error, self._file = error, None
            file.close()

    # ---- submits

    def submit(self, key: str, *, priority: str = "normal", order: int = 0, foreground: bool = False) -> int:
        """Before a job is sent. Returns the call's number, for what comes of it."""
        with self._lock:
            self._calls += 1
            call = self._calls
        self.add(Kind.SUBMIT, key=key, call=call, priority=priority, order=order, foreground=foreground)
        return call

    def ack(self, call: int, *, handle: str, node: str = "") -> None:
        self.add(Kind.ACK, call=call, handle=handle, node=node)

    def refused(self, call: int, text: str = "") -> None:
        self.add(Kind.REFUSED, call=call, text=text[:TEXT_LENGTH_MAX])

    def unknown(self, call: int, text: str = "") -> None:
        self.add(Kind.UNKNOWN, call=call, text=text[:TEXT_LENGTH_MAX])

    def result(self, call: int, *, text: str = "") -> None:
        """The end of a foreground job came back to its caller."""
        self.add(Kind.RESULT, call=call, text=text[:TEXT_LENGTH_MAX])

    # ---- runs

    def run(self, key: str = "", *, worker: str, handle: str, node: str = "") -> None:
        """Before the work. `node`: which gave it, if known."""
        self.add(Kind.RUN, key=key, worker=worker, handle=handle, node=node)

    def done(self, key: str = "", *, worker: str, handle: str, node: str = "") -> None:
        """After the work, before the result is sent."""
        self.add(Kind.DONE, key=key, worker=worker, handle=handle, node=node)

    def failed(self, key: str = "", *, worker: str, handle: str, node: str = "") -> None:
        """Before the failure or exception is sent, which ends the job."""
        self.add(Kind.FAILED, key=key, worker=worker, handle=handle, node=node)

    def abandoned(self, key: str = "", *, worker: str, handle: str, node: str = "") -> None:
        self.add(Kind.ABANDONED, key=key, worker=worker, handle=handle, node=node)

    # ---- the fleet

    def fault(self, name: str, *touches: str, note: str = "") -> int:
        """Before it is done. Returns the fault's number, for `healed`."""
        with self._lock:
            self._faults += 1
            number = self._faults
        text = f"{name}: {note}" if note else name
        self.add(Kind.FAULT, fault=number, touches=tuple(touches), text=text[:TEXT_LENGTH_MAX])
        return number

    def healed(self, fault: int) -> None:
        self.add(Kind.HEALED, fault=fault)

    def leads(self, node: str, slot: int, epoch: int) -> None:
        self.add(Kind.LEADS, node=node, slot=slot, epoch=epoch)

    def note(self, text: str) -> None:
        self.add(Kind.NOTE, text=text[:TEXT_LENGTH_MAX])

    # ---- files

    def save(self, path: Path) -> None:
        """Write all events, in place of what the file held. Raises OSError."""
        with path.open("wb") as file:
            file.write(f'{{"began":{self._began!r}}}\n'.encode())
            file.writelines(map(_line, self.events))

    def begin_at(self, moment: float) -> None:
        """Count seconds from this moment of the clock; what was before it is at 0."""
        with self._lock:
            earlier = self._began - moment
            self._began = moment
            self.events = [replace(event, at=max(0.0, event.at + earlier)) for event in self.events]

    @classmethod
    def load(cls, path: Path) -> History:
        """Read a file of `save` or of a history with a path. Raises OSError, and ValueError for others."""
        return cls.merge([path])

    @classmethod
    def merge(cls, paths: Iterable[Path]) -> History:
        """One history of several files of one machine: sorted by time, with numbers of calls and faults that
        are unique again. Raises OSError and ValueError.
        """
        sections = [section for path in paths for section in _sections(path)]
        history = cls()
        history._began = min((began for began, _ in sections), default=history._began)
        several = len(sections) > 1
        for began, events in sections:
            later = began - history._began
            calls, faults = history._calls, history._faults
            for event in events:
                history._calls = max(history._calls, calls + event.call)
                history._faults = max(history._faults, faults + event.fault)
            if several:
                events = [_moved(event, later, calls, faults) for event in events]
            history.events += events
        if several:
            history.events.sort(key=lambda event: event.at)
        return history


def _line(event: Event) -> bytes:
    record: dict[str, Any] = {"at": round(event.at, 6), "kind": event.kind}
    for name, default in _DEFAULTS.items():
        value = getattr(event, name)
        if value != default:
            record[name] = value
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _sections(path: Path) -> Iterator[tuple[float, list[Event]]]:
    """What each process that wrote to the file began at, and its events."""
    began: float | None = None
    events: list[Event] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line == b"\n":
                continue
            try:
                record = json.loads(line)
                if "began" in record:
                    if began is not None:
                        yield began, events
                    began, events = float(record["began"]), []
                    continue
                event = _event(record)
            except (ValueError, TypeError, KeyError) as error:
                if _cut_short(line, file.peek(1)[:1]):
                    continue
                raise ValueError(f"{path}, line {number} is no event of a history: {error}") from error
            if began is None:
                raise ValueError(f"{path} is no history: it does not say when it began")
            events.append(event)
    if began is not None:
        yield began, events


def _cut_short(line: bytes, follows: bytes) -> bool:
    """Whether a process was killed while it wrote this line: it is the file's last, or was ended by the next
    process, which begins with an empty one."""
    return not line.endswith(b"\n") or (follows == b"{" and not line.endswith(b"}\n"))


def _event(record: dict[str, Any]) -> Event:
    record["kind"] = _KINDS[record["kind"]]
    # Millions of lines name the same few nodes and workers, and a job's handle three times.
    for name in ("key", "node", "worker", "handle", "priority"):
        if name in record:
            record[name] = intern(record[name])
    if "touches" in record:
        record["touches"] = tuple(record["touches"])
    return Event(**record)


def _moved(event: Event, later: float, calls: int, faults: int) -> Event:
    """The same event with numbers after others', on a clock that began earlier."""
    values = {name: getattr(event, name) for name in _DEFAULTS}
    values["call"] = event.call and event.call + calls
    values["fault"] = event.fault and event.fault + faults
    return Event(event.at + later, event.kind, **values)
