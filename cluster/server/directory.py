"""The data directory: who may use it, and what it is.

DIR/lock        locked (flock) by the process that uses the directory
DIR/identity    the directory's own id, made once, as JSON
DIR/journal/    segments, see journal.py
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from cluster.server.errors import DirectoryError

FORMAT: Final = 1


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file so that either the old or the new content survives."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


class DataDirectory:
    """An open and locked data directory."""

    def __init__(self, path: Path) -> None:
        """Raises DirectoryError when it is in use, foreign or not writable."""
        self.path = path
        self.journal_path = path / "journal"
        self._lock = -1
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.journal_path.mkdir(mode=0o750, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise DirectoryError(
                f"the data directory {path} cannot be used ({error.strerror}): "
                "give --data-dir a directory that this user may write"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise DirectoryError(
                f"the data directory {path} is in use by process {holder}: "
                "stop that node first, or give this one a --data-dir of its own"
            ) from None
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same
        try:
            self.identity = self._identity()
        except OSError as error:
            self.close()
            raise DirectoryError(
                f"the data directory {path} cannot be written ({error.strerror}): "
                "make room, or give --data-dir another"
            ) from None
        except DirectoryError:
            self.close()
            raise

    def _identity(self) -> UUID:
        path = self.path / "identity"
        if not path.exists():
            if any(self.journal_path.iterdir()):
                raise DirectoryError(
                    f"{path} is missing beside a journal: restore it from where the directory came from, "
                    "or give --data-dir an empty directory"
                )
            identity = uuid4()
            write_durably(path, json.dumps({"format": FORMAT, "identity": str(identity)}).encode() + b"\n")
            sync_directory(self.path)
            return identity
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise DirectoryError(
                    f"{path} has format {content['format']}, this release knows {FORMAT}: "
                    "use the release that wrote it"
                )
            return UUID(content["identity"])
        except (ValueError, KeyError, TypeError):
            raise DirectoryError(
                f"{path} is no identity file: restore it, or give --data-dir another directory"
            ) from None

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1
