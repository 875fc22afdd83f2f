"""What clients say, packet by packet: coalescing, leaving, questions, bad arguments."""

from __future__ import annotations

import pytest

from cluster.jobs import RECLAIM, QueueLimits
from cluster.wire import packets as wire
from tests.node.bench import Bench

FOREGROUND = [wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB, wire.SUBMIT_JOB_LOW]
BACKGROUND = [wire.SUBMIT_JOB_HIGH_BG, wire.SUBMIT_JOB_BG, wire.SUBMIT_JOB_LOW_BG]


@pytest.fixture(params=[True, False], ids=["durable", "memory"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(durable=request.param)


# ---- submits


@pytest.mark.parametrize(("verb", "priority"), list(zip(FOREGROUND + BACKGROUND, [0, 1, 2] * 2, strict=True)))
def test_each_submit_makes_a_job_of_its_priority(bench: Bench, verb: int, priority: int) -> None:
    client = bench.peer()
    ((kind, handle),) = client.ask(verb, b"f", b"u", b"pay\0load")
    assert kind == wire.JOB_CREATED
    counts = [b"0", b"0", b"0"]
    counts[priority] = b"1"
    assert bench.peer().command("prioritystatus") == b"f\t" + b"\t".join(counts) + b"\t0\n.\n"
    worker = bench.worker(b"f")
    assert worker.ask(wire.GRAB_JOB) == [(wire.JOB_ASSIGN, handle, b"f", b"pay\0load")]
    client.heard()
    worker.ask(wire.WORK_COMPLETE, handle, b"re\0sult")
    told = client.heard()
    assert told == ([] if verb in BACKGROUND else [(wire.WORK_COMPLETE, handle, b"re\0sult")])


def test_one_key_is_one_job_whoever_submits_it_and_the_first_one_counts(bench: Bench) -> None:
    client = bench.peer()
    handles = {client.ask(verb, b"f", b"u", b"%d" % verb)[0][1] for verb in [*BACKGROUND, *FOREGROUND]}
    assert len(handles) == 1
    worker = bench.worker(b"f")
    assert worker.ask(wire.GRAB_JOB) == [
        (wire.JOB_ASSIGN, handles.pop(), b"f", b"%d" % wire.SUBMIT_JOB_HIGH_BG)
    ]
    assert worker.ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]


def test_the_key_is_function_and_unique_together(bench: Bench) -> None:
    client = bench.peer()
    submits = [(b"f", b"u"), (b"f", b"v"), (b"g", b"u"), (b"fu", b""), (b"f", b"x"), (b"f", b"xx")]
    handles = {client.ask(wire.SUBMIT_JOB_BG, *names, b"")[0][1] for names in submits}
    assert len(handles) == len(submits)


def test_an_empty_unique_joins_nothing(bench: Bench) -> None:
    client = bench.peer()
    handles = {client.ask(verb, b"f", b"", b"same")[0][1] for verb in [*BACKGROUND, *FOREGROUND] * 2}
    assert len(handles) == 12


def test_the_unique_dash_joins_equal_payloads_of_one_function(bench: Bench) -> None:
    client = bench.peer()

    def submit(function: bytes, payload: bytes, verb: int = wire.SUBMIT_JOB_BG) -> bytes:
        handle: bytes = client.ask(verb, function, b"-", payload)[0][1]
        return handle

    first = submit(b"f", b"same")
    assert submit(b"f", b"same", wire.SUBMIT_JOB_HIGH) == first
    assert client.ask(wire.SUBMIT_JOB_EPOCH, b"f", b"-", b"0", b"same") == [(wire.JOB_CREATED, first)]
    assert submit(b"f", b"other") != first
    assert submit(b"g", b"same") != first
    assert bench.worker(b"f").ask(wire.GRAB_JOB_UNIQ)[0][3] == b"-"


def test_a_key_is_free_again_when_its_job_is_over(bench: Bench) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    handles = set()
    for _ in range(3):
        ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
        handles.add(handle)
        worker.ask(wire.GRAB_JOB)
        worker.ask(wire.WORK_COMPLETE, handle, b"")
    assert len(handles) == 3


# ---- leaving


def test_a_foreground_job_that_nobody_waits_for_is_dropped(bench: Bench) -> None:
    first, second, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    for client in (first, second):
        client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    first.leave()
    assert bench.peer().command("status") == b"f\t1\t0\t1\n.\n"
    second.leave()
    assert bench.peer().command("status") == b"f\t0\t0\t1\n.\n"
    assert worker.ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]


def test_a_foreground_client_that_leaves_does_not_cancel_the_background_job_that_it_joined(
    bench: Bench,
) -> None:
    # gearmand does (client.cc, gearman_server_client_free)
    sender, waiting = bench.peer(), bench.peer()
    ((_, handle),) = sender.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    waiting.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    waiting.leave()
    sender.leave()
    assert bench.worker(b"f").ask(wire.GRAB_JOB)[0][1] == handle


def test_a_running_job_whose_clients_left_ends_in_silence(bench: Bench) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker.ask(wire.GRAB_JOB)
    client.leave()
    assert worker.ask(wire.WORK_COMPLETE, handle, b"") == []
    assert client.heard() == []
    assert bench.node.ledger.count() == 0


# ---- questions


def test_get_status_follows_a_job(bench: Bench) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")

    def status() -> tuple[bytes, ...]:
        ((kind, about, *numbers),) = client.ask(wire.GET_STATUS, handle)
        assert (kind, about) == (wire.STATUS_RES, handle)
        return tuple(numbers)

    assert status() == (b"1", b"0", b"0", b"0")
    worker.ask(wire.GRAB_JOB)
    assert status() == (b"1", b"1", b"0", b"0")
    worker.ask(wire.WORK_STATUS, handle, b"7", b"10")
    assert status() == (b"1", b"1", b"7", b"10")
    worker.ask(wire.WORK_COMPLETE, handle, b"")
    assert status() == (b"0", b"0", b"0", b"0")


@pytest.mark.parametrize(
    "handle", [b"", b"H:node:0.1.1", b"H:node:zz.1.1", b"H:node:400.1.1", b":", b"-1.", b"f" * 999]
)
def test_get_status_of_any_other_handle_is_unknown(bench: Bench, handle: bytes) -> None:
    assert bench.peer().ask(wire.GET_STATUS, handle) == [(wire.STATUS_RES, handle, b"0", b"0", b"0", b"0")]


def test_get_status_unique_counts_who_waits_and_prefers_the_running_one(bench: Bench) -> None:
    first, second = bench.peer(), bench.peer()
    first.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker = bench.worker(b"g")
    for client in (first, second):
        client.ask(wire.SUBMIT_JOB, b"g", b"u", b"")
    assert first.ask(wire.GET_STATUS_UNIQUE, b"u") == [
        (wire.STATUS_RES_UNIQUE, b"u", b"1", b"0", b"0", b"0", b"1")
    ]
    worker.ask(wire.GRAB_JOB)
    assert first.ask(wire.GET_STATUS_UNIQUE, b"u") == [
        (wire.STATUS_RES_UNIQUE, b"u", b"1", b"1", b"0", b"0", b"2")
    ]
    assert first.ask(wire.GET_STATUS_UNIQUE, b"nobody's") == [
        (wire.STATUS_RES_UNIQUE, b"nobody's", b"0", b"0", b"0", b"0", b"0")
    ]


def test_exceptions_go_to_who_asked_for_them_and_failures_to_the_others(bench: Bench) -> None:
    asked, other, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    assert asked.ask(wire.OPTION_REQ, b"Exceptions") == [(wire.OPTION_RES, b"Exceptions")]
    assert other.ask(wire.OPTION_REQ, b"others")[0][:2] == (wire.ERROR, wire.UNKNOWN_OPTION)
    for client in (asked, other):
        ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker.ask(wire.GRAB_JOB)
    assert worker.ask(wire.WORK_EXCEPTION, handle, b"what happened") == []
    assert asked.heard() == [(wire.WORK_EXCEPTION, handle, b"what happened")]
    assert other.heard() == [(wire.WORK_FAIL, handle)]
    # Many libraries send a failure behind an exception: that one is neither passed on nor an error
    assert worker.ask(wire.WORK_FAIL, handle) == []
    assert worker.ask(wire.WORK_FAIL, handle)[0][:2] == (wire.ERROR, wire.JOB_NOT_FOUND)
    assert asked.heard() == other.heard() == []


def test_exceptions_may_be_everybody_s_without_asking() -> None:
    bench = Bench(exceptions=True)
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB, b"f", b"u", b"")
    worker.ask(wire.GRAB_JOB)
    worker.ask(wire.WORK_EXCEPTION, handle, b"what happened")
    assert client.heard() == [(wire.WORK_EXCEPTION, handle, b"what happened")]


# ---- reduce jobs


@pytest.mark.parametrize("verb", [wire.SUBMIT_REDUCE_JOB, wire.SUBMIT_REDUCE_JOB_BACKGROUND])
def test_a_reduce_job_brings_its_reducer_to_who_asks_for_all(bench: Bench, verb: int) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(verb, b"f", b"u", b"reducer", b"aggregate", b"pay\0load")
    assert worker.ask(wire.GRAB_JOB_ALL) == [
        (wire.JOB_ASSIGN_ALL, handle, b"f", b"u", b"reducer", b"pay\0load")
    ]
    worker.ask(wire.WORK_COMPLETE, handle, b"")
    for grab, assignment in (
        (wire.GRAB_JOB, (wire.JOB_ASSIGN, b"f", b"p")),
        (wire.GRAB_JOB_UNIQ, (wire.JOB_ASSIGN_UNIQ, b"f", b"u", b"p")),
    ):
        ((_, handle),) = [
            packet for packet in client.ask(verb, b"f", b"u", b"r", b"", b"p") if packet[0] == 8
        ]
        assert worker.ask(grab) == [(assignment[0], handle, *assignment[1:])]
        worker.ask(wire.WORK_COMPLETE, handle, b"")


def test_without_a_reducer_who_asks_for_all_gets_the_unique(bench: Bench) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"p")
    assert worker.ask(wire.GRAB_JOB_ALL) == [(wire.JOB_ASSIGN_UNIQ, handle, b"f", b"u", b"p")]


# ---- bad arguments


@pytest.mark.parametrize("verb", [*FOREGROUND, *BACKGROUND])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([b""], wire.INVALID_PACKET),
        ([b"f"], wire.INVALID_PACKET),
        ([b"f", b"u"], wire.INVALID_PACKET),
        ([b"", b"u", b"p"], wire.INVALID_ARGUMENT),
        ([b"f" * 512, b"u", b"p"], wire.ARGUMENT_TOO_LARGE),
        ([b"f", b"u" * 65, b"p"], wire.ARGUMENT_TOO_LARGE),
        ([b"f\nforged\t1", b"u", b"p"], wire.INVALID_ARGUMENT),
        ([b"f\x1b[2J", b"", b"p"], wire.INVALID_ARGUMENT),
    ],
)
def test_a_submit_with_bad_names_is_refused(bench: Bench, verb: int, body: list[bytes], code: bytes) -> None:
    client = bench.peer()
    ((kind, found, text),) = client.ask(verb, *body)
    assert (kind, found) == (wire.ERROR, code)
    assert text
    assert bench.node.ledger.count() == 0
    assert not bench.node.ledger.functions


@pytest.mark.parametrize("verb", [*FOREGROUND, *BACKGROUND])
def test_the_longest_names_are_taken(verb: int) -> None:
    bench = Bench(handle_prefix=b"H:" + b"n" * 30)
    ((kind, handle),) = bench.peer().ask(verb, b"f" * 511, b"u" * 64, b"")
    assert kind == wire.JOB_CREATED
    assert len(handle) <= wire.HANDLE_BYTES_MAX


def test_a_sha_256_in_hex_is_a_unique_that_is_kept_whole() -> None:
    # Given two keys that differ in their last letter only, which gearmand cuts off
    bench = Bench()
    client = bench.peer()
    keys = [b"0123456789abcdef" * 3 + b"0123456789abcde" + last for last in (b"f", b"0")]
    handles = [client.ask(wire.SUBMIT_JOB_BG, b"f", key, b"")[0][1] for key in keys]
    assert handles[0] != handles[1]
    due = b"%d" % (bench.wall + 60)
    ((_, timed),) = client.ask(wire.SUBMIT_JOB_EPOCH, b"g", keys[0], due, b"")
    # Then they are found, given out and restored by all of it
    restored = bench.killed()
    again = restored.peer()
    assert [again.ask(wire.SUBMIT_JOB_BG, b"f", key, b"")[0][1] for key in keys] == handles
    assert again.ask(wire.SUBMIT_JOB_EPOCH, b"g", keys[0], due, b"") == [(wire.JOB_CREATED, timed)]
    assert again.ask(wire.GET_STATUS_UNIQUE, keys[1])[0][1:3] == (keys[1], b"1")
    worker = restored.worker(b"f")
    assert [worker.ask(wire.GRAB_JOB_UNIQ)[0][3] for _ in keys] == keys


@pytest.mark.parametrize("verb", [wire.SUBMIT_REDUCE_JOB, wire.SUBMIT_REDUCE_JOB_BACKGROUND])
@pytest.mark.parametrize(("reducer", "aggregate"), [(512, 0), (0, 512), (70_000, 70_000)])
def test_an_over_long_reducer_is_refused(bench: Bench, verb: int, reducer: int, aggregate: int) -> None:
    answer = bench.peer().ask(verb, b"f", b"u", b"r" * reducer, b"a" * aggregate, b"")
    assert answer[0][:2] == (wire.ERROR, wire.ARGUMENT_TOO_LARGE)


@pytest.mark.parametrize("when", [b"", b"-1", b"soon", b"1.5", b"\xd9\xa3", b" 1", b"-" + b"9" * 5000])
def test_an_epoch_is_read_as_gearmand_reads_it(bench: Bench, when: bytes) -> None:
    # Given a time that is over, or no time at all: the job runs at once
    ((kind, handle),) = bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", when, b"")
    assert kind == wire.JOB_CREATED
    assert bench.worker(b"f").ask(wire.GRAB_JOB)[0][:2] == (wire.JOB_ASSIGN, handle)


def test_an_epoch_with_a_fraction_waits_for_its_second(bench: Bench) -> None:
    when = b"%d.75" % (bench.wall + 60)
    ((_, handle),) = bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", when, b"")
    job = bench.job(handle)
    assert job is not None
    assert job.options is not None
    assert job.options.due_seconds == bench.wall + 60


@pytest.mark.parametrize("when", [b"9" * 13, b"9" * 5000])
def test_an_epoch_beyond_all_time_is_refused(bench: Bench, when: bytes) -> None:
    answer = bench.peer().ask(wire.SUBMIT_JOB_EPOCH, b"f", b"u", when, b"")
    assert answer[0][:2] == (wire.ERROR, wire.INVALID_ARGUMENT)


# ---- text


def test_maxqueue_refuses_what_is_too_much_and_counts_what_runs(bench: Bench) -> None:
    client, worker = bench.peer(), bench.worker(b"f")
    assert client.command("maxqueue f 1 2 0") == b"OK\r\n"
    full = (wire.ERROR, wire.QUEUE_ERROR, b"Job queue is full")
    ((_, handle),) = client.ask(wire.SUBMIT_JOB_BG, b"f", b"", b"")
    worker.ask(wire.GRAB_JOB)
    assert client.ask(wire.SUBMIT_JOB_HIGH_BG, b"f", b"", b"") == [full]
    assert client.ask(wire.SUBMIT_JOB_HIGH, b"f", b"", b"") == [full]
    client.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    for verb, rest in (
        (wire.SUBMIT_JOB_BG, (b"",)),
        (wire.SUBMIT_JOB, (b"",)),
        (wire.SUBMIT_JOB_EPOCH, (b"0", b"")),
        (wire.SUBMIT_REDUCE_JOB, (b"r", b"", b"")),
    ):
        assert client.ask(verb, b"f", b"other", *rest) == [full]
    # A submit that joins adds nothing; low has no limit; another function none either
    for verb, function, unique in (
        (wire.SUBMIT_JOB_BG, b"f", b"u"),
        (wire.SUBMIT_JOB_LOW_BG, b"f", b""),
        (wire.SUBMIT_JOB_HIGH, b"g", b""),
    ):
        assert client.ask(verb, function, unique, b"")[0][0] == wire.JOB_CREATED
    assert client.command("show maxqueue") == b"f\t1\t2\t0\n.\n"
    worker.ask(wire.WORK_COMPLETE, handle, b"")


@pytest.mark.parametrize("end", ["", "\r"])
def test_text_commands_byte_for_byte(end: str) -> None:
    bench = Bench(process_id=77, version="1.2", log_level="warning", durable=False)
    admin, worker = bench.peer(), bench.worker(b"f", b"g")
    worker.ask(wire.SET_CLIENT_ID, b"my worker")
    ((_, handle),) = admin.ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    transcript = [
        ("status", b"f\t1\t0\t1\ng\t0\t0\t1\n.\n"),
        ("STATUS", b"f\t1\t0\t1\ng\t0\t0\t1\n.\n"),
        ("prioritystatus", b"f\t0\t1\t0\t1\ng\t0\t0\t0\t1\n.\n"),
        ("workers", b"1 10.0.0.1 - :\n2 10.0.0.2 my_worker : f g\n.\n"),
        ("show jobs", handle + b"\t0\t0\t1\n.\n"),
        ("show unique jobs", b"u\n.\n"),
        ("show maxqueue", b".\n"),
        ("show", b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+show\r\n"),
        ("show me", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        ("create function fresh", b"OK\r\n"),
        ("drop function fresh", b"OK\r\n"),
        ("drop function fresh", b"ERR function not found\r\n"),
        ("drop function f", b"ERR there are still connected workers or executing clients\r\n"),
        ("maxqueue f ten", b"ERR INVALID_ARGUMENTS maxqueue+wants+whole+numbers\r\n"),
        ("maxqueue f 5jobs", b"OK\r\n"),
        ("maxqueue f " + "9" * 5000, b"OK\r\n"),
        ("maxqueue f 5", b"OK\r\n"),
        ("show maxqueue", b"f\t5\t5\t5\n.\n"),
        ("maxqueue f", b"OK\r\n"),
        ("show maxqueue", b".\n"),
        ("cancel job " + handle.decode(), b"OK\r\n"),
        ("cancel job " + handle.decode(), b"ERR UNKNOWN_JOB\r\n"),
        ("getpid", b"OK 77\n"),
        ("verbose", b"OK WARNING\n"),
        ("version", b"OK 1.2\n"),
        ("shutdown now", b"ERR INVALID_ARGUMENTS shutdown+takes+graceful+or+nothing\r\n"),
        ("nonsense at all", b"ERR UNKNOWN_COMMAND Unknown+server+commandnonsense\r\n"),
        ("", b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"),
        ("shutdown graceful", b"OK\r\n"),
    ]
    for line, reply in transcript:
        assert admin.command(line + end) == reply, line
    assert bench.stopped is not None
    assert bench.stopped.value == "graceful"


def test_shutdown_is_for_the_node_s_own_machine() -> None:
    bench = Bench()
    assert bench.peer(local=False).command("shutdown").startswith(b"ERR NOT_ALLOWED ")
    assert bench.stopped is None
    assert bench.peer(local=True).command("shutdown") == b"OK\r\n"
    assert bench.stopped is not None


def test_a_cancel_ends_a_job_in_every_state() -> None:
    bench = Bench()
    client, waiting = bench.peer(), bench.peer()
    due = b"%d" % (bench.wall + 60)
    client.say(wire.SUBMIT_JOB_BG, b"f", b"pending", b"")
    bench.end_turn()
    (pending,) = [job.handle for job in bench.node.ledger.all_jobs()]
    assert bench.peer().command("cancel job " + pending.decode()) == b"OK\r\n"
    assert client.heard() == [(wire.JOB_CREATED, pending)]

    ((_, scheduled),) = client.ask(wire.SUBMIT_JOB_EPOCH, b"f", b"scheduled", due, b"")
    ((_, schedule),) = client.ask(wire.SUBMIT_JOB_SCHED, b"f", b"s", b"", b"", b"", b"", b"", b"")
    ((_, queued),) = waiting.ask(wire.SUBMIT_JOB, b"f", b"queued", b"")
    ((_, running),) = waiting.ask(wire.SUBMIT_JOB, b"g", b"running", b"")
    worker = bench.worker(b"g")
    worker.ask(wire.GRAB_JOB)
    for handle in (scheduled, schedule, queued, running):
        assert bench.peer().command("cancel job " + handle.decode()) == b"OK\r\n"
        assert bench.job(handle) is None
    assert waiting.heard() == [(wire.WORK_FAIL, queued), (wire.WORK_FAIL, running)]
    # The worker goes on; its result is neither wanted nor an error, once
    assert worker.ask(wire.WORK_DATA, running, b"more") == []
    assert worker.ask(wire.WORK_COMPLETE, running, b"") == []
    assert worker.ask(wire.WORK_COMPLETE, running, b"")[0][1] == wire.JOB_NOT_FOUND
    assert bench.worker(b"f").ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]
    assert bench.killed().restored == []


def test_a_cancel_ends_a_job_that_waits_to_be_reclaimed() -> None:
    bench = Bench()
    ((_, handle),) = bench.peer().ask(wire.SUBMIT_JOB_BG, b"f", b"u", b"")
    bench.worker(b"f").ask(wire.GRAB_JOB)
    again = bench.killed()
    job = again.job(handle)
    assert job is not None
    assert job.state == RECLAIM
    assert again.peer().command("cancel job " + handle.decode()) == b"OK\r\n"
    again.pass_time(60)
    assert again.worker(b"f").ask(wire.GRAB_JOB) == [(wire.NO_JOB,)]


def test_what_only_a_server_sends_is_an_error_and_the_connection_goes_on(bench: Bench) -> None:
    client = bench.peer()
    for verb in (wire.JOB_CREATED, wire.NOOP, wire.JOB_ASSIGN, wire.STATUS_RES, 5, 43, 4_000_000_000):
        assert client.ask(verb, b"")[0][:2] == (wire.ERROR, wire.INVALID_COMMAND)
    client.say_bytes(b"\0RES\0\0\0\x10\0\0\0\x00")
    bench.settle()
    assert client.heard() == [(wire.ERROR, wire.INVALID_MAGIC, b"Request magic expected")]
    assert client.ask(wire.ECHO_REQ, b"still here") == [(wire.ECHO_RES, b"still here")]


def test_a_tab_belongs_to_a_function_s_name() -> None:
    # Perl's `prefix` puts one between the prefix and the name
    bench = Bench()
    client, admin = bench.peer(), bench.peer()
    assert client.ask(wire.SUBMIT_JOB_BG, b"site\tmail", b"u", b"")[0][0] == wire.JOB_CREATED
    assert admin.command("maxqueue site\tmail 1") == b"OK\r\n"
    assert client.ask(wire.SUBMIT_JOB_BG, b"site\tmail", b"v", b"")[0][1] == wire.QUEUE_ERROR
    assert admin.command("show maxqueue") == b"site\tmail\t1\t1\t1\n.\n"
    assert admin.command("create function site\tother") == b"OK\r\n"
    assert admin.command("status") == b"site\tmail\t1\t0\t0\nsite\tother\t0\t0\t0\n.\n"
    assert admin.command("drop function site\tother") == b"OK\r\n"


@pytest.mark.parametrize(
    "command",
    [
        "create function f\x1b[2J",
        "maxqueue f\x1b[2J 1",
        "create function f\x9b2J",
        "create function f\x85",
        "maxqueue f\u2028 1",
        "maxqueue f\u202e 1",
    ],
)
def test_text_commands_make_no_function_with_control_characters(command: str) -> None:
    bench = Bench()
    assert bench.peer().command(command).startswith(b"ERR INVALID_ARGUMENTS ")
    assert not bench.node.ledger.functions


@pytest.mark.parametrize("character", ["\x1b", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066"])
def test_no_packet_makes_a_function_with_control_characters(character: str) -> None:
    bench = Bench()
    peer = bench.peer()
    name = f"f{character}".encode()
    for packet_type, arguments in (
        (wire.CAN_DO, (name,)),
        (wire.CAN_DO_TIMEOUT, (name, b"1000")),
        (wire.SUBMIT_JOB, (name, b"", b"")),
        (wire.SUBMIT_JOB_BG, (name, b"", b"")),
        (wire.SUBMIT_JOB_EPOCH, (name, b"", b"9999999999", b"")),
    ):
        ((answer, code, _),) = peer.ask(packet_type, *arguments)
        assert (answer, code) == (wire.ERROR, b"INVALID_ARGUMENT")
    assert not bench.node.ledger.functions


def test_a_name_of_latin_1_is_passed_on_as_it_is() -> None:
    bench = Bench()
    worker, admin = bench.peer(), bench.peer()
    worker.say(wire.CAN_DO, b"gr\xf6\xdfe\x85")
    assert admin.command("status") == b"gr\xf6\xdfe\x85\t0\t0\t1\n.\n"


def test_a_client_id_begins_no_escape_code_when_it_is_cut() -> None:
    bench = Bench()
    client, admin = bench.peer(), bench.peer()
    client.say(wire.SET_CLIENT_ID, ("me\x9b" + "x" * 200).encode() + b"\xff")
    assert b" me\\x9bxxx" in admin.command("workers")


def test_what_strangers_wrote_breaks_no_line_of_the_text_protocol() -> None:
    # Given a function that an earlier release took, and a unique: both with a line end and an escape code
    bench = Bench()
    name = "f\n.\x1b[2J\x85\u202e".encode()
    bench.node.ledger.function(name).limits = QueueLimits(1, 2, 3)
    client, admin = bench.peer(), bench.peer()
    client.say(wire.CAN_DO, name)
    client.ask(wire.SUBMIT_JOB_BG, name, b"u\n.\x7f", b"")
    client.ask(wire.SET_CLIENT_ID, b"me\x1b]0;title\x07")
    # Then each stays in its line
    shown = b"f\\x0a.\\x1b[2J\\x85\\u202e"
    assert admin.command("status") == shown + b"\t1\t0\t1\n.\n"
    assert admin.command("prioritystatus") == shown + b"\t0\t1\t0\t1\n.\n"
    assert admin.command("show maxqueue") == shown + b"\t1\t2\t3\n.\n"
    assert admin.command("show unique jobs") == b"u\\x0a.\\x7f\n.\n"
    workers = admin.command("workers").split(b"\n")
    assert workers[0] == b"1 10.0.0.1 me\\x1b]0;title\\x07 : " + shown


def test_a_unique_that_is_a_dot_ends_no_table() -> None:
    bench = Bench()
    client = bench.peer()
    for unique in (b".", b"..", b"u"):
        client.ask(wire.SUBMIT_JOB_BG, b"f", unique, b"")
    table = bench.peer().command("show unique jobs")
    assert sorted(table.splitlines()) == sorted([b".", b"\\x2e", b"..", b"u"])
    assert table.endswith(b"\n.\n")
