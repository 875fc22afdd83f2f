"""status, workers, jobs, cancel, maxqueue and top, on a node and on gearmand."""

import json
import os
import pty
import socket
from contextlib import suppress
from threading import Thread

import pytest

from tests.cli.conftest import GEARFLEET, RunCommand
from tests.support import Gearmand, Node, eventually
from tests.support.node import ServerProcess


@pytest.fixture(params=["node", "gearmand"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    found = request.getfixturevalue("shared_node" if request.param == "node" else "stock_gearmand")
    assert isinstance(found, ServerProcess)
    return found


def test_status_counts_what_waits_runs_and_works(
    gearfleet: RunCommand, server: ServerProcess, function: bytes
) -> None:
    with server.connect() as client, server.connect() as worker:
        client.submit(function, b"1", background=True)
        client.submit(function, b"2", background=True, priority="high")
        ended = gearfleet("status", "-s", server.address)
        row = next(line for line in ended.out.decode().splitlines() if line.startswith(function.decode()))
        assert row.split() == [function.decode(), "2", "0", "0", "!", "no", "worker"]

        worker.can_do(function)
        running = worker.grab_one()
        listed = json.loads(gearfleet("status", "--json", "-s", server.address).out)
        expected = {
            "server": server.address,
            "function": function.decode(),
            "total": 2,
            "running": 1,
            "workers": 1,
        }
        assert expected in listed
        priorities = json.loads(gearfleet("status", "--priorities", "--json", "-s", server.address).out)
        row = next(row for row in priorities if row["function"] == function.decode())
        assert (row["high"], row["normal"], row["low"]) == (0, 1, 0)
        worker.complete(running.handle)
        worker.complete(worker.grab_one().handle)
        worker.settle()


def test_workers_are_listed_with_what_they_can_do(
    gearfleet: RunCommand, server: ServerProcess, function: bytes
) -> None:
    with server.connect() as worker:
        worker.can_do(function)
        listed = json.loads(gearfleet("workers", "--json", "-s", server.address).out)
        assert [row["address"] for row in listed if function.decode() in row["functions"]] == ["127.0.0.1"]


def test_a_job_is_listed_and_cancelled_once(
    gearfleet: RunCommand, server: ServerProcess, function: bytes
) -> None:
    with server.connect() as client:
        handle = client.submit(function, background=True).decode()
    listed = json.loads(gearfleet("jobs", "--json", "-s", server.address).out)
    assert [row["state"] for row in listed if row["handle"] == handle] == ["waiting"]

    ended = gearfleet("cancel", handle, "H:nowhere:1", "-s", server.address)

    assert ended.code == 1
    assert ended.out.decode() == f"cancelled {handle}\n"
    assert b"no job H:nowhere:1" in ended.err


@pytest.mark.parametrize("words", [["cancel", "H:nowhere:1"], ["cancel", "nokey"], ["job", "nokey"]])
def test_a_job_may_be_on_a_server_that_did_not_answer(
    gearfleet: RunCommand, shared_node: Node, words: list[str]
) -> None:
    ended = gearfleet(*words, "-s", f"127.0.0.1:1,{shared_node.address}")
    assert ended.code == 1
    assert f"job {words[1]} is unknown: 127.0.0.1:1 did not answer and may have it" in ended.err.decode()
    assert b"never here" not in ended.err
    ended = gearfleet(*words, "-s", shared_node.address)
    assert f"no job {words[1]}: it is done, or was never here" in ended.err.decode()


@pytest.mark.parametrize("key", ["order 7", "order-7", "H:7"])
def test_a_job_is_cancelled_by_its_key(
    gearfleet: RunCommand, shared_node: Node, function: bytes, key: str
) -> None:
    name, at = function.decode(), ["-s", shared_node.address]
    for words in [["-f", name]] if key.startswith("H:") else [[], ["-f", name]]:
        handle = gearfleet("submit", "-b", "-u", key, name, "x", *at).out
        ended = gearfleet("cancel", key, *words, *at)
        assert (ended.code, ended.out) == (0, b"cancelled " + handle)
        assert gearfleet("job", handle.decode().strip(), *at).code == 1


def test_a_schedule_is_cancelled_by_its_key(
    gearfleet: RunCommand, shared_node: Node, function: bytes
) -> None:
    name, at = function.decode(), ["-s", shared_node.address]
    handle = gearfleet("submit", name, "x", "-u", "nightly-c", "--cron", "0 3 * * *", *at).out
    assert gearfleet("cancel", "nightly-c", "-f", name, *at).out == b"cancelled " + handle


def test_a_key_of_several_jobs_cancels_none_of_them(
    gearfleet: RunCommand, shared_node: Node, function: bytes
) -> None:
    at = ["-s", shared_node.address]
    names = [function.decode() + tail for tail in ("-1", "-2")]
    handles = [gearfleet("submit", "-b", "-u", "twice", name, "x", *at).out.strip() for name in names]
    ended = gearfleet("cancel", "twice", *at)
    assert (ended.code, ended.out) == (1, b"")
    assert all(handle in ended.err for handle in handles)
    assert b"give --function" in ended.err
    for name in names:
        assert gearfleet("cancel", "twice", "-f", name, *at).code == 0


def test_gearmand_knows_handles_only(gearfleet: RunCommand, stock_gearmand: Gearmand) -> None:
    ended = gearfleet("cancel", "some-key", "-s", stock_gearmand.address)
    assert ended.code == 1
    assert b"gearmand finds none by its key: gearfleet jobs lists all" in ended.err


def test_a_limit_is_set_read_back_and_taken_away(
    gearfleet: RunCommand, shared_node: Node, function: bytes
) -> None:
    name, at = function.decode(), ["-s", shared_node.address]
    assert gearfleet("maxqueue", name, *at).out.decode() == f"No limit for {name}.\n"
    assert gearfleet("maxqueue", name, "3", "2", "1", *at).code == 0
    assert json.loads(gearfleet("maxqueue", name, "--json", *at).out) == [
        {"server": shared_node.address, "function": name, "high": 3, "normal": 2, "low": 1}
    ]
    assert gearfleet("maxqueue", name, "-1", *at).code == 0
    assert gearfleet("maxqueue", name, *at).out.decode() == f"No limit for {name}.\n"


def test_gearmand_takes_a_limit_but_cannot_say_it(gearfleet: RunCommand, stock_gearmand: Gearmand) -> None:
    assert gearfleet("maxqueue", "f", "3", "-s", stock_gearmand.address).code == 0
    ended = gearfleet("maxqueue", "-s", stock_gearmand.address)
    assert ended.code == 1
    assert b"gearmand can set limits but not show them" in ended.err


def test_two_numbers_are_no_limit(gearfleet: RunCommand) -> None:
    assert gearfleet("maxqueue", "f", "1", "2").code == 2


def test_a_server_that_is_down_is_named_and_the_others_answer(
    gearfleet: RunCommand, shared_node: Node
) -> None:
    ended = gearfleet("status", "-s", f"127.0.0.1:1,{shared_node.address}")
    assert ended.code == 0
    assert b"127.0.0.1:1: no connection (connection refused); check the address" in ended.err


@pytest.mark.parametrize("command", [["status"], ["workers"], ["jobs"], ["cancel", "H:x:1"], ["maxqueue"]])
def test_without_any_server_the_exit_code_is_3(gearfleet: RunCommand, command: list[str]) -> None:
    ended = gearfleet(*command, "-s", "127.0.0.1:1")
    assert ended.code == 3
    assert b"no server answered. 127.0.0.1:1: no connection (connection refused)" in ended.err


def test_an_address_with_a_slip_is_a_usage_error(gearfleet: RunCommand) -> None:
    ended = gearfleet("status", "-s", "[::1")
    assert ended.code == 2
    assert b"write IPv6 as" in ended.err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"check that this is a Gearman server"),
        (
            b"",
            b"it closed the connection; check that this is a Gearman port, and whether it wants TLS (--tls)",
        ),
        (b"x" * 1_000_000, b"a line without end"),
    ],
)
def test_a_peer_that_is_no_gearman_server_is_said_so(
    gearfleet: RunCommand, answer: bytes, message: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            # The client may have seen enough before all was sent.
            with connection, suppress(ConnectionError):
                connection.recv(100)
                connection.sendall(answer)

        server = Thread(target=serve)
        server.start()
        ended = gearfleet("status", "-s", f"127.0.0.1:{listener.getsockname()[1]}")
        server.join()
    assert ended.code == 3
    assert message in ended.err


def test_the_environment_names_the_servers(
    gearfleet: RunCommand, shared_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", shared_node.address)
    assert gearfleet("status").code == 0


def test_top_prints_one_look(gearfleet: RunCommand, server: ServerProcess, function: bytes) -> None:
    with server.connect() as client:
        client.submit(function, background=True)
        ended = gearfleet("top", "--once", "-s", server.address)
        assert ended.code == 0
        text = ended.out.decode()
        assert server.line("version").removeprefix("OK ") in text
        assert "! no worker" in next(line for line in text.splitlines() if line.startswith(function.decode()))


def test_top_without_a_server_ends_with_3(gearfleet: RunCommand) -> None:
    ended = gearfleet("top", "--once", "-s", "127.0.0.1:1")
    assert ended.code == 3
    assert b"connection refused" in ended.out


def test_top_on_a_terminal_shows_new_jobs_and_ends_at_q(shared_node: Node, function: bytes) -> None:
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.environ.update(COLUMNS="80", LINES="500", TERM="xterm")
        os.execv(GEARFLEET, [GEARFLEET, "top", "--interval", "0.1", "-s", shared_node.address])
    shown = b""

    def sees(text: bytes) -> bool:
        nonlocal shown
        shown += os.read(terminal, 65536)
        return text in shown

    try:
        eventually(lambda: sees(b"Connections"))
        with shared_node.connect() as client:
            client.submit(function, background=True)
        eventually(lambda: sees(function))
        os.write(terminal, b"q")
        eventually(lambda: sees(b"\x1b[?1049l"))  # the screen is given back
        assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0
    finally:
        os.close(terminal)
