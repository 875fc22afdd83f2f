"""Failing histories become short, and can be played again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chaos_tests.sim.shrink import numbers_of, smallest, text_of


def test_what_is_left_fails_and_nothing_of_it_can_be_spared() -> None:
    def fails(kept: Sequence[int]) -> bool:
        return {3, 57, 58}.issubset(kept)

    assert smallest(range(1, 101), fails, lambda: True) == [3, 57, 58]


def test_it_ends_when_the_time_is_over() -> None:
    calls = iter((True, True, True, False))

    kept = smallest(range(1, 101), lambda kept: 3 in kept, lambda: next(calls))

    assert 3 in kept


@pytest.mark.parametrize(("numbers", "text"), [([], "0"), ([3], "3"), ([3, 7, 8, 9], "3,7-9")])
def test_steps_are_written_in_spans(numbers: list[int], text: str) -> None:
    assert text_of(numbers) == text
    assert sorted(numbers_of(text)) == (numbers or [0])
