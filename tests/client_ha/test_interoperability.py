"""Everything once against real servers: Debian's gearmand and our node, the same tests for both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from client_ha import (
    AsyncHAClient,
    AsyncHAWorker,
    HAClient,
    HAWorker,
    InvalidArgument,
    Job,
    JobCancelled,
    JobContext,
    JobException,
    JobFailed,
    JobTimeout,
    NoResult,
    NoServerAvailable,
    Retry,
    ServerRefused,
    Timing,
)
from cluster.wire.packets import WORK_STATUS
from tests.client_ha.conftest import Server
from tests.client_ha.fake_server import in_loop
from tests.support import WAIT_SECONDS, Gearmand, Node, eventually


def echo(job: JobContext) -> bytes:
    return job.payload


def test_progress_that_is_no_whole_number_is_read_as_c_reads_it(server: Server, patient: Timing) -> None:
    heard: list[tuple[int, int]] = []
    with server.connect() as worker, HAClient(server.address, timing=patient) as client:
        worker.can_do(b"half")
        job = client.submit("half", b"", on_status=lambda job, n, d: heard.append((n, d)))
        handle = worker.wait_for_job().handle
        for numbers in ((b"0.5", b"1.0"), (b"50%", b""), (b"-1", b"100")):
            worker.send(WORK_STATUS, handle, *numbers)
        worker.complete(handle, b"done")
        assert job.result(timeout=10) == b"done"
        assert heard == [(0, 1), (50, 0), (-1, 100)]


def test_a_sha_256_in_hex_is_a_key(server: Server, patient: Timing) -> None:
    worker = HAWorker(server.address, timing=patient)
    worker.task("key")(lambda job: job.unique)
    with worker, HAClient(server.address, timing=patient) as client:
        unique = "0123456789abcdef" * 4
        job = client.submit("key", b"", unique=unique)
        # gearmand takes it, and cuts it
        assert unique.encode().startswith(job.result(timeout=10))


def test_a_foreground_job_reports_and_returns(server: Server, patient: Timing) -> None:
    heard: list[str] = []
    worker = HAWorker(server.address, client_id="reporter", timing=patient)

    @worker.task("report")
    def report(job: JobContext) -> bytes:
        job.progress(1, 2)
        job.send_data(b"half")
        job.warn("careful")
        return job.payload[::-1]

    with worker, HAClient(server.address, timing=patient) as client:
        job = client.submit(
            "report",
            "päyload",
            unique="key",
            priority="high",
            on_status=lambda job, n, d: heard.append(f"{n}/{d}"),
            on_data=lambda job, data: heard.append(data.decode()),
            on_warning=lambda job, data: heard.append(data.decode()),
            on_complete=lambda job, data: heard.append("complete"),
            on_fail=lambda job, error: heard.append("fail"),
        )
        assert job.result(timeout=10) == "päyload".encode()[::-1]
        assert heard == ["1/2", "half", "careful", "complete"]
        assert (job.numerator, job.denominator) == (1, 2)
        assert any(" reporter : report" in row for row in server.table("workers"))


def test_a_client_that_nobody_keeps_lives_until_its_job_ends(server: Server, patient: Timing) -> None:
    worker = HAWorker(server.address, timing=patient)

    @worker.task("reverse-once")
    def reverse(job: JobContext) -> bytes:
        return job.payload[::-1]

    with worker:
        # The client is garbage as soon as submit returns, but for the job
        job = HAClient(server.address, timing=patient).submit("reverse-once", b"abc")
        assert job.result(timeout=20) == b"cba"


def test_exceptions_and_failures_reach_the_client_as_what_they_are(server: Server, patient: Timing) -> None:
    worker = HAWorker(server.address, timing=patient)
    heard: list[object] = []

    @worker.task("raise")
    def raise_(job: JobContext) -> bytes:
        raise ValueError("no good")

    @worker.task("fail")
    def fail(job: JobContext) -> bytes:
        raise JobFailed("reason for the log")

    with worker, HAClient(server.address, timing=patient) as client:
        job = client.submit("raise", on_exception=lambda job, payload: heard.append(payload))
        with pytest.raises(JobException) as caught:
            job.result(timeout=10)
        assert caught.value.payload == b"ValueError: no good"
        job = client.submit("fail", on_fail=lambda job, error: heard.append(type(error)))
        with pytest.raises(JobFailed):
            job.result(timeout=10)
        assert heard == [b"ValueError: no good", JobFailed]


def test_a_background_job_is_acknowledged_known_and_done(server: Server, patient: Timing) -> None:
    gate, begun = threading.Event(), threading.Event()
    worker = HAWorker(server.address, timing=patient)

    @worker.task("slow")
    def slow(job: JobContext) -> None:
        job.progress(3, 4)
        begun.set()
        gate.wait(10)

    with HAClient(server.address, timing=patient) as client:
        job = client.submit("slow", unique="key", background=True)
        with pytest.raises(NoResult):
            job.result()
        assert job.handle
        assert client.status(job).known
        assert not client.status(job).running
        with worker:
            begun.wait(10)
            eventually(lambda: client.status(job).numerator == 3)
            for status in (
                client.status(job),
                client.status(str(job.handle)),
                client.status(str(job.reference)),
                client.status_unique("key"),
            ):
                assert (status.known, status.running, status.numerator, status.denominator) == (
                    True,
                    True,
                    3,
                    4,
                )
            gate.set()
            eventually(lambda: not client.status(job).known)
        assert not client.status("H:never:1").known


def test_priorities_and_order_are_the_server_s(server: Server, patient: Timing) -> None:
    done: list[bytes] = []
    worker = HAWorker(server.address, timing=patient, max_jobs=5)
    worker.task("ranked")(lambda job: done.append(job.payload))
    with HAClient(server.address, timing=patient) as client:
        order = [("l", "low"), ("n1", "normal"), ("n2", "normal"), ("h1", "high"), ("h2", "high")]
        for payload, priority in order:
            client.submit("ranked", payload, priority=priority, background=True)  # type: ignore[arg-type]
    worker.run()
    assert done == [b"h1", b"h2", b"n1", b"n2", b"l"]


def test_jobs_with_one_key_run_once_also_from_two_clients(server: Server, patient: Timing) -> None:
    runs: list[bytes] = []
    with HAClient(server.address, timing=patient) as one, HAClient(server.address, timing=patient) as two:
        jobs = [client.submit("coalesced", "p", unique="one-key") for client in (one, one, two)]
        eventually(lambda: one.status_unique("one-key").clients == 2)
        worker = HAWorker(server.address, timing=patient)
        worker.task("coalesced")(lambda job: runs.append(job.payload))
        with worker:
            assert [job.result(timeout=10) for job in jobs] == [b""] * 3
    assert runs == [b"p"]
    assert len({job.handle for job in jobs}) == 1


def test_a_scheduled_job_runs_at_its_time_and_not_before(server: Server, patient: Timing) -> None:
    ran: list[float] = []
    done = threading.Event()
    worker = HAWorker(server.address, timing=patient)

    @worker.task("later")
    def later(job: JobContext) -> None:
        ran.append(time.time())
        done.set()

    with worker, HAClient(server.address, timing=patient) as client:
        at = time.time() + 0.5
        client.submit("later", background=True, at=at)
        assert done.wait(10)
    assert ran[0] >= at


def test_submit_many_and_map(server: Server, patient: Timing) -> None:
    worker = HAWorker(server.address, concurrency=4, timing=patient)

    @worker.task("odd")
    def odd(job: JobContext) -> bytes:
        if int(job.payload) % 2 == 0:
            raise JobFailed
        return job.payload

    with HAClient(server.address, timing=patient) as client:
        jobs = client.submit_many(
            "bulk", (str(n) for n in range(3000)), uniques=(f"k{n}" for n in range(3000))
        )
        assert len({job.handle for job in jobs}) == 3000
        assert client.status(jobs[-1]).known
        with worker:
            ended = list(client.map("odd", (str(n) for n in range(200)), in_flight=16))
            assert sorted(job.index for job in ended) == list(range(200))
            assert all((job.error is None) == (job.index % 2 == 1) for job in ended)
            in_order = client.map("odd", (str(n) for n in range(50)), in_flight=8, ordered=True)
            assert [job.index for job in in_order] == list(range(50))


def test_a_task_set_runs_all_and_raises_for_none(server: Server, patient: Timing) -> None:
    completed: list[int] = []
    worker = HAWorker(server.address, concurrency=2, timing=patient)
    worker.task("echo")(echo)

    @worker.task("raise")
    def raise_(job: JobContext) -> bytes:
        raise KeyError("x")

    with worker, HAClient(server.address, timing=patient) as client:
        tasks = client.task_set()
        for number in range(5):
            tasks.add("echo", str(number), on_complete=lambda job, data: completed.append(job.index))
        tasks.add("raise")
        tasks.add("echo", "later", background=True)
        jobs = tasks.run(timeout=10)
        assert [job.result() for job in jobs[:5]] == [b"0", b"1", b"2", b"3", b"4"]
        assert isinstance(jobs[5].error, JobException)
        assert jobs[6].handle
        assert sorted(completed) == [0, 1, 2, 3, 4]
        assert len(tasks) == 0
        tasks.add("nobody-does-this")
        with pytest.raises(JobTimeout, match="nobody-does-this") as caught:
            tasks.run(timeout=0.1)
        assert len(caught.value.jobs) == 1


def test_a_job_given_back_comes_again(server: Server, patient: Timing) -> None:
    tries: list[str] = []
    worker = HAWorker(server.address, timing=patient)

    @worker.task("given-back")
    def f(job: JobContext) -> str:
        tries.append(job.handle)
        if len(tries) < 3:
            raise Retry("the database is away")
        return "third time"

    with worker, HAClient(server.address, timing=patient) as client:
        assert client.submit("given-back").result(timeout=15) == b"third time"
    assert len(tries) == 3


def test_a_job_over_its_time_is_the_server_s_to_decide_about(server: Server, patient: Timing) -> None:
    first, second = threading.Event(), threading.Event()
    worker = HAWorker(server.address, concurrency=2, timing=patient)

    @worker.task("overdue", timeout_seconds=1)
    def slow(job: JobContext) -> str:
        if not first.is_set():
            first.set()
            second.wait(15)
            return "too late"
        second.set()
        return "again"

    with worker, HAClient(server.address, timing=patient) as client:
        job = client.submit("overdue")
        assert first.wait(10)
        # A server whose clock works gives it out again, or fails it, as PROTOCOL says. gearmand has forgotten
        # the time because a slot is free and asleep; then the worker reports the failure.
        job.wait(timeout=15)
        second.set()
        assert job.finished
        assert job.error is not None or job.result() == b"again"


def test_stopping_finishes_the_job_that_runs(server: Server, patient: Timing) -> None:
    begun, gate = threading.Event(), threading.Event()
    worker = HAWorker(server.address, timing=patient)

    @worker.task("long")
    def slow(job: JobContext) -> bytes:
        begun.set()
        gate.wait(10)
        return b"finished" if job.stopping else b"not told"

    with HAClient(server.address, timing=patient) as client:
        worker.start()
        job, other = client.submit("long"), client.submit("long")
        begun.wait(10)
        worker.stop(wait=False)
        eventually(lambda: worker._engine is None or worker._engine.draining)
        gate.set()
        assert job.result(timeout=10) == b"finished"
        worker.stop()
        assert not other.finished  # it waits for another worker


def test_a_foreground_job_survives_the_death_of_its_server(
    start_server: Callable[[], Server], quick: Timing
) -> None:
    servers = {server.address: server for server in (start_server(), start_server())}
    begun, gate = threading.Event(), threading.Event()
    worker = HAWorker(servers, concurrency=2, timing=quick)

    @worker.task("f")
    def f(job: JobContext) -> str:
        if not begun.is_set():
            begun.set()
            gate.wait(15)
        return job.server

    with worker, HAClient(servers, timing=quick) as client:
        job = client.submit("f", unique="key")
        assert begun.wait(10)
        first = str(eventually(lambda: job.server))
        servers[first].kill()
        assert job.result(timeout=10).decode() in set(servers) - {first}
        gate.set()
        background = client.submit("f", unique="key", background=True)
        assert background.server != first


def test_one_of_three_down_at_the_start_and_later_another(
    start_server: Callable[[], Server], quick: Timing
) -> None:
    servers = [start_server() for _ in range(3)]
    servers[0].kill()
    addresses = ",".join(server.address for server in servers)
    worker = HAWorker(addresses, concurrency=4, timing=quick)
    worker.task("echo")(echo)
    with worker, HAClient(addresses, timing=quick) as client:
        worker.wait_connected(2)
        payloads = [str(number).encode() for number in range(300)]
        results = []
        for job in client.map("echo", payloads, in_flight=20):
            results.append(job.result())
            if len(results) == 100:
                servers[1].kill()
        assert sorted(results) == sorted(payloads)
        assert worker.connected == worker.servers[2:]


def test_callbacks_may_submit_and_what_they_raise_disturbs_nobody(server: Server, patient: Timing) -> None:
    chained: list[Job] = []
    worker = HAWorker(server.address, timing=patient)
    worker.task("echo")(echo)

    with worker, HAClient(server.address, timing=patient) as client:

        def chain(job: Job, data: bytes) -> None:
            chained.append(client.submit("echo", data + b"!", background=True))
            raise RuntimeError("a bug in a callback")

        assert client.submit("echo", "a", on_complete=chain).result(timeout=10) == b"a"
        assert chained[0].handle


@in_loop
async def test_the_asynchronous_pair(server: Server, patient: Timing) -> None:
    worker = AsyncHAWorker(server.address, concurrency=20, timing=patient)
    both = asyncio.Barrier(20)

    @worker.task("meet")
    async def meet(job: JobContext) -> bytes:
        await both.wait()  # only passes when twenty run at once
        job.send_data(job.payload)
        return job.payload

    heard: list[bytes] = []
    async with worker, AsyncHAClient(server.address, timing=patient) as client:
        numbers = [str(n) for n in range(40)]
        ended = [job async for job in client.map("meet", numbers, in_flight=20)]
        assert sorted([int(await job) for job in ended]) == list(range(40))
        in_order = client.map("meet", [str(n) for n in range(20)], in_flight=20, ordered=True)
        assert [job.index async for job in in_order] == list(range(20))
        jobs = await client.submit_many("bulk", [b"x"] * 500, in_flight=50)
        assert len({job.handle for job in jobs}) == 500
        status = await client.status(jobs[0])
        assert (status.known, status.running) == (True, False)
        tasks = client.task_set()
        for number in range(20):
            tasks.add("meet", str(number), on_data=lambda job, data: heard.append(data))
        assert len(await tasks.run(timeout=10)) == 20
        assert len(heard) == 20
        with pytest.raises(JobTimeout):
            await (await client.submit("nobody-does-this")).result(timeout=0.1)


def test_a_waiting_job_is_cancelled_by_job_reference_or_handle(server: Server, patient: Timing) -> None:
    with HAClient(server.address, timing=patient) as client:
        job = client.submit("never worked", background=True)
        assert client.cancel(job)
        # gearmand keeps a cancelled job in its lists, and would say that it cancels it again.
        if isinstance(server, Node):
            assert not client.status(job).known
            assert not client.cancel(job)
        by_reference = client.submit("never worked", background=True).reference
        assert by_reference is not None
        assert client.cancel(by_reference)
        by_handle = client.submit("never worked", background=True).handle
        assert by_handle is not None
        assert client.cancel(by_handle)
        assert not client.cancel("H:nobody:1")
        with pytest.raises(InvalidArgument):
            client.cancel("H:1\r\nshutdown")
        # Jobs and questions go on around it, in order.
        assert client.submit("never worked", background=True).handle


@in_loop
async def test_a_coroutine_cancels(server: Server, patient: Timing) -> None:
    async with AsyncHAClient(server.address, timing=patient) as client:
        jobs = [await client.submit("never worked", background=True) for _ in range(3)]
        assert await asyncio.gather(*(client.cancel(job) for job in jobs)) == [True] * 3


def test_a_job_is_cancelled_by_its_key(shared_node: Node, patient: Timing) -> None:
    with HAClient(shared_node.address, timing=patient) as client:
        job = client.submit("never worked", unique="a key\r\n%", background=True)
        assert client.cancel_unique("never worked", "a key\r\n%")
        assert not client.status(job).known
        assert not client.cancel_unique("never worked", "a key\r\n%")


def test_a_stock_server_cancels_by_no_key(stock: Gearmand, patient: Timing) -> None:
    with HAClient(stock.address, timing=patient) as client, pytest.raises(ServerRefused):
        client.cancel_unique("f", "key")


def test_a_foreground_job_that_is_cancelled_says_so(server: Server, patient: Timing) -> None:
    with HAClient(server.address, timing=patient) as client:
        job = client.submit("never worked")
        assert client.cancel(job)  # at once: it waits for the acknowledgement
        with pytest.raises(JobCancelled, match="cancelled"):
            job.result(timeout=WAIT_SECONDS)
        job = client.submit("never worked")
        eventually(lambda: job.handle)
        assert client.cancel(job.handle or "")
        with pytest.raises(JobCancelled):
            job.result(timeout=WAIT_SECONDS)


def test_a_foreground_job_cancelled_by_key_says_so_and_another_client_s_has_failed(
    shared_node: Node, patient: Timing
) -> None:
    with HAClient(shared_node.address, timing=patient) as client, HAClient(shared_node.address) as other:
        jobs = [one.submit("never worked", unique="both wait") for one in (client, other)]
        assert all(one.status(job).known for one, job in zip((client, other), jobs, strict=True))
        assert client.cancel_unique("never worked", "both wait")
        with pytest.raises(JobCancelled):
            jobs[0].result(timeout=WAIT_SECONDS)
        with pytest.raises(JobFailed) as caught:
            jobs[1].result(timeout=WAIT_SECONDS)
        assert not isinstance(caught.value, JobCancelled)


@in_loop
async def test_a_coroutine_cancels_what_it_has_just_submitted(server: Server, patient: Timing) -> None:
    async with AsyncHAClient(server.address, timing=patient) as client:
        job = await client.submit("never worked")
        assert await client.cancel(job)
        with pytest.raises(JobCancelled):
            await job.result(timeout=WAIT_SECONDS)


def test_what_no_server_acknowledges_cannot_be_cancelled(patient: Timing) -> None:
    with HAClient("127.0.0.1:1", timing=patient) as client:
        job = client.submit("f")
        with pytest.raises(NoServerAvailable):
            client.cancel(job, timeout=0.1)


def test_a_cancelled_key_may_be_submitted_again(shared_node: Node, patient: Timing) -> None:
    # Nodes remember the keys of HAClient's jobs that are done; one that was taken back is not done.
    with HAClient(shared_node.address, timing=patient) as client:
        first = client.submit("never worked", unique="again", background=True)
        assert client.cancel(first)
        second = client.submit("never worked", unique="again", background=True)
        assert second.handle != first.handle
        assert client.status(second).known


def test_a_schedule_is_made_once_kept_and_cancelled(shared_node: Node, patient: Timing) -> None:
    with HAClient(shared_node.address, timing=patient) as client:
        nightly = client.submit("never worked", unique="nightly", cron="0 3 * * mon-fri")
        assert client.status(nightly).known
        assert (
            client.submit("never worked", unique="nightly", cron="0 3 * * mon-fri").handle == nightly.handle
        )
        assert client.cancel(nightly)
        with pytest.raises(ServerRefused, match="minute"):
            client.submit("never worked", unique="nightly", cron="61 3 * * *")
        # Another time under the same name.
        other = client.submit("never worked", unique="nightly", cron="0 4 * * 7")
        assert other.handle != nightly.handle
        assert client.cancel(other)


def test_a_stock_server_has_no_schedules(stock: Gearmand, patient: Timing) -> None:
    with HAClient(stock.address, timing=patient) as client, pytest.raises(ServerRefused):
        client.submit("f", unique="nightly", cron="0 3 * * *", timeout=5)


def test_a_failure_s_text_reaches_its_client(server: Server, patient: Timing) -> None:
    worker = HAWorker(server.address, timing=patient)

    @worker.task("fail with a text")
    def fail(job: JobContext) -> bytes:
        raise JobFailed("no paper")

    with worker, HAClient(server.address, timing=patient) as client:
        job = client.submit("fail with a text")
        with pytest.raises(JobFailed, match=r"^no paper$"):
            job.result(timeout=10)


@pytest.fixture(scope="module")
def stock() -> Iterator[Gearmand]:
    gearmand = Gearmand("--threads", "0")
    try:
        yield gearmand.start()
    finally:
        gearmand.close()
