"""The node and the workers as processes."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HOST = "127.0.0.1"
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0


class DemoFailed(Exception):
    """Something that the demo needs did not work; the message is for the person at the terminal."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


class Process:
    """A child with a log file, in a process group of its own, so that Ctrl-C reaches the demo alone."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                process_group=0,
            )

    def check(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            raise DemoFailed(
                f"{' '.join(self._command)} ended by itself, with {self._child.returncode}:"
                f"\n{self.last_words()}"
            )

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def ask_to_stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._child is None:
            return
        self.ask_to_stop()
        try:
            self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
        self._child = None


class Node(Process):
    """`gearfleet server` on a free port, which it keeps over restarts."""

    def __init__(self, scratch: Path) -> None:
        self.port = free_port()
        script = Path(sysconfig.get_path("scripts")) / "gearfleet"
        command = [str(script), "server", "--host", HOST, "--port", str(self.port)]
        super().__init__([*command, "--data-dir", str(scratch / "data")], scratch / "node.log")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Return when it answers."""
        super().start()
        limit = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            self.check()
            if time.monotonic() > limit:
                raise DemoFailed(
                    f"the node did not answer within {START_SECONDS_MAX:.0f} s:\n{self.last_words()}"
                )
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=START_SECONDS_MAX) as connection:
                connection.sendall(b"version\n")
                return connection.recv(100).startswith(b"OK")
        except ConnectionError:
            return False


def worker(number: int, address: str, records: Path, scratch: Path) -> Process:
    command = [sys.executable, "-m", "examples.demo.worker", address, str(records)]
    return Process(command, scratch / f"worker-{number}.log")
