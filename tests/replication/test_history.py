"""Where two logs part: the histories against the whole lists of (epoch, number)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.replication.history import HISTORY_EPOCHS_MAX, common_number, cut, epoch_of, extend

Log = list[int]  # the epoch of each entry; the number is the index + 1


def history_of(log: Log) -> list[tuple[int, int]]:
    history: list[tuple[int, int]] = []
    for number, epoch in enumerate(log, 1):
        extend(history, epoch, number)
    return history


def common_of(one: Log, other: Log) -> int:
    """The dumb way: the last number up to which each entry is in both."""
    number = 0
    while number < min(len(one), len(other)) and one[number] == other[number]:
        number += 1
    return number


@st.composite
def related_logs(draw: st.DrawFn, epochs: int = 8) -> list[Log]:
    """Logs as the rules make them: in each epoch one primary appends to what it has; others take a part of
    that, and what they have beyond the common part is cut."""
    logs: list[Log] = [[] for _ in range(3)]
    for epoch in range(1, epochs + 1):
        primary = draw(st.integers(0, 2))
        logs[primary] = [*logs[primary], *[epoch] * draw(st.integers(0, 4))]
        for index, log in enumerate(logs):
            if index != primary and draw(st.booleans()):
                source = logs[primary]
                common = common_of(log, source)
                logs[index] = source[: draw(st.integers(common, len(source)))]
    return logs


@settings(max_examples=300, deadline=None)
@given(logs=related_logs())
def test_the_common_number_is_that_of_the_whole_lists(logs: list[Log]) -> None:
    for one in logs:
        for other in logs:
            mine, others = history_of(one), history_of(other)
            assert common_number(mine, len(one), others, len(other)) == common_of(one, other)


@settings(max_examples=100, deadline=None)
@given(logs=related_logs(epochs=2 * HISTORY_EPOCHS_MAX))
def test_what_short_histories_do_not_tell_is_not_guessed(logs: list[Log]) -> None:
    for one in logs:
        for other in logs:
            found = common_number(history_of(one), len(one), history_of(other), len(other))
            assert found is None or found == common_of(one, other)


@settings(max_examples=100, deadline=None)
@given(logs=related_logs(), number=st.integers(0, 40))
def test_a_cut_history_is_that_of_the_cut_log(logs: list[Log], number: int) -> None:
    for log in logs:
        history = history_of(log)
        cut(history, number)
        assert history == history_of(log[:number])


@settings(max_examples=100, deadline=None)
@given(logs=related_logs())
def test_each_entry_s_epoch_follows_from_the_history(logs: list[Log]) -> None:
    for log in logs:
        history = history_of(log)
        assert [epoch_of(history, number) for number in range(1, len(log) + 1)] == log


@pytest.mark.parametrize(
    ("mine", "mine_last", "other", "other_last", "common"),
    [
        ([], 0, [], 0, 0),
        ([], 0, [(1, 1)], 5, 0),
        ([(1, 1)], 5, [], 0, 0),
        ([(1, 1)], 5, [(1, 1)], 3, 3),
        ([(1, 1), (2, 4)], 5, [(1, 1), (3, 3)], 9, 2),
        ([(1, 1), (2, 4)], 5, [(1, 1), (3, 6)], 9, 3),
        ([(1, 1)], 5, [(2, 1)], 5, 0),
        ([(4, 30)], 35, [(1, 1), (3, 20)], 40, None),  # mine is too short to tell
        ([(4, 30)], 35, [(4, 30), (5, 33)], 40, 32),
        ([(1, 1), (2, 6)], 5, [(1, 1)], 5, 5),  # epoch 2 has written nothing yet
    ],
)
def test_where_two_histories_part(
    mine: list[tuple[int, int]],
    mine_last: int,
    other: list[tuple[int, int]],
    other_last: int,
    common: int | None,
) -> None:
    assert common_number(mine, mine_last, other, other_last) == common
    assert common_number(other, other_last, mine, mine_last) == common


def test_a_history_keeps_the_last_epochs() -> None:
    log = [epoch for epoch in range(1, HISTORY_EPOCHS_MAX + 5) for _ in range(2)]
    history = history_of(log)
    assert len(history) == HISTORY_EPOCHS_MAX
    assert history[0] == (5, 9)
    assert epoch_of(history, 8) == 0
    assert epoch_of(history, 9) == 5


def test_an_epoch_that_wrote_nothing_leaves_no_trace() -> None:
    history = history_of([1, 1])
    extend(history, 2, 3)
    extend(history, 3, 3)
    assert history == [(1, 1), (3, 3)]
