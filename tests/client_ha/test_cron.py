"""A line of cron, in Gearman's fields."""

from __future__ import annotations

import pytest

from client_ha.cron import cron_fields


@pytest.mark.parametrize(
    ("cron", "fields"),
    [
        ("0 3 * * *", "0 3 * * *"),
        ("*/15 8-17 1,15 jan-mar *", "*/15 8-17 1,15 1-3 *"),
        # cron's Sunday is 0, and 7; Gearman's week begins with Monday
        ("0 3 * * 0", "0 3 * * 6"),
        ("0 3 * * 7", "0 3 * * 6"),
        ("0 3 * * 1", "0 3 * * 0"),
        ("0 3 * * 1-5", "0 3 * * 0,1,2,3,4"),
        ("0 3 * * Fri-Sun", "0 3 * * 4,5,6"),
        ("0 3 * * 0-6", "0 3 * * 0,1,2,3,4,5,6"),
        ("0 3 * * */2", "0 3 * * 1,3,5,6"),
        ("0 3 * * 1-5/2", "0 3 * * 0,2,4"),
        ("0 3 1 * mon", "0 3 1 * 0"),
    ],
)
def test_only_the_day_of_week_is_counted_otherwise(cron: str, fields: str) -> None:
    assert " ".join(field.decode() for field in cron_fields(cron)) == fields
