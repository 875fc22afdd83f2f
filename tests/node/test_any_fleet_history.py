"""Any history of a fleet keeps its promises; see sim.py. A seed that fails is run again, and told, by
`python -m tests.node.sim SEED`."""

from __future__ import annotations

import pytest

from tests.node.sim import Simulation

SEEDS_PER_TEST = 20


@pytest.mark.parametrize("first", range(0, 120, SEEDS_PER_TEST))
def test_no_history_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        run(seed)


def run(seed: int) -> None:
    try:
        Simulation(seed, 300).run()
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


def test_a_history_is_the_same_each_time() -> None:
    def acknowledged() -> list[bytes]:
        simulation = Simulation(5, 300)
        simulation.run()
        return list(simulation.acknowledged)

    assert acknowledged() == acknowledged() != []
