"""Jobs, workers and claims while their slots go from one node to another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.jobs import SCHEDULED
from cluster.node import forward
from cluster.node.context import slot_of_handle
from cluster.node.fleet import HAND_OVER_JOBS_MAX
from cluster.replication import slot_of
from cluster.replication.replicator import FRAME_ENTRIES_BYTES_MAX
from cluster.wire import Decoder
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
    other.part.forwarder.claims_again[slot_of_handle(handle) or 0] = 0.0
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
    job = leader.node.context.find_handle(handle)
    assert job is not None
    assert (job.state, job.retries) == (SCHEDULED, 2)  # it was lost once, and was over its limit once


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


def parked_at_the_heir(fleet: SmallFleet, leader: Host, slot: int) -> Host:
    """`leader` drains: who leads the slot next and does not serve it yet, and has something parked for it."""
    fleet.etcd.put(replace(leader.member, draining=True))
    for _ in range(2000):
        fleet.connect_all()
        fleet.look()
        fleet.send_frames()
        fleet.deliver(1)
        for host in fleet.living():
            if host is not leader and slot in host.part.forwarder.parked:
                assert not host.node.log.slots[slot].serving
                return host
        for host in fleet.living():
            host.write()
            if host.part.busy:
                host.turn(lambda: None)
    raise AssertionError("nothing was parked")


def led_and_not_served(fleet: SmallFleet, leader: Host, slot: int) -> tuple[Host, Host]:
    """`leader` drains: who leads the slot next, and does not serve it yet; and the third, who knows it."""
    fleet.etcd.put(replace(leader.member, draining=True))
    for _ in range(2000):
        fleet.connect_all()
        fleet.look()
        fleet.send_frames()
        fleet.deliver(1)
        for host in fleet.living():
            if host is not leader and host.part.leads(slot) and not host.node.log.slots[slot].serving:
                fleet.look()
                return host, next(each for each in fleet.living() if each not in (leader, host))
        for host in fleet.living():
            host.write()
            if host.part.busy:
                host.turn(lambda: None)
    raise AssertionError("it was served at once")


def state_of(host: Host, handle: bytes) -> int | None:
    job = host.node.context.find_handle(handle)
    return None if job is None else job.state


def text(client: Client, line: bytes) -> None:
    """A line of the text protocol; what is answered comes as it is into `client.said`."""
    client.host.turn(lambda: client.host.node.receive(client.connection, Decoder().feed(line)))


class Telephone(Client):
    """A client of the text protocol."""

    def __init__(self, host: Host) -> None:
        connection = host.connect().connection
        super().__init__(host, connection)
        connection.transport = self
        self.said = b""
        self.decoder = self  # type: ignore[assignment]

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self.said += data
        return []


def test_a_worker_that_leaves_before_its_claim_is_granted_has_its_job_run_by_another() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    heir = parked_at_the_heir(fleet, leader, slot)
    leader.turn(lambda: leader.node.disconnected(worker.connection))  # it tells the heir: behind the claim
    fleet.settle()
    fleet.pass_time(3)
    assert grabs(worker_at(heir)) == handle


def test_a_worker_that_leaves_before_its_claim_is_granted_may_bring_the_result_elsewhere() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    heir = parked_at_the_heir(fleet, leader, slot)
    leader.turn(lambda: leader.node.disconnected(worker.connection))
    again = worker_at(heir)
    again.send(wire.WORK_COMPLETE, handle, b"result")
    fleet.settle()
    fleet.pass_time(3)
    assert state_of(heir, handle) is None
    assert again.take() == []


def test_a_claim_that_is_granted_too_late_is_given_back() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    heir = parked_at_the_heir(fleet, leader, slot)
    del leader.part.forwarder.guests[handle]  # as when what it said of its worker is on its way
    fleet.settle()
    fleet.pass_time(3)
    assert grabs(worker_at(heir)) == handle


@pytest.mark.parametrize("gone", [False, True])
def test_a_job_whose_result_found_no_room_runs_again(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    with monkeypatch.context() as full:
        full.setattr(forward, "PARKED_REQUESTS_MAX", 0)
        leader.turn(lambda: leader.part.pause([slot]))
        worker.send(wire.WORK_COMPLETE, handle, b"result")
    if gone:
        fleet.etcd.put(replace(leader.member, draining=True))
        fleet.settle()
    fleet.pass_time(10)
    primary = fleet.host_of(b"f", small_uniques(b"f")[0])
    assert (primary is leader) != gone
    assert grabs(worker_at(primary)) == handle


def test_a_result_that_comes_back_arrives_when_its_node_knows_that_it_leads_the_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    worker = worker_at(leader)
    assert grabs(worker) == handle
    fleet.settle()
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    heir = fleet.host_of(b"f", small_uniques(b"f")[0])
    assert handle in leader.part.forwarder.guests
    fleet.etcd.put(leader.member)  # the slot comes back, and the leader does not hear of it
    with monkeypatch.context() as deaf:
        deaf.setattr(leader.part, "see", lambda view: False)
        for _ in range(100):
            fleet.look()
            fleet.send_frames()
            fleet.deliver(16)
            for host in fleet.living():
                host.write()
                host.turn(lambda: None)
            fleet.now += 0.1
            if fleet.host_of(b"f", small_uniques(b"f")[0]) is leader:
                break
        assert heir.part.primary_names[slot] == leader.name
        assert leader.part.primary_names[slot] == heir.name
        worker.send(wire.WORK_COMPLETE, handle, b"result")
        for _ in range(5):
            fleet.send_frames()
            fleet.deliver(16)
    fleet.settle()
    fleet.pass_time(1)
    assert all(state_of(host, handle) is None for host in fleet.living())


def test_a_claim_for_another_node_does_not_hold_up_its_other_answers() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    other = next(host for host in fleet.living() if host is not leader)
    unique = next(
        unique
        for unique in small_uniques(b"f")
        if fleet.host_of(b"f", unique) is leader and slot_of(b"f\0" + unique) != slot
    )
    leader.part.settings = replace(leader.part.settings, pause_seconds=100.0)
    leader.turn(lambda: leader.part.pause([slot]))  # it leads the slot for long, and does not serve it
    other.part.forwarder.guests[handle] = worker_at(other).connection
    other.turn(lambda: other.part.forwarder.claim_guests({slot}))
    client = other.connect()
    client.send(wire.SUBMIT_JOB, b"f", unique, b"")
    fleet.pass_time(forward.NODE_PARK_SECONDS + 0.5)
    assert len(handles(client.take())) == 1


def test_claims_that_nobody_understands_are_repeated_ever_less_often() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    other = next(host for host in fleet.living() if host is not leader)
    guest = worker_at(other).connection
    for number in range(100):
        other.part.forwarder.guests[b"%b%x" % (handle, number)] = guest
    leader.turn(lambda: leader.part._step_down(slot))
    leader.part.see = lambda view: False  # type: ignore[method-assign]
    other.turn(lambda: other.part.forwarder.claim_guests({slot}))
    before = other.part.forwarder.forwarded
    fleet.pass_time(5, step=0.05)
    assert 5 <= (other.part.forwarder.forwarded - before) / 100 <= 9


def test_the_state_of_a_job_that_moves_is_told_by_who_serves_it_next() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    _, third = led_and_not_served(fleet, leader, slot)
    client = third.connect()
    client.send(wire.GET_STATUS, handle)
    fleet.settle()
    assert client.take() == [(wire.STATUS_RES, handle + b"\x001\x000\x000\x000")]


def test_a_job_that_moves_is_cancelled_by_who_serves_it_next() -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, slot = job_at(fleet)
    heir, third = led_and_not_served(fleet, leader, slot)
    operator = Telephone(third)
    text(operator, b"cancel job %b\n" % handle)
    fleet.settle()
    assert operator.said == b"OK\r\n"
    assert state_of(heir, handle) is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cancel_that_was_not_committed_is_asked_of_the_next_primary(elsewhere: bool) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, _ = job_at(fleet)
    asked, third = (host for host in fleet.living() if host is not leader)
    operator = Telephone(asked if elsewhere else leader)
    for host in (asked, third):
        if not (elsewhere and host is asked):
            fleet.blocked.add(frozenset((leader.name, host.name)))
            fleet.cut(leader.name, host.name)
    text(operator, b"cancel job %b\n" % handle)
    for _ in range(3):
        fleet.send_frames()
        fleet.deliver(16)
        leader.write()
    leader.frozen = True
    fleet.etcd.delete(leader.name)
    fleet.settle()
    heir = fleet.host_of(b"f", small_uniques(b"f")[0])
    assert heir is not leader
    if not elsewhere:
        assert operator.said == b""
        assert state_of(heir, handle) is not None
    leader.frozen = False
    fleet.blocked.clear()
    fleet.settle()
    fleet.pass_time(1)
    assert operator.said == b"OK\r\n"
    assert all(state_of(host, handle) is None for host in fleet.living())


@pytest.mark.parametrize("keys", [(b"", b""), tuple(small_uniques(b"f")[:2])])
def test_foreground_jobs_do_not_begin_or_begin_again_at_a_node_that_drains(keys: tuple[bytes, bytes]) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader = fleet.living()[0]
    client, worker = leader.connect(), worker_at(leader)
    client.send(wire.SUBMIT_JOB, b"f", keys[0], b"before")
    fleet.settle()
    if not keys[0]:
        assert grabs(worker) is not None
    fleet.etcd.put(replace(leader.member, draining=True))
    fleet.settle()
    client.send(wire.SUBMIT_JOB, b"f", keys[1], b"after")
    fleet.settle()
    leader.turn(lambda: leader.node.disconnected(worker.connection))
    fleet.settle()
    assert leader.node.ledger.count() == 0
    told = handles(client.take())
    assert len(told) == 2
    for _ in told:
        host = next(host for host in fleet.living() if host.node.ledger.count())
        other = worker_at(host)
        given = grabs(other)
        assert given is not None
        other.send(wire.WORK_COMPLETE, given, b"r")
        fleet.settle()
    assert sorted(body for _, body in client.take()) == sorted(handle + b"\0r" for handle in told)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cancel_that_nobody_can_commit_is_not_called_done(elsewhere: bool) -> None:
    fleet = SmallFleet(3)
    fleet.start()
    leader, handle, _ = job_at(fleet)
    asked, third = (host for host in fleet.living() if host is not leader)
    operator = Telephone(asked if elsewhere else leader)
    third.frozen = True  # a member that does not answer: no commit
    text(operator, b"cancel job %b\n" % handle)
    while not operator.said and fleet.now < 1030:
        fleet.pass_time(0.5)
    assert operator.said.startswith(b"ERR NOT_SAFE the+in-sync+copies")
    assert operator.said.endswith(b"\r\n")
