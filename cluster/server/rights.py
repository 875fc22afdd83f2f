"""What is made while a process is still root, for the user that it is going to become.

Done as root it would follow whatever that user had put in its place, such as a link to a file of the system.
So it is done with the user's rights. Only where the directory is root's alone, and nobody else can have put
anything there, root does it, and gives it to the user.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path


def groups_of(entry: pwd.struct_passwd) -> list[int]:
    """The groups that a user is in beside his own."""
    return [group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem]


def becomes(user: str | None) -> pwd.struct_passwd | None:
    """The user, where there is such a change; one who does not exist is told by whoever makes it."""
    if user is None or os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return entry if entry.pw_uid != 0 else None


@contextlib.contextmanager
def rights_of(entry: pwd.struct_passwd) -> Iterator[None]:
    """Root acts as this user for a while."""
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(groups_of(entry))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def is_roots_alone(directory: Path, entry: pwd.struct_passwd) -> bool:
    """Whether neither this user nor everybody may change the directory, or the way to it."""
    groups = {entry.pw_gid, *groups_of(entry)}
    for each in (directory, *directory.parents):
        found = each.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & stat.S_IWOTH:
            return False
        if found.st_mode & stat.S_IWGRP and found.st_gid in groups:
            return False
    return True


def make_directory(path: Path, user: str | None, mode: int) -> None:
    """Make a directory and what leads to it. Raises OSError."""
    entry = becomes(user)
    if entry is None:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        return
    with rights_of(entry), contextlib.suppress(PermissionError):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        return
    nearest = path.absolute().parent
    while not nearest.exists():
        nearest = nearest.parent
    if is_roots_alone(nearest, entry):
        path.mkdir(mode=mode, parents=True)
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
