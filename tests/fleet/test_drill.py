"""`gearfleet drill` against a real fleet: what it does, what it refuses, and that it mends what it began."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from client_ha import HAWorker, JobContext, Server
from cluster.cli.drill import REMEMBER_SECONDS_DEFAULT
from cluster.cli.root import root
from cluster.drill.faults import Means
from cluster.drill.history import History
from cluster.drill.run import Drill, Exit, Outcome, Plan
from cluster.drill.watch import Watch
from cluster.drill.workload import LOCK, NotReady, Workload
from cluster.server.settings import Settings
from tests.support import Fleet, eventually
from tests.support.fleet import FLEET_SECONDS
from tests.support.machine import need_command
from tests.support.node import ServerProcess
from tests.support.program import Program

GEARFLEET = str(Path(sys.executable).with_name("gearfleet"))
DRILL_SECONDS = 90.0
FUNCTION = "drill.echo"

StartDrill = Callable[..., Program]

_TELL = """
import socket, sys
with socket.socket(socket.AF_UNIX) as keeper:
    keeper.connect(sys.argv[1])
    keeper.sendall(" ".join(sys.argv[2:]).encode() + b"\\n")
    sys.exit(keeper.recv(100) != b"done\\n")
"""


class Keeper:
    """Does to the fleet's processes what commands tell it, as docker and systemd would.

    The processes that it starts end with its thread, so it lives as long as the fleet.
    """

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self._hung: list[socket.socket] = []
        self.reset()
        self._program = directory / "tell.py"
        self._program.write_text(_TELL)
        self._path = directory / "keeper"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        self.deaf_to_starts = False  # it answers, and starts nothing
        self.hangs_at_starts = False  # it does not even answer
        self.done: list[str] = []
        self.faults: list[str] = []  # its own
        # Commands that it left without an answer outlive a drill that leaves at once.
        for connection in self._hung:
            connection.close()
        self._hung.clear()

    def command(self, what: str) -> str:
        return shlex.join([sys.executable, "-S", str(self._program), str(self._path)]) + f" {what} {{node}}"

    @property
    def options(self) -> list[str]:
        return ["--kill-command", self.command("kill"), "--start-command", self.command("start")]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(FLEET_SECONDS)
        assert not self._thread.is_alive(), f"it still obeys, after {self.done}"
        self.reset()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # Whatever becomes of one command: without this thread no other is heard, and its processes end.
            try:
                if self._obey(connection):
                    connection.close()
                else:
                    self._hung.append(connection)
            except Exception as error:
                self.faults.append(repr(error))
                connection.close()

    def _obey(self, connection: socket.socket) -> bool:
        """Whether whoever told it something need not wait any more."""
        connection.settimeout(FLEET_SECONDS)
        told = connection.recv(100).decode().strip()
        what, name = told.split()
        if what == "start" and self.hangs_at_starts:
            self.done.append(told)
            return False
        if what == "kill":
            self.fleet.kill(name)
        elif not self.deaf_to_starts and not self.fleet.nodes[name].running:
            self.fleet.restart(name)
        self.done.append(told)
        with contextlib.suppress(BrokenPipeError):  # its time was over, and it was killed
            connection.sendall(b"done\n")
        return True


class Running(ServerProcess):
    """A drill that is watched while it runs; it says everything on standard error."""

    def __init__(self, fleet: Fleet, *options: str) -> None:
        super().__init__()
        peers = ",".join(f"127.0.0.1:{node.peer_port}" for node in fleet.nodes.values())
        quick = ["--pause", "0.3s", "--recovery-timeout", "30s", "--peer", peers]
        self._spawn([GEARFLEET, "drill", "--json", "--fleet", fleet.fleet, *quick, *options], os.environ)

    def wait_for(self, text: str) -> None:
        self.wait_for_line(lambda line: text in line, timeout_seconds=DRILL_SECONDS)


@contextlib.contextmanager
def running(fleet: Fleet, *options: str) -> Iterator[Running]:
    drill = Running(fleet, *options)
    try:
        yield drill
    finally:
        drill.close()


@pytest.fixture(scope="module")
def module_keeper(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    keeper = Keeper(fleet, tmp_path_factory.mktemp("keeper"))
    yield keeper
    keeper.close()


@pytest.fixture
def keeper(fleet: Fleet, module_keeper: Keeper) -> Iterator[Keeper]:
    """It has nothing done yet, and the fleet is whole before and after."""
    module_keeper.reset()
    make_whole(fleet)
    yield module_keeper
    assert module_keeper.faults == []
    make_whole(fleet)


def make_whole(fleet: Fleet) -> None:
    """No node down, and nothing left of a drill: what one test leaves must not fail the next."""
    for node in fleet.nodes.values():
        if not node.running:
            node.spawn()
    fleet.wait_until_in_sync()
    if any(left(fleet)):
        worker = HAWorker(fleet.addresses, concurrency=4)
        worker.task(FUNCTION)(lambda job: None)
        worker.task(f"{FUNCTION}.order")(lambda job: None)
        with worker:
            eventually(lambda: not any(found and found[0] for found in left(fleet)))
        for node in fleet.nodes.values():
            for function in (FUNCTION, f"{FUNCTION}.order"):
                eventually(lambda: "connected" not in node.line(f"drop function {function}"))  # noqa: B023


def drill_here(fleet: Fleet, *options: str) -> Result:
    """A drill that ends before it begins, within this process: it need not start."""
    logger = logging.getLogger("client_ha")
    level = logger.level
    try:
        peers = f"127.0.0.1:{fleet.nodes['a'].peer_port}"
        return CliRunner().invoke(root, ["drill", "--peer", peers, *options])
    finally:
        logger.setLevel(level)  # a drill makes clients quiet, and nobody else asked for that


@pytest.fixture
def start_drill(fleet: Fleet) -> Iterator[StartDrill]:
    programs: list[Program] = []

    def start(*options: str) -> Program:
        peers = ",".join(f"127.0.0.1:{node.peer_port}" for node in fleet.nodes.values())
        quick = ["--pause", "0.3s", "--hold", "1s", "--recovery-timeout", "30s", "--peer", peers]
        programs.append(Program([GEARFLEET, "drill", "--fleet", fleet.fleet, *quick, *options]))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


def left(fleet: Fleet) -> list[tuple[int, int, int] | None]:
    """What the nodes have of the drill's functions."""
    return [node.status(FUNCTION) or node.status(f"{FUNCTION}.order") for node in fleet.serving_nodes]


def test_nodes_are_killed_and_drained_in_turn_and_nothing_is_lost(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill, tmp_path: Path
) -> None:
    scenarios = ["--scenario", "rolling-kill", "--scenario", "drain", "--node", "a"]
    report, history = tmp_path / "drill.html", tmp_path / "drill.jsonl"
    drill = start_drill(
        *keeper.options, *scenarios, "--json", "--report", str(report), "--history", str(history)
    )
    assert drill.wait(DRILL_SECONDS) == 0, drill.stderr
    said = json.loads(drill.stdout)
    assert keeper.done == ["kill a", "start a", "start a"]
    assert said["exit_code"] == 0
    assert said["faults"] == 2
    verdict = said["verdict"]
    assert verdict["valid"]
    assert verdict["acknowledged"] > 100
    assert verdict["lost"] == verdict["unexpected"] == verdict["duplicated_unexplained"] == []
    jobs = History.load(history)
    assert any(event.order and event.key.startswith(f"{FUNCTION}.order/") for event in jobs.events)
    # Nothing is left behind, not even the functions' names.
    assert left(fleet) == [None, None, None]
    assert "<svg" in report.read_text()
    assert len(history.read_text().splitlines()) > 200


@pytest.mark.parametrize(
    ("remember_seconds", "code"), [(0.0, Exit.KEPT), (REMEMBER_SECONDS_DEFAULT, Exit.BROKEN)]
)
def test_keys_are_judged_as_long_as_nodes_remember_them(
    fleet: Fleet, keeper: Keeper, remember_seconds: float, code: Exit
) -> None:
    history = History()
    for handle in ("first", "second"):  # one key, two jobs, one after the other
        history.ack(history.submit("f/1"), handle=handle)
        history.run("f/1", worker="w", handle=handle)
        history.done("f/1", worker="w", handle=handle)
    servers = [Server("127.0.0.1", node.port) for node in fleet.nodes.values()]
    watch = Watch([Server("127.0.0.1", fleet.nodes["a"].peer_port)])
    plan = Plan((), tuple("abc"), (), pause_seconds=0.1, remember_seconds=remember_seconds)
    workload = Workload(history, servers, drill_id="d", function=FUNCTION)

    async def play() -> Outcome:
        return await Drill(plan, Means(), watch, workload, history, str).run()

    outcome = asyncio.run(play())
    assert outcome.code is code, outcome.reasons
    assert outcome.verdict is not None
    assert bool(outcome.verdict.coalescing_broken) == (code is Exit.BROKEN)


def test_keys_are_judged_by_the_nodes_own_default() -> None:
    assert Settings.model_fields["remember_seconds"].default == REMEMBER_SECONDS_DEFAULT


def test_a_dry_run_tells_the_plan_and_does_nothing(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill
) -> None:
    before = [node.process_id for node in fleet.nodes.values()]
    drill = start_drill("--dry-run", *keeper.options)
    assert drill.wait(DRILL_SECONDS) == 0
    lines = drill.stdout.decode().splitlines()
    assert lines[0] == f"fleet {fleet.fleet}: a, b, c; 3 copies, 2 acknowledge"
    assert [line.split()[1:4] for line in lines[3:10]] == [
        *(["rolling-kill", "kill", name + ";"] for name in "abc"),
        ["leader-loss", "kill", "the"],
        *(["drain", "drain", name + ";"] for name in "abc"),
    ]
    assert lines[-1].strip().endswith("keeper start a")
    assert b"left out: slow-link: needs --toxiproxy" in drill.stderr
    assert keeper.done == []
    assert [node.process_id for node in fleet.nodes.values()] == before
    assert left(fleet) == [None, None, None]


def test_a_plan_says_when_its_kills_are_none(fleet: Fleet, keeper: Keeper) -> None:
    said = drill_here(fleet, "--kill-with", "kubectl", "--dry-run").output
    assert "delete a; it comes back by itself" in said
    assert "! kubectl deletes the pod, which is no kill -9" in said
    said = drill_here(fleet, "--kill-with", "docker", "--dry-run").output
    assert "kubectl" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenario", "rolling-kill"], "rolling-kill: needs --kill-with or --kill-command"),
        (["--scenario", "slow-link"], "slow-link: needs --toxiproxy"),
        (["--comes-back", "--fleet", "another"], "the fleet that answers is called"),
        (["--comes-back", "--node", "x"], "has no node called x; it has a, b, c"),
        (["--comes-back", "--report", "/nowhere/x.html"], "--report: there is no folder /nowhere"),
        (["--comes-back", "--history", "/nowhere/x"], "--history: there is no folder /nowhere"),
        (["--comes-back", "--report", "/"], "File '/' is a directory"),
        (["--comes-back", "--duration", "soon"], "is no time: write 90s, 10m or 1h30m"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(
    fleet: Fleet, options: list[str], message: str
) -> None:
    said = drill_here(fleet, "--fleet", fleet.fleet, *options)
    assert said.exit_code == 2
    assert message in said.output
    assert left(fleet) == [None, None, None]


def test_no_drill_begins_on_a_function_in_use(fleet: Fleet, keeper: Keeper, start_drill: StartDrill) -> None:
    with fleet.connect("a") as somebody:
        somebody.can_do(FUNCTION.encode())
        somebody.settle()
        drill, dry = start_drill(*keeper.options), drill_here(fleet, *keeper.options, "--dry-run")
        assert drill.wait(DRILL_SECONDS) == 2
    in_use = f"{FUNCTION} or {FUNCTION}.order is in use (0 jobs, 1 workers)"
    assert in_use.encode() in drill.stdout
    assert f"It would not begin now: {in_use}" in dry.output
    assert keeper.done == []
    with fleet.connect("a") as somebody:
        somebody.submit(FUNCTION.encode(), b"left", b"", background=True)
        left_over = drill_here(fleet, *keeper.options, "--dry-run")
    assert f"gearfleet work {FUNCTION} {FUNCTION}.order -- true takes them off" in left_over.output


def test_no_drill_begins_where_nobody_says_which_fleet_is_meant(fleet: Fleet, keeper: Keeper) -> None:
    drill = drill_here(fleet, *keeper.options)
    assert drill.exit_code == 2
    assert f"nobody can be asked here whether {fleet.fleet} is to be broken" in drill.output
    assert keeper.done == []


def test_what_breaks_by_itself_ends_a_fault_early_and_is_told(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill, tmp_path: Path
) -> None:
    stopped, started = tmp_path / "stopped", tmp_path / "started"
    etcd = ["--etcd-stop-command", f"touch {stopped}", "--etcd-start-command", f"touch {started}"]
    drill = start_drill(*etcd, "--scenario", "etcd-outage", "--hold", "5m")
    eventually(stopped.exists, timeout_seconds=DRILL_SECONDS)
    fleet.kill("c")
    eventually(started.exists, timeout_seconds=DRILL_SECONDS)
    fleet.restart("c")
    assert drill.wait(DRILL_SECONDS) == 0, drill.stdout + drill.stderr
    assert b"c went down, and not by this drill" in drill.stdout
    assert b"c is back" in drill.stdout
    assert b"no node has missed etcd" in drill.stdout


@pytest.mark.parametrize("how", ["Ctrl-C", "the terminal closes"])
def test_when_interrupted_it_mends_what_it_broke_and_leaves_nothing(
    fleet: Fleet, keeper: Keeper, how: str
) -> None:
    # On a terminal, where all of its process group hear the Ctrl-C
    ours, its = os.openpty()
    drill = subprocess.Popen(
        [
            *(need_command("setsid"), "--ctty", GEARFLEET, "drill", *keeper.options, "--pause", "0.3s"),
            *("--scenario", "leader-loss", "--hold", "5m", "--node", "b", "--fleet", fleet.fleet),
            *("--peer", f"127.0.0.1:{fleet.nodes['a'].peer_port}"),
        ],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(its)
    shown, enough = bytearray(), threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal closes with the process
            while not enough.is_set():
                if select.select([ours], [], [], 0.05)[0]:
                    shown.extend(os.read(ours, 65536))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        eventually(lambda: keeper.done == ["kill b"], timeout_seconds=DRILL_SECONDS)
        eventually(lambda: b"fault 1 of 1" in shown, timeout_seconds=DRILL_SECONDS)
        if how == "Ctrl-C":
            os.write(ours, b"\x03")
        else:
            enough.set()
            reader.join()
            os.close(ours)
        assert drill.wait(DRILL_SECONDS) == 130, shown
    finally:
        drill.kill()
        drill.wait()
        if not enough.is_set():
            reader.join()
            os.close(ours)
    assert keeper.done == ["kill b", "start b"]
    assert how != "Ctrl-C" or b"Interrupted; everything is mended" in shown
    assert fleet.out_of_sync() == ""
    assert left(fleet) == [None, None, None]


def test_the_second_interruption_leaves_at_once_and_tells_how_to_mend(fleet: Fleet, keeper: Keeper) -> None:
    keeper.hangs_at_starts = True
    options = ["--scenario", "rolling-kill", "--node", "b", "--function", "left.over"]
    with running(fleet, *keeper.options, *options) as drill:
        eventually(lambda: keeper.done == ["kill b", "start b"], timeout_seconds=DRILL_SECONDS)
        drill.signal(signal.SIGTERM)
        drill.wait_for("a second Ctrl-C leaves at once")
        drill.signal(signal.SIGINT)
        assert drill.wait_for_exit(10.0) == 130
    said = "\n".join(drill.log_lines)
    assert f"b may be down: {shlex.join(shlex.split(keeper.command('start').format(node='b')))}" in said
    assert "may have jobs left: gearfleet work left.over left.over.order -- true" in said


def test_a_terminal_that_closes_is_no_second_interruption_though_it_says_so_twice(
    fleet: Fleet, keeper: Keeper
) -> None:
    options = ["--scenario", "leader-loss", "--hold", "5m", "--node", "b"]
    with running(fleet, *keeper.options, *options) as drill:
        eventually(lambda: keeper.done == ["kill b"], timeout_seconds=DRILL_SECONDS)
        drill.signal(signal.SIGHUP)
        drill.wait_for("stopping: everything is mended first")
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            drill.signal(number)
        assert drill.wait_for_exit(DRILL_SECONDS) == 130
    assert keeper.done == ["kill b", "start b"]
    assert fleet.out_of_sync() == ""


def test_the_only_node_is_started_again(fleet: Fleet, tmp_path: Path) -> None:
    """While it is dead nobody can be asked."""
    with Fleet(tmp_path, "a", "--replicas", "1", etcd=fleet.etcd, fleet=tmp_path.name) as alone:
        alone.start()
        keeper = Keeper(alone, tmp_path)
        with (
            contextlib.closing(keeper),
            running(alone, *keeper.options, "--scenario", "rolling-kill") as drill,
        ):
            drill.wait_for("nobody answers: a counts as killed")
            assert drill.wait_for_exit(DRILL_SECONDS) == 0, drill.log_lines
            assert keeper.done == ["kill a", "start a"]


def test_an_interruption_while_the_queues_run_empty_cuts_that_short(
    fleet: Fleet, keeper: Keeper, tmp_path: Path
) -> None:
    wait = f"sh -c 'while ! test -e {tmp_path}/go; do sleep 0.05; done'"
    etcd = ["--scenario", "etcd-outage", "--etcd-stop-command", "true", "--etcd-start-command", wait]
    options = ["--recovery-timeout", "5m", "--hold", "0.1s", "--command-timeout", "5m"]
    taken, go_on = threading.Event(), threading.Event()
    thief = HAWorker(fleet.addresses, concurrency=4)

    @thief.task(FUNCTION)
    def keep(job: JobContext) -> None:
        taken.set()
        go_on.wait(DRILL_SECONDS)

    with running(fleet, *etcd, *options) as drill, contextlib.ExitStack() as stack:
        drill.wait_for("submitting")
        stack.enter_context(thief)
        assert taken.wait(DRILL_SECONDS)
        (tmp_path / "go").touch()
        drill.wait_for("waiting for the last jobs")
        drill.signal(signal.SIGINT)
        assert drill.wait_for_exit(DRILL_SECONDS) == 130
        go_on.set()
    said = "\n".join(drill.log_lines)
    assert "stopping: the last jobs are not waited for" in said
    assert f"are left: gearfleet work {FUNCTION} {FUNCTION}.order -- true takes them off" in said


def test_two_drills_at_once_are_one_too_many(fleet: Fleet, keeper: Keeper, start_drill: StartDrill) -> None:
    """Though they have nothing in common but the fleet."""
    with running(fleet, *keeper.options, "--scenario", "drain", "--pause", "5m") as first:
        first.wait_for("submitting")
        second = start_drill(*keeper.options, "--scenario", "drain", "--function", "another")
        assert second.wait(DRILL_SECONDS) == 2
        assert b"another drill goes on in this fleet" in second.stdout
        first.signal(signal.SIGINT)
        assert first.wait_for_exit(DRILL_SECONDS) == 130
    assert keeper.done == []
    assert [node.status(LOCK) for node in fleet.nodes.values()] == [None, None, None]


def test_of_two_drills_that_begin_at_the_same_time_not_both_go_on(fleet: Fleet, keeper: Keeper) -> None:
    async def begin() -> list[BaseException | None]:
        servers = [Server("127.0.0.1", node.port) for node in fleet.nodes.values()]
        drills = [
            Workload(History(), servers, drill_id=f"d{number}", function=f"drill{number}")
            for number in range(2)
        ]
        try:
            for drill in drills:
                await drill.check_unused()
            return await asyncio.gather(*(drill.start() for drill in drills), return_exceptions=True)
        finally:
            for drill in drills:
                await drill.close()

    ends = asyncio.run(begin())
    assert any(isinstance(end, NotReady) and "another drill" in str(end) for end in ends)


def test_who_reads_what_a_drill_says_and_leaves_does_not_change_its_exit_code(
    fleet: Fleet, keeper: Keeper
) -> None:
    peers = f"127.0.0.1:{fleet.nodes['a'].peer_port}"
    etcd = ["--etcd-stop-command", "/nonexistent", "--etcd-start-command", "true"]
    options = ["--scenario", "etcd-outage", "--pause", "0.3s", "--fleet", fleet.fleet, "--peer", peers]
    with subprocess.Popen(
        [GEARFLEET, "drill", *etcd, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as drill:
        assert drill.stdout is not None
        assert drill.stderr is not None
        drill.stdout.readline()
        drill.stdout.close()
        complaints = drill.stderr.read()
        assert drill.wait(DRILL_SECONDS) == 2
    assert b"Pipe" not in complaints


def test_a_command_that_fails_ends_the_drill_with_nothing_broken(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill
) -> None:
    # So few jobs that there may be none: that proves nothing, and breaks no promise.
    options = ["--kill-command", "false {node}", "--comes-back", "--scenario", "rolling-kill"]
    drill = start_drill(*options, "--rate", "0.1")
    assert drill.wait(DRILL_SECONDS) == 2
    assert b"false a: ended with 1" in drill.stdout
    assert fleet.out_of_sync() == ""
    assert left(fleet) == [None, None, None]


def test_a_node_that_does_not_come_back_is_told_and_no_other_drill_begins(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill
) -> None:
    keeper.deaf_to_starts = True
    drill = start_drill(
        *keeper.options, "--scenario", "rolling-kill", "--node", "c", "--recovery-timeout", "2s"
    )
    assert drill.wait(DRILL_SECONDS) == 3
    remedy = f"c may be down: {shlex.join(shlex.split(keeper.command('start').format(node='c')))}"
    assert f"the fleet is not whole after 2 s: c is down. {remedy}".encode() in drill.stdout
    assert drill.stdout.count(b"is not whole after") == 2  # when it happens, and in the end
    eventually(lambda: fleet.status().under_replicated, timeout_seconds=FLEET_SECONDS)
    another = drill_here(fleet, *keeper.options, "--fleet", fleet.fleet)
    assert another.exit_code == 2
    assert "is degraded, and a drill would make it worse: c is down" in another.output
    assert keeper.done == ["kill c", "start c"]


def test_jobs_that_somebody_takes_away_are_lost_and_the_exit_code_says_so(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill
) -> None:
    """Also of a drill that was interrupted."""
    taken: list[str] = []
    thief = HAWorker(fleet.addresses, concurrency=4)
    thief.task(FUNCTION)(lambda job: taken.append(job.handle))
    drill = start_drill(*keeper.options, "--scenario", "rolling-kill", "--pause", "5m", "--json")
    eventually(lambda: any(left(fleet)), timeout_seconds=DRILL_SECONDS)
    with thief:
        eventually(lambda: len(taken) > 20, timeout_seconds=DRILL_SECONDS)  # not only foreground jobs
        drill.process.send_signal(signal.SIGINT)
        assert drill.wait(DRILL_SECONDS) == 1
    said = json.loads(drill.stdout)
    assert not said["verdict"]["valid"]
    assert said["verdict"]["lost"][0]["key"].startswith(FUNCTION + "/")
    assert any("lost" in reason for reason in said["reasons"])


def test_a_job_of_somebody_else_ends_the_drill_and_is_left_to_its_owner(
    fleet: Fleet, keeper: Keeper, start_drill: StartDrill
) -> None:
    drill = start_drill(*keeper.options, "--scenario", "rolling-kill", "--pause", "5m")
    eventually(lambda: any(left(fleet)), timeout_seconds=DRILL_SECONDS)
    with fleet.connect("a") as somebody:
        somebody.submit(FUNCTION.encode(), b"precious", b"theirs", background=True)
        assert drill.wait(DRILL_SECONDS) == 2
    assert f"somebody else uses {FUNCTION}".encode() in drill.stdout
    assert keeper.done == []
    found: list[bytes] = []
    owner = HAWorker(fleet.addresses)
    owner.task(FUNCTION)(lambda job: found.append(job.payload))
    with owner:
        eventually(lambda: found == [b"precious"], timeout_seconds=FLEET_SECONDS)
