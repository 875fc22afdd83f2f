"""Jobs as a server tells of them: the question, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

PAGE_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One line of `show jobs`. `cancelled` jobs are only waiting to be forgotten."""

    handle: str
    retries: int
    cancelled: bool
    queued: bool


@dataclass(frozen=True, slots=True)
class JobQuestion:
    """Which jobs are wanted; None: of all."""

    function: str | None = None
    unique: str | None = None
    handle: str | None = None
    state: str | None = None
    oldest: bool = False
    limit: int | None = None

    @property
    def narrow(self) -> bool:
        """Whether it asks for what only a Gearfleet node can tell apart."""
        return bool(self.oldest or self.function or self.unique or self.handle or self.state)

    def words(self, start: int) -> str:
        """The words of the text command `jobs`."""
        parts = [
            f"{key}={quote(value, safe='')}"
            for key in ("function", "unique", "handle", "state")
            if (value := getattr(self, key)) is not None
        ]
        if self.oldest and self.limit is not None and self.limit <= PAGE_ROWS:
            parts.append("oldest=1")  # else no page may leave one out: all come, and are sorted here
        parts.append(f"limit={min(PAGE_ROWS, self.limit or PAGE_ROWS)}")
        return " ".join([*parts, f"start={start}"])


@dataclass(slots=True)  # not frozen: there may be 100,000, and freezing each costs four times as much
class FoundJob:
    """One job. docs/protocol-extensions.md has the members; None: gearmand does not tell."""

    handle: str
    state: str
    retries: int
    function: str | None = None
    unique: str | None = None
    priority: str | None = None
    background: bool | None = None
    age_seconds: float | None = None
    age_exact: bool | None = None
    deliveries: int | None = None
    size_bytes: int | None = None
    due_seconds: int | None = None
    cron: str | None = None
    worker: str | None = None
    progress: str | None = None
    clients: int | None = None
    slot: int | None = None

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> FoundJob:
        """Members of a later release are passed over. Raises TypeError."""
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in row.items() if key in known})

    @classmethod
    def of_gearmand(cls, job: QueuedJob) -> FoundJob:
        state = "cancelled" if job.cancelled else "waiting" if job.queued else "running"
        return cls(job.handle, state, job.retries)

    @property
    def age(self) -> str:
        """In words: "3m 20s", "> 2h 5m" when it is at least that."""
        if self.age_seconds is None:
            return "-"
        return ("" if self.age_exact else "> ") + span(self.age_seconds)


def span(seconds: float) -> str:
    """A time in its two largest units."""
    whole = int(seconds)
    for unit, size, next_unit, next_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // next_size}{next_unit}"
    return f"{whole}s"


def oldest_of(jobs: Iterable[FoundJob], limit: int | None) -> list[FoundJob]:
    return sorted(jobs, key=lambda job: -(job.age_seconds or 0.0))[:limit]
