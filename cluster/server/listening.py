"""Sockets to listen on: one for each address that a name has.

"localhost" has two on most machines, and clients try either first. So all are listened on, on one port; an
address of a family that the machine does not have is passed over, as long as one is left.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

EVERYWHERE: Final = "::"  # one socket for every address of both families
_EVERYWHERE_IPV4: Final = "0.0.0.0"
# With port 0 the kernel chooses for the first address; another's port may be taken.
PORT_TRIES: Final = 16
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind every address of a host. Raises OSError; socket.gaierror when there is no such host."""
    found: dict[Any, socket.AddressFamily] = {}
    for family, _, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        found.setdefault(address, family)
    if host == EVERYWHERE:
        found[(_EVERYWHERE_IPV4, port)] = socket.AF_INET  # where there is no IPv6
    for _ in range(PORT_TRIES - 1 if port == 0 else 0):
        try:
            return _bind_all(host, found)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bind_all(host, found)


def _bind_all(host: str, addresses: dict[Any, socket.AddressFamily]) -> list[socket.socket]:
    """One port for all. Raises OSError that names the address."""
    socks: list[socket.socket] = []
    passed_over: OSError | None = None
    for address, family in addresses.items():
        port = socks[0].getsockname()[1] if socks else address[1]
        try:
            socks.append(_bound(family, (address[0], port, *address[2:]), both=host == EVERYWHERE))
        except OSError as error:
            if error.errno in _NOT_HERE:
                passed_over = error
                continue
            for sock in socks:
                sock.close()
            which = f": {address[0]}" if len(addresses) > 1 and host != EVERYWHERE else ""
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}{which}") from None
        if host == EVERYWHERE:
            break
    if not socks:
        raise passed_over or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return socks


def _bound(family: int, address: Any, *, both: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
