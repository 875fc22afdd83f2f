"""Debian's own init files for gearmand, as the package ships them, run Gearfleet: docs/deploy.md says how."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import GEARFLEET, run_process
from tests.deploy.manifests import DEPLOY
from tests.support import Peer, eventually, need_command
from tests.support.machine import NEEDS, need_root
from tests.support.ports import lasting_port

INIT_SCRIPT = Path("/etc/init.d/gearman-job-server")
DEFAULTS = Path("/etc/default/gearman-job-server")
UNIT = Path("/lib/systemd/system/gearman-job-server.service")
PACKAGE = f"{NEEDS}Debian's init files: apt-get install gearman-job-server"


class Files:
    """Copies of the package's files whose paths lead into a directory of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = lasting_port()
        self.run = directory / "run"
        self.pid_file = self.run / "gearmand.pid"
        self.state = directory / "lib" / "gearfleet"
        for name in ("log", "lib"):  # the package's user has both: its home is in the second
            (directory / name).mkdir()
            os.chown(directory / name, pwd.getpwnam("gearman").pw_uid, -1)
        for path in (directory, *directory.parents[:2]):  # pytest's are for their owner only
            path.chmod(path.stat().st_mode | 0o055)

    def moved(self, text: str) -> str:
        for old, new in (
            ("/run/gearman", str(self.run)),
            ("/var/log/gearman-job-server", str(self.directory / "log")),
            ("/etc/default/gearman-job-server", str(self.directory / "defaults")),
            ("/opt/gearfleet/bin/gearfleet", GEARFLEET),
            ("--listen=localhost", f"--listen=127.0.0.1 --port={self.port}"),
        ):
            text = text.replace(old, new)
        return text

    def process_id(self) -> int:
        return int(self.pid_file.read_text())

    def works(self) -> None:
        with Peer("127.0.0.1", self.port) as peer:
            assert peer.line("getpid") == f"OK {self.process_id()}"
            peer.submit(b"f", background=True)
        owner = Path(f"/proc/{self.process_id()}").stat().st_uid
        assert pwd.getpwuid(owner).pw_name == "gearman"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    need_root()
    if not (INIT_SCRIPT.exists() and DEFAULTS.exists() and UNIT.exists()):
        pytest.skip(PACKAGE)
    files = Files(tmp_path)
    (tmp_path / "defaults").write_text(files.moved(DEFAULTS.read_text()))
    yield files
    if files.pid_file.exists():
        os.kill(files.process_id(), signal.SIGKILL)


def test_the_init_script_starts_shows_restarts_and_stops_it(files: Files) -> None:
    need_command("start-stop-daemon")
    script = files.directory / "init"
    script.write_text(
        files.moved(
            run_process("sed", "-f", str(DEPLOY / "gearman-job-server.sed"), str(INIT_SCRIPT)).out.decode()
        )
    )
    # The test's node must not keep its jobs where a real one would
    environment = {"STATE_DIRECTORY": str(files.state), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def init(command: str) -> int:
        return subprocess.run(["/bin/sh", str(script), command], env=environment, timeout=60).returncode

    assert init("start") == 0
    files.works()
    first = files.process_id()
    assert init("status") == 0
    assert init("restart") == 0
    files.works()
    assert files.process_id() != first
    last = files.process_id()
    assert init("stop") == 0
    assert not Path(f"/proc/{last}").exists()
    assert init("status") != 0
    # And again: there is nothing to stop
    assert init("stop") == 0


def test_the_unit_with_its_drop_in_runs_it_as_a_user_without_a_home(files: Files) -> None:
    setpriv = need_command("setpriv")
    as_user = [setpriv, "--reuid", "gearman", "--regid", "gearman", "--clear-groups"]
    if subprocess.run([*as_user, GEARFLEET, "--version"], capture_output=True, cwd="/").returncode:
        pytest.skip(f"{NEEDS}a virtual environment that other users may run")
    # What systemd makes of the unit and the drop-in
    settings: dict[str, list[str]] = {}
    for text in (UNIT.read_text(), (DEPLOY / "systemd" / "gearman-job-server.conf").read_text()):
        for name, value in re.findall(r"^(\w+)=(.*)$", files.moved(text), re.MULTILINE):
            settings[name] = [*settings.get(name, []), value] if value else []
    assert settings["User"] == ["gearman"]
    assert settings["StateDirectory"] == ["gearfleet"]
    state = files.state
    state.mkdir(parents=True, mode=0o750)
    os.chown(state, pwd.getpwnam("gearman").pw_uid, pwd.getpwnam("gearman").pw_gid)
    (before,) = settings["ExecStartPre"]
    assert run_process(*shlex.split(before)).code == 0
    (defaults,) = settings["EnvironmentFile"]
    parameters = re.search(r'^PARAMS="(.*?)"', Path(defaults.removeprefix("-")).read_text(), re.M | re.S)
    assert parameters is not None
    (command,) = settings["ExecStart"]
    words = shlex.split(command.replace("$PARAMS", parameters[1].replace("\\\n", " ")))
    environment = {"STATE_DIRECTORY": str(state), "PATH": "/usr/sbin:/usr/bin", "HOME": "/nonexistent"}
    # Type=forking: it ends when the node answers, and the pid file is there
    assert subprocess.run([*as_user, *words], env=environment, cwd="/", timeout=60).returncode == 0
    assert settings["PIDFile"] == [str(files.pid_file)]
    files.works()
    assert (state / "journal").is_dir()
    process_id = files.process_id()
    os.kill(process_id, signal.SIGTERM)
    eventually(lambda: not Path(f"/proc/{process_id}").exists())
