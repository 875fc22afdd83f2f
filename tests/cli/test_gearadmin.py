"""gearfleet gearadmin against gearadmin: the same arguments to the same gearmand, the same bytes back."""

import pytest

from tests.cli.conftest import RunCommand, run_stock
from tests.support import Gearmand, Node


@pytest.mark.parametrize(
    "arguments",
    [
        ["--status"],
        ["--priority-status"],
        ["--workers"],
        ["--show-jobs"],
        ["--show-unique-jobs"],
        ["--server-version"],
        ["--server-verbose"],
        ["--getpid"],
        ["--create-function=made"],
        ["--create-function", "made"],
        ["--create-function=two words"],
        ["--drop-function=unknown"],
        ["--cancel-job=H:nowhere:1"],
        ["--cancel-job", "-x"],
        ["--status", "--workers", "--show-jobs", "--getpid", "--server-version", "--priority-status"],
        ["--stat"],
        ["--server"],
        ["--nothing"],
        ["-x"],
        ["word"],
        [],
        ["--help"],
        ["--help=3"],
        ["--getpid=3"],
        ["--getpid="],
        ["--getpid", "--getpid"],
        ["--create-function"],
        ["--create-function="],
        ["-h", "-p"],
        ["--", "--getpid"],
    ],
    ids=" ".join,
)
def test_what_it_says_is_the_same(
    gearfleet: RunCommand, stock_gearmand: Gearmand, arguments: list[str]
) -> None:
    given = [f"-p{stock_gearmand.port}", *arguments]
    assert gearfleet("gearadmin", *given) == run_stock("gearadmin", *given)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "127.0.0.1", "--port", "1", "--status"],
        ["--port=nothing", "--status"],
        ["-h", "nowhere.invalid", "--status"],
        ["-h", "", "--status"],
    ],
    ids=" ".join,
)
def test_no_server_looks_the_same(gearfleet: RunCommand, arguments: list[str]) -> None:
    assert gearfleet("gearadmin", *arguments) == run_stock("gearadmin", *arguments)


def test_both_see_the_same_node(gearfleet: RunCommand, shared_node: Node, function: bytes) -> None:
    with shared_node.connect() as peer:
        handle = peer.submit(function, background=True)
        for question in ("--status", "--priority-status", "--show-jobs", "--server-version", "--getpid"):
            given = ["-h", shared_node.host, "-p", str(shared_node.port), question]
            ours = gearfleet("gearadmin", *given)
            assert ours == run_stock("gearadmin", *given), question
            assert ours.code == 0
        given = ["-h", shared_node.host, "-p", str(shared_node.port), f"--cancel-job={handle.decode()}"]
        assert gearfleet("gearadmin", *given).out == b"OK\n"


def test_tls_against_a_server_without_it_is_an_error(gearfleet: RunCommand, shared_node: Node) -> None:
    ended = gearfleet("gearadmin", "-h", "127.0.0.1", "-p", str(shared_node.port), "-S", "--getpid")
    assert ended.code == 1
    assert b"no TLS connection" in ended.err
