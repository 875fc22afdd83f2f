"""The servers under measurement: one process each, on a free local port, in a directory of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import lasting_port

HOST = "127.0.0.1"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
TUNED_BUCKETS = "1000003"  # gearmand's default of 991 makes each operation slower as the queue deepens


@dataclass(frozen=True, slots=True)
class ServerKind:
    """One program with one group of settings; `column` is where its figures go in a table."""

    column: str
    variant: str = ""
    arguments: tuple[str, ...] = ()
    program: str = "gearmand"

    def command(self, port: int, directory: Path) -> list[str]:
        if self.program == "gearfleet":
            script = Path(sysconfig.get_path("scripts")) / "gearfleet"
            return [
                *(str(script), "server", "--host", HOST, "--port", str(port)),
                *("--data-dir", str(directory / "data"), *self.arguments),
            ]
        command = [gearmand_path() or "gearmand", "--listen", HOST, "--port", str(port), "--log-file", "none"]
        command += ["--pid-file", str(directory / "gearmand.pid"), *self.arguments]
        if "libsqlite3" in self.arguments:
            command += ["--libsqlite3-db", str(directory / "queue.sqlite")]
        return command


def gearfleet(durability: str = "fsync") -> ServerKind:
    return ServerKind("gearfleet", durability, ("--durability", durability), program="gearfleet")


def gearmand(threads: int) -> ServerKind:
    return ServerKind("gearmand", f"-t {threads}", ("--threads", str(threads)))


def gearmand_tuned(threads: int) -> ServerKind:
    buckets = ("--hashtable-buckets", TUNED_BUCKETS)
    return ServerKind("tuned", f"-t {threads}", ("--threads", str(threads), *buckets))


GEARMAND_SQLITE = ServerKind("sqlite", "", ("--threads", "4", "--queue-type", "libsqlite3"))


def gearmand_path() -> str | None:
    """Debian keeps it in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which("gearmand", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def gearmand_version() -> str | None:
    path = gearmand_path()
    if path is None:
        return None
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(output.split()[:2]) or None


def has_sqlite_queue() -> bool:
    path = gearmand_path()
    if path is None:
        return False
    output = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    return "--libsqlite3-db" in output


class ServerFailed(Exception):
    """A server did not start or went away by itself; the message ends with its last words."""


def ask(port: int, line: str, timeout_seconds: float = 60.0) -> str:
    """Send one text command; return its answer, up to the line with the dot where it has several."""
    with socket.create_connection((HOST, port), timeout=timeout_seconds) as connection:
        connection.sendall(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n") or (not answer.startswith(b"OK") and not answer.endswith(b".\n")):
            received = connection.recv(65536)
            if not received:
                raise ServerFailed(
                    f"port {port} closed the connection in the middle of an answer to {line!r}"
                )
            answer += received
        return answer.decode()


@dataclass(slots=True)
class Server:
    """A server of one kind that can be killed and started again on the same port and directory."""

    kind: ServerKind
    directory: Path
    port: int = field(default_factory=lasting_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> float:
        """Return the seconds until it answered."""
        begun = time.monotonic()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.kind.command(self.port, self.directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        while True:
            try:
                if ask(self.port, "version").startswith("OK"):
                    return time.monotonic() - begun
            except ConnectionError:
                pass
            if self.process.poll() is not None:
                raise ServerFailed(
                    f"{self.kind.column} {self.kind.variant} stopped at start:\n{self.last_words()}"
                )
            if time.monotonic() - begun > START_SECONDS_MAX:
                self.kill()
                raise ServerFailed(
                    f"{self.kind.column} {self.kind.variant} did not answer within {START_SECONDS_MAX:.0f} s:"
                    f"\n{self.last_words()}"
                )
            time.sleep(0.005)

    def last_words(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-2000:]

    def memory_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ServerFailed(f"process {self.pid} has no resident memory: it is gone")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@contextmanager
def running(kind: ServerKind) -> Iterator[Server]:
    """A fresh server with an empty queue, gone without a trace afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="gearfleet-bench-"))
    server = Server(kind, directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
