"""Store: what a fleet keeps in etcd, and this node's key there.

/gearfleet/FLEET/config          written once, with the first map
/gearfleet/FLEET/map             swapped: written only where it is what the writer has read
/gearfleet/FLEET/nodes/NODE      a Member, on a lease: it goes when its node has been silent for the lease
/gearfleet/FLEET/dirs/IDENTITY   the nonce of a data directory's last start
/gearfleet/FLEET/secret          one secret, or two while it is being exchanged: see proof.py

The order of a start, each when the one before has succeeded:

1. `read()`: raises Unreachable until etcd answers. The owner compares the map with the one that the data
   directory last acted on (rule 15) before anything else: after etcd was restored from a backup all below
   would be judged by what is old.
2. `start_directory()`: is the directory this one, or a copy?
3. `register()`: the node's key, and its keep-alives from now on.

`on_hint` says "read again": it is called for whatever may have changed something, and every POLL_SECONDS.
All decisions are made on `read()`, which is linearizable and never goes back (rule 13).

Etcd's clock decides when a lease ends, and the end may come late (a new leader of etcd begins all leases
anew). Nothing here is safe because of a lease: epochs are what fences (rules 2 and 8).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self

import structlog

from cluster.placement.encoding import (
    decode_config,
    decode_map,
    decode_member,
    encode_config,
    encode_map,
    encode_member,
)
from cluster.placement.errors import BadValue
from cluster.placement.view import FleetMap, Member, Swap, View
from cluster.server.directory import Nonces, is_nonce
from cluster.server.errors import (
    BadContent,
    Denied,
    NameTaken,
    Regressed,
    StoreError,
    Superseded,
    Unreachable,
)
from cluster.server.etcd import (
    Etcd,
    EtcdOptions,
    LeaseGone,
    delete,
    etcd_options,
    get,
    put,
    range_end,
    transaction,
    unchanged,
)
from cluster.server.proof import BadSecret, Secrets, decode_secrets, encode_secrets
from cluster.server.settings import Endpoint, Settings

POLL_SECONDS: Final = 5.0
# After a failure: the next try, and the watch's pause when it fails again and again.
RETRY_SECONDS: Final = 0.2
WATCH_RETRY_SECONDS_MAX: Final = 2.0
# How much longer than its lease a key may stay before its holder counts as alive.
HOLDER_MARGIN_SECONDS: Final = 1.0
NAME_RETRY_SECONDS: Final = 0.2
NONCE_TRIES: Final = 4

DirectoryState = Literal["ok", "copied"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """A fleet in an etcd, and this node's patience."""

    etcd: EtcdOptions
    fleet: str = "default"
    lease_seconds: int = 5
    keepalive_seconds: float = 1.0
    poll_seconds: float = POLL_SECONDS


def store_options(settings: Settings) -> StoreOptions:
    """What the settings say. Raises StartError for files that cannot be read."""
    return StoreOptions(
        etcd=etcd_options(settings),
        fleet=settings.fleet,
        lease_seconds=settings.lease_seconds,
        keepalive_seconds=settings.keepalive_seconds,
    )


@dataclass(frozen=True, slots=True)
class _Keys:
    """The fleet's keys."""

    prefix: bytes
    config: bytes
    map: bytes
    nodes: bytes  # prefix
    directories: bytes  # prefix
    secret: bytes

    @classmethod
    def of(cls, fleet: str) -> _Keys:
        prefix = f"/gearfleet/{fleet}/".encode()
        names = (b"config", b"map", b"nodes/", b"dirs/", b"secret")
        return cls(prefix, *(prefix + name for name in names))

    def node(self, name: str) -> bytes:
        return self.nodes + name.encode()

    def directory(self, identity: str) -> bytes:
        return self.directories + identity.encode()


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last good read has seen, to tell an etcd that has gone back."""

    config_created: int  # create_revision; 0 = there was none
    map_revision: int  # mod_revision; 0 = there was none


class Store:
    """A fleet's etcd. All coroutines run on one loop; every call of etcd is bounded by its time-out."""

    def __init__(
        self,
        options: StoreOptions,
        *,
        on_hint: Callable[[], None] = lambda: None,
        on_lease: Callable[[float], None] = lambda sent_at: None,
        on_failure: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        """`on_hint`: something may have changed. `on_lease(sent_at)`: the lease holds, counted from when the
        keep-alive was sent (time.monotonic). `on_failure`: this node has lost its name for good, and has to
        stop. They are called on the loop and must not raise."""
        self.options = options
        self.reachable = False
        self.last_good_at = 0.0  # time.monotonic() of the last answer; 0 = none yet
        self.secrets: Secrets = ()  # the fleet's, as last read
        self.secrets_there = True  # the last read has seen their key
        self.last_lease_at = 0.0  # time.monotonic() when the last good keep-alive was sent; 0 = none yet
        self._log = structlog.get_logger("gearfleet")
        self._on_hint = on_hint
        self._on_lease = on_lease
        self._on_failure = on_failure
        self._keys = _Keys.of(options.fleet)
        self._etcd = Etcd(options.etcd, on_good=self._answered, on_bad=self._failed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()
        self._swapping = asyncio.Lock()
        self._placing = asyncio.Lock()
        self._cluster_id = 0
        self._revision = 0  # the highest that was answered
        self._known: _Known | None = None
        self._last_map: tuple[int, int, FleetMap] | None = None  # mod_revision, create_revision, decoded
        self._member: Member | None = None  # what our key is to hold
        self._registered = False
        self._lease = 0
        self._own_revision = 0  # mod_revision of our key
        self._look_at_own_key = asyncio.Event()
        self._content_error: str | None = None
        self._unreachable: str | None = None
        self._denied: dict[str, str] = {}  # "reads" and "writes": a full etcd refuses only these

    # ---- life

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to watch and to poll: hints come from now on. Not needed for single calls."""
        self._run(self._watch())
        self._run(self._poll())

    async def close(self, *, leave: bool = False) -> None:
        """End all tasks and connections. `leave`: take this node's key away, too, so that nobody waits for
        its lease to expire."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if leave and self._lease:
            with contextlib.suppress(StoreError):
                await self._etcd.revoke(self._lease)
        self._registered = False
        await self._etcd.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- reading

    async def read(self) -> View:
        """Everything, as of one revision. Raises Unreachable, Denied, BadContent or Regressed.

        Two reads never overlap, so that a View that is returned later is never older. A member's key that is
        not what a node writes is left out, and told in `error`: a swap that takes that node for absent is
        refused by etcd, as its key is there.
        """
        async with self._reading:
            endpoints = len(self._etcd.endpoints)
            while True:
                endpoints -= 1
                try:
                    return await self._read()
                except Regressed as error:
                    if endpoints <= 0:
                        self._set_content_error(str(error))
                        raise
                except BadContent as error:
                    self._set_content_error(str(error))
                    raise

    async def _read(self) -> View:
        keys, cached, floor = self._keys, self._last_map, self._revision
        always = [get(keys.config), get(keys.nodes, range_end(keys.nodes)), get(keys.secret)]
        if cached is None:
            request = transaction([], [*always, get(keys.map)])
        else:  # the map is large and seldom new
            request = transaction([unchanged(keys.map, cached[0])], always, [*always, get(keys.map)])
        reply = await self._note("reads", self._etcd.read(request))
        self._observe(reply.header, floor)
        ranges = [response.response_range.kvs for response in reply.responses]
        config_value = ranges[0][0] if ranges[0] else None
        if len(ranges) == len(always):
            assert cached is not None
            map_revision: int = cached[0]
            view_map: FleetMap | None = cached[2]
        else:
            map_value = ranges[3][0] if ranges[3] else None
            map_revision = map_value.mod_revision if map_value else 0
            view_map = None
        known = _Known(config_value.create_revision if config_value else 0, map_revision)
        self._check_descent(known)
        try:
            view_config = None
            if config_value is not None:
                view_config = decode_config(
                    config_value.value, config_value.mod_revision, key=keys.config.decode()
                )
            if len(ranges) > len(always) and map_value is not None:
                view_map = decode_map(map_value.value, map_revision, key=keys.map.decode())
                self._last_map = (map_revision, map_value.create_revision, view_map)
        except BadValue as error:
            raise BadContent(str(error)) from None
        if view_map is None:
            self._last_map = None
        members, faults = self._members(ranges[1])
        self.secrets_there = bool(ranges[2])
        if ranges[2]:
            try:
                self.secrets = decode_secrets(ranges[2][0].value)
            except BadSecret as error:
                faults.append(self._bad_secret(error))
        self._set_content_error("; ".join(faults) if faults else None)
        self._known = known
        return View(reply.header.revision, view_config, view_map, MappingProxyType(members))

    def _members(self, values: Sequence[Any]) -> tuple[dict[str, Member], list[str]]:
        members: dict[str, Member] = {}
        faults: list[str] = []
        own = self._keys.node(self._member.name) if self._member is not None else b""
        seen_own = False
        for value in values:
            if value.key == own:
                seen_own = value.mod_revision == self._own_revision
            try:
                member = decode_member(
                    value.value, value.mod_revision, key=value.key.decode("utf-8", "replace")
                )
            except BadValue as error:
                faults.append(str(error))
                continue
            if not value.lease:
                faults.append(
                    f"the etcd key {value.key.decode()} was written by hand, without a lease, and would "
                    "never expire. Mend: delete the key: a node that is up puts it back by itself"
                )
                continue
            members[member.name] = member
        if self._registered and not seen_own:
            self._look_at_own_key.set()
        return members, faults

    def _observe(self, header: Any, floor: int) -> None:
        """Note the state that an answer is of. Raises Regressed when that is not later than `floor`, what was
        known when it was asked for."""
        if self._cluster_id and header.cluster_id != self._cluster_id:
            endpoint = self._leave_endpoint()
            raise Regressed(
                f"etcd at {endpoint} is another cluster than before ({header.cluster_id:x}, was "
                f"{self._cluster_id:x}): correct the setting etcd; or if etcd was made anew, stop all nodes "
                "and use `gearfleet fleet restore`"
            )
        if header.revision < floor:
            endpoint = self._leave_endpoint()
            raise Regressed(
                f"etcd at {endpoint} has gone back from revision {floor} to {header.revision}: it was wiped "
                "or restored from a backup; stop all nodes and use `gearfleet fleet restore`"
            )
        self._cluster_id = header.cluster_id
        self._revision = max(self._revision, header.revision)

    def _leave_endpoint(self) -> Endpoint:
        """Perhaps it is only this one: of another etcd, or one that lags."""
        endpoint = self._etcd.endpoint
        self._last_map = None
        self._etcd.rotate()
        return endpoint

    def _check_descent(self, found: _Known) -> None:
        """The same by the keys' own history: an etcd that was restored may have overtaken the revision."""
        known = self._known
        if known is None:
            return
        if known.config_created not in (0, found.config_created) or found.map_revision < known.map_revision:
            endpoint = self._leave_endpoint()
            raise Regressed(
                f"the fleet {self.options.fleet} in etcd at {endpoint} is not the one that was there before: "
                "its keys were deleted, or etcd was wiped or restored from a backup; stop all nodes and use "
                "`gearfleet fleet restore`"
            )

    # ---- hints

    async def _watch(self) -> None:
        pause_seconds = RETRY_SECONDS
        while True:
            started_at = time.monotonic()
            try:
                await self._etcd.watch(self._keys.prefix, self._saw)
            except StoreError as error:
                self._log.debug("etcd watch ended", reason=str(error))
            if time.monotonic() - started_at > POLL_SECONDS:
                pause_seconds = RETRY_SECONDS
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, WATCH_RETRY_SECONDS_MAX)

    def _saw(self, reply: Any) -> None:
        """A watch begins (what happened before it, nobody told us), or tells of something."""
        if reply.created:
            self._on_hint()
            return
        own = self._keys.node(self._member.name) if self._member is not None else b""
        hint = False
        for event in reply.events:
            key = event.kv.key
            hint = hint or not key.startswith(self._keys.directories)
            if key == own and event.kv.mod_revision > self._own_revision:
                self._look_at_own_key.set()
        if hint:
            self._on_hint()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.options.poll_seconds)
            self._on_hint()

    # ---- this node's key

    async def register(self, member: Member) -> int:
        """Put this node's key and keep it; returns the key's revision.

        A key of another data directory under this name is waited for as long as its lease may last; then
        it is NameTaken. An earlier start of the same directory is replaced at once, a later one is
        Superseded. Raises Unreachable, Denied and Regressed, too; it may then be called again.
        """
        give_up_at: float | None = None
        self._member = member
        while True:
            try:
                revision = await self._place()
                break
            except _Held as held:
                if give_up_at is None:
                    lease_seconds = self.options.lease_seconds
                    if held.lease:
                        with contextlib.suppress(Denied):
                            lease_seconds = await self._etcd.granted_seconds(held.lease) or lease_seconds
                    give_up_at = time.monotonic() + lease_seconds + HOLDER_MARGIN_SECONDS
                    self._log.warning("waiting for the node's name", reason=str(held.error))
                elif time.monotonic() > give_up_at:
                    if held.lease:
                        raise held.error from None
                    await self._remove(self._keys.node(member.name), held.revision)  # nobody keeps it
            await asyncio.sleep(NAME_RETRY_SECONDS)
        if not self._registered:
            self._registered = True
            self._run(self._keep())
        return revision

    async def update(self, member: Member) -> int:
        """Change what this node's key says; returns its new revision. Name, identity and incarnation stay.

        When it raises Unreachable or Denied, the change is made as soon as etcd can take it.
        """
        old = self._member
        assert old is not None, "register() comes first"
        assert (old.name, old.identity, old.incarnation) == (member.name, member.identity, member.incarnation)
        self._member = member
        self._look_at_own_key.set()
        try:
            return await self._place()
        except _Held as held:
            raise held.error from None

    async def _keep(self) -> None:
        """Keep the lease, and put the key back whenever it is gone or not what it should be: only a swap of
        the map takes a node out of anything."""
        look = False
        lease = 0
        while True:
            look = look or self._look_at_own_key.is_set()
            self._look_at_own_key.clear()
            sent_at = time.monotonic()
            next_at = sent_at + self.options.keepalive_seconds
            try:
                if look:
                    await self._place()
                    look = False
                    sent_at = time.monotonic()
                lease = self._lease
                await self._etcd.keep_alive(lease)
                self._lease_holds(sent_at)
            except _Held as held:
                self._lost(held.error)
                return
            except Superseded as error:
                self._lost(error)
                return
            except LeaseGone:
                self._log.warning("etcd lease lost", reason="it has expired; the key is put back")
                if self._lease == lease:  # update() may have got a new one meanwhile
                    self._lease = 0
                look = True
                continue
            except StoreError as error:
                if isinstance(error, Regressed):
                    self._set_content_error(str(error))
                    self._on_hint()  # the owner's read tells it, too
                look = True  # whether key and lease are still there is not known
                next_at = min(next_at, time.monotonic() + RETRY_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_at - time.monotonic(), 0.0)):
                    await self._look_at_own_key.wait()

    def _lost(self, error: StoreError) -> None:
        self._registered = False
        self._set_content_error(str(error))
        self._on_failure(error)

    def _lease_holds(self, sent_at: float) -> None:
        self.last_lease_at = sent_at
        self._on_lease(sent_at)

    async def _place(self) -> int:
        """See to it that our key is there with our value on our lease; returns its revision."""
        async with self._placing:
            while True:
                try:
                    return await self._place_once()
                except LeaseGone:
                    self._lease = 0
                except _Changed:
                    pass

    async def _place_once(self) -> int:
        member = self._member
        assert member is not None
        key, value = self._keys.node(member.name), encode_member(member)
        floor = self._revision
        found = await self._get(key)
        if found is not None:
            if found.value == value and self._lease and found.lease == self._lease:
                self._own_revision = found.mod_revision
                return self._own_revision
            self._judge(found, member)
        granted_at = 0.0
        if not self._lease:
            granted_at = time.monotonic()
            granted = await self._note("writes", self._etcd.grant(self.options.lease_seconds))
            self._observe(granted.header, floor)
            self._lease = granted.ID
        change = transaction(
            [unchanged(key, found.mod_revision if found is not None else 0)], [put(key, value, self._lease)]
        )
        reply = await self._note("writes", self._etcd.write(change))
        self._observe(reply.header, floor)
        if not reply.succeeded:
            raise _Changed
        self._own_revision = reply.header.revision
        if granted_at:
            self._lease_holds(granted_at)
        return self._own_revision

    async def _get(self, key: bytes) -> Any:
        """One key, None when it is not there."""
        floor = self._revision
        reply = await self._note("reads", self._etcd.read(transaction([], [get(key)])))
        self._observe(reply.header, floor)
        return next(iter(reply.responses[0].response_range.kvs), None)

    def _judge(self, found: Any, member: Member) -> None:
        """May the key under our name be replaced? Raises _Held or Superseded when not."""
        key = found.key.decode()
        try:
            holder = decode_member(found.value, found.mod_revision, key=key)
        except BadValue as error:
            if not found.lease or found.lease == self._lease:
                return  # by hand, and nobody's
            raise _Held(NameTaken(str(error)), found) from None
        if holder.identity == member.identity:
            if holder.incarnation > member.incarnation:
                raise Superseded(
                    f"the node {member.name} has been started again from a copy of this data directory, or "
                    f"the clock was put back: etcd has start {holder.incarnation} at {holder.host}:"
                    f"{holder.port}, this one is {member.incarnation}. Stop that node, or correct the clock, "
                    "or give this node another --data-dir"
                )
            return
        raise _Held(
            NameTaken(
                f"two nodes are named {member.name}: the one at {holder.host}:{holder.port} with the data "
                f"directory {holder.identity} is registered, this one at {member.host}:{member.port} has "
                f"{member.identity}. Without --node a node has its host's name up to the first dot, and of "
                "one longer than 32 characters the beginning with a digest. Give one of them another --node, "
                "or stop it"
            ),
            found,
        )

    # ---- the fleet's secret

    async def have_secret(self, dice: bytes) -> None:
        """See to it that the fleet has one: where there is none, the one known here or `dice` becomes it.
        Raises Unreachable, Denied, Regressed and BadContent."""
        key = self._keys.secret
        while True:
            found = await self._get(key)
            if found is not None:
                try:
                    self.secrets = decode_secrets(found.value)
                except BadSecret as error:
                    raise BadContent(self._bad_secret(error)) from None
                return
            # Whoever comes first: the others find it when they look again.
            value = encode_secrets(self.secrets or (dice,))
            await self._note("writes", self._etcd.write(transaction([unchanged(key, 0)], [put(key, value)])))

    async def change_secret(self, secrets: Secrets, old: Secrets) -> bool | None:
        """Put these in place of what was read. True, False: somebody else was quicker; None nobody knows."""
        found = await self._get(self._keys.secret)
        if found is None or found.value != encode_secrets(old):
            return False
        compare = [unchanged(self._keys.secret, found.mod_revision)]
        return await self._write(compare, [put(self._keys.secret, encode_secrets(secrets))])

    def _bad_secret(self, error: BadSecret) -> str:
        return (
            f"the etcd key {self._keys.secret.decode()} holds what no node writes: {error}. Mend: delete the "
            "key: a node that is up puts back what it knows, or makes a new one"
        )

    # ---- changes

    async def swap(self, swap: Swap) -> bool | None:
        """Make a change of the map: True it is made, False it was refused, None nobody knows.

        It may still be made after a None, until a read shows a map later than `compare_revision` (rule 3).
        One at a time; never sent twice. A refusal that is etcd's own (full, no permission) is in `error`.
        """
        keys = self._keys
        compare = [unchanged(keys.map, swap.compare_revision)]
        compare += [unchanged(keys.node(name), revision) for name, revision in swap.compare_members.items()]
        changes = [put(keys.map, encode_map(swap.map))]
        if swap.config is not None:
            compare.append(unchanged(keys.config, 0))
            changes.append(put(keys.config, encode_config(swap.config)))
        async with self._swapping:
            return await self._write(compare, changes)

    async def remove_member(self, name: str, incarnation: int, revision: int) -> bool:
        """Delete the key of a node that was proved dead, if it is still the one that was read (`revision` is
        its Member's). False: it was put again, or etcd did not answer; read again."""
        removed = await self._remove(self._keys.node(name), revision)
        if removed:
            self._log.warning("dead node's key removed", node=name, incarnation=incarnation)
        return bool(removed)

    async def _remove(self, key: bytes, revision: int) -> bool | None:
        return await self._write([unchanged(key, revision)], [delete(key)])

    async def _write(self, compare: Sequence[Any], changes: Sequence[Any]) -> bool | None:
        try:
            floor = self._revision
            reply = await self._note("writes", self._etcd.write(transaction(compare, changes)))
            self._observe(reply.header, floor)
        except Denied:
            return False
        except Unreachable:
            return None
        except Regressed as error:
            self._set_content_error(str(error))
            return None
        return bool(reply.succeeded)

    async def start_directory(
        self, identity: str, nonces: Nonces, *, missing_ok: bool = False
    ) -> DirectoryState:
        """Rule 10: swap the nonce of the data directory's last start for this one's (directory.py).

        "copied": another start has swapped since this directory was written, so it is a copy. Where etcd has
        a nonce from before, or none although it should, it is etcd that went back: Regressed, as it would
        cost a good directory otherwise. `missing_ok`: having none is all right, after a restore.
        Raises Unreachable and Denied, too; it may then be called again with the same nonces.
        """
        key = self._keys.directory(identity)
        for _ in range(NONCE_TRIES):
            found = await self._get(key)
            nonce = found.value.decode("utf-8", "replace") if found is not None else ""
            if nonce == nonces.new:
                return "ok"
            if nonce not in nonces.accepted and not (missing_ok and not nonce):
                if nonce and not is_nonce(nonce):
                    raise BadContent(
                        f"the etcd key {key.decode()} holds {nonce[:40]!r}, which no node writes. Mend: "
                        'write back the first of "nonces" in the file identity of the data directory that is '
                        "no copy"
                    )
                if nonce and nonce not in nonces.past:
                    return "copied"
                raise Regressed(
                    f"etcd does not know the last start of the data directory {identity}: it was wiped or "
                    "restored from a backup; stop all nodes and use `gearfleet fleet restore`"
                )
            change = transaction(
                [unchanged(key, found.mod_revision if found is not None else 0)],
                [put(key, nonces.new.encode())],
            )
            with contextlib.suppress(Unreachable):  # the next look tells
                await self._note("writes", self._etcd.write(change))
        raise Unreachable(f"etcd at {self._etcd.endpoint} answers reads, and no writes")

    async def forget_directories(self, identities: Sequence[str] | None = None) -> bool:
        """Delete the nonces of these data directories, None: of all; for `forget` and `fleet restore`."""
        start = self._keys.directories
        if identities is None:
            changes = [delete(start, range_end(start))]
        else:
            changes = [delete(self._keys.directory(identity)) for identity in identities]
        return bool(await self._write([], changes))

    # ---- how it stands

    @property
    def error(self) -> str | None:
        """What is wrong with etcd or its content, for people."""
        return self._unreachable or "; ".join(self._denied.values()) or self._content_error

    async def _note(self, what: str, call: Awaitable[Any]) -> Any:
        """Await a call, and remember whether etcd refuses such calls."""
        try:
            reply = await call
        except Denied as error:
            if self._denied.get(what) != str(error):
                self._log.error("etcd refuses", reason=str(error))
            self._denied[what] = str(error)
            raise
        self._denied.pop(what, None)
        return reply

    def _answered(self) -> None:
        if not self.reachable and self.last_good_at:
            self._log.info("etcd reachable", endpoint=str(self._etcd.endpoint))
        self.reachable = True
        self.last_good_at = time.monotonic()
        self._unreachable = None

    def _failed(self, error: StoreError) -> None:
        # After a failure nothing that was kept is believed: etcd may be another one when it is back.
        if isinstance(error, Unreachable):
            self._last_map = None
            if self.reachable or not self._unreachable:
                self._log.warning("etcd unreachable", reason=str(error))
            self.reachable = False
            self._unreachable = str(error)
        else:  # it has answered, if only with a refusal
            self._answered()

    def _set_content_error(self, text: str | None) -> None:
        if text is not None and text != self._content_error:
            self._log.error("etcd content", reason=text)
        self._content_error = text


class _Held(Exception):
    """Another node has our name."""

    def __init__(self, error: NameTaken, found: Any) -> None:
        super().__init__(str(error))
        self.error = error
        self.lease: int = found.lease
        self.revision: int = found.mod_revision


class _Changed(Exception):
    """The key was written between our look and our put."""
