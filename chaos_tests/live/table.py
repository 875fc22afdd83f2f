"""The table of scenarios in chaos_tests/README.md: its last column says how each ended last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parents[1] / "README.md"
# row | `scenario` | file | last result |
_ROW: Final = re.compile(r"^(\|[^|]*\| `(\w+)` \|[^|]*\|)[^|]*\|$", re.MULTILINE)
_WORST_FIRST: Final = ("failed", "passed", "skipped")


def write_results(results: Mapping[str, set[str]], day: str, path: Path = README) -> None:
    """`results`: by a test's name how it ended, once for each of its parameters. Others keep theirs."""

    def row(match: re.Match[str]) -> str:
        ends = results.get(match[2])
        if not ends:
            return match[0]
        worst = next(end for end in _WORST_FIRST if end in ends)
        return f"{match[1]} {worst} {day} |"

    path.write_text(_ROW.sub(row, path.read_text()))


def scenarios(path: Path = README) -> set[str]:
    """All that the table names."""
    return {match[2] for match in _ROW.finditer(path.read_text())}
