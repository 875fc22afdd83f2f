"""gearfleet gearman against gearman: the same arguments, the same bytes and exit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.wire import packets as wire
from tests.cli.conftest import GEARFLEET, Ended, RunCommand, run_stock
from tests.support import Gearmand, Node, need_command
from tests.support.node import ServerProcess
from tests.support.program import Program, wait_for_workers

# Function: the arguments of the worker that does it.
WORKERS = {
    "count": ["--", "wc", "-c"],
    "fail": ["--", "sh", "-c", "cat; echo bad; exit 3"],
    "lines": ["-n", "--", "sh", "-c", "cat; echo a"],
    "cat": ["--", "cat"],
}


Gearman = Callable[..., Ended]


@pytest.fixture
def gearman(gearfleet: RunCommand) -> Gearman:
    """Run `gearfleet gearman`; it calls itself by the stock tool's name, to be compared."""

    def run(*arguments: str, feed: bytes = b"") -> Ended:
        ended = gearfleet("gearman", *arguments, feed=feed)
        own, stock = b"gearfleet gearman", b"gearman"
        return ended._replace(out=ended.out.replace(own, stock), err=ended.err.replace(own, stock))

    return run


@pytest.fixture(scope="module", params=["stock workers", "our workers"])
def served(request: pytest.FixtureRequest, stock_gearmand: Gearmand) -> Iterator[Gearmand]:
    """A gearmand with workers by one of the two tools."""
    tool = ["gearman"] if request.param == "stock workers" else [GEARFLEET, "gearman"]
    programs = []
    try:
        for function, command in WORKERS.items():
            programs.append(Program([*tool, "-p", str(stock_gearmand.port), "-w", "-f", function, *command]))
        for function in WORKERS:
            wait_for_workers(stock_gearmand, function.encode())
        yield stock_gearmand
    finally:
        for program in programs:
            program.close()


@pytest.mark.parametrize(
    ("arguments", "feed"),
    [
        (["-f", "count", "abc"], b""),
        (["-f", "count", "abc", "defg"], b""),
        (["-fcount", "-f", "count", "abc"], b""),
        (["-P", "-f", "count", "abc"], b""),
        (["-f", "count"], b"hello\nworld\n"),
        (["-f", "count", "-n"], b"hello\nworld\n"),
        (["-f", "count", "-N"], b"hello\nworld\n"),
        (["-nPf", "count"], b"hello\nworld\n"),
        (["-f", "count", "-s"], b"ignored"),
        (["-f", "fail", "abc"], b""),
        (["-P", "-f", "fail", "abc", "def"], b""),
        (["-f", "lines", "abc\n"], b""),
        (["-f", "cat", "-f", "cat", "-P", "x"], b""),
        (["-f", "cat", "abc", "-I"], b""),
        (["abc", "-f", "cat", "--", "-I"], b""),
        (["-L", "-u", "key", "-f", "cat", "abc"], b""),
        (["-b", "-f", "cat", "abc"], b""),
        (["-c", "x", "-t", "9000", "-f", "cat", "abc"], b""),
    ],
)
def test_a_client_prints_the_same(
    gearman: Gearman, served: Gearmand, arguments: list[str], feed: bytes
) -> None:
    given = ["-p", str(served.port), *arguments]
    assert gearman(*given, feed=feed) == run_stock("gearman", *given, feed=feed)


@pytest.mark.parametrize("arguments", [[], ["-H"], ["-w"], ["-b", "-n", "-H"]])
def test_help_is_the_same(gearman: Gearman, arguments: list[str]) -> None:
    assert gearman(*arguments) == run_stock("gearman", *arguments)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["-p", "1", "-f", "f", "x"], b"GEARMAN_COULD_NOT_CONNECT"),
        (["-p", "1", "-w", "-c", "1", "-f", "f"], b"GEARMAN_COULD_NOT_CONNECT"),
        (["-f", "", "x"], b"GEARMAN_INVALID_ARGUMENT"),
        (["-f", "f" * 600, "x"], b"GEARMAN_INVALID_ARGUMENT"),
        (["-f", "f", "-u", "u" * 70, "x"], b"GEARMAN_INVALID_ARGUMENT"),
    ],
)
def test_faults_have_the_same_code_and_exit(gearman: Gearman, arguments: list[str], fault: bytes) -> None:
    ended, expected = gearman(*arguments), run_stock("gearman", *arguments)
    assert ended.code == expected.code
    assert ended.out == expected.out == b""
    assert fault in ended.err
    assert fault in expected.err


def test_verbose_names_the_handle_and_the_server_list_wins(
    stock_gearmand: Gearmand, gearman: Gearman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVER", stock_gearmand.address)
    ended = gearman("-p", "1", "-bv", "-f", "unworked", "x")
    assert ended.code == 0
    assert ended.out.startswith(b"Task created: H:")


@pytest.mark.parametrize("worker", [False, True])
def test_a_time_out_is_said(stock_gearmand: Gearmand, gearman: Gearman, worker: bool) -> None:
    given = ["-p", str(stock_gearmand.port), "-t", "50", "-f", "nobody"]
    ended = gearman(*given, *(["-w", "-c", "1"] if worker else ["x"]))
    assert ended.code == 0
    assert b"GEARMAN_TIMEOUT" in ended.err


def test_a_worker_without_a_command_prints_the_payloads_and_ends_after_its_count(
    gearman: Gearman, shared_node: Node, function: bytes
) -> None:
    given = ["-h", shared_node.host, "-p", str(shared_node.port), "-f", function.decode()]
    assert gearman(*given, "-b", "one", "two").code == 0
    assert gearman(*given, "-w", "-c", "2") == Ended(0, b"onetwo", b"")
    assert shared_node.status(function) in (None, (0, 0, 0))


def start_worker(server: ServerProcess, function: bytes, *command: str) -> Program:
    worker = Program(
        [
            GEARFLEET,
            "gearman",
            "-h",
            server.host,
            "-p",
            str(server.port),
            "-w",
            "-f",
            function.decode(),
            *command,
        ]
    )
    wait_for_workers(server, function)
    return worker


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["--", "sh", "-c", "echo x; kill -9 $$"], Ended(1, b"x\n", b"Job failed\n")),
        (["--", "/nowhere/at/all"], Ended(1, b"", b"Job failed\n")),
        (["-n", "--", "printf", "a\\nb"], Ended(0, b"a\nb", b"")),
        (["-N", "--", "printf", "a\\nb"], Ended(0, b"ab", b"")),
        (["--", "true"], Ended(0, b"", b"")),
    ],
    ids=["killed", "missing", "lines", "stripped", "reads nothing"],
)
def test_a_worker_does_not_repeat_the_stock_tools_faults(
    gearman: Gearman, shared_node: Node, function: bytes, command: list[str], result: Ended
) -> None:
    worker = start_worker(shared_node, function, *command)
    try:
        given = ["-h", shared_node.host, "-p", str(shared_node.port), "-f", function.decode()]
        # More than a pipe holds: a command that does not read must not stop the worker.
        assert gearman(*given, feed=b"x" * 300_000) == result
    finally:
        worker.close()


def test_a_worker_comes_back_when_its_server_does(node: Node, function: bytes) -> None:
    worker = Program(
        [GEARFLEET, "gearman", "-h", node.host, "-p", str(node.port), "-w", "-f", function.decode()]
    )
    try:
        wait_for_workers(node, function)
        node.kill()
        node.options += ["--port", str(node.port)]
        node.restart()
        wait_for_workers(node, function)
    finally:
        worker.close()


def test_the_pid_file_is_there_while_it_runs(shared_node: Node, function: bytes, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    worker = start_worker(shared_node, function, "-i", str(pid_file))
    try:
        assert int(pid_file.read_text()) == worker.process.pid
    finally:
        worker.close()


@pytest.mark.parametrize("command", [["gearman"], [GEARFLEET, "gearman"]], ids=["stock", "ours"])
def test_progress_is_a_share_also_of_what_is_no_number(
    shared_node: Node, function: bytes, command: list[str]
) -> None:
    need_command(command[0])
    program = Program([*command, "-p", str(shared_node.port), "-f", function.decode(), "payload"])
    try:
        with shared_node.connect() as worker:
            worker.can_do(function)
            handle = worker.wait_for_job().handle
            for numbers in ((b"1", b"4"), (b"1.5", b"2%"), (b"0.5", b"1"), (b"", b"7")):
                worker.send(wire.WORK_STATUS, handle, *numbers)
            worker.complete(handle, b"done")
            worker.settle()
        # The stock tool buffers the one and not the other
        shares = program.output().replace(b"done", b"")
        assert shares == b"25% Complete\n50% Complete\n0% Complete\n0% Complete\n"
    finally:
        program.close()
