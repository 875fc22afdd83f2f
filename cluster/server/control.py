"""ControlService and ControlClient: what an operator says to a fleet, over the nodes' gRPC port.

Plumbing: the owner decides, also whether a request is for another node and to be passed on. The command
line is the client, and so is a node that passes something on.

Who asks has to prove that he knows the fleet's secret (proof.py), unless he is trusted without: over TLS,
where his certificate is one of the fleet's authority; and over loopback, where the setting `control_from`
says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from secrets import token_bytes
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError

from cluster.replication.frames import Hello
from cluster.server.channels import (
    MESSAGE_BYTES_MAX,
    PeerTls,
    connect,
    explain,
    host_and_port,
    host_of,
    is_loopback,
    open_channel,
    os_reason,
    tls_hint,
)
from cluster.server.generated import control_pb2 as pb
from cluster.server.line_limit import LineLimit
from cluster.server.openings import Openings
from cluster.server.proof import (
    NONCE_BYTES,
    PROOFS_MAX,
    Challenges,
    Secrets,
    agree,
    answer_proofs,
    call_proofs,
)

SERVICE: Final = "gearfleet.control.v1.Control"
CHALLENGE_KEY: Final = "gearfleet-challenge"  # of a call's metadata
PROOFS_KEY: Final = "gearfleet-proofs"
REQUEST_SECONDS: Final = 5.0  # for a request to arrive
CONTROL_SECONDS: Final = 10.0  # for an answer, and between two words of a drain


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as another one sees it."""

    name: str
    identity: str = ""
    incarnation: int = 0
    host: str = ""
    port: int = 0
    peer_port: int = 0
    http_port: int = 0
    zone: str = ""
    version: str = ""
    state: str = "up"  # up, draining, down
    leads: int = 0  # slots
    in_sync: int = 0  # slots that it has a whole copy of
    learning: int = 0  # slots that it is catching up with


@dataclass(frozen=True, slots=True)
class SlotStatus:
    slot: int
    epoch: int
    primary: str = ""
    in_sync: tuple[str, ...] = ()  # names
    learners: tuple[str, ...] = ()
    lossy: bool = False
    serving: bool = False  # as far as the answering node can tell
    missing: tuple[str, ...] = ()  # of in_sync: not up, or up without that data directory


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The fleet as one node sees it."""

    fleet: str
    answered_by: str
    revision: int
    replicas: int
    min_in_sync: int
    nodes: tuple[NodeStatus, ...] = ()
    slots: tuple[SlotStatus, ...] = ()  # empty unless asked for
    under_replicated: int = 0  # slots with fewer in-sync copies than `replicas`
    unavailable: int = 0  # slots with fewer live in-sync copies than `min_in_sync`
    etcd_reachable: bool = True
    etcd_error: str = ""


@dataclass(frozen=True, slots=True)
class DrainStep:
    """How far a drain is. The last one is `done`."""

    leads: int  # slots that the node still leads
    last_copy: int  # slots that need its copy
    done: bool = False
    message: str = ""


class ControlError(Exception):
    """A request to a fleet failed; the text says what to do."""


class ControlRefused(ControlError):
    """The fleet will not do it as things are. Owners raise it too: its text reaches the operator."""


class ControlUnreachable(ControlError):
    """No answer: nobody knows whether it was done."""


class ControlUnproved(ControlError):
    """The node does not take requests from whoever does not prove that he knows the fleet's secret."""


class ControlUnsupported(ControlError):
    """The node is of a release that does not know the request."""


class ControlOwner(Protocol):
    """Who answers. Each may raise ControlError, above all ControlRefused."""

    async def describe(self, *, slots: bool) -> FleetStatus: ...
    def drain(self, node: str, *, restart: bool) -> AsyncIterator[DrainStep]:
        """Steps until done, at least one every second."""

    async def join(self, node: str) -> str:
        """What was done, in words; so do the others."""

    async def forget(self, node: str) -> str: ...
    async def promote(self, node: str, slots: Sequence[int], *, lossy: bool) -> str: ...


class ControlService:
    """The calls of proto/control.proto on a PeerPort: `PeerPort(..., handlers=[service.handler])`."""

    def __init__(
        self,
        owner: ControlOwner,
        hello: Hello,
        *,
        secrets: Callable[[], Secrets],
        trust_loopback: bool = False,
        trust_all: bool = False,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        """`hello`: who this node is. `trust_all`: TLS has asked for a certificate already."""
        self._owner = owner
        self._hello = hello
        self._secrets = secrets
        self._trust_loopback = trust_loopback
        self._trust_all = trust_all
        self._challenges = Challenges(token_bytes(NONCE_BYTES))
        self._request_seconds = request_seconds
        self._openings = Openings()
        self._refusals = LineLimit()
        self._log = structlog.get_logger("gearfleet")
        self.handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            SERVICE,
            {
                # As a stream, of one request: gRPC itself would wait for it as long as the caller likes. And
                # as bytes: what is proved is what was sent.
                name: grpc.stream_stream_rpc_method_handler(self._call(name, parse, work), None, _bytes)
                for name, parse, work in (
                    ("Challenge", pb.ChallengeRequest.FromString, self._challenge),
                    ("Describe", pb.DescribeRequest.FromString, self._describe),
                    ("Drain", pb.DrainRequest.FromString, self._drain),
                    ("Join", pb.NodeRequest.FromString, self._join),
                    ("Forget", pb.NodeRequest.FromString, self._forget),
                    ("Promote", pb.PromoteRequest.FromString, self._promote),
                )
            },
        )

    async def _challenge(self, request: pb.ChallengeRequest, context: Any) -> pb.ChallengeAnswer:
        now, hello = asyncio.get_running_loop().time(), self._hello
        if len(request.nonce) != NONCE_BYTES:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"a challenge is asked for with {NONCE_BYTES} bytes"
            )
        challenge = self._challenges.make(now, token_bytes(NONCE_BYTES))
        return pb.ChallengeAnswer(
            fleet=hello.fleet,
            node=hello.node,
            identity=hello.identity,
            incarnation=hello.incarnation,
            challenge=challenge,
            proofs=answer_proofs(self._secrets(), request.nonce, _who(hello), challenge),
        )

    def _call(
        self, method: str, parse: Callable[[bytes], Any], work: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[object, Any], Awaitable[None]]:
        async def call(_: object, context: Any) -> None:
            data = await self._request(context)
            fault = "" if method == "Challenge" else self._distrust(method, data, context)
            if fault:
                self._complain(method, context.peer(), fault)
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, fault)
            try:
                request = parse(data)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is no request")
            answer = await work(request, context)
            if answer is not None:
                await context.write(answer)

        return call

    async def _request(self, context: Any) -> bytes:
        """The bytes of it; whoever sends none does not hold the call for long."""
        host = host_of(context.peer())
        if refusal := self._openings.refusal(host):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        fault = "a call without a request"
        with self._openings.one(host):
            try:
                async with asyncio.timeout(self._request_seconds):
                    data = await context.read()
                    if data is not grpc.aio.EOF:
                        return bytes(data)
            except TimeoutError:
                fault = f"no request within {self._request_seconds:g} s"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault)
        raise AssertionError  # abort has raised

    def _distrust(self, method: str, data: bytes, context: Any) -> str:
        """Why a call is not taken; empty when it is."""
        metadata = dict(context.invocation_metadata() or ())
        if CHALLENGE_KEY not in metadata:
            if self._trust_all or (self._trust_loopback and is_loopback(context.peer())):
                return ""
            return f"node {self._hello.node} takes no requests from whoever does not know the fleet's secret"
        try:
            challenge = bytes.fromhex(str(metadata[CHALLENGE_KEY]))
            shown = [bytes.fromhex(each) for each in str(metadata.get(PROOFS_KEY, "")).split(",", PROOFS_MAX)]
        except ValueError:
            return "what came with the request is no proof"
        wanted = call_proofs(self._secrets(), _who(self._hello), challenge, method, data)
        if not agree(wanted, shown):
            return f"it is not the secret of fleet {self._hello.fleet} that the request was proved with"
        if not self._challenges.use(challenge, asyncio.get_running_loop().time()):
            return "the proof is of an earlier request, or too old: send the request again"
        return ""

    def _complain(self, method: str, peer: str, reason: str) -> None:
        if self._refusals.allows(asyncio.get_running_loop().time()):
            self._log.warning(
                "refused a command",
                command=method.lower(),
                address=host_of(peer),
                reason=reason,
                **self._refusals.not_logged(),
            )

    async def _describe(self, request: pb.DescribeRequest, context: Any) -> pb.FleetDescription:
        status = await self._do(context, self._owner.describe(slots=request.slots))
        return pb.FleetDescription(**asdict(status))

    async def _drain(self, request: pb.DrainRequest, context: Any) -> None:
        async def steps() -> None:
            async for step in self._owner.drain(request.node, restart=request.restart):
                await context.write(pb.DrainProgress(**asdict(step)))

        await self._do(context, steps())

    async def _join(self, request: pb.NodeRequest, context: Any) -> pb.Done:
        return pb.Done(message=await self._do(context, self._owner.join(request.node)))

    async def _forget(self, request: pb.NodeRequest, context: Any) -> pb.Done:
        return pb.Done(message=await self._do(context, self._owner.forget(request.node)))

    async def _promote(self, request: pb.PromoteRequest, context: Any) -> pb.Done:
        work = self._owner.promote(request.node, tuple(request.slots), lossy=request.lossy)
        return pb.Done(message=await self._do(context, work))

    async def _do(self, context: Any, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except ControlError as error:
            # UNAVAILABLE is gRPC's own word for a connection that failed: this is another one's.
            unreachable = isinstance(error, ControlUnreachable)
            code = grpc.StatusCode.ABORTED if unreachable else grpc.StatusCode.FAILED_PRECONDITION
            text = str(error)
        except Exception as error:
            self._log.exception("failed on a control request")
            code = grpc.StatusCode.INTERNAL
            text = f"the node failed on it ({type(error).__name__}): its log says more; this is a defect"
        return await context.abort(code, text)  # which raises


class ControlClient:
    """Speaks to one node. All calls raise ControlError.

    async with ControlClient("host", 4731) as client:
        print(await client.describe())
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        secrets: Secrets = (),
        tls: PeerTls | None = None,
        tls_host: str = "",
        timeout_seconds: float = CONTROL_SECONDS,
    ) -> None:
        """`secrets`: the fleet's; with them both sides prove themselves. Without, the node may refuse
        (ControlUnproved). `tls_host`: what the node's certificate is for, where that is not `host`."""
        self._host = host
        self._port = port
        self._tls = tls
        self._tls_host = tls_host or host
        self._timeout_seconds = timeout_seconds
        self._secrets = secrets
        self._channel: Any = None

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def describe(self, *, slots: bool = False) -> FleetStatus:
        found = await self._ask("Describe", pb.DescribeRequest(slots=slots), pb.FleetDescription.FromString)
        return FleetStatus(
            **{
                **_fields(found),
                "nodes": tuple(NodeStatus(**_fields(node)) for node in found.nodes),
                "slots": tuple(
                    SlotStatus(
                        **{
                            **_fields(slot),
                            "in_sync": tuple(slot.in_sync),
                            "learners": tuple(slot.learners),
                            "missing": tuple(slot.missing),
                        }
                    )
                    for slot in found.slots
                ),
            }
        )

    async def drain(self, node: str, *, restart: bool = False) -> AsyncIterator[DrainStep]:
        """Steps as they come; giving up the iteration does not call the drain off."""
        channel = await self._open()
        method = channel.unary_stream(f"/{SERVICE}/Drain", None, pb.DrainProgress.FromString)
        data = _bytes(pb.DrainRequest(node=node, restart=restart))
        call = method(data, metadata=await self._proof(channel, "Drain", data))
        try:
            while True:
                step = await self._await(call.read())
                if step is grpc.aio.EOF:
                    return
                yield DrainStep(**_fields(step))
        finally:
            call.cancel()

    async def join(self, node: str) -> str:
        done = await self._ask("Join", pb.NodeRequest(node=node), pb.Done.FromString)
        return str(done.message)

    async def forget(self, node: str) -> str:
        done = await self._ask("Forget", pb.NodeRequest(node=node), pb.Done.FromString)
        return str(done.message)

    async def promote(self, node: str, slots: Sequence[int] = (), *, lossy: bool = False) -> str:
        request = pb.PromoteRequest(node=node, slots=slots, lossy=lossy)
        return str((await self._ask("Promote", request, pb.Done.FromString)).message)

    async def _ask(self, name: str, request: Any, parse: Callable[[bytes], Any]) -> Any:
        channel = await self._open()
        data = _bytes(request)
        metadata = await self._proof(channel, name, data)
        call = channel.unary_unary(f"/{SERVICE}/{name}", None, parse)(data, metadata=metadata)
        try:
            return await self._await(call)
        finally:
            call.cancel()

    async def _proof(self, channel: Any, method: str, data: bytes) -> tuple[tuple[str, str], ...] | None:
        """What is sent with a call; before it the node has proved itself, too."""
        if not self._secrets:
            return None
        nonce = token_bytes(NONCE_BYTES)
        ask = channel.unary_unary(f"/{SERVICE}/Challenge", _bytes, pb.ChallengeAnswer.FromString)
        call = ask(pb.ChallengeRequest(nonce=nonce))
        try:
            found = await self._await(call)
        finally:
            call.cancel()
        node = Hello(found.fleet, found.node, found.identity, found.incarnation, 0, 0, "")
        if not agree(answer_proofs(self._secrets, nonce, node, found.challenge), found.proofs):
            where = host_and_port(self._host, self._port)
            raise ControlUnproved(
                f"{where} does not know the secret that was given, so nothing was asked of it: it is of "
                "another fleet, or the secret is an old one. Read it again"
            )
        proofs = call_proofs(self._secrets, node, found.challenge, method, data)
        return (CHALLENGE_KEY, found.challenge.hex()), (PROOFS_KEY, ",".join(map(bytes.hex, proofs)))

    async def _open(self) -> Any:
        if self._channel is None:
            where = host_and_port(self._host, self._port)
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    target = await connect(self._host, self._port)
            except TimeoutError:
                raise ControlUnreachable(
                    f"no answer from {where} within {self._timeout_seconds:g} s: try another node"
                ) from None
            except OSError as error:
                raise ControlUnreachable(
                    f"nothing answers at {where} ({os_reason(error)}): is a node of a fleet running "
                    "there, and is that its --peer-port? Any other node of the fleet will do"
                ) from None
            self._channel = open_channel(target, self._tls_host, self._tls, MESSAGE_BYTES_MAX)
        return self._channel

    async def _await(self, answer: Awaitable[Any]) -> Any:
        where = host_and_port(self._host, self._port)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await answer
        except TimeoutError:
            raise ControlUnreachable(
                f"{where} took the request and did not answer within {self._timeout_seconds:g} s: look at "
                "the fleet before you repeat it"
            ) from None
        except grpc.RpcError as error:
            code, text = error.code(), explain(error)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise ControlUnsupported(
                f"{where} does not know this request: it is no node of a fleet, or one of an older release; "
                "upgrade it"
            )
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise ControlUnproved(
                f"{text}. Give it with --secret-file, set GEARFLEET_ETCD where etcd can be read, or run the "
                "command on the node's machine"
            )
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            raise ControlRefused(text)
        if code is grpc.StatusCode.ABORTED:
            raise ControlUnreachable(text)
        if code is grpc.StatusCode.UNAVAILABLE:
            raise ControlUnreachable(f"no answer from {where} ({text}): {tls_hint(self._tls)}")
        raise ControlError(f"{where}: {text}")


def _who(hello: Hello) -> Hello:
    """The parts of it that a challenge's answer tells."""
    return Hello(hello.fleet, hello.node, hello.identity, hello.incarnation, 0, 0, "")


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _fields(message: Any) -> dict[str, Any]:
    """A message's plain fields by name."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
