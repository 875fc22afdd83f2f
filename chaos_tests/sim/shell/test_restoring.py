"""Rule 15, with all other troubles beside it: etcd forgets, an operator mends it, and nothing is lost."""

from __future__ import annotations

from random import Random

import pytest

from chaos_tests.sim.shell.etcd import State
from chaos_tests.sim.shell.fleet import Node
from chaos_tests.sim.shell.restoring import Restoring
from chaos_tests.sim.shell.run import TROUBLED_SECONDS, Run
from chaos_tests.sim.shell.troubles import Trouble, schedule


# In 36 and 48 etcd had forgotten a node's start and nothing else: `gearfleet fleet restore` saw no need, and
# the node would not start.
@pytest.mark.parametrize("seed", [1, 5, 12, 36, 48])
def test_a_fleet_whose_etcd_was_restored_comes_back_with_all_its_jobs(seed: int) -> None:
    run = Run(seed, schedule(seed, TROUBLED_SECONDS))
    at = Random(f"{seed} rest").uniform(0.5, 6.0)
    run.schedule.append(Trouble(len(run.schedule) + 1, at, "etcd_restored", f"{seed} x"))
    assert run.play().verdict.valid


def test_nodes_that_are_started_on_a_restored_etcd_lead_nothing_until_an_operator_has_mended_it() -> None:
    run = Run(0, [])
    world, etcd, nodes = run.world, run.etcd, run.nodes
    backups: list[State] = []
    up_to_date: list[bool] = []
    leading: list[list[str]] = []

    def kill(node: Node) -> None:
        assert node.process is not None
        node.process.kill()
        node.died()

    def restore() -> None:
        view = run.view()
        assert view is not None
        up_to_date[:] = [node.part.view.map == view.map for node in nodes]
        Restoring(run, backups[0], lambda: None).strike(3.0)
        for node in nodes:
            node.wanted = True  # by those who do not know what happened
            kill(node)
            world.after(0.2, node.start)

    def look() -> None:
        leading.append([node.name for node in nodes if node.alive and node.part.replicator.leads])

    world.after(2.0, lambda: backups.append(etcd.cluster.state.backup(same_cluster=True)))
    world.after(2.1, kill, nodes[0])  # so that the map changes
    world.after(3.5, nodes[0].start)
    world.after(6.0, restore)
    world.after(8.9, look)
    result = run.play()
    assert up_to_date == [True] * 3, "or it proves nothing"
    assert leading == [[]]
    assert result.verdict.valid
