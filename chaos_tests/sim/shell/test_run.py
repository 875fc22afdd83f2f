"""The same seed is the same run, and a run finds what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chaos_tests.sim.hunt import play_all
from chaos_tests.sim.kept import Kept, kept_seeds
from chaos_tests.sim.shell.disk import Disk, File, SimJournal, SimOs
from chaos_tests.sim.shell.etcd_cluster import Cluster, Watch
from chaos_tests.sim.shell.run import TROUBLED_SECONDS, Run, run
from chaos_tests.sim.shell.troubles import Trouble, schedule
from chaos_tests.sim.worlds import STEPS, Broken, play
from cluster.server.server import Server

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


def first_broken_by(kind: str) -> Broken | None:
    """Of seeds in which there is such a trouble."""
    schedules = {seed: schedule(seed, TROUBLED_SECONDS) for seed in range(100)}
    seeds = [seed for seed in schedules if any(trouble.kind == kind for trouble in schedules[seed])]
    for seed in seeds[:10]:
        try:
            run(seed)
        except Broken as error:
            return error
    return None


def test_a_disk_that_failed_and_is_not_condemned_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_condemn", lambda self: None)
    assert first_broken_by("failing_fsync") is not None


def test_a_damaged_disk_that_counts_as_a_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for one whose end is torn, and begins where the damage does."""

    def tear(self: Disk, file: File, at: int) -> None:
        file.synced = file.synced[:at]
        del file.data[at:]

    monkeypatch.setattr(Disk, "rot", tear)
    broken = first_broken_by("rot")
    assert broken is not None
    assert broken.rule == "a damaged disk counts as a copy"


def test_a_watch_that_missed_what_is_compacted_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    feed = Cluster._feed

    def note(self: Cluster, watch: Watch) -> None:
        lived = not watch.over
        feed(self, watch)
        if lived and watch.over:
            told.append(watch.member.number)

    monkeypatch.setattr(Cluster, "_feed", note)
    for number in range(5):
        assert Run(number, [Trouble(1, 5.0, "etcd_compacted", f"x {number}")]).play().verdict.valid
    assert told
