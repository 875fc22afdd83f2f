"""The caller's mistakes: found before anything is sent, and the message names the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest

from client_ha import (
    AsyncHAClient,
    AsyncHAWorker,
    CallerMistake,
    ClientClosed,
    GearfleetError,
    HAClient,
    HAWorker,
    InvalidArgument,
    JobContext,
    JobTimeout,
    NoServerAvailable,
    Server,
)
from client_ha.flight import epoch_seconds

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("",), {}, "empty"),
        (("f" * 512,), {}, "511 bytes"),
        (("a\0b",), {}, "NUL"),
        (("f", 5), {}, "bytes or str"),
        ((5,), {}, "the function's name is 5 (int): give str or bytes"),
        ((None,), {}, "the function's name is None"),
        (("\ud800",), {}, "UTF-8"),
        (("f", "\ud800"), {}, "UTF-8"),
        (("f", "x"), {"unique": 5}, "the unique key is 5 (int): give str or bytes"),
        (("f", "x"), {"unique": True}, "the unique key is True"),
        (("f", "x"), {"unique": [1]}, "the unique key is [1] (list)"),
        (("f", "x"), {"timeout": "a"}, "timeout='a' (str): give a number of seconds"),
        (("f", "x"), {"timeout": "a", "background": True}, "timeout='a'"),
        (("f", "x"), {"timeout": float("nan"), "background": True}, "timeout=nan"),
        (("f", "x"), {"timeout": float("inf")}, "or None"),
        (("f", "x"), {"timeout": True}, "timeout=True"),
        (("f", "x"), {"timeout": -1}, "0 or more"),
        (("f", "x"), {"at": True}, "at=True (bool) is no moment"),
        (("f", "x"), {"unique": "u" * 65}, "64 bytes"),
        (("f", "x"), {"unique": "ü" * 33}, "64 bytes"),
        (("f", "x"), {"unique": "-"}, "'-'"),
        (("f", "x"), {"unique": ""}, "leave it out"),
        (("f", "x"), {"unique": "a\0b"}, "NUL"),
        (("f", "x"), {"priority": "urgent"}, "'high', 'normal' or 'low'"),
        (("f", "x"), {"cron": "0 3 * * *"}, "unique="),
        (("f", "x"), {"cron": "0 3 * *", "unique": "u"}, "minute, hour"),
        (("f", "x"), {"cron": "0 3 * * 8", "unique": "u"}, "day of the week"),
        (("f", "x"), {"cron": "0 3 1 * */2", "unique": "u"}, "write the days"),
        (("f", "x"), {"cron": "0 3 * * 5-2", "unique": "u"}, "before it begins"),
        (("f", "x"), {"cron": "0 3 * * *", "unique": "u", "at": 5}, "exclude"),
        (("f", "x"), {"cron": "0 3 * * *", "unique": "u", "priority": "low"}, "normal"),
        (("f", "x"), {"at": 5, "background": True, "priority": "high"}, "priority='normal'"),
        (("f", "x"), {"at": -5, "background": True}, "1970"),
        (("f", "x"), {"at": "tomorrow", "background": True}, "at='tomorrow' is no moment"),
        (("f", "x"), {"at": [], "background": True}, "no moment"),
        (("f", "x"), {"at": float("nan"), "background": True}, "no moment"),
        (("f", "x"), {"at": float("inf"), "background": True}, "no moment"),
    ],
)
def test_a_bad_argument_is_a_value_error_that_says_what_is_wrong(
    arguments: tuple[Any, ...], options: dict[str, Any], named: str
) -> None:
    with HAClient(NOWHERE) as client:
        with pytest.raises(InvalidArgument) as caught:
            client.submit(*arguments, **options)
        assert named in str(caught.value)
        assert isinstance(caught.value, ValueError)


Call = Callable[[HAClient], object]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda client: client.submit("f").result("a"), "timeout='a'"),
        (lambda client: client.submit("f").wait(float("nan")), "timeout=nan"),
        (lambda client: client.map("f", ["x"], timeout="a"), "timeout='a'"),
        (lambda client: client.map("f", "abc"), "payloads is 'abc' (str): give a list"),
        (lambda client: client.map("f", ["x"], in_flight="2"), "in_flight='2'"),
        (lambda client: client.submit_many("f", "abc"), "payloads is 'abc' (str): give a list"),
        (lambda client: client.submit_many("f", b"abc"), "payloads is b'abc' (bytes): give a list"),
        (lambda client: client.submit_many("f", 5), "payloads is 5"),
        (lambda client: client.submit_many("f", ["x"], uniques="u"), "uniques is 'u'"),
        (lambda client: client.submit_many("f", ["x"], timeout="a"), "timeout='a'"),
        (lambda client: client.submit_many("f", ["x"], in_flight=2.5), "in_flight=2.5"),
        (lambda client: client.task_set().run("a"), "timeout='a'"),
        (lambda client: client.status(5), "job=5 (int)"),
        (lambda client: client.status("H:a:1", timeout="a"), "timeout='a'"),
        (lambda client: client.status("H:a:1", server=5), "server=5"),
        (lambda client: client.status_unique(5), "the unique key is 5"),
        (lambda client: client.cancel(None), "job=None (NoneType)"),
        (lambda client: client.cancel("H:a:1", timeout=None), "timeout=None"),
        (lambda client: client.cancel_unique("f", 5), "the unique key is 5"),
        (lambda client: client.cancel_unique(5, "u"), "the function's name is 5"),
    ],
)
def test_every_call_names_the_argument_that_it_cannot_take(call: Call, named: str) -> None:
    with HAClient(NOWHERE) as client:
        with pytest.raises(InvalidArgument) as caught:
            call(client)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "options", "named"),
    [
        (5, {}, "servers=5"),
        ([5], {}, "servers has 5"),
        (NOWHERE, {"submit_timeout": "a"}, "submit_timeout='a'"),
        (NOWHERE, {"submit_timeout": None}, "submit_timeout=None"),
        (NOWHERE, {"tls": "yes"}, "ssl.SSLContext"),
        (NOWHERE, {"timing": 5}, "timing=5 (int): give a Timing"),
        (NOWHERE, {"address_remap": "10.0.0.1"}, "address_remap='10.0.0.1'"),
    ],
)
def test_a_client_s_bad_option_is_named(servers: Any, options: dict[str, Any], named: str) -> None:
    for make in (HAClient, AsyncHAClient):
        with pytest.raises(InvalidArgument) as caught:
            make(servers, **options)
        assert named in str(caught.value)


def test_a_task_reports_with_what_can_be_sent() -> None:
    sent: list[bytes] = []
    job = JobContext(
        function="f",
        unique="u",
        handle="H:a:1",
        payload=b"",
        server=NOWHERE,
        send=sent.append,
        stopping=lambda: False,
    )
    for report in (job.send_data, job.warn):
        with pytest.raises(InvalidArgument, match=r"data is 5 \(int\)"):
            report(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="numerator='1'"):
        job.progress("1", 2)  # type: ignore[arg-type]
    assert not sent


class _RouterThatIsWrong:
    """It names as a server what cannot be one."""

    servers = (Server("127.0.0.1", 1),)

    def order(self, function: bytes, unique: bytes) -> Any:
        return [[]]


@pytest.mark.parametrize("background", [False, True])
def test_whoever_waits_hears_what_the_loop_s_thread_raised(background: bool) -> None:
    with HAClient(router=_RouterThatIsWrong()) as client:
        with pytest.raises(GearfleetError, match="TypeError") as caught:
            client.submit("f", background=background).result(timeout=5)
        assert not isinstance(caught.value, JobTimeout | NoServerAvailable)
        assert isinstance(caught.value.__cause__, TypeError)


def test_a_payload_over_the_limit_is_refused_here_and_not_by_a_broken_connection() -> None:
    with HAClient(NOWHERE) as client, pytest.raises(InvalidArgument, match="limit is"):
        client.submit("f", bytes(64 * 1024 * 1024))


def test_a_scheduled_job_never_starts_early() -> None:
    assert epoch_seconds(1000) == 1000
    assert epoch_seconds(1000.001) == 1001
    assert epoch_seconds(datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC)) == 1893456001


def test_a_closed_client_says_so() -> None:
    client = HAClient(NOWHERE)
    client.close()
    with pytest.raises(ClientClosed):
        client.submit("f")


def test_closing_ends_jobs_that_wait_for_a_server() -> None:
    client = HAClient(NOWHERE)
    job = client.submit("f")
    client.close()
    with pytest.raises(ClientClosed):
        job.result()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": "4"}, "concurrency='4'"),
        ({"concurrency": 2.5}, "concurrency=2.5"),
        ({"concurrency": True}, "concurrency=True"),
        ({"drain_seconds": "5"}, "drain_seconds='5'"),
        ({"client_id": 5}, "client_id is 5"),
        ({"tls": "yes"}, "tls='yes'"),
        ({"timing": 5}, "timing=5"),
        ({"address_remap": 5}, "address_remap=5"),
        ({"processes": -1}, "processes"),
        ({"processes": None}, "processes=None"),
        ({"max_jobs": "1"}, "max_jobs='1'"),
        ({"max_jobs": 0}, "max_jobs"),
        ({"client_id": "two words"}, "client_id"),
        ({"client_id": "x" * 128}, "127 bytes"),
    ],
)
def test_a_worker_s_bad_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        HAWorker(NOWHERE, **options)


def test_waiting_for_a_worker_s_connections_takes_numbers_only() -> None:
    for call in (HAWorker(NOWHERE).wait_connected, _in_a_loop(AsyncHAWorker(NOWHERE).wait_connected)):
        with pytest.raises(InvalidArgument, match="timeout='a'"):
            call(1, "a")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="count='1'"):
            call("1", 1.0)  # type: ignore[arg-type]


def _in_a_loop(wait: Callable[[int, float], Coroutine[Any, Any, None]]) -> Callable[[int, float], None]:
    return lambda count, timeout: asyncio.run(wait(count, timeout))


def test_a_worker_without_tasks_does_not_start() -> None:
    with pytest.raises(CallerMistake, match="task"):
        HAWorker(NOWHERE).run()


def test_tasks_are_checked_where_they_are_defined() -> None:
    worker, asynchronous = HAWorker(NOWHERE), AsyncHAWorker(NOWHERE)

    async def coroutine(job: object) -> None: ...

    def function(job: object) -> None: ...

    with pytest.raises(InvalidArgument, match="AsyncHAWorker"):
        worker.task("f")(coroutine)  # type: ignore[type-var]
    with pytest.raises(InvalidArgument, match="HAWorker"):
        asynchronous.task("f")(function)  # type: ignore[type-var]
    worker.task("f")(function)
    with pytest.raises(InvalidArgument, match="twice"):
        worker.task("f")(function)
    with pytest.raises(InvalidArgument, match="seconds"):
        worker.task("g", timeout_seconds=0.5)(function)
    with pytest.raises(InvalidArgument, match="control character 0x0a"):
        worker.task("a\nb")(function)
    with pytest.raises(InvalidArgument, match="name is 5"):
        worker.task(5)(function)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="timeout_seconds='a'"):
        worker.task("g", timeout_seconds="a")(function)  # type: ignore[arg-type]
