"""The control service and its client: what is asked arrives, what fails says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster.server.control import (
    ControlClient,
    ControlError,
    ControlRefused,
    ControlService,
    ControlUnreachable,
    ControlUnsupported,
    DrainStep,
    FleetStatus,
    NodeStatus,
    SlotStatus,
)
from cluster.server.peers import PeerPort
from tests.support.peering import certificates, nodes, run

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


def client(port: PeerPort, **options: Any) -> ControlClient:
    return ControlClient("127.0.0.1", port.port, **options)


def test_what_is_asked_and_answered_arrives() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("a", handlers=[ControlService(owner).handler])
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
            port = await started.start("a", handlers=[ControlService(owner).handler])
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
            port = await started.start("a", handlers=[ControlService(owner).handler])
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
            port = await started.start("a", handlers=[ControlService(owner).handler])
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
            port = await started.start("a", handlers=[ControlService(Owner()).handler], tls=tls)
            async with client(port, tls=tls) as control:
                assert await control.describe() == STATUS
            async with client(port) as control:
                with pytest.raises(ControlUnreachable, match="does only the other side use TLS"):
                    await control.describe()

    run(scene)


def test_a_caller_that_goes_away_leaves_nothing() -> None:
    async def scene() -> None:
        async with nodes() as started:
            port = await started.start("a", handlers=[ControlService(Owner()).handler])
            async with client(port) as control:
                steps = control.drain("b")
                assert await anext(steps) == STEPS[0]
                await steps.aclose()

    run(scene)
