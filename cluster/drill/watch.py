"""How the fleet stands, from outside: what a drill waits for before it breaks anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from client_ha.addresses import Server
from cluster.server.channels import PeerTls
from cluster.server.control import ControlClient, ControlError, ControlUnreachable, DrainStep, FleetStatus

LOOK_SECONDS: Final = 0.5  # between two looks while something is waited for


class NotWhole(Exception):
    """The fleet did not become whole in time; the text says what it lacks."""


def lacks(status: FleetStatus, names: Sequence[str]) -> str:
    """What the fleet has not, in words; empty when every node of `names` is up and every slot has all its
    copies."""
    states = {node.name: node.state for node in status.nodes}
    away = [f"{name} is {states.get(name, 'down')}" for name in names if states.get(name) != "up"]
    if away:
        return ", ".join(away)
    if not status.etcd_reachable or status.etcd_error:
        return f"etcd: {status.etcd_error or 'not reached'}"
    if not any(node.leads for node in status.nodes):
        return "nobody leads a slot"
    if status.unavailable:
        return f"{status.unavailable:,} slots are unavailable"
    if status.under_replicated:
        return f"{status.under_replicated:,} slots are under-replicated"
    learning = sum(node.learning for node in status.nodes)
    if learning:
        return f"{learning:,} copies are being made"
    unserved = [slot for slot in status.slots if not slot.serving]
    if unserved:
        return f"{len(unserved):,} slots are not served yet"
    return ""


class Watch:
    """Asks the nodes that were named, and the others at their advertised addresses when those are silent."""

    def __init__(
        self,
        peers: Sequence[Server],
        *,
        secrets: tuple[bytes, ...] = (),
        tls: PeerTls | None = None,
        tls_host: str = "",
        timeout_seconds: float = 3.0,
    ) -> None:
        self._peers = list(peers)
        self._secrets = secrets
        self._tls = tls
        self._tls_host = tls_host
        self._timeout_seconds = timeout_seconds
        self.last: FleetStatus | None = None

    def _client(self, server: Server, timeout_seconds: float | None = None) -> ControlClient:
        return ControlClient(
            server.host,
            server.port,
            secrets=self._secrets,
            tls=self._tls,
            tls_host=self._tls_host,
            timeout_seconds=timeout_seconds or self._timeout_seconds,
        )

    async def look(self, *, slots: bool = False) -> FleetStatus:
        """The fleet as the first node sees it that answers. Raises ControlUnreachable."""
        faults = []
        for server in list(self._peers):
            try:
                async with self._client(server) as client:
                    status = await client.describe(slots=slots)
            except ControlError as error:
                faults.append(str(error))
                # The next question begins with another one.
                self._peers.remove(server)
                self._peers.append(server)
                continue
            self.last = status
            for node in status.nodes:
                peer = Server(node.host, node.peer_port)
                if node.host and node.peer_port and peer not in self._peers:
                    self._peers.append(peer)
            return status
        raise ControlUnreachable("no node answered. " + ". ".join(faults))

    async def problem(self, names: Sequence[str]) -> str:
        """What keeps the fleet from being whole; empty: nothing. Each node is asked about its own slots."""
        try:
            status = await self.look(slots=True)
        except ControlError as error:
            return str(error)
        if found := lacks(status, names):
            return found
        for node in status.nodes:
            if node.name == status.answered_by or not node.leads:
                continue
            try:
                async with self._client(Server(node.host, node.peer_port)) as client:
                    own = await client.describe(slots=True)
            except ControlError:
                continue  # its address may be one for the fleet's own network; the others see it up
            unserved = sum(slot.primary == node.name and not slot.serving for slot in own.slots)
            if unserved:
                return f"{node.name} does not serve {unserved:,} of its slots yet"
        return ""

    async def wait_whole(
        self, names: Sequence[str], timeout_seconds: float, told: Callable[[str], object] = lambda _: None
    ) -> None:
        """Wait until the fleet is whole; `told` hears what it still lacks. Raises NotWhole."""
        deadline = time.monotonic() + timeout_seconds
        while found := await self.problem(names):
            told(found)
            if time.monotonic() >= deadline:
                raise NotWhole(f"the fleet is not whole after {timeout_seconds:g} s: {found}")
            await asyncio.sleep(LOOK_SECONDS)

    async def incarnation(self, name: str) -> int | None:
        """The start of a node that is in the fleet now, 0 when it is not; None: nobody answers."""
        try:
            status = await self.look()
        except ControlError:
            return None
        return next((node.incarnation for node in status.nodes if node.name == name), 0)

    async def drain(self, name: str) -> AsyncIterator[DrainStep]:
        """`gearfleet drain NAME --restart`, through the first node that answers. Raises ControlError."""
        await self.look()
        async with self._client(self._peers[0], 10.0) as client:
            async for step in client.drain(name, restart=True):
                yield step

    async def join(self, name: str) -> None:
        """Call a drain off. Raises ControlError."""
        await self.look()
        async with self._client(self._peers[0]) as client:
            await client.join(name)


__all__ = ["NotWhole", "Watch", "lacks"]
