"""Ports for servers of tests: each is given out once, and no outgoing connection gets it.

A port that the system chose (port 0) and that was closed again may be given to the next outgoing connection
of any process; one that is only looked for when its server starts may have been promised to another one.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

_PORTS = range(15_000, 32_000)  # below those of outgoing connections


def _free_ports() -> Iterator[int]:
    """All of them, in an order of this process's own."""
    while True:
        for port in random.sample(_PORTS, len(_PORTS)):
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            yield port


_ports = _free_ports()


def lasting_port() -> int:
    """A port that nobody has now, and that this process has not given to anybody else."""
    return next(_ports)
