"""The same seed is the same run, and a run finds what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chaos_tests.sim.hunt import play_all
from chaos_tests.sim.kept import Kept, kept_seeds
from chaos_tests.sim.shell.disk import SimJournal, SimOs
from chaos_tests.sim.shell.run import run
from chaos_tests.sim.worlds import STEPS, play

SEED = 3
FRESH = 40
SEEDS_PER_TEST = 10


@pytest.mark.parametrize("first", range(0, FRESH, SEEDS_PER_TEST))
def test_no_run_breaks_a_promise(first: int) -> None:
    failures = play_all("shell", range(first, first + SEEDS_PER_TEST), STEPS)

    assert [f"{failure.text}: {failure.command}" for failure in failures] == []


@pytest.mark.parametrize("kept", kept_seeds("shell"))
def test_what_was_mended_stays_mended(kept: Kept) -> None:
    play("shell", kept.seed, steps=kept.steps or STEPS)


def digest_in_a_fresh_process(hash_seed: str) -> str:
    code = f"from chaos_tests.sim.shell.run import run; r = run({SEED}); print(r.digest, r.callbacks)"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout


def test_a_seed_is_the_same_run_in_any_process() -> None:
    result = run(SEED)
    here = f"{result.digest} {result.callbacks}\n"
    assert [digest_in_a_fresh_process("1"), digest_in_a_fresh_process("2")] == [here, here]


def test_a_run_again_in_the_same_process_is_the_same() -> None:
    assert run(SEED).digest == run(SEED).digest


def test_what_is_skipped_does_not_happen() -> None:
    every = frozenset(trouble.number for trouble in run(SEED).troubles)
    assert not run(SEED, skip=every).troubles


def first_broken(seeds: int) -> int | None:
    for seed in range(seeds):
        try:
            run(seed)
        except Exception:
            return seed
    return None


def test_a_journal_that_is_not_fsynced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimOs, "fdatasync", lambda self, descriptor: None)
    assert first_broken(30) is not None


def test_an_acknowledgement_before_the_fsync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = SimJournal.append

    def acknowledge_first(self: SimJournal, group: int, records: list[bytes]) -> None:
        self._call_soon(self._on_committed, group)
        append(self, group, records)

    monkeypatch.setattr(SimJournal, "append", acknowledge_first)
    assert first_broken(30) is not None
