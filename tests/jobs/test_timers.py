"""What is due when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.jobs import Timers
from cluster.jobs.timers import DEAD_BEFORE_SWEEP


def timers(dead: set[object] | None = None) -> Timers[str]:
    cancelled = set() if dead is None else dead
    return Timers(lambda item, due: item not in cancelled)


def test_the_earliest_is_first_and_equals_keep_their_order() -> None:
    due = timers()
    for when, item in ((5, "c"), (1, "a"), (5, "d"), (3, "b")):
        due.add(when, item)
    assert due.next_due() == 1
    assert list(due.take_due(0.9, 10)) == []
    assert list(due.take_due(5, 10)) == ["a", "b", "c", "d"]
    assert due.next_due() is None


def test_no_more_than_asked_for_at_once() -> None:
    due = timers()
    for item in "abc":
        due.add(1, item)
    assert list(due.take_due(1, 2)) == ["a", "b"]
    assert due.next_due() == 1
    assert list(due.take_due(1, 2)) == ["c"]


def test_what_does_not_count_any_more_is_never_seen() -> None:
    dead: set[object] = {"a", "c"}
    due = timers(dead)
    for when, item in enumerate("abcd"):
        due.add(when, item)
    assert due.next_due() == 1
    dead.add("b")
    assert list(due.take_due(9, 1)) == ["d"]
    assert due.heap == []


def test_what_an_earlier_item_has_cancelled_is_not_given_out() -> None:
    dead: set[object] = set()
    due = timers(dead)
    for item in ("a", "b", "c"):
        due.add(1, item)
    taken = []
    for item in due.take_due(1, 10):
        taken.append(item)
        dead.add("b")
    assert taken == ["a", "c"]
    assert due.heap == []


def test_items_may_be_added_while_others_are_taken_also_when_the_dead_are_swept() -> None:
    dead: set[object] = {str(number) for number in range(DEAD_BEFORE_SWEEP - 3)}
    due = timers(dead)
    for item in ("a", "b"):
        due.add(1, item)
    for item in dead:
        due.add(2, str(item))
    taken = []
    for item in due.take_due(1, 10):
        taken.append(item)
        due.add(5, item * 2)
        due.add(5, item * 3)
    assert taken == ["a", "b"]
    assert len(due.heap) == 4
    assert list(due.take_due(5, 10)) == ["aa", "aaa", "bb", "bbb"]


def test_the_dead_are_swept_when_they_are_the_greater_part() -> None:
    dead: set[object] = set()
    due = timers(dead)
    for number in range(100 * DEAD_BEFORE_SWEEP):
        due.add(number, str(number))
        dead.add(str(number - 10))
        assert len(due.heap) <= DEAD_BEFORE_SWEEP
    assert due.next_due() == 100 * DEAD_BEFORE_SWEEP - 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60), st.integers(0, 25))
def test_taken_is_all_that_is_due_and_alive(entries: list[tuple[int, bool]], now: int) -> None:
    dead: set[object] = {str(index) for index, (_, alive) in enumerate(entries) if not alive}
    due = timers(dead)
    for index, (when, _) in enumerate(entries):
        due.add(when, str(index))
    expected = sorted((when, index) for index, (when, alive) in enumerate(entries) if alive)
    assert list(due.take_due(now, 1000)) == [str(index) for when, index in expected if when <= now]
    assert due.next_due() == next((when for when, _ in expected if when > now), None)
