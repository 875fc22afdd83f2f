"""Tables for people, JSON for scripts.

What goes to the terminal goes through here, through `complain` or through `run_command`: names come from
strangers, and none of them reaches the terminal as more than something to read.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.wire.shown import for_json, for_terminal, for_terminal_lines

# Written to a file or pipe there is no terminal to fit: rows must not be cut to 80 columns.
PIPE_COLUMNS = 1000


def console() -> Console:
    """Standard output."""
    return Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else PIPE_COLUMNS,
        highlight=False,
        soft_wrap=False,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; columns of numbers are set to the right."""
    cells = [tuple(row) for row in rows]
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numbers = bool(cells) and all(isinstance(row[index], int) for row in cells)
        result.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        result.add_row(*map(_cell, row))
    return result


def _cell(value: object) -> Text:
    # Text, not str: a function's name must not be read as rich's markup.
    return Text(f"{value:,}" if isinstance(value, int) else for_terminal(str(value)))


def show(columns: Sequence[str], rows: Sequence[Sequence[object]], *, nothing: str) -> None:
    """Print a table, or a sentence when it has no rows."""
    if rows:
        console().print(table(columns, rows))
    else:
        say(nothing)


def show_json(records: Iterable[tuple[Mapping[str, str], Any]]) -> None:
    """Print dataclasses as a JSON list of objects, each with who said it before it."""
    rows = [{**source, **dataclasses.asdict(record)} for source, record in records]
    print_json(rows)


def print_json(value: Any) -> None:
    """Print JSON that a terminal only shows."""
    click.echo(for_json(json.dumps(value, indent=2, ensure_ascii=False)))


def say(text: str, *, err: bool = False) -> None:
    """Lines on standard output or standard error."""
    click.echo(for_terminal_lines(text), err=err)
