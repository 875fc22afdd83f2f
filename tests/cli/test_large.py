"""The commands on a node with very many jobs and functions."""

from __future__ import annotations

import json

import pytest

from cluster.cli.tables import FITTED_ROWS_MAX, plain
from cluster.wire import packets as wire
from cluster.wire import request
from tests.cli.conftest import RunCommand
from tests.conftest import StartNode
from tests.support import Node

FUNCTIONS = 20_000
JOBS = 20_000


def test_one_worker_with_very_many_functions_hides_nobody(
    gearfleet: RunCommand, start_node: StartNode
) -> None:
    node = start_node()
    at = ["-s", node.address]
    with node.connect() as many, node.connect() as one:
        many.send_bytes(
            b"".join(request(wire.CAN_DO, b"a-rather-long-name-of-function-%d" % n) for n in range(FUNCTIONS))
        )
        many.settle()
        one.can_do(b"the-other")
        one.settle()
        text = gearfleet("workers", *at).out.decode()
        assert "the-other" in text
        assert f"… and {FUNCTIONS - 50:,} more (--json has all)" in text
        assert max(map(len, text.splitlines())) < 5000
        listed = json.loads(gearfleet("workers", "--json", *at).out)
        assert sorted(len(row["functions"]) for row in listed) == [1, FUNCTIONS]
        top = gearfleet("top", "--once", *at).out.decode()
        assert "did not answer" not in top
        status = gearfleet("status", *at).out.decode().splitlines()
        assert len(status) == FUNCTIONS + 3


def test_jobs_are_looked_through_on_the_node(gearfleet: RunCommand, start_node: StartNode) -> None:
    node = start_node("--durability", "memory")
    at = ["-s", node.address]
    with node.connect() as client:
        client.send_bytes(
            b"".join(request(wire.SUBMIT_JOB_BG, b"f%d" % (n % 10), b"u%d" % n, b"") for n in range(JOBS))
        )
        for _ in range(JOBS):
            client.expect(wire.JOB_CREATED)
    assert len(json.loads(gearfleet("jobs", "--json", *at).out)) == JOBS
    of_one = json.loads(gearfleet("jobs", "-f", "f3", "--json", *at).out)
    assert len(of_one) == JOBS // 10
    assert {row["function"] for row in of_one} == {"f3"}
    (found,) = json.loads(gearfleet("jobs", "-u", "u12345", "--json", *at).out)
    assert found["unique"] == "u12345"
    assert len(json.loads(gearfleet("jobs", "--oldest", "--limit", "7", "--json", *at).out)) == 7
    assert len(json.loads(gearfleet("jobs", "--limit", "1500", "--json", *at).out)) == 1500


def test_a_table_of_many_rows_is_plain_and_whole() -> None:
    rows = [(f"function-{number}", number, "") for number in range(FITTED_ROWS_MAX + 1)]
    lines = list(plain(["Function", "Waiting", ""], rows))
    assert lines[0] == "Function       Waiting"
    assert set(lines[1]) == {"─"}
    assert lines[2] == "function-0           0"
    assert lines[-1] == "function-1000    1,000"


def test_a_terminal_gets_nothing_but_text_from_a_plain_table() -> None:
    (_, _, line) = plain(["Function"], [("\x1b[31mred",)])
    assert "\x1b" not in line


@pytest.mark.parametrize("command", ["status", "jobs", "workers"])
def test_an_empty_node_is_told_in_a_sentence(
    gearfleet: RunCommand, start_node: StartNode, command: str
) -> None:
    node: Node = start_node()
    assert gearfleet(command, "-s", node.address).out.decode().startswith("No ")
