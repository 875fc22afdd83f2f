"""Debian's `gearman` and `gearadmin` (package gearman-tools, libgearman) against a node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.wire import packets as wire
from tests.support import Node, eventually, needs_command
from tests.support.peer import Peer
from tests.support.program import RunProgram, wait_for_workers

pytestmark = needs_command("gearman")

Connect = Callable[..., Peer]


@pytest.fixture
def gearman(shared_node: Node, run_program: RunProgram) -> RunProgram:
    """The stock command, pointed at the node."""

    def run(*arguments: str, feed: bytes | None = None) -> object:
        return run_program("gearman", "-h", "127.0.0.1", "-p", str(shared_node.port), *arguments, feed=feed)

    return run


@pytest.fixture
def gearadmin(shared_node: Node, run_program: RunProgram) -> Callable[..., str]:
    """The stock administration command; returns what it printed."""

    def run(*arguments: str) -> str:
        program = run_program("gearadmin", "-h", "127.0.0.1", "-p", str(shared_node.port), *arguments)
        return program.output().decode()

    return run


class TestClientAndWorker:
    def test_a_job_and_its_result(self, shared_node: Node, gearman: RunProgram, function: bytes) -> None:
        # Given the stock worker, which counts letters
        name = function.decode()
        gearman("-w", "-f", name, "--", "wc", "-c")
        wait_for_workers(shared_node, function)
        # When the stock client sends it five
        result = gearman("-f", name, "-s", "hello").output()
        # Then it prints the answer
        assert result.strip() == b"5"

    def test_a_job_read_from_standard_input(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        gearman("-w", "-f", function.decode())
        wait_for_workers(shared_node, function)
        # Without a command the worker prints the payload and completes with nothing: the client ends well
        payload = bytes(range(256)) * 1000
        assert gearman("-f", function.decode(), feed=payload).wait() == 0

    def test_binary_payload_and_result_come_back_unchanged(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        gearman("-w", "-f", function.decode(), "--", "cat")
        wait_for_workers(shared_node, function)
        payload = bytes(range(256)) * 400
        assert gearman("-f", function.decode(), feed=payload).output() == payload

    def test_one_job_per_line_and_data_per_line(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        # Given a worker that sends a data packet for each line of output, and ends after two jobs
        worker = gearman("-w", "-n", "-c", "2", "-f", function.decode(), "--", "sed", "s/$/!\\nand/")
        wait_for_workers(shared_node, function)
        # When the client sends each line as a job
        result = gearman("-n", "-f", function.decode(), feed=b"one\ntwo\n").output()
        # Then all lines of both jobs come back, in order (the stock worker sends the first one twice)
        assert result.split() == [b"one!", b"one!", b"and", b"two!", b"two!", b"and"]
        worker.wait()

    def test_a_command_that_fails_fails_the_job(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        gearman("-w", "-f", function.decode(), "--", "false")
        wait_for_workers(shared_node, function)
        client = gearman("-f", function.decode(), "-s", "x")
        assert client.wait() != 0
        assert shared_node.status(function) == (0, 0, 1)

    def test_several_functions_with_prefixed_output(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        upper, lower = f"{function.decode()}-upper", f"{function.decode()}-lower"
        gearman("-w", "-f", upper, "--", "tr", "a-z", "A-Z")
        gearman("-w", "-f", lower, "--", "tr", "A-Z", "a-z")
        wait_for_workers(shared_node, upper.encode())
        wait_for_workers(shared_node, lower.encode())
        result = gearman("-P", "-f", upper, "-f", lower, "-s", "Mixed").output()
        assert f"{upper}: MIXED".encode() in result
        assert f"{lower}: mixed".encode() in result

    def test_background_jobs_by_priority(
        self, gearman: RunProgram, connect: Connect, function: bytes
    ) -> None:
        # Given background jobs submitted low, normal, high
        for flags, payload in (("-bL", "low"), ("-b", "normal"), ("-bI", "high")):
            gearman(flags, "-f", function.decode(), "-s", payload).output()
        # When a worker takes them
        worker = connect()
        worker.can_do(function)
        order = []
        for _ in range(3):
            job = worker.grab_one()
            order.append(job.payload)
            worker.complete(job.handle)
        # Then the highest comes first
        assert order == [b"high", b"normal", b"low"]

    def test_a_worker_takes_jobs_with_keys_of_64_bytes(
        self, shared_node: Node, gearman: RunProgram, connect: Connect, function: bytes
    ) -> None:
        gearman("-w", "-f", function.decode(), "--", "cat")
        wait_for_workers(shared_node, function)
        client = connect()
        for unique in (b"0123456789abcdef" * 4, b"f" * 64):
            handle = client.submit(function, b"payload", unique)
            client.expect(wire.WORK_COMPLETE, handle, b"payload")

    def test_clients_with_one_unique_share_one_run(
        self, shared_node: Node, gearman: RunProgram, connect: Connect, function: bytes
    ) -> None:
        # Given two clients that wait for the same unique
        clients = [gearman("-u", "the-same", "-f", function.decode(), "-s", "x") for _ in range(2)]
        eventually(lambda: len(_rows(shared_node.table("workers"), "-")) >= 2)
        worker = connect()
        worker.can_do(function)
        job = worker.wait_for_job()
        assert job.unique == b"the-same"

        def both_are_attached() -> bool:
            known = worker.ask(wire.GET_STATUS_UNIQUE, b"the-same")
            return known.arguments[5] == b"2"

        eventually(both_are_attached)
        # When the one job is done
        worker.complete(job.handle, b"once")
        # Then both print its result, and there was no second job
        assert [client.output() for client in clients] == [b"once", b"once"]
        assert worker.grab() is None

    def test_a_background_client_need_not_wait(
        self, shared_node: Node, gearman: RunProgram, function: bytes
    ) -> None:
        # Given no worker at all
        assert gearman("-b", "-f", function.decode(), "-s", "later").wait() == 0
        # Then the job is there
        assert shared_node.status(function) == (1, 0, 0)
        # And the stock worker, started afterwards, runs it
        worker = gearman("-w", "-c", "1", "-f", function.decode(), "--", "cat")
        worker.wait()
        eventually(lambda: (shared_node.status(function) or (0,))[0] == 0)

    def test_a_worker_s_death_gives_its_job_to_the_next(
        self, shared_node: Node, gearman: RunProgram, connect: Connect, function: bytes
    ) -> None:
        # Given a client whose job is held by a worker that goes away
        client = gearman("-f", function.decode(), "-s", "precious")
        lost = connect()
        lost.can_do(function)
        assert lost.wait_for_job().payload == b"precious"
        lost.close()
        # When the stock worker comes
        gearman("-w", "-f", function.decode(), "--", "cat")
        # Then the client gets its result
        assert client.output() == b"precious"


def _rows(rows: list[str], client_id: str) -> list[str]:
    return [row for row in rows if row.split()[2:3] == [client_id]]


class TestGearadmin:
    def test_server_version(self, gearadmin: Callable[..., str]) -> None:
        assert gearadmin("--server-version").strip()

    def test_server_verbose(self, gearadmin: Callable[..., str]) -> None:
        assert gearadmin("--server-verbose").strip()

    def test_getpid(self, shared_node: Node, gearadmin: Callable[..., str]) -> None:
        assert gearadmin("--getpid").strip() == str(shared_node.process_id)

    def test_create_and_drop_function(
        self, shared_node: Node, gearadmin: Callable[..., str], function: bytes
    ) -> None:
        name = function.decode()
        gearadmin(f"--create-function={name}")
        assert shared_node.status(function) == (0, 0, 0)
        gearadmin(f"--drop-function={name}")
        assert shared_node.status(function) is None

    def test_status_and_priority_status(
        self, gearadmin: Callable[..., str], connect: Connect, function: bytes
    ) -> None:
        client, worker = connect(), connect()
        client.submit(function, background=True, priority="high")
        client.submit(function, background=True)
        client.submit(function, background=True)
        worker.can_do(function)
        worker.grab_one()
        name = function.decode()
        assert f"{name}\t3\t1\t1" in gearadmin("--status").splitlines()
        assert f"{name}\t0\t2\t0\t1" in gearadmin("--priority-status").splitlines()

    def test_workers(self, gearadmin: Callable[..., str], connect: Connect, function: bytes) -> None:
        worker = connect()
        worker.send(wire.SET_CLIENT_ID, b"name-of-" + function)
        worker.can_do(function)
        rows = _rows(gearadmin("--workers").splitlines(), f"name-of-{function.decode()}")
        assert len(rows) == 1
        assert rows[0].split()[1] == "127.0.0.1"
        assert rows[0].endswith(f" : {function.decode()}")

    def test_jobs_unique_jobs_and_cancel(
        self, shared_node: Node, gearadmin: Callable[..., str], connect: Connect, function: bytes
    ) -> None:
        unique = b"unique-of-" + function
        handle = connect().submit(function, unique=unique, background=True).decode()
        assert any(row.startswith(f"{handle}\t") for row in gearadmin("--show-jobs").splitlines())
        assert unique.decode() in gearadmin("--show-unique-jobs").splitlines()
        gearadmin(f"--cancel-job={handle}")
        assert not any(row.startswith(f"{handle}\t") for row in gearadmin("--show-jobs").splitlines())
        assert shared_node.status(function) in ((0, 0, 0), None)
