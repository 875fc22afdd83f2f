"""Calls of etcd: several endpoints, TLS, user and password, and an end to every wait.

aetcd brings the messages and the stubs. Its own client has one endpoint and no TLS, keeps a token for ever,
and its watches end silently; so the connections are made here.

An endpoint that failed is left for the next one. One that did not answer in time gets a new connection, too:
the old one may lead nowhere. Reads are tried again, writes are not: who does not hear of a write cannot know
whether it happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from aetcd import rpc  # type: ignore[import-untyped]

from cluster.server.errors import Denied, StartError, StoreError, Unreachable
from cluster.server.settings import Endpoint, Settings

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
RECONNECT_SECONDS_MIN: Final = 0.1
RECONNECT_SECONDS_MAX: Final = 1.0
# How long a watch may be silent before it is asked whether it is still there.
WATCH_PROBE_SECONDS: Final = 5.0
# gRPC's own time-out says more, so it is to come first.
SPARE_SECONDS: Final = 0.1
PASSWORD_BYTES_MAX: Final = 4096

# Without it a member that has lost its majority goes on answering watches.
_HAS_LEADER: Final = ("hasleader", "true")
_LEASE_NOT_FOUND: Final = "requested lease not found"
_TOKEN_FAULTS: Final = (
    "invalid auth token",
    "revision of auth store is old",
    "auth: revision in header is old",
)
_NO_AUTHENTICATION: Final = "authentication is not enabled"
_FULL: Final = "database space exceeded"
_TRY_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)


class LeaseGone(StoreError):
    """The lease has expired or was revoked."""


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where etcd is, and who calls."""

    endpoints: tuple[Endpoint, ...]
    rpc_timeout_seconds: float = 1.5
    user: str = ""
    password: str = field(default="", repr=False)
    # PEM, not paths: what cannot be read is an error of the start.
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def etcd_options(settings: Settings) -> EtcdOptions:
    """Read the files that the settings name. Raises StartError."""

    def content(name: str) -> bytes | None:
        path = getattr(settings, name)
        if path is None:
            return None
        try:
            return bytes(path.read_bytes())
        except OSError as error:
            raise StartError(f"{name} {path} cannot be read ({error.strerror}): correct the path") from None

    password = content("etcd_password_file") or b""
    line = password.partition(b"\n")[0].rstrip(b"\r")
    if settings.etcd_user and not 0 < len(line) <= PASSWORD_BYTES_MAX:
        raise StartError(
            f"etcd_password_file {settings.etcd_password_file} has no password in its first line: "
            "write it there"
        )
    return EtcdOptions(
        endpoints=settings.etcd_endpoints,
        rpc_timeout_seconds=settings.rpc_timeout_seconds,
        user=settings.etcd_user,
        password=line.decode("utf-8", "surrogateescape"),
        ca=content("etcd_ca"),
        certificate=content("etcd_certificate"),
        key=content("etcd_key"),
    )


class _Connection:
    """One channel to one endpoint, and the token that this endpoint gave."""

    def __init__(self, options: EtcdOptions, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._options = options
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._has_token = not options.user
        channel_options = [
            # Each of our connections is one of its own, so that a new one is new.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_SECONDS_MIN * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS_MAX * 1000)),
            # How long connecting may take.
            ("grpc.min_reconnect_backoff_ms", int(options.rpc_timeout_seconds * 1000)),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ]
        if options.ca is None:
            self.channel = grpc.aio.insecure_channel(str(endpoint), options=channel_options)
        else:
            credentials = grpc.ssl_channel_credentials(options.ca, options.key, options.certificate)
            self.channel = grpc.aio.secure_channel(str(endpoint), credentials, options=channel_options)
        keys = rpc.KVStub(self.channel)
        leases = rpc.LeaseStub(self.channel)
        self._methods = {
            "Txn": keys.Txn,
            "LeaseGrant": leases.LeaseGrant,
            "LeaseRevoke": leases.LeaseRevoke,
            "LeaseTimeToLive": leases.LeaseTimeToLive,
        }
        self._authenticate_method = rpc.AuthStub(self.channel).Authenticate
        self._keep_alive = leases.LeaseKeepAlive
        self._watch = rpc.WatchStub(self.channel).Watch

    async def call(self, method: str, request: Any) -> Any:
        """One call. A token that etcd no longer knows is renewed, and the call made again: etcd looks at the
        token before it does anything."""
        return await self._with_token(
            lambda metadata: self._methods[method](
                request, timeout=self._options.rpc_timeout_seconds, metadata=metadata
            )
        )

    async def keep_alive(self, lease: int) -> int:
        """The lease's new time to live; 0 when it is gone."""

        async def renew(metadata: Any) -> int:
            call = self._keep_alive(timeout=self._options.rpc_timeout_seconds, metadata=metadata)
            try:
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
                reply = await call.read()
                if reply is grpc.aio.EOF:
                    raise Unreachable(f"etcd at {self.endpoint} ended a keep-alive without an answer")
                return int(reply.TTL)
            finally:
                call.cancel()

        ttl = await self._with_token(renew)
        assert isinstance(ttl, int)
        return ttl

    async def watch(self, prefix: bytes, saw: Callable[[Any], None]) -> None:
        """Watch from now on. `saw` gets every answer, the first when the watch is there. Returns when it is
        over, for whatever reason; the reason is raised when etcd gave one."""
        await self._with_token(lambda metadata: self._watch_once(prefix, saw, metadata))

    async def _watch_once(self, prefix: bytes, saw: Callable[[Any], None], metadata: Any) -> None:
        call = self._watch(metadata=(*(metadata or ()), _HAS_LEADER))
        heard = asyncio.Event()
        ask = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
        create = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(key=prefix, range_end=range_end(prefix))
        )

        async def probe() -> None:
            """A silent watch may be an idle or a dead one: etcd answers a progress request at once."""
            try:
                while True:
                    async with asyncio.timeout(self._options.rpc_timeout_seconds):
                        await heard.wait()
                    heard.clear()
                    await asyncio.sleep(WATCH_PROBE_SECONDS)
                    if not heard.is_set():
                        async with asyncio.timeout(self._options.rpc_timeout_seconds):
                            await call.write(ask)
            finally:
                call.cancel()

        prober = asyncio.create_task(probe())
        try:
            # While a call has no connection yet, its cancelling does not wake who writes.
            async with asyncio.timeout(self._options.rpc_timeout_seconds):
                await call.write(create)
            while (reply := await call.read()) is not grpc.aio.EOF:
                heard.set()
                if reply.canceled:
                    # After a compaction, a lost leader, or for want of permission.
                    raise _cancelled(reply, self.endpoint)
                saw(reply)
        except TimeoutError:
            raise Unreachable(f"etcd at {self.endpoint} does not answer in time", timed_out=True) from None
        finally:
            prober.cancel()
            call.cancel()
            await asyncio.gather(prober, return_exceptions=True)

    async def _with_token(self, make: Callable[[Any], Awaitable[Any]]) -> Any:
        for last in (False, True):
            token = await self._get_token() if self._options.user else ""
            try:
                return await make((("token", token),) if token else None)
            except grpc.aio.AioRpcError as error:
                if last or not self._options.user or not _is_token_fault(error):
                    raise _explained(error, self.endpoint) from None
            except _TokenFault:
                if last or not self._options.user:
                    raise
            except asyncio.CancelledError:
                raise self._cancelled() from None
            self._forget_token(token)
        raise AssertionError("the loop above returns or raises")

    def _cancelled(self) -> BaseException:
        """A call that was cancelled by closing its channel is no cancelled task."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return asyncio.CancelledError()
        return Unreachable(f"the connection to etcd at {self.endpoint} was closed")

    def _forget_token(self, token: str) -> None:
        if self._token == token:
            self._has_token = False

    async def _get_token(self) -> str:
        async with self._authenticating:
            if not self._has_token:
                request = rpc.AuthenticateRequest(name=self._options.user, password=self._options.password)
                try:
                    reply = await self._authenticate_method(
                        request, timeout=self._options.rpc_timeout_seconds
                    )
                    self._token = reply.token
                except grpc.aio.AioRpcError as error:
                    # Nobody is asked for a password there: nothing to prove.
                    if _NO_AUTHENTICATION not in (error.details() or ""):
                        raise _explained(error, self.endpoint) from None
                    self._token = ""
                self._has_token = True
            return self._token

    async def close(self, grace_seconds: float | None = None) -> None:
        """Close, after the calls that are under way or this time."""
        await self.channel.close(grace_seconds)


class Etcd:
    """All endpoints as one. Every call ends within twice the RPC time-out."""

    def __init__(
        self,
        options: EtcdOptions,
        *,
        on_good: Callable[[], None] = lambda: None,
        on_bad: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        """`on_good` and `on_bad` hear of every call's outcome."""
        self._options = options
        self._on_good = on_good
        self._on_bad = on_bad
        self._connections: dict[Endpoint, _Connection] = {}
        self._current = 0
        self._watched = 0  # the endpoint of the watch, likewise
        self._retiring: dict[asyncio.Task[None], _Connection] = {}
        self._closed = False

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that are configured."""
        return self._options.endpoints

    @property
    def endpoint(self) -> Endpoint:
        """The one that the next call goes to."""
        return self._options.endpoints[self._current]

    def rotate(self) -> None:
        """Leave the current endpoint for the next one."""
        self._current = (self._current + 1) % len(self._options.endpoints)

    async def read(self, request: Any) -> Any:
        """A transaction that writes nothing: tried again elsewhere when an endpoint fails."""
        return await self._try("Txn", request, attempts=max(2, len(self._options.endpoints)))

    async def write(self, request: Any) -> Any:
        """A transaction, sent once. Unreachable says nothing of whether it was or will be done."""
        return await self._try("Txn", request, attempts=1)

    async def grant(self, lease_seconds: int) -> Any:
        """A new lease. One too many expires unused, so that trying again is safe."""
        return await self._try("LeaseGrant", rpc.LeaseGrantRequest(TTL=lease_seconds), attempts=2)

    async def revoke(self, lease: int) -> None:
        """End a lease, and the keys that hang on it."""
        await self._try("LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), attempts=1)

    async def granted_seconds(self, lease: int) -> int:
        """How long a lease lasts without a keep-alive; 0 when it is gone."""
        reply = await self._try("LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease), attempts=2)
        return int(reply.grantedTTL) if reply.TTL > 0 else 0

    async def keep_alive(self, lease: int) -> None:
        """Renew a lease, at one endpoint. Raises LeaseGone."""
        if await self._attempt(lambda connection: connection.keep_alive(lease)) <= 0:
            raise LeaseGone("the lease has expired")

    async def watch(self, prefix: bytes, saw: Callable[[Any], None]) -> None:
        """Watch until it ends, on a connection of its own: no time-out of a call ends it."""
        connection = _Connection(self._options, self._options.endpoints[self._watched])
        try:
            await connection.watch(prefix, saw)
        finally:
            self._watched = (self._watched + 1) % len(self._options.endpoints)
            await connection.close()

    async def _try(self, method: str, request: Any, *, attempts: int) -> Any:
        give_up_at = time.monotonic() + self._options.rpc_timeout_seconds
        while True:
            attempts -= 1
            try:
                return await self._attempt(lambda connection: connection.call(method, request))
            except Unreachable:
                # The last attempt begins within one time-out, so that it ends within two.
                if attempts <= 0 or time.monotonic() > give_up_at + 0.05 or self._closed:
                    raise

    async def _attempt(self, call: Callable[[_Connection], Awaitable[Any]]) -> Any:
        if self._closed:
            raise Unreachable("the connection to etcd is closed: the node is stopping")
        endpoint = self.endpoint
        connection = self._connections.get(endpoint)
        if connection is None:
            connection = self._connections[endpoint] = _Connection(self._options, endpoint)
        try:
            reply = await self._in_time(call, connection)
        except StoreError as error:
            if isinstance(error, Unreachable):
                if error.timed_out and self._connections.get(endpoint) is connection:
                    self._retire(endpoint)
                if self.endpoint == endpoint:
                    self.rotate()
            self._on_bad(error)
            raise
        self._on_good()
        return reply

    async def _in_time(self, call: Callable[[_Connection], Awaitable[Any]], connection: _Connection) -> Any:
        """Also with a new token first: one time-out for all of it."""
        try:
            async with asyncio.timeout(self._options.rpc_timeout_seconds + SPARE_SECONDS):
                return await call(connection)
        except TimeoutError:
            raise Unreachable(
                f"etcd at {connection.endpoint} does not answer in time", timed_out=True
            ) from None

    def _retire(self, endpoint: Endpoint) -> None:
        connection = self._connections.pop(endpoint)
        # Other calls of it may still be answered.
        task = asyncio.create_task(connection.close(2 * self._options.rpc_timeout_seconds))
        self._retiring[task] = connection
        task.add_done_callback(lambda task: self._retiring.pop(task, None))

    async def close(self) -> None:
        """Close all connections; calls that are under way end as unreachable."""
        self._closed = True
        connections = [*self._connections.values(), *self._retiring.values()]
        tasks = list(self._retiring)
        self._connections.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in connections))


class _TokenFault(Denied):
    """etcd no longer knows the token."""


def _is_token_fault(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _TOKEN_FAULTS)


def _cancelled(reply: Any, endpoint: Endpoint) -> StoreError:
    reason = reply.cancel_reason
    if any(text in reason for text in _TOKEN_FAULTS):
        return _TokenFault(reason)
    if "permission denied" in reason:
        return Denied(_DENIED.format(endpoint=endpoint))
    return Unreachable(f"etcd at {endpoint} ended a watch ({reason or 'compacted'})")


_DENIED: Final = (
    "etcd at {endpoint} denies this user what a node needs: "
    "grant its role readwrite on the prefix /gearfleet/"
)


def _explained(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> StoreError:
    """etcd's answer as an error with its remedy."""
    code, details = error.code(), error.details() or ""
    if _LEASE_NOT_FOUND in details:
        return LeaseGone("the lease has expired")
    if _FULL in details:
        return Denied(
            f"etcd at {endpoint} is full and takes no writes ({details}): compact and defragment it, then "
            "`etcdctl alarm disarm`"
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Denied(_DENIED.format(endpoint=endpoint))
    if "user name is empty" in details or "user name not found" in details:
        return Denied(f"etcd at {endpoint} wants a user: set etcd_user and etcd_password_file")
    if "authentication failed" in details:
        return Denied(
            f"etcd at {endpoint} refuses user or password: correct etcd_user and etcd_password_file"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"etcd at {endpoint} does not answer in time", timed_out=True)
    if code in _TRY_AGAIN or code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Unreachable(
            f"etcd at {endpoint} cannot be reached ({details or code.name}): {_look_at(details)}"
        )
    return Denied(f"etcd at {endpoint} refuses a call ({code.name}: {details}): see etcd's log")


def _look_at(details: str) -> str:
    """What to look at when a call came to nothing."""
    if "HTTP/2" in details or "SETTINGS" in details:
        return "is that etcd's port for clients (usually 2379), and does only one side use TLS?"
    return "look whether etcd runs there, and whether --etcd is right. It is asked again and again"


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix."""
    assert prefix
    assert prefix[-1] < 0xFF
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def put(key: bytes, value: bytes, lease: int = 0) -> Any:
    """Of a transaction: write a key."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes, end: bytes = b"") -> Any:
    """Of a transaction: delete a key, or a range."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))


def get(key: bytes, end: bytes = b"") -> Any:
    """Of a transaction: read a key, or a range."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, range_end=end))


def unchanged(key: bytes, mod_revision: int) -> Any:
    """Of a transaction: the key was last changed at this revision; 0: it is not there."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=mod_revision)


def transaction(compare: Sequence[Any], then: Sequence[Any], otherwise: Sequence[Any] = ()) -> Any:
    """All of `then` if all of `compare` holds, else all of `otherwise`."""
    return rpc.TxnRequest(compare=compare, success=then, failure=otherwise)
