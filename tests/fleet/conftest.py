"""A fleet for all tests of a module that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import Etcd, Fleet
from tests.support.etcd import needs_etcd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "fleet":
            item.add_marker(needs_etcd())


@pytest.fixture(scope="module")
def fleet(shared_etcd: Etcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    with Fleet(directory, "abc", etcd=shared_etcd, fleet=directory.name) as fleet:
        fleet.start()
        fleet.wait_until_in_sync()
        yield fleet
