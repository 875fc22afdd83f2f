"""The table in the README has every scenario, and can be kept up to date."""

from __future__ import annotations

import ast
from pathlib import Path

from chaos_tests.live.table import scenarios, write_results

SCENARIOS = Path(__file__).with_name("scenarios")


def test_the_table_has_every_scenario_and_no_other() -> None:
    names = {
        node.name
        for path in SCENARIOS.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert scenarios() == names


def test_the_last_column_says_the_worst_of_a_scenario_s_ends(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    table.write_text(
        "| kill | `test_a` | f.py | passed 2001-01-01 |\n| - | `test_b` | f.py | |\n| - | open | | |\n"
    )
    write_results({"test_b": {"passed", "failed"}}, "2002-02-02", table)
    assert table.read_text() == (
        "| kill | `test_a` | f.py | passed 2001-01-01 |\n| - | `test_b` | f.py | failed 2002-02-02 |\n"
        "| - | open | | |\n"
    )
