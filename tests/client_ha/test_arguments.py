"""The caller's mistakes: found before anything is sent, and the message names the limit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from client_ha import AsyncHAWorker, CallerMistake, ClientClosed, HAClient, HAWorker, InvalidArgument
from client_ha.flight import epoch_seconds

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("",), {}, "empty"),
        (("f" * 512,), {}, "511 bytes"),
        (("a\0b",), {}, "NUL"),
        (("f", 5), {}, "bytes or str"),
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
        ({"processes": -1}, "processes"),
        ({"max_jobs": 0}, "max_jobs"),
        ({"client_id": "two words"}, "client_id"),
        ({"client_id": "x" * 128}, "127 bytes"),
    ],
)
def test_a_worker_s_bad_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        HAWorker(NOWHERE, **options)


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
