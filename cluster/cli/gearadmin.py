"""gearfleet gearadmin: the options, the output and the exit codes of gearadmin."""

import socket
import sys
from collections.abc import Sequence
from typing import Final

from client_ha.addresses import Server
from cluster.cli.admin import Admin, Refused
from cluster.cli.peer import Unreachable, tls_context
from cluster.cli.raw import OptionFault, RawCommand, only_once, read_options
from cluster.wire.shown import for_terminal, for_terminal_lines

HELP: Final = """\
Options:
  --help                         Options related to the program.
  -h [ --host ] arg (=localhost) Connect to the host
  -p [ --port ] arg (=4730)      Port number or service to use for connection
  --server-version               Fetch the version number for the server.
  --server-verbose               Fetch the verbose setting for the server.
  --create-function arg          Create the function from the server.
  --cancel-job arg               Remove a given job from the server's queue
  --drop-function arg            Drop the function from the server.
  --show-unique-jobs             Show unique IDs of jobs on the server.
  --show-jobs                    Show all jobs on the server.
  --getpid                       Get Process ID for the server.
  --status                       Status for the server.
  --priority-status              Queued jobs status by priority.
  --workers                      Workers for the server.
  -S [ --ssl ]                   Enable SSL connections.
"""

# Option: (text command, whether the answer is a table). In the order in which gearadmin asks.
COMMANDS: Final[dict[str, tuple[str, bool]]] = {
    "getpid": ("getpid", False),
    "create-function": ("create function {}", False),
    "drop-function": ("drop function {}", False),
    "cancel-job": ("cancel job {}", False),
    "show-jobs": ("show jobs", True),
    "show-unique-jobs": ("show unique jobs", True),
    "server-verbose": ("verbose", False),
    "server-version": ("version", False),
    "workers": ("workers", True),
    "priority-status": ("prioritystatus", True),
    "status": ("status", True),
}
_LONG: Final = {
    "help": False,
    "host": True,
    "port": True,
    "ssl": False,
    **{name: "{}" in command for name, (command, _) in COMMANDS.items()},
}
_SHORT: Final = {"h": "host", "p": "port", "S": "ssl"}


def run(arguments: Sequence[str]) -> int:
    """Run as gearadmin does; return its exit code."""
    try:
        options = only_once(read_options(arguments, _LONG, _SHORT)[0])
    except OptionFault as fault:
        print(f"gearadmin : {fault}\n\n{HELP}")
        return 1
    if "help" in options:
        print(HELP)
        return 0
    wanted = [name for name in COMMANDS if name in options]
    if not wanted:
        print(f"No option execution operation given.\n\n{HELP}")
        return 1
    host = options.get("host", "localhost") or ""
    port = options.get("port", "4730") or ""
    try:
        found = socket.getaddrinfo(host or "\0", port, type=socket.SOCK_STREAM)
    except (socket.gaierror, ValueError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "Name or service not known"
        print(f"Error: Failed to connect on {host}:{port} with {reason}", file=sys.stderr)
        return 1
    server = Server(host, int(found[0][4][1]))
    try:
        with Admin(server, tls=tls_context() if "ssl" in options else None) as admin:
            for name in wanted:
                _ask(admin, name, options[name])
    except Unreachable as fault:
        if fault.what.startswith("no connection"):
            print(f"Error: Error connecting to {host}.\n", file=sys.stderr)
        else:
            print(f"Error: {for_terminal_lines(str(fault))}", file=sys.stderr)
        return 1
    except ValueError as fault:
        print(f"Error: {fault}", file=sys.stderr)
        return 1
    return 0


def _ask(admin: Admin, name: str, value: str | None) -> None:
    command, is_table = COMMANDS[name]
    # A refusal is no failure of gearadmin: it says so, goes on, and ends with 0.
    try:
        if is_table:
            for line in admin.table(command):
                print(_shown(line))
            print(".")
        else:
            print(_shown(admin.line(command.format(value))) or "OK")
    except Refused as refusal:
        sys.stdout.flush()
        print(f"Error: {for_terminal(refusal.text)}", end="\r\n", file=sys.stderr)


def _shown(line: str) -> str:
    """A line as it is, for programs; on a terminal its columns, and nothing that does more than print."""
    return "\t".join(map(for_terminal, line.split("\t"))) if sys.stdout.isatty() else line


gearadmin = RawCommand("gearadmin", run, "Takes the options of gearadmin.")
