"""LogFile: where the log goes, opened with the rights of the user that the node becomes (rights.py).

As root it would be opened wherever that user had led it; and on SIGHUP, when root's rights are gone, it
could not be opened anew. Where root has made it, in a directory that is his alone, SIGHUP works as long as it
is the same file, or whoever rotates it makes the new one (logrotate's `create`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, Final

from cluster.server.rights import becomes, is_roots_alone, rights_of

_MODE: Final = 0o644
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_OWN: Final = {Path("/dev/stdout"): 1, Path("/dev/stderr"): 2}


def open_log(path: Path, user: str | None) -> int:
    """A descriptor to append to; `user`: whom this process is going to become. Raises OSError."""
    if path in _OWN:  # they may be root's, and cannot be opened by name then
        return os.dup(_OWN[path])
    entry = becomes(user)
    if entry is None:
        return os.open(path, _FLAGS, _MODE)
    with rights_of(entry):
        try:
            return os.open(path, _FLAGS, _MODE)
        except PermissionError as error:
            refused = error
    if not is_roots_alone(path.absolute().parent, entry):
        raise refused
    try:
        descriptor = os.open(path, _FLAGS | os.O_EXCL | os.O_NOFOLLOW, _MODE)
    except FileExistsError:
        raise refused from None
    os.fchown(descriptor, entry.pw_uid, entry.pw_gid)
    return descriptor


class LogFile:
    """SIGHUP opens it anew, so that it can be rotated."""

    def __init__(self, path: Path | None, user: str | None = None) -> None:
        """None: standard error. `user`: whom the node is going to become. Raises OSError."""
        self._path = path
        self._user = user
        self._file: IO[str] = sys.stderr
        self.reopen()

    def reopen(self) -> None:
        """Raises OSError when the file cannot be opened; the old one stays then."""
        if self._path is not None:
            descriptor = open_log(self._path, self._user)
            old, self._file = self._file, os.fdopen(descriptor, "a", buffering=1, encoding="utf-8")
            if old is not sys.stderr:
                old.close()

    def write(self, text: str) -> int:
        # A log that cannot be written must not stop the node.
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()
