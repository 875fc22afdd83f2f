"""Any history of a fleet keeps its promises. A seed that fails is played again, and told, by
`python -m chaos_tests.sim --seed SEED`."""

from __future__ import annotations

import pytest

from chaos_tests.sim.hunt import play_all
from chaos_tests.sim.kept import Kept, kept_seeds
from chaos_tests.sim.turns import run
from chaos_tests.sim.worlds import STEPS, play

SEEDS = 1000
SEEDS_PER_TEST = 50


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_no_history_breaks_a_promise(first: int) -> None:
    failures = play_all("turns", range(first, first + SEEDS_PER_TEST), STEPS)

    assert [f"{failure.text}: {failure.command}" for failure in failures] == []


@pytest.mark.parametrize("kept", kept_seeds("turns"))
def test_what_was_mended_stays_mended(kept: Kept) -> None:
    play("turns", kept.seed, steps=kept.steps or STEPS)


def test_a_history_is_the_same_each_time() -> None:
    def acknowledged() -> list[bytes]:
        return list(run(5).account.acknowledged)

    assert acknowledged() == acknowledged() != []


def test_steps_that_are_left_out_do_not_change_the_dice_of_the_others() -> None:
    def outcomes() -> list[object]:
        simulation = run(5, skip=frozenset(range(10, 300)))
        return [simulation.stage.fleet.now, *simulation.account.acknowledged]

    assert outcomes() == outcomes()
