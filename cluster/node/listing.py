"""Jobs as an operator looks at them: filtered here, page by page.

One question is a JobFilter and a place to go on from; the answer is a JobPage. A page looks at whole slots
until `JOBS_LOOKED_AT` jobs were looked at, so a turn is never held up for long, however many jobs there are,
and a job that lives from the first page to the last is in exactly one of them. The text command `jobs` and
the HTTP port ask the same question.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from cluster.jobs import Job
from cluster.jobs.job import PENDING, QUEUED, RECLAIM, RUNNING, SCHEDULE_KEY_TAIL, SCHEDULED
from cluster.node.context import Context, slot_of_handle
from cluster.replication import SLOT_COUNT, slot_of

if TYPE_CHECKING:
    from cluster.node.ages import Age

JOBS_LOOKED_AT: Final = 5_000  # in one page, and the rest of the slot that it ends in
ROWS_MAX: Final = 1_000  # of one page
# What people call the states; `status` counts the first three, and the fifth, as waiting.
STATES: Final = {
    "waiting": QUEUED,
    "scheduled": SCHEDULED,
    "pending": PENDING,
    "running": RUNNING,
    "reclaim": RECLAIM,
}
_STATE_NAMES: Final = {number: name for name, number in STATES.items()}
PRIORITY_NAMES: Final = ("high", "normal", "low")


class BadFilter(ValueError):
    """A question that nobody can answer; the text says what to write."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs: all that fit every part that is given."""

    function: bytes | None = None
    unique: bytes | None = None
    handle: bytes | None = None
    state: int | None = None
    oldest: bool = False  # the oldest of the page, oldest first; without it slot by slot
    limit: int = ROWS_MAX
    start: int = 0  # the slot to begin with: where the last page ended

    def fits(self, job: Job) -> bool:
        return (
            (self.function is None or job.function.name == self.function)
            and (self.state is None or job.state == self.state)
            and (self.unique is None or (job.coalesces and job.unique == self.unique))
        )


class JobRow(NamedTuple):
    """All that a node tells of a job. Names are decoded: what is no UTF-8 comes with backslashes."""

    handle: str
    function: str
    unique: str
    priority: str
    state: str
    background: bool
    age_seconds: float
    age_exact: bool  # False: at least so old
    deliveries: int  # how often it was given to a worker
    retries: int  # how often its worker was lost
    size_bytes: int  # of the payload
    due_seconds: int  # Unix time before which it does not run, 0: none
    cron: str
    worker: str  # client id and address
    progress: str
    clients: int  # who wait for its end
    slot: int


@dataclass(slots=True)
class JobPage:
    rows: list[JobRow] = field(default_factory=list)
    next: int | None = None  # `start` of the next page, None after the last one
    looked_at: int = 0


def read_filter(words: Iterable[bytes]) -> JobFilter:
    """KEY=VALUE words, values percent-encoded. Raises BadFilter."""
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition(b"=")
        name = key.decode("ascii", "replace")
        if not equals or name not in _READ:
            raise BadFilter(f"jobs takes {', '.join(f'{known}=…' for known in _READ)}")
        values[name] = _READ[name](unquote_to_bytes(text))
    return JobFilter(**values)  # type: ignore[arg-type]


def _state(text: bytes) -> int:
    name = text.decode("ascii", "replace")
    if name not in STATES:
        raise BadFilter(f"a state is one of {', '.join(STATES)}")
    return STATES[name]


def _switch(text: bytes) -> bool:
    if text not in (b"0", b"1"):
        raise BadFilter("oldest is 0 or 1")
    return text == b"1"


def _limit(text: bytes) -> int:
    return _number(text, 1, ROWS_MAX)


def _start(text: bytes) -> int:
    return _number(text, 0, SLOT_COUNT - 1)


def _number(text: bytes, low: int, high: int) -> int:
    if not (text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise BadFilter(f"give a number from {low} to {high}")
    return int(text)


_READ: Final[dict[str, Callable[[bytes], object]]] = {
    "function": bytes,
    "unique": bytes,
    "handle": bytes,
    "state": _state,
    "oldest": _switch,
    "limit": _limit,
    "start": _start,
}


def find_jobs(context: Context, wanted: JobFilter) -> JobPage:
    """One page."""
    page = JobPage()
    now = context.monotonic_seconds
    found: list[tuple[Age, Job]] = []
    for job in _candidates(context, wanted, page, found):
        if wanted.fits(job):
            found.append((context.ages.of(job, now), job))
    if wanted.oldest:
        found = heapq.nlargest(wanted.limit, found, key=lambda each: each[0].seconds)
    page.rows = [_row(job, age) for age, job in found]
    return page


def _candidates(
    context: Context, wanted: JobFilter, page: JobPage, found: list[tuple[Age, Job]]
) -> Iterator[Job]:
    """The jobs that the page looks at."""
    tables = context.ledger.tables
    if wanted.handle is not None:
        slot = slot_of_handle(wanted.handle)
        job = None if slot is None else tables[slot].jobs.get(wanted.handle)
        if job is not None:
            page.looked_at = 1
            yield job
        return
    # The key of "-" is made of the payload, and could be anywhere.
    if wanted.function is not None and wanted.unique is not None and wanted.unique != b"-":
        of_jobs = wanted.function + b"\0" + wanted.unique
        for key in (of_jobs, of_jobs + SCHEDULE_KEY_TAIL):
            job = tables[slot_of(key)].uniques.get(key)
            if job is not None:
                page.looked_at += 1
                yield job
        return
    for index in range(wanted.start, len(tables)):
        if page.looked_at >= JOBS_LOOKED_AT or (not wanted.oldest and len(found) >= wanted.limit):
            page.next = index
            return
        jobs = tables[index].jobs
        page.looked_at += len(jobs)
        yield from jobs.values()


def _row(job: Job, age: Age) -> JobRow:
    options = job.options
    worker = job.worker.connection if job.worker is not None else None
    numerator, denominator = job.progress or (b"", b"")
    return JobRow(
        handle=_text(job.handle),
        function=_text(job.function.name),
        unique=_text(job.unique) if job.coalesces else "",
        priority=PRIORITY_NAMES[job.priority],
        state=_STATE_NAMES.get(job.state, "finished"),
        background=bool(job.background),
        age_seconds=round(age.seconds, 1),
        age_exact=age.exact,
        deliveries=job.deliveries,
        retries=job.retries,
        size_bytes=len(job.payload),
        due_seconds=options.due_seconds if options else 0,
        cron=_text(b" ".join(options.cron.source)) if options and options.cron else "",
        worker=f"{_text(worker.client_id)} at {worker.address}" if worker is not None else "",
        progress=f"{_text(numerator)}/{_text(denominator)}" if job.progress else "",
        clients=len(job.clients or ()),
        slot=job.slot,
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
