"""Programs of others, run against a node."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from threading import Thread

from tests.support.machine import need_command
from tests.support.node import ServerProcess
from tests.support.waiting import WAIT_SECONDS, eventually


class Program:
    """A running program of others; what it prints can be waited for."""

    def __init__(self, command: Sequence[str], feed: bytes | None = None) -> None:
        self.command = [need_command(command[0]), *command[1:]]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._feed = feed
        self.stdout = b""
        self.stderr = b""
        self._collector = Thread(target=self._collect, daemon=True)
        self._collector.start()

    def _collect(self) -> None:
        self.stdout, self.stderr = self.process.communicate(self._feed)

    def wait(self, timeout_seconds: float = WAIT_SECONDS) -> int:
        """Wait for its end; returns the exit status."""
        self._collector.join(timeout_seconds)
        if self._collector.is_alive():
            self.close()
            raise AssertionError(
                f"{self.command} still ran after {timeout_seconds} s; "
                f"stdout {self.stdout!r}, stderr {self.stderr!r}"
            )
        return self.process.returncode

    def output(self, timeout_seconds: float = WAIT_SECONDS) -> bytes:
        """Wait for its end, which must be a good one; returns what it printed."""
        status = self.wait(timeout_seconds)
        assert status == 0, (
            f"{self.command} ended with {status}; stdout {self.stdout!r}, stderr {self.stderr!r}"
        )
        return self.stdout

    def close(self) -> None:
        if self._collector.is_alive():
            self.process.kill()
            self._collector.join()


RunProgram = Callable[..., Program]


def wait_for_workers(server: ServerProcess, function: bytes, how_many: int = 1) -> None:
    """Wait until so many workers have registered for the function."""
    eventually(lambda: (server.status(function) or (0, 0, 0))[2] >= how_many)
