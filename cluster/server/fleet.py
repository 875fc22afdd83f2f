"""FleetLife: a node's life in its fleet, between etcd, the other nodes and the pure Fleet.

    join()    what has to be true before the node serves anyone; waits for etcd, and says that it does
    _drive()  whenever something may have changed: read etcd, tell the Fleet, make the swap that it proposes
    drain()   give everything away, then let the server stop

All decisions are the Fleet's and the placement's. Here is only who is asked, in what order, and what people
are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Final

import structlog

from cluster import __version__
from cluster.node.fleet import Fleet, FleetSettings
from cluster.node.slot_news import WARNINGS
from cluster.placement import (
    Forget,
    Member,
    NotEmpty,
    Promote,
    View,
    apply_changes,
    decode_map,
    descends,
    encode_config,
    encode_map,
    holders,
)
from cluster.placement.errors import BadValue, IllegalChange
from cluster.placement.view import PROTOCOL_VERSION
from cluster.replication import SLOT_COUNT
from cluster.replication.frames import Frame, Hello
from cluster.replication.replicator import ProtocolBroken
from cluster.server import control
from cluster.server.channels import connect, host_and_port, os_reason
from cluster.server.control import ControlClient, ControlRefused, ControlService, DrainStep
from cluster.server.directory import DataDirectory
from cluster.server.errors import Regressed, StartError, StoreError, Unreachable
from cluster.server.peer_hosts import peer_hosts
from cluster.server.peers import PeerAddress, PeerPort, load_peer_tls
from cluster.server.proof import SECRET_BYTES, Secrets
from cluster.server.status import FleetStatus
from cluster.server.store import Store, store_options

if TYPE_CHECKING:
    from cluster.server.server import Server

RETRY_SECONDS: Final = 0.5
IDLE_SECONDS: Final = 2.0  # how often what only time changes is looked at
BUSY_SECONDS: Final = 0.1  # the same while learners catch up or slots are being handed over
FRAME_PACE_SECONDS: Final = 0.00125  # between two frames to a node, under load
DRAINED_SECONDS: Final = 0.3  # for a drain's last word to leave, before the node stops
NEWS_SECONDS: Final = 0.25  # how often the log is told what became of slots
LOOK_SECONDS: Final = 0.1  # how often a drain looks how far it is
FINISH_SECONDS: Final = 10.0  # how long a drained node waits for jobs that its workers still run
STOP_SECONDS: Final = 8.0  # how long a stopping node tries to hand its slots over
TWIN_MARGIN_SECONDS: Final = 1.0  # beyond a lease: who is registered then runs
ADVERTISE_TRIES: Final = 8
SWAPS_IN_A_ROW_MAX: Final = 16


class FleetLife:
    """See the module's docstring."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._settings = settings = server.settings
        self._log = structlog.get_logger("gearfleet")
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._stale = True  # etcd is to be read
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._hand_over_waited = False  # paused slots were not ready when last looked at
        self._woken_at = 0.0
        self._leaving = False
        self._drain: asyncio.Task[None] | None = None
        self._closed = False
        self.waits_for = "etcd"
        self._nodes_told = 0  # so many, when last said that others are awaited
        self.stop_reason: str | None = None
        self._tls = load_peer_tls(settings.peer_certificate, settings.peer_key, settings.peer_ca)
        options = store_options(settings)
        self.store = Store(
            options, on_hint=self._hint, on_lease=self._lease, on_failure=self._failed_for_good
        )
        self.port: PeerPort
        self.fleet: Fleet
        self.directory: DataDirectory
        self.member: Member

    def pure(self, identity: str) -> Fleet:
        """The Fleet, for the journal to be restored into."""
        settings = self._settings
        me = Member(settings.name, identity, 0, settings.advertise, 0, 0)
        self.fleet = self._server.node.join(
            me,
            FleetSettings(
                fleet=settings.fleet,
                replicas=settings.replicas,
                min_in_sync=settings.min_in_sync,
                bootstrap_nodes=settings.bootstrap_nodes,
                lease_seconds=settings.lease_seconds,
                stall_seconds=settings.lease_seconds + 3.0,
                park_seconds=settings.lease_seconds + 5.0,
                replace_after_seconds=settings.replace_after_seconds,
            ),
        )
        return self.fleet

    # ---- joining

    async def look(self, directory: DataDirectory) -> View:
        """The first look at etcd: is it the one that this directory knows, is the directory the original?

        Waits for etcd. Raises StartError.
        """
        self.directory = directory
        told = ""
        twin_since = 0.0
        while True:
            try:
                view = await self.store.read()
                self._check_descent(view)
                if view.config is not None:
                    directory.bind(self._settings.fleet, view.config.slots)
                    if view.config.slots != SLOT_COUNT:
                        raise StartError(
                            f"the fleet {self._settings.fleet} has {view.config.slots} slots, this release "
                            f"has {SLOT_COUNT}: use the release that made it"
                        )
                # Before its nonce is swapped: that of the original has to stay valid.
                twin = self._twin(view)
                if twin is not None:
                    twin_since = twin_since or time.monotonic()
                    if time.monotonic() - twin_since > self._settings.lease_seconds + TWIN_MARGIN_SECONDS:
                        self._log.error(
                            "this data directory is a copy of a running node's; it begins with nothing",
                            directory=str(directory.path),
                            node=twin,
                        )
                        directory.renew_identity("copied")
                        continue
                    # Renamed, it may have run under that name a moment ago.
                    self.waits_for = f"the key of node {twin}, which has this data directory, to run out"
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                nonces = directory.next_nonces()
                if (
                    await self.store.start_directory(
                        directory.identity.hex, nonces, missing_ok=self._restored(view)
                    )
                    == "copied"
                ):
                    self._log.error(
                        "this data directory is a copy of one that was started since; it begins with nothing",
                        directory=str(directory.path),
                    )
                    directory.renew_identity("copied")
                    continue
                directory.keep_nonce(nonces.new)
                return view
            except Unreachable as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("waiting for etcd", reason=told)
                self.waits_for = f"etcd: {error}"
                await asyncio.sleep(RETRY_SECONDS)
            except StoreError as error:
                raise StartError(str(error)) from None

    def _twin(self, view: View) -> str | None:
        """A node of another name that shows this very data directory: two would acknowledge as one."""
        identity = self.directory.identity.hex
        return next(
            (
                name
                for name, member in sorted(view.members.items())
                if member.identity == identity and name != self._settings.name
            ),
            None,
        )

    def _restored(self, view: View) -> bool:
        saved = self.directory.load_map()
        if saved is None or view.map is None:
            return False
        with contextlib.suppress(BadValue):
            return view.map.generation > decode_map(saved.data, saved.revision).generation
        return False

    def _check_descent(self, view: View) -> None:
        """Rule 15: a map that does not descend from the one that was acted on stops the node."""
        saved = self.directory.load_map()
        if saved is None:
            return
        mend = (
            "it was wiped, or restored from a backup. Stop all nodes of the fleet and use "
            "`gearfleet fleet restore`"
        )
        if view.map is None:
            raise StartError(
                f"etcd has no map of the fleet {self._settings.fleet}, this node has acted on one: {mend}"
            )
        try:
            known = decode_map(saved.data, saved.revision)
        except BadValue as error:
            raise StartError(f"the saved map in {self.directory.path} cannot be read: {error}") from None
        if not descends(view.map, known):
            raise StartError(
                f"the map in etcd (revision {view.map.revision}) is older than the one that this node acted "
                f"on (revision {saved.revision}), or has another history: {mend}"
            )

    async def listen(self, incarnation: int, gearman_port: int, *, empty: bool) -> None:
        """Open the port for other nodes, put this node's key into etcd, begin. Raises StartError."""
        settings = self._settings
        name, identity = settings.name, self.directory.identity.hex
        hello = Hello(settings.fleet, name, identity, incarnation, PROTOCOL_VERSION, SLOT_COUNT, __version__)
        # A new fleet has none, nor one of an older release.
        await self._insist(lambda: self.store.have_secret(token_bytes(SECRET_BYTES)))
        control_service = ControlService(
            self,
            hello,
            secrets=self._secrets,
            trust_loopback=settings.control_from == "loopback",
            trust_all=self._tls is not None,
        )
        hosts, why = await peer_hosts(settings)
        if why:
            self._log.info("the peer port listens on all addresses", reason=why)
        self.port = PeerPort(
            hello,
            hosts,
            settings.peer_port,
            self,
            secrets=self._secrets,
            must_prove=settings.peer_proof == "required",
            tls=self._tls,
            handlers=(control_service.handler,),
            places=settings.peer_places,
        )
        await self.port.start()
        self.member = Member(
            name=name,
            identity=identity,
            incarnation=incarnation,
            host=settings.advertise,
            port=gearman_port,
            peer_port=self.port.port,
            http_port=max(0, settings.http_port),  # -1: none
            zone=settings.zone,
            version=__version__,
            empty=empty,
        )
        self._say_how_safe()
        self.fleet.begin(self.member)
        self._server.fleet_status = self.status
        await self._insist(lambda: self.store.register(self.member))
        self.store.start()
        self.waits_for = "the fleet to be made" if self.fleet.view.map is None else ""
        self._spawn(self._drive())
        self._spawn(self._tell_of_slots())
        self._spawn(self._check_advertise())
        self._log.info(
            "joined",
            fleet=settings.fleet,
            identity=identity,
            incarnation=incarnation,
            advertise=settings.advertise,
            peer_port=self.port.port,
        )

    def _secrets(self) -> Secrets:
        return self.store.secrets

    async def _insist(self, call: Callable[[], Awaitable[object]]) -> None:
        """Ask etcd until it answers. Raises StartError."""
        told = ""
        while True:
            try:
                await call()
                return
            except Unreachable as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("waiting for etcd", reason=told)
                await asyncio.sleep(RETRY_SECONDS)
            except StoreError as error:
                raise StartError(str(error)) from None

    def _say_how_safe(self) -> None:
        if self._settings.peer_proof == "optional":
            self._log.warning(
                "nodes without a proof are let in",
                reason="--peer-proof=optional is for an upgrade from a release without proofs: take it away "
                "when all nodes have this one",
            )
        if self._tls is None:
            self._log.info(
                "no TLS between nodes",
                reason="nodes prove who they are by the fleet's secret, but jobs travel readable: in a "
                "network that others share set peer_certificate, peer_key and peer_ca",
            )

    async def _check_advertise(self) -> None:
        """Say so when nobody is found where this node says that it is; names may take a while."""
        host, port = self._settings.advertise, self.port.port
        reason = ""
        for _ in range(ADVERTISE_TRIES):
            try:
                async with asyncio.timeout(self._settings.rpc_timeout_seconds):
                    await connect(host, port)
            except TimeoutError:
                reason = "no answer"
            except OSError as error:
                reason = os_reason(error)
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)
        self._log.error(
            "this node cannot be reached where it says that it is",
            reason=f"{host_and_port(host, port)}: {reason}. Other nodes and clients are sent there: correct "
            "--advertise, or what keeps --host and --peer-host from listening there",
        )

    # ---- etcd

    def _hint(self) -> None:
        self._stale = True
        self._wanted.set()

    def _lease(self, sent_at: float) -> None:
        self.fleet.lease(sent_at)
        if self.fleet.check_at == 0.0:
            self._server.turn()

    def _failed_for_good(self, error: StoreError) -> None:
        self.stop_reason = str(error)
        self._log.error("this node has lost its name", reason=str(error))
        self._server.fail()

    async def _tell_of_slots(self) -> None:
        """For ever: what becomes of slots, in few lines (cluster/node/slot_news.py)."""
        while True:
            await asyncio.sleep(NEWS_SECONDS)
            self._log_slots()

    def _log_slots(self) -> None:
        for event in self.fleet.slot_events(time.monotonic()):
            log = self._log.warning if event.what in WARNINGS else self._log.info
            log(event.what, **event.fields)

    async def _drive(self) -> None:
        """For ever: what etcd says to the Fleet, what the Fleet proposes to etcd."""
        while True:
            timeout = BUSY_SECONDS if self._busy() else IDLE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._look_and_propose()
            except StoreError as error:
                if isinstance(error, Regressed):
                    self._stop_for(str(error))
                await asyncio.sleep(RETRY_SECONDS / 2)
            except (StartError, NotEmpty) as error:
                self._stop_for(str(error))
                return
            except BadValue as error:
                self._log.error("etcd holds what no node writes", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                self._log.exception("failed on the fleet's state; looking again")
                await asyncio.sleep(RETRY_SECONDS)

    def _busy(self) -> bool:
        fleet = self.fleet
        return (
            self._leaving
            or fleet.hand_over_waits
            or any(lead.learners for lead in fleet.replicator.leads.values())
        )

    async def _look_and_propose(self) -> None:
        for _ in range(SWAPS_IN_A_ROW_MAX):
            if self._stale:
                self._stale = False
                try:
                    await self._see(await self.store.read())
                except StoreError:
                    self._stale = True
                    raise
            self._server.turn()
            swap = self.fleet.propose()
            if swap is None:
                # What is ready and was not proposed waits for something else: the next look is soon enough.
                self._hand_over_waited = self.fleet.hand_over_waits and not self.fleet.hand_over_ready
                return
            try:
                await self.store.swap(swap)
            finally:
                self.fleet.swapped()
                self._stale = True
        self._wanted.set()

    async def _see(self, view: View) -> None:
        self._check_generation(view)
        if not self.store.secrets_there:  # somebody has deleted the key; nothing else waits for it
            with contextlib.suppress(StoreError):
                await self.store.have_secret(token_bytes(SECRET_BYTES))
        old = self.fleet.view
        if view.map is not None and (old.map is None or old.map.revision != view.map.revision):
            await self._save_map(view)
        self._server.turn()
        if not self.fleet.see(view):
            return
        if view.map is not None and old.map is None:
            self.waits_for = ""
            if view.config is not None:
                self.directory.bind(self._settings.fleet, view.config.slots)
        self.port.set_peers(
            {
                name: PeerAddress(member.host, member.peer_port, member.identity, member.incarnation)
                for name, member in view.members.items()
                if name != self._settings.name
            }
        )
        self._say_who_is_awaited(view)

    def _say_who_is_awaited(self, view: View) -> None:
        """A new fleet that waits for its nodes looks like one that works, but for this line."""
        here, wanted = len(view.members), self._settings.bootstrap_nodes
        if view.map is None and here < wanted and here != self._nodes_told:
            self._nodes_told = here
            self._log.info(
                "waiting for nodes",
                reason=f"{here} of {wanted} are there. A new fleet is made of {wanted} (--bootstrap-nodes), "
                "and takes no jobs before",
            )

    def _check_generation(self, view: View) -> None:
        known = self.fleet.view.map
        if known is None:
            return
        # An older map is no harm: the Fleet does not go back.
        if view.map is None or (view.map.revision >= known.revision and not descends(view.map, known)):
            raise StartError(
                "etcd's map does not descend from the one that this node acts on: etcd was wiped, or "
                "restored from a backup. Stop all nodes of the fleet and use `gearfleet fleet restore`"
            )

    async def _save_map(self, view: View) -> None:
        """Rule 15: a map is on disk before it is acted on."""
        assert view.map is not None
        config = encode_config(view.config) if view.config is not None else b""
        try:
            await asyncio.to_thread(self.directory.save_map, encode_map(view.map), view.map.revision, config)
        except OSError as error:
            raise StartError(
                f"the map cannot be saved in {self.directory.path} ({error.strerror}): make room on the "
                "disk, or mend it, then start the node again"
            ) from None

    def _stop_for(self, reason: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = reason
            self._log.error("this node stops", reason=reason)
            self._server.fail()

    # ---- peers (PeerOwner)

    def peer_up(self, name: str, hello: Hello) -> None:
        self._server.turn()
        self.fleet.peer_up(hello, time.monotonic())
        self._log.info("stream stands", node=name, version=hello.version)

    def peer_down(self, name: str, reason: str) -> None:
        self._server.turn()
        self.fleet.peer_down(name)
        if not self._closed:
            self._log.warning("stream broke", node=name, reason=reason)
        self._hint()

    def peer_frame(self, name: str, frame: Frame) -> None:
        began = self._server.begin()
        self._server.received_bytes += len(frame.entries)
        try:
            self.fleet.receive(name, frame, time.monotonic())
        except ProtocolBroken as error:
            self._log.error(
                "a node said what cannot be; beginning anew with it", node=name, reason=str(error)
            )
            self.port.drop(name, str(error))
        finally:
            if began:
                self._server.end()

    def peer_refused(self, name: str) -> None:
        """Proof of death. Only a node that reaches another one may act on it."""
        member = self.fleet.view.members.get(name)
        others = [peer for peer in self.fleet.replicator.peers if peer != name]
        if member is None or not others:
            return
        self._spawn(self._bury(name, member.incarnation, member.revision))

    async def _bury(self, name: str, incarnation: int, revision: int) -> None:
        with contextlib.suppress(StoreError):
            await self.store.remove_member(name, incarnation, revision)
        self._hint()

    def peer_silent(self, name: str) -> None:
        self._log.warning("silent", node=name)

    def peer_heard(self, name: str) -> None:
        self._log.info("heard again", node=name)

    def take_frame(self, name: str) -> Frame | None:
        frame = self.fleet.take_frame(name, time.monotonic())
        if self._server.node.log.group.needed:
            self._server.turn()
        return frame

    def after_turn(self, *, loaded: bool, cut: bool) -> None:
        """Tell the streams for which there is something to say; under load not each time, but when a group
        was cut: one frame with much in it costs hardly more than one with little."""
        for name in self.fleet.slow_peers():
            self.port.drop(name, "it does not take what is sent")
        waiting = self.fleet.frames_waiting()
        if waiting:
            now = self._loop.time()
            due = self._woken_at + FRAME_PACE_SECONDS
            if not loaded or cut or due <= now:
                self._wake(waiting, now)
            elif self._wake_timer is None:
                self._wake_timer = self._loop.call_at(due, self._wake_all)
        # Proposing takes milliseconds that a commit may be waiting for: once when it can go, not before.
        if self._hand_over_waited and self.fleet.hand_over_ready:
            self._hand_over_waited = False
            self._wanted.set()

    def _wake(self, names: Sequence[str], now: float) -> None:
        self._woken_at = now
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        for name in names:
            self.port.wake(name)

    def _wake_all(self) -> None:
        self._wake_timer = None
        self._wake(self.fleet.frames_waiting(), self._loop.time())

    # ---- leaving

    async def give_away(self, *, restart: bool) -> AsyncIterator[DrainStep]:
        """Hand over every slot, then wait until no slot needs this node's copy."""
        self._leaving = True
        self.member = replace(self.member, draining=True, restarting=restart)
        with contextlib.suppress(StoreError):
            await self.store.update(self.member)
        self._hint()
        while True:
            leads, last_copy = self.remaining(restart=restart)
            yield DrainStep(leads, last_copy, False, "")
            if not leads and not last_copy:
                return
            await asyncio.sleep(0.1)

    def remaining(self, *, restart: bool) -> tuple[int, int]:
        """Slots led here, slots that need this copy."""
        view = self.fleet.view
        if view.map is None or view.config is None:
            return 0, 0
        identity = self.member.identity
        leads = last = 0
        present = holders(view.members)
        others = [
            name for name, member in view.members.items() if name != self.member.name and not member.draining
        ]
        wanted = min(view.config.replicas, max(len(others), view.config.min_in_sync))
        if restart:
            wanted = view.config.min_in_sync
        for row in view.map.slots:
            if row.primary == self.member.name and row.incarnation == self.member.incarnation:
                leads += 1
            elif identity in row.in_sync:
                alive = sum(each in present for each in row.in_sync if each != identity)
                last += alive < wanted
        return leads, last

    async def stop(self) -> None:
        """Before the server stops: give the slots away if anybody is there to take them."""
        if not hasattr(self, "fleet") or self.fleet.view.map is None:
            return
        others = [name for name in self.fleet.replicator.peers if name in self.fleet.view.members]
        slots = len(self.fleet.replicator.leads)
        if not others or not slots:
            self._log.info("stopping", slots=slots, hands_over_to=0)
            return
        self._log.info("stopping", slots=slots, hands_over_to=len(others))
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                # Also when a drain is under way: once more costs nothing.
                async for step in self.give_away(restart=True):
                    if not step.leads:
                        break
        left = len(self.fleet.replicator.leads)
        seconds = round(time.monotonic() - began, 2)
        if left:
            self._log.warning(
                "stops with slots that it could not hand over; others take them over",
                slots=left,
                seconds=seconds,
            )
        else:
            self._log.info("leads nothing any more", handed_over=slots, seconds=seconds)

    async def close(self) -> None:
        """Leave the fleet: the key goes, streams end."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close(leave=True)
        if hasattr(self, "port"):
            await self.port.close()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- control (ControlOwner)

    async def describe(self, *, slots: bool) -> control.FleetStatus:
        view = self.fleet.view
        fleet_map = view.map
        config = view.config
        present = holders(view.members)
        names = fleet_map.names if fleet_map is not None else {}
        leads: dict[str, int] = {}
        in_sync: dict[str, int] = {}
        learning: dict[str, int] = {}
        under = unavailable = 0
        rows = fleet_map.slots if fleet_map is not None else ()
        for row in rows:
            leads[row.primary] = leads.get(row.primary, 0) + 1
            for identity in row.in_sync:
                in_sync[identity] = in_sync.get(identity, 0) + 1
            for identity in row.learners:
                learning[identity] = learning.get(identity, 0) + 1
            if config is not None:
                alive = sum(identity in present for identity in row.in_sync)
                under += alive < config.replicas
                unavailable += alive < config.min_in_sync
        nodes = []
        known = {name: identity for identity, name in names.items()}
        for name in sorted({*view.members, *known, *leads}):
            member = view.members.get(name)
            identity = member.identity if member is not None else known.get(name, "")
            nodes.append(
                control.NodeStatus(
                    name=name,
                    identity=identity,
                    incarnation=member.incarnation if member else 0,
                    host=member.host if member else "",
                    port=member.port if member else 0,
                    peer_port=member.peer_port if member else 0,
                    http_port=member.http_port if member else 0,
                    zone=member.zone if member else "",
                    version=member.version if member else "",
                    state="down" if member is None else "draining" if member.draining else "up",
                    leads=leads.get(name, 0),
                    in_sync=in_sync.get(identity, 0),
                    learning=learning.get(identity, 0),
                )
            )
        described: tuple[control.SlotStatus, ...] = ()
        if slots:
            log = self._server.node.log
            described = tuple(
                control.SlotStatus(
                    slot=index,
                    epoch=row.epoch,
                    primary=row.primary,
                    in_sync=tuple(sorted(names.get(identity, identity) for identity in row.in_sync)),
                    learners=tuple(sorted(names.get(identity, identity) for identity in row.learners)),
                    lossy=row.lossy,
                    serving=log.slots[index].serving
                    if row.primary == self.member.name
                    else row.primary in view.members,
                    missing=tuple(
                        sorted(names.get(each, each) for each in row.in_sync if each not in present)
                    ),
                )
                for index, row in enumerate(rows)
            )
        return control.FleetStatus(
            fleet=self._settings.fleet,
            answered_by=self.member.name,
            revision=view.revision,
            replicas=config.replicas if config else self._settings.replicas,
            min_in_sync=config.min_in_sync if config else self._settings.min_in_sync,
            nodes=tuple(nodes),
            slots=described,
            under_replicated=under,
            unavailable=unavailable,
            etcd_reachable=self.store.reachable,
            etcd_error=self.store.error or "",
        )

    async def drain(self, node: str, *, restart: bool) -> AsyncIterator[DrainStep]:
        if node != self.member.name:
            async with self._client(node) as client:
                async for step in client.drain(node, restart=restart):
                    yield step
            return
        others = [
            name for name, member in self.fleet.view.members.items() if name != node and not member.draining
        ]
        if not others:
            raise ControlRefused(f"{node} is the only node that is up: start another one first")
        self._log.info("draining", restart=restart)
        if self._drain is None:
            self._drain = self._spawn(self._give_away_and_stop(restart=restart))
        drain = self._drain
        while not drain.done():
            leads, last_copy = self.remaining(restart=restart)
            yield DrainStep(leads, last_copy)
            await asyncio.wait({drain}, timeout=0.1)
        if drain.cancelled():
            raise ControlRefused(f"the drain of {node} was called off: it takes part again")
        yield DrainStep(0, 0, True, f"{node} leads nothing, and no slot needs its copy: it stops")

    async def _give_away_and_stop(self, *, restart: bool) -> None:
        """A drain, whoever watches it or has hung up."""
        async for _ in self.give_away(restart=restart):
            pass
        # Workers that know of fleets go elsewhere with their jobs; others may finish what they have.
        for _ in range(int(FINISH_SECONDS / LOOK_SECONDS)):
            if not self.fleet.running_here():
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._loop.call_later(DRAINED_SECONDS, self._server.stop)

    def drain_self(self) -> None:
        """SIGUSR1: the same, for whoever has no `gearfleet drain` at hand."""
        if not hasattr(self, "member"):  # not in the fleet yet: there is nothing to give away
            self._server.stop()
            return

        async def drain() -> None:
            try:
                async for _ in self.drain(self.member.name, restart=True):
                    pass
            except ControlRefused as error:
                self._log.error("cannot drain", reason=str(error))

        self._spawn(drain())

    async def join(self, node: str) -> str:
        if node != self.member.name:
            async with self._client(node) as client:
                return await client.join(node)
        if not self.member.draining:
            return f"{node} takes part already"
        self._leaving = False
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        self.member = replace(self.member, draining=False, restarting=False)
        try:
            await self.store.update(self.member)
        except StoreError as error:
            raise ControlRefused(f"etcd does not take it now ({error}); it is done when it does") from None
        self._hint()
        return f"{node} takes part again"

    async def forget(self, node: str) -> str:
        view = self.fleet.view
        if node in view.members:
            raise ControlRefused(f"{node} is up: drain it, it leaves by itself")
        identities = [
            identity for identity, name in (view.map.names if view.map else {}).items() if name == node
        ]
        if not identities:
            raise ControlRefused(f"no node called {node} has copies in this fleet: see `gearfleet nodes`")
        await self._change([Forget(identity) for identity in identities])
        return f"{node} is forgotten: its copies are made anew on other nodes"

    async def promote(self, node: str, slots: Sequence[int], *, lossy: bool) -> str:
        if not lossy:
            raise ControlRefused("acknowledged jobs may be lost by this: say --lossy")
        if node and node != self.member.name:
            async with self._client(node) as client:
                return await client.promote(node, slots, lossy=True)
        view = self.fleet.view
        if view.map is None or view.config is None:
            raise ControlRefused("there is no fleet yet")
        beyond = [slot for slot in slots if not 0 <= slot < len(view.map.slots)]
        if beyond:
            raise ControlRefused(f"there is no slot {beyond[0]}: they are 0 to {len(view.map.slots) - 1}")
        present = holders(view.members)
        wanted = slots or [
            index
            for index, row in enumerate(view.map.slots)
            if sum(identity in present for identity in row.in_sync) < view.config.min_in_sync
        ]
        if not wanted:
            raise ControlRefused("no slot is unavailable")
        await self._change([Promote(slot, view.map.slots[slot].epoch) for slot in wanted])
        return f"{self.member.name} leads {len(wanted)} slots now, from what it has; they are marked lossy"

    async def _change(self, changes: Sequence[Any]) -> None:
        for _ in range(8):
            self._hint()
            try:
                view = await self.store.read()
                own = view.members.get(self.member.name)
                if own is None:
                    raise ControlRefused("this node's own key is gone from etcd; try again")
                done = await self.store.swap(apply_changes(view, own, changes))
            except IllegalChange as error:
                raise ControlRefused(str(error)) from None
            except StoreError as error:
                raise ControlRefused(f"etcd does not answer: {error}") from None
            self._hint()
            if done:
                return
        raise ControlRefused("others change the map all the time; try again")

    def _client(self, node: str) -> ControlClient:
        member = self.fleet.view.members.get(node)
        if member is None:
            raise ControlRefused(f"{node} is not up: see `gearfleet nodes`")
        host, port = self._settings.peer_places.get(node) or (member.host, member.peer_port)
        return ControlClient(host, port, secrets=self.store.secrets, tls=self._tls, tls_host=member.host)

    # ---- for probes and metrics

    def status(self) -> FleetStatus:
        fleet = self.fleet
        view = fleet.view
        in_sync = under = unavailable = learning = 0
        now = time.monotonic()
        if view.map is not None and view.config is not None:
            present = holders(view.members)
            for index, row in enumerate(view.map.slots):
                in_sync += self.member.identity in row.in_sync
                learning += self.member.identity in row.learners
                if index in fleet.replicator.leads:
                    alive = sum(identity in present for identity in row.in_sync)
                    under += alive < view.config.replicas
                    unavailable += alive < view.config.min_in_sync
        last = self.store.last_lease_at
        return FleetStatus(
            fleet=self._settings.fleet,
            joined=view.map is not None and not self.waits_for,
            waits_for=self.waits_for,
            draining=self.member.draining,
            map_revision=view.map.revision if view.map else 0,
            slots_led=len(fleet.replicator.leads),
            slots_in_sync=in_sync,
            slots_under_replicated=under,
            slots_unavailable=unavailable,
            takeovers=fleet.takeovers,
            lease_age_seconds=time.monotonic() - last if last else None,
            etcd_reachable=self.store.reachable,
            peers=max(0, len(view.members) - 1),
            peers_up=len(fleet.replicator.peers),
            slots_learning=learning,
            peer_lag_seconds={
                view.map.names.get(identity, identity): now - self._server.cut_at(group) if group else 0.0
                for identity, group in fleet.replicator.lagging().items()
            }
            if view.map is not None
            else {},
        )
