"""Real server processes: start, find the port, kill, start again. None outlives its test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from tests.support.machine import need_command
from tests.support.peer import Peer
from tests.support.waiting import WAIT_SECONDS, eventually

START_SECONDS = 30.0
LOG_LINES_SHOWN = 20


class ServerProcess:
    """A process that logs to stderr. Subclasses say how it is started and when it is ready."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: Thread | None = None
        self._log_grew = Condition()
        self._log_ended = False
        self.log_lines: list[str] = []  # of all starts

    # ---- life

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert not self.running, "already running"
        self.close()  # the one before, should it have ended by itself
        setpriv = shutil.which("setpriv")
        if setpriv:  # also when the test run itself is killed, nothing stays behind
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with self._log_grew:
            self._log_ended = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environment),
        )
        self._reader = Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._log_grew:
                self.log_lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._log_grew.notify_all()
        with self._log_grew:
            self._log_ended = True
            self._log_grew.notify_all()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        assert self._process is not None, "never started"
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "never started"
        self._process.send_signal(number)

    def wait_for_exit(self, timeout_seconds: float = WAIT_SECONDS) -> int:
        """Wait for the end of the process; returns its status."""
        assert self._process is not None, "never started"
        try:
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {timeout_seconds} s; its log:\n{self.log_tail()}"
            ) from None
        self._finish()
        return status

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.wait_for_exit()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait_for_exit()

    def close(self) -> None:
        """However it stands: no process, thread or pipe is left."""
        if self._process is None:
            return
        if self.running:
            self._process.kill()
        self._process.wait()
        self._finish()

    def _finish(self) -> None:
        assert self._process is not None
        if self._reader is not None:
            self._reader.join(WAIT_SECONDS)
            self._reader = None
        if self._process.stderr is not None:
            self._process.stderr.close()

    # ---- log

    def log_tail(self) -> str:
        return "\n".join(self.log_lines[-LOG_LINES_SHOWN:])

    def wait_for_line(
        self, matches: Callable[[str], Any], *, start: int = 0, timeout_seconds: float = WAIT_SECONDS
    ) -> Any:
        """Wait for a log line, from line number `start` on, for which `matches` gives something true;
        returns that."""
        deadline = time.monotonic() + timeout_seconds
        seen = start
        with self._log_grew:
            while True:
                for line in self.log_lines[seen:]:
                    if found := matches(line):
                        return found
                seen = len(self.log_lines)
                left_seconds = deadline - time.monotonic()
                if self._log_ended or left_seconds <= 0:
                    what = "the process ended" if self._log_ended else f"waited {timeout_seconds} s"
                    raise AssertionError(f"{what} without the expected log line; its log:\n{self.log_tail()}")
                self._log_grew.wait(left_seconds)

    # ---- connections

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def connect(self, **options: Any) -> Peer:
        return Peer(self.host, self.port, **options)

    def line(self, command: str) -> str:
        """One text command on a connection of its own, answered by a line."""
        with self.connect() as peer:
            return peer.line(command)

    def table(self, command: str) -> list[str]:
        """One text command on a connection of its own, answered by lines and a dot."""
        with self.connect() as peer:
            return peer.table(command)

    def status(self, function: bytes | str) -> tuple[int, int, int] | None:
        """(total, running, workers) of a function, None when it is not listed."""
        name = function if isinstance(function, str) else function.decode()
        for row in self.table("status"):
            listed, total, running, workers = row.rsplit("\t", 3)
            if listed == name:
                return int(total), int(running), int(workers)
        return None


class Node(ServerProcess):
    """A `gearfleet server` process. Options are given as on its command line."""

    def __init__(
        self,
        data_dir: Path | None,
        *options: str,
        durability: str = "fsync",
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__()
        self.host = host
        self.data_dir = data_dir
        self.options = list(options)
        self.durability = durability
        self.environment = dict(environment or {})
        self.prefix = list(prefix)  # a command that runs the server: `ip netns exec NAME`, `prlimit …`

    @property
    def command(self) -> list[str]:
        program = Path(sys.executable).with_name("gearfleet")
        command = [*self.prefix, str(program), "server", "--host", self.host, "--port", "0"]
        if self.data_dir is not None:
            command += ["--data-dir", str(self.data_dir)]
        return [*command, "--durability", self.durability, "--log-format", "json", *self.options]

    def spawn(self) -> None:
        """Start the process and do not wait for it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GEARFLEET_")}
        self._spawn(self.command, {**clean, **self.environment})

    def start(self) -> Node:
        """Start it and wait until it listens."""
        first_line = len(self.log_lines)
        self.spawn()
        self.port = self.wait_for_event("listening", start=first_line, timeout_seconds=START_SECONDS)["port"]
        return self

    def restart(self) -> Node:
        """Start it again on the same data directory; the old process must be gone."""
        return self.start()

    # ---- log

    @property
    def log_events(self) -> list[dict[str, Any]]:
        return [event for line in list(self.log_lines) if (event := _event(line)) is not None]

    def wait_for_event(
        self, name: str, *, start: int = 0, timeout_seconds: float = WAIT_SECONDS
    ) -> dict[str, Any]:
        """Wait for the log line with this event."""

        def matches(line: str) -> dict[str, Any] | None:
            event = _event(line)
            return event if event is not None and event.get("event") == name else None

        found = self.wait_for_line(matches, start=start, timeout_seconds=timeout_seconds)
        assert isinstance(found, dict)
        return found


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Gearmand(ServerProcess):
    """The reference server, for what both must answer alike."""

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = list(options)

    def start(self) -> Gearmand:
        program = need_command("gearmand")
        # It cannot choose a port itself: take a free one, and let it fail if somebody was faster.
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        command = [program, "--listen", self.host, "--port", str(self.port), "--log-file", "stderr"]
        self._spawn([*command, *self.options], os.environ)
        eventually(self._answers, timeout_seconds=START_SECONDS)
        return self

    def _answers(self) -> bool:
        assert self.running, f"gearmand ended; its log:\n{self.log_tail()}"
        try:
            return self.line("version").startswith("OK ")
        except OSError:
            return False
