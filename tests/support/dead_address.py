"""A name with two addresses, the first of which is dead: nothing answers there, not even a refusal."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

NAME = "two-addresses.example"
DEAD = "127.0.0.2"
_WAITING = 3  # more than a listener without a backlog lets in


@contextlib.contextmanager
def dead_first_address(port: int, monkeypatch: pytest.MonkeyPatch, alive: str = "127.0.0.1") -> Iterator[str]:
    """Let NAME be a dead address, then `alive`. The kernel drops what comes to a listener that is full."""
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != NAME:
            return real(host, *arguments, **options)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in (DEAD, alive)
        ]

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((DEAD, port))
        full.listen(0)
        for _ in range(_WAITING):
            crowd = stack.enter_context(socket.socket())
            crowd.setblocking(False)
            crowd.connect_ex((DEAD, port))
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        yield NAME
        monkeypatch.setattr(socket, "getaddrinfo", real)
