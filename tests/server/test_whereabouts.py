"""A data directory that is taken away under a running node: nothing more is promised, within seconds."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from tests.support import Node, Peer, need_command, needs_root
from tests.support.waiting import eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]
SECONDS_MAX = 10.0  # "within seconds", on a busy machine; the node looks each second


def data_dir(node: Node) -> Path:
    assert node.data_dir is not None
    return node.data_dir


def remove(node: Node) -> None:
    shutil.rmtree(data_dir(node))


def move(node: Node) -> None:
    data_dir(node).rename(data_dir(node).with_name("moved"))


def replace(node: Node) -> None:
    move(node)
    shutil.copytree(data_dir(node).with_name("moved"), data_dir(node))


def remove_journal(node: Node) -> None:
    shutil.rmtree(data_dir(node) / "journal")


def remove_identity(node: Node) -> None:
    (data_dir(node) / "identity").unlink()


def remove_segment(node: Node) -> None:
    max((data_dir(node) / "journal").iterdir()).unlink()


def remove_first_segment(node: Node) -> None:
    min((data_dir(node) / "journal").iterdir()).unlink()


def replace_segment(node: Node) -> None:
    segment = max((data_dir(node) / "journal").iterdir())
    copy = segment.with_name("copy")
    shutil.copy(segment, copy)
    copy.rename(segment)


def add_segment(node: Node) -> None:
    (data_dir(node) / "journal" / "000000009999.segment").touch()


def refusal(client: Peer) -> str:
    """Waits until background jobs are refused; returns the reason."""
    said: list[str] = []

    def refused() -> bool:
        client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"")
        answer = client.receive()
        if answer.type == wire.ERROR:
            assert answer.arguments[0] == wire.QUEUE_ERROR
            said.append(answer.arguments[1].decode())
        return bool(said)

    eventually(refused, timeout_seconds=SECONDS_MAX)
    return said[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (remove, "is gone"),
        (move, "is gone"),
        (replace, "another directory is in the place of"),
        (remove_journal, "journal of the data directory"),
        (remove_identity, "identity of the data directory"),
        (remove_segment, "somebody else removed"),
        (remove_first_segment, "somebody else removed"),
        (replace_segment, "somebody else removed"),
        (add_segment, "000000009999.segment"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_background_jobs_are_refused_when_the_journal_is_not_where_it_was(
    start_node: StartNode, connect: Connect, fault: Callable[[Node], None], words: str
) -> None:
    # Given an idle node with a journal of two files, and a job
    node = start_node(durability="os" if fault is move else "fsync")
    node.terminate()
    node.restart()
    client, worker = connect(node), connect(node)
    waiting = client.submit(b"f", background=True)
    # When somebody takes it away, then the idle node says so, with what to do
    fault(node)
    event = node.wait_for_event("background jobs are refused", timeout_seconds=SECONDS_MAX)
    assert words in event["reason"]
    assert "SIGUSR1" in event["remedy"]
    assert words in refusal(client)
    # And what waits can be done, and foreground jobs go on
    worker.can_do(b"f")
    assert worker.grab_one().handle == waiting
    worker.complete(waiting)
    client.submit(b"f", b"foreground")
    assert worker.grab_one().payload == b"foreground"
    assert len([each for each in node.log_events if each["event"] == "background jobs are refused"]) == 1


@pytest.mark.parametrize("fault", [remove, move, replace, remove_journal, remove_first_segment])
@pytest.mark.parametrize("noticed", [True, False])
def test_a_stop_says_how_many_jobs_are_in_no_journal(
    node: Node, connect: Connect, fault: Callable[[Node], None], noticed: bool
) -> None:
    # Given three background jobs and a foreground one
    client = connect(node)
    for number in range(3):
        client.submit(b"f", b"%d" % number, background=True)
    client.submit(b"f", b"foreground")
    # When the directory is taken away, and the node is stopped, perhaps before it has noticed
    fault(node)
    if noticed:
        node.wait_for_event("background jobs are refused", timeout_seconds=SECONDS_MAX)
    node.terminate()
    # Then it says so, and why
    [said] = [each for each in node.log_events if each["event"].startswith("3 background jobs")]
    assert said["event"] == "3 background jobs are in no journal and are gone"
    assert said["level"] == "error"
    assert "put" in said["remedy"]
    assert node.log_events[-1]["event"] == "stopped"


def test_a_stop_says_nothing_of_jobs_that_are_kept(node: Node, connect: Connect) -> None:
    connect(node).submit(b"f", background=True)
    (data_dir(node) / "lock").unlink(missing_ok=True)  # is made anew
    node.terminate()
    assert not [each for each in node.log_events if "no journal" in each["event"]]


def test_a_stop_without_a_journal_says_what_is_gone(start_node: StartNode, connect: Connect) -> None:
    node = start_node(durability="memory")
    connect(node).submit(b"f", background=True)
    node.terminate()
    [said] = [each for each in node.log_events if "are in no journal" in each["event"]]
    assert (said["level"], said["jobs"]) == ("warning", 1)


def test_a_directory_that_is_put_back_is_used_again(node: Node, connect: Connect) -> None:
    client = connect(node)
    first = client.submit(b"f", background=True)
    move(node)
    refusal(client)
    data_dir(node).with_name("moved").rename(data_dir(node))
    node.wait_for_event("background jobs are accepted again")
    second = client.submit(b"f", background=True)
    node.kill()
    node.restart()
    handles = [row.split("\t")[0] for row in node.table("show jobs")]
    assert {first.decode(), second.decode()} <= set(handles)


def test_a_lock_file_that_is_gone_is_made_anew(node: Node, connect: Connect) -> None:
    lock = data_dir(node) / "lock"
    lock.unlink()
    eventually(lock.exists)
    assert int(lock.read_text()) == node.process_id
    # Nobody else can have the directory, as before
    with lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    connect(node).submit(b"f", background=True)


def test_a_lock_that_another_process_was_faster_to_take_ends_the_promises(
    node: Node, connect: Connect
) -> None:
    path = data_dir(node) / "other-lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.rename(data_dir(node) / "lock")
        assert "another process has locked" in refusal(connect(node))
    finally:
        os.close(descriptor)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts something over a directory, until the test ends."""
    with ExitStack() as mounts:

        def mount(path: Path, *options: str) -> None:
            ended = subprocess.run(
                [need_command("mount"), *options, str(path)], capture_output=True, check=False
            )
            if ended.returncode:
                pytest.skip(f"needs the right to mount: {ended.stderr.decode().strip()}")
            if "remount" not in " ".join(options):
                mounts.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)

        yield mount


@needs_root()
def test_a_file_system_that_is_mounted_over_it_is_noticed(
    node: Node, connect: Connect, mounted: Callable[..., None]
) -> None:
    mounted(data_dir(node), "-t", "tmpfs", "tmpfs")
    assert "another directory is in the place of" in refusal(connect(node))


@needs_root()
def test_a_file_system_that_becomes_read_only_is_noticed(
    start_node: StartNode, connect: Connect, mounted: Callable[..., None], tmp_path: Path
) -> None:
    # Given a node whose directory can be made read-only under its open files: through another mount
    disk, place = tmp_path / "disk", tmp_path / "place"
    disk.mkdir()
    place.mkdir()
    mounted(disk, "-t", "tmpfs", "tmpfs")
    (disk / "data").mkdir()
    mounted(place, "--bind", str(disk / "data"))
    node = start_node(data_dir=place / ".")
    client = connect(node)
    client.submit(b"f", background=True)
    mounted(place, "--bind", str(disk / "data"))
    mounted(place, "-o", "remount,bind,ro")
    assert "is read-only now" in refusal(client)
