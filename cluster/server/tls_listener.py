"""TlsListener: accepts connections that speak TLS, and knows why one did not come to be.

asyncio's own server keeps silent about a handshake that failed: nobody could say who knocked, or why a client
with a good certificate does not get in.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from cluster.server.peer import address_of

ACCEPT_RETRY_SECONDS: Final = 1.0  # when the process has no descriptors left

Refused = Callable[[str, str], None]


class TlsListener:
    """One listening socket. `refused(address, reason)` is called for each handshake that failed."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        refused: Refused,
        *,
        backlog: int,
        handshake_seconds: float | None = None,
    ) -> None:
        self._sock = sock
        self._make = make
        self._context = context
        self._refused = refused
        self._backlog = backlog
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept nobody more; handshakes under way end."""
        if self._retry is not None:
            self._retry.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        for task in self._handshakes:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(self._backlog):
            try:
                sock, peername = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptors: the socket stays readable, and the loop would spin.
                self._loop.remove_reader(self._sock)
                self._retry = self._loop.call_later(
                    ACCEPT_RETRY_SECONDS, self._loop.add_reader, self._sock, self._accept
                )
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._handshake(sock, address_of(peername)[0]))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _handshake(self, sock: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, sock, ssl=self._context, ssl_handshake_timeout=self._handshake_seconds
            )
        except ssl.SSLError as error:
            self._refused(address, str(error.reason or error).replace("_", " ").lower())
        except ConnectionError as error:
            # It hung up: a probe of the port does that each second. asyncio tells a time-out the same way.
            if "longer than" in str(error):
                self._refused(address, "the handshake took too long")
        except OSError as error:
            self._refused(address, str(error))
        except BaseException:
            sock.close()
            raise
