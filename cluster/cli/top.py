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
from cluster.cli.discover import Followed
from cluster.cli.servers import Servers, ask_each, server_options
from cluster.cli.tables import FITTED_ROWS_MAX, console, table
from cluster.wire.shown import for_terminal

INTERVAL_SECONDS_DEFAULT = 1.0
# Lines of the screen that are not functions: headings, rules, the last line.
_FRAME_LINES = 7


@dataclass(frozen=True, slots=True)
class Look:
    """What one server said, or why it said nothing."""

    server: Server
    version: str = ""
    connections: int | None = None
    functions: tuple[FunctionStatus, ...] = ()
    fault: str = ""
    unloaded: int = 0  # slots whose jobs it does not count yet


def look(servers: Servers) -> list[Look]:
    """Ask every server once, all at a time."""

    def ask(admin: Admin) -> Look:
        try:
            version, whole = admin.line("version"), admin.ask_whole(Admin.status)
            admin.odd_lines.clear()  # the screen is no place for complaints
        except Refused as refusal:
            return Look(admin.server, fault=refusal.text)
        try:
            # The connection that asks is none of the fleet's.
            connections: int | None = max(0, len(admin.workers()) - 1)
        except (Unreachable, Refused):
            connections = None  # the queues are what is looked at here
        return Look(admin.server, version, connections, tuple(whole.answer), unloaded=whole.unsure)

    answers, silences = ask_each(servers, ask)
    looks = dict(answers) | {each.server: Look(each.server, fault=each.what) for each in silences}
    return [looks[server] for server in servers.addresses]


def screen(looks: list[Look], rows_max: int | None = None) -> Group:
    """The servers, then their functions added up, the longest queue first."""
    servers = table(
        ["Server", "Version", "Connections", "Waiting", "Running"],
        [
            (
                look.server,
                look.version or f"! {look.fault}",
                "?" if look.connections is None else f"{look.connections:,}",
                "?" if look.fault else f"{sum(function.waiting for function in look.functions):,}",
                "?" if look.fault else f"{sum(function.running for function in look.functions):,}",
            )
            for look in looks
        ],
    )
    for column in servers.columns[2:]:
        column.justify = "right"
    silent = sum(bool(look.fault) for look in looks)
    notes = [f"{silent} of {len(looks)} servers did not answer"] if silent else []
    notes += [f"{look.server} cannot serve {look.unloaded:,} slots yet" for look in looks if look.unloaded]
    note = f"! incomplete: {', '.join(notes)}" if notes else ""
    functions = sorted(_sums(looks), key=lambda f: (-f.waiting, -f.running, f.function))
    shown = functions if rows_max is None else functions[: max(1, rows_max)]
    left = len(functions) - len(shown)
    more = Text(f"… and {left} more" if left else "", style="dim")
    return Group(servers, Text(note, style="bold red"), _function_table(shown), more)


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
    are found, also those that come and go while this runs.
    """
    followed = Followed(servers)
    looks = look(followed.look())
    if once or not sys.stdout.isatty():
        # The longest queues are what is looked for; gearfleet status has all.
        console().print(screen(looks, FITTED_ROWS_MAX))
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
            looks = look(followed.look())
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
