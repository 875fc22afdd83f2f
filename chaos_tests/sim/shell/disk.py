"""Disks with a page cache, and what stands for `os`, `fcntl` and `Path` above them.

What is written is in the page cache: it outlives a killed process, not the loss of power. Then of all
writes since the last fsync of a file each may be there, or not, or in part, or as a hole of zeros; and of the
changes of names since the last fsync of their directory some may be missing. That is what POSIX permits, and
a little more than what common file systems do.

Faults: `full` (ENOSPC, perhaps after a part of the write), `fsync_fails` (EIO: what was written since the
last fsync never reaches the disk, although reads show it until the cache is dropped), `fsync_seconds` (how
long a thread is at it), `rot` (flips bits in what was fsynced).

A process can die in the middle of an operation: `Process.disk_operations_left` counts them.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from io import BytesIO
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, Protocol

from chaos_tests.sim.shell.kernel import Killed
from cluster.server.journal import SEAL_SECONDS, Journal

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import Event, Process, World

THREAD_SECONDS_MIN: Final = 0.0001
THREAD_SECONDS_MAX: Final = 0.0015
DIE_IN_THREAD_SHARE: Final = 0.5  # of a process's threads that die while they work, not before


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class File:
    """What a name leads to."""

    def __init__(self) -> None:
        self.data = bytearray()  # as reads show it
        self.synced = b""  # as of the last fsync
        # Since then: (offset, what was written), or (size, None) for a truncation.
        self.pending: list[tuple[int, bytes | None]] = []

    def written(self) -> bytes:
        """What is on the disk when all that is pending has been written. It is not `data` after an fsync
        that failed: what the cache then shows is nobody's any more."""
        data = bytearray(self.synced)
        for offset, written in self.pending:
            if written is None:
                _resize(data, offset)
            else:
                if len(data) < offset:
                    data.extend(bytes(offset - len(data)))
                data[offset : offset + len(written)] = written
        return bytes(data)


class Directory:
    """Names."""

    def __init__(self) -> None:
        self.entries: dict[str, File | Directory] = {}
        self.synced: dict[str, File | Directory] = {}
        self.pending: list[dict[str, File | Directory | None]] = []  # changes; None is a name that went

    def change(self, **names: File | Directory | None) -> None:
        self.pending.append(names)
        _apply(self.entries, names)


def _apply(entries: dict[str, Any], names: dict[str, Any]) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Disk:
    """A host's disk."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dice = world.dice_for(f"disk {name}")
        self.root = Directory()
        self.full = False
        self.fsync_fails = 0  # how many of the next ones
        self.on_failed_fsync: Callable[[File | Directory], object] = lambda node: None
        self.fsync_seconds = 0.0  # more than usual, while it is slow
        self.locks: dict[File, Process] = {}
        self.open_files: dict[int, tuple[Process | None, File | Directory]] = {}
        self.operations = 0

    # ---- threads that use it

    def thread_seconds(self) -> float:
        """How long a thread takes for a write and an fsync."""
        seconds = self.dice.uniform(THREAD_SECONDS_MIN, THREAD_SECONDS_MAX)
        if self.fsync_seconds:
            seconds += self.dice.random() * self.fsync_seconds
        return seconds

    def in_thread(self, process: Process, act: Callable[[], object]) -> None:
        """A thread of a process does something: one event, at the end of the time that it takes. If the
        process dies before, it may have died in the middle of it."""

        def work() -> None:
            process.at_death.remove(die)
            act()

        def die() -> None:
            if self.dice.random() < DIE_IN_THREAD_SHARE:
                self.die_in(process, act)

        process.at_death.append(die)
        self.world.after(self.thread_seconds(), process.post, work)

    def die_in(self, process: Process, act: Callable[[], object]) -> None:
        """Do some of it, up to an operation that the dice choose."""
        process.disk_operations_left = self.dice.randrange(4)
        before, self.world.current = self.world.current, process
        try:
            act()
        except Killed:
            pass
        finally:
            self.world.current = before

    # ---- operations

    def operate(self, *, writes: bool = False) -> None:
        """Before each one. Raises Killed when the process dies in front of it, OSError without room."""
        self.operations += 1
        process = self.world.current
        if process is not None:
            if process.disk_operations_left == 0 or not process.alive:
                raise Killed
            if process.disk_operations_left > 0:
                process.disk_operations_left -= 1
        if writes and self.full:
            raise _error(errno.ENOSPC)

    def write(self, file: File, offset: int, data: bytes) -> int:
        if self.full and len(data) > 1 and self.dice.random() < 0.5:
            data = data[: self.dice.randrange(1, len(data))]
            self.full = False
            try:
                self.write(file, offset, data)
            finally:
                self.full = True
            return len(data)
        self.operate(writes=bool(data))
        end = offset + len(data)
        if len(file.data) < offset:
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset:end] = data
        file.pending.append((offset, bytes(data)))
        return len(data)

    def truncate(self, file: File, size: int) -> None:
        self.operate()
        _resize(file.data, size)
        file.pending.append((size, None))

    def fsync(self, node: File | Directory) -> None:
        self.operate()
        if self.fsync_fails > 0:
            self.fsync_fails -= 1
            if isinstance(node, File):
                node.synced = self._part_of(node)
                node.pending.clear()
            self.on_failed_fsync(node)
            raise _error(errno.EIO)
        if isinstance(node, File):
            node.synced = node.written()
        else:
            node.synced = dict(node.entries)
        node.pending.clear()

    def find(self, path: SimPath) -> File | Directory:
        node: File | Directory = self.root
        for part in path.parts:
            if not isinstance(node, Directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            found = node.entries.get(part)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = found
        return node

    def directory_of(self, path: SimPath) -> Directory:
        node = self.find(path.parent)
        assert isinstance(node, Directory)
        return node

    def open(self, path: SimPath, flags: int) -> int:
        self.operate()
        try:
            node = self.find(path)
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            self.operate(writes=True)
            node = File()
            self.directory_of(path).change(**{path.name: node})
        number = self.world.number()
        self.open_files[number] = (self.world.current, node)
        return number

    def close(self, descriptor: int) -> None:
        found = self.open_files.pop(descriptor, None)
        if found is None:
            raise _error(errno.EBADF)
        process, node = found
        if isinstance(node, File) and self.locks.get(node) is process:
            del self.locks[node]

    def node(self, descriptor: int) -> Any:
        found = self.open_files.get(descriptor)
        if found is None:
            raise _error(errno.EBADF)
        return found[1]

    # ---- what happens to it

    def process_died(self, process: Process) -> None:
        for number, (owner, _) in list(self.open_files.items()):
            if owner is process:
                self.close(number)

    def lose_power(self) -> None:
        """Nothing has it open any more, and only what was fsynced is sure to be there."""
        self.open_files.clear()
        self.locks.clear()
        self._settle(self.root)

    def _settle(self, directory: Directory) -> None:
        names = dict(directory.synced)
        ordered = self.dice.random() < 0.7  # as journalling file systems keep them
        kept = self.dice.randint(0, len(directory.pending))
        for number, change in enumerate(directory.pending):
            if number < kept if ordered else self.dice.random() < 0.5:
                _apply(names, change)
        directory.entries = names
        directory.synced = dict(names)
        directory.pending.clear()
        for node in names.values():
            if isinstance(node, Directory):
                self._settle(node)
            else:
                node.synced = self._part_of(node)
                node.data = bytearray(node.synced)
                node.pending.clear()

    def _part_of(self, file: File) -> bytes:
        """What of a file is on the disk, if power goes now."""
        if not file.pending:
            return file.synced
        data = bytearray(file.synced)
        for offset, written in file.pending:
            fate = self.dice.random()
            if written is None:
                if fate < 0.5:
                    _resize(data, offset)
                continue
            if fate < 0.3:
                continue
            if fate < 0.6:
                written = written[: self.dice.randint(0, len(written))]
            elif fate < 0.7:
                written = bytes(len(written))  # its size is there, its content is not
            elif fate < 0.8:
                cut = self.dice.randint(0, len(written))
                written = bytes(cut) + written[cut:]
            if len(data) < offset:
                data.extend(bytes(offset - len(data)))
            data[offset : offset + len(written)] = written
        return bytes(data)

    def rot(self, file: File, offset: int) -> None:
        """One bit of what was fsynced is another one, in the cache too."""
        bit = 1 << self.dice.randrange(8)
        synced = bytearray(file.synced)
        synced[offset] ^= bit
        file.synced = bytes(synced)
        file.data[offset] = synced[offset]

    def files(self, directory: Directory | None = None, prefix: str = "") -> Iterator[tuple[str, File]]:
        """All of them, by path."""
        for name, node in (directory or self.root).entries.items():
            if isinstance(node, File):
                yield prefix + name, node
            else:
                yield from self.files(node, f"{prefix}{name}/")


def _resize(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


class SimPath:
    """Stands for pathlib.Path on a host's disk."""

    __slots__ = ("disk", "parts")

    def __init__(self, disk: Disk, *parts: str) -> None:
        self.disk = disk
        self.parts = parts

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else ""

    @property
    def parent(self) -> SimPath:
        return SimPath(self.disk, *self.parts[:-1])

    def __truediv__(self, name: str) -> SimPath:
        return SimPath(self.disk, *self.parts, name)

    def __str__(self) -> str:
        return "/" + "/".join(self.parts)

    __repr__ = __fspath__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimPath) and self.parts == other.parts and self.disk is other.disk

    def __lt__(self, other: SimPath) -> bool:
        return self.parts < other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def with_name(self, name: str) -> SimPath:
        return SimPath(self.disk, *self.parts[:-1], name)

    def exists(self) -> bool:
        try:
            self.disk.find(self)
        except FileNotFoundError:
            return False
        return True

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not self.parts or self.exists():
            if not exist_ok:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
            return
        if parents and self.parts[:-1] and not self.parent.exists():
            self.parent.mkdir(mode, True, True)
        self.disk.operate(writes=True)
        self.disk.directory_of(self).change(**{self.name: Directory()})

    def iterdir(self) -> Iterator[SimPath]:
        node = self.disk.find(self)
        assert isinstance(node, Directory)
        return iter([self / name for name in node.entries])

    def stat(self) -> Any:
        node = self.disk.find(self)
        return os.stat_result(
            (0o100640, 0, 0, 1, 0, 0, len(node.data) if isinstance(node, File) else 0, 0, 0, 0)
        )

    def unlink(self, missing_ok: bool = False) -> None:
        self.disk.operate()
        if self.exists():
            self.disk.directory_of(self).change(**{self.name: None})
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def rename(self, target: SimPath) -> None:
        """Inside one directory, which is all that is asked for."""
        assert target.parts[:-1] == self.parts[:-1]
        self.disk.operate()
        node = self.disk.find(self)
        self.disk.directory_of(self).change(**{self.name: None, target.name: node})

    replace = rename

    def read_bytes(self) -> bytes:
        node = self.disk.find(self)
        assert isinstance(node, File)
        return bytes(node.data)

    def open(self, mode: str = "rb") -> _OpenFile:
        disk = self.disk
        flags = os.O_CREAT if "w" in mode else 0
        file = _OpenFile(disk, disk.open(self, flags))
        if "w" in mode:
            disk.truncate(disk.node(file.fileno()), 0)
        return file


class _OpenFile:
    """What SimPath.open returns; unbuffered."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._at = 0

    def __enter__(self) -> _OpenFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        return BytesIO(self._disk.node(self._descriptor).data).read()

    def write(self, data: bytes) -> int:
        file = self._disk.node(self._descriptor)
        written = 0
        while written < len(data):
            written += self._disk.write(file, self._at + written, data[written:])
        self._at += written
        return written

    def flush(self) -> None: ...

    def truncate(self, size: int) -> None:
        self._disk.truncate(self._disk.node(self._descriptor), size)

    def close(self) -> None:
        self._disk.open_files.pop(self._descriptor, None)


class SimOs:
    """Stands for the module `os` in journal.py and directory.py: of the host whose process runs."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name.startswith("O_") or name == "strerror":
            return getattr(os, name)
        raise AttributeError(f"the simulated os has no {name}")

    @property
    def _disk(self) -> Disk:
        assert self._world.current is not None
        return self._world.current.host.disk

    def getpid(self) -> int:
        return self._world.current.number if self._world.current is not None else 0

    def open(self, path: SimPath, flags: int, mode: int = 0o777) -> int:
        return path.disk.open(path, flags)

    def close(self, descriptor: int) -> None:
        self._disk.close(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        disk = self._disk
        return disk.write(disk.node(descriptor), offset, bytes(data))

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return bytes(self._disk.node(descriptor).data[offset : offset + size])

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._disk.truncate(self._disk.node(descriptor), size)

    def fsync(self, descriptor: int) -> None:
        self._disk.fsync(self._disk.node(descriptor))

    fdatasync = fsync


class SimFcntl:
    """Stands for `fcntl`: one lock for each file, gone with its process."""

    LOCK_EX = 2
    LOCK_NB = 4

    def __init__(self, world: World) -> None:
        self._world = world

    def flock(self, descriptor: int, operation: int) -> None:
        process = self._world.current
        assert process is not None
        disk = process.host.disk
        if disk.locks.setdefault(disk.node(descriptor), process) is not process:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class JournalWatcher(Protocol):
    """Who is told of what a journal does; see Process.journal_watcher."""

    def journal_begun(self, journal: SimJournal) -> None: ...
    def appended(self, group: int, records: list[bytes]) -> None: ...
    def fsynced(self, segment: int, data: bytes) -> None: ...
    def dropped(self, before: int) -> None:
        """Segments are about to go."""


class _Queue:
    """Stands for the journal's queue: `begun` is what its thread may take now."""

    def __init__(self, journal: SimJournal) -> None:
        self._journal = journal
        self.waiting: deque[Any] = deque()
        self.begun: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self.waiting.append(item)
        self._journal.wake()

    def get_nowait(self) -> Any:
        if not self.begun:
            raise Empty
        return self.begun.popleft()


class SimJournal(Journal):
    """The journal, its thread driven by the world: one write and fsync is one event, later by what it takes.

    What is appended while it is at it waits for the next, as in production.
    """

    def _begin_thread(self) -> None:
        process = self._call_soon.__self__.process  # type: ignore[attr-defined]
        self._process: Process = process
        self._world: World = process.world
        self._queue: Any = _Queue(self)
        self._at_work = False
        self._over = False  # the thread has ended
        self._seal_timer: Event | None = None
        self._watcher: JournalWatcher | None = process.journal_watcher
        if self._watcher is not None:
            self._watcher.journal_begun(self)

    def append(self, group_number: int, records: list[bytes]) -> None:
        if self._watcher is not None:
            self._watcher.appended(group_number, records)
        super().append(group_number, records)

    def _write_frame(self, data: bytes) -> None:
        super()._write_frame(data)
        if self._watcher is not None:
            self._watcher.fsynced(self._segment_number, data)

    def _drop(self, segment_number: int) -> None:
        if self._watcher is not None:
            self._watcher.dropped(segment_number)
        super()._drop(segment_number)

    def wake(self) -> None:
        if self._at_work or self._over:
            return
        self._at_work = True
        if self._seal_timer is not None:
            self._seal_timer.cancel()
            self._seal_timer = None
        queue = self._queue
        queue.begun, queue.waiting = queue.waiting, deque()
        self._process.host.disk.in_thread(self._process, self._step)

    def _step(self) -> None:
        goes_on = True
        try:
            while self._queue.begun and goes_on:
                goes_on = self._work(self._queue.begun.popleft())
        except Exception as error:
            self._world.fail_by(error, f"{self._process.name}: the journal failed, which is a defect")
            raise
        self._at_work = False
        if not goes_on:
            self._over = True
        elif self._queue.waiting:
            self.wake()
        elif not self._sealed:
            self._seal_timer = self._world.after(SEAL_SECONDS, self._process.post, self._idle)

    def _idle(self) -> None:
        """Nothing has come for SEAL_SECONDS."""
        self._seal_timer = None
        if not self._at_work and not self._sealed:
            self._at_work = True
            self._process.host.disk.in_thread(self._process, self._seal_in_thread)

    def _seal_in_thread(self) -> None:
        self._at_work = False
        self._seal()
        if self._queue.waiting:
            self.wake()

    def look(self) -> None:
        """Nobody moves the directories of this world."""

    def _are_there(self) -> bool:
        return True

    def close(self) -> None:
        raise AssertionError("it would block")
