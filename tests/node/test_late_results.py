"""What a worker says of a job that was taken from it.

Perl's library sends WORK_EXCEPTION and WORK_FAIL for each failure, and an ERROR for the second ends its
worker: both together are one late result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.wire import packets as wire
from tests.node.bench import Bench, Peer
from tests.node.fleets import SmallFleet, small_uniques
from tests.node.test_moving_slots import grabs, job_at, worker_at
from tests.node.test_returns import background, grabbed, granted, limited, passed

LAST = [wire.WORK_FAIL, wire.WORK_COMPLETE]


def foreground(bench: Bench) -> bytes:
    ((_, handle),) = bench.peer().ask(wire.SUBMIT_JOB, b"f", b"1", b"")
    return handle


def foreground_over_its_limit(bench: Bench) -> tuple[Peer, bytes]:
    handle, worker = foreground(bench), limited(bench)
    assert grabbed(worker) == handle
    passed(bench, 1)
    return worker, handle


def cancelled(bench: Bench) -> tuple[Peer, bytes]:
    (handle,), worker = background(bench, b"1"), bench.worker(b"f")
    assert grabbed(worker) == handle
    assert bench.peer().command("cancel job " + handle.decode()) == b"OK\r\n"
    return worker, handle


def left_by_its_client_and_over_its_limit(bench: Bench) -> tuple[Peer, bytes]:
    client, worker = bench.peer(), limited(bench)
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"1", b"")
    assert grabbed(worker) == handle
    client.leave()
    passed(bench, 1)
    return worker, handle


def with_another_worker(bench: Bench) -> tuple[Peer, bytes]:
    (handle,), worker = background(bench, b"1"), limited(bench)
    assert grabbed(worker) == handle
    passed(bench, 1)
    passed(bench, 1)
    assert grabbed(bench.worker(b"f")) == handle
    return worker, handle


def waiting(bench: Bench) -> tuple[Peer, bytes]:
    (handle,), worker = background(bench, b"1"), limited(bench)
    assert grabbed(worker) == handle
    passed(bench, 1)
    return worker, handle


def given_back(bench: Bench) -> tuple[Peer, bytes]:
    (handle,), worker = background(bench, b"1"), granted(bench)
    assert grabbed(worker) == handle
    assert worker.ask(wire.GIVE_BACK, handle, b"") == []
    return worker, handle


def given_back_and_with_another_worker(bench: Bench) -> tuple[Peer, bytes]:
    worker, handle = given_back(bench)
    assert grabbed(bench.worker(b"f")) == handle
    return worker, handle


def given_back_for_nobody(bench: Bench) -> tuple[Peer, bytes]:
    client, worker = bench.peer(), granted(bench)
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"1", b"")
    assert grabbed(worker) == handle
    client.leave()
    assert worker.ask(wire.GIVE_BACK, handle, b"") == []
    return worker, handle


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize(
    ("taken", "goes_on"),
    [
        (foreground_over_its_limit, False),
        (cancelled, False),
        (left_by_its_client_and_over_its_limit, False),
        (with_another_worker, True),
        (waiting, True),
        (given_back, True),
        (given_back_and_with_another_worker, True),
        (given_back_for_nobody, False),
    ],
)
def test_an_exception_and_what_follows_it_are_one_late_result(
    taken: Callable[[Bench], tuple[Peer, bytes]], goes_on: bool, last: int
) -> None:
    bench = Bench()
    worker, handle = taken(bench)
    assert worker.ask(wire.WORK_EXCEPTION, handle, b"died") == []
    assert worker.ask(wire.WORK_DATA, handle, b"last words") == []
    assert worker.ask(last, handle, b"") == []
    # It changed nothing, and a third is an error as ever, if the job does not wait for anybody's result
    assert (bench.job(handle) is not None) is goes_on
    if taken not in (waiting, given_back):
        assert worker.ask(last, handle, b"")[0][:2] == (wire.ERROR, wire.JOB_NOT_FOUND)


def test_a_job_that_comes_back_to_the_worker_that_sent_an_exception_too_late_is_run_by_it() -> None:
    """Given a library that sends nothing behind its exceptions, and a job that is over its limit."""
    bench = Bench()
    worker, handle = waiting(bench)
    assert worker.ask(wire.WORK_EXCEPTION, handle, b"died") == []
    passed(bench, 1)
    # When the same worker gets the job again, then this run's result counts
    assert grabbed(worker) == handle
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []
    assert bench.job(handle) is None


@pytest.mark.parametrize("last", LAST)
def test_a_foreground_job_that_gave_way_is_one_late_result(last: int) -> None:
    """Given a foreground job that runs, and that its node gives up for another node's job of that key."""
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, _ = job_at(fleet, wire.SUBMIT_JOB)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    job = leader.node.context.find_handle(handle)
    assert job is not None
    leader.turn(lambda: leader.part.give_way(job))
    worker.send(wire.WORK_EXCEPTION, handle, b"died")
    worker.send(last, handle, b"")
    fleet.settle()
    assert worker.take() == []


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("promoted", [False, True])
def test_an_exception_and_what_follows_it_may_end_a_job_that_is_led_elsewhere(
    promoted: bool, last: int
) -> None:
    """Given a worker whose job's slot has gone to another node; `promoted`: it was a foreground job first,
    and its handle says so."""
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet, wire.SUBMIT_JOB if promoted else wire.SUBMIT_JOB_BG)
    if promoted:
        leader.connect().send(wire.SUBMIT_JOB_BG, b"f", small_uniques(b"f")[0], b"payload")
        fleet.settle()
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    assert handle in leader.part.forwarder.guests
    assert fleet.etcd.view.map is not None
    heir = fleet.hosts[fleet.etcd.view.map.slots[slot].primary]
    worker.take()
    worker.send(wire.WORK_EXCEPTION, handle, b"died")
    fleet.settle()
    worker.send(last, handle, b"")
    fleet.settle()
    assert worker.take() == []
    assert heir.node.context.find_handle(handle) is None


@pytest.mark.parametrize("verb", [wire.WORK_FAIL, wire.WORK_EXCEPTION])
def test_a_late_failure_does_not_end_a_job_that_waits_at_another_node(verb: int) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = leader.connect()
    worker.send(wire.CAN_DO_TIMEOUT, b"f", b"1000")
    assert grabs(worker) == handle
    fleet.pass_time(1)
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    assert fleet.etcd.view.map is not None
    heir = fleet.hosts[fleet.etcd.view.map.slots[slot].primary]
    assert heir is not leader
    worker.take()
    worker.send(verb, handle, b"died")
    fleet.settle()
    assert worker.take() == []
    assert heir.node.context.find_handle(handle) is not None


def test_a_late_exception_does_not_hide_the_result_of_the_next_run_when_its_slot_goes_elsewhere() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = leader.connect()
    worker.send(wire.CAN_DO_TIMEOUT, b"f", b"1000")
    assert grabs(worker) == handle
    fleet.pass_time(1)
    # Given a worker whose exception came too late, and that has the same job again
    worker.send(wire.WORK_EXCEPTION, handle, b"died")
    fleet.pass_time(1)
    assert grabs(worker) == handle
    # When the slot goes to another node, then this run's result ends the job there
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    assert fleet.etcd.view.map is not None
    heir = fleet.hosts[fleet.etcd.view.map.slots[slot].primary]
    assert heir is not leader
    worker.send(wire.WORK_COMPLETE, handle, b"")
    fleet.settle()
    assert heir.node.context.find_handle(handle) is None
