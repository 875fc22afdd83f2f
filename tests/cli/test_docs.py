"""docs/commands.md has every command and every setting as they are."""

from pathlib import Path

from cluster.cli.root import COMMANDS
from cluster.cli.server import default_text
from cluster.server.settings import fields, shown

TEXT = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()


def test_every_command_is_there() -> None:
    assert [name for name in COMMANDS if f"`{name}`" not in TEXT] == []


def test_the_table_of_settings_is_that_of_the_fields() -> None:
    for name, field in fields().items():
        row = shown(name)
        line = f"| `{row['option']}` | `{row['environment']}` | {default_text(name)} | {field.description} |"
        assert line in TEXT, f"docs/commands.md should have:\n{line}"
