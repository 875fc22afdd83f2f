"""The commands and a name whose first address is dead."""

from __future__ import annotations

import socket
import time

import pytest

from client_ha import Server
from cluster.cli.peer import CONNECT_SECONDS, Peer, Unreachable
from tests.cli.conftest import RunCommand
from tests.support import Node
from tests.support.dead_address import dead_first_address


@pytest.mark.parametrize(
    "command",
    [
        ["status", "-s", "NAME:PORT"],
        ["workers", "-s", "NAME:PORT"],
        ["jobs", "-s", "NAME:PORT"],
        ["submit", "-s", "NAME:PORT", "-b", "FUNCTION", "x"],
        ["gearman", "-h", "NAME", "-p", "PORT", "-b", "-f", "FUNCTION", "x"],
        ["gearadmin", "-h", "NAME", "-p", "PORT", "--status"],
    ],
    ids=lambda command: command[0],
)
def test_a_dead_first_address_costs_a_command_a_moment(
    gearfleet: RunCommand,
    shared_node: Node,
    function: bytes,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    with dead_first_address(shared_node.port, monkeypatch) as name:
        known = {"NAME": name, "PORT": str(shared_node.port), "FUNCTION": function.decode()}
        words = [known.get(word, word.replace("NAME:PORT", f"{name}:{shared_node.port}")) for word in command]
        begun_at = time.monotonic()
        ended = gearfleet(*words)
        assert (ended.code, ended.err) == (0, b"")
        assert time.monotonic() - begun_at < CONNECT_SECONDS


def test_all_addresses_are_named_when_none_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with (
            dead_first_address(port, monkeypatch) as name,
            pytest.raises(Unreachable, match=r"127\.0\.0\.1: connection refused; 127\.0\.0\.2: timed out"),
        ):
            Peer(Server(name, port), timeout_seconds=0.5)


def test_a_name_that_cannot_be_one_is_an_error_in_words(gearfleet: RunCommand) -> None:
    ended = gearfleet("status", "-s", "a..b:4730")
    assert ended.code == 3
    assert b"a..b" in ended.err
