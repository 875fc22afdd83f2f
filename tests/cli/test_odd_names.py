"""What a stranger registers or submits: it fails no table, and does nothing to the operator's terminal."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from socket import create_server
from threading import Thread

import pytest

from cluster.wire import TEXT
from cluster.wire import packets as wire
from tests.cli.conftest import GEARFLEET, RunCommand
from tests.support import Node

# Escape codes of 7 and of 8 bits, a bidirectional override, bytes that are no UTF-8, rich's markup
ODD = "x\x9b31m\u202egnp[bold]".encode() + b"\xff"
ODD_SHOWN = "x\\x9b31m\\u202egnp[bold]\\xff"
# What an earlier release, or gearmand, lets a stranger register
ESCAPES = b"\x1b]0;title\x07"


@contextmanager
def server_that_says(answers: dict[bytes, bytes]) -> Iterator[str]:
    """A server with an answer for each text command; its address."""
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while line := connection.recv(1000):
                        connection.sendall(answers.get(line.strip(), b"ERR UNKNOWN_COMMAND\r\n"))

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(2)
        thread.join()


ROWS = (
    b"good\t3\t1\t2\n"
    b"site\tmail\t1\t0\t1\n"
    b"forged\n"
    b"\t9\t9\t9\n"
    b"half\t1\n" + ESCAPES + b"\t1\t0\t0\n" + ODD + b"\t1\t0\t0\n.\n"
)


def test_status_shows_all_rows_but_the_odd_ones(gearfleet: RunCommand) -> None:
    with server_that_says({b"status": ROWS}) as address:
        ended = gearfleet("status", "--json", "-s", address)
        table = gearfleet("status", "-s", address)
    assert ended.code == table.code == 0
    rows = {row["function"]: row["total"] for row in json.loads(ended.out)}
    assert rows == {
        "good": 3,
        "site\tmail": 1,
        "": 9,
        ESCAPES.decode(): 1,
        ODD.decode(errors="backslashreplace"): 1,
    }
    assert ended.err.count(b"left out") == 2
    lines = [line.split()[0] for line in table.out.decode().splitlines()[2:]]
    assert "site\\x09mail" in lines
    assert "\\x1b]0;title\\x07" in lines
    assert ODD_SHOWN in lines
    for out in (ended.out, ended.err, table.out, table.err):
        assert all(line.isprintable() for line in out.decode().split("\n"))


def test_top_shows_all_rows_but_the_odd_ones(gearfleet: RunCommand) -> None:
    workers = b"5 127.0.0.1 me" + ESCAPES + b" : good site\tmail\n.\n"
    answers = {b"status": ROWS, b"version": b"OK 1" + ESCAPES + b"\n", b"workers": workers}
    with server_that_says(answers) as address:
        ended = gearfleet("top", "--once", "-s", address)
    assert ended.code == 0
    shown = ended.out.decode()
    assert all(line.isprintable() for line in shown.split("\n"))
    assert {"good", "site\\x09mail", "\\x1b]0;title\\x07", ODD_SHOWN} <= {
        line.split()[0] for line in shown.splitlines() if line.strip()
    }


def test_workers_keep_a_tab_in_a_function_together(gearfleet: RunCommand) -> None:
    answers = {b"workers": b"5 127.0.0.1 me" + ESCAPES + b" : good site\tmail\n.\n"}
    with server_that_says(answers) as address:
        (row,) = json.loads(gearfleet("workers", "--json", "-s", address).out)
        shown = gearfleet("workers", "-s", address).out.decode()
    assert row["functions"] == ["good", "site\tmail"]
    assert all(line.isprintable() for line in shown.split("\n"))


def test_an_error_s_words_are_only_read(gearfleet: RunCommand) -> None:
    with server_that_says({b"status": b"ERR " + ESCAPES + b" no\r\n"}) as address:
        ended = gearfleet("status", "-s", address)
    assert ended.code == 1
    assert b"\\x1b]0;title\\x07" in ended.err
    assert b"\x1b" not in ended.err


@pytest.mark.parametrize("command", [["status"], ["workers"], ["top", "--once"], ["gearadmin", "--status"]])
def test_a_terminal_gets_no_escape_code(shared_node: Node, function: bytes, command: list[str]) -> None:
    # Given a worker with an odd function, and a real terminal
    master, slave = pty.openpty()
    host, port = shared_node.address.rsplit(":", 1)
    where = ["-h", host, "-p", port] if command[0] == "gearadmin" else ["-s", shared_node.address]
    with shared_node.connect() as worker:
        worker.send(wire.CAN_DO, function + ODD)
        worker.settle()
        # When the operator looks, without colours of our own
        process = subprocess.Popen(
            [GEARFLEET, *command, *where],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
        )
        os.close(slave)
        seen = b""
        try:
            while data := os.read(master, 65536):
                seen += data
        except OSError:  # the terminal's other end is closed
            pass
        finally:
            process.wait()
            os.close(master)
            # Others look at this node's tables, and not all of them can read what is no UTF-8
            worker.send(wire.CANT_DO, function + ODD)
            worker.send_bytes(b"drop function " + function + ODD + b"\n")
            assert worker.expect(TEXT) == b"OK"
    # Then the name is there to be read, and nothing else of it
    assert process.returncode == 0
    text = seen.decode()
    assert "\\x9b31m\\u202egnp[bold]" in text
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
