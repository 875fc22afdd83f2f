"""Jobs, workers and claims while their slots go from one node to another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.node.context import slot_of_handle
from cluster.node.fleet import HAND_OVER_JOBS_MAX
from cluster.replication.replicator import FRAME_ENTRIES_BYTES_MAX
from cluster.wire import packets as wire
from tests.node.fleets import Client, Host, SmallFleet, handles, small_uniques


def job_at(fleet: SmallFleet, kind: int = wire.SUBMIT_JOB_BG) -> tuple[Host, bytes, int]:
    """A committed job: its primary, its handle, its slot."""
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    client = leader.connect()
    client.send(kind, b"f", unique, b"payload")
    fleet.settle()
    (handle,) = handles(client.take())
    slot = slot_of_handle(handle)
    assert slot is not None
    return leader, handle, slot


def grabs(worker: Client) -> bytes | None:
    """The handle of the job that it gets."""
    worker.take()
    worker.send(wire.GRAB_JOB)
    ((packet_type, body),) = worker.take()
    return body.split(b"\0")[0] if packet_type == wire.JOB_ASSIGN else None


def worker_at(host: Host) -> Client:
    worker = host.connect()
    worker.send(wire.CAN_DO, b"f")
    return worker


def test_a_job_of_a_slot_that_is_being_handed_over_is_not_given_out() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    leader.turn(lambda: leader.part.pause([slot]))

    assert grabs(worker) is None
    fleet.pass_time(3)  # nobody took it
    assert grabs(worker) == handle


def test_while_nothing_is_given_out_a_worker_sleeps_and_is_woken_after() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, _ = job_at(fleet)
    worker = worker_at(leader)
    leader.node.context.dispatching = False
    assert grabs(worker) is None
    worker.send(wire.PRE_SLEEP)
    assert worker.take() == []
    fleet.pass_time(1)
    assert worker.take() == [(wire.NOOP, b"")]
    assert grabs(worker) == handle


def test_a_stream_that_breaks_does_not_take_its_jobs_from_workers_behind_it() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, _ = job_at(fleet)
    other = next(host for host in fleet.living() if host is not leader)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    leader.turn(lambda: leader.node.disconnected(worker.connection))
    # As after a hand-over: the worker is known at another node.
    guest = worker_at(other)
    other.part.forwarder.guests[handle] = guest.connection
    other.part.forwarder.claims_again.add(slot_of_handle(handle) or 0)
    other.part.look_again(fleet.now)
    fleet.pass_time(1)
    rival = worker_at(leader)
    assert grabs(rival) is None

    fleet.cut(leader.name, other.name)
    assert grabs(rival) is None
    fleet.settle()
    fleet.pass_time(3)
    assert grabs(rival) is None
    guest.send(wire.WORK_COMPLETE, handle, b"result")
    fleet.settle()
    assert leader.node.context.find_handle(handle) is None


def test_a_claim_that_waits_for_a_slot_that_goes_elsewhere_is_sent_there_by_the_worker() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = leader.connect()
    leader.turn(lambda: leader.part.pause([slot]))
    worker.send(wire.CLAIM_JOB, handle)
    assert worker.take() == []
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    fleet.pass_time(1)
    assert fleet.leads()[leader.name] == 0
    assert worker.take() == [(wire.CLAIM_RES, handle + b"\0" + wire.CLAIM_ELSEWHERE)]


def test_a_claimed_job_has_its_time_limit_and_is_known_to_be_with_a_worker() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    first = worker_at(leader)
    assert grabs(first) == handle
    leader.turn(lambda: leader.node.disconnected(first.connection))  # it is queued again
    number = leader.node.log.slots[slot].number
    second = leader.connect()
    second.send(wire.CAN_DO_TIMEOUT, b"f", b"2000")
    second.send(wire.CLAIM_JOB, handle)
    assert second.take() == [(wire.CLAIM_RES, handle + b"\0" + wire.CLAIM_KEPT)]
    assert leader.node.log.slots[slot].number == number + 1  # ASSIGNED
    fleet.pass_time(3)
    assert leader.node.context.find_handle(handle) is None


def test_a_connection_that_made_a_mistake_gets_what_another_node_owes_it_then_it_is_closed() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    other = next(host for host in fleet.living() if host is not leader)
    client = other.connect()
    client.send(wire.SUBMIT_JOB_BG, b"f", unique, b"payload")
    other.turn(lambda: other.node.protocol_error(client.connection, "no"))
    fleet.settle()

    assert [packet_type for packet_type, _ in client.take()] == [wire.JOB_CREATED, wire.ERROR]
    assert not client.connection.held


def test_of_long_queues_only_some_slots_are_handed_over_at_a_time() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, _, _ = job_at(fleet)
    client = leader.connect()
    led = fleet.leads()[leader.name]
    assert led > 1
    jobs = [(wire.SUBMIT_JOB_BG, b"f\0\0x")] * (led * (HAND_OVER_JOBS_MAX + 1000))
    leader.turn(lambda: leader.node.receive(client.connection, jobs))
    fleet.settle()
    fleet.etcd.put(replace(leader.member, draining=True))
    leader.turn(lambda: leader.part.see(fleet.etcd.view))
    leader.turn(leader.part.propose)
    assert fleet.leads()[leader.name] == led - 1
    fleet.settle()
    assert fleet.leads()[leader.name] == 0


def test_a_large_job_and_what_is_forwarded_do_not_share_a_frame() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, _, _ = job_at(fleet)
    other = next(host for host in fleet.living() if host is not leader)
    client = leader.connect()
    payload = b"x" * (FRAME_ENTRIES_BYTES_MAX + 1)
    for host in (leader, other):
        for unique in small_uniques(b"big", 1):
            if fleet.host_of(b"big", unique) is host:
                client.send(wire.SUBMIT_JOB_BG, b"big", unique, payload)
                break
    frame = leader.part.take_frame(other.name, fleet.now)
    assert frame is not None
    assert frame.entries
    assert not frame.requests
    frame = leader.part.take_frame(other.name, fleet.now)
    assert frame is not None
    assert frame.requests


def test_who_waits_for_a_result_is_told_it_also_when_it_submits_the_same_in_the_background() -> None:
    """Given a foreground job that its client makes a background job, before that is committed; when the slot
    goes to another node; then its result still comes under the handle that the client was told."""
    fleet = SmallFleet(3)
    fleet.start()
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    client = leader.connect()
    client.send(wire.SUBMIT_JOB, b"f", unique, b"payload")
    (handle,) = handles(client.take())
    client.send(wire.SUBMIT_JOB_BG, b"f", unique, b"payload")
    leader.frozen = True
    fleet.etcd.delete(leader.name)
    fleet.settle()
    leader.frozen = False
    fleet.settle()
    assert fleet.host_of(b"f", unique) is not leader

    worker = worker_at(fleet.host_of(b"f", unique))
    fleet.settle()
    moved = grabs(worker)
    assert moved is not None
    worker.send(wire.WORK_COMPLETE, moved, b"result")
    fleet.settle()

    assert (wire.WORK_COMPLETE, handle + b"\0result") in client.take()


def test_a_result_that_waited_for_a_hand_over_goes_back_to_where_it_came_from() -> None:
    """Given a job that runs at a node from which its slot has gone; when its result comes while the slot is
    on its way back; then that node has it, and nobody else is thought to run the job."""
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    fleet_map = fleet.etcd.view.map
    assert fleet_map is not None
    second = fleet.hosts[fleet_map.slots[slot].primary]
    assert second is not leader

    second.turn(lambda: second.part.pause([slot]))
    worker.send(wire.WORK_COMPLETE, handle, b"result")
    fleet.settle()
    fleet.etcd.put(leader.member)
    fleet.settle()

    assert leader.node.log.slots[slot].serving
    assert handle not in leader.node.ledger.tables[slot].jobs
    assert handle not in second.part.forwarder.guests


def test_who_waits_for_a_foreground_job_is_told_the_end_of_a_background_job_of_that_key_that_comes() -> None:
    """Given a foreground job at a node from which its slot has gone; when a background job of the same key is
    made elsewhere and the slot comes back; then both are one, and the client is told its end."""
    fleet = SmallFleet(3)
    fleet.start()
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    client = leader.connect()
    client.send(wire.SUBMIT_JOB, b"f", unique, b"payload")
    (handle,) = handles(client.take())
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    second = fleet.host_of(b"f", unique)
    assert second is not leader
    second.connect().send(wire.SUBMIT_JOB_BG, b"f", unique, b"payload")
    fleet.settle()
    fleet.etcd.put(leader.member)
    fleet.settle()
    fleet.pass_time(1)
    assert fleet.host_of(b"f", unique) is leader

    worker = worker_at(leader)
    background = grabs(worker)
    assert background not in (None, handle)
    worker.send(wire.WORK_COMPLETE, background or b"", b"result")
    fleet.settle()

    assert (wire.WORK_COMPLETE, handle + b"\0result") in client.take()


@pytest.mark.parametrize("at_leader", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
def test_a_foreground_job_that_nobody_runs_does_not_stay_at_a_node_that_drains(
    at_leader: bool, keyed: bool
) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    host = leader if at_leader else next(each for each in fleet.living() if each is not leader)
    client = host.connect()
    client.send(wire.SUBMIT_JOB, b"f", unique if keyed else b"", b"payload")
    reduced = small_uniques(b"f")[1]  # of the same slot
    client.send(wire.SUBMIT_REDUCE_JOB, b"f", reduced, b"reducer", b"0", b"payload")
    fleet.settle()
    handle, reduced_handle = handles(client.take())
    holder = leader if keyed else host

    fleet.etcd.put(replace(holder.member, draining=True))
    fleet.settle()
    fleet.pass_time(1)
    assert holder.node.ledger.count() == 0
    given = []
    for each in fleet.living():
        if each is not holder:
            worker = worker_at(each)
            worker.send(wire.GRAB_JOB_ALL)
            worker.send(wire.GRAB_JOB_ALL)
            jobs = [body.split(b"\0") for _, body in worker.take() if body]
            given += [job[2:] for job in jobs]
            for job in jobs:
                worker.send(wire.WORK_COMPLETE, job[0], b"result of " + job[2])
    fleet.settle()

    kept = unique if keyed else b""
    assert sorted(given) == sorted([[kept, b"payload"], [reduced, b"reducer", b"payload"]])
    ends = {(wire.WORK_COMPLETE, handle + b"\0result of " + kept)}
    ends.add((wire.WORK_COMPLETE, reduced_handle + b"\0result of " + reduced))
    assert set(client.take()) == ends


def test_a_result_waits_for_as_long_as_its_node_does_not_know_who_leads_the_slot() -> None:
    """Given a job that runs at a node that others have deposed and that does not reach etcd; when its result
    comes, and nobody can be told of it for longer than a request is kept; then it still counts. Else the node
    would go on claiming the job for a worker that is through with it, and it would never end."""
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    leader.frozen = True
    fleet.etcd.delete(leader.name)
    fleet.settle()
    fleet.etcd.up = False
    leader.frozen = False
    fleet.settle()

    worker.send(wire.WORK_COMPLETE, handle, b"result")
    fleet.pass_time(leader.part.settings.park_seconds + 1)
    fleet.etcd.up = True
    fleet.settle()

    assert not any(handle in host.node.ledger.tables[slot].jobs for host in fleet.living())


def test_a_job_whose_worker_was_waited_for_twice_is_run_again_and_has_not_failed() -> None:
    """Given a job that waits for its worker since a takeover, and since its slot was nearly handed over; when
    its primary stands still until both times are over."""
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    assert grabs(worker_at(leader)) == handle
    fleet.settle()
    leader.crash()
    fleet.etcd.delete(leader.name)
    fleet.settle()
    assert fleet.etcd.view.map is not None
    heir = fleet.hosts[fleet.etcd.view.map.slots[slot].primary]
    fleet.pass_time(0.5)
    heir.turn(lambda: heir.part.pause([slot]))
    heir.turn(lambda: heir.part._resume([slot]))

    fleet.pass_time(10, step=10)

    assert len(heir.node.context.limits.heap) == 0
    assert grabs(worker_at(heir)) == handle
