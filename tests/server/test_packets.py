"""Every packet of the protocol, as a transcript with a real node. The order is that of PROTOCOL's numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cluster.wire import PACKETS, request, response
from cluster.wire import packets as wire
from cluster.wire.packets import HANDLE_BYTES_MAX
from tests.support import Node, Peer, eventually

Connect = Callable[..., Peer]


def workers_of(node: Node, function: bytes) -> int:
    return (node.status(function) or (0, 0, 0))[2]


# ---- abilities: 1 CAN_DO, 2 CANT_DO, 3 RESET_ABILITIES, 22 SET_CLIENT_ID, 24 ALL_YOURS


def test_can_do_registers_once_however_often_it_is_said(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    worker = connect()
    worker.send(wire.CAN_DO, function)
    worker.send(wire.CAN_DO, function)
    worker.send(wire.CAN_DO_TIMEOUT, function, b"5000")
    worker.settle()
    assert workers_of(shared_node, function) == 1


def test_cant_do_stops_new_jobs_of_that_function(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    # Given a worker of two functions, with a job waiting in each
    client, worker = connect(), connect()
    other = function + b"-other"
    worker.can_do(function, other)
    client.submit(function, b"1", background=True)
    client.submit(other, b"2", background=True)
    # When it gives one up
    worker.send(wire.CANT_DO, function)
    # Then it gets jobs of the other only
    assert worker.grab_one().function == other
    assert worker.grab() is None
    assert workers_of(shared_node, function) == 0


def test_cant_do_leaves_the_running_job_to_its_worker(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function)
    assert worker.grab_one().handle == handle
    worker.send(wire.CANT_DO, function)
    worker.complete(handle, b"done")
    client.expect(wire.WORK_COMPLETE, handle, b"done")
    worker.settle()


def test_reset_abilities_gives_up_all(shared_node: Node, connect: Connect, function: bytes) -> None:
    worker = connect()
    worker.can_do(function, function + b"-other")
    connect().submit(function, background=True)
    worker.send(wire.RESET_ABILITIES)
    assert worker.grab() is None
    assert shared_node.status(function) == (1, 0, 0)


def test_set_client_id_is_listed_and_cut_at_127_bytes(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    worker = connect()
    worker.can_do(function)
    name = function.decode()
    for given, listed in (("a-name", "a-name"), ("n" * 200, "n" * 127)):
        worker.send(wire.SET_CLIENT_ID, given.encode())
        worker.settle()
        [row] = [row for row in shared_node.table("workers") if row.endswith(f" : {name}")]
        assert row.split()[2] == listed


def test_all_yours_is_accepted_in_silence(connect: Connect) -> None:
    worker = connect()
    worker.send(wire.ALL_YOURS)
    worker.settle()


# ---- 4 PRE_SLEEP, 6 NOOP


def test_pre_sleep_is_answered_at_once_when_a_job_waits(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    client.submit(function, background=True)
    worker.send(wire.PRE_SLEEP)
    worker.expect(wire.NOOP)


def test_a_sleeping_worker_is_woken_once_until_it_grabs(connect: Connect, function: bytes) -> None:
    # Given a worker that sleeps
    client, worker = connect(), connect()
    worker.can_do(function)
    worker.sleep()
    # When three jobs come
    for _ in range(3):
        client.submit(function, background=True)
    # Then one NOOP comes
    worker.expect(wire.NOOP)
    worker.settle()
    # And PRE_SLEEP without a grab between brings the next: jobs still wait (a worker of several servers
    # does that when another one has given it a job meanwhile)
    worker.send(wire.PRE_SLEEP)
    worker.expect(wire.NOOP)
    worker.settle()
    # When it has grabbed and sleeps again with jobs left, then the next NOOP comes
    worker.grab_one()
    worker.send(wire.PRE_SLEEP)
    worker.expect(wire.NOOP)


def test_a_job_wakes_only_workers_that_can_do_it(connect: Connect, function: bytes) -> None:
    able, unable, client = connect(), connect(), connect()
    able.can_do(function)
    unable.can_do(function + b"-other")
    able.sleep()
    unable.sleep()
    client.submit(function)
    able.expect(wire.NOOP)
    unable.settle()


def test_a_worker_that_does_not_sleep_is_not_woken(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    client.submit(function)
    worker.settle()


# ---- 7, 21, 33 SUBMIT_JOB; 8 JOB_CREATED; 9 GRAB_JOB; 10 NO_JOB; 11 JOB_ASSIGN; 13 WORK_COMPLETE


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_a_foreground_job_from_submit_to_result(connect: Connect, function: bytes, priority: str) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    assert worker.ask(wire.GRAB_JOB) == (wire.NO_JOB, ())
    handle = client.submit(function, b"pay\0load", b"unique", priority=priority)
    worker.send(wire.GRAB_JOB)
    worker.expect(wire.JOB_ASSIGN, handle, function, b"pay\0load")
    worker.send(wire.WORK_COMPLETE, handle, b"re\0sult")
    client.expect(wire.WORK_COMPLETE, handle, b"re\0sult")


def test_handles_are_short_unique_and_begin_with_the_prefix(connect: Connect, function: bytes) -> None:
    client = connect()
    handles = [client.submit(function, background=number % 2 == 0) for number in range(100)]
    assert len(set(handles)) == 100
    for handle in handles:
        assert handle.startswith(b"H:")
        assert len(handle) <= HANDLE_BYTES_MAX


def test_answers_keep_the_order_of_the_requests(connect: Connect, function: bytes) -> None:
    # Given requests of all kinds in one write, some of which must wait for the disk
    client = connect()
    client.send_bytes(
        request(wire.ECHO_REQ, b"1")
        + request(wire.SUBMIT_JOB_BG, function, b"", b"")
        + request(wire.ECHO_REQ, b"2")
        + b"version\n"
        + request(wire.SUBMIT_JOB, function, b"", b"")
        + request(wire.GET_STATUS, b"H:nothing")
        + request(wire.SUBMIT_JOB_BG, function, b"", b"")
        + request(5)
        + request(wire.ECHO_REQ, b"3")
    )
    # Then the answers come in that order
    client.expect(wire.ECHO_RES, b"1")
    client.expect(wire.JOB_CREATED)
    client.expect(wire.ECHO_RES, b"2")
    assert client.receive().arguments[0].startswith(b"OK ")
    client.expect(wire.JOB_CREATED)
    client.expect(wire.STATUS_RES)
    client.expect(wire.JOB_CREATED)
    client.expect_error(wire.INVALID_COMMAND)
    client.expect(wire.ECHO_RES, b"3")


# ---- 12 WORK_STATUS, 28 WORK_DATA, 29 WORK_WARNING, 14 WORK_FAIL; 15/20 GET_STATUS


def test_progress_data_and_warnings_reach_all_clients_in_order(connect: Connect, function: bytes) -> None:
    # Given two clients of one job
    clients = [connect(), connect()]
    worker = connect()
    worker.can_do(function)
    handles = {client.submit(function, unique=b"shared") for client in clients}
    assert len(handles) == 1
    [handle] = handles
    assert worker.grab_one().handle == handle
    # When the worker speaks
    worker.send(wire.WORK_DATA, handle, b"part \0 1")
    worker.send(wire.WORK_STATUS, handle, b"1", b"2")
    worker.send(wire.WORK_WARNING, handle, b"careful")
    worker.send(wire.WORK_DATA, handle, b"")
    worker.send(wire.WORK_COMPLETE, handle, b"all")
    # Then both hear all of it in that order, once
    for client in clients:
        client.expect(wire.WORK_DATA, handle, b"part \0 1")
        client.expect(wire.WORK_STATUS, handle, b"1", b"2")
        client.expect(wire.WORK_WARNING, handle, b"careful")
        client.expect(wire.WORK_DATA, handle, b"")
        client.expect(wire.WORK_COMPLETE, handle, b"all")
        client.settle()


def test_work_fail_ends_the_job_and_it_is_not_run_again(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function)
    client.submit(function, background=True)
    worker.send(wire.WORK_FAIL, worker.grab_one().handle)
    client.expect(wire.WORK_FAIL, handle)
    worker.send(wire.WORK_FAIL, worker.grab_one().handle)
    assert worker.grab() is None
    assert shared_node.status(function) == (0, 0, 1)


def test_get_status_follows_a_job_through_its_life(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    handle = client.submit(function, background=True)
    # Queued
    client.send(wire.GET_STATUS, handle)
    client.expect(wire.STATUS_RES, handle, b"1", b"0", b"0", b"0")
    # Running, with progress
    worker.can_do(function)
    worker.grab_one()
    worker.send(wire.WORK_STATUS, handle, b"7", b"10")
    worker.settle()
    client.send(wire.GET_STATUS, handle)
    client.expect(wire.STATUS_RES, handle, b"1", b"1", b"7", b"10")
    # Done
    worker.complete(handle)
    worker.settle()
    client.send(wire.GET_STATUS, handle)
    client.expect(wire.STATUS_RES, handle, b"0", b"0", b"0", b"0")


def test_get_status_of_what_never_was(connect: Connect) -> None:
    client = connect()
    for handle in (b"H:never:1", b"", b"no handle", b"H:x:ffffffff.1.1"):
        client.send(wire.GET_STATUS, handle)
        client.expect(wire.STATUS_RES, handle, b"0", b"0", b"0", b"0")


# ---- 16/17 ECHO, 26/27 OPTION


def test_echo_comes_back_byte_for_byte(connect: Connect) -> None:
    client = connect()
    for payload in (b"", b"\0\0", bytes(range(256)) * 1000):
        client.send(wire.ECHO_REQ, payload)
        client.expect(wire.ECHO_RES, payload)


def test_the_option_exceptions_is_accepted_in_any_case(connect: Connect) -> None:
    client = connect()
    client.send(wire.OPTION_REQ, b"exceptions")
    client.expect(wire.OPTION_RES, b"exceptions")
    client.send(wire.OPTION_REQ, b"Exceptions")
    client.expect(wire.OPTION_RES)


def test_any_other_option_is_an_error(connect: Connect) -> None:
    client = connect()
    client.send(wire.OPTION_REQ, b"wishes")
    client.expect_error(wire.UNKNOWN_OPTION)
    client.settle()


# ---- 18, 32, 34 SUBMIT_JOB_BG


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_a_background_job_is_nobody_s_but_the_worker_s(
    shared_node: Node, connect: Connect, function: bytes, priority: str
) -> None:
    # Given a background job whose client has gone
    client = shared_node.connect()
    handle = client.submit(function, b"payload", b"unique", background=True, priority=priority)
    client.close()
    # When a worker comes, then it gets the job as it was submitted
    worker = connect()
    worker.can_do(function)
    assert worker.grab_one() == (handle, function, b"unique", b"payload")
    worker.complete(handle, b"nobody reads this")
    worker.settle()
    assert shared_node.status(function) == (0, 0, 1)


# ---- 23 CAN_DO_TIMEOUT


def test_a_job_that_exceeds_its_worker_s_limit_has_failed(
    shared_node: Node, connect: Connect, function: bytes
) -> None:
    # Given a worker that promised an answer within a second (the least that there is)
    client, worker = connect(), connect()
    worker.send(wire.CAN_DO_TIMEOUT, function, b"1000")
    handle = client.submit(function)
    worker.settle()
    began = time.monotonic()
    assert worker.grab_one().handle == handle
    # When it does not answer, then the client is told that the job has failed
    client.expect(wire.WORK_FAIL, handle)
    assert 0.9 <= time.monotonic() - began <= 5
    # And the job is not run again: it would time out for ever
    assert shared_node.status(function) == (0, 0, 1)
    assert worker.grab() is None
    # And a late result is nothing to anybody, once
    worker.complete(handle, b"late")
    worker.settle()
    worker.complete(handle, b"later still")
    worker.expect_error(wire.JOB_NOT_FOUND)
    client.settle()


def test_an_answer_within_the_limit_is_an_answer(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.send(wire.CAN_DO_TIMEOUT, function, b"1000")
    handle = client.submit(function)
    worker.grab_one()
    worker.complete(handle, b"in time")
    client.expect(wire.WORK_COMPLETE, handle, b"in time")


@pytest.mark.parametrize("limit", [b"0", b"-1"])
def test_a_limit_of_zero_or_less_is_none(connect: Connect, function: bytes, limit: bytes) -> None:
    worker, timed = connect(), connect()
    worker.send(wire.CAN_DO_TIMEOUT, function, limit)
    timed.send(wire.CAN_DO_TIMEOUT, function + b"-timed", b"1000")
    client = connect()
    untimed_handle = client.submit(function)
    worker.grab_one()
    # When a limit of one second, begun later, has passed
    timed_handle = client.submit(function + b"-timed")
    timed.grab_one()
    client.expect(wire.WORK_FAIL, timed_handle)
    # Then the job without a limit still runs
    worker.complete(untimed_handle, b"done")
    client.expect(wire.WORK_COMPLETE, untimed_handle, b"done")


# ---- 25 WORK_EXCEPTION


def test_an_exception_is_one_end_whoever_listens(connect: Connect, function: bytes) -> None:
    # Given a client that asked for exceptions and one that did not, with the same job
    asking, other, worker = connect(), connect(), connect()
    asking.ask(wire.OPTION_REQ, b"exceptions")
    worker.can_do(function)
    handle = asking.submit(function, unique=b"shared")
    assert other.submit(function, unique=b"shared") == handle
    worker.grab_one()
    # When the worker sends an exception and then, as Perl's does, a failure
    worker.send(wire.WORK_EXCEPTION, handle, b"why \0 not")
    worker.send(wire.WORK_FAIL, handle)
    # Then each client hears one end
    asking.expect(wire.WORK_EXCEPTION, handle, b"why \0 not")
    asking.settle()
    other.expect(wire.WORK_FAIL, handle)
    other.settle()
    # And the worker hears no error
    worker.settle()
    # But a second failure is one
    worker.send(wire.WORK_FAIL, handle)
    worker.expect_error(wire.JOB_NOT_FOUND)


# ---- 30/31 GRAB_JOB_UNIQ


def test_grab_job_uniq_brings_the_unique(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function, b"payload", b"unique")
    worker.send(wire.GRAB_JOB_UNIQ)
    worker.expect(wire.JOB_ASSIGN_UNIQ, handle, function, b"unique", b"payload")
    assert worker.ask(wire.GRAB_JOB_UNIQ) == (wire.NO_JOB, ())


# ---- 37, 38 SUBMIT_REDUCE_JOB; 39/40 GRAB_JOB_ALL


@pytest.mark.parametrize(
    "packet_type", [wire.SUBMIT_REDUCE_JOB, wire.SUBMIT_REDUCE_JOB_BACKGROUND], ids=["reduce", "reduce-bg"]
)
def test_a_reduce_job_carries_its_reducer(connect: Connect, function: bytes, packet_type: int) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    # libgearman sends a fourth argument, `aggregate`, that PROTOCOL leaves out
    client.send(packet_type, function, b"unique", b"reducer", b"", b"pay\0load")
    handle = client.expect(wire.JOB_CREATED)
    worker.send(wire.GRAB_JOB_ALL)
    worker.expect(wire.JOB_ASSIGN_ALL, handle, function, b"unique", b"reducer", b"pay\0load")


def test_a_reduce_job_is_any_job_to_a_worker_that_knows_no_reducers(
    connect: Connect, function: bytes
) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    client.send(wire.SUBMIT_REDUCE_JOB, function, b"unique", b"reducer", b"", b"payload")
    handle = client.expect(wire.JOB_CREATED)
    assert worker.grab_one() == (handle, function, b"unique", b"payload")
    worker.complete(handle, b"done")
    client.expect(wire.WORK_COMPLETE, handle, b"done")


def test_grab_job_all_of_a_job_without_reducer_is_as_grab_job_uniq(connect: Connect, function: bytes) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function, b"payload", b"unique")
    worker.send(wire.GRAB_JOB_ALL)
    worker.expect(wire.JOB_ASSIGN_UNIQ, handle, function, b"unique", b"payload")
    assert worker.ask(wire.GRAB_JOB_ALL) == (wire.NO_JOB, ())


# ---- 41/42 GET_STATUS_UNIQUE


def test_get_status_unique_tells_how_many_wait(connect: Connect, function: bytes) -> None:
    unique = b"unique-of-" + function
    asking, worker = connect(), connect()
    asking.send(wire.GET_STATUS_UNIQUE, unique)
    asking.expect(wire.STATUS_RES_UNIQUE, unique, b"0", b"0", b"0", b"0", b"0")
    clients = [connect(), connect()]
    for client in clients:
        handle = client.submit(function, unique=unique)
    worker.can_do(function)
    worker.grab_one()
    worker.send(wire.WORK_STATUS, handle, b"1", b"4")
    worker.settle()
    asking.send(wire.GET_STATUS_UNIQUE, unique)
    asking.expect(wire.STATUS_RES_UNIQUE, unique, b"1", b"1", b"1", b"4", b"2")


def test_get_status_unique_prefers_the_running_one_of_several_functions(
    connect: Connect, function: bytes
) -> None:
    # Given one unique in three functions, and a worker at the second
    unique = b"unique-of-" + function
    names = [function + end for end in (b"-a", b"-b", b"-c")]
    client, worker = connect(), connect()
    handles = [client.submit(name, unique=unique, background=True) for name in names]
    assert len(set(handles)) == 3
    worker.can_do(names[1])
    worker.grab_one()
    worker.send(wire.WORK_STATUS, handles[1], b"2", b"3")
    worker.settle()
    # Then that is the one that is told
    client.send(wire.GET_STATUS_UNIQUE, unique)
    client.expect(wire.STATUS_RES_UNIQUE, unique, b"1", b"1", b"2", b"3", b"0")


# ---- 5 unused, 19 ERROR and all others that only a server sends


SERVER_ONLY = sorted(number for number, spec in PACKETS.items() if not (spec.from_client or spec.from_worker))


@pytest.mark.parametrize("packet_type", [5, 43, 1000, 0xFFFFFFFF, *SERVER_ONLY])
def test_a_type_that_no_client_sends_is_an_error_and_the_connection_goes_on(
    connect: Connect, packet_type: int
) -> None:
    peer = connect()
    peer.send(packet_type, b"a", b"b", b"c", b"d", b"e", b"f")
    peer.expect_error(wire.INVALID_COMMAND)
    peer.settle()


@pytest.mark.parametrize("packet_type", sorted(PACKETS))
def test_a_packet_with_the_server_s_magic_is_an_error_and_the_connection_goes_on(
    connect: Connect, packet_type: int
) -> None:
    peer = connect()
    peer.send_bytes(response(packet_type, b"x"))
    peer.expect_error(wire.INVALID_MAGIC)
    peer.settle()


def test_every_type_that_a_client_or_worker_sends_is_understood(connect: Connect, function: bytes) -> None:
    # Given every such type with arguments that make sense
    arguments = {
        wire.SUBMIT_JOB_SCHED: [function, b"", b"0", b"0", b"1", b"1", b"*", b"payload"],
        wire.SUBMIT_JOB_EPOCH: [function, b"", b"0", b"payload"],
        wire.CAN_DO_TIMEOUT: [function, b"60000"],
        wire.OPTION_REQ: [b"exceptions"],
        wire.WORK_STATUS: [b"H:x", b"1", b"2"],
    }
    for packet_type, spec in sorted(PACKETS.items()):
        if not (spec.from_client or spec.from_worker):
            continue
        peer = connect()
        peer.send(packet_type, *arguments.get(packet_type, [function] * spec.arguments))
        peer.send(wire.ECHO_REQ, b"end")
        # Then none is refused as unknown or as badly made
        packet = peer.receive()
        while packet != (wire.ECHO_RES, (b"end",)):
            if packet.type == wire.ERROR:
                assert packet.arguments[0] == wire.JOB_NOT_FOUND, f"{spec.name}: {packet!r}"
            packet = peer.receive()
        peer.close()


def test_a_worker_may_speak_before_it_says_what_it_can_do(connect: Connect) -> None:
    worker = connect()
    assert worker.ask(wire.GRAB_JOB).type == wire.NO_JOB
    worker.sleep()


def test_a_client_may_be_its_own_worker(connect: Connect, function: bytes) -> None:
    # One connection in both roles
    both = connect()
    both.can_do(function)
    handle = both.submit(function, b"payload")
    assert both.grab_one().handle == handle
    both.complete(handle, b"result")
    both.expect(wire.WORK_COMPLETE, handle, b"result")


def test_a_closed_connection_leaves_no_trace(shared_node: Node, connect: Connect, function: bytes) -> None:
    worker = connect()
    worker.can_do(function)
    assert workers_of(shared_node, function) == 1
    worker.close()
    eventually(lambda: shared_node.status(function), (0, 0, 0))
