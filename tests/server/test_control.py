"""The control service and its client: what is asked arrives, what fails says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster.server.channels import is_loopback
from cluster.server.control import (
    SERVICE,
    ControlClient,
    ControlError,
    ControlRefused,
    ControlService,
    ControlUnproved,
    ControlUnreachable,
    ControlUnsupported,
    DrainStep,
    FleetStatus,
    NodeStatus,
    SlotStatus,
)
from cluster.server.generated import control_pb2 as pb
from cluster.server.openings import OPENINGS_PER_HOST_MAX
from cluster.server.peers import PeerPort
from tests.support.peering import SECRETS, certificates, grpc, hello, nodes, run

STATUS = FleetStatus(
    fleet="default",
    answered_by="a",
    revision=17,
    replicas=3,
    min_in_sync=2,
    nodes=(
        NodeStatus("a", "a" * 32, 2**40, "h", 4730, 4731, 4732, "z", "0.1", "up", 512, 1024, 0),
        NodeStatus("b", state="down"),
    ),
    slots=(
        SlotStatus(0, 3, "a", ("a", "b"), ("c",), serving=True),
        SlotStatus(1, 9, in_sync=("b",), lossy=True),
    ),
    under_replicated=1,
    unavailable=1,
    etcd_reachable=False,
    etcd_error="no answer",
)
STEPS = [DrainStep(2, 5), DrainStep(0, 1, message="one slot waits"), DrainStep(0, 0, done=True)]


class Owner:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.raises: Exception | None = None
        self.hangs = False

    async def _answer(self, *asked: Any) -> str:
        self.asked.append(asked)
        if self.raises is not None:
            raise self.raises
        if self.hangs:
            await asyncio.Event().wait()
        return f"did {asked[0]}"

    async def describe(self, *, slots: bool) -> FleetStatus:
        await self._answer("describe", slots)
        return STATUS

    async def drain(self, node: str, *, restart: bool) -> AsyncIterator[DrainStep]:
        for step in STEPS[:2]:
            yield step
        await self._answer("drain", node, restart)
        yield STEPS[2]

    async def join(self, node: str) -> str:
        return await self._answer("join", node)

    async def forget(self, node: str) -> str:
        return await self._answer("forget", node)

    async def promote(self, node: str, slots: Sequence[int], *, lossy: bool) -> str:
        return await self._answer("promote", node, slots, lossy)


def serve(owner: Owner, *, trust_loopback: bool = True, **options: Any) -> Any:
    options.setdefault("secrets", lambda: SECRETS)
    return ControlService(owner, hello("a"), trust_loopback=trust_loopback, **options).handler


def client(port: PeerPort, **options: Any) -> ControlClient:
    return ControlClient("127.0.0.1", port.port, **options)


def test_what_is_asked_and_answered_arrives() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[serve(owner)])
            async with client(port) as control:
                assert await control.describe(slots=True) == STATUS
                assert await control.join("b") == "did join"
                assert await control.forget("c") == "did forget"
                assert await control.promote("", [1, 5], lossy=True) == "did promote"
                assert [step async for step in control.drain("d", restart=True)] == STEPS
            assert owner.asked == [
                ("describe", True),
                ("join", "b"),
                ("forget", "c"),
                ("promote", "", (1, 5), True),
                ("drain", "d", True),
            ]

    run(scene)


@pytest.mark.parametrize(
    "error", [ControlRefused("b is up: drain it first"), ControlUnreachable("no answer from b")]
)
def test_an_owners_error_reaches_the_caller_as_it_is(error: ControlError) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            owner.raises = error
            port = await started.start("a", handlers=[serve(owner)])
            async with client(port) as control:
                with pytest.raises(type(error), match=str(error)):
                    await control.forget("b")
                steps = []
                with pytest.raises(type(error), match=str(error)):  # noqa: PT012
                    async for step in control.drain("b"):
                        steps.append(step)
                assert steps == STEPS[:2]

    run(scene)


def test_a_defect_is_logged_there_and_named_here() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            owner.raises = KeyError("x")
            port = await started.start("a", handlers=[serve(owner)])
            async with client(port) as control:
                with pytest.raises(ControlError, match=r"KeyError.*its log says more"):
                    await control.describe()

    with capture_logs() as logs:
        run(scene)
    assert [log["event"] for log in logs] == ["failed on a control request"]


def test_nobody_there_no_answer_and_an_older_release_are_told_apart() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            owner.hangs = True
            port = await started.start("a", handlers=[serve(owner)])
            older = await started.start("b")
            async with client(port, timeout_seconds=0.1) as control:
                with pytest.raises(ControlUnreachable, match="took the request and did not answer"):
                    await control.join("b")
            async with client(older) as control:
                with pytest.raises(ControlUnsupported, match="older release; upgrade it"):
                    await control.describe()
            await older.close()
            async with client(older) as control:
                with pytest.raises(ControlUnreachable, match=r"Connection refused.*--peer-port"):
                    await control.describe()

    run(scene)


def test_a_node_with_tls_answers_those_with_a_certificate(tmp_path: Any) -> None:
    async def scene() -> None:
        tls = certificates(tmp_path)
        async with nodes() as started:
            port = await started.start("a", handlers=[serve(Owner())], tls=tls)
            async with client(port, tls=tls) as control:
                assert await control.describe() == STATUS
            async with client(port) as control:
                with pytest.raises(
                    ControlUnreachable,
                    match=r"does only the other side use TLS.*another port than the --peer-port \(4731\)",
                ):
                    await control.describe()

    run(scene)


def test_a_caller_that_goes_away_leaves_nothing() -> None:
    async def scene() -> None:
        async with nodes() as started:
            port = await started.start("a", handlers=[serve(Owner())])
            async with client(port) as control:
                steps = control.drain("b")
                assert await anext(steps) == STEPS[0]
                await steps.aclose()

    run(scene)


# ---- who may ask


def strict(owner: Owner, **options: Any) -> Any:
    return serve(owner, trust_loopback=False, **options)


def test_a_stranger_is_refused_and_told_what_to_do_and_the_log_has_his_address() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[strict(owner)])
            with capture_logs() as logs:
                async with client(port) as control:
                    for ask in (
                        control.describe,
                        lambda: control.join("a"),
                        lambda: control.forget("a"),
                        lambda: control.promote("a", lossy=True),
                        lambda: anext(control.drain("a")),
                    ):
                        with pytest.raises(ControlUnproved, match="--secret-file"):
                            await ask()
            assert owner.asked == []
            refused = [log for log in logs if log["event"] == "refused a command"]
            commands = ["describe", "join", "forget", "promote", "drain"]
            assert [log["command"] for log in refused] == commands
            assert {log["address"] for log in refused} == {"127.0.0.1"}

    run(scene)


def test_whoever_knows_the_secret_is_answered() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[strict(owner)])
            async with client(port, secrets=SECRETS) as control:
                assert await control.describe(slots=True) == STATUS
                assert await control.forget("c") == "did forget"
                assert [step async for step in control.drain("d", restart=True)] == STEPS

    run(scene)


def test_nothing_is_asked_of_a_node_that_does_not_know_the_secret() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[serve(owner)])  # it would take anything
            async with client(port, secrets=(b"o" * 32,)) as control:
                with pytest.raises(ControlUnproved, match="nothing was asked of it"):
                    await control.forget("c")
            assert owner.asked == []

    run(scene)


def test_a_call_that_was_overheard_cannot_be_repeated_or_changed() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[strict(owner)])
            async with client(port, secrets=SECRETS) as control:
                channel = await control._open()
                request = pb.NodeRequest(node="c").SerializeToString()
                proof = await control._proof(channel, "Forget", request)

                async def send(method: str, data: bytes) -> str:
                    call = channel.unary_unary(f"/{SERVICE}/{method}")(data, metadata=proof)
                    try:
                        await call
                    except grpc.aio.AioRpcError as error:
                        return error.code().name
                    return "OK"

                changed = pb.NodeRequest(node="d").SerializeToString()
                assert await send("Forget", changed) == "UNAUTHENTICATED"
                assert await send("Join", request) == "UNAUTHENTICATED"
                assert await send("Forget", request) == "OK"
                assert await send("Forget", request) == "UNAUTHENTICATED"
            assert owner.asked == [("forget", "c")]

    run(scene)


def test_a_certificate_of_the_fleets_authority_is_proof_enough(tmp_path: Path) -> None:
    async def scene() -> None:
        tls = certificates(tmp_path)
        async with nodes() as started:
            port = await started.start("a", handlers=[strict(Owner(), trust_all=True)], tls=tls)
            async with client(port, tls=tls) as control:
                assert await control.describe(slots=True) == STATUS

    run(scene)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:4731", True),
        ("ipv6:[::1]:4731", True),
        ("ipv6:%5B::1%5D:4731", True),
        ("ipv6:[::ffff:127.0.0.1]:4731", True),
        ("ipv4:192.0.2.1:4731", False),
        ("ipv6:[2001:db8::1]:4731", False),
        ("ipv6:[::ffff:192.0.2.1]:4731", False),
        ("unix:", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine_alone(peer: str, local: bool) -> None:
    assert is_loopback(peer) is local


def test_a_call_that_sends_no_request_ends_soon_and_many_do_not_take_the_port() -> None:
    async def scene() -> None:
        async with nodes() as started:
            service = ControlService(Owner(), hello("a"), secrets=lambda: SECRETS, request_seconds=0.5)
            port = await started.start("a", handlers=[service.handler])
            async with client(port) as control:
                channel = await control._open()
                calls = [
                    channel.stream_stream(f"/{SERVICE}/Describe")() for _ in range(OPENINGS_PER_HOST_MAX + 1)
                ]
                codes = [await call.code() for call in calls]
                assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) == OPENINGS_PER_HOST_MAX
                assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 1
                assert service._openings.by_host == {}

    run(scene)
