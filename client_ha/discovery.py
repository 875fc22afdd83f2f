"""Servers that are found rather than listed: by a DNS name that has all addresses, or in the fleet's etcd.

    dns://gearfleet-headless:4730           every address of the name, such as a headless Kubernetes service
    etcd://host:2379,host2:2379/FLEET       the nodes registered in the fleet's etcd; etcds:// over TLS

Once one node of a fleet is reached, its map tells the rest: discovery is how to get in, at the start and
after everything has moved. So nothing here is watched: it is looked up again every `DISCOVERY_SECONDS`, and
sooner while no server is reached.

etcd is asked through the JSON gateway that it serves on its client port: two requests of HTTP, and no gRPC in
programs that only submit jobs.
"""

import asyncio
import base64
import json
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from client_ha.addresses import (
    PORT_DEFAULT,
    Server,
    environment_servers,
    parse_server,
    parse_servers,
    without_password,
)
from client_ha.arguments import got
from client_ha.dialling import ATTEMPT_SECONDS
from client_ha.errors import InvalidArgument

DISCOVERY_SECONDS: Final = 30.0  # between two look-ups while all is well
LOOK_UP_SECONDS: Final = 5.0  # for one look-up; at etcd, for one endpoint
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024  # etcd's answer; a thousand nodes have a quarter of a megabyte
ETCD_PORT: Final = 2379

_ETCD: Final = re.compile(r"(etcds?)://(?:([^:@/,]+):([^@/]*)@)?([^/@]+)/([^,/]+)/?\Z")
# One entry of a list: an etcd address has commas of its own, up to the slash before its fleet.
_ENTRY: Final = re.compile(r"\s*(etcds?://[^/]*/[^,]*|[^,]+)")


class Discovery(Protocol):
    """A way to find servers. str() of it names it in errors."""

    async def look_up(self) -> Sequence[Server]:
        """The servers there are now. Raises OSError, or what else may happen."""


Resolve = Callable[[str, int], Awaitable[Sequence[Server]]]


async def resolve_name(host: str, port: int) -> Sequence[Server]:
    """All addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [Server(str(address[0]), port) for *_, address in found]


class DnsDiscovery:
    """All addresses of a name. `resolve` is how it is looked up; the operating system's way if left out."""

    def __init__(self, host: str, port: int = PORT_DEFAULT, *, resolve: Resolve = resolve_name) -> None:
        self.host = host
        self.port = port
        self._resolve = resolve

    def __str__(self) -> str:
        return f"dns://{Server(self.host, self.port)}"

    async def look_up(self) -> Sequence[Server]:
        try:
            found = await self._resolve(self.host, self.port)
        except UnicodeError as error:  # a label that no name may have
            raise OSError(f"{self.host!r} is no name: {error}") from None
        if not found:
            raise OSError(f"{self.host!r} has no address")
        return tuple(dict.fromkeys(found))


class EtcdDiscovery:
    """The nodes that are registered in a fleet's etcd: the leased keys /gearfleet/FLEET/nodes/."""

    def __init__(
        self,
        endpoints: str | Iterable[str | Server],
        fleet: str = "default",
        *,
        user: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if isinstance(endpoints, str):
            endpoints = [part for part in endpoints.split(",") if part.strip()]
        self.endpoints = tuple(e if isinstance(e, Server) else parse_server(e, ETCD_PORT) for e in endpoints)
        if not self.endpoints:
            raise InvalidArgument("no etcd endpoint; write etcd://host:2379,host2:2379/FLEET")
        if not fleet or "/" in fleet:
            raise InvalidArgument(f"{fleet!r} is no name of a fleet; write etcd://host:2379/FLEET")
        self.fleet = fleet
        self._user = user
        self._password = password
        self._tls = tls

    def __str__(self) -> str:
        scheme = "etcd" if self._tls is None else "etcds"
        return f"{scheme}://{','.join(str(endpoint) for endpoint in self.endpoints)}/{self.fleet}"

    async def look_up(self) -> Sequence[Server]:
        troubles = []
        for endpoint in self.endpoints:
            try:
                async with asyncio.timeout(LOOK_UP_SECONDS):
                    return await self._ask(endpoint)
            except TimeoutError:
                troubles.append(f"{endpoint}: no answer within {LOOK_UP_SECONDS:.3g} s")
            except OSError as error:
                troubles.append(f"{endpoint}: {error.strerror or error}")
        raise OSError("; ".join(troubles))

    async def _ask(self, endpoint: Server) -> Sequence[Server]:
        token = None
        if self._user:
            login = {"name": self._user, "password": self._password}
            token = (await self._post(endpoint, "/v3/auth/authenticate", login, None)).get("token")
        prefix = f"/gearfleet/{self.fleet}/nodes/".encode()
        # The end of a prefix is the prefix with its last byte raised by one; "/" becomes "0".
        span = {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + b"0")}
        answer = await self._post(endpoint, "/v3/kv/range", span, token)
        servers = []
        for pair in answer.get("kvs", ()):
            try:
                member = json.loads(base64.b64decode(pair["value"]))
                servers.append(Server(str(member["host"]), int(member["port"])))
            except (KeyError, TypeError, ValueError):
                continue  # a key that was edited by hand, or of a later release; the others will do
        if not servers:
            raise OSError(f"no node of the fleet {self.fleet!r} is registered in this etcd")
        return tuple(servers)

    async def _post(self, endpoint: Server, path: str, value: object, token: str | None) -> dict[str, Any]:
        """One request by HTTP/1.0: its answer ends with the connection, so there is nothing to parse."""
        reader, writer = await asyncio.open_connection(
            endpoint.host,
            endpoint.port,
            ssl=self._tls,
            limit=ANSWER_BYTES_MAX,
            happy_eyeballs_delay=ATTEMPT_SECONDS,
        )
        try:
            body = json.dumps(value).encode()
            head = [
                f"POST {path} HTTP/1.0",
                f"Host: {endpoint}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
            ]
            if token is not None:
                head.append(f"Authorization: {token}")
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            answer = b""
            while piece := await reader.read(65536):
                answer += piece
                if len(answer) > ANSWER_BYTES_MAX:
                    raise OSError(f"it answered with more than {ANSWER_BYTES_MAX} bytes")
        finally:
            writer.close()
        answer_head, _, text = answer.partition(b"\r\n\r\n")
        status = answer_head.split(b" ", 2)[1:2]
        try:
            parsed = json.loads(text)
        except ValueError:
            raise OSError(
                "it does not answer as etcd's JSON gateway does; is this etcd 3.4 or later, and not started "
                f"with --enable-grpc-gateway=false? It said {text[:200]!r}"
            ) from None
        if status != [b"200"] or not isinstance(parsed, dict):
            said = parsed.get("error", "") if isinstance(parsed, dict) else ""
            raise OSError(f"etcd refuses: {said or text[:200].decode('utf-8', 'replace')}")
        return parsed


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Sources(NamedTuple):
    """Where servers are: those listed, and ways to find more."""

    servers: tuple[Server, ...]
    discoveries: tuple[Discovery, ...]


def parse_sources(servers: "str | Iterable[str | Server | Discovery] | None") -> Sources:
    """As parse_servers, and dns:// and etcd:// too. Raises InvalidArgument."""
    if servers is None:
        servers = environment_servers()
    listed: list[Server] = []
    discoveries: list[Discovery] = []
    if not isinstance(servers, Iterable):
        raise InvalidArgument(f"servers={got(servers)}: give 'host:port,host:port', or a list of such")
    for entry in [servers] if isinstance(servers, str) else servers:
        if not isinstance(entry, str | Server) and not hasattr(entry, "look_up"):
            raise InvalidArgument(f"servers has {got(entry)}: give each as 'host:port'")
        if isinstance(entry, Server):
            listed.append(entry)
        elif not isinstance(entry, str):
            discoveries.append(entry)
        else:
            for part in (part.strip() for part in _ENTRY.findall(entry)):
                if "://" in part:
                    discoveries.append(_parse_discovery(part))
                elif part:
                    listed.append(parse_server(part))
    if not discoveries:
        return Sources(parse_servers(listed), ())
    return Sources(tuple(dict.fromkeys(listed)), tuple(discoveries))


def _parse_discovery(text: str) -> Discovery:
    scheme, _, rest = text.partition("://")
    if scheme == "dns":
        server = parse_server(rest)
        return DnsDiscovery(server.host, server.port)
    if scheme not in ("etcd", "etcds"):
        raise InvalidArgument(
            f"{without_password(text)!r} is no server address: write host:port, dns://NAME:{PORT_DEFAULT} or "
            f"etcd://HOST:{ETCD_PORT}/FLEET"
        )
    match = _ETCD.match(text)
    if match is None:
        raise InvalidArgument(
            f"{without_password(text)!r}: write etcd://HOST:{ETCD_PORT},HOST2:{ETCD_PORT}/FLEET"
        )
    _, user, password, endpoints, fleet = match.groups()
    tls = ssl.create_default_context() if scheme == "etcds" else None
    return EtcdDiscovery(endpoints, fleet, user=user or "", password=password or "", tls=tls)
