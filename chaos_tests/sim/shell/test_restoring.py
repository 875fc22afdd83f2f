"""Rule 15, with all other troubles beside it: etcd forgets, an operator mends it, and nothing is lost."""

from __future__ import annotations

from random import Random

import pytest

from chaos_tests.sim.shell.run import Run
from chaos_tests.sim.shell.troubles import Trouble


# In 36 and 48 etcd had forgotten a node's start and nothing else: `gearfleet fleet restore` saw no need, and
# the node would not start.
@pytest.mark.parametrize("seed", [1, 5, 12, 36, 48])
def test_a_fleet_whose_etcd_was_restored_comes_back_with_all_its_jobs(seed: int) -> None:
    run = Run(seed)
    at = Random(f"{seed} rest").uniform(0.5, 6.0)
    run.schedule.append(Trouble(len(run.schedule) + 1, at, "etcd_restored", f"{seed} x"))
    assert run.play().verdict.valid
