"""A disk that does not take a group: nothing in it is promised, nothing that was promised before is lost."""

from __future__ import annotations

from cluster.replication import entries
from cluster.wire import packets as wire
from tests.node.bench import Bench

FULL = "the disk is full"
REFUSED = (wire.ERROR, wire.QUEUE_ERROR, FULL.encode())


def test_who_waited_for_the_group_is_told_and_its_jobs_are_gone() -> None:
    bench = Bench()
    clients = [bench.peer() for _ in range(2)]
    worker = bench.worker(b"f")
    for client in clients:
        client.say(wire.SUBMIT_JOB_BG, b"f", client.connection.address.encode(), b"")
        client.say(wire.ECHO_REQ, b"after")
        bench.end_turn()
    bench.fail(FULL)
    bench.end_turn()
    assert [client.heard() for client in clients] == [[REFUSED, (wire.ECHO_RES, b"after")]] * 2
    assert worker.ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]
    assert bench.node.ledger.count() == 0


def test_meanwhile_background_submits_are_refused_at_once_and_all_else_is_served() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    bench.node.refuse_background(FULL)
    for verb, rest in (
        (wire.SUBMIT_JOB_BG, ()),
        (wire.SUBMIT_JOB_EPOCH, (b"0",)),
        (wire.SUBMIT_JOB_SCHED, (b"", b"", b"", b"", b"")),
        (wire.SUBMIT_REDUCE_JOB_BACKGROUND, (b"r", b"")),
    ):
        client.say(verb, b"f", b"u", *rest, b"")
        assert bench.end_turn().group is None
        assert client.heard() == [REFUSED]
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker.ask(wire.GRAB_JOB)
    worker.ask(wire.WORK_COMPLETE, handle, b"result")
    assert client.heard() == [(wire.WORK_COMPLETE, handle, b"result")]
    bench.node.refuse_background(None)
    assert client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")[0][0] == wire.JOB_CREATED


def test_a_foreground_client_that_joined_keeps_the_job() -> None:
    # Given a background job on its way to the disk, and a foreground client that joins it
    bench = Bench()
    sender, waiting, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    sender.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"payload")
    waiting.say(wire.SUBMIT_JOB, b"f", b"u", b"")
    bench.end_turn()
    ((_, handle),) = waiting.heard()
    # When the disk fails
    bench.fail(FULL)
    bench.settle()
    # Then only the background client is refused
    assert sender.heard() == [REFUSED]
    assert worker.ask(wire.GRAB_JOB) == [(wire.JOB_ASSIGN, handle, b"f", b"payload")]
    worker.ask(wire.WORK_COMPLETE, handle, b"result")
    assert waiting.heard() == [(wire.WORK_COMPLETE, handle, b"result")]


def test_a_background_submit_that_joined_a_foreground_job_is_refused_and_the_job_goes_on() -> None:
    bench = Bench()
    waiting, sender, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    ((_, handle),) = waiting.ask(wire.SUBMIT_JOB, b"f", b"u", b"payload")
    sender.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn()
    bench.fail(FULL)
    bench.settle()
    assert sender.heard() == [REFUSED]
    assert worker.ask(wire.GRAB_JOB)[0][1] == handle
    # It is a foreground job again: nobody waits, so nobody runs it again
    waiting.leave()
    worker.leave()
    bench.settle()
    assert bench.node.ledger.count() == 0


def test_a_foreground_job_whose_client_left_it_to_a_refused_submit_is_gone() -> None:
    bench = Bench()
    waiting, sender, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    waiting.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    sender.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    waiting.leave()
    bench.end_turn()
    bench.fail(FULL)
    bench.settle()
    assert sender.heard() == [REFUSED]
    assert worker.ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]
    assert bench.node.ledger.count() == 0


def test_who_joins_a_job_in_the_turn_in_which_it_fails_is_not_promised_it() -> None:
    # Given a job on its way to the disk, and one more submit with its key in the turn that goes on
    bench = Bench()
    first, second = bench.peer(), bench.peer()
    first.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn()
    second.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    # When the disk fails, and takes the next group
    bench.fail(FULL)
    bench.settle()
    # Then neither is told that a job exists, for none does
    assert first.heard() == second.heard() == [REFUSED]
    assert bench.node.ledger.count() == 0


def test_who_joined_it_while_the_disk_was_busy_is_not_promised_it_either() -> None:
    bench = Bench()
    first, second = bench.peer(), bench.peer()
    first.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn()
    second.say(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.end_turn(cut=False)
    bench.fail(FULL)
    bench.settle()
    assert first.heard() == second.heard() == [REFUSED]
    assert bench.node.ledger.count() == 0


def test_what_ended_meanwhile_is_owed_to_the_disk() -> None:
    # Given three durable jobs
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    handles = [client.ask(wire.SUBMIT_JOB_BG, b"f", unique, b"")[0][1] for unique in (b"a", b"b", b"c")]
    worker.ask(wire.GRAB_JOB)
    # When one is completed and one cancelled, and the disk fails
    worker.say(wire.WORK_COMPLETE, handles[0], b"")
    bench.end_turn()
    client.say_bytes(b"cancel job " + handles[1] + b"\n")
    bench.end_turn()
    owed = bench.fail(FULL)
    bench.end_turn()
    # then it is not called done: until that is on the disk, a restart would bring the job back.
    assert client.heard_bytes == b"ERR NOT_SAFE the+disk+is+full\r\n"
    # Then exactly these two ends are owed
    assert [entries.decode(record, 0)[0].kind for record in owed] == [entries.DONE, entries.DONE]
    bench.segments[1] += owed
    assert [job.handle for job in bench.killed().restored] == handles[2:]


def test_a_new_job_with_the_key_of_one_whose_end_was_lost_takes_its_place() -> None:
    # Given a journal in which the end of the first job is missing: the disk was full
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    for payload in (b"first", b"second"):
        ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", payload)
        if payload == b"first":
            worker.ask(wire.GRAB_JOB)
            worker.ask(wire.WORK_COMPLETE, handle, b"")
    records = [record for record in bench.records if entries.decode(record, 0)[0].kind != entries.DONE]
    # When the node starts from it
    again = Bench(records=records, incarnation=2)
    # Then the second one is there, and alone
    assert [(job.handle, job.payload) for job in again.restored] == [(handle, b"second")]


def test_a_failure_of_some_groups_leaves_those_before_them_alone() -> None:
    bench = Bench()
    first, second = bench.peer(), bench.peer()
    first.say(wire.SUBMIT_JOB_BG, b"f", b"1", b"")
    bench.end_turn()
    second.say(wire.SUBMIT_JOB_BG, b"f", b"2", b"")
    bench.end_turn()
    bench.commit()
    bench.fail(FULL)
    bench.end_turn()
    assert [packet[0] for packet in first.heard()] == [wire.JOB_CREATED]
    assert second.heard() == [REFUSED]
    assert bench.node.ledger.count() == 1
