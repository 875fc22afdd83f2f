"""The client for users' own tests: the same calls, no server."""

from __future__ import annotations

import inspect
import time

import pytest

from client_ha import (
    AsyncHAClient,
    AsyncHAWorker,
    HAClient,
    HAWorker,
    InvalidArgument,
    JobContext,
    JobException,
    JobFailed,
    JobTimeout,
    NoResult,
    Retry,
)
from client_ha.testing import Report, StubAsyncClient, StubClient
from tests.client_ha.fake_server import in_loop

NOWHERE = "127.0.0.1:1"


def make_worker() -> HAWorker:
    worker = HAWorker(NOWHERE)
    tries: list[str] = []

    @worker.task("reverse")
    def reverse(job: JobContext) -> bytes:
        job.progress(1, 2)
        job.send_data("part")
        job.warn("careful")
        return job.payload[::-1]

    @worker.task("raise")
    def raise_(job: JobContext) -> bytes:
        raise ValueError("no good")

    @worker.task("fail")
    def fail(job: JobContext) -> bytes:
        raise JobFailed

    @worker.task("fail with a text")
    def fail_with_a_text(job: JobContext) -> bytes:
        raise JobFailed("no paper")

    @worker.task("retry")
    def retry(job: JobContext) -> str:
        tries.append(job.handle)
        if len(tries) < 3:
            raise Retry
        return str(len(tries))

    return worker


@pytest.mark.parametrize(("stub", "real"), [(StubClient, HAClient), (StubAsyncClient, AsyncHAClient)])
def test_the_stub_has_the_real_client_s_methods_and_arguments(stub: type, real: type) -> None:
    for name, method in vars(real).items():
        if not name.startswith("_") and callable(method):
            wanted = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(stub, name)).parameters) == wanted, name


def test_a_foreground_job_runs_inside_submit() -> None:
    heard: list[object] = []
    client = StubClient(make_worker())
    job = client.submit(
        "reverse",
        "abc",
        unique="k",
        on_data=lambda job, data: heard.append(data),
        on_status=lambda job, n, d: heard.append((n, d)),
        on_complete=lambda job, data: heard.append(data),
    )
    assert job.finished
    assert job.result() == b"cba"
    assert heard == [(1, 2), b"part", b"cba"]
    assert client.reports == [
        Report("reverse", "k", "status", b"1/2"),
        Report("reverse", "k", "data", b"part"),
        Report("reverse", "k", "warning", b"careful"),
    ]


def test_bad_ends_are_those_of_the_real_client() -> None:
    client = StubClient(make_worker())
    with pytest.raises(JobException, match="ValueError: no good"):
        client.submit("raise").result()
    with pytest.raises(JobFailed):
        client.submit("fail").result()
    with pytest.raises(JobTimeout, match="nobody-does-this"):
        client.submit("nobody-does-this").result()
    with pytest.raises(InvalidArgument):
        client.submit("reverse", unique="-")
    assert client.submit("retry").result() == b"3"


def test_background_jobs_wait_until_they_are_run() -> None:
    client = StubClient(make_worker())
    job = client.submit("reverse", "a", unique="k", background=True)
    again = client.submit("reverse", "other", unique="k", background=True)
    client.submit("reverse", "b", background=True, priority="high")
    client.submit("reverse", "later", background=True, at=time.time() + 3600)
    assert job.handle == again.handle
    first, second = client.queued[:2]
    assert (first.payload, first.priority, first.unique) == (b"a", "normal", "k")
    assert (second.payload, second.priority) == (b"b", "high")
    assert client.status(job).known
    assert client.status_unique("k").known
    assert client.run_queued() == 2
    assert not client.status(job).known
    assert [queued.payload for queued in client.queued] == [b"later"]


def test_map_submit_many_and_task_sets() -> None:
    client = StubClient(make_worker())
    assert [job.result() for job in client.map("reverse", ["ab", "cd"])] == [b"ba", b"dc"]
    assert [job.index for job in client.submit_many("reverse", ["a", "b"], uniques=["x", "y"])] == [0, 1]
    tasks = client.task_set()
    tasks.add("reverse", "ab")
    tasks.add("raise")
    assert [type(job.error) for job in tasks.run()] == [type(None), JobException]


@in_loop
async def test_the_asynchronous_stub() -> None:
    worker = AsyncHAWorker(NOWHERE)

    @worker.task("double")
    async def double(job: JobContext) -> bytes:
        return job.payload * 2

    async with StubAsyncClient(worker, make_worker()) as client:
        assert await (await client.submit("double", "ab")).result(timeout=5) == b"abab"
        assert await (await client.submit("reverse", "ab")).result(timeout=5) == b"ba"
        assert [await job async for job in client.map("double", ["a", "b"])] == [b"aa", b"bb"]
        await client.submit("double", background=True)
        assert len(client.queued) == 1
        assert await client.run_queued() == 1
        tasks = client.task_set()
        tasks.add("double", "x")
        assert [await job for job in await tasks.run(timeout=5)] == [b"xx"]


def test_what_is_for_later_is_queued_and_can_be_cancelled() -> None:
    client = StubClient(make_worker())
    later = client.submit("reverse", at=time.time() + 3600)  # in the background by itself
    nightly = client.submit("reverse", "p", unique="nightly", cron="0 3 * * *")
    assert [(queued.payload, queued.cron) for queued in client.queued] == [(b"", None), (b"p", "0 3 * * *")]
    assert later.background
    assert nightly.background
    assert client.run_queued() == 0
    assert client.cancel(nightly)
    assert not client.cancel(nightly)
    assert [queued.handle for queued in client.queued] == [later.handle]


def test_a_failure_s_text_reaches_the_client() -> None:
    client = StubClient(make_worker())
    warned: list[bytes] = []
    job = client.submit("fail with a text", on_warning=lambda job, data: warned.append(data))
    with pytest.raises(JobFailed, match=r"^no paper$"):
        job.result()
    assert not warned  # it is the failure's


def test_a_background_job_has_no_result() -> None:
    client = StubClient(make_worker())
    with pytest.raises(NoResult, match="background"):
        client.submit("reverse", background=True).result()


def test_the_stub_takes_no_list_that_a_client_would_not_take() -> None:
    client = StubClient(make_worker())
    with pytest.raises(InvalidArgument, match="payloads is 'abc'"):
        client.submit_many("reverse", "abc")
    with pytest.raises(InvalidArgument, match="uniques is 'u'"):
        client.submit_many("reverse", ["abc"], uniques="u")
    with pytest.raises(InvalidArgument, match="payloads is 'abc'"):
        list(client.map("reverse", "abc"))
