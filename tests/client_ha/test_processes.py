"""Processes: prefork workers, and clients used after a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_ha import HAClient, Job, Timing
from client_ha.stopping import SAME_WISH_SECONDS, Patience
from tests.client_ha.conftest import Server
from tests.support import WAIT_SECONDS, eventually

PREFORK = """
import os, sys, threading
from client_ha import HAClient, HAWorker

client = HAClient(sys.argv[1])  # made before the fork, used after it
worker = HAWorker(sys.argv[1], processes=2, concurrency=2, client_id="prefork", drain_seconds=10)

@worker.task("whoami")
def whoami(job):
    return str(os.getpid())

@worker.task("die")
def die(job):
    os._exit(3)

@worker.task("chain")
def chain(job):
    return client.submit("chained", background=True).handle

@worker.task("drained")
def drained(job):
    job.send_data("begun")
    while not job.stopping:
        threading.Event().wait(0.01)
    return "finished"

@worker.task("held")
def held(job):
    job.send_data("begun")
    while not os.path.exists(job.text):
        threading.Event().wait(0.01)
    return "finished"

worker.run()
print("ended well")
"""

FORKING = """
import os, sys
from client_ha import HAClient

client = HAClient(sys.argv[1])
before = client.submit("forked", background=True)
child = os.fork()
if child == 0:
    job = client.submit("forked", background=True)  # an engine of the child's own
    client.close()
    os._exit(0 if job.handle and job.unique[:32] != before.unique[:32] else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 0, status
assert client.submit("forked", background=True).handle  # the parent's connections are as they were
client.close()
print("ended well")
"""


@pytest.fixture
def prefork(server: Server, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = tmp_path / "prefork.py"
    script.write_text(PREFORK)
    process = subprocess.Popen(
        [sys.executable, script, server.address], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        eventually(lambda: (server.status("whoami") or (0, 0, 0))[2] >= 2)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        # The children notice that their parent is gone.
        eventually(lambda: (server.status("whoami") or (0, 0, 0))[2] == 0)


def test_processes_work_die_are_replaced_and_drain(
    server: Server, prefork: subprocess.Popen[bytes], patient: Timing
) -> None:
    with HAClient(server.address, timing=patient) as client:
        workers: set[bytes] = set()

        def ask() -> bool:
            workers.update(job.result() for job in client.map("whoami", [b""] * 20, in_flight=8))
            return len(workers) >= 2

        eventually(ask)
        assert str(prefork.pid).encode() not in workers
        assert client.submit("chain").result(timeout=WAIT_SECONDS)

        victim = int(workers.pop())
        os.kill(victim, signal.SIGKILL)
        workers.clear()
        eventually(lambda: ask() and str(victim).encode() not in workers)

        begun: list[bytes] = []
        job = client.submit("drained", on_data=lambda job, data: begun.append(data))
        eventually(lambda: begun)
        prefork.terminate()
        assert job.result(timeout=WAIT_SECONDS) == b"finished"
        output, _ = prefork.communicate(timeout=WAIT_SECONDS)
        assert output == b"ended well\n"
        assert prefork.returncode == 0


def begin_held(client: HAClient, free: Path) -> Job:
    begun: list[bytes] = []
    job = client.submit("held", str(free), on_data=lambda job, data: begun.append(data))
    eventually(lambda: begun)
    return job


@pytest.mark.parametrize("times", [1, 2])  # systemd signals the group once, `timeout` its command again
def test_a_signal_to_the_whole_group_lets_what_runs_finish(
    server: Server, prefork: subprocess.Popen[bytes], patient: Timing, tmp_path: Path, times: int
) -> None:
    free = tmp_path / "free"
    with HAClient(server.address, timing=patient) as client:
        job = begin_held(client, free)
        for _ in range(times):
            os.killpg(prefork.pid, signal.SIGTERM)
        eventually(lambda: (server.status("whoami") or (0, 0, 0))[2] == 0)  # they drain
        free.touch()
        assert job.result(timeout=WAIT_SECONDS) == b"finished"
        assert prefork.communicate(timeout=WAIT_SECONDS) == (b"ended well\n", None)


def test_a_later_signal_to_the_parent_ends_all_at_once(
    server: Server, prefork: subprocess.Popen[bytes], patient: Timing, tmp_path: Path
) -> None:
    with HAClient(server.address, timing=patient) as client:
        job = begin_held(client, tmp_path / "never")

        def ended() -> bool:
            prefork.terminate()
            return prefork.poll() is not None

        eventually(ended)
        assert not job.finished
        assert client.status(job).known  # given back


def test_an_echo_of_a_signal_is_no_second_wish() -> None:
    patience = Patience()
    first_at = 100.0
    assert not patience.signalled(first_at)
    assert not patience.signalled(first_at + SAME_WISH_SECONDS - 0.01)
    assert patience.signalled(first_at + SAME_WISH_SECONDS)


def test_children_leave_when_their_parent_was_killed(
    server: Server, prefork: subprocess.Popen[bytes]
) -> None:
    prefork.kill()
    eventually(lambda: (server.status("whoami") or (0, 0, 0))[2] == 0)


def test_a_client_is_usable_on_both_sides_of_a_fork(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    ran = subprocess.run(
        [sys.executable, script, server.address], capture_output=True, timeout=WAIT_SECONDS, check=False
    )
    assert (ran.stdout, ran.returncode) == (b"ended well\n", 0), ran.stderr.decode()
