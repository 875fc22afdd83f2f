"""The journal's files: what was committed is read back; a torn tail is cut, damage is said to be damage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from struct import Struct
from typing import Any
from uuid import UUID

import pytest

from cluster.replication import entries
from cluster.server.errors import DirectoryError, JournalDamaged
from cluster.server.journal import Journal, Replay, read_journal
from tests.support.waiting import eventually

IDENTITY = UUID(int=7)
WAIT_SECONDS = 20.0
SEGMENT_HEADER_BYTES = 48
FRAME_HEADER = Struct(">4sIQB7xI")


def record(number: int, size: int = 0) -> bytes:
    return entries.encode(entries.ASSIGNED, 1, 1, number, b"x" * size)


class Written:
    """A journal, and what it tells its owner."""

    def __init__(self, directory: Path, *, segment_bytes: int = 1 << 20, durability: str = "fsync") -> None:
        self.events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.journal = Journal(
            directory,
            IDENTITY,
            durability=durability,  # type: ignore[arg-type]
            segment_bytes=segment_bytes,
            # It does nothing with these but to hand them to `call_soon`.
            call_soon=lambda *event: self.events.put(event),
            on_committed="committed",  # type: ignore[arg-type]
            on_failed="failed",  # type: ignore[arg-type]
            on_rotated="rotated",  # type: ignore[arg-type]
        )
        self.group = 0

    def told(self) -> tuple[Any, ...]:
        return self.events.get(timeout=WAIT_SECONDS)

    def write(self, *records: bytes) -> None:
        """One group, on disk."""
        self.group += 1
        self.journal.append(self.group, list(records))
        assert self.told() == ("committed", self.group)


def read(directory: Path, replay: Replay | None = None, **options: bool) -> list[int]:
    """The numbers of all entries."""
    return [entry.number for entry in read_journal(directory, IDENTITY, replay or Replay(), **options)]


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def frames(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of all frames of a segment."""
    spans = []
    offset = SEGMENT_HEADER_BYTES
    while offset < len(data):
        end = offset + FRAME_HEADER.size + FRAME_HEADER.unpack_from(data, offset)[1]
        spans.append((offset, end))
        offset = end
    return spans


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A journal with one segment: three groups (1), (2, 3), (4), then the seal."""
    written = Written(tmp_path)
    written.write(record(1))
    written.write(record(2), record(3))
    written.write(record(4))
    written.journal.close()
    (path,) = files(tmp_path)
    assert len(frames(path.read_bytes())) == 4
    return path


ALL = [1, 2, 3, 4]


# ---- written and read


def test_what_was_committed_comes_back_in_order(small: Path) -> None:
    replay = Replay()
    assert read(small.parent, replay) == ALL
    assert replay == Replay(segments=1, bytes_read=small.stat().st_size, entries_read=4)


def test_groups_that_come_together_are_one_frame_and_each_is_told(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for group in range(1, 200):
        written.journal.append(group, [record(group)])
    told = 0
    while told < 199:
        kind, told = written.told()
        assert kind == "committed"
    written.journal.close()
    assert read(tmp_path) == list(range(1, 200))
    assert written.journal.frames_written < 199 + 2


def test_an_empty_group_is_committed_in_its_turn_and_writes_nothing(tmp_path: Path) -> None:
    written = Written(tmp_path)
    size = written.journal.total_bytes
    written.write()
    assert written.journal.total_bytes == size


def test_each_start_writes_a_segment_of_its_own(tmp_path: Path) -> None:
    for start in range(3):
        assert read(tmp_path) == list(range(start))
        written = Written(tmp_path)
        written.write(record(start))
        written.journal.close()
    assert [path.name for path in files(tmp_path)] == [f"{number:012d}.segment" for number in (1, 2, 3)]


def test_an_idle_journal_is_sealed_by_itself(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write(record(1))
    (path,) = files(tmp_path)
    begin, end = frames(path.read_bytes())[0]
    # An empty frame follows, and one only
    eventually(lambda: path.stat().st_size, end + FRAME_HEADER.size)
    sealed = path.read_bytes()
    written.journal.close()
    assert path.read_bytes() == sealed
    path.write_bytes(next(flipped(sealed, begin + FRAME_HEADER.size)))
    with pytest.raises(JournalDamaged):
        read(tmp_path)


# ---- torn


@pytest.mark.parametrize("sealed", [True, False])
def test_cut_at_any_byte_it_holds_a_prefix_of_whole_groups(small: Path, sealed: bool) -> None:
    data = small.read_bytes()
    spans = frames(data)
    prefixes = {SEGMENT_HEADER_BYTES: 0}
    for (_, end), count in zip(spans, (1, 3, 4, 4), strict=True):
        prefixes[end] = count
    for length in range((len(data) if sealed else spans[-2][1]) + 1):
        small.write_bytes(data[:length])
        replay = Replay()
        whole = max((end for end in prefixes if end <= length), default=0)
        assert read(small.parent, replay) == ALL[: prefixes.get(whole, 0)]
        # What is torn is told and cut, so that the next start reads the same
        assert replay.torn_bytes == length - whole
        assert replay.torn_segment == (small.name if length != whole or not length else "")
        assert small.exists() is (length >= SEGMENT_HEADER_BYTES)
        again = Replay()
        assert read(small.parent, again) == ALL[: prefixes.get(whole, 0)]
        assert again.torn_bytes == 0


def test_zeros_behind_the_last_frame_are_torn(small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(data + bytes(5000))
    replay = Replay()
    assert read(small.parent, replay) == ALL
    assert replay.torn_bytes == 5000
    assert small.read_bytes() == data


def test_behind_a_torn_tail_a_new_start_goes_on(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-40])
    assert read(small.parent) == [1, 2, 3]
    written = Written(small.parent)
    written.write(record(5))
    written.journal.close()
    assert read(small.parent) == [1, 2, 3, 5]


def test_a_segment_that_was_only_begun_is_removed(small: Path) -> None:
    begun = small.with_name(f"{2:012d}.segment")
    begun.write_bytes(b"GEARFLT1\0")
    assert read(small.parent) == ALL
    assert not begun.exists()


# ---- damaged


def flipped(data: bytes, byte: int) -> Iterator[bytes]:
    for bit in (0, 3, 7):
        damaged = bytearray(data)
        damaged[byte] ^= 1 << bit
        yield bytes(damaged)


def test_in_a_sealed_journal_any_rotten_byte_of_an_acknowledged_group_is_damage(small: Path) -> None:
    data = small.read_bytes()
    seal = frames(data)[-1][0]
    for byte in range(seal):
        for damaged in flipped(data, byte):
            small.write_bytes(damaged)
            with pytest.raises(JournalDamaged, match=small.name):
                read(small.parent)
            # And nothing has been cut
            assert small.read_bytes() == damaged


def test_a_rotten_seal_loses_nothing(small: Path) -> None:
    data = small.read_bytes()
    begin, end = frames(data)[-1]
    for byte in range(begin, end):
        for damaged in flipped(data, byte):
            small.write_bytes(damaged)
            assert read(small.parent) == ALL


def test_without_a_seal_only_the_last_group_may_be_torn(small: Path) -> None:
    spans = frames(small.read_bytes())
    data = small.read_bytes()[: spans[-1][0]]
    for byte in range(SEGMENT_HEADER_BYTES, len(data)):
        for damaged in flipped(data, byte):
            small.write_bytes(damaged)
            if byte >= spans[2][0]:
                assert read(small.parent) == [1, 2, 3]
            else:
                with pytest.raises(JournalDamaged):
                    read(small.parent)


def test_bytes_missing_before_an_acknowledged_frame_are_damage(small: Path) -> None:
    data = small.read_bytes()
    begin, end = frames(data)[2]
    for cut in range(begin, end):
        small.write_bytes(data[:cut] + data[end:])
        if cut == begin:
            continue  # a whole frame that is gone leaves no trace
        with pytest.raises(JournalDamaged):
            read(small.parent)


def test_a_damaged_end_of_an_earlier_segment_is_damage(small: Path) -> None:
    written = Written(small.parent)
    written.journal.close()
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(JournalDamaged, match=small.name):
        read(small.parent)


def test_no_payload_can_look_like_a_frame(tmp_path: Path) -> None:
    # Given a last group whose payload is a whole earlier journal, frames and all
    other = tmp_path / "other"
    other.mkdir()
    copied = Written(other)
    copied.write(record(1))
    copied.write(record(2))
    copied.journal.close()
    inner = b"".join(path.read_bytes() for path in files(other))
    directory = tmp_path / "journal"
    directory.mkdir()
    written = Written(directory)
    written.write(record(1))
    written.write(entries.encode(entries.ASSIGNED, 1, 1, 2, inner))
    written.journal.close()
    (path,) = files(directory)
    data = path.read_bytes()
    begin, end = frames(data)[1]
    # When it is torn, then what it holds is not taken for frames
    for length in (end - 1, begin + FRAME_HEADER.size + 10, begin + 30):
        path.write_bytes(data[:length])
        assert read(directory) == [1]


def test_salvage_passes_over_what_is_damaged_and_says_how_much_that_was(small: Path) -> None:
    data = small.read_bytes()
    spans = frames(data)
    kept = [[2, 3, 4], [1, 4], [1, 2, 3]]
    for (begin, end), numbers in zip(spans[:3], kept, strict=True):
        for byte in range(begin, end):
            small.write_bytes(next(flipped(data, byte)))
            replay = Replay()
            assert read(small.parent, replay, salvage=True) == numbers
            assert replay.skipped_bytes == end - begin
            assert replay.torn_bytes == 0


def test_salvage_passes_over_a_segment_whose_header_is_damaged(small: Path) -> None:
    written = Written(small.parent)
    written.write(record(5))
    written.journal.close()
    data = small.read_bytes()
    for byte in range(SEGMENT_HEADER_BYTES):
        small.write_bytes(next(flipped(data, byte)))
        with pytest.raises(JournalDamaged):
            read(small.parent)
        replay = Replay()
        assert read(small.parent, replay, salvage=True) == [5]
        assert replay.skipped_bytes == len(data)


# ---- whole segments


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Four segments with one entry each."""
    for number in range(1, 5):
        written = Written(tmp_path)
        written.write(record(number))
        written.journal.close()
    return tmp_path


@pytest.mark.parametrize("missing", [2, 3])
def test_a_segment_that_is_missing_in_the_middle_is_damage(several: Path, missing: int) -> None:
    path = files(several)[missing - 1]
    path.unlink()
    with pytest.raises(JournalDamaged, match=f"{path.name}.*missing"):
        read(several)
    assert read(several, salvage=True) == [number for number in ALL if number != missing]


@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_segments_that_are_gone_from_the_front_were_dropped_by_a_checkpoint(
    several: Path, dropped: int
) -> None:
    for path in files(several)[:dropped]:
        path.unlink()
    assert read(several) == ALL[dropped:]


def test_a_segment_under_another_s_name_is_damage(several: Path) -> None:
    first, second = files(several)[:2]
    first.replace(second)
    with pytest.raises(JournalDamaged, match=second.name):
        read(several)


def test_a_segment_of_another_directory_is_refused_by_name(several: Path) -> None:
    with pytest.raises(DirectoryError, match="belongs to another data directory"):
        list(read_journal(several, UUID(int=8), Replay()))
    assert read(several) == ALL


def test_other_files_are_left_alone(several: Path) -> None:
    for name in ("notes.txt", "x.segment", ".segment"):
        (several / name).write_bytes(b"whatever")
    assert read(several) == ALL


# ---- rotation and space


def sizes(directory: Path) -> int:
    return sum(path.stat().st_size for path in files(directory))


def test_a_full_segment_is_left_for_the_next(tmp_path: Path) -> None:
    written = Written(tmp_path, segment_bytes=1000)
    for number in range(20):
        written.write(record(number, 300))
    written.journal.close()
    assert len(files(tmp_path)) > 5
    assert max(path.stat().st_size for path in files(tmp_path)) < 1000 + 400
    assert read(tmp_path) == list(range(20))
    assert written.journal.total_bytes == sizes(tmp_path)


def test_a_group_may_be_larger_than_a_segment(tmp_path: Path) -> None:
    written = Written(tmp_path, segment_bytes=1000)
    written.write(*[record(number, 300) for number in range(20)])
    written.write(record(20))
    written.journal.close()
    assert read(tmp_path) == list(range(21))


def test_rotating_tells_the_new_segment_behind_what_was_appended(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.journal.append(1, [record(1)])
    written.journal.rotate()
    written.journal.append(2, [record(2)])
    assert [written.told() for _ in range(3)] == [("committed", 1), ("rotated", 2), ("committed", 2)]
    written.journal.close()
    files(tmp_path)[0].unlink()
    assert read(tmp_path) == [2]


def test_what_a_checkpoint_has_replaced_is_given_back(tmp_path: Path) -> None:
    written = Written(tmp_path, segment_bytes=500)
    for number in range(10):
        written.write(record(number, 300))
    written.journal.rotate()
    kind, segment = written.told()
    assert kind == "rotated"
    written.write(record(10))
    assert written.journal.bytes_from(1) == written.journal.total_bytes
    kept = written.journal.bytes_from(segment)
    assert kept < 300
    written.journal.drop_before(segment)
    written.write(record(11))
    written.journal.close()
    assert [path.name for path in files(tmp_path)] == [f"{segment:012d}.segment"]
    assert written.journal.total_bytes == written.journal.bytes_from(segment) == sizes(tmp_path)
    assert read(tmp_path) == [10, 11]


def test_the_bytes_of_earlier_starts_are_counted(several: Path) -> None:
    before = sizes(several)
    written = Written(several)
    assert written.journal.total_bytes == before + SEGMENT_HEADER_BYTES
    written.journal.drop_before(5)
    written.write(record(5))
    written.journal.close()
    assert written.journal.total_bytes == sizes(several)
    assert read(several) == [5]


# ---- a disk that does not take it

# In a process of its own, whose files may not grow beyond a limit: the kernel refuses, as on a full disk.
FULL_DISK = """
import json, sys
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, setrlimit
from tests.server.test_journal_file import Written, read, record

directory = Path(sys.argv[1])
written = Written(directory, segment_bytes=int(sys.argv[2]))
journal = written.journal
told = []

def limit(file_bytes):
    setrlimit(RLIMIT_FSIZE, (file_bytes, RLIM_INFINITY))

def tell(expected=1):
    told.extend(written.told() for _ in range(expected))

{steps}
journal.close()
print(json.dumps([told, read(directory)]))
"""


def on_a_full_disk(directory: Path, steps: str, segment_bytes: int = 1 << 20) -> tuple[list[Any], list[int]]:
    """What a journal told, and what it holds in the end."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK.replace("{steps}", steps), str(directory), str(segment_bytes)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, numbers = json.loads(done.stdout)
    return [tuple(event) for event in told], numbers


REASON = "the journal cannot be written: File too large"


def test_a_group_that_does_not_fit_fails_with_all_behind_it_until_it_is_told_to_try_again(
    tmp_path: Path,
) -> None:
    told, numbers = on_a_full_disk(
        tmp_path,
        """
limit(4096)
journal.append(1, [record(1)]); tell()
journal.append(2, [record(2, 8000)]); tell()
journal.append(3, [record(3)]); tell()
limit(-1)
journal.append(4, [record(4)]); tell()
journal.recover([record(100)]); tell()
journal.append(5, [record(5, 8000)]); tell()
""",
    )
    assert told == [
        ("committed", 1),
        ("failed", 2, REASON, True),
        ("failed", 3, REASON, True),
        ("failed", 4, REASON, True),
        ("committed", 0),
        ("committed", 5),
    ]
    # Nothing of what failed is there, and what was owed comes before the rest
    assert numbers == [1, 100, 5]


def test_what_is_owed_is_kept_while_trying_again_fails(tmp_path: Path) -> None:
    told, numbers = on_a_full_disk(
        tmp_path,
        """
limit(4096)
journal.append(1, [record(1)]); tell()
journal.append(2, [record(2, 8000)]); tell()
journal.recover([record(100, 5000)]); tell()
journal.recover([record(101)]); tell()
journal.recover([]); tell()
limit(-1)
journal.recover([record(102)]); tell()
journal.append(3, [record(3)]); tell()
""",
    )
    assert told == [
        ("committed", 1),
        ("failed", 2, REASON, True),
        *[("failed", 0, REASON, True)] * 3,
        ("committed", 0),
        ("committed", 3),
    ]
    assert numbers == [1, 100, 101, 102, 3]


def test_trying_again_with_nothing_owed_succeeds_only_when_the_disk_takes_it(tmp_path: Path) -> None:
    told, numbers = on_a_full_disk(
        tmp_path,
        """
limit(4096)
journal.append(1, [record(1)]); tell()
journal.append(2, [record(2, 8000)]); tell()
limit(0)
journal.recover([]); tell()
limit(-1)
journal.recover([]); tell()
journal.append(3, [record(3)]); tell()
""",
    )
    assert [event[:2] for event in told] == [
        ("committed", 1),
        ("failed", 2),
        ("failed", 0),
        ("committed", 0),
        ("committed", 3),
    ]
    assert numbers == [1, 3]


def test_a_kill_after_a_failed_write_loses_nothing_of_what_was_acknowledged(tmp_path: Path) -> None:
    _, numbers = on_a_full_disk(
        tmp_path,
        """
limit(4096)
journal.append(1, [record(1)]); tell()
journal.append(2, [record(2, 8000)]); tell()
print(json.dumps([told, read(directory)]), flush=True)
import os
os._exit(0)
""",
    )
    assert numbers == [1]
    assert read(tmp_path) == [1]


def test_what_is_on_disk_is_committed_also_when_no_further_segment_can_be_begun(tmp_path: Path) -> None:
    told, numbers = on_a_full_disk(
        tmp_path,
        """
import os
(directory / "000000000002.segment").mkdir()  # stands in the way
journal.append(1, [record(1, 600)]); tell(2)
journal.append(2, [record(2)]); tell()
(directory / "000000000002.segment").rmdir()
journal.recover([]); tell()
journal.append(3, [record(3)]); tell()
""",
        segment_bytes=500,
    )
    assert told[0] == ("committed", 1)
    assert [event[:2] for event in told[1:]] == [
        ("failed", 0),
        ("failed", 2),
        ("committed", 0),
        ("committed", 3),
    ]
    assert numbers == [1, 3]


def test_a_rotation_that_fails_is_told(tmp_path: Path) -> None:
    told, numbers = on_a_full_disk(
        tmp_path,
        """
journal.append(1, [record(1)]); tell()
limit(0)
journal.rotate(); tell()
limit(-1)
journal.recover([]); tell()
journal.rotate(); tell()
journal.append(2, [record(2)]); tell()
""",
    )
    assert [event[0] for event in told] == ["committed", "failed", "committed", "rotated", "committed"]
    assert numbers == [1, 2]


# ---- without fsync


def test_with_durability_os_what_cannot_be_read_at_the_end_is_torn(tmp_path: Path) -> None:
    written = Written(tmp_path, durability="os")
    for number in ALL:
        written.write(record(number))
    written.journal.close()
    (path,) = files(tmp_path)
    data = path.read_bytes()
    assert read(tmp_path) == ALL
    path.write_bytes(data[:-1])
    assert read(tmp_path) == ALL[:3]
