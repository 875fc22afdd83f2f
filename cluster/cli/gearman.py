"""gearfleet gearman: the options, the output and the exit codes of the stock `gearman` tool.

    gearman.py         options, and what both modes share
    gearman_client.py  client mode
    gearman_worker.py  worker mode (-w)

Where the stock tool has a fault, docs/commands.md says what is done here instead.
"""

import contextlib
import getopt
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from client_ha.addresses import SERVERS_ENVIRONMENT, Server, parse_servers
from client_ha.discovery import parse_sources
from client_ha.errors import InvalidArgument
from cluster.cli import EXIT_FAILED
from cluster.cli.peer import tls_context
from cluster.cli.raw import RawCommand
from cluster.cli.servers import NoServer, look_up
from cluster.wire.shown import for_terminal_lines

LETTERS: Final = "bc:f:h:HILnNp:Pst:u:vwi:dS"
SERVER_ENVIRONMENT: Final = "GEARMAN_SERVER"
PORT_DEFAULT: Final = 4730

USAGE: Final = """{fault}
Client mode: {name} [options] [<data>]
Worker mode: {name} -w [options] [<command> [<args> ...]]

Common options to both client and worker modes.
	-f <function> - Function name to use for jobs (can give many)
	-h <host>     - Job server host
	-H            - Print this help menu
	-v            - Print diagnostic information to stdout({verbose})
	-p <port>     - Job server port
	-t <timeout>  - Timeout in milliseconds
	-i <pidfile>  - Create a pidfile for the process
	-S            - Enable SSL connections

Client options:
	-b            - Run jobs in the background({background})
	-I            - Run jobs as high priority
	-L            - Run jobs as low priority
	-n            - Run one job per line({lines})
	-N            - Same as -n, but strip off the newline({strip})
	-P            - Prefix all output lines with functions names
	-s            - Send job without reading from standard input
	-u <unique>   - Unique key to use for job

Worker options:
	-c <count>    - Number of jobs for worker to run before exiting
	-n            - Send data packet for each line({lines})
	-N            - Same as -n, but strip off the newline({strip})
	-w            - Run in worker mode({worker})
"""


@dataclass(slots=True)
class Options:
    """What was typed, by the stock tool's names."""

    functions: list[str] = field(default_factory=list)
    host: str = "localhost"
    port: int = PORT_DEFAULT
    timeout_ms: int = -1
    count: int = 0
    unique: str | None = None
    pid_file: str | None = None
    priority: str = "normal"
    background: bool = False
    lines: bool = False
    strip: bool = False
    prefix: bool = False
    no_input: bool = False
    verbose: bool = False
    worker: bool = False
    daemon: bool = False
    tls: bool = False
    help: bool = False
    fault: str = ""
    arguments: list[str] = field(default_factory=list)

    @property
    def timeout_seconds(self) -> float | None:
        # A poll of no length at all would never see an answer.
        return None if self.timeout_ms < 0 else max(0.001, self.timeout_ms / 1000)


def read(arguments: Sequence[str]) -> Options:
    """Read the options as getopt does, mixed with arguments until `--`; `fault` says what is wrong."""
    options = Options()
    try:
        found, options.arguments = getopt.gnu_getopt(list(arguments), LETTERS)
    except getopt.GetoptError as error:
        options.fault = str(error)
        # What came before the fault still counts for the help that is shown.
        options.help = "-H" in arguments[: _place(arguments, error.opt)]
        return options
    switches = {
        "-b": "background",
        "-P": "prefix",
        "-s": "no_input",
        "-v": "verbose",
        "-w": "worker",
        "-d": "daemon",
        "-S": "tls",
        "-n": "lines",
    }
    for letter, value in found:
        match letter:
            case "-H":
                options.help = True
            case "-f":
                options.functions.append(value)
            case "-h":
                options.host = value
            case "-p":
                options.port = _number(value)
            case "-t":
                options.timeout_ms = _number(value)
            case "-c":
                options.count = _number(value)
            case "-u":
                options.unique = value
            case "-i":
                options.pid_file = value
            case "-I":
                options.priority = "high"
            case "-L":
                options.priority = "low"
            case "-N":
                options.lines = options.strip = True
            case _:
                setattr(options, switches[letter], True)
    if not options.functions:
        options.fault = "No Functions were provided"
    return options


def _place(arguments: Sequence[str], letter: str) -> int:
    return next((i for i, word in enumerate(arguments) if word.startswith("-") and letter in word), 0)


def _number(text: str) -> int:
    """As C's atoi: the digits that it begins with, else 0."""
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0


def usage(options: Options) -> str:
    """The help, with what is switched on."""

    def shown(value: bool) -> str:
        return "true" if value else "false"

    name = "gearfleet gearman"
    return USAGE.format(
        name=name,
        fault=f"\n{name}\tError in usage({options.fault}).\n" if options.fault else "",
        verbose=shown(options.verbose),
        background=shown(options.background),
        lines=shown(options.lines),
        strip=shown(options.strip),
        worker=shown(options.worker),
    )


def servers(options: Options) -> list[Server]:
    """The servers in libgearman's order: the last one added comes first.

    Raises InvalidArgument and NoServer.
    """
    named = os.environ.get(SERVER_ENVIRONMENT)
    first = list(parse_servers(named)) if named else [Server(options.host, options.port or PORT_DEFAULT)]
    rest = os.environ.get(SERVERS_ENVIRONMENT)
    known = (list(look_up(parse_sources(rest))) if rest else []) + first
    return list(dict.fromkeys(reversed(known)))


def message(call: str, text: str) -> None:
    """A fault as the stock tool shows it: after the name of libgearman's function."""
    sys.stdout.flush()
    print(f"gearman: {call} : {for_terminal_lines(text)}", file=sys.stderr, flush=True)


def run(arguments: Sequence[str]) -> int:
    """Run as gearman does; return its exit code."""
    options = read(arguments)
    if options.help or options.fault:
        print(usage(options), end="", file=sys.stderr if options.fault else sys.stdout)
        return 0 if options.help else EXIT_FAILED
    # Late: each mode needs only its own.
    if options.worker:
        from cluster.cli.gearman_worker import run as run_mode
    else:
        from cluster.cli.gearman_client import run as run_mode
    try:
        addresses = servers(options)
        tls = tls_context() if options.tls else None
    except (InvalidArgument, NoServer, ValueError) as error:
        message("gearman", str(error))
        return EXIT_FAILED
    if options.daemon and not _into_background():
        return 0
    try:
        with _pid_file(options.pid_file):
            return run_mode(options, addresses, tls)
    except OSError as error:
        message("gearman", f"{error.filename or ''} {error.strerror}".strip())
        return EXIT_FAILED


def _into_background() -> bool:
    """Fork; whether this is the child, which goes on without a terminal."""
    sys.stdout.flush()
    if os.fork():
        return False
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return True


@contextlib.contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


gearman = RawCommand("gearman", run, "Takes the options of gearman.")
