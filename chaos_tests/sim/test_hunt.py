"""A hunt plays all seeds of all its worlds, shares its time between them, and tells failures as they come."""

from __future__ import annotations

import pytest

from chaos_tests.sim import bad_world
from chaos_tests.sim import hunt as hunting
from chaos_tests.sim.__main__ import tell
from chaos_tests.sim.hunt import Found, Share, hunt
from chaos_tests.sim.shrink import DIES, HANGS, Failure


def test_a_hunt_plays_every_seed_in_each_world() -> None:
    found = hunt(["turns", "shell"], range(3), steps=20, jobs=1)

    assert {world: share.seeds for world, share in found.shares.items()} == {"turns": 3, "shell": 3}
    assert all(share.seconds > 0 for share in found.shares.values())
    assert found.failures == []


def test_worlds_share_the_time_although_one_is_much_faster() -> None:
    found = hunt(["turns", "shell"], range(10_000), steps=300, jobs=1, seconds=5.0)

    turns, shell = found.shares["turns"], found.shares["shell"]
    assert turns.seeds > shell.seeds > 0
    # Two chunks of each are under way when time is up.
    turns_chunks, shell_chunks = (
        2 * hunting.SEEDS_AT_A_TIME[world] / share.seeds_per_second for world, share in found.shares.items()
    )
    assert turns.seconds < 3 * shell.seconds + turns_chunks
    assert shell.seconds < 3 * turns.seconds + shell_chunks
    assert [f"{failure.text}: {failure.command}" for failure in found.failures] == []


def test_a_failure_is_told_at_once_with_the_command_that_replays_it() -> None:
    told: list[Failure] = []

    # There is no such world: each of its seeds fails.
    found = hunt(["nowhere"], range(50), steps=20, jobs=1, on_failure=told.append)

    assert told == found.failures
    assert 5 <= len(told) < 50, "it ends when enough have failed"
    assert told[0].command == "python -m chaos_tests.sim --world nowhere --seed 0 --steps 20"


def test_a_seed_that_never_ends_is_told_and_the_others_are_played() -> None:
    found = hunt([bad_world.NAME], [2, bad_world.NEVER_ENDS, 6], steps=20, jobs=1, seed_seconds_max=0.5)

    assert found.seeds == 3
    assert [(failure.seed, failure.what) for failure in found.failures] == [(bad_world.NEVER_ENDS, HANGS)]


def test_a_process_that_dies_is_no_success() -> None:
    told: list[Failure] = []
    seeds = [bad_world.BROKEN, 4, bad_world.DIES, *range(10, 1000)]

    found = hunt([bad_world.NAME], seeds, steps=20, jobs=1, on_failure=told.append)

    assert told == found.failures
    assert [(failure.seed, failure.what) for failure in found.failures] == [
        (bad_world.BROKEN, "a promise"),
        (bad_world.DIES, DIES),
    ]


def test_what_is_told_of_a_failure_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Failure("turns", 7, 120, "a gap on a disk", "Broken: a gap on a disk: entry 3 behind 1"))

    assert capsys.readouterr().out == (
        "FAILED  turns seed 7: Broken: a gap on a disk: entry 3 behind 1\n"
        "    python -m chaos_tests.sim --world turns --seed 7 --steps 120\n"
    )


def test_progress_is_told_while_a_hunt_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunting, "PROGRESS_SECONDS", 0.5)
    seeds: list[int] = []

    hunt(
        ["turns"],
        range(10_000),
        steps=50,
        jobs=1,
        seconds=2.0,
        on_progress=lambda found: seeds.append(found.seeds),
    )

    assert len(seeds) > 2
    assert seeds == sorted(seeds)
    assert seeds[-1] > 0


def test_a_hunt_says_how_fast_each_world_was() -> None:
    found = Found({"turns": Share(120, 4.0), "shell": Share(4, 4.0)}, 4.1)

    assert str(found) == (
        "4 s: 120 seeds of turns (30.0 a second and process), 4 seeds of shell (1.0 a second and process): "
        "none failed"
    )
