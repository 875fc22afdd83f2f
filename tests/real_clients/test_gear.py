"""PyPI's gear (of OpenStack's Zuul) against a node: its Client, Worker and administration requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from cluster.wire import packets as wire
from tests.support import Node, eventually
from tests.support.peer import Peer
from tests.support.waiting import WAIT_SECONDS

gear = pytest.importorskip("gear", reason="needs gear: pip install gear")

# gear still calls Condition.notifyAll().
pytestmark = pytest.mark.filterwarnings("ignore:notifyAll:DeprecationWarning")

Connect = Callable[..., Peer]


@pytest.fixture
def client(shared_node: Node) -> Iterator[Any]:
    client = gear.Client("gear-client")
    client.addServer(shared_node.host, shared_node.port)
    client.waitForServer(timeout=WAIT_SECONDS)
    yield client
    client.shutdown()


@pytest.fixture
def worker(shared_node: Node, function: bytes) -> Iterator[Any]:
    """A gear.Worker that has registered the test's function."""
    worker = gear.Worker("gear-worker-" + function.decode())
    worker.addServer(shared_node.host, shared_node.port)
    worker.waitForServer(timeout=WAIT_SECONDS)
    worker.registerFunction(function.decode())
    eventually(lambda: (shared_node.status(function) or (0, 0, 0))[2] == 1)
    yield worker
    worker.shutdown()


@pytest.fixture
def get_job(worker: Any) -> Iterator[Callable[[], Any]]:
    """worker.getJob() has no time limit of its own: this has."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(worker.stopWaitingForJobs)
        yield lambda: pool.submit(worker.getJob).result(WAIT_SECONDS)


class TestClient:
    def test_a_foreground_job_is_updated_until_it_is_complete(
        self, client: Any, connect: Connect, function: bytes
    ) -> None:
        # Given a job that gear submitted and a worker holds
        job = gear.Job(function, b"payload", unique=b"gear-" + function)
        client.submitJob(job)
        peer = connect()
        peer.can_do(function)
        grabbed = peer.grab_one()
        assert (grabbed.handle, grabbed.payload, grabbed.unique) == (
            job.handle,
            b"payload",
            b"gear-" + function,
        )
        # When the worker reports, then gear's job shows it
        peer.send(wire.WORK_STATUS, grabbed.handle, b"5", b"10")
        peer.send(wire.WORK_DATA, grabbed.handle, b"some data")
        peer.send(wire.WORK_WARNING, grabbed.handle, b"a warning")
        eventually(lambda: (job.fraction_complete, job.warning), (0.5, True))
        # When it is complete, then so is gear's job
        peer.complete(grabbed.handle, b" and more")
        eventually(lambda: job.complete)
        assert not job.failure
        assert b"".join(job.data) == b"some dataa warning and more"

    def test_a_failed_job_is_a_failure(self, client: Any, connect: Connect, function: bytes) -> None:
        job = gear.Job(function, b"")
        client.submitJob(job)
        peer = connect()
        peer.can_do(function)
        peer.send(wire.WORK_FAIL, peer.grab_one().handle)
        eventually(lambda: job.complete)
        assert job.failure

    def test_an_exception_comes_to_who_set_the_option(
        self, client: Any, connect: Connect, function: bytes
    ) -> None:
        assert client.setOption("exceptions", timeout=WAIT_SECONDS)
        job = gear.Job(function, b"")
        client.submitJob(job)
        peer = connect()
        peer.can_do(function)
        peer.send(wire.WORK_EXCEPTION, peer.grab_one().handle, b"why")
        eventually(lambda: job.complete)
        assert (job.failure, job.exception) == (True, b"why")

    def test_background_jobs_of_every_precedence(
        self, client: Any, connect: Connect, function: bytes
    ) -> None:
        for precedence, payload in (
            (gear.PRECEDENCE_LOW, b"low"),
            (gear.PRECEDENCE_NORMAL, b"normal"),
            (gear.PRECEDENCE_HIGH, b"high"),
        ):
            client.submitJob(gear.Job(function, payload), background=True, precedence=precedence)
        peer = connect()
        peer.can_do(function)
        assert [peer.grab_one().payload for _ in range(3)] == [b"high", b"normal", b"low"]


class TestWorker:
    def test_it_gets_a_job_and_reports(
        self, get_job: Callable[[], Any], connect: Connect, function: bytes
    ) -> None:
        # Given a client that waits
        peer = connect()
        handle = peer.submit(function, b"payload", b"unique")
        # When gear's worker gets the job and says all it can
        job = get_job()
        assert (job.handle, job.name, job.unique, job.arguments) == (
            handle,
            function.decode(),
            b"unique",
            b"payload",
        )
        job.sendWorkStatus(1, 2)
        job.sendWorkData(b"data")
        job.sendWorkWarning(b"warning")
        job.sendWorkComplete(b"result")
        # Then the client hears it in that order
        peer.expect(wire.WORK_STATUS, handle, b"1", b"2")
        peer.expect(wire.WORK_DATA, handle, b"data")
        peer.expect(wire.WORK_WARNING, handle, b"warning")
        peer.expect(wire.WORK_COMPLETE, handle, b"result")

    def test_it_fails_and_raises(self, get_job: Callable[[], Any], connect: Connect, function: bytes) -> None:
        peer = connect()
        handle = peer.submit(function)
        get_job().sendWorkFail()
        peer.expect(wire.WORK_FAIL, handle)
        handle = peer.submit(function)
        get_job().sendWorkException(b"why")
        peer.expect(wire.WORK_FAIL, handle)  # this client has not asked for exceptions

    def test_it_wakes_for_a_job_that_comes_while_it_sleeps(
        self, worker: Any, connect: Connect, function: bytes
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(worker.getJob)
            peer = connect()
            peer.submit(function, b"later", background=True)
            assert waiting.result(WAIT_SECONDS).arguments == b"later"

    def test_its_name_and_functions_are_listed(self, worker: Any, shared_node: Node, function: bytes) -> None:
        name = function.decode()
        assert any(f" gear-worker-{name} : {name}" in row for row in shared_node.table("workers"))

    def test_it_may_unregister(self, worker: Any, shared_node: Node, function: bytes) -> None:
        worker.unRegisterFunction(function.decode())
        eventually(lambda: shared_node.status(function) in (None, (0, 0, 0)))


class TestAdministration:
    def ask(self, client: Any, request: Any) -> bytes:
        [connection] = client.active_connections
        connection.sendAdminRequest(request, timeout=WAIT_SECONDS)
        return bytes(request.response)

    def test_text_requests_on_the_connection_of_a_client(
        self, client: Any, connect: Connect, function: bytes
    ) -> None:
        # gear mixes text requests and packets on one connection
        job = gear.Job(function, b"", unique=b"gear-unique-" + function)
        client.submitJob(job, background=True)
        assert function + b"\t1\t0\t0\n" in self.ask(client, gear.StatusAdminRequest())
        assert job.handle + b"\t" in self.ask(client, gear.ShowJobsAdminRequest())
        assert job.unique + b"\n" in self.ask(client, gear.ShowUniqueJobsAdminRequest())
        assert self.ask(client, gear.WorkersAdminRequest()).endswith(b"\n.\n")
        assert self.ask(client, gear.VersionAdminRequest()).startswith(b"OK ")
        assert self.ask(client, gear.CancelJobAdminRequest(job.handle)).startswith(b"OK")
        assert self.ask(client, gear.CancelJobAdminRequest(job.handle)).startswith(b"ERR UNKNOWN_JOB")
