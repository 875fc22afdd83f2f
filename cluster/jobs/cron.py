"""The five cron fields of SUBMIT_JOB_SCHED.

PROTOCOL gives minute (0-59), hour (0-23), day of month (1-31), month (1-12) and day of week (0-6,
0 = Monday), and says no more. Here each field takes what cron takes: `*` or nothing for any, numbers,
ranges `1-5`, lists `0,30`, steps `*/15` and `10-50/20`. As in cron, when both day of month and day of
week are given, either is enough. Times are UTC, so that all nodes of a fleet agree.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

FIELDS: Final = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week (0 = Monday)", 0, 6),
)
FIELD_BYTES_MAX: Final = 256
# 29 February on a given weekday comes round within 28 years, or 40 across a century without a leap day.
YEARS_MAX: Final = 41
# cron(8): a clock that is set by less than this repeats no job of a fixed time; one that is set by more was
# wrong, and the new time counts.
CORRECTION_SECONDS: Final = 3 * 3600.0
# By how much clocks may differ, of nodes or of before and after a restart, before one was surely set.
DIFFERENCE_SECONDS: Final = 60.0


class CronError(ValueError):
    """A field is not a cron field, or no date ever matches."""


def _parse(text: str, name: str, low: int, high: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, name, 1, high) if slash else 1
        if span in ("*", ""):
            first, last = low, high
        else:
            first_text, dash, last_text = span.partition("-")
            first = _number(first_text, name, low, high)
            last = _number(last_text, name, low, high) if dash else (high if slash else first)
        if last < first:
            raise CronError(f"{name}: the range {span!r} ends before it begins")
        values.update(range(first, last + 1, step))
    return frozenset(values)


def _number(text: str, name: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise CronError(f"{name}: {text!r} is not a number from {low} to {high}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule: when does it fire next?"""

    source: tuple[bytes, bytes, bytes, bytes, bytes]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, minute: bytes, hour: bytes, day: bytes, month: bytes, weekday: bytes) -> Cron:
        """Raises CronError with the field and what is wrong in it."""
        source = (minute, hour, day, month, weekday)
        sets = []
        for raw, (name, low, high) in zip(source, FIELDS, strict=True):
            if len(raw) > FIELD_BYTES_MAX:
                raise CronError(f"{name}: longer than {FIELD_BYTES_MAX} bytes")
            sets.append(_parse(raw.decode("ascii", "replace").strip(), name, low, high))
        either_day = not any(raw.strip()[:1] in (b"*", b"") for raw in (day, weekday))
        cron = cls(source, sets[0], sets[1], sets[2], sets[3], sets[4], either_day)
        if not cron.either_day and not any(
            min(cron.days) <= monthrange(2000, month)[1] for month in cron.months
        ):
            raise CronError("day of month: no such day in the given months")
        return cron

    def _matches(self, day: datetime) -> bool:
        in_month = day.day in self.days
        in_week = day.weekday() in self.weekdays
        return (in_month or in_week) if self.either_day else (in_month and in_week)

    def next_after(self, now_seconds: float) -> int:
        """The first Unix time in whole seconds, later than now, that matches.

        Raises CronError when none comes within YEARS_MAX years.
        """
        moment = datetime.fromtimestamp(now_seconds // 60 * 60 + 60, UTC)
        last_year = moment.year + YEARS_MAX
        while moment.year <= last_year:
            if moment.month not in self.months:
                moment = (moment.replace(day=1, hour=0, minute=0) + timedelta(days=32)).replace(day=1)
            elif not self._matches(moment):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif moment.hour not in self.hours:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif moment.minute not in self.minutes:
                moment += timedelta(minutes=1)
            else:
                return int(moment.timestamp())
        raise CronError(f"no date within {YEARS_MAX} years matches")

    @property
    def _at_fixed_times(self) -> bool:
        """As cron tells them apart: neither minute nor hour begins with `*`."""
        return not any(field.strip()[:1] in (b"*", b"") for field in self.source[:2])

    def due_after_set_back(self, due_seconds: int, now_seconds: float, step_seconds: float = 0.0) -> int:
        """When it fires next, if it was to fire at `due_seconds` by a clock that was perhaps set back since.

        As in cron: what has a wildcard in minute or hour goes by the new time at once. So does the rest after
        a step of three hours or more; after a smaller one it does not fire again for a time that repeats.
        `step_seconds` is 0 where nobody saw the clock being set, after a restart or a takeover: then it was,
        if `due_seconds` could not have been the next time within what would be forgiven.
        """
        try:
            if step_seconds:
                if self._at_fixed_times and step_seconds < CORRECTION_SECONDS:
                    return due_seconds
            else:
                forgiven = CORRECTION_SECONDS if self._at_fixed_times else DIFFERENCE_SECONDS
                if self.next_after(now_seconds + forgiven) >= due_seconds:
                    return due_seconds
            return min(due_seconds, self.next_after(now_seconds))
        except CronError:
            return due_seconds
