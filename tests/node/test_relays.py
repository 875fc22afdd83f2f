"""Foreground jobs at another node: what a client hears is what it would hear there."""

from __future__ import annotations

from cluster.wire import packets as wire
from tests.node.fleets import SmallFleet, small_uniques


def test_a_client_that_submits_a_job_twice_is_answered_twice_also_from_another_node() -> None:
    fleet = SmallFleet(3).start()
    unique = small_uniques(b"f")[0]
    leader = fleet.host_of(b"f", unique)
    other = next(host for host in fleet.living() if host is not leader)
    client, worker = other.connect(), leader.connect()
    for _ in range(2):
        client.send(wire.SUBMIT_JOB, b"f", unique, b"payload")
    fleet.settle()
    (_, handle), (_, again) = client.take()
    assert handle == again
    worker.send(wire.CAN_DO, b"f")
    worker.send(wire.GRAB_JOB)
    worker.send(wire.WORK_COMPLETE, handle, b"result")
    fleet.settle()

    assert client.take() == [(wire.WORK_COMPLETE, handle + b"\0result")] * 2
