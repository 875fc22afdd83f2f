"""Fixtures of this room: real servers of both kinds, and waits short enough for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_ha import Timing
from tests.support import Gearmand, Node

Server = Gearmand | Node

# A dead server is noticed within 0.2 s, a sleeping gearmand 1.1 is asked for scheduled jobs in time.
QUICK = Timing(
    connect_seconds=1.0,
    silence_seconds=0.1,
    answer_seconds=0.2,
    idle_probe_seconds=0.2,
    backoff_first_seconds=0.01,
    backoff_max_seconds=0.05,
    repoll_seconds=0.2,
)
# For tests on a busy machine that do not want silence noticed.
PATIENT = Timing(backoff_first_seconds=0.01, backoff_max_seconds=0.05, repoll_seconds=0.2)


@pytest.fixture
def quick() -> Timing:
    return QUICK


@pytest.fixture
def patient() -> Timing:
    return PATIENT


@pytest.fixture(params=["gearmand", "node"])
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Start real servers, once of each kind: every test that uses it runs against both."""
    servers: list[Server] = []

    def start() -> Server:
        server: Server
        if request.param == "gearmand":
            server = Gearmand("--threads", "0")
        else:
            server = Node(tmp_path / f"node-{len(servers)}")
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session", params=["gearmand", "node"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One real server of each kind for all tests that let it live. Use function names of your own."""
    if request.param == "node":
        yield request.getfixturevalue("shared_node")
        return
    gearmand = Gearmand("--threads", "0")
    try:
        yield gearmand.start()
    finally:
        gearmand.close()
