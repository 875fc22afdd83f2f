"""Every text command, as a transcript with a real node. Replies are gearmand's, byte for byte, where it has
the command and no fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.wire import TEXT
from cluster.wire import packets as wire
from tests.support import Node, Peer, eventually

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


def raw(peer: Peer, command: str, end: bytes) -> bytes:
    """The bytes of a reply, up to its end."""
    peer.send_bytes(command.encode() + b"\n")
    reply = b""
    while not reply.endswith(end):
        data = peer.socket.recv(65536)
        assert data, f"closed after {reply!r}"
        reply += data
    return reply


# ---- status


def test_status_counts_all_running_and_workers(shared_node: Node, connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    for _ in range(3):
        client.submit(function, background=True)
    assert shared_node.status(function) == (3, 0, 0)
    worker.can_do(function)
    job = worker.grab_one()
    assert shared_node.status(function) == (3, 1, 1)
    worker.complete(job.handle)
    worker.settle()
    assert shared_node.status(function) == (2, 0, 1)


def test_status_lists_a_function_without_workers_and_jobs_until_it_is_dropped(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    worker = connect()
    worker.can_do(function)
    assert shared_node.status(function) == (0, 0, 1)
    worker.send(wire.CANT_DO, function)
    worker.settle()
    # An alarm on "no worker" goes on
    assert shared_node.status(function) == (0, 0, 0)
    assert worker.line(f"drop function {function.decode()}") == "OK"
    assert shared_node.status(function) is None


def test_an_idle_function_is_forgotten_after_its_time(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--idle-function-seconds", "0.2")
    worker = connect(node)
    worker.can_do(b"f")
    worker.send(wire.CANT_DO, b"f")
    worker.settle()
    eventually(lambda: node.status("f") is None)


def test_status_never_goes_below_zero(shared_node: Node, connect: Connect, function: bytes) -> None:
    # gearmand's counters have gone to -1 on what follows
    client, worker, canceller = connect(), connect(), connect()
    worker.can_do(function)
    handle = client.submit(function, background=True)
    worker.grab_one()
    canceller.line(f"cancel job {handle.decode()}")
    worker.complete(handle)
    worker.send(wire.CANT_DO, function)
    worker.settle()
    worker.close()
    eventually(lambda: shared_node.status(function) in (None, (0, 0, 0)))
    assert not [row for row in shared_node.table("status") if "\t-" in row]


def test_replies_are_gearmand_s_bytes(node: Node, connect: Connect) -> None:
    # Given a node with one job of one function
    client = connect(node)
    client.submit(b"f", b"", b"u", background=True)
    # Then each reply has the form that monitors parse
    assert raw(client, "status", b".\n") == b"f\t1\t0\t0\n.\n"
    assert raw(client, "prioritystatus", b".\n") == b"f\t0\t1\t0\t0\n.\n"
    assert raw(client, "show unique jobs", b".\n") == b"u\n.\n"
    assert raw(client, "create function g", b"\n") == b"OK\r\n"
    assert raw(client, "drop function g", b"\n") == b"OK\r\n"
    assert raw(client, "drop function g", b"\n") == b"ERR function not found\r\n"
    assert raw(client, "maxqueue g 1", b"\n") == b"OK\r\n"
    assert raw(client, "cancel job H:x", b"\n") == b"ERR UNKNOWN_JOB\r\n"
    assert raw(client, "show nothing", b"\n") == b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"
    assert raw(client, "getpid", b"\n") == b"OK %d\n" % node.process_id


def test_prioritystatus_counts_what_waits(shared_node: Node, connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    for priority, count in (("high", 1), ("normal", 2), ("low", 3)):
        for _ in range(count):
            client.submit(function, background=True, priority=priority)
    worker.can_do(function)
    worker.grab_one()
    assert f"{function.decode()}\t0\t2\t3\t1" in shared_node.table("prioritystatus")


# ---- workers


def test_workers_lists_every_connection_with_its_functions(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    # Given a worker with a name and a client that does nothing
    worker, client = connect(), connect()
    worker.send(wire.SET_CLIENT_ID, b"id-of-" + function)
    worker.can_do(function, function + b"-2")
    client.settle()
    # When anyone asks, then both are there, and so is who asks
    rows = client.table("workers")
    name = function.decode()
    [mine] = [row for row in rows if f"id-of-{name}" in row]
    descriptor, address, client_id, colon, *functions = mine.split(" ")
    assert descriptor.isdigit()
    assert (address, client_id, colon) == ("127.0.0.1", f"id-of-{name}", ":")
    assert sorted(functions) == [name, f"{name}-2"]
    idle = [row for row in rows if row.endswith(" 127.0.0.1 - :")]
    assert idle


# ---- show


def test_show_jobs_tells_retries_and_whether_it_waits(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, worker = connect(), shared_node.connect()
    handle = client.submit(function, background=True).decode()

    def row() -> str | None:
        return next((row for row in shared_node.table("show jobs") if row.startswith(handle + "\t")), None)

    # HANDLE, RETRIES, IGNORE, QUEUED
    assert row() == f"{handle}\t0\t0\t1"
    worker.can_do(function)
    worker.grab_one()
    assert row() == f"{handle}\t0\t0\t0"
    worker.close()
    eventually(row, f"{handle}\t1\t0\t1")


def test_show_unique_jobs_lists_the_uniques(shared_node: Node, connect: Connect, function: bytes) -> None:
    connect().submit(function, unique=b"unique-of-" + function, background=True)
    assert f"unique-of-{function.decode()}" in shared_node.table("show unique jobs")


# ---- cancel


def test_cancel_ends_a_waiting_job_at_once(shared_node: Node, connect: Connect, function: bytes) -> None:
    # Given a queued job that a client waits for, and one behind it
    client, worker = connect(), connect()
    handle = client.submit(function, b"cancelled")
    client.submit(function, b"next", background=True)
    # When it is cancelled
    assert shared_node.line(f"cancel job {handle.decode()}") == "OK"
    # Then its client is told, it is in no count and in no list, and no worker gets it
    client.expect(wire.WORK_FAIL, handle)
    assert shared_node.status(function) == (1, 0, 0)
    assert not [row for row in shared_node.table("show jobs") if row.startswith(handle.decode() + "\t")]
    assert shared_node.line(f"cancel job {handle.decode()}") == "ERR UNKNOWN_JOB"
    worker.can_do(function)
    assert worker.grab_one().payload == b"next"


def test_cancel_of_a_running_job_drops_its_result_in_silence(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function)
    worker.grab_one()
    # When a running job is cancelled, then it is gone at once
    assert shared_node.line(f"cancel job {handle.decode()}") == "OK"
    client.expect(wire.WORK_FAIL, handle)
    assert shared_node.status(function) == (0, 0, 1)
    # And its worker, which knows nothing of it, may go on and deliver without an error
    worker.send(wire.WORK_DATA, handle, b"late")
    worker.send(wire.WORK_STATUS, handle, b"1", b"2")
    worker.complete(handle, b"late")
    worker.settle()
    client.settle()


def test_a_cancelled_unique_may_be_submitted_anew(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client = connect()
    first = client.submit(function, unique=b"u", background=True)
    shared_node.line(f"cancel job {first.decode()}")
    second = client.submit(function, unique=b"u", background=True)
    assert second != first
    assert shared_node.status(function) == (1, 0, 0)


def test_many_cancelled_jobs_leave_the_others_in_order(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, worker = connect(), connect()
    handles = [client.submit(function, b"%d" % number, background=True) for number in range(300)]
    for number, handle in enumerate(handles):
        if number % 10:
            client.line(f"cancel job {handle.decode()}")
    assert shared_node.status(function) == (30, 0, 0)
    worker.can_do(function)
    assert [worker.grab_one().payload for _ in range(30)] == [b"%d" % number for number in range(0, 300, 10)]
    assert worker.grab() is None


# ---- create function, drop function


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_create_function_keeps_every_letter(
    shared_node: Node, connect: Connect, function: bytes, line_end: bytes
) -> None:
    peer = connect()
    peer.send_bytes(b"create function " + function + line_end)
    peer.expect(TEXT, b"OK")
    assert shared_node.status(function) == (0, 0, 0)
    assert peer.line(f"drop function {function.decode()}") == "OK"


def test_drop_function_refuses_while_it_is_in_use(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    refused = "ERR there are still connected workers or executing clients"
    client, worker = connect(), connect()
    worker.can_do(function)
    assert client.line(f"drop function {function.decode()}") == refused
    worker.send(wire.CANT_DO, function)
    handle = client.submit(function, background=True)
    worker.settle()
    assert client.line(f"drop function {function.decode()}") == refused
    assert client.line(f"cancel job {handle.decode()}") == "OK"


def test_drop_function_takes_the_exact_name(shared_node: Node, connect: Connect, function: bytes) -> None:
    peer = connect()
    name = function.decode()
    peer.line(f"create function {name}")
    assert peer.line(f"drop function {name.upper()}") == "ERR function not found"
    assert peer.line(f"drop function {name}") == "OK"


# ---- maxqueue


def test_maxqueue_bounds_a_function_before_it_exists(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    # Given a limit for a function that nobody has used yet
    client, worker = connect(), connect()
    name = function.decode()
    assert client.line(f"maxqueue {name} 2") == "OK"
    # When more is submitted, foreground or background, running ones included
    client.submit(function, background=True)
    client.submit(function, unique=b"joined", background=True)
    worker.can_do(function)
    job = worker.grab_one()
    for packet_type in (wire.SUBMIT_JOB, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB_LOW_BG):
        client.send(packet_type, function, b"", b"")
        # Then it is refused
        assert client.expect_error(wire.QUEUE_ERROR) == b"Job queue is full"
    # But a submit that joins a job that is there is not
    client.submit(function, unique=b"joined", background=True)
    # And when a job is done there is room again
    worker.complete(job.handle)
    worker.settle()
    client.submit(function, background=True)


def test_maxqueue_has_a_limit_for_each_priority(shared_node: Node, connect: Connect, function: bytes) -> None:
    client = connect()
    client.line(f"maxqueue {function.decode()} 3 2 1")
    client.submit(function, background=True, priority="low")
    client.send(wire.SUBMIT_JOB_LOW_BG, function, b"", b"")
    client.expect_error(wire.QUEUE_ERROR)
    client.submit(function, background=True)
    client.send(wire.SUBMIT_JOB_BG, function, b"", b"")
    client.expect_error(wire.QUEUE_ERROR)
    client.submit(function, background=True, priority="high")
    client.send(wire.SUBMIT_JOB_HIGH_BG, function, b"", b"")
    client.expect_error(wire.QUEUE_ERROR)


def test_maxqueue_can_be_read_back(shared_node: Node, connect: Connect, function: bytes) -> None:
    peer = connect()
    name = function.decode()

    def limits() -> list[str]:
        return [row for row in peer.table("show maxqueue") if row.startswith(f"{name}\t")]

    assert limits() == []
    peer.line(f"maxqueue {name} 5")
    assert limits() == [f"{name}\t5\t5\t5"]
    peer.line(f"maxqueue {name} 10 20 30")
    assert limits() == [f"{name}\t10\t20\t30"]
    peer.line(f"maxqueue {name} 10 -1 0")
    assert limits() == [f"{name}\t10\t0\t0"]
    peer.line(f"maxqueue {name}")
    assert limits() in ([f"{name}\t0\t0\t0"], [])
    for _ in range(50):
        peer.submit(function, background=True)


def test_maxqueue_is_kept_over_a_restart(node: Node) -> None:
    node.line("maxqueue f 1 2 3")
    node.kill()
    node.restart()
    assert node.table("show maxqueue") == ["f\t1\t2\t3"]


# ---- getpid, verbose, version, unknown


def test_getpid_version_and_verbose(shared_node: Node, connect: Connect) -> None:
    peer = connect()
    assert peer.line("getpid") == f"OK {shared_node.process_id}"
    assert peer.line("version").startswith("OK ")
    assert peer.line("verbose").startswith("OK ")


def test_verbs_are_taken_in_any_case(shared_node: Node, connect: Connect) -> None:
    peer = connect()
    assert peer.line("VERSION") == peer.line("Version") == peer.line("version")
    assert peer.line("GetPid") == f"OK {shared_node.process_id}"


@pytest.mark.parametrize("command", ["nonsense", "nonsense with arguments", "", "tap"])
def test_an_unknown_command_is_an_error_and_the_connection_goes_on(connect: Connect, command: str) -> None:
    peer = connect()
    # gearmand names the first word only
    first_word = command.partition(" ")[0]
    assert peer.line(command) == f"ERR UNKNOWN_COMMAND Unknown+server+command{first_word}"
    peer.settle()


@pytest.mark.parametrize(
    "command",
    [
        *("cancel", "cancel job", "cancel foo bar", "create", "create function", "drop", "drop function"),
        "maxqueue",
    ],
)
def test_missing_arguments_are_an_error_and_the_connection_goes_on(connect: Connect, command: str) -> None:
    peer = connect()
    reply = peer.line(command)
    assert reply.startswith("ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent")
    peer.settle()


@pytest.mark.parametrize("command", ["maxqueue f x", "maxqueue f 1 2", "maxqueue f 1 2 3 4"])
def test_bad_numbers_are_an_error(connect: Connect, command: str) -> None:
    assert connect().line(command).startswith("ERR INVALID_ARGUMENTS ")


def test_an_over_long_function_name_is_an_error(connect: Connect) -> None:
    peer = connect()
    for verb in ("create function", "maxqueue"):
        assert peer.line(f"{verb} {'n' * 512}").startswith("ERR ")


# ---- shutdown


def test_shutdown_stops_the_node_and_keeps_its_jobs(node: Node, connect: Connect) -> None:
    peer = connect(node)
    handle = peer.submit(b"f", background=True)
    assert raw(peer, "shutdown", b"\n") == b"OK\r\n"
    assert node.wait_for_exit() == 0
    node.restart()
    assert [row.split("\t")[0] for row in node.table("show jobs")] == [handle.decode()]


def test_shutdown_graceful_waits_for_the_last_job(node: Node, connect: Connect) -> None:
    # Given a node with a running and a waiting job
    client, worker = connect(node), connect(node)
    worker.can_do(b"f")
    handles = [client.submit(b"f"), client.submit(b"f")]
    worker.grab_one()
    # When it is told to stop gracefully
    assert client.line("shutdown graceful") == "OK"
    # Then it takes no new connections
    eventually(lambda: not accepts(node))
    # But those that it has are served to the end of their jobs
    worker.complete(handles[0], b"1")
    assert worker.grab_one().handle == handles[1]
    worker.complete(handles[1], b"2")
    client.expect(wire.WORK_COMPLETE, handles[0], b"1")
    client.expect(wire.WORK_COMPLETE, handles[1], b"2")
    assert node.wait_for_exit() == 0


def accepts(node: Node) -> bool:
    """Whether a new connection is answered."""
    try:
        return node.line("version").startswith("OK")
    except (OSError, AssertionError):
        return False


def test_shutdown_may_be_forbidden(start_node: StartNode, connect: Connect) -> None:
    node = start_node("--shutdown-from", "none", durability="memory")
    peer = connect(node)
    assert peer.line("shutdown").startswith("ERR ")
    assert peer.line("shutdown graceful").startswith("ERR ")
    peer.settle()


def test_shutdown_takes_graceful_or_nothing(shared_node: Node, connect: Connect) -> None:
    peer = connect()
    assert peer.line("shutdown now please").startswith("ERR INVALID_ARGUMENTS")
    peer.settle()
