"""gRPC's channels, ports and TLS between nodes: what peers.py and control.py have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import grpc
import grpc.aio

from cluster.server.errors import StartError
from cluster.server.files import require_readable
from cluster.server.listening import listening_sockets

DEAD_CONNECTION_SECONDS: Final = 20
HANDSHAKE_SECONDS: Final = 20  # for TLS and the first frames of a connection to the peer port
NEXT_ADDRESS_SECONDS: Final = 0.25  # after which the next address of a name is tried beside the last one
MESSAGE_BYTES_MAX: Final = 65 * 1024 * 1024  # the largest payload and 1 MiB around it


class PeerTls(NamedTuple):
    """mTLS between nodes, all PEM. The certificate is for both roles and names the advertised host."""

    certificate: bytes
    key: bytes
    ca: bytes


def load_peer_tls(certificate: Path | None, key: Path | None, ca: Path | None) -> PeerTls | None:
    """What the settings peer_certificate, peer_key and peer_ca say; None for none. Raises StartError."""
    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None or ca is None:
        missing = [
            name
            for name, path in (("peer_certificate", certificate), ("peer_key", key), ("peer_ca", ca))
            if path is None
        ]
        raise StartError(f"TLS between nodes needs all three of its files: set {' and '.join(missing)} too")
    require_readable(peer_certificate=certificate, peer_key=key, peer_ca=ca)
    try:
        # gRPC says nothing of a bad file but that a handshake failed.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
        return PeerTls(certificate.read_bytes(), key.read_bytes(), ca.read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"TLS between nodes cannot be set up ({error}): check peer_certificate, peer_key and peer_ca"
        ) from None


def options(message_bytes_max: int, *, server: bool) -> list[tuple[str, Any]]:
    chosen: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
    ]
    if server:
        chosen += [
            ("grpc.so_reuseport", 0),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
            # Streams have keep-alives of their own. This is for what is left of one whose other machine
            # is gone: an answer that nobody takes any more.
            ("grpc.keepalive_time_ms", DEAD_CONNECTION_SECONDS * 1000),
            ("grpc.keepalive_timeout_ms", DEAD_CONNECTION_SECONDS * 1000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    else:
        chosen += [
            ("grpc.use_local_subchannel_pool", 1),  # each dial is a new connection
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
        ]
    return chosen


async def connect(host: str, port: int) -> str:
    """Connect and hang up; the address that answered, as gRPC writes it. Raises OSError.

    Of several addresses the next one is tried when one has failed, or has said nothing for a moment: whoever
    answers first is taken (RFC 8305). ConnectionRefusedError only when all addresses of the host refused.
    """
    addresses = await resolve(host, port)
    if len(addresses) == 1:
        return await _connect_to(*addresses[0])
    error: OSError | None = None
    attempts: set[asyncio.Task[str]] = set()
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(asyncio.ensure_future(_connect_to(*addresses.pop(0))))
            done, attempts = await asyncio.wait(
                attempts,
                timeout=NEXT_ADDRESS_SECONDS if addresses else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                fault = attempt.exception()
                if fault is None:
                    return attempt.result()
                if not isinstance(fault, OSError):
                    raise fault
                if error is None or isinstance(error, ConnectionRefusedError):
                    error = fault
    finally:
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    raise error or OSError(f"{host} has no address")


async def _connect_to(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    if family == socket.AF_INET6:
        return f"ipv6:[{address[0]}]:{address[1]}"
    return f"ipv4:{address[0]}:{address[1]}"


async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    with contextlib.suppress(ValueError):
        version = ip_address(host).version
        return [(socket.AF_INET6 if version == 6 else socket.AF_INET, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(int(family), address) for family, _, _, _, address in found]


def why_not(host: str, port: int) -> str:
    """Why a port cannot be listened on; gRPC does not say."""
    try:
        for sock in listening_sockets(host, port):
            with sock:
                sock.listen()
    except OSError as error:
        return str(error.strerror)
    return "no reason was given"


def host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(peer: str) -> str:
    """The host in what gRPC says of a caller: ipv4:192.0.2.1:4711, ipv6:%5B::1%5D:4711."""
    text = unquote(peer).partition(":")[2].rpartition(":")[0]
    return text.strip("[]") or peer


def is_loopback(peer: str) -> bool:
    """Whether a caller is of this machine."""
    try:
        address = ip_address(host_of(peer).split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def os_reason(error: OSError) -> str:
    """One line about what the operating system raised; asyncio puts words of its own before it."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return str(error.strerror or error)
    return os.strerror(error.errno)


def explain(error: BaseException) -> str:
    """One line about what gRPC raised."""
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details() or error.code().name.lower()).replace("\n", " ")
    return str(error) or type(error).__name__


def open_channel(target: str, host: str, tls: PeerTls | None, message_bytes_max: int) -> Any:
    """A channel to what `connect` found for `host`."""
    chosen = options(message_bytes_max, server=False)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=chosen)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    # The address is resolved already; the certificate has to be good for what was advertised.
    chosen.append(("grpc.ssl_target_name_override", host))
    return grpc.aio.secure_channel(target, credentials, options=chosen)


def tls_hint(tls: PeerTls | None) -> str:
    """What to look at when a connection stands and no call gets through."""
    if tls is None:
        return (
            "does only the other side use TLS? Then set peer_certificate, peer_key and peer_ca here too. "
            "Or is that another port than the --peer-port (4731)?"
        )
    return "do both sides use TLS, with certificates of the same peer_ca, good for the advertised host?"
