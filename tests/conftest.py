"""Fixtures for all rooms: real servers and connections to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.support")

from tests.support.etcd import Etcd, FleetEtcd, StartEtcd  # noqa: E402
from tests.support.fleet import Fleet  # noqa: E402
from tests.support.node import Gearmand, Node  # noqa: E402
from tests.support.peer import Peer  # noqa: E402

StartNode = Callable[..., Node]
StartFleet = Callable[..., Fleet]
Connect = Callable[..., Peer]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Start nodes: `start_node("--job-retries", "2", durability="memory")`.

    `data_dir` is the test's own directory unless given; with `wait=False` the process is only started.
    """
    nodes: list[Node] = []

    def start(*options: str, wait: bool = True, **settings: object) -> Node:
        settings.setdefault("data_dir", tmp_path / "data")
        node = Node(settings.pop("data_dir"), *options, **settings)  # type: ignore[arg-type]
        nodes.append(node)
        if wait:
            return node.start()
        node.spawn()
        return node

    yield start
    for node in nodes:
        node.close()


@pytest.fixture
def node(start_node: StartNode) -> Node:
    """A fresh node with a journal, of this test alone."""
    return start_node()


@pytest.fixture(scope="session")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests that need nothing but a node. Use names from `function` and leave nothing."""
    node = Node(tmp_path_factory.mktemp("shared-node"), durability="os")
    try:
        yield node.start()
    finally:
        node.close()


@pytest.fixture
def gearmand() -> Iterator[Gearmand]:
    """The reference server; skips where it is not installed."""
    server = Gearmand()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[Etcd]:
    """One etcd for all tests that do not stop it."""
    server = Etcd()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def etcd(shared_etcd: Etcd) -> FleetEtcd:
    """A fleet of this test's own in the shared etcd."""
    return FleetEtcd(shared_etcd, f"fleet-{next(_function_numbers)}")


@pytest.fixture
def start_etcd() -> Iterator[StartEtcd]:
    """Start an etcd of the test's own: `start_etcd(3)`, `start_etcd(tls=make_certificates(tmp_path))`."""
    with ExitStack() as stack:

        def start(members: int = 1, *options: str, **more: Any) -> Etcd:
            server = Etcd(members, *options, **more)
            stack.callback(server.close)
            return server.start()

        yield start


@pytest.fixture
def start_fleet(shared_etcd: Etcd, tmp_path: Path) -> Iterator[StartFleet]:
    """Start fleets: `start_fleet("abc", "--min-in-sync", "3")`, by default in the shared etcd: with
    `own_etcd=True` in one that the test may stop. Returns when every slot is served, unless `wait=False`."""
    with ExitStack() as stack:

        def start(
            names: Sequence[str] = "abc",
            *options: str,
            own_etcd: bool = False,
            wait: bool = True,
            **more: Any,
        ) -> Fleet:
            name = f"fleet-{next(_function_numbers)}"
            etcd = None if own_etcd else shared_etcd
            fleet = Fleet(tmp_path / name, names, *options, etcd=etcd, fleet=name, **more)
            return stack.enter_context(fleet).start(wait=wait)

        yield start


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Connect to a node, by default the shared one; all connections are closed at the end."""
    with ExitStack() as stack:

        def open_connection(node: Node | None = None, **options: object) -> Peer:
            server = node if node is not None else request.getfixturevalue("shared_node")
            return stack.enter_context(server.connect(**options))

        yield open_connection


_function_numbers = count(1)


@pytest.fixture
def function() -> bytes:
    """A function name that no other test uses."""
    return b"function-%d" % next(_function_numbers)
