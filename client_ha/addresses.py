"""Where servers are: "host:port,host:port", brackets around IPv6, 4730 when no port is given."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from client_ha.errors import InvalidArgument

PORT_DEFAULT: Final = 4730
SERVERS_ENVIRONMENT: Final = "GEARMAN_SERVERS"  # the name that libgearman reads, too


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """One server's address."""

    host: str
    port: int = PORT_DEFAULT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = tuple[str, int]  # host, port
# From the address that a node tells to the one to connect to.
AddressRemap = Callable[[Address], Address] | Mapping[Address, Address]


def remap_server(server: Server, remap: AddressRemap | None) -> Server:
    """Where to connect to for a server that is said to be there. What a mapping does not have stays as it is.

    Raises whatever `remap` raises, and TypeError or ValueError for what is no (host, port).
    """
    if remap is None:
        return server
    address = (server.host, server.port)
    host, port = remap.get(address, address) if isinstance(remap, Mapping) else remap(address)
    return Server(str(host), int(port))


def without_password(text: str) -> str:
    """An address to show: what stands before the last "@" may hold a password, also where it is mistyped."""
    scheme, mark, rest = text.rpartition("://")
    return f"{scheme}{mark}…@{rest.rpartition('@')[2]}" if "@" in rest else text


def parse_server(text: str, port_default: int = PORT_DEFAULT) -> Server:
    """Read "host", "host:port", "[v6]" or "[v6]:port". Raises InvalidArgument."""
    text = text.strip()
    shown = without_password(text)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidArgument(f"{shown!r} is no server address: write IPv6 as [2001:db8::1]:4730")
        port = rest[1:]
    elif text.count(":") > 1:
        raise InvalidArgument(
            f"{shown!r} is no server address: put IPv6 in brackets, [{shown}]:{port_default}"
        )
    else:
        host, _, port = text.partition(":")
    if not host:
        raise InvalidArgument(f"{shown!r} is no server address: the host is missing; write host:port")
    if not port:
        return Server(host, port_default)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgument(f"{shown!r} is no server address: the port must be a number from 1 to 65535")
    return Server(host, int(port))


def environment_servers() -> str:
    """What GEARMAN_SERVERS says. Raises InvalidArgument when it says nothing."""
    servers = os.environ.get(SERVERS_ENVIRONMENT, "")
    if not servers.strip():
        raise InvalidArgument(f"no servers: give them as 'host:port,host:port' or set {SERVERS_ENVIRONMENT}")
    return servers


def parse_servers(servers: "str | Iterable[str | Server] | None") -> tuple[Server, ...]:
    """Read a list of servers, in order and without repeats; None means the environment's GEARMAN_SERVERS.

    Raises InvalidArgument when there is none.
    """
    if servers is None:
        servers = environment_servers()
    entries: list[str | Server] = []
    for entry in [servers] if isinstance(servers, str) else servers:
        if isinstance(entry, Server):
            entries.append(entry)
        else:
            entries.extend(part for part in entry.split(",") if part.strip())
    parsed = dict.fromkeys(e if isinstance(e, Server) else parse_server(e) for e in entries)
    if not parsed:
        raise InvalidArgument("no servers: the list is empty; give at least one as 'host:port'")
    return tuple(parsed)
