"""Any history of a fleet keeps its promises; see sim.py. A seed that fails is run again, and told, by
`python -m tests.node.sim SEED`."""

from __future__ import annotations

import pytest

from tests.node.sim import Simulation

SEEDS_PER_TEST = 20


# Seeds, steps: what these broke, as long as the dice still lead there, was mended.
#   29: the result of a foreground job that a background submit had joined, while its slot was handed over;
#   40401: the same, at a new primary that does not serve the slot yet;
#   60, 69: ends of foreground jobs that came before their handles could be told;
#   40740, 40998: a client of another node that went away took the results from one that had just come;
#   4, 18: clients of other nodes, forgotten by a primary that gave the slot away.
KEPT = ((29, 500), (40401, 600), (60, 500), (69, 500), (4, 500), (18, 500), (40740, 600), (40998, 600))


@pytest.mark.parametrize("first", range(0, 120, SEEDS_PER_TEST))
def test_no_history_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        run(seed)


@pytest.mark.parametrize(("seed", "steps"), KEPT)
def test_what_was_mended_stays_mended(seed: int, steps: int) -> None:
    run(seed, steps)


def run(seed: int, steps: int = 300) -> None:
    try:
        Simulation(seed, steps).run()
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


def test_a_history_is_the_same_each_time() -> None:
    def acknowledged() -> list[bytes]:
        simulation = Simulation(5, 300)
        simulation.run()
        return list(simulation.acknowledged)

    assert acknowledged() == acknowledged() != []
