"""Into the background: two forks, a session of its own, and a parent that waits until the daemon works."""

import os
import select
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

START_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02


def daemonize(
    run: Callable[[], int], ready: Callable[[int], bool], log: Path, open_log: Callable[[], int]
) -> int:
    """Run `run` in a process of its own; return when `ready(process_id)` is true or it has ended.

    Returns 0 when it works, 1 when it ended before. What it writes to standard error goes to `log`, which
    `open_log` opens.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writer, b"%d\n" % os.getpid())
        os._exit(_run_detached(run, writer, open_log))
    os.close(writer)
    os.waitpid(child, 0)
    try:
        return _wait(reader, ready, log)
    finally:
        os.close(reader)


def _run_detached(run: Callable[[], int], writer: int, open_log: Callable[[], int]) -> int:
    try:
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        messages = open_log()
        for descriptor, source in ((0, nowhere), (1, nowhere), (2, messages)):
            os.dup2(source, descriptor)
        os.close(nowhere)
        os.close(messages)
        # Not inherited by anything the server might start: its end must mean this process's end.
        os.set_inheritable(writer, False)
        return run()
    except BaseException:
        traceback.print_exc()
        return 1


def _wait(reader: int, ready: Callable[[int], bool], log: Path) -> int:
    process_id = int(os.read(reader, 32))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        # The daemon holds the other end: it closes when the daemon ends.
        readable, _, _ = select.select([reader], [], [], _POLL_SECONDS)
        if readable:
            print(f"gearfleet: the daemon did not start; {log} says why", file=sys.stderr)
            return 1
        if ready(process_id):
            return 0
    print(f"gearfleet: the daemon ({process_id}) is still starting; see {log}", file=sys.stderr)
    return 0
