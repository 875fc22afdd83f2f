"""Which nodes of a fleet a command speaks to (--peer), and asking the first that answers."""

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from client_ha.addresses import SERVERS_ENVIRONMENT, Server, parse_server
from client_ha.errors import InvalidArgument
from cluster.cli.servers import Failed, NoServer, complain, look_up, sources, timeout_option

if TYPE_CHECKING:
    from cluster.server.channels import PeerTls
    from cluster.server.control import ControlClient, FleetStatus

PEER_ENVIRONMENT: Final = "GEARFLEET_PEER"
SECRET_FILE_ENVIRONMENT: Final = "GEARFLEET_SECRET_FILE"
PEER_PORT: Final = 4731
PEER_DEFAULT: Final = f"127.0.0.1:{PEER_PORT}"
PEERS_MAX: Final = 64
ANSWER_SECONDS: Final = 10.0

Answer = TypeVar("Answer")
Request = Callable[["ControlClient", "FleetStatus"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Peers:
    """Nodes of one fleet, and how to reach them. `tls_host`: what their certificates are for, if not that.

    Without addresses nobody named them: found_peers finds them, so that who needs none looks nothing up.
    """

    addresses: tuple[Server, ...]
    timeout_seconds: float = ANSWER_SECONDS
    tls: "PeerTls | None" = None
    tls_host: str = ""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)  # from --secret-file


def peer_addresses(text: str | None) -> tuple[Server, ...]:
    """Nodes from an option, else from GEARFLEET_PEER; none when neither says anything."""
    text = text or os.environ.get(PEER_ENVIRONMENT, "").strip()
    if not text:
        return ()
    try:
        found = tuple(
            dict.fromkeys(parse_server(part, PEER_PORT) for part in text.split(",") if part.strip())
        )
    except InvalidArgument as error:
        raise click.UsageError(f"--peer: {error}") from None
    if not 0 < len(found) <= PEERS_MAX:
        raise click.UsageError(f"--peer: give 1 to {PEERS_MAX} nodes as HOST:PORT, with commas between them")
    return found


def unnamed_peers() -> tuple[Server, ...]:
    """The hosts of GEARMAN_SERVERS, by the default peer port; without that this machine's node.

    Whose environment names a fleet means that one, and not the node that happens to run here.
    Raises NoServer.
    """
    text = os.environ.get(SERVERS_ENVIRONMENT, "").strip()
    if not text:
        return (parse_server(PEER_DEFAULT),)
    try:
        servers = look_up(sources(text))
    except (click.UsageError, NoServer) as error:
        remedy = "Or name the nodes: --peer HOST:PORT"
        raise type(error)(f"{SERVERS_ENVIRONMENT}: {error.message}. {remedy}") from None
    return tuple(dict.fromkeys(Server(server.host, PEER_PORT) for server in servers))[:PEERS_MAX]


def found_peers(peers: Peers) -> Peers:
    """These nodes, or those that the environment means. Raises NoServer."""
    return peers if peers.addresses else replace(peers, addresses=unnamed_peers())


def peer_tls(certificate: Path | None, key: Path | None, ca: Path | None) -> "PeerTls | None":
    """The three files; a click error when one is missing or cannot be used."""
    from cluster.server.channels import load_peer_tls
    from cluster.server.errors import StartError

    try:
        return load_peer_tls(certificate, key, ca)
    except StartError as error:
        raise click.UsageError(str(error)) from None


def read_secret_file(path: Path) -> tuple[bytes, ...]:
    """The fleet's secrets; a click error when that is none."""
    from cluster.server.proof import BadSecret, decode_secrets

    try:
        return decode_secrets(path.read_bytes())
    except OSError as error:
        raise click.UsageError(f"--secret-file: {path} cannot be read: {error.strerror}") from None
    except BadSecret as error:
        raise click.UsageError(f"--secret-file: {path} has no secret of a fleet: {error}") from None


def secrets_from_etcd() -> tuple[bytes, ...]:
    """Those that the etcd of this environment holds; empty where it names none. Raises Failed."""
    from cluster.server.errors import StartError, StoreError
    from cluster.server.settings import SettingsError, load_settings
    from cluster.server.store import Store, store_options

    try:
        settings = load_settings()
    except SettingsError as error:
        raise Failed(
            f"the fleet's secret is not read from etcd, as the environment is wrong: {error}"
        ) from None
    if not settings.etcd:
        return ()

    async def read() -> tuple[bytes, ...]:
        store = Store(store_options(settings))
        try:
            await store.read()
            return store.secrets
        finally:
            await store.close()

    try:
        return asyncio.run(read())
    except (StoreError, StartError) as error:
        raise Failed(f"the fleet's secret cannot be read from etcd: {error}") from None


def peer_options(*, timeout: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --peer, --timeout (unless the command has its own) and the TLS options: the command's `peers`."""
    path = click.Path(path_type=Path)

    def tls_option(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        environment = "GEARFLEET_" + name.upper()
        return click.option(
            "--" + name.replace("_", "-"),
            type=path,
            metavar="FILE",
            envvar=environment,
            help=f"{help}  [{environment}]",
        )

    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.option(
            "--peer",
            metavar="HOST:PORT,…",
            help="Nodes of the fleet, by their peer port; the first that answers is asked.  "
            f"[{PEER_ENVIRONMENT}; default: the hosts of {SERVERS_ENVIRONMENT} with port {PEER_PORT}, else "
            f"{PEER_DEFAULT}]",
        ),
        click.option(
            "--secret-file",
            type=path,
            metavar="FILE",
            envvar=SECRET_FILE_ENVIRONMENT,
            help="The fleet's secret, as gearfleet fleet secret show prints it; for nodes elsewhere without "
            f"TLS. Where GEARFLEET_ETCD is set it is read from etcd.  [{SECRET_FILE_ENVIRONMENT}]",
        ),
        tls_option("peer_certificate", "Certificate to show to nodes that speak TLS."),
        tls_option("peer_key", "Its key."),
        tls_option("peer_ca", "Authorities that sign nodes' certificates."),
    ]
    if timeout:
        options.append(timeout_option(ANSWER_SECONDS, "node"))

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(
            *arguments: Any,
            peer: str | None,
            secret_file: Path | None,
            peer_certificate: Path | None,
            peer_key: Path | None,
            peer_ca: Path | None,
            answer_seconds: float = ANSWER_SECONDS,
            **rest: Any,
        ) -> Any:
            tls = peer_tls(peer_certificate, peer_key, peer_ca)
            secrets = read_secret_file(secret_file) if secret_file is not None else ()
            peers = Peers(peer_addresses(peer), answer_seconds, tls, secrets=secrets)
            return command(*arguments, peers=peers, **rest)

        result: Callable[..., Any] = wrapped
        for option in reversed(options):
            result = option(result)
        return result

    return decorate


def ask(peers: Peers, request: Request[Answer], *, slots: bool = False) -> Answer:
    """Find the first node that says how the fleet stands, and do the rest with it: what changes something is
    sent to one node only. Raises NoServer and Failed."""
    from cluster.server.control import ControlError, ControlUnproved

    named = bool(peers.addresses)
    peers = found_peers(peers)
    try:
        try:
            return asyncio.run(_ask(peers, request, slots))
        except ControlUnproved:
            secrets = () if peers.secrets else secrets_from_etcd()
            if not secrets:
                raise
            return asyncio.run(_ask(replace(peers, secrets=secrets), request, slots))
    except ControlError as error:
        raise Failed(str(error)) from None
    except NoServer as error:
        if named or not os.environ.get(SERVERS_ENVIRONMENT, "").strip():
            raise
        raise NoServer(
            f"{error.message}. These are the hosts of {SERVERS_ENVIRONMENT}: where the peer port is not "
            f"{PEER_PORT}, give --peer HOST:PORT or set {PEER_ENVIRONMENT}"
        ) from None


async def _ask(peers: Peers, request: Request[Answer], slots: bool) -> Answer:
    from cluster.server.control import ControlClient, ControlUnreachable, ControlUnsupported

    faults: list[str] = []
    for address in peers.addresses:
        async with ControlClient(
            address.host,
            address.port,
            tls=peers.tls,
            tls_host=peers.tls_host,
            secrets=peers.secrets,
            timeout_seconds=peers.timeout_seconds,
        ) as client:
            try:
                status = await client.describe(slots=slots)
            except (ControlUnreachable, ControlUnsupported) as error:
                faults.append(str(error))
                continue
            for fault in faults:
                complain(fault)
            try:
                return await request(client, status)
            except ControlUnreachable as error:
                raise NoServer(str(error)) from None
    raise NoServer("no node answered. " + ". ".join(faults))


async def same_status(client: "ControlClient", status: "FleetStatus") -> "FleetStatus":
    """The request of a command that only looks."""
    return status
