"""The journal: an append-only file of entries, in segments.

    segment   header (48 bytes), then frames
    frame     header (28 bytes), then the entries of one or more groups; one write, one fsync

    segment header  magic "GEARFLT1" (8), number (8), identity (16), nonce (8), reserved (4), CRC-32 (4)
    frame header    magic "GFRM" (4), length (4), number (8), flags (1), reserved (7), CRC-32 (4)

The checksum of a frame's header begins with the segment's nonce, so that no payload can look like one.

Torn or damaged? A frame is written only when the one before it has been fsynced, and says so in its
flags. So what cannot be read is torn, and was never acknowledged, if and only if no later frame claims
that it was fsynced. A torn tail is cut and reported. Damage before such a frame stops the start: what
it held had been acknowledged. So that the last acknowledged frame has a successor too, an idle journal is
sealed with an empty frame within SEAL_SECONDS.

One thread writes; it takes all groups that have come since its last fsync at once. The loop never waits
for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from struct import Struct
from typing import Any, Final, Literal
from uuid import UUID
from zlib import crc32

from cluster.replication import entries
from cluster.server.directory import sync_directory
from cluster.server.errors import DirectoryError, JournalDamaged
from cluster.server.status import JournalStatus, Latency
from cluster.server.whereabouts import Whereabouts

SEGMENT_MAGIC: Final = b"GEARFLT1"
FRAME_MAGIC: Final = b"GFRM"
SEAL_SECONDS: Final = 0.05
ROOM_BYTES_MIN: Final = 1024 * 1024  # that a disk which was full must have, before jobs are accepted again
ROOM_NAME: Final = "room"  # of the file that tries it
_SEGMENT: Final = Struct(">8sQ16s8s4xI")
_FRAME: Final = Struct(">4sIQB7xI")
_EARLIER_SYNCED: Final = 1
FRAME_BYTES_MAX: Final = 1 << 30
_SUFFIX: Final = ".segment"

Durability = Literal["fsync", "os"]
Decode = Callable[[bytes, int], tuple[entries.Entry, int]]
_Item = tuple[str, int, list[bytes]]  # command, number of a group or segment, entries


@dataclass(slots=True)
class Replay:
    """What reading the journal found, filled while it is read."""

    segments: int = 0
    bytes_read: int = 0
    entries_read: int = 0
    torn_bytes: int = 0
    torn_segment: str = ""
    skipped_bytes: int = 0  # damage that `salvage` passed over


def _segment_name(number: int) -> str:
    return f"{number:012d}{_SUFFIX}"


def _segments(directory: Path) -> list[tuple[int, Path]]:
    return sorted(
        (int(path.name.removesuffix(_SUFFIX)), path)
        for path in directory.iterdir()
        if path.name.endswith(_SUFFIX) and path.name.removesuffix(_SUFFIX).isdigit()
    )


class _Reader:
    """One segment, read whole."""

    def __init__(self, path: Path, number: int, identity: UUID) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.whole_header = False
        self.seed = 0
        if len(self.data) < _SEGMENT.size:
            return
        magic, found, owner, nonce, crc = _SEGMENT.unpack_from(self.data)
        if magic != SEGMENT_MAGIC or crc32(self.data[: _SEGMENT.size - 4]) != crc or found != number:
            return
        if owner != identity.bytes:
            raise DirectoryError(
                f"{path} belongs to another data directory ({UUID(bytes=owner)}, this one is {identity}): "
                "put it back where it came from"
            )
        self.whole_header = True
        self.seed = crc32(nonce)

    def frame(self, offset: int) -> tuple[int, int, int] | None:
        """(length, number, flags) of the frame at an offset; None when there is none."""
        data = self.data
        if offset + _FRAME.size > len(data):
            return None
        magic, length, number, flags, crc = _FRAME.unpack_from(data, offset)
        if magic != FRAME_MAGIC or crc32(data[offset : offset + _FRAME.size - 4], self.seed) != crc:
            return None
        return length, number, flags

    def next_frame(self, offset: int) -> int:
        """The offset of the next readable frame header from an offset on, or -1."""
        while True:
            offset = self.data.find(FRAME_MAGIC, offset)
            if offset < 0 or self.frame(offset) is not None:
                return offset
            offset += 1


def read_journal(
    directory: Path,
    identity: UUID,
    replay: Replay,
    *,
    salvage: bool = False,
    decode: Decode = entries.decode,
) -> Iterator[entries.Entry]:
    """All entries in order. Cuts a torn tail from the files; raises JournalDamaged, DirectoryError.

    With `salvage` damaged frames are passed over and counted instead. `decode` may be entries.decode_raw.
    """
    found = _segments(directory)
    for position, (number, path) in enumerate(found):
        # Checkpoints drop segments from the front only.
        before = found[position - 1][0] if position else number - 1
        if number != before + 1 and not salvage:
            missing = directory / _segment_name(before + 1)
            raise _damaged(missing, 0, f"it is missing, although {path.name} is there")
        reader = _Reader(path, number, identity)
        replay.segments += 1
        replay.bytes_read += len(reader.data)
        last = position == len(found) - 1
        if not reader.whole_header:
            if last and len(reader.data) <= _SEGMENT.size:
                # Died while the segment was begun; nothing in it can have been acknowledged.
                replay.torn_bytes += len(reader.data)
                replay.torn_segment = path.name
                path.unlink()
                continue
            if not salvage:
                raise _damaged(path, 0, "its header cannot be read")
            replay.skipped_bytes += len(reader.data)
            continue
        yield from _read_segment(reader, last, replay, salvage, decode)


def _damaged(path: Path, offset: int, what: str) -> JournalDamaged:
    return JournalDamaged(
        f"the journal is damaged: {path} at byte {offset}: {what}, and this had been acknowledged. "
        "Restore the data directory from a copy; or start once with --salvage, which passes over what "
        "cannot be read and says how much that was"
    )


def _read_segment(
    reader: _Reader, last: bool, replay: Replay, salvage: bool, decode: Decode
) -> Iterator[entries.Entry]:
    offset = _SEGMENT.size
    end = len(reader.data)
    while offset < end:
        fault = ""
        batch: list[entries.Entry] = []
        frame = reader.frame(offset)
        frame_end = end
        if frame is None:
            fault = "no frame begins here"
        else:
            frame_end = offset + _FRAME.size + frame[0]
            if frame_end > end:
                fault = "a frame is cut short"
            else:
                try:
                    at = offset + _FRAME.size
                    view = reader.data
                    while at < frame_end:
                        entry, at = decode(view, at)
                        batch.append(entry)
                except entries.DamagedEntry as error:
                    fault = f"an entry {error}"
        if not fault:
            replay.entries_read += len(batch)
            yield from batch
            offset = frame_end
            continue
        following = reader.next_frame(offset + 1)
        acknowledged = not last
        at = following
        while at >= 0 and not acknowledged:
            header = reader.frame(at)
            assert header is not None
            acknowledged = bool(header[2] & _EARLIER_SYNCED)
            at = reader.next_frame(at + 1)
        if not acknowledged:
            replay.torn_bytes += end - offset
            replay.torn_segment = reader.path.name
            with reader.path.open("r+b") as file:
                file.truncate(offset)
                os.fsync(file.fileno())
            return
        if not salvage:
            raise _damaged(reader.path, offset, fault)
        skipped_to = following if following >= 0 else end
        replay.skipped_bytes += skipped_to - offset
        offset = skipped_to


class Journal:
    """The open journal. `append`, `rotate` and `drop_before` are for the loop; the rest is the thread."""

    def __init__(
        self,
        directory: Path,
        identity: UUID,
        *,
        durability: Durability,
        segment_bytes: int,
        call_soon: Callable[..., Any],
        on_committed: Callable[[int], None],
        on_failed: Callable[[int, str, bool], None],
        on_rotated: Callable[[int], None],
        whereabouts: Whereabouts | None = None,
    ) -> None:
        """`on_committed(group)`, `on_failed(group, reason, may_recover)` and `on_rotated(segment)` are
        called through `call_soon`, from the loop. `whereabouts` tells what becomes of the files meanwhile.
        Raises OSError when no segment can be begun."""
        self._directory = directory
        self._identity = identity
        self._sync = durability == "fsync"
        self._segment_bytes = segment_bytes
        self._call_soon = call_soon
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._on_rotated = on_rotated
        self._whereabouts = whereabouts
        self._looking = False  # the thread has been asked to, and has not answered
        self.remedy = ""  # of the failure, where it is not the usual one
        self.lost = ""  # why the next start would not find what was written
        self._on_stopped: Callable[[], None] | None = None
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._descriptor = -1
        self._seed = 0
        self._frame_number = 0
        self._offset = 0
        self._failed = False
        self._broken = False
        self._reason = ""
        self._room_bytes = 0  # that a disk which was full must have before it is tried again
        self._owed: list[bytes] = []  # handed to `recover`, not written yet
        self._sealed = True
        existing = _segments(directory)
        if self._sync:
            # What was read may be in the page cache only, if the last process was killed before its fsync;
            # promises are about to be built on it.
            for _, path in existing:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sync_directory(directory)
        self._sizes: dict[int, int] = {number: path.stat().st_size for number, path in existing}
        self._segment_number = existing[-1][0] if existing else 0
        self.total_bytes = sum(self._sizes.values())
        self.written_bytes = 0  # since the start, for whoever watches
        self.frames_written = 0
        self._write_began = 0.0  # monotonic; 0 = no write is under way
        self._fsync_latency = Latency()
        self._begin_segment()
        self._begin_thread()

    # ---- for the loop

    def append(self, group_number: int, records: list[bytes]) -> None:
        """Write a group; `on_committed` or `on_failed` follows. An empty one is committed in its turn."""
        self._queue.put(("group", group_number, records))

    def rotate(self) -> None:
        """Begin a new segment behind what has been appended; `on_rotated` tells its number."""
        self._queue.put(("rotate", 0, []))

    def drop_before(self, segment_number: int) -> None:
        """Remove all earlier segments: a checkpoint has replaced them."""
        self._queue.put(("drop", segment_number, []))

    def bytes_from(self, segment_number: int) -> int:
        """Size of this segment and all later ones."""
        return sum(size for number, size in list(self._sizes.items()) if number >= segment_number)

    def recover(self, records: list[bytes]) -> None:
        """After `on_failed` with `may_recover`: try to write again, these entries first."""
        self._queue.put(("recover", 0, records))

    def look(self) -> None:
        """See whether the files are where they were; `on_failed` when not. While the disk hangs, once."""
        if not self._looking:
            self._looking = True
            self._queue.put(("look", 0, []))

    def status(self) -> JournalStatus:
        """The files, and how the disk does; from any thread."""
        began = self._write_began
        return JournalStatus(
            size_bytes=self.total_bytes,
            written_bytes=self.written_bytes,
            frames_written=self.frames_written,
            write_pending_seconds=time.monotonic() - began if began else 0.0,
            fsync=self._fsync_latency.read(),
            free_bytes=None if self._whereabouts is None else self._whereabouts.free_bytes,
        )

    def stop(self, on_stopped: Callable[[], None]) -> None:
        """Write what was appended, then end the thread; `on_stopped` is called from the loop."""
        self._on_stopped = on_stopped
        self._queue.put(("stop", 0, []))

    @property
    def owed(self) -> list[bytes]:
        """Entries that `recover` was given and that could not be written; once the thread has ended."""
        return self._owed

    def close(self) -> None:
        """The same, and wait for it: blocks for one write and fsync."""
        self._queue.put(("stop", 0, []))
        self._thread.join()

    # ---- the thread

    def _begin_thread(self) -> None:
        self._thread = threading.Thread(target=self._run_to_the_end, name="journal", daemon=True)
        self._thread.start()

    def _run_to_the_end(self) -> None:
        """Whatever goes wrong is told: nobody may wait for a thread that is dead."""
        try:
            self._run()
        except Exception as error:
            self._failed = self._broken = self._sealed = True
            self._reason = f"the journal failed, which is a defect ({type(error).__name__}: {error})"
            self._call_soon(self._on_failed, 0, self._reason, False)
            while True:
                command, number, _ = self._queue.get()
                if command == "group":
                    self._call_soon(self._on_failed, number, self._reason, False)
                elif command == "stop":
                    if self._on_stopped is not None:
                        self._call_soon(self._on_stopped)
                    return

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=None if self._sealed else SEAL_SECONDS)
            except Empty:
                self._seal()
                continue
            if not self._work(item):
                return

    def _work(self, item: _Item | None) -> bool:
        """This one, and all groups that have come with it; false when it was told to stop."""
        batch: list[bytes] = []
        first_group = last_group = 0
        recovering = False
        while item is not None:
            command, number, records = item
            if command == "group":
                first_group = first_group or number
                last_group = number
                batch += records
            elif command != "recover":
                break
            else:
                if last_group and self._failed:
                    # These came before: whoever sent them has given them up.
                    self._write_groups(first_group, last_group, batch)
                    batch = []
                    first_group = last_group = 0
                self._owed += records
                if not self._broken:
                    if self._are_there() and self._has_room():
                        self._failed = False
                        recovering = True
                    else:
                        self._call_soon(self._on_failed, 0, self._reason, not self._broken)
            try:
                item = self._queue.get_nowait()
            except Empty:
                item = None
        if last_group or (not self._failed and (item is None or self._owed)):
            self._write_groups(first_group, last_group, batch, probe=recovering)
        if item is None:
            return True
        command, number, _ = item
        if command == "rotate":
            self._rotate()
        elif command == "drop":
            self._drop(number)
        elif command == "look":
            if not self._failed and not self._are_there():
                self._call_soon(self._on_failed, 0, self._reason, not self._broken)
            self._looking = False
        elif command == "stop":
            self._are_there()  # what has happened since it was looked at last is not to be missed
            if not self._sealed:
                self._seal()
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            if self._on_stopped is not None:
                self._call_soon(self._on_stopped)
            return False
        return True

    def _write_groups(
        self, first_group: int, last_group: int, batch: list[bytes], *, probe: bool = False
    ) -> None:
        """`probe` writes even if there is nothing to write: only that shows that the disk takes it."""
        if self._failed:
            self._call_soon(self._on_failed, first_group, self._reason, not self._broken)
            return
        try:
            if batch or self._owed or probe:
                self._write_frame(b"".join(self._owed + batch))
                self._owed.clear()
                self._sealed = not self._sync
        except OSError as error:
            self._fail(error, sum(map(len, self._owed)) + sum(map(len, batch)))
            self._call_soon(self._on_failed, first_group, self._reason, not self._broken)
            return
        self._call_soon(self._on_committed, last_group)
        if self._offset >= self._segment_bytes:
            try:
                self._begin_segment()
            except OSError as error:
                # What has been written counts all the same.
                self._fail(error)
                self._call_soon(self._on_failed, 0, self._reason, not self._broken)

    def _write_frame(self, data: bytes) -> None:
        self._frame_number += 1
        header = _FRAME.pack(
            FRAME_MAGIC, len(data), self._frame_number, _EARLIER_SYNCED if self._sync else 0, 0
        )[:-4]
        frame = memoryview(header + crc32(header, self._seed).to_bytes(4, "big") + data)
        written = 0
        self._write_began = time.monotonic()
        try:
            while written < len(frame):
                written += os.pwrite(self._descriptor, frame[written:], self._offset + written)
            if self._sync:
                self._fdatasync()
        finally:
            self._write_began = 0.0
        self._offset += written
        self._sizes[self._segment_number] = self._offset
        self.total_bytes += written
        self.written_bytes += written
        self.frames_written += 1

    def _fdatasync(self) -> None:
        began = time.monotonic()
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            # What the kernel did with the pages is unknown: nothing may be built on this file.
            self._broken = True
            raise
        self._fsync_latency.observe(time.monotonic() - began)

    def _are_there(self) -> bool:
        """Whether the files are where they were; else the journal has failed."""
        if self._whereabouts is None:
            return True
        segments = {self._directory / _segment_name(number) for number in self._sizes}
        fault = self._whereabouts.fault(segments, self._descriptor)
        if fault is None:
            self.remedy = self.lost = ""
            return True
        self._failed = self._sealed = True
        self.lost = "" if fault.keeps_jobs else fault.reason
        self._broken = self._broken or not fault.may_recover
        self._reason, self.remedy = fault.reason, fault.remedy
        return False

    def _seal(self) -> None:
        """An empty frame says that the one before it was fsynced."""
        self._sealed = True
        if self._failed:
            return
        try:
            self._write_frame(b"")
        except OSError as error:
            self._fail(error)
            self._call_soon(self._on_failed, 0, self._reason, not self._broken)

    def _has_room(self) -> bool:
        """Whether a disk that was full has room again, not for the next entry only: while other programs fill
        what is left, jobs would be accepted and refused each second. Taken for real, because quotas are in no
        figure of the file system."""
        if not self._room_bytes:
            return True
        path = self._directory / ROOM_NAME
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(descriptor, 0, self._room_bytes)
            finally:
                os.close(descriptor)
                path.unlink(missing_ok=True)
        except OSError:
            return False
        self._room_bytes = 0
        return True

    def _fail(self, error: OSError, size_bytes: int = 0) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._room_bytes = max(ROOM_BYTES_MIN, 2 * size_bytes)
        self._failed = True
        self._sealed = True
        what = error.strerror or str(error)
        if not self._broken:
            try:
                # Nothing of the failed write may be taken for a frame later.
                os.ftruncate(self._descriptor, self._offset)
            except OSError:
                self._broken = True
        self._reason = f"the journal cannot be written: {what}"
        self._are_there()  # if not, that is what there is to say

    def _begin_segment(self) -> None:
        """Create the next segment, durable with its name, then leave the old one."""
        number = self._segment_number + 1
        nonce = secrets.token_bytes(8)
        header = _SEGMENT.pack(SEGMENT_MAGIC, number, self._identity.bytes, nonce, 0)[:-4]
        header += crc32(header).to_bytes(4, "big")
        path = self._directory / _segment_name(number)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            if os.pwrite(descriptor, header, 0) != len(header):
                raise OSError(28, os.strerror(28))
            if self._sync:
                os.fsync(descriptor)
                sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._segment_number = number
        self._offset = len(header)
        self._sizes[number] = self._offset
        self.total_bytes += self._offset
        self._seed = crc32(nonce)

    def _rotate(self) -> None:
        if not self._failed:
            try:
                self._begin_segment()
            except OSError as error:
                self._fail(error)
                self._call_soon(self._on_failed, 0, self._reason, not self._broken)
                return
            self._call_soon(self._on_rotated, self._segment_number)

    def _drop(self, segment_number: int) -> None:
        # The oldest first, each durably: what a crash or an error leaves must have no gap.
        with contextlib.suppress(OSError):
            for number in sorted(number for number in self._sizes if number < segment_number):
                (self._directory / _segment_name(number)).unlink(missing_ok=True)
                self.total_bytes -= self._sizes.pop(number)
                if self._sync:
                    sync_directory(self._directory)
