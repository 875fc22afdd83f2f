"""The `gearfleet` command.

    root.py      the list of commands; each one's module is imported when it is used
    server.py    gearfleet server: options made from the fields of cluster.server.settings
    gearmand.py  gearfleet gearmand: gearmand's own options, mapped onto the same settings
    jobs.py      submit and work
    fleet.py     status, workers and maxqueue
    cancel.py    cancel
    look.py      jobs and job; found_jobs.py is what servers tell of them
    top.py       the live table
    discover.py  the other nodes of a fleet, from one of them
    control.py   which nodes the commands for a fleet speak to
    nodes.py     nodes, map and slots
    operate.py   drain, join, forget and promote
    restore.py   fleet saved-map and fleet restore
    drill.py     drill; drill_screen.py shows how it goes
    gearman.py, gearadmin.py   take the place of the stock tools
    peer.py, dialling.py   one blocking connection, to whichever address of a name answers
    no_worker.py tells a submitter that nobody takes the job
    signals.py   what asks to stop: commands that run, and process 1
    admin.py     the text commands of a server, as functions
    suggest.py   what somebody meant who mistyped a word

This module imports none of them: the light install (client and worker) lacks what they need.
"""

import sys
from collections.abc import Sequence
from typing import Final

EXIT_FAILED: Final = 1  # the job failed, or what was asked for does not exist
EXIT_USAGE: Final = 2
EXIT_NO_SERVER: Final = 3

_NEEDED: Final = frozenset({"click", "rich", "pydantic", "pydantic_settings", "structlog"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process when None); return its exit code."""
    try:
        from cluster.cli.root import run_command

        return run_command(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"gearfleet: the command needs {error.name}, which is not installed: "
            "pip install 'gearfleet[server]'",
            file=sys.stderr,
        )
        return EXIT_USAGE
