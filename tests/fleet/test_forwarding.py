"""Stock clients may talk to any node: it passes on what belongs elsewhere, and they do not notice."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from client_ha import HAClient, HAWorker, JobContext
from cluster.wire import packets as wire
from cluster.wire import request
from tests.fleet.support import extended, key_led_by, slot_of, slot_of_handle, work_off
from tests.support import Fleet, Peer


@pytest.fixture
def peers(fleet: Fleet) -> Iterator[dict[str, Peer]]:
    """A connection to each node."""
    opened = {name: fleet.connect(name) for name in fleet.nodes}
    yield opened
    for peer in opened.values():
        peer.close()


def test_a_background_job_may_be_submitted_anywhere_and_is_done_once(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    uniques = []
    for name, peer in peers.items():
        for leader in fleet.nodes:
            unique = key_led_by(fleet, leader, function)
            uniques.append(unique)
            handle = peer.submit(function, b"x", unique, background=True)
            # The handle names the slot, and its primary has named it, whoever was asked.
            assert slot_of_handle(handle) == slot_of(function, unique)
            assert handle.split(b":")[1] == leader.encode(), f"asked {name}"
    assert [node.status(function) for node in fleet.nodes.values()] == [(3, 0, 0)] * 3
    assert work_off(fleet, function, uniques) == dict.fromkeys(uniques, 1)


def test_what_another_node_has_to_answer_is_answered_after_the_end_of_input(
    fleet: Fleet, function: bytes
) -> None:
    # Given a client of one node that asks for what two others have to answer, and sends no more
    uniques = [key_led_by(fleet, leader, function) for leader in ("b", "c")]
    with fleet.connect("a") as peer:
        for unique in uniques:
            peer.send(wire.SUBMIT_JOB_BG, function, unique, b"")
        peer.send(wire.GET_STATUS_UNIQUE, b"nobody's")
        peer.socket.shutdown(socket.SHUT_WR)
        # Then it is answered in order, then closed
        for leader in (b"b", b"c"):
            assert peer.expect(wire.JOB_CREATED).split(b":")[1] == leader
        peer.expect(wire.STATUS_RES_UNIQUE, b"nobody's", b"0")
        assert peer.expect_closed() == []
    assert work_off(fleet, function, uniques) == dict.fromkeys(uniques, 1)


def test_foreground_does_not_overtake_background_among_the_jobs_of_one_node(
    fleet: Fleet, function: bytes
) -> None:
    # Given four jobs of one client for slots that its node leads, in one write
    with fleet.connect("a") as client, fleet.connect("a") as worker:
        jobs = [
            request(packet_type, function, b"", b"%d" % number)
            for number, packet_type in enumerate((wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB) * 2)
        ]
        worker.can_do(function)
        client.send_bytes(b"".join(jobs))
        # Then they are given out in that order, though two of them wait for the disks of the fleet
        payloads = []
        for _ in jobs:
            job = worker.wait_for_job()
            payloads.append(job.payload)
            worker.complete(job.handle)
        assert payloads == [b"0", b"1", b"2", b"3"]


def test_a_foreground_job_is_relayed_with_all_that_is_said_of_it(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "b", function)
    with fleet.connect("b") as worker:
        worker.can_do(function)
        peers["a"].send(wire.SUBMIT_JOB, function, unique, b"question")
        handle = peers["a"].expect(wire.JOB_CREATED)
        job = worker.wait_for_job()
        assert (job.unique, job.payload) == (unique, b"question")
        worker.send(wire.WORK_STATUS, job.handle, b"1", b"2")
        peers["a"].expect(wire.WORK_STATUS, handle, b"1", b"2")
        worker.send(wire.WORK_DATA, job.handle, b"piece")
        peers["a"].expect(wire.WORK_DATA, handle, b"piece")
        worker.complete(job.handle, b"answer")
        peers["a"].expect(wire.WORK_COMPLETE, handle, b"answer")


def test_the_status_of_a_job_is_known_everywhere(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "c", function)
    handle = peers["a"].submit(function, b"x", unique, background=True)
    with fleet.connect("c") as worker:
        for peer in peers.values():
            peer.send(wire.GET_STATUS, handle)
            peer.expect(wire.STATUS_RES, handle, b"1", b"0", b"0", b"0")
        worker.can_do(function)
        job = worker.grab_one()
        worker.send(wire.WORK_STATUS, job.handle, b"3", b"4")
        worker.settle()
        for peer in peers.values():
            peer.send(wire.GET_STATUS, handle)
            peer.expect(wire.STATUS_RES, handle, b"1", b"1", b"3", b"4")
        worker.complete(job.handle)
        worker.settle()
        for peer in peers.values():
            peer.send(wire.GET_STATUS, handle)
            peer.expect(wire.STATUS_RES, handle, b"0", b"0", b"0", b"0")


def test_the_status_by_unique_key_is_known_everywhere(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "c", function)
    peers["a"].send(wire.SUBMIT_JOB, function, unique, b"x")
    peers["a"].expect(wire.JOB_CREATED)
    for peer in peers.values():
        peer.send(wire.GET_STATUS_UNIQUE, unique)
        known = peer.expect(wire.STATUS_RES_UNIQUE, unique)
        if peer is not peers["a"]:
            assert known[1:] == (b"1", b"0", b"0", b"0", b"1")
    work_off(fleet, function, {unique})


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_a_job_is_cancelled_by_its_handle_at_any_node(
    fleet: Fleet, peers: dict[str, Peer], function: bytes, asked: str
) -> None:
    unique = key_led_by(fleet, "b", function)
    handle = peers["a"].submit(function, b"x", unique, background=True)
    assert peers[asked].line(f"cancel job {handle.decode()}") == "OK"
    assert peers[asked].line(f"cancel job {handle.decode()}").startswith("ERR ")
    assert fleet.nodes["b"].status(function) in (None, (0, 0, 0))


def test_submits_of_one_key_are_one_job_whoever_takes_them(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "b", function)
    handles = {peer.submit(function, b"x", unique, background=True) for peer in peers.values()}
    assert len(handles) == 1
    assert work_off(fleet, function, {unique}) == {unique: 1}


def test_foreground_submits_of_one_key_are_one_job_and_all_are_answered(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "b", function)
    handles = {}
    for name, peer in peers.items():
        peer.send(wire.SUBMIT_JOB, function, unique, b"x")
        handles[name] = peer.expect(wire.JOB_CREATED)
    with fleet.connect("b") as worker:
        worker.can_do(function)
        job = worker.wait_for_job()
        worker.complete(job.handle, b"for all")
        assert worker.grab() is None
    for name, peer in peers.items():
        peer.expect(wire.WORK_COMPLETE, handles[name], b"for all")


def test_a_foreground_submit_joins_a_background_job_elsewhere(
    fleet: Fleet, peers: dict[str, Peer], function: bytes
) -> None:
    unique = key_led_by(fleet, "c", function)
    peers["a"].submit(function, b"x", unique, background=True)
    peers["b"].send(wire.SUBMIT_JOB, function, unique, b"x")
    handle = peers["b"].expect(wire.JOB_CREATED)
    with fleet.connect("c") as worker:
        worker.can_do(function)
        worker.complete(worker.grab_one().handle, b"result")
        assert worker.grab() is None
    peers["b"].expect(wire.WORK_COMPLETE, handle, b"result")


def test_text_commands_speak_for_the_node(fleet: Fleet, peers: dict[str, Peer], function: bytes) -> None:
    name = function.decode()
    unique = key_led_by(fleet, "b", function)
    peers["a"].submit(function, b"x", unique, background=True)
    with fleet.connect("c") as worker:
        worker.can_do(function)
        assert fleet.nodes["b"].status(function) == (1, 0, 0)
        assert fleet.nodes["c"].status(function) == (0, 0, 1)
        assert fleet.nodes["a"].status(function) is None
        listed = {
            node: any(line.endswith(f" : {name}") for line in fleet.nodes[node].table("workers"))
            for node in fleet.nodes
        }
        assert listed == {"a": False, "b": False, "c": True}
    work_off(fleet, function, {unique})


def test_a_repeat_of_a_fleet_aware_client_is_not_run_again_whichever_node_it_asks(
    fleet: Fleet, function: bytes
) -> None:
    unique = key_led_by(fleet, "b", function)
    with extended(fleet.nodes["a"]) as first, extended(fleet.nodes["c"]) as second:
        handle = first.submit(function, b"x", unique, background=True)
        assert work_off(fleet, function, {unique}) == {unique: 1}
        assert second.submit(function, b"x", unique, background=True) == handle
        assert first.submit(function, b"x", unique, background=True) == handle
        assert fleet.nodes["b"].status(function) in (None, (0, 0, 0))
        # A stock client's key is free again when its job has finished, as Gearman has it.
        with fleet.connect("a") as stock:
            assert stock.submit(function, b"x", unique, background=True) != handle
        assert work_off(fleet, function, {unique}) == {unique: 1}


def test_a_client_of_the_library_knows_all_nodes_from_one(fleet: Fleet, function: bytes) -> None:
    name = function.decode()
    worker = HAWorker(fleet.nodes["a"].address)

    @worker.task(name)
    def run(job: JobContext) -> bytes:
        return job.payload.upper()

    with HAClient(fleet.nodes["a"].address) as client, worker:
        worker.wait_connected(3)
        jobs = [client.submit(name, f"text-{number}") for number in range(30)]
        assert [job.result(10) for job in jobs] == [b"TEXT-%d" % number for number in range(30)]
        assert len(client.servers) == 3
