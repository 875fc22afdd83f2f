"""The commands find their servers as the libraries do, and tell nobody a password."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import RunCommand
from tests.support import Node
from tests.support.etcd import needs_etcd
from tests.support.fleet import SHORT_LEASE, Fleet


@pytest.mark.parametrize("command", ["status", "workers", "jobs", "maxqueue"])
def test_a_name_is_looked_up(
    gearfleet: RunCommand, shared_node: Node, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", f"dns://127.0.0.1:{shared_node.port}")
    assert gearfleet(command).code == 0


def test_client_and_worker_take_it_too(gearfleet: RunCommand, shared_node: Node, function: bytes) -> None:
    name, at = function.decode(), ["-s", f"dns://127.0.0.1:{shared_node.port}"]
    assert gearfleet("submit", name, "payload", "--background", *at).code == 0
    assert gearfleet("work", name, "--count", "1", *at, "--", "cat").code == 0
    listed = json.loads(gearfleet("jobs", "-f", name, "--json", *at).out)
    assert listed == []
    assert gearfleet("gearadmin", "--status", "-p", str(shared_node.port)).code == 0


def test_the_stock_tool_takes_it_from_the_environment(
    gearfleet: RunCommand, shared_node: Node, function: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", f"dns://127.0.0.1:{shared_node.port}")
    ended = gearfleet("gearman", "-f", function.decode(), "-b", "-h", "127.0.0.1", "-p", "1", "payload")
    assert (ended.code, ended.err) == (0, b"")


@pytest.mark.parametrize(
    "text",
    [
        "etcd://root:hunter2@127.0.0.1:1/f",
        "etcd://root:hunter2@127.0.0.1:1",
        "etcdz://root:hunter2@127.0.0.1:1/f",
        "etcd://root:hun@ter2@127.0.0.1:1/f",
        "root:hunter2@127.0.0.1:4730",
        "dns://root:hunter2@127.0.0.1:4730",
        "etcd://root:hunter2@127.0.0.1:port/f",
    ],
)
@pytest.mark.parametrize("command", [["status"], ["top", "--once"], ["submit", "f", "x", "--timeout", "0.2"]])
def test_no_error_shows_a_password(gearfleet: RunCommand, text: str, command: list[str]) -> None:
    ended = gearfleet(*command, "-s", text)
    assert ended.code in (2, 3)
    assert ended.err or ended.out
    assert b"hun" not in ended.err + ended.out


@needs_etcd()
def test_etcd_tells_where_the_nodes_are(
    gearfleet: RunCommand, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Fleet(tmp_path_factory.mktemp("fleet"), ("a", "b", "c"), *SHORT_LEASE) as fleet:
        fleet.start()
        rows = json.loads(
            gearfleet("workers", "--all", "--json", "-s", f"etcd://{fleet.etcd.address}/{fleet.fleet}").out
        )
        assert {row["node"] for row in rows} == {"a", "b", "c"}
