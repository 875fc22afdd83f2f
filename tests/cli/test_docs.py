"""docs/commands.md has every command and every setting as they are, and what operators type can be typed."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cluster.cli.root import COMMANDS, root
from cluster.cli.server import default_text
from cluster.server.settings import fields, shown

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "commands.md").read_text()


def test_every_command_is_there() -> None:
    assert [name for name in COMMANDS if f"`{name}`" not in TEXT] == []


def test_the_table_of_settings_is_that_of_the_fields() -> None:
    for name, field in fields().items():
        row = shown(name)
        line = f"| `{row['option']}` | `{row['environment']}` | {default_text(name)} | {field.description} |"
        assert line in TEXT, f"docs/commands.md should have:\n{line}"


def typed(page: str) -> list[str]:
    """Every command line of a page, in blocks and in sentences."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^(gearfleet .*)$", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)), re.M)
    return sorted({" ".join(line.split()) for line in [*blocks, *re.findall(r"`(gearfleet [^`]*)`", text)]})


@pytest.mark.parametrize("line", [*typed("operations.md"), *typed("commands.md"), *typed("deploy.md")])
def test_every_command_line_can_be_typed(line: str) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] == "COMMAND" or arguments[0] in ("gearman", "gearadmin", "gearmand"):
        return
    group: click.Command = root
    context = click.Context(root, info_name="gearfleet")
    while isinstance(group, click.Group) and arguments:
        name = arguments.pop(0)
        found = group.get_command(context, name)
        assert found is not None, f"{line}: there is no command {name}"
        group = found
    if not arguments and any(p.required for p in group.params):
        return  # a sentence about it
    # Raises UsageError for what it does not take.
    group.make_context("gearfleet", arguments, resilient_parsing="--help" in arguments)
