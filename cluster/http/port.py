"""HttpPort: GET and HEAD of four paths, on the node's own loop.

Each connection is one request: the answer closes it, and so does time. That bounds what a scanner or a slow
peer can hold, and neither a probe nor a scrape every few seconds minds. When there are too many
connections the oldest goes, so that nobody can keep a probe out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cluster.http.health import why_not_ready, why_sick
from cluster.http.metrics import FunctionSums, families, written
from cluster.server.errors import StartError
from cluster.server.listening import listening_sockets
from cluster.server.status import ServerStatus

CONNECTIONS_MAX: Final = 64
CONNECTION_SECONDS_MAX: Final = 10.0
CLOSE_SECONDS: Final = 1.0
REQUEST_LINE_BYTES_MAX: Final = 2048
HEADER_BYTES_MAX: Final = 4096
REQUEST_BYTES_MAX: Final = 16 * 1024  # all of it
BACKLOG: Final = 128
# A scrape costs the loop some milliseconds: who asks more often gets the last one again.
METRICS_AGE_SECONDS_MAX: Final = 0.2
FUNCTIONS_PER_TURN: Final = 500
METRICS_FUNCTIONS_MAX: Final = 1000
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

INDEX: Final = """gearfleet node {name}

/healthz   200 while the loop turns
/readyz    200 while the node serves clients, else 503 and why
/metrics   metrics for Prometheus
"""
_HEADERS: Final = {"Server": "gearfleet", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# aiohttp logs what strangers send as errors, with a traceback; here it is answered, that is enough.
_QUIET: Final = logging.getLogger("gearfleet.http")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False

Answer = tuple[int, str, bytes]  # status, content type, body


class HttpPort:
    """`start`, then `close`; `port` says which one it is when 0 was asked for."""

    def __init__(
        self,
        server: ServerStatus,
        host: str,
        port: int,
        *,
        functions_max: int = METRICS_FUNCTIONS_MAX,
        connection_seconds_max: float = CONNECTION_SECONDS_MAX,
    ) -> None:
        self.host = host
        self.port = port
        self._server = server
        self._functions_max = functions_max
        self._connection_seconds_max = connection_seconds_max
        self._requests: web.Server | None = None
        self._listeners: list[asyncio.Server] = []
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._metrics = b""
        self._metrics_at = float("-inf")
        self._scraping = asyncio.Lock()
        self._paths: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._all_metrics,
        }

    async def start(self) -> None:
        """Listen. Raises StartError."""
        loop = asyncio.get_running_loop()
        socks = _bind(self.host, self.port)
        self._requests = requests = web.Server(self._answer)
        for sock in socks:
            self._listeners.append(
                await loop.create_server(
                    lambda: _Connection(self._open, self._connection_seconds_max, requests, loop),
                    sock=sock,
                    backlog=BACKLOG,
                )
            )
        self.port = socks[0].getsockname()[1]
        structlog.get_logger("gearfleet").info("http listening", host=self.host, port=self.port)

    async def close(self) -> None:
        """Take no more requests, finish those that are being answered."""
        for listener in self._listeners:
            listener.close()
        if self._requests is not None:
            await self._requests.shutdown(CLOSE_SECONDS)
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # their sockets close in the loop's next round

    # ---- requests

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = self._paths.get(request.path)
        headers = dict(_HEADERS)
        if path is None:
            answer = _text(404, "not found; there are: " + " ".join(self._paths))
        elif request.method not in ("GET", "HEAD"):
            answer = _text(405, "only GET and HEAD")
            headers["Allow"] = "GET, HEAD"
        elif request.can_read_body:
            answer = _text(413, "a request here has no body")
        else:
            answer = await path()
        status, content_type, body = answer
        headers["Content-Type"] = content_type
        response = web.Response(status=status, body=body, headers=headers)
        response.force_close()
        return response

    async def _index(self) -> Answer:
        return _text(200, INDEX.format(name=self._server.status().name))

    async def _healthz(self) -> Answer:
        status = self._server.status()
        return _verdict("healthy", status.name, why_sick(status))

    async def _readyz(self) -> Answer:
        status = self._server.status()
        return _verdict("ready", status.name, why_not_ready(status))

    async def _all_metrics(self) -> Answer:
        async with self._scraping:
            if time.monotonic() - self._metrics_at > METRICS_AGE_SECONDS_MAX:
                self._metrics = await self._scrape()
                self._metrics_at = time.monotonic()
        return 200, METRICS_TYPE, self._metrics

    async def _scrape(self) -> bytes:
        """The loop turns between any two pieces of the work."""
        functions = FunctionSums(self._functions_max)
        for count, function in enumerate(self._server.function_statuses(), 1):
            functions.add(function)
            if not count % FUNCTIONS_PER_TURN:
                await asyncio.sleep(0)
        status = self._server.status()
        text = []
        for piece in written(families(status, functions, why_not_ready(status) is None)):
            text.append(piece)
            await asyncio.sleep(0)
        return b"".join(text)


class _Connection(RequestHandler):
    """One connection, for one request and a bounded time."""

    __slots__ = ("_deadline", "_open", "_received_bytes", "_seconds_max")

    def __init__(
        self,
        open_connections: dict[_Connection, None],
        seconds_max: float,
        requests: web.Server,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            requests,
            loop=loop,
            logger=_QUIET,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=0,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            lingering_time=0,
        )
        self._open = open_connections
        self._seconds_max = seconds_max
        self._received_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._open) >= CONNECTIONS_MAX:
            next(iter(self._open)).abort()
        self._open[self] = None
        self._deadline = asyncio.get_running_loop().call_later(self._seconds_max, self.abort)

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > REQUEST_BYTES_MAX:
            self.abort()
        else:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Who sends no more gets the answer to what it asked, which closes the connection."""
        return self._received_bytes > 0

    def connection_lost(self, problem: BaseException | None) -> None:
        self._open.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(problem)

    def abort(self) -> None:
        """End it, whatever is unsent."""
        self._open.pop(self, None)
        transport: Any = self.transport
        if transport is not None:
            transport.abort()


def _text(status: int, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.rstrip("\n").encode() + b"\n"


def _verdict(word: str, node: str, problem: str | None) -> Answer:
    body: dict[str, object] = {word: problem is None, "node": node}
    if problem is not None:
        body["reason"] = problem
    return 200 if problem is None else 503, "application/json", json.dumps(body).encode() + b"\n"


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        return listening_sockets(host, port)
    except socket.gaierror as error:
        raise StartError(
            f"{host} is no address to listen on for HTTP ({error.strerror}): correct --http-host"
        ) from None
    except OSError as error:
        raise StartError(
            f"cannot listen for HTTP on {host}:{port} ({error.strerror}): stop what uses that port, "
            "or give --http-host and --http-port others"
        ) from None
