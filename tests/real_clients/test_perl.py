"""Perl's Gearman::Client, Taskset and Worker (package libgearman-client-perl) against a node."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.wire import packets as wire
from tests.support import Node, eventually
from tests.support.machine import needs_perl_gearman
from tests.support.peer import Peer
from tests.support.program import Program, RunProgram, wait_for_workers

pytestmark = needs_perl_gearman()

Connect = Callable[..., Peer]

CLIENT = """
use strict; use warnings;
use Gearman::Client; use Gearman::Task; use JSON::PP;
my ($port, $function, @more) = @ARGV;
my $client = Gearman::Client->new(job_servers => ["127.0.0.1:$port"], exceptions => 1);
$| = 1;
sub show { print JSON::PP->new->allow_nonref->encode($_[0]), "\\n" }
"""

WORKER = """
use strict; use warnings;
use Gearman::Worker;
my ($port, $function) = @ARGV;
my $worker = Gearman::Worker->new(job_servers => ["127.0.0.1:$port"], client_id => "perl-$function");
"""

Perl = Callable[..., Program]
Client = Callable[..., list[Any]]
StartWorker = Callable[[str], Program]


@pytest.fixture
def perl(shared_node: Node, run_program: RunProgram, function: bytes) -> Perl:
    """Run Perl code with the node's port and the test's function as arguments."""

    def run(code: str, *arguments: str) -> Program:
        return run_program("perl", "-e", code, str(shared_node.port), function.decode(), *arguments)

    return run


@pytest.fixture
def client(perl: Perl) -> Client:
    """Run Perl code with a $client; returns what it gave to show()."""

    def run(code: str, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in perl(CLIENT + code, *arguments).output().splitlines()]

    return run


@pytest.fixture
def worker(perl: Perl, shared_node: Node, function: bytes) -> StartWorker:
    """Start a Perl worker whose function has this body, with the Gearman::Job as $job."""

    def run(body: str) -> Program:
        code = f"$worker->register_function($function, sub {{ my ($job) = @_; {body} }}); $worker->work;"
        program = perl(WORKER + code)
        wait_for_workers(shared_node, function)
        return program

    return run


class TestClient:
    def test_do_task_returns_the_result(self, client: Client, worker: StartWorker) -> None:
        worker("return scalar reverse $job->arg;")
        assert client("show(${ $client->do_task($function, 'hello') });") == ["olleh"]

    @pytest.mark.parametrize("priority", ["high", "normal", "low"])
    def test_do_task_of_every_priority(self, client: Client, worker: StartWorker, priority: str) -> None:
        worker("return $job->arg;")
        assert client("show(${ $client->do_task($function, 'x', { priority => $more[0] }) });", priority) == [
            "x"
        ]

    def test_dispatch_background_and_get_status(
        self, client: Client, connect: Connect, function: bytes
    ) -> None:
        # Given a background job from Perl
        [handle] = client("show($client->dispatch_background($function, 'later'));")
        ask = """
            my $status = $client->get_status($more[0]);
            show(defined $status ? [map { defined $_ ? "$_" : undef }
                 $status->known, $status->running, @{ $status->progress || [] }] : undef);
        """
        # Then its handle names the server, and its status is that it waits
        assert "//H:" in handle
        [waiting] = client(ask, handle)
        assert waiting[:2] == ["1", "0"]
        # When a worker is at it, then its status says so
        peer = connect()
        peer.can_do(function)
        job = peer.grab_one()
        assert job.payload == b"later"
        peer.send(wire.WORK_STATUS, job.handle, b"1", b"3")
        peer.settle()
        assert client(ask, handle) == [["1", "1", "1", "3"]]

    def test_a_task_set_with_all_hooks(self, client: Client, worker: StartWorker) -> None:
        # Given a worker that speaks in every way
        worker("""
            $job->set_status(1, 2);
            $worker->send_work_data($job, 'part');
            $worker->send_work_warning($job, 'careful');
            return 'done ' . $job->arg;
        """)
        # When a client waits for a set of three tasks
        events = client("""
            my $tasks = $client->new_task_set;
            for my $name ('a', 'b', 'c') {
                $tasks->add_task(Gearman::Task->new($function, \\$name, {
                    on_status   => sub { show([$name, 'status', "$_[0]/$_[1]"]) },
                    on_data     => sub { show([$name, 'data', ${ $_[0] }]) },
                    on_warning  => sub { show([$name, 'warning', ${ $_[0] }]) },
                    on_complete => sub { show([$name, 'complete', ${ $_[0] }]) },
                    on_fail     => sub { show([$name, 'fail']) },
                }));
            }
            $tasks->wait;
        """)
        # Then each task's hooks ran once, in the worker's order
        for name in "abc":
            assert [event[1:] for event in events if event[0] == name] == [
                ["status", "1/2"],
                ["data", "part"],
                ["warning", "careful"],
                ["complete", f"done {name}"],
            ]
        assert len(events) == 12

    def test_tasks_of_one_set_with_one_unique_run_once_and_all_complete(
        self, perl: Perl, connect: Connect, function: bytes
    ) -> None:
        # Given two tasks with one unique, from one connection
        client = perl(
            CLIENT
            + """
            my $tasks = $client->new_task_set;
            $tasks->add_task($function, 'x', { uniq => "same-$function",
                on_complete => sub { show(${ $_[0] }) } }) for 1 .. 2;
            $tasks->wait(timeout => 15);
            """
        )
        peer = connect()
        peer.can_do(function)
        job = peer.wait_for_job()
        eventually(lambda: peer.ask(wire.GET_STATUS_UNIQUE, job.unique).arguments[5], b"2")
        # When the one job is done, then each task has its result
        peer.complete(job.handle, b"once")
        assert client.output().split() == [b'"once"', b'"once"']
        assert peer.grab() is None

    def test_a_failed_task_is_tried_again_by_the_client(self, client: Client, worker: StartWorker) -> None:
        # Given a worker that fails the first two times
        worker('our $tries; return ++$tries > 2 ? "try $tries" : undef;')
        # When the client allows retries, then it resubmits and gets the result
        assert client("""
            my $tasks = $client->new_task_set;
            $tasks->add_task($function, 'x', { retry_count => 3,
                on_retry => sub { show("retry $_[0]") },
                on_fail => sub { show('fail') },
                on_complete => sub { show(${ $_[0] }) } });
            $tasks->wait(timeout => 15);
        """) == ["retry 1", "retry 2", "try 3"]

    def test_a_failure_without_retries_is_final(self, client: Client, worker: StartWorker) -> None:
        worker("return undef;")
        assert client("""
            show(defined $client->do_task($function, 'x', { on_fail => sub { show('failed') } }) ? 1 : 0);
        """) == ["failed", 0]

    def test_the_server_s_status_is_read(self, client: Client, connect: Connect, function: bytes) -> None:
        # get_job_server_status speaks the text protocol on the same port
        connect().submit(function, background=True)
        assert client("""
            my $status = $client->get_job_server_status;
            my ($row) = map { $_->{$function} } values %$status;
            show([map { 0 + $row->{$_} } qw(queued running capable)]);
        """) == [[1, 0, 0]]

    def test_binary_payload_comes_back_unchanged(self, client: Client, worker: StartWorker) -> None:
        worker("return $job->arg;")
        assert client("""
            my $payload = join('', map { chr } 0 .. 255) x 4000;
            show(${ $client->do_task($function, \\$payload) } eq $payload ? 'same' : 'changed');
        """) == ["same"]


class TestWorker:
    def test_it_serves_any_client(self, worker: StartWorker, connect: Connect, function: bytes) -> None:
        worker("$job->set_status(1, 2); return $job->handle . ' ' . $job->arg;")
        peer = connect()
        handle = peer.submit(function, b"payload")
        peer.expect(wire.WORK_STATUS, handle, b"1", b"2")
        peer.expect(wire.WORK_COMPLETE, handle, handle + b" payload")

    def test_progress_may_be_a_fraction_and_a_percentage(
        self, worker: StartWorker, connect: Connect, function: bytes
    ) -> None:
        # Given a worker that an ERROR would end, and that says its progress as people do
        worker("""
            $job->set_status(0.5, 1);
            $job->set_status('50%', '');
            $job->set_status(-1, 100);
            return 'done';
        """)
        peer = connect()
        for _ in range(2):
            handle = peer.submit(function, b"")
            for numbers in ((b"0.5", b"1"), (b"50%", b""), (b"-1", b"100")):
                peer.expect(wire.WORK_STATUS, handle, *numbers)
            peer.expect(wire.WORK_COMPLETE, handle, b"done")

    def test_a_prefix_and_its_tab_are_part_of_the_name(
        self, perl: Perl, run_program: RunProgram, shared_node: Node, connect: Connect, function: bytes
    ) -> None:
        perl(
            WORKER + "$worker->prefix('site'); $worker->register_function($function, sub { 'done' }); "
            "$worker->work while 1;"
        )
        name = b"site\t" + function
        wait_for_workers(shared_node, name)
        # A job of that name is its own, and gearfleet's tables show it among the others
        peer = connect()
        handle = peer.submit(name, b"")
        peer.expect(wire.WORK_COMPLETE, handle, b"done")
        gearfleet = str(Path(sys.executable).with_name("gearfleet"))
        listed = run_program(gearfleet, "status", "--json", "-s", shared_node.address).output()
        assert {"function": name.decode(), "workers": 1}.items() <= next(
            row for row in json.loads(listed) if row["function"].endswith(function.decode())
        ).items()

    def test_its_death_is_an_exception_and_no_error_follows(
        self, worker: StartWorker, connect: Connect, function: bytes
    ) -> None:
        # Given a worker whose function dies: it sends WORK_EXCEPTION and then WORK_FAIL for the same job
        worker("die \"it broke\\n\" if $job->arg eq 'bad'; return 'good';")
        asking = connect()
        asking.ask(wire.OPTION_REQ, b"exceptions")
        # When a job makes it die, then who asked for exceptions gets one end, the exception
        handle = asking.submit(function, b"bad")
        assert b"it broke" in asking.expect(wire.WORK_EXCEPTION, handle)[1]
        asking.settle()
        # And the worker, which would die of an unexpected ERROR, takes the next job
        handle = asking.submit(function, b"fine")
        asking.expect(wire.WORK_COMPLETE, handle, b"good")

    def test_it_may_limit_its_time(self, perl: Perl, shared_node: Node, function: bytes) -> None:
        # register_function with a time limit sends CAN_DO_TIMEOUT
        perl(WORKER + "$worker->register_function($function, 5000, sub { 1 }); $worker->work;")
        wait_for_workers(shared_node, function)

    def test_its_id_is_listed(self, worker: StartWorker, shared_node: Node, function: bytes) -> None:
        worker("return 1;")
        name = function.decode()
        assert any(f" perl-{name} : {name}" in row for row in shared_node.table("workers"))

    def test_it_may_unregister(self, perl: Perl, shared_node: Node, function: bytes) -> None:
        perl(
            WORKER
            + """$worker->register_function("$function-$_", sub { 1 }) for 'a', 'b';
                 $worker->unregister_function("$function-a");
                 $worker->work;"""
        )
        name = function.decode()
        wait_for_workers(shared_node, f"{name}-b".encode())
        eventually(lambda: shared_node.status(f"{name}-a") in (None, (0, 0, 0)))

    def test_it_wakes_for_a_job_that_comes_while_it_sleeps(
        self, worker: StartWorker, connect: Connect, function: bytes
    ) -> None:
        # Perl's worker sleeps 10 s or more between its own looks: only a NOOP makes this fast
        worker("return 'awake';")
        peer = connect()
        for _ in range(3):
            handle = peer.submit(function)
            assert peer.expect(wire.WORK_COMPLETE, handle, timeout_seconds=5)[1] == b"awake"
