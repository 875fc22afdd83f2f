"""Runs a program of this checkout as if it were of another release:

    python other_release.py PROTOCOL VERSION PROGRAM ARGUMENTS...

What differs is what a release says of itself: its version, and the version of what nodes say to each other.
"""

from __future__ import annotations

import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Edited(SourceFileLoader):
    """A module's source with one text replaced; nothing of it is cached."""

    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self._old = old.encode()
        self._new = new.encode()

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        assert data.count(self._old) == 1, f"{path} has no single {self._old!r}"
        return data.replace(self._old, self._new)

    def path_stats(self, path: str) -> Any:
        raise OSError("not to be cached")


class Editions(MetaPathFinder):
    """Finds the modules that are to be edited."""

    def __init__(self, edits: dict[str, tuple[str, str, str]]) -> None:
        self._edits = edits

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self._edits:
            return None
        file, old, new = self._edits[name]
        return spec_from_file_location(name, ROOT / file, loader=Edited(name, str(ROOT / file), old, new))


def main() -> None:
    protocol, version, program, *arguments = sys.argv[1:]
    edits = {
        "cluster.placement.view": (
            "cluster/placement/view.py",
            "PROTOCOL_VERSION = 1 ",
            f"PROTOCOL_VERSION = {protocol} ",
        ),
    }
    sys.meta_path.insert(0, Editions(edits))
    import cluster

    cluster.__version__ = version
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
