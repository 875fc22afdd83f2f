"""The commands against a node that speaks only TLS and asks for certificates."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import RunCommand, StartCommand
from tests.conftest import StartNode
from tests.support import Node, need_command


class Pair(NamedTuple):
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A certificate that signs itself: the server's, the client's and the authority's at once."""
    directory = tmp_path_factory.mktemp("tls")
    pair = Pair(directory / "certificate.pem", directory / "key.pem")
    subprocess.run(
        [
            *(
                need_command("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(pair.certificate), "-keyout", str(pair.key)),
        ],
        check=True,
        capture_output=True,
    )
    return pair


@pytest.fixture
def tls_node(start_node: StartNode, pair: Pair) -> Node:
    return start_node(
        *("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)),
        *("--tls-ca", str(pair.certificate)),
        durability="memory",
    )


def test_status_needs_the_authority_and_a_certificate(
    gearfleet: RunCommand, tls_node: Node, pair: Pair
) -> None:
    at = ("status", "-s", tls_node.address, "--tls-ca", str(pair.certificate))
    assert gearfleet(*at, "--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)).code == 0
    assert gearfleet(*at).code == 3
    unverified = gearfleet("status", "-s", tls_node.address, "--tls")
    assert unverified.code == 3
    assert b"certificate verify failed" in unverified.err


def test_the_stock_tools_variables_are_read(
    gearfleet: RunCommand,
    start_gearfleet: StartCommand,
    tls_node: Node,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEARMAN_CA_CERTIFICATE", str(pair.certificate))
    monkeypatch.setenv("GEARMAN_CLIENT_PEM", str(pair.certificate))
    monkeypatch.setenv("GEARMAN_CLIENT_KEY", str(pair.key))
    at = ("-S", "-h", tls_node.host, "-p", str(tls_node.port))
    start_gearfleet("work", "--tls", "-s", tls_node.address, "f", "--", "tr", "a-z", "A-Z")
    start_gearfleet("gearman", *at, "-w", "-f", "g", "--", "cat")

    # A job waits for its worker.
    assert gearfleet("submit", "--tls", "-s", tls_node.address, "f", "x") == (0, b"X", b"")
    assert gearfleet("gearman", *at, "-f", "g", "y" * 100_000) == (0, b"y" * 100_000, b"")
    assert gearfleet("gearadmin", *at, "--getpid") == (0, b"%d\n" % tls_node.process_id, b"")


def test_a_file_that_cannot_be_used_is_named(gearfleet: RunCommand, pair: Pair) -> None:
    ended = gearfleet("status", "--tls-ca", str(pair.key.with_name("missing.pem")))
    assert ended.code == 2
    assert b"missing.pem" in ended.err
    ended = gearfleet("status", "--tls-certificate", str(pair.certificate))
    assert ended.code == 2
    assert b"go together" in ended.err
