"""The five fields of a schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.jobs import Cron, CronError


def firings(fields: str, after: str, count: int) -> list[str]:
    """The next few times of a schedule, as text."""
    cron = Cron.parse(*[field.encode().replace(b"any", b"") for field in fields.split()])
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC).timestamp()
    times = []
    for _ in range(count):
        moment = cron.next_after(moment)
        times.append(datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M"))
    return times


@pytest.mark.parametrize(
    ("fields", "after", "times"),
    [
        # any
        ("* * * * *", "2024-01-01 00:00:00", ["2024-01-01 00:01", "2024-01-01 00:02"]),
        ("any any any any any", "2024-01-01 00:00:59", ["2024-01-01 00:01", "2024-01-01 00:02"]),
        ("* * * * *", "2023-12-31 23:59:59.9", ["2024-01-01 00:00", "2024-01-01 00:01"]),
        # later than now, never now
        ("30 12 * * *", "2024-01-01 12:30:00", ["2024-01-02 12:30"]),
        ("30 12 * * *", "2024-01-01 12:29:59", ["2024-01-01 12:30"]),
        # numbers, ranges, lists, steps
        ("5 4 * * *", "2024-01-01 00:00", ["2024-01-01 04:05", "2024-01-02 04:05"]),
        ("58-59 23 * * *", "2024-01-01 00:00", ["2024-01-01 23:58", "2024-01-01 23:59", "2024-01-02 23:58"]),
        (
            "0,30,45-46 1 * * *",
            "2024-01-01 01:00",
            ["2024-01-01 01:30", "2024-01-01 01:45", "2024-01-01 01:46"],
        ),
        ("*/20 * * * *", "2024-01-01 00:00", ["2024-01-01 00:20", "2024-01-01 00:40", "2024-01-01 01:00"]),
        (
            "10-50/20 * * * *",
            "2024-01-01 00:00",
            ["2024-01-01 00:10", "2024-01-01 00:30", "2024-01-01 00:50"],
        ),
        ("50/5 0 * * *", "2024-01-01 00:00", ["2024-01-01 00:50", "2024-01-01 00:55", "2024-01-02 00:50"]),
        # 0 is Monday, as in PROTOCOL; 1 January 2024 was one
        ("0 0 * * 0", "2023-12-31 00:00", ["2024-01-01 00:00", "2024-01-08 00:00"]),
        ("0 0 * * 5-6", "2024-01-01 00:00", ["2024-01-06 00:00", "2024-01-07 00:00"]),
        # both days given: either is enough; with an asterisk in one: both
        ("0 0 13 * 4", "2024-09-01 00:00", ["2024-09-06 00:00", "2024-09-13 00:00", "2024-09-20 00:00"]),
        ("0 0 */31 * 0", "2024-01-01 00:00", ["2024-04-01 00:00", "2024-07-01 00:00"]),
        ("0 0 13 * *", "2024-01-01 00:00", ["2024-01-13 00:00"]),
        # short months and leap days
        ("0 0 31 * *", "2024-01-31 00:00", ["2024-03-31 00:00", "2024-05-31 00:00"]),
        ("0 0 29 2 *", "2024-03-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 29 2 *", "2096-03-01 00:00", ["2104-02-29 00:00"]),
        ("0 0 30,31 2,4 *", "2024-01-01 00:00", ["2024-04-30 00:00", "2025-04-30 00:00"]),
        ("59 23 31 12 *", "2024-01-01 00:00", ["2024-12-31 23:59", "2025-12-31 23:59"]),
    ],
)
def test_a_schedule_fires_at(fields: str, after: str, times: list[str]) -> None:
    assert firings(fields, after, len(times)) == times


def test_a_leap_day_that_must_be_a_weekday_comes_round_even_over_a_century() -> None:
    # The asterisk makes both count: 29 February and any weekday of the set 0, 6
    assert firings("0 0 29 2 */6", "2096-03-01 00:00", 1) == ["2112-02-29 00:00"]


@pytest.mark.parametrize(
    "fields",
    [
        "60 * * * *",
        "-1 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 0 *",
        "* * * 13 *",
        "* * * * 7",
        "5-1 * * * *",
        "1-99 * * * *",
        "*/0 * * * *",
        "*/60 * * * *",
        "1/ * * * *",
        "1- * * * *",
        "a * * * *",
        "1.5 * * * *",
        "٣ * * * *",
        "1_0 * * * *",
        "+1 * * * *",
    ],
)
def test_what_is_no_cron_field_is_refused_by_name(fields: str) -> None:
    with pytest.raises(CronError, match=r"^(minute|hour|day of month|month|day of week)"):
        Cron.parse(*[field.encode() for field in fields.split()])


@pytest.mark.parametrize("fields", ["* * 31 2,4,6,9,11 *", "* * 30 2 *", "* * 30-31 2 */2"])
def test_a_day_that_never_comes_is_refused(fields: str) -> None:
    with pytest.raises(CronError, match="no such day"):
        Cron.parse(*[field.encode() for field in fields.split()])


def test_a_field_has_a_limit() -> None:
    with pytest.raises(CronError, match="longer than 256 bytes"):
        Cron.parse(b"1," * 128 + b"1", b"", b"", b"", b"")


# ---- against a scan that is too dumb to be wrong

RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


@st.composite
def field_texts(draw: st.DrawFn, low: int, high: int) -> tuple[str, frozenset[int]]:
    """A field, and the numbers that it stands for."""
    parts, values = [], set()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(1, high))
        text, span = draw(
            st.sampled_from(
                [
                    ("*", range(low, high + 1)),
                    (f"{first}", range(first, first + 1)),
                    (f"{first}-{last}", range(first, last + 1)),
                    (f"*/{step}", range(low, high + 1, step)),
                    (f"{first}-{last}/{step}", range(first, last + 1, step)),
                    (f"{first}/{step}", range(first, high + 1, step)),
                ]
            )
        )
        parts.append(text)
        values.update(span)
    return ",".join(parts), frozenset(values)


WINDOW_MINUTES = 3 * 24 * 60


@settings(max_examples=150, deadline=None)
@given(
    fields=st.tuples(*[field_texts(low, high) for low, high in RANGES]),
    start=st.integers(0, 2**32),
)
def test_it_fires_at_the_first_minute_that_matches(
    fields: tuple[tuple[str, frozenset[int]], ...], start: int
) -> None:
    try:
        cron = Cron.parse(*[text.encode() for text, _ in fields])
    except CronError:
        return
    minutes, hours, days, months, weekdays = [values for _, values in fields]
    either = not fields[2][0].startswith("*") and not fields[4][0].startswith("*")
    found = cron.next_after(start)
    assert found > start
    assert found % 60 == 0
    moment = datetime.fromtimestamp(start // 60 * 60, UTC)
    for _ in range(WINDOW_MINUTES):
        moment += timedelta(minutes=1)
        in_days = (moment.day in days, moment.weekday() in weekdays)
        if (
            moment.minute in minutes
            and moment.hour in hours
            and moment.month in months
            and (any(in_days) if either else all(in_days))
        ):
            assert found == moment.timestamp()
            return
    assert found > moment.timestamp()
