"""Whether an open data directory is still where it was, and what it was.

A process goes on writing into files that nobody will find again: the directory was removed, moved, replaced,
or something was mounted over it. So the journal's thread looks once a second, and what is wrong stops the
promises as a full disk does. What is put back is taken again; what can have lost entries is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_FINISH: Final = (
    "the jobs that wait are in this node's memory: let them finish (SIGUSR1 stops the node when they have)"
)


class Fault(NamedTuple):
    """What is wrong, what to do, and whether all is as it was once that is done."""

    reason: str
    remedy: str
    may_recover: bool
    keeps_jobs: bool = False  # what was written is still there for the next start


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class Whereabouts:
    """What is looked at; for one thread."""

    def __init__(self, path: Path, hold_lock: Callable[[], bool]) -> None:
        """`hold_lock` makes a lock file anew that is gone, and tells whether nobody else was faster."""
        self._path = path
        self._identity = _identity(path.stat())
        self._hold_lock = hold_lock
        self.free_bytes: int | None = None  # for this user, when it was last looked at

    def fault(self, segments: set[Path], open_segment: int) -> Fault | None:
        """What is wrong, None when all is as it was. `segments` are the journal's files, the last one of
        which is open as `open_segment`."""
        path = self._path
        back = f"put {path} back, or restart the node on a directory that is there; {_FINISH}"
        try:
            if _identity(path.stat()) != self._identity:
                return Fault(f"another directory is in the place of {path}", back, True)
        except OSError as error:
            return Fault(f"the data directory {path} is gone ({error.strerror})", back, True)
        try:
            file_system = os.statvfs(path)
            self.free_bytes = file_system.f_bavail * file_system.f_frsize
            if file_system.f_flag & os.ST_RDONLY:
                return Fault(
                    f"{path} is read-only now", "make it writable again; the node goes on", True, True
                )
            (path / "identity").stat()
            found = {each for each in (path / "journal").iterdir() if each.suffix == ".segment"}
            changed = segments ^ found
            if not changed and _identity(max(segments).stat()) != _identity(os.fstat(open_segment)):
                changed = {max(segments)}
        except OSError as error:
            name = Path(error.filename).name if isinstance(error.filename, str) else "a part"
            return Fault(f"{name} of the data directory {path} is gone ({error.strerror})", back, True)
        restart = f"{_FINISH}, then start it again"
        if changed:
            # What was in them is not known: nothing here counts as a copy any more.
            names = ", ".join(sorted(each.name for each in changed)[:3])
            return Fault(
                f"somebody else removed, replaced or added {names} in {path}/journal", restart, False
            )
        try:
            alone = self._hold_lock()
        except OSError as error:
            return Fault(f"the lock file of {path} is gone ({error.strerror})", back, True, True)
        if not alone:
            return Fault(
                f"another process has locked {path}, whose lock file was removed", restart, False, True
            )
        return None
