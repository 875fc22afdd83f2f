"""Files that a node makes while it is root, for the user that it becomes."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.server.log_file import open_log
from cluster.server.rights import make_directory
from tests.support import Node, eventually
from tests.support.machine import need_root

USER = "nobody"


@pytest.fixture
def roots() -> Iterator[Path]:
    """A directory that is root's alone, as /var/log is; pytest's are below one of everybody."""
    need_root()
    directory = Path(tempfile.mkdtemp(prefix="gearfleet-test-", dir="/var"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def users(roots: Path) -> Path:
    directory = roots / "users"
    directory.mkdir()
    entry = pwd.getpwnam(USER)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    return directory


def written(path: Path) -> str:
    descriptor = open_log(path, USER)
    os.write(descriptor, b"line\n")
    os.close(descriptor)
    return path.owner()


def test_the_log_is_the_users_where_he_may_make_it_and_where_only_root_may(roots: Path, users: Path) -> None:
    assert written(users / "log") == USER
    assert written(roots / "log") == USER
    assert written(roots / "log") == USER  # it is there now
    assert (roots / "log").read_text() == "line\nline\n"
    assert os.geteuid() == os.getegid() == 0


def test_a_link_that_the_user_has_put_there_leads_root_nowhere(roots: Path, users: Path) -> None:
    secret = roots / "shadow"
    secret.write_text("root:*\n")
    secret.chmod(0o600)
    (users / "log").symlink_to(secret)
    (users / "new").symlink_to(roots / "cron.d-file")
    (users / "directory").symlink_to(roots)
    for path in (users / "log", users / "new", users / "directory" / "log"):
        with pytest.raises(PermissionError):
            open_log(path, USER)
    assert secret.read_text() == "root:*\n"
    assert secret.owner() == "root"
    assert sorted(each.name for each in roots.iterdir()) == ["shadow", "users"]


def test_a_file_of_roots_is_not_taken_for_a_log(roots: Path) -> None:
    (roots / "log").touch(0o600)
    with pytest.raises(PermissionError):
        open_log(roots / "log", USER)
    assert (roots / "log").owner() == "root"


def test_a_data_directory_is_made_the_same_way(roots: Path, users: Path) -> None:
    for path in (roots / "a" / "data", users / "data"):
        make_directory(path, USER, 0o750)
        assert path.owner() == USER
    (users / "link").symlink_to(roots)
    make_directory(users / "link" / "b", USER, 0o750)
    assert not (roots / "b").exists()


@pytest.mark.parametrize("place", ["roots", "users"])
def test_a_node_that_has_become_another_user_opens_its_log_anew(
    place: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(place)
    log = directory / "log"
    data = directory / "data"
    make_directory(data, USER, 0o750)
    node = Node(data, "--log-file", str(log), "--user", USER)
    node.spawn()
    try:
        eventually(lambda: log.exists() and "listening" in log.read_text())
        assert log.owner() == USER
        if place == "users":
            log.rename(directory / "log.1")
        node.signal(signal.SIGHUP)
        eventually(lambda: log.exists() and "log file opened anew" in log.read_text())
    finally:
        node.close()
