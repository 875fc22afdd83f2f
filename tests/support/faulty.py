"""Environments for nodes that are to meet faults; the faults themselves are in faults/sitecustomize.py."""

from __future__ import annotations

import time
from pathlib import Path

_FAULTS = str(Path(__file__).with_name("faults"))


def clock_shifted(seconds: float) -> dict[str, str]:
    """The node's time of day is so many seconds ahead of ours."""
    return {"PYTHONPATH": _FAULTS, "TEST_CLOCK_SHIFT_SECONDS": str(seconds)}


class Clock:
    """A node's time of day, which can be set while it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": _FAULTS, "TEST_CLOCK_SHIFT_FILE": str(self._path)}

    def set_second_of_minute(self, second: float, *, ahead_seconds: float = 0.0) -> None:
        """Put it at this second of the current minute of ours, or of one that is so far ahead."""
        new = self._path.with_suffix(".new")
        new.write_text(str(second - time.time() % 60 + ahead_seconds))
        new.replace(self._path)


class FailingCalls:
    """Calls of the node's that can be made to fail, and to work again, while it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": _FAULTS, "TEST_FAILING_CALLS": str(self._path)}

    def fail(self, call: str, last_good: str = "") -> None:
        """`pwrite` fails as on a full disk, `fdatasync` as on a broken one; with `fdatasync-hangs` it takes
        until `heal`, if given only in segments that come after the one named `last_good`."""
        self._write(f"{call} {last_good}")

    def slow_down(self, seconds: float) -> None:
        """Each fdatasync takes so much longer."""
        self._write(f"fdatasync-slow {seconds}")

    def _write(self, text: str) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(text)
        new.replace(self._path)

    def heal(self) -> None:
        self._path.unlink(missing_ok=True)
