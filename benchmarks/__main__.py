"""python -m benchmarks COMMAND: see the package's own text."""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

import benchmarks
from benchmarks import fleet, kills, latency, memory, million, report, throughput
from benchmarks.servers import ServerFailed
from tests.support.ending import end_with_this_process

COMMANDS: dict[str, ModuleType] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "million": million,
    "kills": kills,
    "fleet": fleet,
}

# For `make bench`: every command once, small enough for five minutes on two cores.
QUICK = (
    ("throughput", "--jobs", "50000", "--repetitions", "3", "--threads", "0", "4"),
    ("latency", "--jobs", "5000", "--repetitions", "3", "--threads", "0", "4"),
    ("memory", "--jobs", "100000", "--repetitions", "1"),
    ("million", "--jobs", "200000", "--probe-jobs", "10000"),
    ("kills", "--times", "5"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    commands.add_parser("quick", help="a small run of each, under 5 minutes")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # servers and directories are cleaned up then, too
    end_with_this_process()
    chosen = QUICK if options.command == "quick" else (sys.argv[1:],)
    try:
        return max([_run(parser, arguments) for arguments in chosen])
    except ServerFailed as failure:
        report.note(str(failure))
        return 1
    except KeyboardInterrupt:
        return 130


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    options = parser.parse_args(arguments)
    options.arguments = arguments
    return int(COMMANDS[options.command].run(options))


if __name__ == "__main__":
    sys.exit(main())
