"""The extension against real nodes: one that stands alone, and a fleet of three."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_ha import HAClient, HAWorker, JobContext, Server, Timing
from tests.support import Node, eventually
from tests.support.etcd import Etcd, needs_etcd

FLEET_SECONDS = 30.0  # to start one on a busy machine


class Task:
    """A worker's task that counts, and waits when its payload says so."""

    def __init__(self, servers: str, timing: Timing) -> None:
        self.runs: Counter[str] = Counter()
        self.begun = threading.Event()
        self.free = threading.Event()
        self.worker = HAWorker(servers, concurrency=2, timing=timing, drain_seconds=5.0)
        self.worker.task("f")(self._run)

    def _run(self, job: JobContext) -> bytes:
        self.runs[job.unique] += 1
        if job.text == "wait":
            self.begun.set()
            assert self.free.wait(FLEET_SECONDS)
        return b"done"


def test_a_node_that_stands_alone_remembers_keys_and_keeps_jobs_for_their_worker(
    patient: Timing, tmp_path: Path
) -> None:
    node = Node(tmp_path, "--reclaim-seconds", "20").start()
    try:
        node.options += ["--port", str(node.port)]  # the later one counts
        task = Task(node.address, patient)
        with HAClient(node.address, timing=patient) as client, task.worker as worker:
            # Given a job that has finished
            first = client.submit("f", unique="once", background=True)
            eventually(lambda: not client.status(first).known)
            # When it is submitted again, then it has its old handle and is not run again.
            assert client.submit("f", unique="once", background=True).handle == first.handle
            # Given one that runs while its node dies
            job = client.submit("f", "wait", unique="long", background=True)
            assert task.begun.wait(FLEET_SECONDS)
            client.submit("other", background=True)  # by now it is on disk that it runs
            node.kill()
            node.restart()
            eventually(lambda: worker.stats.moved == 1)
            task.free.set()
            eventually(lambda: not client.status(job).known)
        assert task.runs == {"once": 1, "long": 1}
        assert task.worker.stats.dropped == 0
    finally:
        node.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    etcd = Etcd()
    directory = tmp_path_factory.mktemp("fleet")
    nodes: list[Node] = []
    try:
        etcd.start()
        for name in "abc":
            options = [
                "--etcd",
                etcd.address,
                "--fleet",
                "client",
                "--name",
                name,
                "--advertise",
                "127.0.0.1",
            ]
            options += ["--peer-port", "0", "--http-port", "0"]
            nodes.append(Node(directory / name, *options))
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.port = node.wait_for_event("listening", timeout_seconds=FLEET_SECONDS)["port"]
        yield nodes
    finally:
        for node in nodes:
            node.close()
        etcd.close()


@needs_etcd()
def test_any_node_cancels_a_job_or_a_schedule_of_the_fleet(fleet: list[Node], patient: Timing) -> None:
    everywhere = ",".join(node.address for node in fleet)
    with HAClient(everywhere, timing=patient, submit_timeout=FLEET_SECONDS) as client:
        jobs = [client.submit("never worked", background=True) for _ in range(6)]
        jobs.append(client.submit("never worked", unique="nightly", cron="0 3 * * *"))
        # By a handle alone, from one node that is told of no other.
        for number, job in enumerate(jobs):
            node = fleet[number % len(fleet)]
            with node.connect() as peer:
                assert job.handle is not None
                assert peer.line(f"cancel job {job.handle}") == "OK"
        assert not any(client.cancel(job) for job in jobs)
        for handle in [str(client.submit("never worked", background=True).handle) for _ in range(4)]:
            assert client.cancel(handle)
        keyed = [str(number) for number in range(6)]
        for key in keyed:
            client.submit("never worked", unique=key, background=True)
        assert all(client.cancel_unique("never worked", key) for key in keyed)


@needs_etcd()
def test_one_address_of_a_fleet_is_enough_and_its_nodes_may_die(fleet: list[Node], patient: Timing) -> None:
    everyone = {Server("127.0.0.1", node.port) for node in fleet}
    task = Task(fleet[0].address, patient)
    with HAClient(fleet[0].address, timing=patient) as client, task.worker as worker:
        # Given a client and a worker that were told one address, then they know all nodes
        client.submit("f", background=True, timeout=FLEET_SECONDS)
        eventually(lambda: set(client.servers) == everyone)
        worker.wait_connected(3, FLEET_SECONDS)
        # and a job goes straight to the node that leads its slot: who acknowledges it has named its handle.
        names = {node.address: name for node, name in zip(fleet, "abc", strict=True)}

        def straight() -> bool:
            jobs = client.submit_many("f", [""] * 30)
            return all((job.handle or "").split(":")[1] == names[job.server or ""] for job in jobs)

        eventually(straight)
        # A repeat after the end is the old job.
        first = client.submit("f", unique="once", background=True)
        eventually(lambda: not client.status(first).known)
        assert client.submit("f", unique="once", background=True).handle == first.handle
        # When the node of a running job is killed, then submits go on, the worker keeps the job,
        job = client.submit("f", "wait", unique="long", background=True)
        assert task.begun.wait(FLEET_SECONDS)
        client.submit_many("f", [""] * 300)  # by now the others know that it runs
        victim = next(node for node in fleet if node.address == job.server)
        victim.kill()
        client.submit_many("f", [""] * 100)
        eventually(lambda: worker.stats.moved == 1)
        # and its result is taken by the heir, once.
        task.free.set()
        eventually(lambda: not client.status(job).known)
        assert task.runs["long"] == 1
        assert task.runs["once"] == 1
        # And the repeat is still recognised there.
        assert client.submit("f", unique="once", background=True).handle == first.handle


def test_a_stopped_node_is_noticed_and_its_jobs_go_elsewhere(quick: Timing, tmp_path: Path) -> None:
    nodes = [Node(tmp_path / str(number)) for number in range(2)]
    try:
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.port = node.wait_for_event("listening", timeout_seconds=FLEET_SECONDS)["port"]
        with HAClient(",".join(node.address for node in nodes), timing=quick) as client:
            client.submit_many("f", [""] * 20)
            nodes[0].signal(signal.SIGSTOP)
            jobs = client.submit_many("f", [""] * 20, timeout=FLEET_SECONDS)
            assert {job.server for job in jobs} == {nodes[1].address}
            nodes[0].signal(signal.SIGCONT)
            eventually(lambda: nodes[0].address in {j.server for j in client.submit_many("f", [""] * 20)})
    finally:
        for node in nodes:
            if node.running:
                node.signal(signal.SIGCONT)
            node.close()
