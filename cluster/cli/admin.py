"""A server's text commands as functions.

    with Admin(Server("127.0.0.1", 4730)) as admin:
        for function in admin.status(): ...

Works against gearmand; `maxqueues` needs a Gearfleet node, gearmand cannot say its limits.
"""

import json
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, NamedTuple, TypeVar

from client_ha.addresses import Server
from cluster.cli.found_jobs import FoundJob, JobQuestion, QueuedJob, oldest_of
from cluster.cli.peer import Peer, Unreachable

ANSWER_SECONDS: Final = 10.0
WORKER_BYTES_MAX: Final = 256 * 1024 * 1024  # a line of `workers`
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")  # gearmand has been seen with -1 running


Answer = TypeVar("Answer")


class SlotCount(NamedTuple):
    """What `show slots` tells."""

    led: int
    loaded: int


@dataclass(frozen=True, slots=True)
class WholeAnswer(Generic[Answer]):
    """An answer, how many slots the node led behind it (None: it cannot tell), and how many of them may be
    missing from the answer or be in it in part."""

    answer: Answer
    led: int | None
    unsure: int


class Refused(Exception):
    """The server answered ERR; `text` is what it said."""

    def __init__(self, server: Server, command: str, text: str) -> None:
        super().__init__(f"{server} refused {command!r}: {text.replace('+', ' ')}")
        self.text = text


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """One line of `status`: jobs in all, those that run, and the workers that can do it."""

    function: str
    total: int
    running: int
    workers: int

    @property
    def waiting(self) -> int:
        return max(0, self.total - self.running)


@dataclass(frozen=True, slots=True)
class FunctionPriorities:
    """One line of `prioritystatus`: waiting jobs by priority."""

    function: str
    high: int
    normal: int
    low: int
    workers: int

    @property
    def waiting(self) -> int:
        return self.high + self.normal + self.low


@dataclass(frozen=True, slots=True)
class Connected:
    """One line of `workers`: a connection; one without functions is a client."""

    descriptor: str
    address: str
    client_id: str
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """One line of `show maxqueue`; 0 is no limit."""

    function: str
    high: int
    normal: int
    low: int


class Admin:
    """The text commands on one connection. Raises Unreachable and Refused."""

    def __init__(
        self,
        server: Server,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.server = server
        # Lines of tables that could not be understood: what else the table says is good nevertheless.
        self.odd_lines: list[str] = []
        self._peer = Peer(server, timeout_seconds=timeout_seconds, tls=tls)
        self._lines = self._peer.lines()

    def __enter__(self) -> "Admin":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peer.close()

    def line(self, command: str) -> str:
        """Send a command that is answered by one line; return what follows OK."""
        # With \r\n: gearmand's `create function` cuts a letter off the name without the \r.
        self._peer.send(command.encode() + b"\r\n")
        answer = next(self._lines)
        if not answer.startswith("OK"):
            raise Refused(self.server, command, answer.removeprefix("ERR "))
        return answer[3:]

    def table(self, command: str) -> Iterator[str]:
        """Send a command that is answered by lines and a dot; yield the lines."""
        self._peer.send(command.encode() + b"\r\n")
        first = True
        for line in self._lines:
            if first and line.startswith("ERR ") and "\t" not in line:
                raise Refused(self.server, command, line[4:])
            first = False
            if line == ".":
                return
            yield line

    def status(self) -> list[FunctionStatus]:
        """Every function's counts."""
        return [
            FunctionStatus(function, total, running, workers)
            for function, (total, running, workers) in self._rows("status", 3)
        ]

    def priority_status(self) -> list[FunctionPriorities]:
        """Every function's waiting jobs by priority."""
        return [
            FunctionPriorities(function, high, normal, low, workers)
            for function, (high, normal, low, workers) in self._rows("prioritystatus", 4)
        ]

    def workers(self) -> list[Connected]:
        """Every connection."""
        connected = []
        # One worker may have many thousands of functions, all on one line.
        self._peer.line_bytes_max = WORKER_BYTES_MAX
        for line in self.table("workers"):
            # "FD ADDRESS CLIENT-ID : FUNCTION FUNCTION": the id may hold spaces.
            left, _, functions = line.partition(" :")
            descriptor, address, client_id = [*left.split(" ", 2), "", "", ""][:3]
            # Blanks only: a name may hold a tab.
            names = tuple(name for name in functions.split(" ") if name)
            connected.append(Connected(descriptor, address, client_id, names))
        return connected

    def slots(self) -> SlotCount | None:
        """How many slots the node leads, and how many of these it counts; None: it cannot tell."""
        try:
            told = {}
            for line in self.table("show slots"):
                name, tab, count = line.partition("\t")
                if not tab:
                    raise self._no_table(line, 1)
                told[name] = count
            return SlotCount(int(told["led"]), int(told["loaded"]))
        except (Refused, KeyError, ValueError):
            return None

    def ask_whole(self, question: Callable[["Admin"], Answer]) -> WholeAnswer[Answer]:
        """Ask something, and find out how many slots may be missing from the answer or be in it in
        part: those not loaded before it or after it, and those that the node got or gave away meanwhile."""
        before = self.slots()
        answer = question(self)
        after = self.slots()
        if before is None or after is None:
            return WholeAnswer(answer, None, 0)
        return WholeAnswer(answer, after.led, max(before.led, after.led) - min(before.loaded, after.loaded))

    def find_jobs(self, wanted: JobQuestion) -> list[FoundJob]:
        """The jobs that fit, page by page; from gearmand, which tells less of a job, what it can tell."""
        found: list[FoundJob] = []
        start: int | None = 0
        while start is not None and (wanted.limit is None or wanted.oldest or len(found) < wanted.limit):
            try:
                lines = list(self.table(f"jobs {wanted.words(start)}"))
                *rows, end = [json.loads(line) for line in lines]
                found += [FoundJob.read(row) for row in rows]
                start = end["next"]
            except Refused as refusal:
                if refusal.text.startswith("UNKNOWN_COMMAND") and not wanted.narrow:
                    return [FoundJob.of_gearmand(job) for job in self.jobs()][: wanted.limit]
                raise
            except (ValueError, KeyError, TypeError):
                raise Unreachable(
                    self.server, "it answered no list of jobs", "check that this is a Gearman server"
                ) from None
            if wanted.oldest:
                found = oldest_of(found, wanted.limit)
        return found[: wanted.limit]

    def jobs(self) -> list[QueuedJob]:
        """Every job on the server."""
        return [
            QueuedJob(handle, retries, bool(cancelled), bool(queued))
            for handle, (retries, cancelled, queued) in self._rows("show jobs", 3)
        ]

    def uniques(self) -> list[str]:
        """Every job's unique key."""
        return list(self.table("show unique jobs"))

    def cancel(self, handle: str) -> bool:
        """Cancel a waiting job; return whether the server knew it."""
        try:
            self.line(f"cancel job {handle}")
        except Refused as refusal:
            if refusal.text.startswith("UNKNOWN_JOB"):
                return False
            raise
        return True

    def maxqueues(self) -> list[QueueLimits]:
        """The functions that have a limit."""
        rows = [
            QueueLimits(function, high, normal, low)
            for function, (high, normal, low) in self._rows("show maxqueue", 3)
        ]
        return [row for row in rows if row.high or row.normal or row.low]

    def set_maxqueue(self, function: str, limits: tuple[int, ...]) -> None:
        """Set one limit for all priorities, or three: high, normal, low. 0 is no limit."""
        self.line(" ".join(["maxqueue", function, *map(str, limits)]))

    def _rows(self, command: str, count: int) -> list[tuple[str, tuple[int, ...]]]:
        """A table's rows: a name, and numbers behind tabs. The name may hold tabs and whatever else: anybody
        may register a function, and one odd row must not hide the others.

        Raises Unreachable when nothing of it is such a row.
        """
        rows = []
        odd: list[str] = []
        try:
            for line in self.table(command):
                name, *columns = line.rsplit("\t", count)
                if len(columns) == count and all(map(_NUMBER.fullmatch, columns)):
                    rows.append((name, tuple(map(int, columns))))
                else:
                    odd.append(line)
        except Unreachable as fault:
            raise (self._no_table(odd[0], count) if odd and not rows else fault) from None
        if odd and not rows:
            raise self._no_table(odd[0], count)
        self.odd_lines += odd
        return rows

    def _no_table(self, line: str, count: int) -> Unreachable:
        return Unreachable(
            self.server,
            f"it answered {line[:200]!r} where a name and {count} numbers belong",
            "check that this is a Gearman server",
        )


__all__ = [
    "ANSWER_SECONDS",
    "Admin",
    "Connected",
    "FunctionPriorities",
    "FunctionStatus",
    "QueueLimits",
    "QueuedJob",
    "Refused",
    "Unreachable",
]
