"""A data directory belongs to one fleet, knows when it is a copy, and keeps the map it acted on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.server import directory as module
from cluster.server.directory import DataDirectory, Nonces, SavedMap
from cluster.server.errors import DirectoryError
from tests.conftest import StartNode

Open = Callable[..., DataDirectory]


@pytest.fixture
def open_directory(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_one(name: str = "data", fleet: str | None = "f", *, bind: bool = True) -> DataDirectory:
            directory = DataDirectory(tmp_path / name, fleet)
            stack.callback(directory.close)
            if fleet is not None and bind:
                directory.bind(fleet, 1024)
            return directory

        yield open_one


# ---- whose it is


def test_a_directory_of_a_fleet_is_found_again(open_directory: Open) -> None:
    directory = open_directory()
    identity = directory.identity
    directory.close()

    again = open_directory()

    assert (again.identity, again.fleet) == (identity, "f")


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ("g", "belongs to the fleet f, this node is to be in g: correct --fleet"),
        (None, "belongs to a node of the fleet f, and others have copies of its jobs: start it with --etcd"),
    ],
)
def test_a_directory_of_a_fleet_is_of_no_other_use(
    open_directory: Open, fleet: str | None, message: str
) -> None:
    open_directory().close()
    with pytest.raises(DirectoryError, match=message):
        open_directory(fleet=fleet)
    open_directory()  # the refusal has let go of it


def test_a_node_that_stands_alone_does_not_start_on_it(open_directory: Open, start_node: StartNode) -> None:
    directory = open_directory()
    directory.close()
    node = start_node(wait=False, data_dir=directory.path)
    assert "the fleet f" in node.wait_for_event("cannot start")["reason"]
    assert node.wait_for_exit() == 1


def test_jobs_of_a_node_that_stood_alone_are_not_taken_into_a_fleet(open_directory: Open) -> None:
    directory = open_directory(bind=False)
    with pytest.raises(DirectoryError, match="holds 3 jobs of a node that stood alone: let it finish them"):
        directory.bind("f", 1024, jobs=3)
    assert directory.fleet is None
    directory.bind("f", 1024, jobs=0)
    assert directory.fleet == "f"


def test_another_number_of_slots_is_refused(open_directory: Open) -> None:
    directory = open_directory()
    with pytest.raises(DirectoryError, match="of a fleet with 1024 slots, f has 512: correct"):
        directory.bind("f", 512)


def test_a_release_without_fleets_refuses_it(open_directory: Open) -> None:
    directory = open_directory(bind=False)
    path = directory.path / "identity"
    assert json.loads(path.read_bytes())["format"] == 1
    directory.bind("f", 1024)
    assert json.loads(path.read_bytes())["format"] == 2


@pytest.mark.parametrize(
    "change", [{"nonces": None}, {"past": [1]}, {"slots": "x"}, {"fleet": None}, {"incarnation": "1"}]
)
def test_an_identity_file_with_a_slip_is_refused(open_directory: Open, change: dict[str, object]) -> None:
    directory = open_directory()
    directory.close()
    path = directory.path / "identity"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(DirectoryError, match="is no identity file"):
        open_directory()


def test_each_start_has_a_larger_incarnation_whatever_the_clock_says(
    open_directory: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = open_directory()
    first = directory.next_incarnation()
    directory.close()
    monkeypatch.setattr("cluster.server.directory.time.time_ns", lambda: 0)
    assert open_directory().next_incarnation() == first + 1
    # Of a new directory it is not 1, or two starts of one name would be the same.
    monkeypatch.undo()
    assert open_directory("other").next_incarnation() > first


# ---- is it a copy?


def test_the_first_start_expects_nothing_in_etcd(open_directory: Open) -> None:
    nonces = open_directory().next_nonces()
    assert nonces == Nonces(("",), nonces.new, ())


def test_each_start_has_a_nonce_of_its_own_and_remembers_the_last(open_directory: Open) -> None:
    directory = open_directory()
    first = directory.next_nonces().new
    directory.keep_nonce(first)
    directory.close()

    second = open_directory().next_nonces()

    assert second.accepted == (first,)
    assert second.new != first


def test_after_a_crash_before_or_after_the_swap_both_are_known(open_directory: Open) -> None:
    directory = open_directory()
    directory.keep_nonce(kept := directory.next_nonces().new)
    lost = directory.next_nonces().new
    directory.close()

    nonces = open_directory().next_nonces()

    assert nonces.accepted == (kept, lost)


def test_a_crash_before_the_first_swap_still_expects_nothing_perhaps(open_directory: Open) -> None:
    directory = open_directory()
    lost = directory.next_nonces().new
    assert directory.next_nonces().accepted == ("", lost)


def test_old_nonces_are_remembered_up_to_a_limit(
    open_directory: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAST_NONCES_MAX", 3)
    directory = open_directory()
    made = []
    for _ in range(6):
        made.append(directory.next_nonces().new)
        directory.keep_nonce(made[-1])
    assert directory.next_nonces()[2] == tuple(made[2:5])


# ---- a new beginning


def test_a_copy_begins_with_nothing_under_a_new_identity(open_directory: Open) -> None:
    directory = open_directory()
    old = directory.identity
    directory.keep_nonce(directory.next_nonces().new)
    directory.save_map(b"map", 7)
    (directory.journal_path / "segment").write_bytes(b"jobs")

    new = directory.renew_identity("copied")

    assert new == directory.identity != old
    assert list(directory.journal_path.iterdir()) == []
    assert (directory.path / f"journal.copied-{old.hex}" / "segment").read_bytes() == b"jobs"
    assert directory.next_nonces().accepted == ("",)
    directory.close()
    again = open_directory()
    assert (again.identity, again.fleet, again.load_map()) == (new, "f", SavedMap(b"map", 7))


@pytest.mark.parametrize("step", ["identity", "rename", "mkdir", "sync", "end"])
def test_a_crash_in_the_middle_never_leaves_the_old_identity_with_nothing(
    open_directory: Open, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Crash(Exception):
        pass

    directory = open_directory()
    old = directory.identity
    (directory.journal_path / "segment").write_bytes(b"jobs")
    saves = 0

    def crash(*arguments: object, **more: object) -> None:
        raise Crash

    def save(self: DataDirectory, content: dict[str, object]) -> None:
        nonlocal saves
        saves += 1
        if saves == {"identity": 1, "end": 2}.get(step):
            raise Crash
        original_save(self, content)

    original_save = DataDirectory._save
    # The directory is synced once for the identity file, then after the journal has moved.
    syncs = iter((module.sync_directory, crash))
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "_save", save)
        if step in ("rename", "mkdir"):
            patch.setattr(Path, step, crash)
        if step == "sync":
            patch.setattr(module, "sync_directory", lambda path: next(syncs)(path))
        with pytest.raises(Crash):
            directory.renew_identity("damaged")
    directory.close()

    again = open_directory()

    holds = (again.journal_path / "segment").exists()
    assert (again.identity == old) == holds
    assert holds == (step == "identity")
    assert holds or (again.path / f"journal.damaged-{old.hex}" / "segment").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_condemned_directory_begins_with_nothing_also_after_a_kill(
    open_directory: Open, killed: bool
) -> None:
    directory = open_directory()
    old = directory.identity
    (directory.journal_path / "segment").write_bytes(b"jobs")

    directory.condemn("damaged")

    assert directory.identity == old
    assert (directory.journal_path / "segment").exists()  # it may be open
    new = None if killed else directory.renew_identity("damaged")
    directory.close()
    again = open_directory()
    assert again.identity != old
    assert new in (None, again.identity)
    assert list(again.journal_path.iterdir()) == []
    assert (again.path / f"journal.damaged-{old.hex}" / "segment").read_bytes() == b"jobs"


# ---- the map


def test_the_map_is_kept(open_directory: Open) -> None:
    directory = open_directory()
    assert directory.load_map() is None
    directory.save_map(b'{"slots": []}\n', 17)
    directory.save_map(b"newer\n", 18)
    directory.close()
    assert open_directory().load_map() == SavedMap(b"newer\n", 18)


@pytest.mark.parametrize("damage", [b"", b"{}\nx", b"[1]\nx", b'{"format":1,"revision":1,"checksum":1}\nx'])
def test_a_damaged_map_is_told(open_directory: Open, damage: bytes) -> None:
    directory = open_directory()
    (directory.path / "map").write_bytes(damage)
    with pytest.raises(DirectoryError, match="is damaged"):
        directory.load_map()


def test_a_copied_directory_has_all_that_the_original_has(open_directory: Open, tmp_path: Path) -> None:
    """So that only the nonce can tell them apart."""
    directory = open_directory()
    directory.keep_nonce(directory.next_nonces().new)
    shutil.copytree(directory.path, tmp_path / "copy")
    assert open_directory("copy").identity == directory.identity
