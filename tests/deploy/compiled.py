"""A pytest plugin for runs against the compiled rooms: `-p tests.deploy.compiled`."""

from __future__ import annotations

import inspect

import pytest

from cluster.node import node


def pytest_sessionstart() -> None:
    if not node.__file__.endswith(".so"):
        raise pytest.UsageError(f"{node.__file__} is not compiled: nothing would be tested")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiled code does not see what a test puts in the place of a constant or a method."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if "monkeypatch" in item.fixturenames or "[method-assign]" in inspect.getsource(item.function):
            item.add_marker(pytest.mark.skip(reason="replaces what is built in when compiled"))
