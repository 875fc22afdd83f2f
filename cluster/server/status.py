"""What a node tells about itself, for probes, metrics and operators: plain data, gathered when asked for.

`Server.status()` makes a NodeStatus. What is counted between two questions is counted once for each group
or fsync, never once for each job.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, Protocol

# Upper bounds of what a commit or an fsync takes; above the last one is a bucket of its own.
LATENCY_BOUNDS_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip


class Phase(Enum):
    """Where in its life a node is."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # takes no more connections; ends when its work is done
    STOPPING = "stopping"


class LatencyCounts(NamedTuple):
    """A histogram as it stood: `counts` has one more than `bounds_seconds`, for what was slower."""

    bounds_seconds: tuple[float, ...]
    counts: tuple[int, ...]
    total_seconds: float


class Latency:
    """Counts durations in fixed buckets. One thread observes; any thread may read."""

    __slots__ = ("bounds_seconds", "counts", "total_seconds")

    def __init__(self, bounds_seconds: tuple[float, ...] = LATENCY_BOUNDS_SECONDS) -> None:
        self.bounds_seconds = bounds_seconds
        self.counts = [0] * (len(bounds_seconds) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_seconds, seconds)] += 1
        self.total_seconds += seconds

    def read(self) -> LatencyCounts:
        return LatencyCounts(self.bounds_seconds, tuple(self.counts), self.total_seconds)


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """The journal's files and its disk."""

    size_bytes: int
    written_bytes: int  # since the start
    frames_written: int  # since the start
    write_pending_seconds: float  # age of the write that the disk has not finished; 0 = there is none
    fsync: LatencyCounts
    free_bytes: int | None = None  # on its file system, for this user; None before the first look


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A node's part in its fleet."""

    fleet: str
    joined: bool  # has seen a map, and its own start is over
    waits_for: str = ""  # what a start that is not over waits for, as a sentence's end
    draining: bool = False  # hands its slots over
    map_revision: int = 0
    slots_led: int = 0
    slots_in_sync: int = 0
    slots_under_replicated: int = 0  # of those led here
    slots_unavailable: int = 0  # of those led here
    takeovers: int = 0  # since the start
    lease_age_seconds: float | None = None  # since the last good keep-alive was sent; None = no lease
    etcd_reachable: bool = False
    peers: int = 0
    peers_up: int = 0
    slots_learning: int = 0
    # By name: since when the other node lacks a group of this one's, as an age. Only those that count.
    peer_lag_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """What the process takes."""

    resident_bytes: int
    processor_seconds: float  # since the start
    payload_bytes: int  # of all living jobs
    mark_bytes: int  # beyond it background jobs are refused; 0 = not known
    full: bool  # they are


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at one moment."""

    name: str
    version: str
    phase: Phase
    durability: str
    refusal: str | None  # why background jobs are refused, with the remedy
    turn_age_seconds: float  # since the loop's last sign of life; 0 while starting or stopping
    connections: int
    connections_max: int
    connections_turned_away: int  # since the start
    groups_committed: int  # since the start
    commit: LatencyCounts
    journal: JournalStatus | None  # None without one
    fleet: FleetStatus | None  # None when standalone
    memory: MemoryStatus
    refuses_background: bool = False  # for whatever cause: also copies that do not answer, short memory


class FunctionStatus(NamedTuple):
    """One function's jobs and workers."""

    name: bytes
    queued: int
    running: int
    held: int  # not durable yet, not due yet, or waiting to be reclaimed
    workers: int
    oldest_seconds: float = 0.0  # age of the oldest at the heads of its queues, 0: nothing waits
    counts: tuple[int, ...] = ()  # since the start: jobs.OUTCOMES, then jobs.RETURNS
    listed: bool = True  # False: it is gone, and only its counts are kept


class ServerStatus(Protocol):
    """Who can be asked: the Server."""

    def status(self) -> NodeStatus: ...

    def function_statuses(self) -> Iterator[FunctionStatus]:
        """One at a time, so that whoever asks can let the loop turn between them."""
        ...
