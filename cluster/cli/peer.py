"""One blocking connection to a server, for the commands that speak the protocol themselves."""

import os
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from client_ha.addresses import Server
from client_ha.dialling import fault_text
from cluster.cli.dialling import connect
from cluster.wire import TEXT, Decoder, ProtocolError
from cluster.wire.packets import TEXT_LINE_BYTES_MAX

CONNECT_SECONDS: Final = 5.0
# A server's answer may be larger than what it takes; this only stops a peer that is no Gearman server.
ANSWER_BYTES_MAX: Final = 2**32 - 1
LINE_BYTES_MAX: Final = 64 * TEXT_LINE_BYTES_MAX
_READ_BYTES: Final = 256 * 1024

# Names that libgearman reads, too.
TLS_CA_ENVIRONMENT: Final = "GEARMAN_CA_CERTIFICATE"
TLS_CERTIFICATE_ENVIRONMENT: Final = "GEARMAN_CLIENT_PEM"
TLS_KEY_ENVIRONMENT: Final = "GEARMAN_CLIENT_KEY"


class Unreachable(Exception):
    """A server did not answer: refused, silent, or not a Gearman server. The message names the remedy."""

    def __init__(self, server: Server, what: str, remedy: str) -> None:
        super().__init__(f"{server}: {what}; {remedy}")
        self.server = server
        self.what = what


def tls_context(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """What a client needs to speak TLS; each file is taken from libgearman's variables when not given.

    Raises ValueError that names the file and the remedy.
    """
    ca = ca or _environment_path(TLS_CA_ENVIRONMENT)
    certificate = certificate or _environment_path(TLS_CERTIFICATE_ENVIRONMENT)
    key = key or _environment_path(TLS_KEY_ENVIRONMENT)
    if (certificate is None) != (key is None):
        raise ValueError(
            "a client certificate and its key go together: "
            f"set {TLS_CERTIFICATE_ENVIRONMENT} and {TLS_KEY_ENVIRONMENT}"
        )
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ValueError(
            f"TLS: cannot use {', '.join(str(p) for p in (ca, certificate, key) if p)}: {error}; "
            "give readable PEM files"
        ) from None
    return context


def _environment_path(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


class Peer:
    """Send bytes; take packets or text lines. Every wait is bounded by `timeout_seconds`, None: not at all.

    Raises Unreachable, and TimeoutError from `packet`.
    """

    def __init__(
        self, server: Server, *, timeout_seconds: float | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.server = server
        self.timeout_seconds = timeout_seconds
        limit_seconds = CONNECT_SECONDS if timeout_seconds is None else timeout_seconds
        try:
            plain = connect(server.host, server.port, limit_seconds)
        except (OSError, UnicodeError) as error:  # a label that no name may have
            raise self._fault(f"no connection ({fault_text(error).lower()})") from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.socket: socket.socket = (
                plain if tls is None else tls.wrap_socket(plain, server_hostname=server.host)
            )
        except OSError as error:
            plain.close()
            raise Unreachable(
                server,
                f"no TLS connection ({_reason(error)})",
                f"check that the server has TLS, and {TLS_CA_ENVIRONMENT}",
            ) from None
        self._decoder = Decoder(from_server=True, packet_bytes_max=ANSWER_BYTES_MAX)
        self._received: deque[tuple[int, bytes]] = deque()
        self._lines: deque[bytes] = deque()
        self._unfinished = bytearray()
        self.line_bytes_max = LINE_BYTES_MAX

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self.socket.close()

    def fileno(self) -> int:
        """For select: readable means that `packet` may have one."""
        return self.socket.fileno()

    @property
    def has_packet(self) -> bool:
        """Whether a packet has arrived that was not taken yet."""
        return bool(self._received) or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.settimeout(self.timeout_seconds)
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise self._fault(_reason(error)) from None

    def packet(self) -> tuple[int, bytes]:
        """The next packet as (type, body)."""
        while not self._received:
            try:
                data = self._read()
                self._received.extend(self._decoder.feed(data))
            except ProtocolError as error:
                raise self._fault(str(error)) from None
            if self._decoder.error is not None and not self._received:
                raise self._fault(str(self._decoder.error))
        packet = self._received.popleft()
        if packet[0] == TEXT:
            raise self._fault(f"it sent the text {packet[1][:80]!r} where a packet belongs")
        return packet

    def lines(self) -> Iterator[str]:
        """Text lines without their ends, as they come."""
        while True:
            while self._lines:
                yield self._lines.popleft().rstrip(b"\r").decode("utf-8", "backslashreplace")
            first, *complete = self._read_text().split(b"\n")
            self._unfinished += first
            if complete:
                self._lines.append(bytes(self._unfinished))
                self._lines.extend(complete[:-1])
                self._unfinished = bytearray(complete[-1])
            if len(self._unfinished) > self.line_bytes_max:
                raise self._fault("it sent a line without end: is this a Gearman server?")

    def _read_text(self) -> bytes:
        try:
            return self._read()
        except TimeoutError:
            raise self._fault(f"no answer within {self.timeout_seconds:.3g} s") from None

    def _read(self) -> bytes:
        self.socket.settimeout(self.timeout_seconds)
        try:
            data = self.socket.recv(_READ_BYTES)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._fault(_reason(error)) from None
        if not data:
            raise Unreachable(
                self.server,
                "it closed the connection",
                "check that this is a Gearman port, and whether it wants TLS (--tls)",
            )
        return data

    def _fault(self, what: str) -> Unreachable:
        return Unreachable(self.server, what, "check the address and that a server runs there")


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (error.strerror or str(error) or type(error).__name__).lower()
