"""Clients whose servers die, fall silent, or refuse."""

# ruff: noqa: SIM117  (servers outside, clients inside)

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from client_ha import (
    AsyncHAClient,
    ClientClosed,
    HAClient,
    JobLost,
    JobTimeout,
    NoServerAvailable,
    NotAllAcknowledged,
    Server,
    ServerBusy,
    ServerRefused,
    Timing,
)
from client_ha import timing as limits
from client_ha.routing import RendezvousRouter
from cluster.wire.packets import (
    ERROR,
    GET_STATUS,
    GET_STATUS_UNIQUE,
    JOB_CREATED,
    STATUS_RES,
    STATUS_RES_UNIQUE,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    SUBMIT_JOB_EPOCH,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_STATUS,
    WORK_WARNING,
)
from tests.client_ha.fake_server import FakeServer, in_loop
from tests.support import need_command


def addresses(*servers: FakeServer) -> str:
    return ",".join(server.address for server in servers)


def key_for(preferred: FakeServer, *servers: FakeServer, function: bytes = b"f") -> str:
    """A unique key that prefers this server."""
    router = RendezvousRouter([Server("127.0.0.1", server.port) for server in servers])
    for number in range(1000):
        key = f"key-{number}"
        if router.order(function, key.encode())[0].port == preferred.port:
            return key
    raise AssertionError("no key prefers it")


@in_loop
async def test_a_job_goes_to_the_server_that_its_key_prefers_even_when_another_is_connected_first(
    quick: Timing,
) -> None:
    async with FakeServer() as one, FakeServer() as two, AsyncHAClient(addresses(one, two)) as client:
        for server in (one, two, one, two):
            job = await client.submit("f", b"p\0q", unique=(key := key_for(server, one, two)))
            connection, arguments = await server.expect(SUBMIT_JOB)
            assert arguments == [b"f", key.encode(), b"p\0q"]
            connection.send(JOB_CREATED, b"H:1")
            connection.send(WORK_COMPLETE, b"H:1", b"r\0s")
            assert await job == b"r\0s"
            assert job.handle == "H:1"
            assert job.server == server.address
            assert job.reference == f"{server.address}//H:1"


@in_loop
async def test_a_server_that_is_down_at_the_start_costs_nothing(quick: Timing) -> None:
    down = await FakeServer().start()
    await down.stop()
    async with FakeServer() as up:
        key = key_for(down, down, up)
        async with AsyncHAClient(addresses(down, up), timing=quick) as client:
            job = await client.submit("f", unique=key)
            connection, _ = await up.expect(SUBMIT_JOB)
            connection.send(JOB_CREATED, b"H:1")
            connection.send(WORK_COMPLETE, b"H:1", b"")
            assert await job == b""


@in_loop
async def test_a_job_not_acknowledged_goes_to_the_next_server_with_the_same_key(
    quick: Timing,
) -> None:
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            key = key_for(one, one, two)
            submit = asyncio.create_task(client.submit("f", "p", unique=key, background=True))
            await one.expect(SUBMIT_JOB_BG)
            await one.stop()
            connection, arguments = await two.expect(SUBMIT_JOB_BG)
            assert arguments == [b"f", key.encode(), b"p"]
            connection.send(JOB_CREATED, b"H:2")
            assert (await submit).server == two.address


@in_loop
async def test_without_a_key_the_repeat_carries_the_made_one(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        job = await client.submit("f")
        connection, first = await one.expect(SUBMIT_JOB)
        connection.drop()
        _, second = await one.expect(SUBMIT_JOB)
        assert first == second
        assert second[1] == job.unique.encode()
        assert len(second[1]) > 32


@in_loop
async def test_a_silent_server_is_probed_and_given_up(quick: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            one.silent = True
            job = await client.submit("f", unique=key_for(one, one, two))
            connection, _ = await one.expect(SUBMIT_JOB)
            await two.expect(SUBMIT_JOB)
            assert connection.echoes == 1
            assert not job.finished


@in_loop
async def test_a_server_that_answers_probes_keeps_its_job(quick: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            job = await client.submit("f", unique=key_for(one, one, two))
            connection, _ = await one.expect(SUBMIT_JOB)
            await one.until(lambda: connection.echoes >= 5)
            connection.send(JOB_CREATED, b"H:1")
            connection.send(WORK_COMPLETE, b"H:1", b"slow")
            assert await job == b"slow"
            assert two.heard == []


@in_loop
async def test_an_idle_connection_is_probed_too_and_replaced(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick):
        await one.until(lambda: one.connections and one.connections[0].echoes)
        first = one.connections[0]
        one.silent = True
        await one.until(lambda: one.connections and first not in one.connections)


@in_loop
async def test_a_foreground_job_whose_server_dies_is_submitted_again(quick: Timing) -> None:
    heard: list[str] = []
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            job = await client.submit(
                "f",
                unique=key_for(one, one, two),
                on_data=lambda job, data: heard.append(data.decode()),
                on_status=lambda job, n, d: heard.append(f"{n}/{d}"),
                on_warning=lambda job, data: heard.append(data.decode()),
                on_complete=lambda job, data: heard.append(f"complete {data.decode()}"),
            )
            connection, _ = await one.expect(SUBMIT_JOB)
            connection.send(JOB_CREATED, b"H:1")
            connection.send(WORK_DATA, b"H:1", b"half")
            connection.send(WORK_STATUS, b"H:1", b"1", b"2")
            await turns_until(lambda: len(heard) == 2)
            assert (job.handle, job.numerator, job.denominator) == ("H:1", 1, 2)
            await one.stop()
            connection, _ = await two.expect(SUBMIT_JOB)
            assert job.handle is None
            connection.send(JOB_CREATED, b"H:7")
            connection.send(WORK_WARNING, b"H:7", b"careful")
            connection.send(WORK_COMPLETE, b"H:7", b"whole")
            assert await job == b"whole"
            assert job.server == two.address
    assert heard == ["half", "1/2", "careful", "complete whole"]


async def turns_until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it holds; for what no event announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@in_loop
async def test_a_job_that_every_server_dies_of_is_lost_after_a_bounded_number_of_tries(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        job = await client.submit("f")
        for number in range(limits.RESUBMITS_MAX + 1):
            connection, _ = await one.expect(SUBMIT_JOB)
            connection.send(JOB_CREATED, b"H:%d" % number)
            connection.drop()
        with pytest.raises(JobLost, match="went away"):
            await job


@in_loop
async def test_an_acknowledged_background_job_is_never_sent_again(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        submit = asyncio.create_task(client.submit("f", background=True))
        connection, _ = await one.expect(SUBMIT_JOB_BG)
        connection.send(JOB_CREATED, b"H:1")
        await submit
        connection.drop()
        await one.until(lambda: one.connections and connection not in one.connections)
        other = asyncio.create_task(client.submit("g", background=True))
        _, arguments = await one.expect(SUBMIT_JOB_BG)
        assert arguments[0] == b"g"
        other.cancel()


@in_loop
async def test_without_any_server_the_error_lists_what_was_tried(quick: Timing) -> None:
    gone = await FakeServer().start()
    await gone.stop()
    async with FakeServer() as mute:
        mute.silent = True
        servers = f"{gone.address},{mute.address}"
        async with AsyncHAClient(servers, timing=quick, submit_timeout=0.3) as client:
            with pytest.raises(NoServerAvailable) as caught:
                await client.submit("f", background=True)
            reasons = dict(caught.value.attempts)
            assert reasons[gone.address] == "connection refused"
            assert set(reasons) == {gone.address, mute.address}
            assert gone.address in str(caught.value)
            job = await client.submit("f")
            with pytest.raises(NoServerAvailable):
                await job.result(timeout=0.05)  # waiting ended, the job goes on
            assert not job.finished
            with pytest.raises(NoServerAvailable):
                await job  # now its own time is up
            with pytest.raises(NoServerAvailable):
                await client.status("H:1", timeout=0.1)


@in_loop
async def test_a_name_that_cannot_be_one_is_an_attempt_like_others(quick: Timing) -> None:
    name = "x" * 64 + ".invalid"  # no label may be that long; the resolver raises UnicodeError
    async with AsyncHAClient(name, timing=quick) as client:
        with pytest.raises(NoServerAvailable) as caught:
            await client.submit("f", background=True, timeout=0.2)
        assert "not connected yet" not in caught.value.attempts[0][1]


@in_loop
async def test_jobs_wait_for_a_server_that_comes_up(quick: Timing) -> None:
    server = await FakeServer().start()
    await server.stop()
    async with AsyncHAClient(server.address, timing=quick) as client:
        jobs = [await client.submit("f", str(number)) for number in range(3)]
        await server.start()
        for number, job in enumerate(jobs):
            connection, arguments = await server.expect(SUBMIT_JOB)
            assert arguments[2] == str(number).encode()
            connection.send(JOB_CREATED, b"H:%d" % number)
            connection.send(WORK_COMPLETE, b"H:%d" % number, b"")
            await job
        await server.stop()


@in_loop
async def test_a_full_queue_is_tried_elsewhere_then_again_then_raised(quick: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            key = key_for(one, one, two)
            submit = asyncio.create_task(client.submit("f", unique=key, background=True))
            for server in (one, two, one):
                connection, _ = await server.expect(SUBMIT_JOB_BG)
                connection.send(ERROR, b"QUEUE_ERROR", b"Job queue is full")
            connection, _ = await two.expect(SUBMIT_JOB_BG)
            connection.send(JOB_CREATED, b"H:1")
            assert (await submit).server == two.address

            submit = asyncio.create_task(client.submit("f", unique=key, background=True, timeout=0.3))

            async def refuse(server: FakeServer) -> None:
                while True:
                    connection, _ = await server.expect(SUBMIT_JOB_BG)
                    connection.send(ERROR, b"QUEUE_ERROR", b"Job queue is full")

            refusing = [asyncio.create_task(refuse(server)) for server in (one, two)]
            with pytest.raises(ServerBusy, match="Job queue is full") as caught:
                await submit
            assert caught.value.code == "QUEUE_ERROR"
            for task in refusing:
                task.cancel()


@in_loop
async def test_another_refusal_is_raised_at_once_and_belongs_to_its_own_job(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        first, second, third = [await client.submit(name) for name in ("f", "g", "h")]
        for _ in range(3):
            connection, _ = await one.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:1")
        connection.send(ERROR, b"ARGUMENT_TOO_LARGE", b"Unique value too large")
        connection.send(JOB_CREATED, b"H:3")
        with pytest.raises(ServerRefused, match=r"'g'.*ARGUMENT_TOO_LARGE") as caught:
            await second
        assert caught.value.server == one.address
        assert first.handle == "H:1"
        assert third.handle == "H:3"


@in_loop
async def test_a_server_without_the_exceptions_option_serves_as_well(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        one.knows_options = False
        job = await client.submit("f")
        connection, _ = await one.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:1")
        connection.send(WORK_COMPLETE, b"H:1", b"well")
        assert await job == b"well"


@in_loop
async def test_over_tls_and_only_to_whom_the_context_trusts(quick: Timing, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        need_command("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += ["-nodes", "-subj", "/CN=gearman", "-addext", "subjectAltName=IP:127.0.0.1"]
    await asyncio.to_thread(
        subprocess.run, [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    trusting = ssl.create_default_context(cafile=certificate)
    one = FakeServer()
    one.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    one.tls.load_cert_chain(certificate, key)
    async with one:
        async with AsyncHAClient(one.address, tls=trusting) as client:
            job = await client.submit("f", "secret")
            connection, arguments = await one.expect(SUBMIT_JOB)
            assert arguments[2] == b"secret"
            connection.send(JOB_CREATED, b"H:1")
            connection.send(WORK_COMPLETE, b"H:1", b"")
            await job
        async with AsyncHAClient(one.address, tls=ssl.create_default_context(), timing=quick) as client:
            with pytest.raises(NoServerAvailable, match=r"(?i)certificate"):
                await client.submit("f", background=True, timeout=0.3)


@in_loop
async def test_jobs_with_one_key_share_a_submit(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        jobs = [await client.submit("f", unique="k", timeout=wait) for wait in (None, 0.1, None)]
        connection, _ = await one.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:1")
        with pytest.raises(JobTimeout, match="H:1"):
            await jobs[1]  # its own time is up; the others are not disturbed
        late = await client.submit("f", unique="k")
        assert late.handle == "H:1"
        connection.send(WORK_COMPLETE, b"H:1", b"once")
        assert [await jobs[0], await jobs[2], await late] == [b"once"] * 3
        await client.submit("f", unique="k")
        await one.expect(SUBMIT_JOB)  # the first has ended: this is another job
        assert one.heard == []


@in_loop
async def test_an_answer_to_a_job_that_timed_out_is_not_taken_for_another_s(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        first = await client.submit("f", timeout=0.05)
        connection, _ = await one.expect(SUBMIT_JOB)
        with pytest.raises(NoServerAvailable, match="did not acknowledge"):
            await first
        second = await client.submit("f")
        await one.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:1")
        connection.send(JOB_CREATED, b"H:2")
        connection.send(WORK_EXCEPTION, b"H:1", b"nobody waits")
        connection.send(WORK_COMPLETE, b"H:2", b"right")
        assert await second == b"right"


@in_loop
async def test_status_asks_the_issuer_first_then_the_others(quick: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        async with AsyncHAClient(addresses(one, two), timing=quick) as client:
            question = asyncio.create_task(client.status(f"{two.address}//H:9"))
            connection, arguments = await two.expect(GET_STATUS)
            assert arguments == [b"H:9"]
            assert one.heard == []
            connection.send(STATUS_RES, b"H:9", b"0", b"0", b"0", b"0")
            connection, _ = await one.expect(GET_STATUS)
            connection.send(STATUS_RES, b"H:9", b"1", b"1", b"3", b"4")
            status = await question
            assert (status.known, status.running, status.numerator, status.denominator) == (True, True, 3, 4)

            by_key = asyncio.create_task(client.status_unique("k"))
            connection, _ = await one.expect(GET_STATUS_UNIQUE)
            connection.send(ERROR, b"INVALID_COMMAND", b"Command not expected")  # an old server
            connection, _ = await two.expect(GET_STATUS_UNIQUE)
            connection.send(STATUS_RES_UNIQUE, b"k", b"1", b"0", b"0", b"0", b"2")
            assert (await by_key).clients == 2


@in_loop
async def test_what_is_no_gearman_server_is_named_in_the_error(quick: Timing) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with AsyncHAClient(f"127.0.0.1:{port}", timing=quick) as client:
        with pytest.raises(NoServerAvailable, match="does not speak Gearman"):
            await client.submit("f", background=True, timeout=0.3)
    listener.close()


@in_loop
async def test_a_server_that_accepts_and_hangs_up_is_not_hammered(patient: Timing) -> None:
    async with FakeServer() as one:
        one.hangs_up = True
        async with AsyncHAClient(one.address, timing=patient) as client:
            with pytest.raises(NoServerAvailable):
                await client.submit("f", background=True, timeout=0.5)
        assert 2 < one.accepted < 40  # pauses of 5 to 50 ms


@in_loop
async def test_submit_many_is_pipelined_and_bounded(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        many = asyncio.create_task(client.submit_many("f", [str(n) for n in range(10)], in_flight=4))
        await one.until(lambda: len(one.heard) == 4)
        connection = one.connections[0]
        connection.send(JOB_CREATED, b"H:0")
        connection.send(JOB_CREATED, b"H:1")
        await one.until(lambda: len(one.heard) == 6)
        connection.send(ERROR, b"INVALID_ARGUMENT", b"no")
        for number in range(3, 6):
            connection.send(JOB_CREATED, b"H:%d" % number)
        await one.until(lambda: len(one.heard) == 10)
        for number in range(6, 10):
            connection.send(JOB_CREATED, b"H:%d" % number)
        with pytest.raises(NotAllAcknowledged, match="1 of 10") as caught:
            await many
        assert [job.index for job in caught.value.failed] == [2]
        assert [job.handle for job in caught.value.jobs[3:5]] == ["H:3", "H:4"]


@in_loop
async def test_map_takes_payloads_only_as_there_is_room(quick: Timing) -> None:
    taken: list[int] = []

    def payloads() -> object:
        for number in range(5):
            taken.append(number)
            yield str(number)

    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        ended = client.map("f", payloads(), in_flight=2)  # type: ignore[arg-type]
        first = asyncio.ensure_future(anext(ended))
        await one.until(lambda: len(one.heard) == 2)
        assert taken == [0, 1]
        connection = one.connections[0]
        connection.send(JOB_CREATED, b"H:0")
        connection.send(JOB_CREATED, b"H:1")
        connection.send(WORK_COMPLETE, b"H:1", b"second")
        job = await first
        assert (job.index, await job) == (1, b"second")
        following = asyncio.ensure_future(anext(ended))
        await one.until(lambda: len(one.heard) == 3)
        assert taken == [0, 1, 2]
        following.cancel()


@in_loop
async def test_a_scheduled_job_is_sent_with_its_second(quick: Timing) -> None:
    async with FakeServer() as one, AsyncHAClient(one.address, timing=quick) as client:
        submit = asyncio.create_task(client.submit("f", "p", unique="k", background=True, at=2e9 - 0.5))
        connection, arguments = await one.expect(SUBMIT_JOB_EPOCH)
        assert arguments == [b"f", b"k", b"2000000000", b"p"]
        connection.send(JOB_CREATED, b"H:1")
        await submit


@in_loop
async def test_closing_ends_everything_under_way(quick: Timing) -> None:
    async with FakeServer() as one:
        client = AsyncHAClient(one.address, timing=quick)
        acknowledged, not_yet = await client.submit("f"), await client.submit("g")
        connection, _ = await one.expect(SUBMIT_JOB)
        connection.send(JOB_CREATED, b"H:1")
        await one.expect(SUBMIT_JOB)
        await turns_until(lambda: acknowledged.handle)
        await client.close()
        for job in (acknowledged, not_yet):
            with pytest.raises(ClientClosed):
                await job
        with pytest.raises(ClientClosed):
            await client.submit("f")


def test_the_synchronous_client_fails_over_in_the_same_way(quick: Timing) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with FakeServer() as one, FakeServer() as two:
            with HAClient(addresses(one, two), timing=quick) as client:
                key = key_for(one, one, two)
                submit = loop.run_in_executor(
                    None, lambda: client.submit("f", unique=key, background=True, timeout=10)
                )
                await one.expect(SUBMIT_JOB_BG)
                await one.stop()
                connection, _ = await two.expect(SUBMIT_JOB_BG)
                connection.send(JOB_CREATED, b"H:2")
                job = await submit
                assert job.server == two.address
                await two.stop()
                waiting = loop.run_in_executor(None, lambda: client.submit("f", background=True, timeout=0.2))
                with pytest.raises(NoServerAvailable):
                    await waiting

    asyncio.run(asyncio.wait_for(scenario(), 15))
