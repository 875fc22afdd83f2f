"""Running the command: in this process where only its words matter, as a process where its behaviour does."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.cli import main
from tests.support import WAIT_SECONDS, Gearmand, need_command
from tests.support.program import Program

GEARFLEET = str(Path(sys.executable).with_name("gearfleet"))


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: bytes


RunCommand = Callable[..., Ended]
StartCommand = Callable[..., Program]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has set must not decide a test; help is as wide as a terminal."""
    for name in os.environ:
        if name.startswith(("GEARFLEET_", "GEARMAN")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def gearfleet(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Run `gearfleet` in this process, with `feed` on its standard input."""

    def run(*arguments: str, feed: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(feed)))
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Ended(code, out, err)

    return run


def run_process(*command: str, feed: bytes = b"", environment: dict[str, str] | None = None) -> Ended:
    """Run a program to its end."""
    done = subprocess.run(
        command,
        input=feed,
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_stock(name: str, *arguments: str, feed: bytes = b"") -> Ended:
    """Run one of the stock tools; skips where it is not installed. It calls itself by its bare name."""
    path = need_command(name)
    ended = run_process(path, *arguments, feed=feed)
    return ended._replace(
        out=ended.out.replace(path.encode(), name.encode()),
        err=ended.err.replace(path.encode(), name.encode()),
    )


@pytest.fixture
def start_gearfleet() -> Iterator[StartCommand]:
    """Start `gearfleet` as a process; it is killed at the end."""
    programs: list[Program] = []

    def start(*arguments: str, feed: bytes | None = None) -> Program:
        program = Program([GEARFLEET, *arguments], feed)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.close()


@pytest.fixture(scope="module")
def stock_gearmand() -> Iterator[Gearmand]:
    """One gearmand for a module; skips where it is not installed."""
    server = Gearmand("--threads", "0")
    try:
        yield server.start()
    finally:
        server.close()
