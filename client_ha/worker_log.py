"""What a worker says at INFO: who it is and what it takes, and a line for each job with its time."""

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from client_ha.log import logger
from cluster.wire.packets import GIVE_BACK, WORK_COMPLETE, WORK_EXCEPTION
from cluster.wire.shown import for_terminal_lines

NAMES_SHOWN_MAX: Final = 20
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_ENDS: Final = {WORK_COMPLETE: "done", WORK_EXCEPTION: "raised", GIVE_BACK: "given back"}


class PrintingFormatter(logging.Formatter):
    """Lines that do nothing but print: what clients and servers sent may be in them."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal_lines(super().format(record))


def greet(functions: Collection[bytes], servers: Sequence[object], concurrency: int, processes: int) -> None:
    """Say what this worker does, and where."""
    names = [name.decode("utf-8", "replace") for name in functions]
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    slots = f"{concurrency} at a time" + (f" in each of {processes} processes" if processes else "")
    logger.info(
        "worker %d takes jobs of %s%s, %s, from %s",
        os.getpid(),
        ", ".join(names[:NAMES_SHOWN_MAX]),
        more,
        slots,
        ", ".join(str(server) for server in servers),
    )


def tell_end(function: bytes, handle: bytes, packet: bytes, seconds: float) -> None:
    """A job has ended, well or not."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(
            "%s %s %s in %.3f s",
            function.decode("utf-8", "replace"),
            handle.decode("utf-8", "replace"),
            _ENDS.get(int.from_bytes(packet[4:8]), "failed"),  # a failure's text may go before it
            seconds,
        )


@contextlib.contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Let a script that has not set up logging see these lines; one that has, in any way, is left alone."""
    own = logging.getLogger(logger.logger.name)
    if own.hasHandlers() or own.level != logging.NOTSET:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintingFormatter(_FORMAT))
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(logging.NOTSET)
        own.removeHandler(handler)
