"""gearfleet submit and gearfleet work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from client_ha import ServerBusy
from client_ha.stopping import SAME_WISH_SECONDS
from cluster.cli.jobs import in_words, read_moment
from cluster.cli.no_worker import NO_WORKER_SECONDS
from cluster.cli.signals import stopped_by
from tests.cli.conftest import GEARFLEET, RunCommand, StartCommand, run_process
from tests.conftest import StartNode
from tests.support import WAIT_SECONDS, Node, eventually
from tests.support.faulty import FailingCalls
from tests.support.machine import need_command
from tests.support.program import Program, wait_for_workers


def work(start: StartCommand, node: Node, function: bytes, *words: str) -> Program:
    program = start("work", "-s", node.address, function.decode(), *words)
    wait_for_workers(node, function)
    return program


def test_a_job_runs_a_command_and_its_output_comes_back(
    gearfleet: RunCommand, start_gearfleet: StartCommand, shared_node: Node, function: bytes
) -> None:
    work(start_gearfleet, shared_node, function, "--", "tr", "a-z", "A-Z")
    name, at = function.decode(), ("-s", shared_node.address)

    assert gearfleet("submit", *at, name, "hello") == (0, b"HELLO", b"")
    assert gearfleet("submit", *at, name, feed=b"from\n\0stdin") == (0, b"FROM\n\0STDIN", b"")
    assert gearfleet("submit", *at, name, "-", feed=b"dash") == (0, b"DASH", b"")
    assert gearfleet("submit", *at, name, "one", "two", "--priority", "high") == (0, b"ONETWO", b"")

    record = json.loads(gearfleet("submit", *at, name, "x", "--json", "-u", "key").out)
    assert record.pop("handle")
    assert record == {
        "function": name,
        "unique": "key",
        "server": shared_node.address,
        "background": False,
        "output": "X",
        "error": None,
    }


def test_a_command_that_fails_fails_its_job_after_its_output(
    gearfleet: RunCommand, start_gearfleet: StartCommand, shared_node: Node, function: bytes
) -> None:
    work(start_gearfleet, shared_node, function, "--", "sh", "-c", "echo $JOB_FUNCTION; exit 3")
    ended = gearfleet("submit", "-s", shared_node.address, function.decode(), "x")
    assert ended.code == 1
    assert ended.out == function + b"\n"
    assert ended.err == b"gearfleet: the command ended with 3\n"


def test_a_command_over_its_time_limit_is_killed_and_fails(
    gearfleet: RunCommand, start_gearfleet: StartCommand, shared_node: Node, function: bytes
) -> None:
    work(start_gearfleet, shared_node, function, "--time-limit", "1", "--", "sleep", "600")
    assert gearfleet("submit", "-s", shared_node.address, function.decode(), "x").code == 1


def test_background_jobs_print_handles_and_count_ends_the_worker(
    gearfleet: RunCommand, start_gearfleet: StartCommand, shared_node: Node, function: bytes, tmp_path: Path
) -> None:
    name, at = function.decode(), ("-s", shared_node.address)
    ended = gearfleet("submit", "-b", *at, name, "one\n", "two\n")
    assert ended.code == 0
    assert len(set(ended.out.split())) == 2
    output = tmp_path / "output"

    worker = start_gearfleet("work", *at, "--count", "2", name, "--", "sh", "-c", f"cat >> {output}")

    assert worker.wait() == 0
    assert sorted(output.read_text().split()) == ["one", "two"]


def test_a_job_for_later_waits(gearfleet: RunCommand, shared_node: Node, function: bytes) -> None:
    ended = gearfleet("submit", "--at", "+1h", "-s", shared_node.address, function.decode(), "x")
    assert ended.code == 0
    with shared_node.connect() as worker:
        worker.can_do(function)
        assert worker.grab() is None
    assert gearfleet("cancel", ended.out.decode().strip(), "-s", shared_node.address).code == 0


def test_a_schedule_is_made_and_cancelled(gearfleet: RunCommand, shared_node: Node, function: bytes) -> None:
    words = (
        "submit",
        "-s",
        shared_node.address,
        function.decode(),
        "x",
        "-u",
        "nightly",
        "--cron",
        "0 3 * * mon",
    )
    handle = gearfleet(*words).out
    assert handle.startswith(b"H:")
    assert gearfleet(*words).out == handle  # the same schedule
    assert gearfleet("cancel", "-s", shared_node.address, handle.decode().strip()).code == 0


def test_sigterm_lets_the_job_that_runs_finish(
    start_gearfleet: StartCommand, shared_node: Node, function: bytes, tmp_path: Path
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    go.touch()
    script = f"touch {begun}; tail -f --pid=$PPID {go} | head -c 2"
    worker = work(start_gearfleet, shared_node, function, "--", "sh", "-c", script)
    with shared_node.connect() as client:
        client.submit(function)
        eventually(begun.exists)
        next_job = client.submit(function, background=True)
        worker.process.terminate()
        go.write_text("ok")
        packet = client.receive()
        assert (packet.name, packet.arguments[1]) == ("WORK_COMPLETE", b"ok")
        assert worker.wait() == 0
        # Nothing new was taken.
        assert shared_node.status(function) == (1, 0, 0)
        assert client.line(f"cancel job {next_job.decode()}") == "OK"


# A command that says where it is, and waits to be let go: JOB and GO are put in its place.
HELD = "echo $$ > JOB; while ! test -e GO; do sleep 0.02; done; echo well"
HANDLED = "trap 'exit 143' TERM; " + HELD  # as Java and many others tell of it


@pytest.mark.parametrize("tool", ["work", "gearman"])
@pytest.mark.parametrize("script", [HELD, HANDLED])
@pytest.mark.parametrize("worker_too", [True, False])
def test_a_job_whose_command_a_signal_ended_goes_back(
    start_gearfleet: StartCommand,
    shared_node: Node,
    function: bytes,
    tmp_path: Path,
    tool: str,
    script: str,
    worker_too: bool,
) -> None:
    job, go = tmp_path / "job", tmp_path / "go"
    command = ["sh", "-c", script.replace("JOB", str(job)).replace("GO", str(go))]
    worker = worker_of(tool, start_gearfleet, shared_node, function, command)
    with shared_node.connect() as client:
        client.submit(function, background=True)
        eventually(lambda: job.exists() and job.read_text().endswith("\n"))
        if worker_too:  # systemd: all processes of the service, in any order
            worker.process.terminate()
        os.kill(int(job.read_text()), signal.SIGTERM)
        if worker_too:
            assert worker.wait() == 0
            assert shared_node.status(function) == (1, 0, 0)
            worker_of(tool, start_gearfleet, shared_node, function, command)
        go.touch()
        eventually(lambda: (shared_node.status(function) or (0, 0, 0))[:2] == (0, 0))


def worker_of(tool: str, start: StartCommand, node: Node, function: bytes, command: list[str]) -> Program:
    if tool == "work":
        return work(start, node, function, "--", *command)
    at = ["-h", node.host, "-p", str(node.port)]
    worker = start("gearman", *at, "-w", "-f", function.decode(), "--", *command)
    wait_for_workers(node, function)
    return worker


@pytest.mark.parametrize("tool", ["work", "gearman"])
def test_a_second_wish_kills_the_command_and_its_job_goes_back(
    start_gearfleet: StartCommand, shared_node: Node, function: bytes, tmp_path: Path, tool: str
) -> None:
    begun = tmp_path / "begun"
    worker = worker_of(
        tool, start_gearfleet, shared_node, function, ["sh", "-c", f"touch {begun}; exec sleep 600"]
    )
    with shared_node.connect() as client:
        handle = client.submit(function, background=True)
        eventually(begun.exists)

        worker.process.terminate()
        first_at = time.monotonic()
        eventually(lambda: time.monotonic() > first_at + SAME_WISH_SECONDS)
        assert worker.process.poll() is None  # one wish lets the command go on
        worker.process.terminate()
        assert worker.wait() == 0
        eventually(lambda: shared_node.status(function) == (1, 0, 0))
        assert client.line(f"cancel job {handle.decode()}") == "OK"


@pytest.mark.parametrize(
    "command",
    [
        ["work", "f", "-s", "HOST:PORT", "--", "cat"],
        ["gearman", "-w", "-h", "HOST", "-p", "PORT", "-f", "f"],
        ["top", "-s", "HOST:PORT"],
        ["submit", "-s", "HOST:PORT", "never worked", "x"],
        ["server", "--port", "0", "--durability", "memory"],
    ],
    ids=lambda command: command[0],
)
def test_sigterm_ends_a_container_s_first_process(
    command: list[str], shared_node: Node, tmp_path: Path
) -> None:
    unshare = [need_command("unshare"), "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no process namespaces here")
    at = {"HOST": shared_node.host, "PORT": str(shared_node.port), "HOST:PORT": shared_node.address}
    words = [at.get(word, word) for word in command]
    # The namespace's first process is the command; only its parent knows it by another number.
    script = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [*unshare, sys.executable, "-c", script, GEARFLEET, *words], stdout=subprocess.PIPE, cwd=tmp_path
    ) as outer:
        inner = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")

        def ended() -> bool:
            for child in inner.read_text().split():
                os.kill(int(child), signal.SIGTERM)
            return outer.poll() is not None

        eventually(ended)


def test_which_signals_ended_a_command() -> None:
    assert stopped_by(-signal.SIGTERM, stopping=False) is signal.SIGTERM
    assert stopped_by(128 + signal.SIGINT, stopping=False) is signal.SIGINT
    # A crash is the command's own, and so is being killed for its memory; not when all is being stopped.
    assert [stopped_by(code, stopping=False) for code in (0, 1, 255, -signal.SIGSEGV, -signal.SIGKILL)] == [
        None
    ] * 5
    assert stopped_by(-signal.SIGKILL, stopping=True) is signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["submit", "f", "x", "-s", "127.0.0.1:1", "--timeout", "0.2"], 3, "127.0.0.1:1: connection refused"),
        (["submit", "f" * 600, "x"], 2, "511"),
        (["submit", "f", "x", "--at", "tomorrow"], 2, "write 2026-12-01T08:30, +90s"),
        (["submit", "f", "x", "--cron", "0 3 * * *"], 2, "--unique"),
        (["submit", "f", "x", "-u", "k", "--cron", "at three"], 2, "day of week"),
        (["submit", "f", "x", "y", "-u", "key"], 2, "one job"),
        (["submit", "f", "x", "--tls-ca", "/nowhere.pem"], 2, "/nowhere.pem"),
        (["submit"], 2, "Missing argument"),
        (["work", "f", "cat"], 2, "gearfleet work FUNCTION -- COMMAND…"),
        (["work", "f", "--"], 2, "the command is missing"),
        (["work", "f", "--", "no-such-command"], 2, "there is no command 'no-such-command'"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_exit_code(
    gearfleet: RunCommand, arguments: list[str], code: int, message: str
) -> None:
    ended = gearfleet(*arguments)
    assert ended.code == code
    assert message in ended.err.decode()


def test_a_worker_without_a_server_says_so_and_goes_on() -> None:
    command = [GEARFLEET, "work", "-s", "127.0.0.1:1", "f", "--", "cat"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as worker:
        limit = Timer(WAIT_SECONDS, worker.kill)
        limit.start()
        assert worker.stderr is not None
        greeting, line = worker.stderr.readline(), worker.stderr.readline()
        running = worker.poll() is None
        worker.terminate()
        assert worker.wait() == 0
        limit.cancel()
    assert b" takes jobs of f, 1 at a time, from 127.0.0.1:1" in greeting
    assert line.startswith(b"gearfleet: no server reached, trying on; last: 127.0.0.1:1: ")
    assert running


def test_a_job_nobody_does_ends_with_the_time(
    gearfleet: RunCommand, shared_node: Node, function: bytes
) -> None:
    ended = gearfleet("submit", "-s", shared_node.address, function.decode(), "x", "--timeout", "0.2")
    assert ended.code == 1
    assert b"no result" in ended.err


@pytest.mark.parametrize("tool", ["submit", "gearman"])
def test_a_job_that_no_worker_takes_says_so(
    start_gearfleet: StartCommand, shared_node: Node, function: bytes, tool: str
) -> None:
    name = function.decode()
    words = {
        "submit": ["submit", "-s", shared_node.address, name, "x"],
        "gearman": ["gearman", "-h", shared_node.host, "-p", str(shared_node.port), "-f", name, "x"],
    }
    with shared_node.connect() as worker:
        waiting = start_gearfleet(*words[tool])
        eventually(lambda: (shared_node.status(function) or (0, 0, 0))[0] == 1)
        asked_at = time.monotonic() + NO_WORKER_SECONDS
        eventually(lambda: time.monotonic() > asked_at + 1)
        worker.can_do(function)
        worker.complete(worker.grab_one().handle)
        assert waiting.wait() == 0
    assert f"no worker takes {name!r}" in waiting.stderr.decode()
    assert waiting.stderr.count(b"\n") == 1


def test_nothing_is_said_where_a_worker_is_busy(
    start_gearfleet: StartCommand, shared_node: Node, function: bytes
) -> None:
    with shared_node.connect() as worker:
        worker.can_do(function)
        waiting = start_gearfleet("submit", "-s", shared_node.address, function.decode(), "x")
        eventually(lambda: (shared_node.status(function) or (0, 0, 0))[0] == 1)
        said_at = time.monotonic() + NO_WORKER_SECONDS + 1
        eventually(lambda: time.monotonic() > said_at)
        worker.complete(worker.grab_one().handle)
        assert waiting.wait() == 0
    assert waiting.stderr == b""


def test_a_refused_submit_is_explained_in_words_for_the_shell(
    gearfleet: RunCommand, shared_node: Node, function: bytes
) -> None:
    name, at = function.decode(), ["-s", shared_node.address]
    assert gearfleet("maxqueue", name, "1", *at).code == 0
    submit = ["submit", "-b", *at, name, "x", "--timeout", "0.3"]
    handle = gearfleet(*submit).out.decode().strip()
    ended = gearfleet(*submit)
    assert ended.code == 1
    assert b"takes no such job now: Job queue is full. Nothing was queued." in ended.err
    assert b"gearfleet maxqueue the limits" in ended.err
    record = json.loads(gearfleet(*submit, "--json").out)
    assert record["error"]["type"] == "ServerBusy"
    for library_word in ("unique key", "result(", "map("):
        assert library_word not in ended.err.decode() + record["error"]["message"]
    assert gearfleet("cancel", handle, *at).code == 0
    assert gearfleet("maxqueue", name, "0", *at).code == 0


def test_ctrl_c_is_no_traceback(shared_node: Node, function: bytes) -> None:
    program = Program([GEARFLEET, "submit", "-s", shared_node.address, function.decode(), "x"])
    try:
        eventually(lambda: (shared_node.status(function) or (0, 0, 0))[0] == 1)
        program.process.send_signal(2)
        assert program.wait() == 130
        assert b"Traceback" not in program.stderr
    finally:
        program.close()


def test_the_command_is_quick_to_start() -> None:
    code = (
        "import sys; from cluster.cli import main; main(['--help'])\n"
        "sys.exit(any(m in sys.modules for m in ('pydantic', 'rich.live', 'asyncio')))"
    )
    assert run_process(str(Path(GEARFLEET).with_name("python")), "-c", code).code == 0


@pytest.mark.parametrize(
    ("text", "moment"), [("+90s", 1090), ("+10m", 1600), ("+2", 1002), ("1760000000", 1760000000)]
)
def test_moments(text: str, moment: float) -> None:
    assert read_moment(text, 1000) == moment


def test_a_moment_without_a_zone_is_local_time() -> None:
    assert read_moment("2026-12-01T08:30:00+00:00", 0) == 1796113800


@pytest.mark.parametrize(
    "text",
    [
        "1 of at least 2 in-sync copies of this job's slot are up: start b again",
        "the in-sync copies of this job's slot do not answer: b; nothing acknowledged is lost",
        "no node leads this job's slot now; try again later",
    ],
)
def test_a_refusal_for_the_copies_is_not_blamed_on_the_queue(text: str) -> None:
    words = in_words(ServerBusy("QUEUE_ERROR", text, "node-1:4730", "f"), None)
    assert text in words
    assert "gearfleet nodes shows what a fleet lacks" in words
    assert "maxqueue" not in words
    assert "Nothing was queued" not in words  # nobody knows


def test_a_refused_job_tells_what_the_node_lacks(
    gearfleet: RunCommand, start_node: StartNode, tmp_path: Path
) -> None:
    failing = FailingCalls(tmp_path / "failing")
    node = start_node(environment=failing.environment)
    failing.fail("pwrite")
    ended = gearfleet("submit", "f", "x", "-b", "--timeout", "0.5", "-s", node.address)
    assert ended.code == 1
    assert ended.err.count(b"make room on the disk") == 1
    for not_so in (b"maxqueue", b"waits for a copy", b"gearfleet nodes"):  # it is one node, and its own disk
        assert not_so not in ended.err
    assert b"submit it again, with the same --unique" in ended.err
