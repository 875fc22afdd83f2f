"""The examples do what they say, against a real node."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Node
from tests.support.machine import needs_perl_gearman, needs_php_gearman
from tests.support.program import Program, wait_for_workers

EXAMPLES = Path(__file__).parents[2] / "examples"
FUNCTION = b"count_words"

Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start an example with arguments; it ends with the test."""
    running: list[Program] = []

    def run(*command: str) -> Program:
        program = Program(command)
        running.append(program)
        return program

    yield run
    for program in running:
        program.close()


@pytest.fixture
def python_worker(start: Start, node: Node) -> Program:
    program = start(sys.executable, str(EXAMPLES / "worker.py"), node.address)
    wait_for_workers(node, FUNCTION)
    return program


def test_python_client_and_worker(start: Start, python_worker: Program, node: Node) -> None:
    lines = start(sys.executable, str(EXAMPLES / "client.py"), node.address).output().decode().splitlines()

    assert lines[:3] == ["line 1 of 2", "line 2 of 2", "words: 11"]
    assert lines[3].startswith("queued as H:")
    assert lines[4:] == ["words in 101 texts: 5050, 1 failed"]


@needs_php_gearman()
def test_php_client_of_a_python_worker(start: Start, python_worker: Program, node: Node) -> None:
    output = start("php", str(EXAMPLES / "client.php"), node.host, str(node.port)).output().decode()

    words, queued = output.splitlines()
    assert words == "words: 4"
    assert queued.startswith("queued as H:")


@needs_perl_gearman()
def test_perl_worker(start: Start, node: Node) -> None:
    start("perl", str(EXAMPLES / "worker.pl"), node.address)
    wait_for_workers(node, FUNCTION)

    lines = start(sys.executable, str(EXAMPLES / "client.py"), node.address).output().decode().splitlines()

    assert lines[0] == "words: 11"  # it reports no progress
    assert lines[2] == "words in 101 texts: 5051, 0 failed"  # and to Perl any bytes are words
