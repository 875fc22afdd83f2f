"""Workers of a fleet: a job outlives its node, and its result goes to whoever leads it now, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from client_ha import AsyncHAWorker, HAWorker, JobContext, Timing, worker_engine
from cluster.wire.packets import (
    CANT_DO,
    CLAIM_JOB,
    CLAIM_RES,
    ERROR,
    GRAB_JOB_UNIQ,
    JOB_ASSIGN_UNIQ,
    NO_JOB,
    NOOP,
    PRE_SLEEP,
    WORK_COMPLETE,
    WORK_STATUS,
)
from tests.client_ha.fake_server import FakeFleet, FakeServer, in_loop
from tests.client_ha.test_failover import turns_until
from tests.client_ha.test_worker import Gate, make_worker

SLOT_1 = b"H:x:1.3.7"  # a background job of slot 1, in its third epoch
FOREGROUND = b"H:x:1.tab.7"


class Desk:
    """Answers grabs of all nodes with NO_JOB, unless there is a job to give; keeps what else arrives."""

    def __init__(self, *nodes: FakeServer) -> None:
        self.nodes = nodes
        self.jobs: dict[FakeServer, list[bytes]] = {node: [] for node in nodes}
        self.heard: dict[FakeServer, list[tuple[int, list[bytes]]]] = {node: [] for node in nodes}
        self.changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._serve(node)) for node in nodes]

    async def _serve(self, node: FakeServer) -> None:
        while True:
            await node.until(lambda: node.heard)
            connection, packet_type, arguments = node.heard.pop(0)
            if packet_type == GRAB_JOB_UNIQ:
                if self.jobs[node]:
                    connection.send(JOB_ASSIGN_UNIQ, self.jobs[node].pop(0), b"f", b"u", b"p")
                else:
                    connection.send(NO_JOB)
            elif packet_type != PRE_SLEEP:
                self.heard[node].append((packet_type, arguments))
                self.changed.set()

    def give(self, node: FakeServer, handle: bytes) -> None:
        self.jobs[node].append(handle)
        for connection in node.connections:
            connection.send(NOOP)

    def say(self, node: FakeServer, handle: bytes, verdict: bytes) -> None:
        for connection in node.connections:
            connection.send(CLAIM_RES, handle, verdict)

    async def claimed(self, node: FakeServer, handle: bytes = SLOT_1) -> None:
        """Wait for the claim, which must be the next that this node hears."""
        assert await self.next(node) == (CLAIM_JOB, [handle])

    async def next(self, node: FakeServer) -> tuple[int, list[bytes]]:
        while not self.heard[node]:
            self.changed.clear()
            await self.changed.wait()
        return self.heard[node].pop(0)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def working(
    fleet: FakeFleet, timing: Timing, *, concurrency: int = 1, drain_seconds: float = 0.1
) -> AsyncIterator[tuple[AsyncHAWorker, Gate, Desk]]:
    """A worker that knows the map, and a desk that serves it."""
    desk = Desk(*fleet.nodes)
    worker, gate = make_worker(
        *fleet.nodes, timing=timing, concurrency=concurrency, drain_seconds=drain_seconds
    )
    async with worker:
        await turns_until(
            lambda: (
                worker._engine is not None
                and len([peer for peer in worker._engine._roster._peers() if peer.in_fleet])
                == len(fleet.nodes)
            )
        )
        yield worker, gate, desk
    desk.close()


async def given(desk: Desk, gate: Gate, node: FakeServer, handle: bytes = SLOT_1) -> None:
    desk.give(node, handle)
    await gate.begun.acquire()


@in_loop
async def test_a_job_whose_node_died_is_claimed_from_the_next_primary_and_delivered_there(
    quick: Timing,
) -> None:
    async with FakeFleet(3) as fleet, working(fleet, quick) as (worker, gate, desk):
        a, b, c = fleet.nodes
        await given(desk, gate, b)
        # When its node dies and the map does not know yet, then nobody is asked who cannot know
        await b.stop()
        fleet.states[1] = "down"
        fleet.primaries[1] = 2
        fleet.tell()
        # and at once when it does, the primary.
        await desk.claimed(c)
        desk.say(c, SLOT_1, b"kept")
        await turns_until(lambda: worker.stats.moved == 1)
        gate.free.release()
        assert await desk.next(c) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert desk.heard[a] == []
        assert worker.stats.jobs == 1
        assert worker.stats.dropped == 0


@in_loop
async def test_progress_is_reported_to_who_has_kept_the_job(quick: Timing) -> None:
    async with FakeFleet(2) as fleet:
        desk = Desk(*fleet.nodes)
        worker = AsyncHAWorker(fleet.addresses, timing=quick, drain_seconds=0.1)
        begun, moved = asyncio.Event(), asyncio.Event()

        @worker.task("f")
        async def f(job: JobContext) -> bytes:
            begun.set()
            await moved.wait()
            job.progress(1, 2)
            return b""

        async with worker:
            desk.give(fleet.nodes[1], SLOT_1)
            await begun.wait()
            await turns_until(lambda: len(worker.connected) == 2)
            await fleet.nodes[1].stop()
            fleet.primaries[1] = 0
            fleet.tell()
            await desk.claimed(fleet.nodes[0])
            desk.say(fleet.nodes[0], SLOT_1, b"kept")
            await turns_until(lambda: worker.stats.moved)
            moved.set()
            assert (await desk.next(fleet.nodes[0]))[0] == WORK_STATUS
            assert (await desk.next(fleet.nodes[0]))[0] == WORK_COMPLETE
        desk.close()


@in_loop
async def test_a_result_that_is_ready_waits_for_kept_and_goes_to_one_node_only(
    quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_engine, "CLAIM_SECONDS", 0.05)
    async with FakeFleet(3) as fleet, working(fleet, quick) as (worker, gate, desk):
        a, b, c = fleet.nodes
        await given(desk, gate, b)
        await b.stop()
        gate.free.release()  # the map has not changed: after a while all are asked
        await desk.claimed(a)
        await desk.claimed(c)
        assert worker.stats.jobs == 1
        desk.say(a, SLOT_1, b"elsewhere")
        desk.say(c, SLOT_1, b"elsewhere")
        await desk.claimed(a)  # and again
        await desk.claimed(c)
        desk.say(c, SLOT_1, b"kept")
        assert await desk.next(c) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        desk.say(a, SLOT_1, b"kept")  # too late: it has been delivered
        desk.give(a, b"H:x:0.1.1")
        await gate.begun.acquire()
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [b"H:x:0.1.1", b"done p"])


@in_loop
async def test_a_job_that_is_gone_goes_on_but_its_result_is_dropped_and_counted(
    quick: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick) as (worker, gate, desk):
        a, b = fleet.nodes
        await given(desk, gate, b)
        fleet.primaries[1] = 0
        await b.stop()
        fleet.tell()
        await desk.claimed(a)
        desk.say(a, SLOT_1, b"gone")
        await turns_until(lambda: any("will be dropped" in r.message for r in caplog.records))
        gate.free.release()
        await turns_until(lambda: worker.stats.jobs == 1)
        assert worker.stats.dropped == 1
        await given(desk, gate, a, b"H:x:0.1.1")  # and life goes on
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [b"H:x:0.1.1", b"done p"])


@in_loop
async def test_elsewhere_is_asked_again_after_the_next_map(quick: Timing) -> None:
    async with FakeFleet(3) as fleet, working(fleet, quick) as (worker, gate, desk):
        a, b, c = fleet.nodes
        await given(desk, gate, b)
        await b.stop()
        fleet.primaries[1] = 0
        fleet.tell()
        await desk.claimed(a)
        desk.say(a, SLOT_1, b"elsewhere")
        fleet.primaries[1] = 2
        fleet.tell()
        await desk.claimed(c)
        desk.say(c, SLOT_1, b"kept")
        await turns_until(lambda: worker.stats.moved == 1)
        # That one dies, too, before the result is there.
        await c.stop()
        fleet.primaries[1] = 0
        fleet.tell()
        await desk.claimed(a)
        desk.say(a, SLOT_1, b"kept")
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert worker.stats.moved == 2


@in_loop
async def test_a_result_that_was_read_but_may_have_died_with_its_node_is_offered_again(
    quick: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick) as (worker, gate, desk):
        a, b = fleet.nodes
        for handle in (SLOT_1, b"H:x:1.3.8"):
            await given(desk, gate, b, handle)
            gate.free.release()
            assert (await desk.next(b))[0] == WORK_COMPLETE
        await turns_until(lambda: worker._engine and worker._engine._roster.links)
        fleet.primaries[1] = 0
        await b.stop()
        fleet.tell()
        await desk.claimed(a, SLOT_1)
        await desk.claimed(a, b"H:x:1.3.8")
        desk.say(a, SLOT_1, b"gone")  # it had arrived: nothing is lost, nothing is said
        desk.say(a, b"H:x:1.3.8", b"kept")
        assert await desk.next(a) == (WORK_COMPLETE, [b"H:x:1.3.8", b"done p"])
        assert worker.stats.dropped == 0
    assert not any("dropped" in record.message for record in caplog.records)


@in_loop
async def test_a_job_given_again_to_the_worker_that_still_runs_it_goes_on(quick: Timing) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick, concurrency=2) as (worker, gate, desk):
        a, b = fleet.nodes
        await given(desk, gate, b)
        await b.stop()
        desk.give(a, SLOT_1)
        await turns_until(lambda: worker.stats.moved == 1)
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert gate.begun.locked()  # it was not begun again
        assert worker.stats.jobs == 1


@in_loop
async def test_a_job_that_was_gone_and_is_given_to_the_same_worker_goes_on_too(quick: Timing) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick, concurrency=2) as (worker, gate, desk):
        a, b = fleet.nodes
        await given(desk, gate, b)
        fleet.primaries[1] = 0
        await b.stop()
        fleet.tell()
        await desk.claimed(a)
        desk.say(a, SLOT_1, b"gone")
        desk.give(a, SLOT_1)
        await turns_until(lambda: worker.stats.moved == 1)
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert worker.stats.dropped == 0
        assert gate.begun.locked()


@in_loop
async def test_a_node_that_is_down_by_the_map_but_still_connected_keeps_what_nobody_else_has(
    quick: Timing,
) -> None:
    async with FakeFleet(3) as fleet, working(fleet, quick, concurrency=2) as (worker, gate, desk):
        _, b, c = fleet.nodes
        await given(desk, gate, b)
        await given(desk, gate, b, b"H:x:1.3.8")
        fleet.states[1] = "down"
        fleet.primaries[1] = 2
        fleet.tell()
        await desk.claimed(c, SLOT_1)
        await desk.claimed(c, b"H:x:1.3.8")
        desk.say(c, SLOT_1, b"gone")
        desk.say(c, b"H:x:1.3.8", b"kept")
        await turns_until(lambda: worker.stats.moved == 1)
        gate.free.release()
        gate.free.release()
        assert await desk.next(b) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert await desk.next(c) == (WORK_COMPLETE, [b"H:x:1.3.8", b"done p"])
        assert worker.stats.dropped == 0


@in_loop
async def test_a_result_that_crosses_with_the_grant_of_its_claim_goes_to_both_nodes(quick: Timing) -> None:
    """Who granted the claim waits for the result of this worker, and takes it from nobody else."""
    async with FakeFleet(3) as fleet, working(fleet, quick, concurrency=2) as (worker, gate, desk):
        _, b, c = fleet.nodes
        await given(desk, gate, b)
        await given(desk, gate, b, b"H:x:1.3.8")
        fleet.states[1] = "down"
        fleet.primaries[1] = 2
        fleet.tell()
        await desk.claimed(c, SLOT_1)
        await desk.claimed(c, b"H:x:1.3.8")
        gate.free.release()
        gate.free.release()
        assert await desk.next(b) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert await desk.next(b) == (WORK_COMPLETE, [b"H:x:1.3.8", b"done p"])
        desk.say(c, SLOT_1, b"kept")
        desk.say(c, b"H:x:1.3.8", b"gone")  # the result came first: that is all
        assert await desk.next(c) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        await given(desk, gate, c, b"H:x:1.3.9")
        gate.free.release()
        assert await desk.next(c) == (WORK_COMPLETE, [b"H:x:1.3.9", b"done p"])
        assert worker.stats.dropped == 0
        assert worker.stats.jobs == 3


@in_loop
async def test_nothing_is_grabbed_from_a_draining_node_and_what_runs_there_is_finished(
    quick: Timing,
) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick, concurrency=2) as (worker, gate, desk):
        a, b = fleet.nodes
        await given(desk, gate, b)
        fleet.states[1] = "draining"
        fleet.tell()
        engine = worker._engine
        assert engine is not None
        await turns_until(lambda: engine._roster.map and engine._roster.map.nodes[1].state == "draining")
        desk.give(b, b"H:x:1.3.8")
        await given(desk, gate, a, b"H:x:0.1.1")
        gate.free.release()
        gate.free.release()
        assert await desk.next(b) == (WORK_COMPLETE, [SLOT_1, b"done p"])
        assert await desk.next(a) == (WORK_COMPLETE, [b"H:x:0.1.1", b"done p"])
        assert desk.jobs[b] == [b"H:x:1.3.8"]
        fleet.states[1] = "up"  # the drain was called off
        fleet.tell()
        await gate.begun.acquire()
        gate.free.release()
        assert await desk.next(b) == (WORK_COMPLETE, [b"H:x:1.3.8", b"done p"])


@in_loop
async def test_new_nodes_are_joined_and_those_that_left_are_left(quick: Timing) -> None:
    async with FakeFleet(3) as fleet:
        fleet.members = [0, 1]
        fleet._draw()
        desk = Desk(*fleet.nodes)
        worker, gate = make_worker(fleet.nodes[0], timing=quick)
        async with worker:
            await worker.wait_connected(2)
            fleet.members = [0, 1, 2]
            fleet.tell()
            await worker.wait_connected(3)
            await given(desk, gate, fleet.nodes[2], b"H:x:2.1.1")
            fleet.members = [0, 1]
            fleet.tell()
            gate.free.release()
            assert await desk.next(fleet.nodes[2]) == (WORK_COMPLETE, [b"H:x:2.1.1", b"done p"])
            await turns_until(lambda: len(worker.connected) == 2)
        desk.close()


@in_loop
async def test_a_foreground_job_belongs_to_the_node_that_took_it_while_that_lives(quick: Timing) -> None:
    async with FakeFleet(2) as fleet, working(fleet, quick) as (_, gate, desk):
        a, b = fleet.nodes
        await given(desk, gate, a, FOREGROUND)  # b leads the slot
        a.connections[0].drop()
        await desk.claimed(a, FOREGROUND)
        desk.say(a, FOREGROUND, b"kept")
        gate.free.release()
        assert await desk.next(a) == (WORK_COMPLETE, [FOREGROUND, b"done p"])
        assert desk.heard[b] == []


@in_loop
async def test_a_node_that_stands_alone_is_claimed_from_when_it_is_back(quick: Timing) -> None:
    async with FakeServer() as one:
        one.knows_gearfleet = True
        one.map = {"revision": 0, "fleet": None, "nodes": [], "slots": 1024, "primaries": []}
        desk = Desk(one)
        worker, gate = make_worker(one, timing=quick)
        async with worker:
            await given(desk, gate, one)
            await one.stop()
            gate.free.release()
            await turns_until(lambda: worker.stats.jobs == 1)
            await one.start()
            await desk.claimed(one)
            desk.say(one, SLOT_1, b"kept")
            assert await desk.next(one) == (WORK_COMPLETE, [SLOT_1, b"done p"])
            # One that has no claims gets the result as a stock server does.
            await given(desk, gate, one)
            await one.stop()
            gate.free.release()
            await turns_until(lambda: worker.stats.jobs == 2)
            await one.start()
            await desk.claimed(one)
            one.connections[0].send(ERROR, b"INVALID_COMMAND", b"Command not expected")
            while (heard := await desk.next(one))[0] != WORK_COMPLETE:
                pass
            assert heard == (WORK_COMPLETE, [SLOT_1, b"done p"])
        desk.close()


@in_loop
async def test_a_worker_that_drains_stays_on_all_nodes_until_its_last_result_is_delivered(
    quick: Timing,
) -> None:
    async with FakeFleet(2) as fleet:
        a, b = fleet.nodes
        async with working(fleet, quick, drain_seconds=10.0) as (worker, gate, desk):
            await given(desk, gate, b)
            stopping = asyncio.create_task(worker.stop())
            assert await desk.next(a) == (CANT_DO, [b"f"])  # no wake-up is sent in vain
            fleet.primaries[1] = 0
            await b.stop()
            fleet.tell()
            await desk.claimed(a)
            gate.free.release()
            await turns_until(lambda: worker.stats.jobs == 1)
            desk.say(a, SLOT_1, b"kept")
            assert await desk.next(a) == (WORK_COMPLETE, [SLOT_1, b"done p"])
            await stopping
            assert worker.stats.dropped == 0


@in_loop
async def test_what_cannot_be_delivered_is_given_up_in_the_end_and_counted(
    quick: Timing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_engine, "CLAIM_SECONDS", 0.02)
    monkeypatch.setattr(worker_engine, "KEPT_RESULT_SECONDS", 0.1)
    monkeypatch.setattr(worker_engine, "LAST_RESULTS_SECONDS", 0.05)
    async with FakeFleet(1) as fleet, working(fleet, quick) as (worker, gate, desk):
        await given(desk, gate, fleet.nodes[0])
        await fleet.nodes[0].stop()
        await turns_until(lambda: not worker.connected)
        gate.free.release()
        await turns_until(lambda: worker.stats.dropped == 1)
    assert any("no node took it within 0.1 s" in record.message for record in caplog.records)


@in_loop
async def test_at_the_end_of_a_worker_too(
    quick: Timing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_engine, "LAST_RESULTS_SECONDS", 0.05)
    async with FakeFleet(1) as fleet:
        async with working(fleet, quick) as (worker, gate, desk):
            await given(desk, gate, fleet.nodes[0])
            await fleet.nodes[0].stop()
            await turns_until(lambda: not worker.connected)
            gate.free.release()
            await turns_until(lambda: worker.stats.jobs == 1)
        assert worker.stats.dropped == 1
    assert any("1 results could not be delivered" in record.message for record in caplog.records)


@in_loop
async def test_no_more_results_are_kept_than_the_limit(
    quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_engine, "KEPT_RESULTS_MAX", 2)
    monkeypatch.setattr(worker_engine, "LAST_RESULTS_SECONDS", 0.05)
    async with FakeFleet(1) as fleet, working(fleet, quick, concurrency=3) as (worker, gate, desk):
        for count in (b"1", b"2", b"3"):
            await given(desk, gate, fleet.nodes[0], b"H:x:1.3." + count)
        for _ in range(3):
            gate.free.release()
        await fleet.nodes[0].stop()
        await turns_until(
            lambda: worker.stats.jobs == 3 and worker._engine and len(worker._engine._late) == 2
        )


def test_threads_claim_too(quick: Timing) -> None:
    begun, free = threading.Event(), threading.Event()

    async def scenario() -> None:
        async with FakeFleet(2) as fleet:
            a, b = fleet.nodes
            desk = Desk(a, b)
            worker = HAWorker(fleet.addresses, timing=quick, drain_seconds=1.0)

            @worker.task("f")
            def f(job: JobContext) -> bytes:
                begun.set()
                assert free.wait(10)
                return b"done"

            desk.give(b, SLOT_1)
            worker.start()
            await asyncio.to_thread(begun.wait, 10)
            await a.until(lambda: a.connections and a.connections[0].follows_map)
            fleet.primaries[1] = 0
            await b.stop()
            fleet.tell()
            await desk.claimed(a)
            desk.say(a, SLOT_1, b"kept")
            free.set()
            assert await desk.next(a) == (WORK_COMPLETE, [SLOT_1, b"done"])
            await asyncio.to_thread(worker.stop)
            assert worker.stats.moved == 1
            desk.close()

    asyncio.run(asyncio.wait_for(scenario(), 15))
