"""The opening of a stream holds against every enemy of the model, and nothing in it is there for nothing."""

from __future__ import annotations

import pytest

from chaos_tests.model.handshake import (
    A1,
    MUTATIONS,
    B,
    Part,
    Rules,
    Side,
    State,
    fault,
    search,
    steps,
)


def test_nobody_is_believed_who_is_not_there() -> None:
    wrong, count = search(Rules())
    assert wrong == ""
    assert count > 1000


def test_two_honest_nodes_open_a_stream() -> None:
    parts = (Part(A1, B), Part(B))
    todo = [State((Side(), Side()), frozenset())]
    seen = set(todo)
    for state in todo:
        new = {after for _, after in steps(Rules(), parts, state)} - seen
        seen |= new
        todo += new
    done = [state for state in seen if all(side.open for side in state.sides)]
    assert done
    assert {fault(Rules(), parts, state) for state in done} == {""}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_taken_out_is_missed(name: str) -> None:
    wrong, _ = search(MUTATIONS[name])
    assert wrong
