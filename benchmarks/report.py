"""Medians, ratios, and what a reader needs to repeat the run."""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.load import BUSY_SHARE, Outcome
from benchmarks.servers import gearmand_version

# Wide enough for the widest table when the output goes to a file.
console = Console(width=shutil.get_terminal_size((140, 50)).columns if sys.stdout.isatty() else 140)


def header(options: argparse.Namespace) -> None:
    """The run's own description: what, where, and from which commit."""
    console.print(f"[bold]python -m benchmarks {' '.join(options.arguments)}[/bold]", highlight=False)
    console.print(
        f"commit {commit()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{gearmand_version() or 'gearmand is not installed: its columns are left out'}"
        + (f", medians of {options.repetitions}" if "repetitions" in options else ""),
        highlight=False,
    )


def commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return name + (" with changes" if changed else "")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def note(text: str) -> None:
    console.print(text, highlight=False)


def progress(text: str) -> None:
    """One line on a terminal, to be overwritten; nothing in a file."""
    if console.is_terminal:
        console.print(text.ljust(60), end="\r", highlight=False)


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def ratio(value: float | None, other: float | None) -> str:
    return "–" if value is None or not other else f"{value / other:.2f}"


def generator_bound(outcomes: Iterable[Outcome]) -> bool:
    return any(outcome.generator_share > BUSY_SHARE for outcome in outcomes)


BOUND_MARK = "*"
BOUND_NOTE = (
    f"{BOUND_MARK} the load generator used more than {BUSY_SHARE:.0%} of its core: "
    "the server may be faster than this"
)
