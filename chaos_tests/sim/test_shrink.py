"""Failing histories become short, and can be played again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chaos_tests.sim import bad_world
from chaos_tests.sim.shell.run import TROUBLED_SECONDS
from chaos_tests.sim.shell.troubles import Trouble, Troubles, schedule
from chaos_tests.sim.shrink import HANGS, attempt, numbers_of, shrink, smallest, text_of
from chaos_tests.sim.turns.simulation import Simulation
from chaos_tests.sim.turns.stage import Stage
from chaos_tests.sim.worlds import Broken, play


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


def test_a_history_of_turns_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 2 and 5 together break a promise, at step 6."""
    check = Simulation.check
    begun: set[int] = set()

    def note(self: Simulation) -> None:
        begun.add(self.stage.step)
        if self.stage.step == 6 and {2, 5} <= begun:
            raise Broken("a scripted promise", f"after {sorted(begun)}")
        check(self)

    init = Stage.__init__

    def begin(self: Stage, *arguments: object, **named: object) -> None:
        begun.clear()
        init(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Simulation, "check", note)
    monkeypatch.setattr(Stage, "__init__", begin)
    failure = attempt("turns", 1, 40)
    assert failure is not None
    assert failure.what == "a scripted promise"

    assert shrink(failure).kept == [2, 5, 6]


def test_a_history_of_whole_servers_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Troubles 2 and 5 together break a promise: at another node, and in other words, each time."""
    seed = next(seed for seed in range(100) if len(schedule(seed, TROUBLED_SECONDS)) == 8)
    begin = Troubles.begin
    plays = 0

    def note(self: Troubles, trouble: Trouble) -> None:
        nonlocal plays
        begun: set[int] = self.__dict__.setdefault("begun", set())
        begun.add(trouble.number)
        if {2, 5} <= begun:
            plays += 1
            self.world.fail("a scripted promise", f"{'abc'[plays % 3]}: the {plays}. time")
        begin(self, trouble)

    monkeypatch.setattr(Troubles, "begin", note)
    failure = attempt("shell", seed, 300)
    assert failure is not None
    assert failure.what == "a scripted promise"

    short = shrink(failure, 60.0)

    assert short.kept == [2, 5]
    assert short.command == f"python -m chaos_tests.sim --world shell --seed {seed} --steps 5 --keep 2,5"
    with pytest.raises(Broken, match="a scripted promise"):
        play("shell", seed, steps=short.steps, skip=short.skip)


def test_what_never_ends_is_a_failure_that_is_not_shortened() -> None:
    failure = attempt(bad_world.NAME, bad_world.NEVER_ENDS, 300, seconds_max=0.5)

    assert failure is not None
    assert failure.what == HANGS
    assert "_spin" in failure.text
    assert shrink(failure) is failure
