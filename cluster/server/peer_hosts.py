"""Where the port for other nodes listens when nobody has said so: where this node says that it is."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from cluster.server.channels import resolve

if TYPE_CHECKING:
    from cluster.server.settings import Settings

LOOPBACK: Final = ("127.0.0.1", "::1")  # for gearfleet's commands on this machine
RESOLVE_SECONDS: Final = 2.0  # a start does not wait longer for the advertised name's address
EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})


async def peer_hosts(settings: Settings) -> tuple[str, str]:
    """The hosts to listen on, with commas; and for people why it is all of them, if it is.

    As `--peer-host` says, else as `--host` where that is not all addresses. Else the advertised address, and
    loopback. Where the advertised name has no address of this machine (yet), other nodes come by a way that
    cannot be seen from here (address translation, a name that another resolver knows): then all addresses,
    which the fleet's secret makes safe.
    """
    if "peer_host" in settings.model_fields_set or settings.peer_host not in EVERYWHERE:
        return settings.peer_host, ""
    advertised = settings.advertise
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = list(dict.fromkeys(str(address[0]) for _, address in await resolve(advertised, 0)))
    except OSError:  # a time-out, too
        return settings.peer_host, f"{advertised} has no address yet"
    here = [host for host in found if _is_here(host)]
    if not here:
        return settings.peer_host, f"{advertised} ({', '.join(found)}) is no address of this machine"
    own_name = advertised != "localhost" and advertised not in here
    if own_name and all(ip_address(host.split("%")[0]).is_loopback for host in here):
        # Debian's /etc/hosts: the others find another address under this name.
        return settings.peer_host, f"{advertised} is {', '.join(here)} on this machine"
    return ",".join(dict.fromkeys((*here, *filter(_is_here, LOOPBACK)))), ""


def _is_here(host: str) -> bool:
    """Whether this machine has that address: only then can it be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True
