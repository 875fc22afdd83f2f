"""PHP's gearman extension (pecl gearman over libgearman; package php-gearman) against a node."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.wire import packets as wire
from tests.support import Node, eventually
from tests.support.machine import needs_php_gearman
from tests.support.peer import Peer
from tests.support.program import Program, RunProgram, wait_for_workers

pytestmark = needs_php_gearman()

Connect = Callable[..., Peer]

CLIENT = """
$client = new GearmanClient();
$client->addServer('127.0.0.1', (int) $argv[1]);
$client->setTimeout(15000);
$function = $argv[2];
function show($value) { echo json_encode($value), "\\n"; }
"""

WORKER = """
$worker = new GearmanWorker();
$worker->addServer('127.0.0.1', (int) $argv[1]);
$worker->setTimeout(15000);
$function = $argv[2];
"""

WORK = """
while ($worker->work()) { }
fwrite(STDERR, $worker->error());
exit(1);
"""

Php = Callable[..., Program]


@pytest.fixture
def php(shared_node: Node, run_program: RunProgram, function: bytes) -> Php:
    """Run PHP code with the node's port and the test's function as arguments."""

    def run(code: str, *arguments: str) -> Program:
        return run_program("php", "-r", code, "--", str(shared_node.port), function.decode(), *arguments)

    return run


@pytest.fixture
def client(php: Php) -> Callable[..., list[Any]]:
    """Run PHP code with a GearmanClient as $client; returns what it gave to show()."""

    def run(code: str, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in php(CLIENT + code, *arguments).output().splitlines()]

    return run


@pytest.fixture
def worker(php: Php, shared_node: Node, function: bytes) -> Callable[[str], Program]:
    """Start a PHP worker whose function has this body, with the GearmanJob as $job."""

    def run(body: str) -> Program:
        code = f"{WORKER} $worker->addFunction($function, function (GearmanJob $job) {{ {body} }}); {WORK}"
        program = php(code)
        wait_for_workers(shared_node, function)
        return program

    return run


Client = Callable[..., list[Any]]
StartWorker = Callable[[str], Program]


class TestClient:
    def test_do_normal_high_and_low_return_the_result(self, client: Client, worker: StartWorker) -> None:
        worker("return strrev($job->workload());")
        assert client("""
            show($client->doNormal($function, 'normal'));
            show($client->doHigh($function, 'high'));
            show($client->doLow($function, 'low'));
            show($client->returnCode() === GEARMAN_SUCCESS);
        """) == ["lamron", "hgih", "wol", True]

    def test_add_server_may_ask_for_exceptions(self, client: Client) -> None:
        # addServer sends OPTION_REQ exceptions at once and throws when it is refused
        assert client("show($client->ping('are you there'));") == [True]

    def test_background_jobs_of_every_priority(
        self, client: Client, connect: Connect, function: bytes
    ) -> None:
        # Given jobs submitted low, normal, high
        handles = client("""
            show($client->doLowBackground($function, 'low'));
            show($client->doBackground($function, 'normal'));
            show($client->doHighBackground($function, 'high'));
        """)
        assert len(set(handles)) == 3
        # When a worker takes them
        peer = connect()
        peer.can_do(function)
        jobs = []
        for _ in handles:
            jobs.append(peer.grab_one())
            peer.complete(jobs[-1].handle)
        # Then the highest comes first, under the handle that PHP was given
        assert [job.payload for job in jobs] == [b"high", b"normal", b"low"]
        assert [job.handle.decode() for job in jobs] == handles[::-1]

    def test_task_set_runs_callbacks(self, client: Client, worker: StartWorker) -> None:
        # Given a worker that tells all it can about a job
        worker("""
            $job->sendStatus(1, 2);
            $job->sendData('part of ' . $job->workload());
            $job->sendWarning('careful, ' . $job->workload());
            $job->sendStatus(2, 2);
            return 'done ' . $job->workload();
        """)
        # When a client adds tasks of every priority and runs them
        events = client("""
            foreach (['Created', 'Status', 'Data', 'Warning', 'Complete', 'Fail'] as $event) {
                $client->{"set{$event}Callback"}(function (GearmanTask $task) use ($event) {
                    show([$event, $task->unique(), $event === 'Status'
                        ? $task->taskNumerator() . '/' . $task->taskDenominator() : $task->data()]);
                });
            }
            $client->addTask($function, 'a', null, 'unique-a');
            $client->addTaskHigh($function, 'b', null, 'unique-b');
            $client->addTaskLow($function, 'c', null, 'unique-c');
            show($client->runTasks());
        """)
        # Then each task has met each callback once, in the order in which the worker spoke
        assert events.pop() is True
        for letter in "abc":
            mine = [[event, data] for event, unique, data in events if unique == f"unique-{letter}"]
            assert [event for event, _ in mine] == [
                "Created", "Status", "Data", "Warning", "Status", "Complete",
            ]  # fmt: skip
            assert [data for _, data in mine][1:] == [
                "1/2",
                f"part of {letter}",
                f"careful, {letter}",
                "2/2",
                f"done {letter}",
            ]
        assert len(events) == 3 * 6

    def test_background_tasks_are_created_and_not_waited_for(
        self, shared_node: Node, client: Client, function: bytes
    ) -> None:
        shown = client("""
            $client->setCreatedCallback(function (GearmanTask $task) { show($task->jobHandle()); });
            $client->addTaskBackground($function, 'normal');
            $client->addTaskHighBackground($function, 'high');
            $client->addTaskLowBackground($function, 'low');
            show($client->runTasks());
        """)
        assert len(set(shown[:-1])) == 3
        assert shown[-1] is True
        assert f"{function.decode()}\t1\t1\t1\t0" in shared_node.table("prioritystatus")

    def test_a_failed_job_is_a_failure(self, client: Client, worker: StartWorker) -> None:
        worker("$job->sendFail();")
        assert client("""
            $client->setFailCallback(function (GearmanTask $task) { show(['fail', $task->unique()]); });
            $client->addTask($function, 'x', null, 'unique-x');
            $client->runTasks();
            $client->doNormal($function, 'y');
            show($client->returnCode() === GEARMAN_WORK_FAIL);
        """) == [["fail", "unique-x"], True]

    def test_an_exception_reaches_the_client_that_asked_for_exceptions(
        self, client: Client, worker: StartWorker
    ) -> None:
        worker("$job->sendException('it broke: ' . $job->workload());")
        assert client("""
            $client->setExceptionCallback(function (GearmanTask $task) { show($task->data()); });
            $client->addTask($function, 'x');
            $client->runTasks();
        """) == ["it broke: x"]

    def test_status_by_handle_while_running_and_when_done(
        self, php: Php, connect: Connect, function: bytes
    ) -> None:
        # Given a background job from PHP that a worker is half way through
        handle = php(CLIENT + "show($client->doBackground($function, 'x'));").output()
        peer = connect()
        peer.can_do(function)
        job = peer.grab_one()
        assert json.loads(handle).encode() == job.handle
        peer.send(wire.WORK_STATUS, job.handle, b"3", b"6")
        peer.settle()
        # When PHP asks, then it is known, running and half done
        ask = CLIENT + "show($client->jobStatus($argv[3]));"
        assert json.loads(php(ask, job.handle.decode()).output()) == [True, True, 3, 6]
        # When it is done, then it is not known any more
        peer.complete(job.handle)
        peer.settle()
        assert json.loads(php(ask, job.handle.decode()).output())[:2] == [False, False]

    def test_status_by_unique(self, php: Php, client: Client, connect: Connect, function: bytes) -> None:
        unique = f"unique-of-{function.decode()}"
        connect().submit(function, unique=unique.encode(), background=True)
        # [known, running, numerator, denominator]
        assert client("show($client->jobStatusByUniqueKey($argv[3]));", unique) == [[True, False, 0, 0]]

    def test_status_in_a_task_set(self, client: Client, connect: Connect, function: bytes) -> None:
        handle = connect().submit(function, background=True)
        assert client(
            """
            $client->setStatusCallback(function (GearmanTask $task) {
                show([$task->isKnown(), $task->isRunning()]);
            });
            $client->addTaskStatus($argv[3]);
            $client->runTasks();
            """,
            handle.decode(),
        ) == [[True, False]]

    def test_tasks_with_one_unique_run_once(self, php: Php, connect: Connect, function: bytes) -> None:
        # Given two PHP clients that want the same thing
        code = CLIENT + "show($client->doNormal($function, 'x', 'the-same-' . $function));"
        clients = [php(code), php(code)]
        peer = connect()
        peer.can_do(function)
        job = peer.wait_for_job()

        def attached() -> bytes:
            return peer.ask(wire.GET_STATUS_UNIQUE, job.unique).arguments[5]

        eventually(attached, b"2")
        # When it is done once, then both have it
        peer.complete(job.handle, b"shared")
        assert [json.loads(client.output()) for client in clients] == ["shared", "shared"]

    def test_a_hundred_tasks_at_once(self, client: Client, worker: StartWorker) -> None:
        worker("return (string) (2 * (int) $job->workload());")
        assert client("""
            $sum = 0; $count = 0;
            $client->setCompleteCallback(function (GearmanTask $task) use (&$sum, &$count) {
                $sum += (int) $task->data(); $count++;
            });
            for ($i = 0; $i < 100; $i++) { $client->addTask($function, (string) $i); }
            $client->runTasks();
            show([$count, $sum]);
        """) == [[100, 9900]]

    def test_binary_payload_comes_back_unchanged(self, client: Client, worker: StartWorker) -> None:
        worker("return $job->workload();")
        assert client("""
            $payload = str_repeat(implode('', array_map('chr', range(0, 255))), 4000);
            show($client->doNormal($function, $payload) === $payload);
            show($client->doNormal($function, '') === '');
        """) == [True, True]


class TestWorker:
    def test_it_knows_its_job(self, worker: StartWorker, connect: Connect, function: bytes) -> None:
        worker("""return json_encode([$job->handle(), $job->functionName(), $job->unique(),
                                      $job->workload(), $job->workloadSize()]);""")
        peer = connect()
        handle = peer.submit(function, b"payload", b"unique")
        result = peer.expect(wire.WORK_COMPLETE, handle)[1]
        assert json.loads(result) == [handle.decode(), function.decode(), "unique", "payload", 7]

    def test_it_sends_progress_data_and_warnings(
        self, worker: StartWorker, connect: Connect, function: bytes
    ) -> None:
        worker("""
            $job->sendStatus(1, 4);
            $job->sendData('some');
            $job->sendWarning('hm');
            $job->sendComplete('all');
        """)
        peer = connect()
        handle = peer.submit(function)
        peer.expect(wire.WORK_STATUS, handle, b"1", b"4")
        peer.expect(wire.WORK_DATA, handle, b"some")
        peer.expect(wire.WORK_WARNING, handle, b"hm")
        peer.expect(wire.WORK_COMPLETE, handle, b"all")

    def test_its_exception_is_a_failure_for_who_did_not_ask_for_exceptions(
        self, worker: StartWorker, connect: Connect, function: bytes
    ) -> None:
        worker("$job->sendException('why');")
        peer, asking = connect(), connect()
        assert asking.ask(wire.OPTION_REQ, b"exceptions").type == wire.OPTION_RES
        handle = peer.submit(function, unique=b"1")
        peer.expect(wire.WORK_FAIL, handle)
        handle = asking.submit(function, unique=b"2")
        asking.expect(wire.WORK_EXCEPTION, handle, b"why")
        peer.settle()
        asking.settle()

    def test_its_id_is_listed(self, php: Php, shared_node: Node, function: bytes) -> None:
        php(
            WORKER
            + """$worker->setId('php-' . $function);
                 $worker->addFunction($function, function ($job) { return ''; });"""
            + WORK
        )
        wait_for_workers(shared_node, function)
        name = function.decode()
        assert any(f" php-{name} : {name}" in row for row in shared_node.table("workers"))

    def test_it_may_unregister(self, php: Php, shared_node: Node, function: bytes) -> None:
        # Given a worker of two functions that gives one up
        name = function.decode()
        php(
            WORKER
            + """foreach (['-a', '-b'] as $end) {
                     $worker->addFunction($function . $end, function ($job) { return ''; });
                 }
                 $worker->unregister($function . '-a');"""
            + WORK
        )
        # Then only the other is listed
        wait_for_workers(shared_node, f"{name}-b".encode())
        eventually(lambda: shared_node.status(f"{name}-a") in (None, (0, 0, 0)))

    def test_two_workers_share_the_work(
        self, worker: StartWorker, client: Client, shared_node: Node, function: bytes
    ) -> None:
        worker("usleep(2000); return (string) getmypid();")
        worker("usleep(2000); return (string) getmypid();")
        wait_for_workers(shared_node, function, 2)
        [seen] = client("""
            $seen = [];
            $client->setCompleteCallback(function (GearmanTask $task) use (&$seen) {
                $seen[$task->data()] = true;
            });
            for ($i = 0; $i < 50; $i++) { $client->addTask($function, (string) $i); }
            $client->runTasks();
            show(count($seen));
        """)
        assert seen == 2
