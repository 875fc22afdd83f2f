"""Numbers are read as C's atoi reads them, whatever they are."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.wire.numbers import NUMBER_MAX, begins_with_number, leading_number, progress_number

ALMOST_NUMBERS = st.lists(
    st.sampled_from([b" ", b"\t", b"-", b"+", b"0", b"7", b".", b"%", b"x", b"\xd9\xa3"]), max_size=12
).map(b"".join)


@given(ALMOST_NUMBERS | st.binary(max_size=12))
def test_the_number_is_atoi_s(text: bytes) -> None:
    strtoll = ctypes.CDLL(None).strtoll
    strtoll.restype = ctypes.c_longlong
    c_text = text.split(b"\0")[0]
    assert leading_number(text) == strtoll(c_text, None, 10)
    assert begins_with_number(text) or leading_number(text) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"9" * 5000, NUMBER_MAX), (b"-" + b"9" * 5000, -NUMBER_MAX), (b"0" * 5000 + b"7", 7)],
)
def test_a_long_number_costs_nothing_and_is_the_largest(text: bytes, number: int) -> None:
    assert leading_number(text) == number


def test_progress_below_nothing_is_told_as_gearmand_tells_it() -> None:
    assert [progress_number(text) for text in (b"-1", b"0.5", b"5000000000")] == [
        b"4294967295",
        b"0",
        b"5000000000",
    ]
