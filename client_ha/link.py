"""A server that one wants to be connected to: connects, and connects again, with backoff, for ever."""

import asyncio
import random
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import tenacity

from client_ha.addresses import Server
from client_ha.connection import Connection
from client_ha.dialling import addresses_of, fault_text, first_connected
from client_ha.timing import Timing, backoff_seconds

Step = TypeVar("Step")


class LinkOwner(Protocol):
    """What a link tells whoever uses it."""

    def received(self, connection: Connection, packets: list[tuple[int, bytes]]) -> None: ...

    def outstanding(self, connection: Connection) -> bool: ...

    def new_state(self) -> object:
        """What a new connection shall carry as its `state`."""

    def link_up(self, link: "Link", connection: Connection) -> None: ...

    def link_down(self, link: "Link", connection: Connection, reason: str) -> None: ...

    def link_failed(self, link: "Link") -> None:
        """An attempt to connect failed; `link.error` says why."""


class Link:
    """Has a connection, or is getting one. `error` says what happened last when there is none.

    A stopped process still accepts connections: its operating system does. So after silence a new connection
    counts as one only when the server has answered on it.
    """

    def __init__(
        self,
        server: Server,
        owner: LinkOwner,
        timing: Timing,
        *,
        tls: ssl.SSLContext | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.server = server
        self.connection: Connection | None = None
        self.untried = True
        self.retired = False  # not wanted any more; closed as soon as it is idle
        self.error = "not connected yet"
        self._owner = owner
        self._timing = timing
        self._tls = tls
        self._dice = dice
        self._failures = 0
        self._suspect = False  # its last connection was given up for silence
        # Of connections that have to show that somebody is there.
        self._proofs: dict[Connection, asyncio.Future[None]] = {}
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin connecting. Needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def leave(self, reason: str) -> None:
        """Close the connection, after what is written was sent, and connect no more."""
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.close(reason)

    async def close(self, reason: str) -> None:
        """As `leave`, and wait for it; a server that does not read is not waited for long."""
        self.leave(reason)
        if self._task is not None:
            await asyncio.wait([self._task])
        connection = self.connection
        if connection is not None:
            try:
                async with asyncio.timeout(self._timing.answer_seconds):
                    await self._lost.wait()
            except TimeoutError:
                connection.abort(reason)
                await self._lost.wait()

    def abort(self, reason: str) -> None:
        """Drop the connection; the link goes on and connects again."""
        if self.connection is not None:
            self.connection.abort(reason)

    # A connection calls these.

    def received(self, connection: Connection, packets: list[tuple[int, bytes]]) -> None:
        proof = self._proofs.get(connection)
        if proof is not None:
            if not proof.done():
                proof.set_result(None)
            return  # the answer to the probe; nothing else was asked
        self._owner.received(connection, packets)

    def outstanding(self, connection: Connection) -> bool:
        return self._owner.outstanding(connection)

    def lost(self, connection: Connection, reason: str) -> None:
        self._suspect = self._suspect or connection.silent
        proof = self._proofs.get(connection)
        if proof is not None and not proof.done():
            proof.set_exception(ConnectionResetError(reason))
        if self.connection is connection:
            self.connection = None
            self.error = reason
            self._lost.set()
            self._owner.link_down(self, connection, reason)

    # Getting connected.

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            retrying = tenacity.AsyncRetrying(
                # Whatever it was, such as a name that cannot be one: a server is never silently lost.
                retry=tenacity.retry_if_exception_type(Exception),
                wait=lambda _: backoff_seconds(self._timing, self._failures, self._dice),
                sleep=asyncio.sleep,
                before_sleep=self._failed,
            )
            await retrying(self._connect)
            connected_at = loop.time()
            await self._lost.wait()
            # A server that accepts and hangs up at once must not be hammered.
            if loop.time() - connected_at > self._timing.backoff_max_seconds:
                self._failures = 0
            else:
                self._failures += 1
                await asyncio.sleep(backoff_seconds(self._timing, self._failures, self._dice))

    async def _connect(self) -> None:
        try:
            hosts = await self._in_time(addresses_of(self.server.host, self.server.port))
            connection = await first_connected(
                hosts,
                self._connect_to,
                lambda late: late.abort("another address was quicker"),
                limit_seconds=self._timing.connect_seconds,
            )
        except Exception as error:
            self.error = fault_text(error)
            self._failures += 1
            raise
        if connection.closed:  # between the handshake and this turn of the loop
            self.error = "the server closed the connection at once"
            self._failures += 1
            raise ConnectionResetError(self.error)
        self._suspect = False
        self._lost.clear()
        self.connection = connection
        self.untried = False
        self._owner.link_up(self, connection)

    async def _in_time(self, step: Coroutine[Any, Any, Step]) -> Step:
        """A step of connecting. Raises TimeoutError that says how long it was given."""
        try:
            async with asyncio.timeout(self._timing.connect_seconds):
                return await step
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's own
                raise
            raise TimeoutError(f"no connection within {self._timing.connect_seconds:.3g} s") from None

    async def _connect_to(self, host: str) -> Connection:
        """Connect to one of the server's addresses; after silence, prove that somebody is there."""
        loop = asyncio.get_running_loop()
        _, connection = await self._in_time(
            loop.create_connection(
                lambda: Connection(self.server, self, self._timing, loop, self._owner.new_state()),
                host,
                self.server.port,
                ssl=self._tls,
                server_hostname=None if self._tls is None else self.server.host,
            )
        )
        if self._suspect:
            await self._prove(connection)
        return connection

    async def _prove(self, connection: Connection) -> None:
        """Wait for the answer to a probe. Raises ConnectionResetError when none comes in time."""
        proof = self._proofs[connection] = asyncio.get_running_loop().create_future()
        connection.probe()
        try:
            await proof
        except BaseException:
            connection.abort("not wanted any more")
            raise
        finally:
            del self._proofs[connection]

    def _failed(self, _: tenacity.RetryCallState) -> None:
        self.untried = False
        self._owner.link_failed(self)
