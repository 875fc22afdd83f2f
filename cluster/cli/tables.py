"""Tables for people, JSON for scripts.

What goes to the terminal goes through here, through `complain` or through `run_command`: names come from
strangers, and none of them reaches the terminal as more than something to read.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.wire.shown import for_json, for_terminal, for_terminal_lines

# Written to a file or pipe there is no terminal to fit: rows must not be cut to 80 columns.
PIPE_COLUMNS: Final = 1000
# More rows than that are for a pager or grep, and fitting them to the terminal would take a minute.
FITTED_ROWS_MAX: Final = 1000


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
    if not rows:
        say(nothing)
    elif sys.stdout.isatty() and len(rows) <= FITTED_ROWS_MAX:
        console().print(table(columns, rows))
    else:
        click.echo("\n".join(plain(columns, rows)))


def plain(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """The same table as lines that are as wide as they need to be, at the cost of a few operations a cell."""
    texts = [
        [f"{cell:,}" if isinstance(cell, int) else for_terminal(str(cell)) for cell in row] for row in rows
    ]
    widths = [max(len(column), max(len(row[index]) for row in texts)) for index, column in enumerate(columns)]
    right = [all(isinstance(row[index], int) for row in rows) for index in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, right, strict=True)
        ).rstrip()

    yield line(columns)
    yield "─" * (sum(widths) + 2 * (len(widths) - 1))
    yield from map(line, texts)


def show_json(
    records: Iterable[tuple[Mapping[str, object], Any]], others: Iterable[Mapping[str, object]] = ()
) -> None:
    """Print dataclasses as a JSON list of objects, each with who said it before it; then other objects."""
    objects = [*({**source, **_members(record)} for source, record in records), *others]
    if len(objects) <= FITTED_ROWS_MAX:
        print_json(objects)
    else:  # an object a line: indenting is ten times the work
        lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in objects)
        click.echo(for_json(f"[\n{lines}\n]"))


def _members(record: Any) -> dict[str, object]:
    """A flat dataclass as a dictionary: `asdict` copies deeply, and there may be 100,000 of them."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def print_json(value: Any) -> None:
    """Print JSON that a terminal only shows."""
    click.echo(for_json(json.dumps(value, indent=2, ensure_ascii=False)))


def say(text: str, *, err: bool = False) -> None:
    """Lines on standard output or standard error."""
    click.echo(for_terminal_lines(text), err=err)
