"""The list of commands. A command's module is imported when it is used, so that each starts quickly."""

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click

from cluster.cli import EXIT_USAGE
from cluster.cli.signals import end_as_process_1
from cluster.cli.suggest import SuggestingGroup, nearest
from cluster.wire.shown import for_terminal_lines

# Name: (heading, module, attribute, one line of help).
COMMANDS: Final[dict[str, tuple[str, str, str, str]]] = {
    "server": ("Run a node", "server", "server", "Run a node."),
    "gearmand": ("Run a node", "gearmand", "gearmand", "Run a node with gearmand's own options."),
    "submit": ("Jobs", "jobs", "submit", "Submit a job and print its result."),
    "work": ("Jobs", "jobs", "work", "Run a command for every job of a function."),
    "cancel": ("Jobs", "cancel", "cancel", "Cancel a job that waits."),
    "top": ("Look", "top", "top", "Watch the queues in a live table."),
    "status": ("Look", "fleet", "status", "Show every function's jobs and workers."),
    "workers": ("Look", "fleet", "workers", "Show who is connected and what they can do."),
    "jobs": ("Look", "look", "jobs", "Show jobs: which wait, run, and for how long."),
    "job": ("Look", "look", "job", "Show all of one job."),
    "maxqueue": ("Look", "fleet", "maxqueue", "Show or set how many jobs a function may queue."),
    "nodes": ("A fleet", "nodes", "nodes", "Show the nodes of a fleet, and what is wrong."),
    "map": ("A fleet", "nodes", "show_map", "Show who leads which slot."),
    "slots": ("A fleet", "nodes", "slots", "Show slots: epoch, primary, and who has a copy."),
    "drain": ("A fleet", "operate", "drain", "Take a node out of its fleet, and stop it."),
    "join": ("A fleet", "operate", "join", "Call off a drain."),
    "forget": ("A fleet", "operate", "forget", "Say that a node is gone for good."),
    "promote": ("A fleet", "operate", "promote", "Lead slots from what is left of them."),
    "drill": ("A fleet", "drill", "drill", "Break a fleet on purpose, and see what it keeps."),
    "fleet": ("A fleet", "secret", "fleet", "Bring a fleet back after etcd was lost; its secret."),
    "gearman": ("Instead of the stock tools", "gearman", "gearman", "Takes the options of gearman."),
    "gearadmin": ("Instead of the stock tools", "gearadmin", "gearadmin", "Takes the options of gearadmin."),
}


def package_version() -> str:
    """The installed version; a checkout that was never installed has none."""
    try:
        return version("gearfleet")
    except PackageNotFoundError:
        return "unknown"


class Commands(SuggestingGroup):
    """Commands by name, imported late, listed under headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        _, module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"cluster.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, (heading, _, _, line) in COMMANDS.items():
            sections.setdefault(heading, []).append((name, line))
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="gearfleet COMMAND --help explains a command.",
)
@click.version_option(package_version(), prog_name="gearfleet")
def root() -> None:
    """A Gearman job server that does not lose background jobs, and its tools."""


def _without_far_options(error: click.ClickException) -> click.ClickException:
    """click finds options alike for their dashes: those whose names are not like what was typed go."""
    if not isinstance(error, click.NoSuchOption):
        return error
    typed = error.option_name.lstrip("-")
    near = [option for option in error.possibilities or () if nearest(typed, [option.lstrip("-")])]
    return click.NoSuchOption(error.option_name, possibilities=near, ctx=error.ctx)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    end_as_process_1()
    try:
        result = root.main(list(arguments), prog_name="gearfleet", standalone_mode=False)
    except click.ClickException as error:
        said = io.StringIO()
        _without_far_options(error).show(file=said)
        click.echo(for_terminal_lines(said.getvalue()), err=True, nl=False)  # a server's words may be in it
        return error.exit_code
    except click.Abort:
        return 130  # as a shell reports SIGINT
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python's own flush at exit must not complain.
        with contextlib.suppress(OSError):
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return 0
    return result if isinstance(result, int) else 0


__all__ = ["COMMANDS", "EXIT_USAGE", "package_version", "root", "run_command"]
