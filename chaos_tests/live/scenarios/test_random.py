"""One random fault after the other, of all kinds, sometimes two at once. soak.py does it for longer."""

from __future__ import annotations

from random import Random

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.soak import strike

STRIKES = 8


def test_random_faults_of_all_kinds(fleet: ChaosFleet) -> None:
    dice = Random(1)
    with fleet.under_load() as load:
        for _ in range(STRIKES):
            strike(fleet, load, dice)
            load.flow()
