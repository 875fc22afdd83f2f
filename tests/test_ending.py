"""A test run that is killed leaves nothing running: no server, no daemon, no program of others."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ending import runs
from tests.support.etcd import needs_etcd
from tests.support.machine import find_command
from tests.support.program import Program
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[1]
RUN = """
import os, signal, subprocess, sys
from pathlib import Path
from tests.support import Etcd, Gearmand, Node, need_command
from tests.support.program import Program

FOREVER = "import signal; signal.pause()"

def test_forever(tmp_path, request):
    started = [Etcd().start().members[0], Node(tmp_path / "data").start()]
    if {gearmand!r}:
        started.append(Gearmand().start())
    pids = [one.process_id for one in started]
    started[1].signal(signal.SIGSTOP)
    program = Program([sys.executable, "-c", FOREVER])
    pids.append(program.process.pid)
    daemon = subprocess.Popen(
        ["setsid", "sh", "-c", f"{{sys.executable}} -c '{{FOREVER}}' & echo $!; wait"], stdout=subprocess.PIPE
    )
    pids += [daemon.pid, int(daemon.stdout.readline())]
    Path({told!r}).write_text(" ".join(map(str, pids)) + "\\n")
    signal.pause()
"""


@pytest.fixture
def killed_run(tmp_path: Path) -> Iterator[list[int]]:
    """The processes of a run, after a kill -9 of it."""
    told = tmp_path / "told"
    (tmp_path / "test_forever.py").write_text(RUN.format(gearmand=find_command("gearmand"), told=str(told)))
    run = Program(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(tmp_path)]
    )
    pids: list[int] = []
    try:
        eventually(lambda: (told.exists() and told.read_text().endswith("\n")) or not runs(run.process.pid))
        pids = [int(word) for word in told.read_text().split()]
        assert all(map(runs, pids))
        run.process.kill()
        yield pids
    finally:
        run.close()
        for process_id in filter(runs, pids):
            os.kill(process_id, signal.SIGKILL)


@needs_etcd()
def test_a_killed_test_run_leaves_nothing_behind(killed_run: list[int]) -> None:
    eventually(lambda: not any(map(runs, killed_run)))
