import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.drill.history import TEXT_LENGTH_MAX, Event, History, Kind


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def of_every_kind(clock: Clock) -> History:
    history = History(clock)
    first = history.submit("echo/1", priority="high", order=7)
    clock.now += 0.25
    history.ack(first, handle="H:a:1.2.3", node="a")
    history.refused(history.submit("echo/2"), "QUEUE_ERROR")
    history.unknown(history.submit("écho/3", foreground=True), "timed out")
    history.run("echo/1", worker="w1", handle="H:a:1.2.3", node="b")
    history.abandoned(worker="w1", handle="H:a:1.2.3")
    history.failed(worker="w2", handle="H:a:1.2.3")
    history.done("echo/1", worker="w2", handle="H:a:1.2.3")
    history.result(first)
    fault = history.fault("cut", "a>b", "b>a", note="both ways")
    history.leads("b", 1, 3)
    history.note("look here")
    clock.now += 1
    history.healed(fault)
    return history


def test_events_are_stamped_with_seconds_since_the_beginning() -> None:
    history = of_every_kind(Clock())

    assert history.events[0] == Event(0.0, Kind.SUBMIT, key="echo/1", call=1, priority="high", order=7)
    assert history.events[1] == Event(0.25, Kind.ACK, call=1, handle="H:a:1.2.3", node="a")
    assert history.events[-1] == Event(1.25, Kind.HEALED, fault=1)
    assert history.now() == 1.25
    assert {event.kind for event in history.events} == set(Kind)


def test_a_saved_history_is_read_back_as_it_was(tmp_path: Path) -> None:
    history = of_every_kind(Clock())
    history.save(tmp_path / "history.jsonl")

    again = History.load(tmp_path / "history.jsonl")

    assert again.events == history.events
    assert again.submit("echo/4") == 4  # not a number that is in it
    assert again.fault("another") == 2


def test_a_history_with_a_path_is_on_disk_before_add_returns(tmp_path: Path) -> None:
    history = History(Clock(), path=tmp_path / "worker.jsonl")
    for number in range(3):
        history.run("echo/1", worker="w1", handle=f"H:a:1.2.{number}")
        assert History.load(tmp_path / "worker.jsonl").events == history.events
    history.close()
    history.note("in memory only")
    assert len(History.load(tmp_path / "worker.jsonl").events) == 3


def test_a_killed_process_loses_nothing_that_it_had_added(tmp_path: Path) -> None:
    path = tmp_path / "worker.jsonl"
    program = (
        "import sys, os, signal; from pathlib import Path; from cluster.drill.history import History\n"
        "history = History(path=Path(sys.argv[1]))\n"
        "history.run('echo/1', worker='w1', handle='H:a:1.2.3')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], cwd=os.getcwd(), timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert [event.kind for event in History.load(path).events] == [Kind.RUN]


@pytest.mark.parametrize("kept", range(1, 60))
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "worker.jsonl"
    history = History(Clock(), path=path)
    history.run("echo/1", worker="w1", handle="H:a:1.2.3")
    size = path.stat().st_size
    history.fault("kill", "a", "b")
    history.close()
    whole = path.read_bytes()
    line = whole[size:]
    if kept >= len(line) - 1:
        return
    path.write_bytes(whole[: size + kept])

    assert len(History.load(path).events) == 1

    with_another_start = History(Clock(), path=path)
    with_another_start.note("started again")
    with_another_start.close()
    assert [event.kind for event in History.load(path).events] == [Kind.RUN, Kind.NOTE]


@pytest.mark.parametrize(
    "text",
    [
        b"not a history\n",
        b'{"at":1,"kind":"note"}\n',
        b'{"began":1}\n{"at":1,"kind":"birthday"}\n{"at":1,"kind":"note"}\n',
        b'{"began":1}\n{"at":1,"kind":"note","colour":"red"}\n',
        b'{"began":1}\n[1]\n',
    ],
)
def test_what_is_no_history_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "other.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=r"other\.jsonl"):
        History.load(tmp_path / "other.jsonl")


def test_histories_of_several_processes_become_one_with_one_clock(tmp_path: Path) -> None:
    clock = Clock()
    callers = History(clock, path=tmp_path / "callers.jsonl")
    clock.now += 1
    workers = History(clock, path=tmp_path / "workers.jsonl")
    call = callers.submit("echo/1")
    clock.now += 1
    workers.run("echo/1", worker="w1", handle="H:a:1.2.3")
    other = workers.submit("echo/2")
    clock.now += 1
    callers.ack(call, handle="H:a:1.2.3")
    workers.unknown(other)
    callers.fault("kill", "a")
    workers.healed(workers.fault("stop", "w1"))
    callers.close()
    workers.close()

    merged = History.merge([tmp_path / "workers.jsonl", tmp_path / "callers.jsonl"])

    assert [(event.at, event.kind) for event in merged.events[:4]] == [
        (1.0, Kind.SUBMIT),
        (2.0, Kind.RUN),
        (2.0, Kind.SUBMIT),
        (3.0, Kind.UNKNOWN),
    ]
    calls = {event.key: event.call for event in merged.events if event.kind is Kind.SUBMIT}
    assert calls["echo/1"] != calls["echo/2"]
    assert [e.call for e in merged.events if e.kind is Kind.ACK] == [calls["echo/1"]]
    assert [e.call for e in merged.events if e.kind is Kind.UNKNOWN] == [calls["echo/2"]]
    faults = [(e.text, e.fault) for e in merged.events if e.kind is Kind.FAULT]
    assert len({number for _, number in faults}) == 2
    assert [e.fault for e in merged.events if e.kind is Kind.HEALED] == [dict(faults)["stop"]]


def test_nothing_is_a_history_too(tmp_path: Path) -> None:
    History().save(tmp_path / "empty.jsonl")
    assert History.load(tmp_path / "empty.jsonl").events == []
    assert History.merge([]).events == []


def test_threads_add_in_the_order_of_the_clock() -> None:
    history = History()

    def work() -> None:
        for _ in range(2_000):
            history.unknown(history.submit("echo/1"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    times = [event.at for event in history.events]
    assert len(times) == 16_000
    assert times == sorted(times)
    calls = [event.call for event in history.events if event.kind is Kind.SUBMIT]
    assert sorted(calls) == list(range(1, 8_001))


def test_long_texts_are_cut() -> None:
    history = History()
    history.unknown(history.submit("echo/1"), "x" * 100_000)
    assert len(history.events[-1].text) == TEXT_LENGTH_MAX


def test_a_file_that_cannot_be_written_any_more_is_given_up_and_nothing_else(tmp_path: Path) -> None:
    """Whoever drills must go on: something may be broken that only it mends."""
    path = tmp_path / "history.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with History(path=path) as history:
        history.note("before")
        complete = len(path.read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (complete + 10, limits[1]))
        try:
            history.note("too much")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        history.note("after")
    assert [event.text for event in history.events] == ["before", "too much", "after"]
    assert history.write_error is not None
    assert [event.text for event in History.load(path).events] == ["before"]
