"""Memory follows what lives: when all is over and everybody has left, nothing is kept of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from cluster.jobs.timers import DEAD_BEFORE_SWEEP
from cluster.wire import packets as wire
from tests.node.bench import Bench
from tests.node.histories import History, histories


def assert_nothing_is_kept(bench: Bench) -> None:
    node = bench.node
    ledger, context = node.ledger, node.context
    assert ledger.count() == 0
    # Names are kept for a while
    node.begin_turn(bench.wall + ledger.idle_seconds, bench.monotonic + ledger.idle_seconds)
    ledger.forget_rested()
    assert not ledger.resting
    assert not ledger.resting_unserved
    assert not ledger.functions
    assert not any(ledger.ready)
    assert not ledger.stirred
    assert not any(table.jobs or table.uniques for table in ledger.tables)
    assert not context.connections
    assert not context.dirty
    assert not context.closes
    assert not node.context.uncommitted
    assert not node._sends
    group = node.log.group
    assert not any([group.records, group.jobs, group.waiting])
    assert node.next_due() == (None, None)
    assert context.scheduled.heap == context.limits.heap == []


def finish_everything(bench: Bench) -> None:
    admin = bench.peer()
    for job in list(bench.node.ledger.all_jobs()):
        admin.command("cancel job " + job.handle.decode())
    for peer in bench.peers.values():
        if peer.here:
            peer.leave()
    bench.settle()
    for peer in bench.peers.values():
        connection = peer.connection
        assert not any([connection.attached, connection.held, connection.out, connection.worker])


@settings(max_examples=80, deadline=None)
@given(history=histories(60))
def test_after_any_history_nothing_is_kept(history: list[tuple[Any, ...]]) -> None:
    bench = Bench()
    History(bench).run(history)
    finish_everything(bench)
    assert_nothing_is_kept(bench)


def test_cancelled_timers_are_swept() -> None:
    bench = Bench(durable=False)
    client, worker = bench.peer(), bench.peer()
    worker.ask(wire.CAN_DO_TIMEOUT, b"f", b"60000")
    for number in range(5 * DEAD_BEFORE_SWEEP):
        client.say(wire.SUBMIT_JOB_EPOCH, b"g", b"u", b"%d" % (bench.wall + 1000 + number), b"")
        client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
        bench.end_turn()
        (_, scheduled), (_, handle) = client.heard()
        worker.say(wire.GRAB_JOB)
        worker.say(wire.WORK_COMPLETE, handle, b"")
        client.say_bytes(b"cancel job " + scheduled + b"\n")
        bench.end_turn()
        client.heard_bytes = worker.heard_bytes = b""
        assert len(bench.node.context.limits.heap) <= DEAD_BEFORE_SWEEP
        assert len(bench.node.context.scheduled.heap) <= DEAD_BEFORE_SWEEP
    finish_everything(bench)
    assert_nothing_is_kept(bench)


def test_a_function_that_was_only_asked_about_is_not_kept() -> None:
    bench = Bench()
    peer = bench.peer()
    for verb, *arguments in (
        (wire.CANT_DO, b"f"),
        (wire.GET_STATUS_UNIQUE, b"u"),
        (wire.SUBMIT_JOB_SCHED, b"f", b"u", b"99", b"", b"", b"", b"", b""),
        (wire.SUBMIT_JOB_EPOCH, b"f", b"u", b"9" * 20, b""),
        (wire.SUBMIT_JOB_BG, b"f", b"u" * 65, b""),
        (wire.WORK_COMPLETE, b"H:node:1.1.1", b""),
    ):
        peer.ask(verb, *arguments)
    peer.leave()
    bench.settle()
    assert_nothing_is_kept(bench)
