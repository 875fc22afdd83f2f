"""Run programs of others against a node: each is a process that never outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.program import Program, RunProgram


@pytest.fixture
def run_program() -> Iterator[RunProgram]:
    """`run_program("gearman", "-f", …)` starts it; ask it for `.output()`."""
    programs: list[Program] = []

    def run(*command: str, feed: bytes | None = None) -> Program:
        program = Program(command, feed)
        programs.append(program)
        return program

    yield run
    for program in programs:
        program.close()
