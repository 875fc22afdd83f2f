"""When an answer may leave, and when a job may run: not before its group is on the disk."""

from __future__ import annotations

import pytest

from cluster.replication import entries
from cluster.wire import packets as wire
from cluster.wire import request
from tests.node.bench import Bench


def kinds(bench: Bench) -> list[int]:
    return [entries.decode(record, 0)[0].kind for record in bench.records + bench.unwritten]


def test_a_background_job_is_acknowledged_when_its_group_is_on_disk_and_not_before() -> None:
    bench = Bench()
    client = bench.peer()
    client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"payload")
    output = bench.end_turn()
    assert output.group is not None
    assert len(output.group.records) == 1
    assert output.sends == []
    # Other turns come and go
    for _ in range(3):
        assert bench.end_turn().sends == []
    assert client.heard() == []
    bench.commit()
    bench.end_turn()
    ((kind, handle),) = client.heard()
    assert kind == wire.JOB_CREATED
    job = bench.job(handle)
    assert job is not None
    assert job.payload == b"payload"


def test_a_job_is_handed_out_only_when_its_group_is_on_disk() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    bench.settle()
    client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn()
    # Neither to who asks, nor by waking who sleeps
    worker.say(wire.GRAB_JOB)
    worker.say(wire.PRE_SLEEP)
    bench.end_turn()
    assert worker.heard() == [(wire.NO_JOB,)]
    bench.commit()
    bench.end_turn()
    assert worker.heard() == [(wire.NOOP,)]
    assert worker.ask(wire.GRAB_JOB)[0][0] == wire.JOB_ASSIGN


def test_all_of_a_turn_is_one_group_and_groups_leave_in_order() -> None:
    bench = Bench()
    clients = [bench.peer() for _ in range(3)]
    numbers = []
    for turn in range(2):
        for client in clients:
            client.say(wire.SUBMIT_JOB_BG, b"f", b"%d" % turn + client.connection.address.encode(), b"")
        output = bench.end_turn()
        assert output.group is not None
        assert len(output.group.records) == 3
        numbers.append(output.group.number)
    assert numbers[1] == numbers[0] + 1
    # One answer to the disk may cover several groups
    bench.node.committed(numbers[1])
    bench.end_turn()
    assert [len(client.heard()) for client in clients] == [2, 2, 2]


def test_while_the_disk_is_busy_turns_share_a_group() -> None:
    bench = Bench()
    clients = [bench.peer() for _ in range(3)]
    worker = bench.worker(b"f")
    for client in clients:
        client.say(wire.SUBMIT_JOB_BG, b"f", b"", b"")
        client.say(wire.ECHO_REQ, b"behind it")
        output = bench.end_turn(cut=False)
        assert output.group is None
        assert output.sends == []
    worker.say(wire.GRAB_JOB)
    output = bench.end_turn()
    assert output.group is not None
    assert len(output.group.records) == 3
    assert worker.heard() == [(wire.NO_JOB,)]
    bench.commit()
    bench.end_turn()
    for client in clients:
        assert [packet[0] for packet in client.heard()] == [wire.JOB_CREATED, wire.ECHO_RES]


def test_answers_keep_the_order_of_the_requests_while_one_waits() -> None:
    bench = Bench()
    client = bench.peer()
    client.say(wire.ECHO_REQ, b"1")
    client.say(wire.SUBMIT_JOB_BG, b"f", b"a", b"")
    client.say(wire.ECHO_REQ, b"2")
    bench.end_turn()
    client.say(wire.ECHO_REQ, b"3")
    client.say(wire.SUBMIT_JOB_BG, b"f", b"b", b"")
    bench.end_turn()
    client.say(wire.ECHO_REQ, b"4")
    bench.end_turn()
    assert client.heard() == []
    # The first group lets go of what stands before the second, in the order of the requests
    bench.commit()
    bench.end_turn()
    first = client.heard()
    assert [packet[0] for packet in first] == [wire.ECHO_RES, wire.JOB_CREATED, wire.ECHO_RES]
    bench.commit()
    bench.end_turn()
    answers = first + client.heard()
    assert [packet[0] for packet in answers] == [
        wire.ECHO_RES,
        wire.JOB_CREATED,
        wire.ECHO_RES,
        wire.ECHO_RES,
        wire.JOB_CREATED,
        wire.ECHO_RES,
    ]
    assert [packet[1] for packet in answers if packet[0] == wire.ECHO_RES] == [b"1", b"2", b"3", b"4"]


def test_who_waits_for_the_disk_holds_up_nobody_else() -> None:
    bench = Bench()
    waiting, other, worker = bench.peer(), bench.peer(), bench.worker(b"g")
    waiting.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    other.say(wire.SUBMIT_JOB, b"g", b"", b"foreground")
    bench.end_turn()
    ((_, handle),) = other.heard()
    worker.say(wire.GRAB_JOB)
    worker.say(wire.WORK_COMPLETE, handle, b"result")
    bench.end_turn()
    assert other.heard() == [(wire.WORK_COMPLETE, handle, b"result")]
    assert waiting.heard() == []


def test_a_submit_that_joins_a_job_on_its_way_to_the_disk_waits_for_a_group_of_its_own() -> None:
    bench = Bench()
    first, second = bench.peer(), bench.peer()
    first.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn()
    second.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    output = bench.end_turn()
    # The group is empty: nothing more need be written, but it counts
    assert output.group is not None
    assert output.group.records == []
    assert second.heard() == []
    bench.commit()
    bench.end_turn()
    assert second.heard() == []
    bench.commit()
    bench.end_turn()
    assert second.heard() == first.heard() != []


def test_a_foreground_job_waits_for_nothing() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    client.say(wire.SUBMIT_JOB, b"f", b"u", b"payload")
    assert bench.end_turn().group is None
    ((_, handle),) = client.heard()
    worker.say(wire.GRAB_JOB)
    assert bench.end_turn().group is None
    assert worker.heard() == [(wire.JOB_ASSIGN, handle, b"f", b"payload")]


def test_in_memory_nothing_waits_and_nothing_is_written() -> None:
    bench = Bench(durable=False)
    client, worker = bench.peer(), bench.worker(b"f")
    worker.say(wire.PRE_SLEEP)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"payload")
    output = bench.end_turn()
    assert output.group is None
    ((_, handle),) = client.heard()
    assert worker.heard() == [(wire.NOOP,)]
    worker.say(wire.GRAB_JOB)
    worker.say(wire.WORK_COMPLETE, handle, b"")
    client.say_bytes(b"status\n")
    assert bench.end_turn().group is None
    assert client.heard_bytes == b"f\t0\t0\t1\n.\n"


def test_a_background_submit_that_joins_a_foreground_job_makes_it_durable() -> None:
    # Given a foreground job
    bench = Bench()
    waiting, sender = bench.peer(), bench.peer()
    ((_, handle),) = waiting.ask(wire.SUBMIT_JOB_HIGH, b"f", b"u", b"first")
    assert entries.JOB not in kinds(bench)
    # When a background submit joins it, then its acknowledgement waits for the job's whole state
    sender.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"second")
    bench.end_turn()
    assert sender.heard() == []
    assert kinds(bench)[-1] == entries.JOB
    bench.settle()
    assert sender.heard() == [(wire.JOB_CREATED, handle)]
    # And it outlives its client and a kill
    waiting.leave()
    bench.settle()
    again = bench.killed()
    assert again.worker(b"f").ask(wire.GRAB_JOB_UNIQ) == [
        (wire.JOB_ASSIGN_UNIQ, handle, b"f", b"u", b"first")
    ]


@pytest.mark.parametrize("verb", [wire.WORK_COMPLETE, wire.WORK_FAIL, wire.WORK_EXCEPTION])
def test_the_end_of_a_background_job_is_written_once(verb: int) -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    worker.ask(wire.GRAB_JOB)
    worker.ask(verb, handle, *([] if verb == wire.WORK_FAIL else [b"end"]))
    worker.ask(wire.WORK_FAIL, handle)
    assert kinds(bench).count(entries.DONE) == 1
    assert bench.killed().restored == []


def test_what_a_command_has_changed_is_on_disk_before_it_says_ok() -> None:
    bench = Bench()
    client, admin = bench.peer(), bench.peer()
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    for line in (b"cancel job " + handle, b"maxqueue f 5", b"create function g", b"drop function g"):
        admin.say_bytes(line + b"\n")
        bench.end_turn()
        assert admin.heard_bytes == b"", line
        bench.settle()
        assert admin.heard_bytes == b"OK\r\n", line
        admin.heard_bytes = b""


def test_after_a_protocol_error_the_answers_that_wait_leave_before_the_connection_is_closed() -> None:
    bench = Bench()
    client = bench.peer()
    client.say_bytes(request(wire.SUBMIT_JOB_BG, b"f", b"u", b"") + b"\0bad magic it is")
    bench.end_turn()
    assert client.heard() == []
    assert bench.closed == []
    bench.settle()
    assert [packet[0] for packet in client.heard()] == [wire.JOB_CREATED, wire.ERROR]
    assert bench.closed == [client.connection]


def test_a_peer_that_leaves_while_it_waits_for_the_disk_is_forgotten_and_its_job_is_not() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    client.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"payload")
    bench.end_turn()
    client.leave()
    bench.settle()
    assert client.heard() == []
    assert worker.ask(wire.GRAB_JOB)[0][3] == b"payload"
