"""A blocking connect that tries all addresses of a name, as client_ha.dialling does for event loops."""

import errno
import os
import selectors
import socket
import time
from collections.abc import Sequence

from client_ha.dialling import AddressInfo, attempt_seconds, fault_text, host_of, in_turns, no_connection


def connect(host: str, port: int, limit_seconds: float) -> socket.socket:
    """The first of the name's addresses that is connected within the limit.

    Raises OSError: the only one's own error, or one that says what happened at each.
    """
    found = in_turns(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    if len(found) == 1:
        # What socket.create_connection raises is what users know.
        return socket.create_connection((host, port), timeout=limit_seconds)
    with selectors.DefaultSelector() as selector:
        try:
            return _first(selector, found, limit_seconds)
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()


def _first(
    selector: selectors.BaseSelector, found: Sequence[AddressInfo], limit_seconds: float
) -> socket.socket:
    ends_at = time.monotonic() + limit_seconds
    pause_seconds = attempt_seconds(len(found), limit_seconds)
    waiting = list(found)
    faults: list[tuple[str, str]] = []
    while waiting or selector.get_map():
        if waiting:
            info = waiting.pop(0)
            try:
                _begin(selector, info)
            except OSError as error:
                faults.append((host_of(info), fault_text(error)))
                continue
        left_seconds = ends_at - time.monotonic()
        if left_seconds <= 0:
            break
        for key, _ in selector.select(min(pause_seconds, left_seconds) if waiting else left_seconds):
            trying = key.fileobj
            assert isinstance(trying, socket.socket)
            selector.unregister(trying)
            code = trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                trying.settimeout(limit_seconds)
                return trying
            trying.close()
            faults.append((host_of(key.data), fault_text(OSError(code, os.strerror(code)))))
    faults += [(host_of(key.data), "timed out") for key in selector.get_map().values()]
    raise no_connection(faults)


def _begin(selector: selectors.BaseSelector, info: AddressInfo) -> None:
    family, kind, protocol, _, address = info
    trying = socket.socket(family, kind, protocol)
    try:
        trying.setblocking(False)
        code = trying.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        selector.register(trying, selectors.EVENT_WRITE, info)
    except BaseException:
        trying.close()
        raise
