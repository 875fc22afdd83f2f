"""A torn tail is cut and reported; damage stops the start; a full or broken disk stops the promises."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.server.directory import DataDirectory
from cluster.server.errors import DirectoryError, JournalDamaged
from cluster.server.journal import Replay, read_journal
from cluster.wire import packets as wire
from tests.server.test_journal_file import Written, read, record
from tests.support import Node, Peer, eventually, need_command, needs_root
from tests.support.faulty import FailingCalls

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]

SEAL_BYTES = 28  # an empty frame says that the one before it was fsynced


def segments(node: Node) -> list[Path]:
    assert node.data_dir is not None
    return sorted((node.data_dir / "journal").glob("*.segment"))


def next_segment(node: Node) -> Path:
    """The path of the segment that would come next."""
    last = segments(node)[-1]
    return last.with_name(f"{int(last.stem) + 1:012d}.segment")


def handles(node: Node) -> set[str]:
    return {row.split("\t")[0] for row in node.table("show jobs")}


def submit_some(node: Node, connect: Connect, count: int = 5) -> set[str]:
    client = connect(node)
    return {client.submit(b"f", b"payload %d" % number, background=True).decode() for number in range(count)}


def events(node: Node, words: str) -> list[dict[str, object]]:
    return [event for event in node.log_events if words in str(event.get("event"))]


@pytest.fixture
def stopped(node: Node, connect: Connect) -> tuple[Node, set[str]]:
    """A node that was stopped cleanly with five jobs."""
    submitted = submit_some(node, connect)
    node.terminate()
    return node, submitted


# ---- torn tails


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 100, b"GFRM", b"GFRM" + bytes(60), random.Random(1).randbytes(5000)],
    ids=["zeros", "magic", "half", "noise"],
)
def test_a_torn_tail_is_cut_and_reported(
    stopped: tuple[Node, set[str]], connect: Connect, tail: bytes
) -> None:
    # Given a journal that ends in what a crash left of a write
    node, submitted = stopped
    with segments(node)[-1].open("ab") as file:
        file.write(tail)
    # When the node starts, then all that was acknowledged is there, and the log says what was cut
    node.restart()
    assert handles(node) == submitted
    [event] = events(node, "torn tail")
    assert event["bytes"] == len(tail)
    # And it goes on as if nothing had been
    submitted |= submit_some(node, connect)
    node.kill()
    node.restart()
    assert handles(node) == submitted
    assert len(events(node, "torn tail")) == 1


def test_a_segment_that_was_only_begun_is_no_damage(stopped: tuple[Node, set[str]]) -> None:
    node, submitted = stopped
    next_segment(node).write_bytes(b"GEARFLT1")
    node.restart()
    assert handles(node) == submitted


def test_a_clean_stop_leaves_nothing_to_cut(stopped: tuple[Node, set[str]]) -> None:
    node, submitted = stopped
    node.restart()
    assert handles(node) == submitted
    assert events(node, "torn tail") == []


# ---- damage


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def refused_start(node: Node) -> str:
    """The node must not start; returns the reason that it gives."""
    node.spawn()
    assert node.wait_for_exit() != 0
    [event] = [event for event in node.log_events if event["event"] == "cannot start"]
    return str(event["reason"])


def test_a_flipped_bit_in_the_middle_stops_the_start(stopped: tuple[Node, set[str]]) -> None:
    # Given one bit of the third job's payload that has turned
    node, _ = stopped
    path = segments(node)[-1]
    flip(path, path.read_bytes().index(b"payload 2"))
    # When the node is started, then it refuses, and says which file and what can be done
    reason = refused_start(node)
    assert str(path) in reason
    assert "damaged" in reason
    assert "--salvage" in reason


def test_damage_in_an_older_segment_stops_the_start_also_at_its_end(
    stopped: tuple[Node, set[str]],
) -> None:
    # Given a journal of two segments, the first of which lost its tail
    node, _ = stopped
    node.restart()
    node.terminate()
    first = segments(node)[0]
    os.truncate(first, first.stat().st_size - SEAL_BYTES - 1)
    node.log_lines.clear()
    assert str(first) in refused_start(node)


def test_salvage_passes_over_damage_and_says_how_much(stopped: tuple[Node, set[str]]) -> None:
    node, submitted = stopped
    path = segments(node)[-1]
    flip(path, path.read_bytes().index(b"payload 2"))
    node.options.append("--salvage")
    node.restart()
    # The others are there; each was in a frame of its own, or lost with its neighbours
    assert handles(node) < submitted
    [event] = events(node, "passed over damage")
    assert int(str(event["bytes"])) > 0
    # And once is enough: what could be read has been written anew, the damage is gone
    node.wait_for_event("journal compacted", timeout_seconds=10)
    survivors = handles(node)
    node.kill()
    node.options.remove("--salvage")
    node.restart()
    assert handles(node) == survivors


def test_no_single_flipped_bit_loses_a_job_in_silence(stopped: tuple[Node, set[str]]) -> None:
    # Given the journal of a node that stopped cleanly
    node, submitted = stopped
    assert node.data_dir is not None
    directory = DataDirectory(node.data_dir)
    identity = directory.identity
    directory.close()
    [path] = segments(node)
    good = path.read_bytes()

    def restored() -> set[str]:
        found = set()
        for entry in read_journal(path.parent, identity, Replay()):
            found |= {handle for handle in submitted if handle.encode() in entry.body}
        return found

    assert restored() == submitted
    # When any one bit of it turns
    for offset in range(len(good)):
        damaged = bytearray(good)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        # Then either the start is refused, or every job is there
        try:
            found = restored()
        except (JournalDamaged, DirectoryError):
            continue
        finally:
            path.write_bytes(good)
        assert found == submitted, f"a bit at byte {offset} lost jobs in silence"


def test_a_cut_at_any_byte_never_makes_up_or_reorders_jobs(stopped: tuple[Node, set[str]]) -> None:
    # Given the journal of a node that stopped cleanly
    node, submitted = stopped
    assert node.data_dir is not None
    directory = DataDirectory(node.data_dir)
    identity = directory.identity
    directory.close()
    [path] = segments(node)
    good = path.read_bytes()
    numbers: list[list[int]] = []
    # When the file ends at any byte, as after a crash
    for length in range(len(good) + 1):
        path.write_bytes(good[:length])
        bodies = [entry.body for entry in read_journal(path.parent, identity, Replay())]
        numbers.append([n for body in bodies for n in range(5) if b"payload %d" % n in body])
    # Then what is read is a beginning of what was written, and no shorter the more there is
    for found in numbers:
        assert found == list(range(len(found)))
    assert numbers == sorted(numbers, key=len)
    assert len(numbers[-1]) == len(submitted)


# ---- a disk that fails


@pytest.fixture
def failing(tmp_path: Path) -> FailingCalls:
    return FailingCalls(tmp_path / "failing-calls")


def test_a_full_disk_refuses_background_jobs_and_goes_on_by_itself(
    start_node: StartNode, connect: Connect, failing: FailingCalls
) -> None:
    # Given a node with jobs, whose disk is full from now on
    node = start_node(environment=failing.environment)
    submitted = submit_some(node, connect)
    client, other, worker = connect(node), connect(node), connect(node)
    failing.fail("pwrite")
    # When background jobs are submitted, then they are refused at once, with what to do
    for _ in range(3):
        client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"refused")
        assert b"make room" in client.expect_error(wire.QUEUE_ERROR)
    # And the log says so once, with what to do
    event = node.wait_for_event("background jobs are refused")
    assert "No space left" in event["reason"]
    assert "make room" in event["remedy"]
    assert len(events(node, "are refused")) == 1
    # And foreground jobs and results go on
    handle = other.submit(b"g", b"foreground")
    worker.can_do(b"g", b"f")
    assert node.status("f") == (5, 0, 1)
    first = worker.grab_one()
    assert first.handle.decode() in submitted | {handle.decode()}
    worker.complete(first.handle)
    worker.settle()
    # When there is room again, then background jobs are accepted again
    failing.heal()
    node.wait_for_event("background jobs are accepted again")
    submitted |= submit_some(node, connect)
    # And after a kill everything acknowledged is there, what ended is not, and what was refused is not
    node.kill()
    node.restart()
    assert handles(node) == submitted - {first.handle.decode()}


def test_a_failed_fsync_refuses_background_jobs_until_a_restart(
    start_node: StartNode, connect: Connect, failing: FailingCalls
) -> None:
    # Given a node with jobs and a disk that breaks
    node = start_node(environment=failing.environment)
    submitted = submit_some(node, connect)
    client = connect(node)
    failing.fail("fdatasync")
    # When a background job is submitted, then it is refused, with what to do
    client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"refused")
    assert b"restart" in client.expect_error(wire.QUEUE_ERROR)
    assert "look at the disk" in node.wait_for_event("background jobs are refused")["remedy"]
    # When the disk seems to work again, then they still are: nobody knows what it kept
    failing.heal()
    client.send(wire.SUBMIT_JOB_BG, b"f", b"", b"refused")
    client.expect_error(wire.QUEUE_ERROR)
    # When the node is restarted, then everything acknowledged is there
    node.terminate()
    node.restart()
    assert handles(node) >= submitted
    submit_some(node, connect)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    path = tmp_path / "small-disk"
    path.mkdir()
    mounted = subprocess.run(
        [need_command("mount"), "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run([need_command("umount"), "--lazy", str(path)], check=True)


@needs_root()
def test_a_disk_that_fills_up_loses_nothing_that_was_acknowledged(
    start_node: StartNode, connect: Connect, small_disk: Path
) -> None:
    # Given a data directory on a small disk with something else on it
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    node = start_node(data_dir=small_disk / "data")
    client = connect(node)
    # When jobs are submitted until it is full
    submitted = set()
    for number in range(1000):
        answer = client.ask(wire.SUBMIT_JOB_BG, b"f", b"", b"%d" % number + bytes(16 << 10))
        if answer.type == wire.ERROR:
            break
        submitted.add(answer.arguments[0].decode())
    # Then the first that does not fit is refused
    assert answer.arguments[0] == wire.QUEUE_ERROR
    assert len(submitted) > 50
    node.wait_for_event("background jobs are refused")
    # When there is room again, then the node goes on by itself
    ballast.unlink()
    node.wait_for_event("background jobs are accepted again")
    submitted.add(client.submit(b"f", b"after", background=True).decode())
    node.kill()
    node.restart()
    assert handles(node) == submitted


@needs_root()
@pytest.mark.parametrize("has_room", [False, True])
def test_a_stop_says_how_many_ended_jobs_a_full_disk_did_not_take(
    start_node: StartNode, connect: Connect, small_disk: Path, has_room: bool
) -> None:
    # Given a disk that has filled up while jobs wait
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    node = start_node(data_dir=small_disk / "data")
    client, worker = connect(node), connect(node)
    while client.ask(wire.SUBMIT_JOB_BG, b"f", b"", bytes(64 << 10)).type != wire.ERROR:
        pass
    node.wait_for_event("background jobs are refused")
    with contextlib.suppress(OSError), (small_disk / "more").open("ab", buffering=0) as more:
        while more.write(bytes(4096)):
            pass
    # When two of them end, and the node is stopped
    worker.can_do(b"f")
    ended = {worker.grab_one().handle.decode() for _ in range(2)}
    for handle in ended:
        worker.complete(handle.encode())
    worker.ask(wire.ECHO_REQ, b"done")
    if has_room:
        ballast.unlink()
    node.terminate()
    # Then it tries once more, and says what that did not take
    said = [each for each in node.log_events if "could not be written" in str(each["event"])]
    if has_room:
        assert said == []
        node.restart()
        assert not ended & set(handles(node))
        return
    assert [(each["event"], each["level"]) for each in said] == [
        ("2 ended jobs could not be written and will run again", "error")
    ]
    assert "No space left" in str(said[0]["reason"])


@needs_root()
def test_a_disk_with_room_for_one_more_job_only_is_still_full(small_disk: Path) -> None:
    directory = small_disk / "journal"
    directory.mkdir()
    written = Written(directory)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((4 << 20) - (200 << 10)))
    journal = written.journal
    journal.append(1, [record(1, 300 << 10)])
    assert written.told() == ("failed", 1, "the journal cannot be written: No space left on device", True)
    # A small entry would fit; jobs would be accepted, and refused again a moment later.
    for _ in range(3):
        journal.recover([])
        assert written.told()[:2] == ("failed", 0)
        journal.append(2, [record(2)])
        assert written.told()[:2] == ("failed", 2)
    ballast.unlink()
    journal.recover([])
    assert written.told()[0] == "committed"
    journal.append(3, [record(3)])
    assert written.told() == ("committed", 3)
    journal.close()
    assert read(directory) == [3]
    assert [path.suffix for path in directory.iterdir()] == [".segment"]


@needs_root()
def test_a_full_disk_at_the_start_is_said(start_node: StartNode, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(5 << 20))
    node = start_node(data_dir=small_disk / "data", wait=False)
    assert node.wait_for_exit() != 0
    [event] = [event for event in node.log_events if event["event"] == "cannot start"]
    assert "make room" in str(event["reason"])


# ---- the directory


def test_a_second_process_is_refused_and_told_who_has_the_directory(
    node: Node, start_node: StartNode
) -> None:
    second = start_node(wait=False)
    assert second.wait_for_exit() != 0
    [event] = [event for event in second.log_events if event["event"] == "cannot start"]
    assert f"in use by process {node.process_id}" in str(event["reason"])
    assert "--data-dir" in str(event["reason"])
    # And the first has not noticed
    assert node.line("version").startswith("OK")


def test_a_segment_of_another_directory_is_refused(
    stopped: tuple[Node, set[str]], start_node: StartNode, tmp_path: Path
) -> None:
    node, _ = stopped
    other = start_node(data_dir=tmp_path / "other")
    other.terminate()
    foreign = segments(other)[0].read_bytes()
    next_segment(node).write_bytes(foreign)
    reason = refused_start(node)
    assert "another data directory" in reason or "damaged" in reason


# ---- compaction


def test_the_disk_follows_the_living_jobs(start_node: StartNode, connect: Connect) -> None:
    # Given small segments, and a few jobs that stay
    node = start_node("--segment-bytes", "1M", durability="os")
    submitted = submit_some(node, connect)
    client, worker = connect(node), connect(node)
    worker.can_do(b"passing")

    def journal_bytes() -> int:
        with contextlib.suppress(FileNotFoundError):  # removed between the listing and the look
            return sum(path.stat().st_size for path in segments(node))
        return 1 << 30

    # When 20 MB of other jobs pass through
    for _ in range(320):
        client.submit(b"passing", bytes(64 << 10), background=True)
        worker.complete(worker.grab_one().handle)
    # Then the journal shrinks to what lives
    node.wait_for_event("journal compacted")
    eventually(lambda: journal_bytes() < 8 << 20)
    # And the jobs that stayed are there after a kill
    node.kill()
    node.restart()
    assert handles(node) == submitted


@pytest.fixture
def killed_while_compacting(
    start_node: StartNode, connect: Connect, failing: FailingCalls
) -> tuple[Node, set[str]]:
    """A node with jobs that stay, killed after it has begun to write down what lives and before that was on
    disk; its journal holds much that has passed."""
    node = start_node("--segment-bytes", "1M", environment=failing.environment)
    submitted = submit_some(node, connect, 300)
    client, worker = connect(node), connect(node)
    worker.can_do(b"passing")
    for _ in range(80):
        client.submit(b"passing", bytes(64 << 10), background=True)
        worker.complete(worker.grab_one().handle)
    worker.settle()
    last = segments(node)[-1]
    failing.fail("fdatasync-hangs", last.name)
    eventually(lambda: segments(node)[-1] != last and segments(node)[-1].stat().st_size > 10_000)
    node.kill()
    failing.heal()
    return node, submitted


def test_nothing_is_lost_by_a_kill_while_the_journal_is_compacted(
    killed_while_compacting: tuple[Node, set[str]],
) -> None:
    node, submitted = killed_while_compacting
    node.restart()
    assert handles(node) == submitted


def test_history_is_given_back_also_after_a_restart(killed_while_compacting: tuple[Node, set[str]]) -> None:
    # Given 5 MB of history around some kilobytes of jobs; a restart must not take that for the normal size
    node, submitted = killed_while_compacting
    node.restart()
    node.wait_for_event("journal compacted", timeout_seconds=10)
    node.kill()
    node.restart()
    assert handles(node) == submitted
