"""What `jobs` tells: filtered on the node, in bounded pages, with ages that cost a job nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.node import ages, listing
from cluster.wire import packets as wire
from tests.node.bench import Bench, Peer


def rows(peer: Peer, *words: str) -> list[dict[str, Any]]:
    *found, end = page(peer, *words)
    assert end["next"] is None
    return found


def page(peer: Peer, *words: str) -> list[dict[str, Any]]:
    reply = peer.command(" ".join(["jobs", *words]))
    assert reply.endswith(b"\n.\n")
    return [json.loads(line) for line in reply[:-3].split(b"\n")]


def submit(peer: Peer, kind: int, *arguments: bytes) -> str:
    ((_, handle),) = peer.ask(kind, *arguments)
    return bytes(handle).decode()


def test_a_row_tells_all_of_a_job() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"resize")
    handle = submit(client, wire.SUBMIT_JOB_HIGH_BG, b"resize", b"photo-1", b"payload")
    worker.ask(wire.SET_CLIENT_ID, b"renderer")
    worker.ask(wire.GRAB_JOB)
    worker.ask(wire.WORK_STATUS, handle.encode(), b"3", b"4")
    bench.monotonic += 90
    bench.end_turn()
    (row,) = rows(client)
    assert row.pop("slot") == int(handle.split(":")[2].split(".")[0], 16)
    assert row == {
        "handle": handle,
        "function": "resize",
        "unique": "photo-1",
        "priority": "high",
        "state": "running",
        "background": True,
        "age_seconds": 90.0,
        "age_exact": True,
        "deliveries": 1,
        "retries": 0,
        "size_bytes": 7,
        "due_seconds": 0,
        "cron": "",
        "worker": f"renderer at {worker.connection.address}",
        "progress": "3/4",
        "clients": 0,
    }


def test_filters_are_parts_that_all_have_to_fit() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    running = submit(client, wire.SUBMIT_JOB_BG, b"f", b"one", b"")
    worker.ask(wire.GRAB_JOB)
    waiting = submit(client, wire.SUBMIT_JOB_BG, b"f", b"two", b"")
    other = submit(client, wire.SUBMIT_JOB_BG, b"a g", b"one", b"")

    def handles(*words: str) -> set[str]:
        return {row["handle"] for row in rows(client, *words)}

    assert handles() == {running, waiting, other}
    assert handles("function=f") == {running, waiting}
    assert handles("function=a%20g") == {other}
    assert handles("unique=one") == {running, other}
    assert handles("function=f", "unique=one") == {running}
    assert handles("function=f", "unique=one", "state=waiting") == set()
    assert handles("state=running") == {running}
    assert handles(f"handle={waiting}") == {waiting}
    assert handles("handle=H:nowhere:1") == set()
    assert handles("function=nobody") == set()


def test_a_schedule_and_the_jobs_that_it_makes_are_found_by_their_unique() -> None:
    bench = Bench()
    client = bench.peer()
    schedule = submit(client, wire.SUBMIT_JOB_SCHED, b"f", b"nightly", *[b"*"] * 5, b"")
    made = submit(client, wire.SUBMIT_JOB_BG, b"f", b"nightly", b"")
    submit(client, wire.SUBMIT_JOB_SCHED, b"g", b"nightly", *[b"*"] * 5, b"")

    def handles(*words: str) -> set[str]:
        return {row["handle"] for row in rows(client, "function=f", "unique=nightly", *words)}

    assert handles() == {schedule, made}
    assert handles("state=scheduled") == {schedule}
    assert client.command(f"cancel job {made}").startswith(b"OK")
    assert handles() == {schedule}


def test_jobs_whose_payload_is_their_key_are_found_by_a_dash() -> None:
    bench = Bench()
    client = bench.peer()
    made = {submit(client, wire.SUBMIT_JOB_BG, b"f", b"-", payload) for payload in (b"1", b"2")}
    made.add(submit(client, wire.SUBMIT_JOB_SCHED, b"f", b"-", *[b"*"] * 5, b"3"))
    submit(client, wire.SUBMIT_JOB_BG, b"g", b"-", b"1")
    assert {row["handle"] for row in rows(client, "function=f", "unique=-")} == made


@pytest.mark.parametrize(
    "words", ["state=odd", "limit=0", "limit=1001", "start=1024", "oldest=x", "what=1", "f"]
)
def test_a_question_with_a_slip_is_answered_with_what_to_write(words: str) -> None:
    assert Bench().peer().command(f"jobs {words}").startswith(b"ERR INVALID_ARGUMENTS ")


def test_pages_are_bounded_and_together_have_each_job_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "JOBS_LOOKED_AT", 50)
    bench = Bench()
    client = bench.peer()
    made = {submit(client, wire.SUBMIT_JOB_BG, b"f", b"u%d" % number, b"") for number in range(300)}
    found, start, pages = [], 0, 0
    while True:
        *here, end = page(client, f"start={start}")
        biggest = max(len(table.jobs) for table in bench.node.ledger.tables)
        assert end["looked_at"] < 50 + biggest
        found += [row["handle"] for row in here]
        pages += 1
        if end["next"] is None:
            break
        start = end["next"]
    assert sorted(found) == sorted(made)
    assert pages >= 300 // (50 + biggest)


def test_the_oldest_come_first_and_no_more_than_wanted() -> None:
    bench = Bench()
    client = bench.peer()
    made = []
    for number in range(5):
        made.append(submit(client, wire.SUBMIT_JOB_BG, b"f", b"u%d" % number, b""))
        bench.monotonic += 10
        bench.end_turn()
    assert [row["handle"] for row in rows(client, "oldest=1", "limit=3")] == made[:3]
    assert [row["age_seconds"] for row in rows(client, "oldest=1", "limit=2")] == [50.0, 40.0]


def test_of_a_job_from_before_a_restart_is_told_that_it_is_at_least_so_old() -> None:
    bench = Bench()
    handle = submit(bench.peer(), wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    again = bench.killed()
    client = again.peer()
    again.monotonic += 30
    again.end_turn()
    (row,) = rows(client)
    assert (row["handle"], row["age_seconds"], row["age_exact"]) == (handle, 30.0, False)


def test_a_clock_that_is_put_back_makes_no_job_younger() -> None:
    bench = Bench()
    client = bench.peer()
    submit(client, wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.wall -= 7200
    bench.monotonic += 5
    bench.end_turn()
    (row,) = rows(client)
    assert row["age_seconds"] == 5.0


def test_the_oldest_waiting_job_is_found_at_the_heads_of_the_queues() -> None:
    bench = Bench()
    client, worker = bench.peer(), bench.worker(b"f")
    context = bench.node.context
    for kind in (wire.SUBMIT_JOB_LOW_BG, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_HIGH_BG):
        handle = submit(client, kind, b"f", b"%d" % kind, b"")
        bench.monotonic += 10
        bench.end_turn()
    function = bench.node.ledger.functions[b"f"]

    def oldest() -> float | None:
        age = context.ages.oldest_waiting(function, context.monotonic_seconds)
        return age.seconds if age is not None else None

    assert oldest() == 30.0
    for _ in range(2):  # the high one, then the normal one
        worker.ask(wire.GRAB_JOB)
    assert oldest() == 30.0
    worker.ask(wire.GRAB_JOB)
    assert oldest() is None
    assert handle


def test_a_cancelled_head_is_looked_behind() -> None:
    bench = Bench()
    client = bench.peer()
    first = submit(client, wire.SUBMIT_JOB_BG, b"f", b"1", b"")
    bench.monotonic += 10
    bench.end_turn()
    submit(client, wire.SUBMIT_JOB_BG, b"f", b"2", b"")
    bench.monotonic += 5
    bench.end_turn()
    assert client.command(f"cancel job {first}").startswith(b"OK")
    age = bench.node.context.ages.oldest_waiting(
        bench.node.ledger.functions[b"f"], bench.node.context.monotonic_seconds
    )
    assert age == ages.Age(5.0, True)


def test_young_jobs_keep_their_second_old_ones_their_minute_and_marks_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ages, "MARKS_MAX", 100)
    monkeypatch.setattr(ages, "COARSE_MARKS_MAX", 100)
    bench = Bench()
    submit(bench.peer(), wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    (job,) = bench.node.ledger.all_jobs()
    own = job.handle.rpartition(b".")[0] + b"."
    marks = ages.Ages(bench.node.log)
    for second in range(10_000):  # one job in each
        marks.mark(second, float(second))

    def age(second: int) -> ages.Age:
        job.handle = own + b"%x" % (second + 1)
        return marks.of(job, 10_000.0)

    assert age(9_990) == ages.Age(10.0, True)
    assert age(7_000).exact
    assert 3_000 <= age(7_000).seconds < 3_060
    assert not age(10).exact
    assert 3_000 < age(10).seconds <= 9_990
