"""Signals that ask to stop: which one ended a command, and process 1, where they do nothing by themselves."""

import os
import signal
import sys
from types import FrameType
from typing import Final

# Who sends these wants it to stop: an init, an operator, a terminal. The others, such as SIGSEGV, are the
# command's own doing. SIGKILL may be: it meets who takes all memory. When all is being stopped it is not.
_STOPS: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_ENDS_PROCESS_1: Final = (signal.SIGHUP, signal.SIGTERM)  # SIGINT raises in Python


def stopped_by(exit_code: int, *, stopping: bool) -> signal.Signals | None:
    """The signal from outside that ended a command, also where a shell or the command says so as 128 + N."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    stops = _STOPS | {signal.SIGKILL} if stopping else _STOPS
    return next((known for known in stops if known == number), None)


def end_as_process_1() -> None:
    """In a container's first process: let SIGTERM end it. Linux ignores there what has no handler.

    Commands that do more than end (server, gearmand, work, gearman -w) put their own handlers in its place.
    """
    if os.getpid() == 1:
        for number in _ENDS_PROCESS_1:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # as a shell reports it
