"""PeerPort: this node's gRPC streams to the other nodes of its fleet.

One stream for each pair of nodes. The node whose name sorts first opens it, again and again until it
stands; the other one accepts. Each side's first message is a Hello, and each proves that it knows the fleet's
secret (proof.py); a side that does not like the other's answers with a Refusal that says what to do, and the
stream is over. After that come frames. What is
in them is the owner's business: the port asks for a frame when the one before has been taken by the
transport, so that frames merge while the line is busy, and at most one waits in memory.

What the owner is told:

  peer_up      a stream stands: begin anew with offers, nothing said on an older one counts
  peer_frame   in order; a keep-alive is an empty one
  peer_silent  nothing came for `silence_seconds`, although each side says something at least every
               `keepalive_seconds`; peer_heard when something came after all
  peer_down    the stream is over; there is another one soon, or peer_refused:
  peer_refused the stream broke and two fresh connects in a row were refused: the process is dead

Calls into the owner come from the loop, never from inside a call of the owner into the port.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any, Final, NamedTuple, Protocol

import grpc
import grpc.aio
import structlog

from cluster.replication.frames import Frame, Hello
from cluster.server.channels import (
    MESSAGE_BYTES_MAX,
    PeerTls,
    connect,
    explain,
    host_and_port,
    host_of,
    load_peer_tls,
    open_channel,
    options,
    os_reason,
    tls_hint,
    why_not,
)
from cluster.server.errors import StartError
from cluster.server.line_limit import LineLimit
from cluster.server.messages import (
    KEEP_ALIVE,
    BadMessage,
    Greeting,
    Refusal,
    pack_frame,
    pack_hello,
    pack_proofs,
    pack_refusal,
    unpack,
    unpack_greeting,
)
from cluster.server.openings import Openings
from cluster.server.proof import ACCEPTOR, DIALLER, NONCE_BYTES, Secrets, agree, stream_proofs

__all__ = ["PeerAddress", "PeerLimits", "PeerOwner", "PeerPort", "PeerTls", "load_peer_tls"]

SERVICE: Final = "gearfleet.replication.v1.Replication"
EXCHANGE: Final = f"/{SERVICE}/Exchange"
COMPLAINTS_MAX: Final = 256  # different ones that are remembered, to be logged once a minute
COMPLAIN_SECONDS: Final = 60.0
# When a fresh connect is tried after a stream broke, until two in a row were refused. A dying process
# closes its streams and its port within this time, in any order.
PROBE_PAUSES_SECONDS: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
PROBE_SECONDS: Final = 0.5  # one connect
REFUSALS_MIN: Final = 2
REDIAL_SECONDS_MIN: Final = 0.05
REDIAL_SECONDS_MAX: Final = 1.0
DIAL_SECONDS: Final = 5.0  # connect, TLS, Hellos
INTRODUCE_SECONDS: Final = 2.0  # how long a node that etcd has not told us of yet is kept waiting
NOTHING: Final = Frame()  # what a keep-alive says
CLOSE_SECONDS: Final = 0.5
CALLS_MAX: Final = 1024  # at once, on the port


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What an owner may choose; the defaults are for production."""

    message_bytes_max: int = MESSAGE_BYTES_MAX
    keepalive_seconds: float = 0.5  # say something at least this often
    silence_seconds: float = 2.0  # report who said nothing for this long
    drop_seconds: float = 10.0  # and break a stream that was silent for this long
    dial_seconds: float = DIAL_SECONDS  # until the stream stands; one that is called waits as long
    introduce_seconds: float = INTRODUCE_SECONDS


class PeerAddress(NamedTuple):
    """Where and who a peer is, as etcd has it."""

    host: str
    port: int
    identity: str
    incarnation: int


class PeerOwner(Protocol):
    """Whose port it is. See the module's docstring."""

    def peer_up(self, name: str, hello: Hello) -> None: ...
    def peer_frame(self, name: str, frame: Frame) -> None: ...
    def peer_down(self, name: str, reason: str) -> None: ...
    def peer_refused(self, name: str) -> None: ...
    def peer_silent(self, name: str) -> None: ...
    def peer_heard(self, name: str) -> None: ...
    def take_frame(self, name: str) -> Frame | None:
        """What is to be sent now; None for nothing. Called once for each message."""


class _Stream:
    """One that has had both Hellos."""

    __slots__ = ("due", "heard", "hello", "idle", "over", "pending", "read", "sent", "silent", "write")

    def __init__(
        self,
        hello: Hello,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.hello = hello
        self.read = read
        self.write = write
        self.over: asyncio.Future[str] = loop.create_future()  # with the reason
        self.idle: asyncio.Future[None] | None = None  # what the sender waits for when there is nothing
        self.heard = self.sent = loop.time()
        self.silent = False
        self.due = False  # time for a keep-alive
        self.pending = 0  # bytes that the transport has not taken

    def wake(self) -> None:
        idle = self.idle
        if idle is not None:
            self.idle = None
            if not idle.done():
                idle.set_result(None)


class _Peer:
    """One other node's one start."""

    __slots__ = ("address", "dialling", "gone", "name", "probing", "stream", "trouble")

    def __init__(self, name: str, address: PeerAddress) -> None:
        self.name = name
        self.address = address
        self.stream: _Stream | None = None
        self.dialling: asyncio.Task[None] | None = None
        self.probing: asyncio.Task[None] | None = None
        self.trouble = "not connected yet"  # why there is no stream
        self.gone = False  # left, or another start of it took its place


class PeerPort:
    """The port for other nodes and the streams to them, in the running loop."""

    def __init__(
        self,
        hello: Hello,
        host: str,
        port: int,
        owner: PeerOwner,
        *,
        secrets: Callable[[], Secrets],
        must_prove: bool = True,
        tls: PeerTls | None = None,
        limits: PeerLimits | None = None,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        places: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """`host`: one or several with commas. `secrets`: the fleet's as they are now. `must_prove`: or may
        nodes of releases that cannot? `handlers` are further services on the same port, see control.py.
        `places`: by name, the host and port of nodes that are not to be connected to where they advertise
        it."""
        self.hello = hello
        self.name = hello.node
        self.host = host
        self.port = port  # the one that was taken, after `start`
        self.limits = limits or PeerLimits()
        self.log = structlog.get_logger("gearfleet")
        self._owner = owner
        self._secrets = secrets
        self._must_prove = must_prove
        self._tls = tls
        self._handlers = handlers
        self._places = dict(places or {})
        self._loop = asyncio.get_running_loop()
        self._server: Any = None
        self._peers: dict[str, _Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: asyncio.Future[None] = self._loop.create_future()  # when `_peers` was
        self._complaints: dict[str, float] = {}
        self._complaint_limit = LineLimit()
        self._openings = Openings()
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._closed = False

    # ---- for the owner

    async def start(self) -> None:
        """Listen. Raises StartError."""
        handler = grpc.method_handlers_generic_handler(
            SERVICE, {"Exchange": grpc.stream_stream_rpc_method_handler(self._accept)}
        )
        server = grpc.aio.server(
            handlers=(handler, *self._handlers),
            options=options(self.limits.message_bytes_max, server=True),
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        for host in self.host.split(","):
            address = host_and_port(host, self.port)
            try:
                if self._tls is None:
                    self.port = server.add_insecure_port(address)
                else:
                    credentials = grpc.ssl_server_credentials(
                        [(self._tls.key, self._tls.certificate)],
                        root_certificates=self._tls.ca,
                        require_client_auth=True,
                    )
                    self.port = server.add_secure_port(address, credentials)
            except RuntimeError:
                await server.stop(None)
                raise StartError(
                    f"cannot listen for other nodes on {address} ({why_not(host, self.port)}): stop what "
                    "uses that port, or give --peer-host and --peer-port others"
                ) from None
        await server.start()
        self._server = server
        self._tick_due = self._loop.time()
        self._tick()

    async def close(self) -> None:
        """Stop listening, end all streams. The owner hears nothing more."""
        if self._closed:
            return
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        self._changed.cancel()
        for peer in self._peers.values():
            peer.gone = True
            if peer.stream is not None:
                self._end(peer, peer.stream, "this node closes")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            # A frozen peer does not take the last words, and gRPC would wait for it.
            await asyncio.wait({self._loop.create_task(self._server.stop(None))}, timeout=CLOSE_SECONDS)
        self._peers.clear()

    def set_peers(self, peers: Mapping[str, PeerAddress]) -> None:
        """Who the other nodes are now. Streams to others, and to older starts of these, end."""
        changed = False
        for name, peer in list(self._peers.items()):
            new = peers.get(name)
            if new is None or new[2:] != peer.address[2:]:
                del self._peers[name]
                self._let_go(peer, "it left the fleet" if new is None else "it was started anew")
                changed = True
        for name, address in peers.items():
            if name == self.name:
                continue
            known = self._peers.get(name)
            if known is not None:
                known.address = address
                continue
            peer = self._peers[name] = _Peer(name, address)
            if self.name < name:
                peer.dialling = self._spawn(self._dial_again_and_again(peer))
            changed = True
        if changed and not self._changed.done():
            self._changed.set_result(None)
            self._changed = self._loop.create_future()

    def wake(self, name: str) -> None:
        """There is something to send to `name`: its stream, if it stands, asks for it."""
        peer = self._peers.get(name)
        if peer is not None and peer.stream is not None:
            peer.stream.wake()

    def drop(self, name: str, reason: str) -> None:
        """End the stream to `name`: what it said cannot be. Another one is opened."""
        peer = self._peers.get(name)
        if peer is not None and peer.stream is not None:
            self._end(peer, peer.stream, reason, probe=False)

    def is_up(self, name: str) -> bool:
        peer = self._peers.get(name)
        return peer is not None and peer.stream is not None

    def pending_bytes(self, name: str) -> int:
        """Size of the message that the transport has not taken yet; 0 when it waits for the next."""
        peer = self._peers.get(name)
        return 0 if peer is None or peer.stream is None else peer.stream.pending

    def trouble(self, name: str) -> str:
        """Why there is no stream to `name`, for people; empty when there is one."""
        peer = self._peers.get(name)
        if peer is None:
            return "no such node"
        return "" if peer.stream is not None else peer.trouble

    # ---- opening a stream

    async def _dial_again_and_again(self, peer: _Peer) -> None:
        pause = REDIAL_SECONDS_MIN
        while not peer.gone:
            if await self._dial(peer):
                pause = REDIAL_SECONDS_MIN
            # Not all at once after a restart of the one that all of them dial.
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))
            pause = min(pause * 2, REDIAL_SECONDS_MAX / 1.5)

    def _origin(self, name: str, more: str = "") -> str:
        """Which settings say where this node is."""
        if name in self._places:
            return "--peer-remap"
        return f"--advertise {more + ' ' if more else ''}of node {name}"

    def _place(self, peer: _Peer) -> tuple[str, int]:
        """Where to connect to."""
        return self._places.get(peer.name) or (peer.address.host, peer.address.port)

    async def _dial(self, peer: _Peer) -> bool:
        """Open a stream and serve it to its end; whether it ever stood."""
        stood = False
        place = self._place(peer)
        where = host_and_port(*place)
        channel = call = None
        try:
            async with asyncio.timeout(self.limits.dial_seconds) as limit:
                # First by hand: a refusal costs little this way, and tells itself from all else.
                target = await connect(*place)
                channel = open_channel(target, peer.address.host, self._tls, self.limits.message_bytes_max)
                call = channel.stream_stream(EXCHANGE)()
                answer = await self._greet(call, peer, where)
                limit.reschedule(None)
            if not peer.gone:
                stood = True
                await self._serve(peer, _Stream(answer, call.read, call.write, self._loop))
        except TimeoutError:
            self._no_stream(peer, f"no answer within {self.limits.dial_seconds} s from {where}")
        except ConnectionRefusedError:
            self._no_stream(peer, f"nothing listens on {where}: is the node running?", quietly=True)
        except OSError as error:
            self._no_stream(
                peer,
                f"{where} cannot be reached ({os_reason(error)}): is {self._origin(peer.name)} an "
                "address that this node can reach?",
            )
        except (_Unwanted, BadMessage) as error:
            self._no_stream(peer, str(error))
        except grpc.RpcError as error:
            self._no_stream(peer, f"no gRPC stream to {where} ({explain(error)}): {tls_hint(self._tls)}")
        finally:
            if call is not None:
                call.cancel()
            if channel is not None:
                await channel.close()
        return stood

    async def _greet(self, call: Any, peer: _Peer, where: str) -> Hello:
        """The dialler's part of an opening: both Hellos and both proofs."""
        nonce = token_bytes(NONCE_BYTES)
        await call.write(pack_hello(self.hello, nonce))
        data = await call.read()
        if data is grpc.aio.EOF:
            raise BadMessage("it closed the stream without a word")
        greeting = unpack_greeting(data)
        answer = greeting.content
        if isinstance(answer, Refusal):
            raise _Unwanted(f"it refuses this node: {answer.reason}")
        if not isinstance(answer, Hello):
            raise BadMessage("its first message is no Hello")
        fault = (
            self._fault(answer)
            or self._mismatch(answer, peer.name, where)
            or self._cannot_prove(answer, greeting)
        )
        if fault is not None:
            raise _Unwanted(fault)
        if greeting.nonce:
            secrets, both = self._secrets(), (self.hello, nonce, answer, greeting.nonce)
            if not agree(stream_proofs(secrets, ACCEPTOR, *both), greeting.proofs):
                raise _Unwanted(_unproved(answer.node))
            await call.write(pack_proofs(stream_proofs(secrets, DIALLER, *both)))
        return answer

    def _no_stream(self, peer: _Peer, reason: str, *, quietly: bool = False) -> None:
        peer.trouble = reason
        if not quietly and not peer.gone:
            self._complain(f"{peer.name} {reason}", "no stream to a node", node=peer.name, reason=reason)

    # ---- accepting one

    async def _accept(self, _: object, context: Any) -> None:
        """A call of Exchange, from its first byte to its end."""
        host = host_of(context.peer())
        if refusal := self._openings.refusal(host):
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(refusal)
            return
        with self._openings.one(host):
            hello = await self._opening(context, host)
        peer = None if hello is None else self._peers.get(hello.node)
        # Who it is was looked at before it proved it; that may have changed.
        if hello is None or peer is None or self._closed or self._stranger(hello) is not None:
            return
        stream = _Stream(hello, context.read, context.write, self._loop)
        reason = await self._serve(peer, stream)
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_details(reason)

    async def _opening(self, context: Any, host: str) -> Hello | None:
        """Until it has said and proved who it is; None: it is over."""
        try:
            async with asyncio.timeout(self.limits.dial_seconds):
                data = await context.read()
                if data is grpc.aio.EOF:
                    return None
                greeting = unpack_greeting(data)
                hello = greeting.content
                if not isinstance(hello, Hello):
                    raise BadMessage("the first message is no Hello")
                fault = (
                    self._fault(hello)
                    or self._cannot_prove(hello, greeting)
                    or await self._introduce(hello)
                    or await self._exchange_proofs(context, hello, greeting.nonce)
                )
                if fault is not None:
                    self._complain(
                        f"{host} {fault}", "refused a node", node=hello.node, address=host, reason=fault
                    )
                    await context.write(pack_refusal(fault))
                    return None
                return hello
        except (TimeoutError, BadMessage) as error:
            reason = str(error) or f"no Hello and proof within {self.limits.dial_seconds} s"
            self._complain(f"{host} no peer", "not a node of a fleet", address=host, reason=reason)
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            context.set_details(reason)
            return None

    async def _exchange_proofs(self, context: Any, hello: Hello, nonce: bytes) -> str | None:
        """The acceptor's part of an opening, after the caller's Hello; what is wrong with its proof."""
        if not nonce:  # _cannot_prove has let it in
            await context.write(pack_hello(self.hello))
            return None
        own, secrets = token_bytes(NONCE_BYTES), self._secrets()
        both = (hello, nonce, self.hello, own)
        await context.write(pack_hello(self.hello, own, stream_proofs(secrets, ACCEPTOR, *both)))
        data = await context.read()
        if data is grpc.aio.EOF:
            raise BadMessage("it left without a proof that it is of this fleet")
        # The secrets that it was shown, or newer ones: both sides may learn of an exchange at any time.
        known = tuple(dict.fromkeys((*secrets, *self._secrets())))
        if not agree(stream_proofs(known, DIALLER, *both), unpack_greeting(data).proofs):
            return _unproved(hello.node)
        return None

    def _cannot_prove(self, hello: Hello, greeting: Greeting) -> str | None:
        """Whether it is of a release without proofs, and that is not allowed."""
        if len(greeting.nonce) == NONCE_BYTES or (not greeting.nonce and not self._must_prove):
            return None
        if greeting.nonce:
            return f"node {hello.node} sent a nonce of {len(greeting.nonce)} bytes, not {NONCE_BYTES}"
        return (
            f"node {hello.node} (version {hello.version}) does not prove that it knows the fleet's secret: "
            f"its release cannot. Upgrade it; until then start node {self.name} with --peer-proof=optional"
        )

    def _fault(self, hello: Hello) -> str | None:
        """What no patience mends. For both sides: the text may be read on the other node."""
        mine = self.hello
        if abs(hello.protocol - mine.protocol) > 1:
            old, new = sorted((hello, mine), key=lambda each: each.protocol)
            return (
                f"node {hello.node} speaks protocol {hello.protocol}, node {mine.node} {mine.protocol}: "
                f"upgrade node {old.node} (version {old.version}) towards version {new.version}, one version "
                "at a time"
            )
        if hello.fleet != mine.fleet:
            return (
                f"node {hello.node} belongs to fleet {hello.fleet}, node {mine.node} to fleet {mine.fleet}: "
                "correct --fleet or --etcd of one, or the address that leads here"
            )
        if hello.slots != mine.slots:
            return (
                f"node {hello.node} counts {hello.slots} slots, node {mine.node} {mine.slots}: a fleet keeps "
                "the number that it was made with; start the node with the etcd of its fleet"
            )
        if hello.node == mine.node:
            return f"two nodes are called {mine.node}: give one of them another --name"
        return None

    async def _introduce(self, hello: Hello) -> str | None:
        """Wait until etcd has told of this node, for a while; what is wrong with it after that."""
        deadline = self._loop.time() + self.limits.introduce_seconds
        while True:
            fault = self._stranger(hello)
            patience = deadline - self._loop.time()
            if fault is None or patience <= 0 or self._closed:
                return fault
            await asyncio.wait({self._changed}, timeout=patience)

    def _stranger(self, hello: Hello) -> str | None:
        if hello.node > self.name:
            return f"node {self.name} calls node {hello.node}, not the other way round: its name sorts first"
        peer = self._peers.get(hello.node)
        if peer is None:
            return (
                f"node {self.name} sees no key of node {hello.node} in etcd: do both use the same etcd, and "
                "has its lease run out?"
            )
        return self._mismatch(hello, peer.name, "")

    def _mismatch(self, hello: Hello, name: str, where: str) -> str | None:
        """Whether this Hello is that of the peer of this name, as etcd describes it."""
        if hello.node != name:
            return (
                f"node {hello.node} answers at {where}, where node {name} should be: correct "
                f"{self._origin(name, 'and --peer-port')}"
            )
        peer = self._peers.get(name)
        if peer is None:
            return f"node {name} left the fleet"
        identity, incarnation = peer.address.identity, peer.address.incarnation
        if hello.incarnation < incarnation:
            return (
                f"an older start of node {name} than etcd lists: a newer one has taken its place; stop this "
                "one, or give it another --name and data directory"
            )
        if hello.incarnation > incarnation:
            return f"etcd lists an older start of node {name} still: its new key is awaited"
        if hello.identity != identity:
            return (
                f"two nodes are called {name}: etcd lists the one with data directory {identity}, this one "
                f"has {hello.identity}; give one of them another --name"
            )
        return None

    # ---- a stream's life

    async def _serve(self, peer: _Peer, stream: _Stream) -> str:
        """Until it is over; the reason."""
        if peer.stream is not None:
            self._end(peer, peer.stream, "replaced by a newer stream", probe=False)
        peer.stream = stream
        self._tell(self._owner.peer_up, peer.name, stream.hello)
        tasks = {
            self._loop.create_task(self._receive(peer, stream)),
            self._loop.create_task(self._send(peer, stream)),
        }
        try:
            # Not the future itself: a cancelled call must not cancel it.
            await asyncio.wait({stream.over})
        finally:
            self._end(peer, stream, "the connection broke")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return stream.over.result()

    async def _receive(self, peer: _Peer, stream: _Stream) -> None:
        read, clock, over = stream.read, self._loop.time, stream.over
        frame_came, name = self._owner.peer_frame, peer.name
        try:
            while (data := await read()) is not grpc.aio.EOF:
                if over.done():
                    return
                stream.heard = clock()
                if stream.silent:
                    stream.silent = False
                    self._tell(self._owner.peer_heard, name)
                content = NOTHING if data == KEEP_ALIVE else unpack(data)
                if isinstance(content, Refusal):
                    raise BadMessage(f"a refusal: {content.reason}")
                if not isinstance(content, Frame):
                    raise BadMessage("a second Hello in the middle of a stream")
                try:
                    frame_came(name, content)
                except Exception:
                    # A defect of ours. What came after this frame would not make sense: begin anew.
                    self.log.exception("failed on a frame", node=name)
                    self._end(peer, stream, "this node failed on a frame")
                    return
            reason = "closed by the other node"
        except BadMessage as error:
            reason = f"it sent {error}"
        except Exception as error:
            reason = explain(error)
        self._end(peer, stream, reason)

    async def _send(self, peer: _Peer, stream: _Stream) -> None:
        write, take, clock, name = stream.write, self._owner.take_frame, self._loop.time, peer.name
        limit = self.limits.message_bytes_max
        try:
            while not stream.over.done():
                try:
                    frame = take(name)
                except Exception:
                    self.log.exception("failed on what to send", node=name)
                    reason = "this node failed on what to send"
                    break
                if frame is not None:
                    data = pack_frame(frame)
                    if len(data) > limit:
                        reason = f"a frame of {len(data)} bytes is more than {limit}, which is a defect"
                        self.log.error("a frame is too large", node=name, bytes=len(data), bytes_max=limit)
                        break
                elif stream.due:
                    data = KEEP_ALIVE
                else:
                    stream.idle = idle = self._loop.create_future()
                    await idle
                    continue
                stream.due = False
                stream.pending = len(data)
                await write(data)
                stream.pending = 0
                stream.sent = clock()
            else:
                return
        except Exception as error:
            reason = explain(error)
        self._end(peer, stream, reason)

    def _end(self, peer: _Peer, stream: _Stream, reason: str, *, probe: bool = True) -> None:
        """A stream is over; the first reason counts."""
        if stream.over.done():
            return
        stream.over.set_result(reason)
        if peer.stream is not stream:
            return
        peer.stream = None
        peer.trouble = reason
        self._tell(self._owner.peer_down, peer.name, reason)
        if probe and not peer.gone and peer.probing is None:
            peer.probing = self._spawn(self._probe(peer))

    def _let_go(self, peer: _Peer, reason: str) -> None:
        """It is no peer any more, or not this start of it."""
        peer.gone = True
        peer.trouble = reason
        for task in (peer.probing, None if peer.stream is not None else peer.dialling):
            if task is not None:
                task.cancel()
        if peer.stream is not None:
            self._loop.call_soon(self._end, peer, peer.stream, reason)

    async def _probe(self, peer: _Peer) -> None:
        """Its stream broke: is its process dead? (design.md, "Dead means")"""
        refused = 0
        try:
            for pause in PROBE_PAUSES_SECONDS:
                await asyncio.sleep(pause)
                if peer.stream is not None:
                    return
                try:
                    async with asyncio.timeout(PROBE_SECONDS):
                        await connect(*self._place(peer))
                    refused = 0
                except ConnectionRefusedError:
                    refused += 1
                    if refused == REFUSALS_MIN:
                        if not peer.gone:
                            self._tell(self._owner.peer_refused, peer.name)
                        return
                except OSError:  # time-outs too: they prove nothing
                    refused = 0
        finally:
            peer.probing = None

    def _tick(self) -> None:
        """Keep-alives and silences of all streams."""
        limits = self.limits
        period = min(limits.keepalive_seconds, limits.silence_seconds) / 4
        now = self._loop.time()
        late = now - self._tick_due
        # Was it this process that slept? Then what the others said meanwhile has not been read yet.
        pardon = late if late > period else 0.0
        for peer in list(self._peers.values()):
            stream = peer.stream
            if stream is None:
                continue
            stream.heard += pardon
            quiet = now - stream.heard
            if quiet > limits.drop_seconds:
                self._end(peer, stream, f"it said nothing for {limits.drop_seconds:g} s")
            elif quiet > limits.silence_seconds and not stream.silent:
                stream.silent = True
                self._tell(self._owner.peer_silent, peer.name)
            if now - stream.sent >= limits.keepalive_seconds - period:
                stream.due = True
                stream.wake()
        self._tick_due = now + period
        self._ticker = self._loop.call_at(self._tick_due, self._tick)

    # ---- small things

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        if self._closed:
            return
        try:
            callback(*arguments)
        except Exception:
            self.log.exception("failed on news of a node", news=callback.__name__)

    def _complain(self, key: str, event: str, **values: object) -> None:
        """Log, but the same not more than once a minute."""
        now = self._loop.time()
        if now - self._complaints.get(key, -COMPLAIN_SECONDS) < COMPLAIN_SECONDS:
            return
        if len(self._complaints) >= COMPLAINTS_MAX:
            self._complaints.clear()
        if not self._complaint_limit.allows(now):  # strangers have ever new names
            return
        self._complaints[key] = now
        self.log.warning(event, **values, **self._complaint_limit.not_logged())


def _unproved(name: str) -> str:
    return (
        f"node {name} does not know the fleet's secret that etcd holds: a stranger, or one that reads "
        "another etcd; correct --etcd there"
    )


class _Unwanted(Exception):
    """The other side, or this one, does not want the stream."""
