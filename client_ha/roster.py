"""Which servers one is connected to: those configured, those found, and the nodes of the fleet's map.

Every connection begins with the option "gearfleet". A server that grants it is asked for the map, once; it
sends the map then and at every change. One that does not is a stock Gearman server, and nothing else changes.

A node is often reached at another address than the one it tells (localhost, a service name, a forwarded
port). It says its own name with the map, so one connection per node is enough:

    - a node that some connection leads to needs no other; its own address is preferred when there are two
    - a node that none leads to is connected to at the address in the map, once it is clear whom the
      configured addresses lead to
    - a configured address that leads to a node reached anyway is parked: closed when idle, opened again when
      that node is not reached any more. So what was configured always remains a way back into the fleet
    - a node that has left the map loses its connection when that is idle

`address_remap` is applied to all that is told or found, before anything else sees it; not to what is listed.
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from client_ha.addresses import AddressRemap, Server, remap_server
from client_ha.connection import Connection
from client_ha.discovery import DISCOVERY_SECONDS, Discovery
from client_ha.link import Link, LinkOwner
from client_ha.log import error_text, logger, plain_text
from client_ha.slot_map import BadMap, SlotMap, parse_map
from client_ha.timing import Timing, backoff_seconds
from cluster.wire import request
from cluster.wire.packets import (
    GET_MAP,
    INVALID_COMMAND,
    OPTION_GEARFLEET,
    OPTION_GIVE_BACK,
    OPTION_REQ,
    UNKNOWN_OPTION,
)

_GET_MAP: Final = request(GET_MAP)


class RosterPeer:
    """What is known of the server at the other end of one connection."""

    __slots__ = ("alone", "granted", "heeds_give_back", "in_fleet", "link", "node", "options")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.options: deque[bytes] = deque()  # asked for, not answered; answers keep the order
        self.granted = False  # the option "gearfleet": the extension's packets may be used
        self.heeds_give_back = False  # GIVE_BACK may be used
        self.in_fleet = False  # it has sent a fleet's map
        self.alone = False  # it has said that it is in none
        self.node: str | None = None  # its name in the map


class RosterOwner(LinkOwner, Protocol):
    """The engine of a client or a worker."""

    def link_added(self, link: Link) -> None: ...

    def link_removed(self, link: Link) -> None: ...

    def map_changed(self) -> None:
        """`Roster.map`, or who is reached where, is another."""


class Roster:
    """Owns the links of one engine."""

    def __init__(
        self,
        servers: Sequence[Server],
        owner: RosterOwner,
        timing: Timing,
        *,
        tls: ssl.SSLContext | None = None,
        discoveries: Sequence[Discovery] = (),
        follow_map: bool = True,
        address_remap: AddressRemap | None = None,
    ) -> None:
        self.links: dict[Server, Link] = {}
        self.map: SlotMap | None = None
        self.reached: dict[str, Server] = {}  # node's name -> where it is, or will be, reached
        self._owner = owner
        self._timing = timing
        self._tls = tls
        self._listed = tuple(servers)
        self._follow_map = follow_map
        self._address_remap = address_remap
        self._discoveries = discoveries
        self._found: dict[Discovery, Sequence[Server]] = {}
        self._troubles: dict[Discovery, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._nobody = asyncio.Event()  # no server is reached: look again now
        self._configured: dict[Server, None] = {}
        self._parked: dict[Server, str] = {}  # configured, not connected: leads to this node
        self._unsettled: set[Connection] = set()  # of configured servers that have not said who they are
        self._started = self._frozen = False
        self._complained: set[Server] = set()
        self._told: object = None
        self._configure()

    def start(self) -> None:
        """Begin connecting. Needs a running event loop."""
        self._started = True
        for link in self.links.values():
            link.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._discover(discovery)) for discovery in self._discoveries]

    def freeze(self) -> None:
        """The end is near: no more links."""
        self._frozen = True
        for task in self._tasks:
            task.cancel()

    async def close(self, reason: str) -> None:
        """Close all connections, after what is written was sent."""
        self.freeze()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close(reason) for link in list(self.links.values())))

    def attempts(self) -> list[tuple[str, str]]:
        """What failed besides connecting."""
        return [(str(discovery), text) for discovery, text in self._troubles.items()]

    def anyone(self) -> bool:
        """Is any server reached?"""
        return any(link.connection is not None for link in self.links.values())

    def link_of(self, node: str) -> Link | None:
        """The link to a node."""
        server = self.reached.get(node)
        return None if server is None else self.links.get(server)

    # What connections tell.

    def greet(self, link: Link, connection: Connection, peer: RosterPeer, *options: bytes) -> None:
        """Begin a new connection: ask for the extension and for other options, and wait for none of them."""
        peer.link = link
        peer.options.extend((OPTION_GEARFLEET, *options))
        connection.write(b"".join(request(OPTION_REQ, option) for option in peer.options))
        if link.server in self._configured:
            self._unsettled.add(connection)

    def granted(self, connection: Connection, peer: RosterPeer, option: bytes) -> None:
        """OPTION_RES."""
        option = option.rstrip(b"\0")
        if option in peer.options:
            # What was asked for before and not answered never will be.
            while peer.options.popleft() != option:
                pass
        if option == OPTION_GIVE_BACK:
            peer.heeds_give_back = True
            return
        if option == OPTION_GEARFLEET:
            peer.granted = True
            if self._follow_map:
                connection.write(_GET_MAP)
                return
        if not peer.granted:
            self._settle(connection)

    def refused(self, connection: Connection, peer: RosterPeer, code: bytes) -> bool:
        """ERROR: is it the answer to an option?"""
        if not peer.options or code not in (UNKNOWN_OPTION, INVALID_COMMAND):
            return False
        option = peer.options.popleft()
        logger.debug("%s does not know the option %r", connection.server, option.decode())
        if option == OPTION_GEARFLEET:
            self._settle(connection)
        return True

    def learn(self, connection: Connection, peer: RosterPeer, body: bytes) -> None:
        """MAP_RES."""
        try:
            slot_map, name = parse_map(body)
        except BadMap as error:
            self._complain(connection.server, f"sent a map that cannot be read ({error}); it is ignored")
            self._settle(connection)
            return
        others = any(other.in_fleet for other in self._peers() if other is not peer)
        if slot_map is None:  # it stands alone
            peer.alone, peer.in_fleet, peer.node = True, False, None
            if self.map is not None and not others:
                self.map = None
                self._reconcile()
            self._settle(connection)
            return
        if self._address_remap is not None:
            slot_map = slot_map.at(self._remapped)
        known = self.map
        # A fleet that was made anew begins with low revisions: with nobody else to go by, it is believed.
        if known is not None and (others or peer.in_fleet):
            if slot_map.fleet != known.fleet:
                text = f"belongs to the fleet {slot_map.fleet!r}, others to {known.fleet!r}; use one fleet"
                self._complain(connection.server, text)
                self._settle(connection)
                return
            if slot_map.revision < known.revision:
                slot_map = known  # a node that lags
        if name is None:
            at = (node.name for node in slot_map.nodes if node.server == connection.server)
            name = next(at, peer.node)
        self._unsettled.discard(connection)
        if slot_map != known or name != peer.node or not peer.in_fleet:
            self.map = slot_map
            peer.in_fleet, peer.node = True, name
            self._reconcile()

    def lost(self, link: Link, connection: Connection) -> None:
        """A connection ended."""
        self._unsettled.discard(connection)
        if not self.anyone():
            self._nobody.set()
        if link.retired:
            self._remove(link)
        if self.map is not None:
            self._reconcile()

    def failed(self, link: Link) -> None:
        """An attempt to connect failed."""
        if not self.anyone():
            self._nobody.set()
        if self.map is not None:
            self._reconcile()

    def sweep(self, link: Link) -> None:
        """Close a retired link that is idle. The engine calls it when one may have become so."""
        connection = link.connection
        if link.retired and not (connection is not None and self._owner.outstanding(connection)):
            self._remove(link)

    def _settle(self, connection: Connection) -> None:
        """It is clear now who that is, or that it will not say."""
        if connection in self._unsettled:
            self._unsettled.discard(connection)
            if self.map is not None:
                self._reconcile()

    def _remapped(self, server: Server) -> Server:
        """Where a server is to be connected to that was not listed, but told of or found."""
        try:
            return remap_server(server, self._address_remap)
        except Exception as error:  # the user's code: a node is never lost because of it
            text = f"is used as it is, because address_remap failed on it: {error_text(error)}"
            self._complain(server, text)
            return server

    def _complain(self, server: Server, text: str) -> None:
        if server not in self._complained:
            self._complained.add(server)
            logger.warning("%s %s", server, text)

    # Which links there are.

    def _peers(self) -> list[RosterPeer]:
        return [_peer(link.connection) for link in self.links.values() if link.connection is not None]

    def _configure(self) -> None:
        self._configured = dict.fromkeys(self._listed)
        for servers in self._found.values():
            self._configured |= dict.fromkeys(servers)
        for server in [server for server in self._parked if server not in self._configured]:
            del self._parked[server]
        self._reconcile()

    def _reconcile(self) -> None:
        """Make the links those that are wanted. What is not wanted any more is closed when it is idle."""
        if self._frozen:
            return
        slot_map = self.map
        nodes = () if slot_map is None else slot_map.nodes
        own = {node.server: node.name for node in nodes if node.server is not None}
        names = {node.name for node in nodes}
        reached: dict[str, Link] = {}
        spare: list[tuple[Link, str]] = []
        for link in self.links.values():
            peer = None if link.connection is None else _peer(link.connection)
            name = None if peer is None or not peer.in_fleet else peer.node
            if name is None or name not in names:
                continue
            other = reached.get(name)
            # At its own address, or else the one that came first.
            if other is None or (own.get(link.server) == name and not link.retired):
                reached[name] = link
                link = other or link
            if reached[name] is not link:
                spare.append((link, name))
        for server in list(self._parked):
            if self._parked[server] not in reached:
                del self._parked[server]
        # In order, those configured first: a dict, for a set has none.
        wanted = dict.fromkeys(server for server in self._configured if server not in self._parked)
        wanted |= dict.fromkeys(link.server for link in reached.values())
        for link, name in spare:
            wanted.pop(link.server, None)
            if link.server in self._configured:
                self._parked[link.server] = name
        if slot_map is not None:
            # While configured addresses have not said whom they lead to, none is connected to twice.
            settled = not self._unsettled and not any(
                link.untried for server, link in self.links.items() if server in self._configured
            )
            for node in slot_map.nodes:
                if node.name in reached or node.server is None:
                    continue
                if node.server in self.links or (settled and node.state != "down"):
                    wanted[node.server] = None
        for server in wanted:
            link_there = self.links.get(server)
            if link_there is not None:
                link_there.retired = False
            else:
                self._add(server)
        for link in [link for server, link in self.links.items() if server not in wanted]:
            link.retired = True
            self.sweep(link)
        self.reached = {name: link.server for name, link in reached.items()}
        for server, name in own.items():
            if server in self.links:
                self.reached.setdefault(name, server)
        told = (slot_map, self.reached, tuple(self.links))
        if self._started and told != self._told:
            self._told = told
            self._owner.map_changed()

    def _add(self, server: Server) -> None:
        link = Link(server, self._owner, self._timing, tls=self._tls)
        # Patience with a first attempt keeps keys at their server. In a fleet any node takes the job.
        link.untried = self.map is None
        self.links[server] = link
        self._owner.link_added(link)
        if self._started:
            link.start()

    def _remove(self, link: Link) -> None:
        if self.links.get(link.server) is link:
            del self.links[link.server]
            link.leave("not needed any more")
            self._owner.link_removed(link)

    # Discovery.

    async def _discover(self, discovery: Discovery) -> None:
        failures = 0
        while True:
            try:
                servers = tuple(map(self._remapped, await discovery.look_up()))
            except Exception as error:  # whatever it was: a way in is never silently lost
                text = error.strerror if isinstance(error, OSError) else None
                self._troubles[discovery] = text or plain_text(error)
                logger.debug("%s: %s", discovery, self._troubles[discovery])
                found = False
            else:
                found = True
                self._troubles.pop(discovery, None)
                if servers != self._found.get(discovery):
                    self._found[discovery] = servers
                    self._configure()
            if found:
                self._nobody.clear()
                try:
                    async with asyncio.timeout(DISCOVERY_SECONDS):
                        await self._nobody.wait()
                except TimeoutError:
                    failures = 0
                    continue
            failures = 1 if found and self.anyone() else failures + 1
            await asyncio.sleep(backoff_seconds(self._timing, failures, random.random))


def _peer(connection: Connection) -> RosterPeer:
    state = connection.state
    assert isinstance(state, RosterPeer)
    return state
