"""The fleet's secret: made without being asked for, exchanged while the fleet runs; strangers get nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.server.proof import SECRETS_MAX, decode_secrets
from tests.cli.conftest import RunCommand
from tests.support import eventually
from tests.support.etcd import needs_etcd
from tests.support.fleet import SHORT_LEASE, Fleet

pytestmark = needs_etcd()


@pytest.fixture(scope="module")
def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Its commands need a proof over loopback, too, as they do from another machine."""
    options = (*SHORT_LEASE, "--control-from", "none")
    with Fleet(tmp_path_factory.mktemp("fleet"), ("a", "b", "c"), *options) as fleet:
        yield fleet.start(wait=False)


@pytest.fixture
def fleet(running_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, gearfleet: RunCommand) -> Fleet:
    """All is well with it, as commands see that read the secret from etcd."""
    node = running_fleet.nodes["a"]
    monkeypatch.setenv("GEARFLEET_PEER", f"{node.host}:{node.peer_port}")
    monkeypatch.setenv("GEARFLEET_FLEET", running_fleet.fleet)
    monkeypatch.setenv("GEARFLEET_ETCD", running_fleet.etcd.address)
    eventually(lambda: gearfleet("nodes", "--check").code == 0, timeout_seconds=30)
    return running_fleet


def test_without_the_secret_a_command_is_refused_and_says_where_it_is(
    fleet: Fleet, gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("an older and longer one" * 10)
    file.chmod(0o644)
    assert gearfleet("fleet", "secret", "show", "-o", str(file)).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == gearfleet("fleet", "secret", "show").out
    monkeypatch.delenv("GEARFLEET_ETCD")
    for command in (["nodes"], ["drain", "a"], ["join", "a"], ["forget", "a"], ["promote", "--lossy", "-y"]):
        ended = gearfleet(*command)
        assert ended.code == 1
        assert b"--secret-file" in ended.err
    assert gearfleet("nodes", "--check", "--secret-file", str(file)).code == 0
    monkeypatch.setenv("GEARFLEET_SECRET_FILE", str(file))
    assert gearfleet("nodes", "--check").code == 0
    file.write_text("a password\n")
    ended = gearfleet("nodes")
    assert ended.code == 2
    assert b"has no secret of a fleet" in ended.err
    assert b"a password" not in ended.err


def test_what_one_node_passes_on_to_another_is_proved_there(fleet: Fleet, gearfleet: RunCommand) -> None:
    ended = gearfleet("join", "b")
    assert (ended.code, ended.out) == (0, b"b takes part already\n")


def test_a_secret_is_exchanged_in_two_steps_and_no_stream_breaks(
    fleet: Fleet, gearfleet: RunCommand, tmp_path: Path
) -> None:
    file = tmp_path / "old"
    assert gearfleet("fleet", "secret", "show", "-o", str(file)).code == 0
    old = decode_secrets(file.read_bytes())
    assert gearfleet("fleet", "secret", "retire").code == 1
    assert gearfleet("fleet", "secret", "rotate").code == 0
    both = decode_secrets(gearfleet("fleet", "secret", "show").out)
    assert len(both) == SECRETS_MAX
    assert both[1:] == old
    assert gearfleet("fleet", "secret", "rotate").code == 1
    assert gearfleet("nodes", "--secret-file", str(file)).code == 0
    assert gearfleet("fleet", "secret", "retire").code == 0
    assert decode_secrets(gearfleet("fleet", "secret", "show").out) == both[:1]
    eventually(lambda: gearfleet("nodes", "--secret-file", str(file)).code == 1)
    assert gearfleet("nodes", "--check").code == 0
    for node in fleet.nodes.values():
        assert node.events("stream broke") == []
        assert len(node.events("no TLS between nodes")) == 1
    log = "\n".join(line for node in fleet.nodes.values() for line in map(str, node.log_lines))
    assert not any(secret.hex() in log for secret in both)


def test_an_etcd_that_cannot_be_asked_for_the_secret_is_named(
    fleet: Fleet, gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setenv("GEARFLEET_ETCD_CA", "/nonexistent")
        ended = gearfleet("nodes")
        assert ended.code == 1
        assert b"cannot be read from etcd: " in ended.err
    with monkeypatch.context() as other:
        other.setenv("GEARFLEET_ETCD", "127.0.0.1:9")
        ended = gearfleet("nodes")
        assert ended.code == 1
        assert b"cannot be read from etcd: " in ended.err


def test_a_secret_that_was_deleted_is_put_back_by_the_nodes(fleet: Fleet, gearfleet: RunCommand) -> None:
    before = gearfleet("fleet", "secret", "show").out
    fleet.etcd.delete(f"/gearfleet/{fleet.fleet}/secret")
    eventually(lambda: gearfleet("fleet", "secret", "show").out == before)
