"""A line of cron as the five fields of SUBMIT_JOB_SCHED. Times are UTC, as at the nodes.

Only the day of week differs: crontab counts from Sunday (0, and 7 too), Gearman's protocol from Monday (0),
so it is written out. Whether the other fields are right the server says.
"""

from typing import Final

from client_ha.errors import InvalidArgument

CronFields = tuple[bytes, bytes, bytes, bytes, bytes]

_FORM: Final = (
    "write minute, hour, day of month, month and day of week, such as '0 3 * * 1' for Mondays at three"
)
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS: Final = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
)  # fmt: skip
_SUNDAY_AGAIN: Final = 7


def cron_fields(cron: str) -> CronFields:
    """Read "minute hour day-of-month month day-of-week". Raises InvalidArgument."""
    fields = cron.split() if isinstance(cron, str) and cron.isascii() else []
    if len(fields) != 5:
        raise InvalidArgument(f"cron={cron!r}: {_FORM}")
    minute, hour, day, month, weekday = fields
    for number, name in enumerate(_MONTHS, 1):
        month = month.lower().replace(name, str(number))
    weekday = _weekday(weekday, cron, day)
    return minute.encode(), hour.encode(), day.encode(), month.encode(), weekday.encode()


def _weekday(field: str, cron: str, day: str) -> str:
    """The field with Monday as 0."""
    if field == "*":
        return field
    if field.startswith("*") and not day.startswith("*"):
        # cron counts "*/2" as any day here, so both fields have to match; a list would make either enough.
        raise InvalidArgument(f"cron={cron!r}: with a day of month write the days of the week out, as 1,3,5")
    days: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        low = _day(first, cron)
        high = _day(last, cron) if dash else (6 if slash else low)
        if slash and not (step.isdigit() and int(step)):
            raise InvalidArgument(f"cron={cron!r}: the step {step!r} is no number; {_FORM}")
        if high == 0 and low:  # fri-sun
            high = _SUNDAY_AGAIN
        if high < low:
            raise InvalidArgument(f"cron={cron!r}: the range {span!r} ends before it begins")
        days.update(range(low, high + 1, int(step) if slash else 1))
    return ",".join(str(day) for day in sorted({(day - 1) % 7 for day in days}))


def _day(text: str, cron: str) -> int:
    if text.lower() in _DAYS:
        return _DAYS.index(text.lower())
    if text.isdigit() and int(text) <= _SUNDAY_AGAIN:
        return int(text)
    raise InvalidArgument(
        f"cron={cron!r}: {text!r} is no day of the week: 0 to 7 (0 and 7 are Sunday) or sun to sat"
    )
