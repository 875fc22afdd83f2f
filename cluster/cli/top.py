"""The live table: every server, every function, refreshed."""

import contextlib
import select
import sys
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass

import click
from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client_ha.addresses import Server
from cluster.cli import EXIT_NO_SERVER
from cluster.cli.admin import Admin, FunctionStatus, Refused, Unreachable
from cluster.cli.discover import whole_fleets
from cluster.cli.servers import Servers, server_options
from cluster.cli.tables import console, table
from cluster.wire.shown import for_terminal

INTERVAL_SECONDS_DEFAULT = 1.0
# Lines of the screen that are not functions: headings, rules, the last line.
_FRAME_LINES = 7


@dataclass(frozen=True, slots=True)
class Look:
    """What one server said, or why it said nothing."""

    server: Server
    version: str = ""
    connections: int = 0
    functions: tuple[FunctionStatus, ...] = ()
    fault: str = ""


def look(servers: Servers) -> list[Look]:
    """Ask every server once."""
    looks = []
    for server in servers.addresses:
        try:
            with Admin(server, timeout_seconds=servers.timeout_seconds, tls=servers.tls) as admin:
                looks.append(
                    Look(
                        server,
                        admin.line("version"),
                        # The connection that asks is none of the fleet's.
                        max(0, len(admin.workers()) - 1),
                        tuple(admin.status()),
                    )
                )
        except Unreachable as fault:
            looks.append(Look(server, fault=fault.what))
        except Refused as refusal:
            looks.append(Look(server, fault=refusal.text))
    return looks


def screen(looks: list[Look], rows_max: int | None = None) -> Group:
    """The servers, then their functions added up, the longest queue first."""
    servers = table(
        ["Server", "Version", "Connections", "Waiting", "Running"],
        [
            (
                look.server,
                look.version or look.fault,
                look.connections,
                sum(function.waiting for function in look.functions),
                sum(function.running for function in look.functions),
            )
            for look in looks
        ],
    )
    functions = sorted(_sums(looks), key=lambda f: (-f.waiting, -f.running, f.function))
    shown = functions if rows_max is None else functions[: max(1, rows_max)]
    left = len(functions) - len(shown)
    more = Text(f"… and {left} more" if left else "", style="dim")
    return Group(servers, Text(), _function_table(shown), more)


def _sums(looks: list[Look]) -> list[FunctionStatus]:
    sums: dict[str, FunctionStatus] = {}
    for function in (function for look in looks for function in look.functions):
        other = sums.get(function.function, FunctionStatus(function.function, 0, 0, 0))
        sums[function.function] = FunctionStatus(
            function.function,
            other.total + function.total,
            other.running + function.running,
            # A worker registers with every server: the sum would count it several times.
            max(other.workers, function.workers),
        )
    return list(sums.values())


def _function_table(functions: list[FunctionStatus]) -> Table:
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    result.add_column("Function", overflow="ellipsis", no_wrap=True)
    for column in ("Waiting", "Running", "Workers"):
        result.add_column(column, justify="right")
    result.add_column("")
    for row in functions:
        stuck = row.waiting > 0 and row.workers == 0
        result.add_row(
            Text(for_terminal(row.function)),
            f"{row.waiting:,}",
            f"{row.running:,}",
            f"{row.workers:,}",
            "! no worker" if stuck else "",
            style="bold red" if stuck else "" if row.total else "dim",
        )
    return result


@click.command()
@server_options()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=INTERVAL_SECONDS_DEFAULT,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Print one look and end.")
def top(servers: Servers, interval: float, once: bool) -> int:
    """Watch the queues in a live table; q or Ctrl-C ends.

    The longest queue comes first; one that nobody works on is red. Workers are those of the server that has
    the most of them, because a worker registers with every server. One node of a fleet is enough: the others
    are found when this begins.
    """
    servers = whole_fleets(servers)
    looks = look(servers)
    if once or not sys.stdout.isatty():
        console().print(screen(looks))
        return 0 if any(not look.fault for look in looks) else EXIT_NO_SERVER
    terminal = console()

    def fitted() -> Group:
        return screen(looks, terminal.height - len(looks) - _FRAME_LINES)

    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys(),
        Live(fitted(), console=terminal, screen=True, auto_refresh=False) as live,
    ):
        while not _quit_pressed(interval):
            looks = look(servers)
            live.update(fitted(), refresh=True)
    return 0


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one, without Enter and unseen."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_pressed(seconds: float) -> bool:
    """Wait so long for a key; whether it was q."""
    keyboard = [sys.stdin] if sys.stdin.isatty() else []
    readable, _, _ = select.select(keyboard, [], [], seconds)
    return bool(readable) and sys.stdin.read(1) in ("q", "Q", "")
