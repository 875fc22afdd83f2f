"""The commands for a fleet, against three real nodes."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator

import pytest

from tests.cli.conftest import GEARFLEET, RunCommand, run_process
from tests.support import eventually
from tests.support.etcd import needs_etcd
from tests.support.fleet import SHORT_LEASE, Fleet

pytestmark = needs_etcd()


@pytest.fixture(scope="module")
def whole_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), ("a", "b", "c"), *SHORT_LEASE) as fleet:
        fleet.start()
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Fleet:
    """Whole again, whatever the test before has done to it."""
    for node in whole_fleet.nodes.values():
        if not node.running:
            node.close()
            node.spawn()
    whole_fleet.wait_until_in_sync()
    return whole_fleet


def peer(fleet: Fleet, *names: str) -> list[str]:
    return ["--peer", ",".join(f"127.0.0.1:{fleet.nodes[name].peer_port}" for name in names or ("a",))]


def test_the_map_is_a_letter_for_each_slot(fleet: Fleet, gearfleet: RunCommand) -> None:
    lines = gearfleet("map", *peer(fleet)).out.decode().splitlines()
    drawn = "".join(line[7:] for line in lines[:16])
    assert len(drawn) == 1024
    rows = json.loads(gearfleet("map", "--json", *peer(fleet)).out)["slots"]
    assert drawn.lower() == "".join(row["primary"] for row in rows)
    assert [line.split()[:3] for line in lines[19:22]] == [[n.upper(), n, "up"] for n in "abc"]


def test_slots_are_shown_one_by_one(fleet: Fleet, gearfleet: RunCommand) -> None:
    rows = json.loads(gearfleet("slots", "7", "1000-1001", "--json", *peer(fleet)).out)
    assert [row["slot"] for row in rows] == [7, 1000, 1001]
    assert set(rows[0]["in_sync"]) == {"a", "b", "c"}
    lines = gearfleet("slots", "7", *peer(fleet)).out.decode().splitlines()
    assert lines[2].split()[0] == "7"
    for slip in ("1024", "9-3", "x"):
        ended = gearfleet("slots", slip, *peer(fleet))
        assert ended.code == 2
        assert b"give numbers from 0 to 1023" in ended.err


def test_nothing_is_promoted_while_a_whole_copy_is_left(fleet: Fleet, gearfleet: RunCommand) -> None:
    for arguments, message in (
        ([], b"every slot has a whole copy on a node that is up"),
        (["5"], b"slot 5 has a whole copy on a, b, c: it loses nothing"),
        (["--node", "x"], b"x is not up; these are: a, b, c"),
    ):
        ended = gearfleet("promote", "--lossy", *arguments, *peer(fleet))
        assert ended.code == 1
        assert message in ended.err
    assert gearfleet("promote", *peer(fleet)).code == 2


def test_one_node_is_enough_to_see_the_jobs_of_all(
    fleet: Fleet, gearfleet: RunCommand, function: bytes
) -> None:
    name, at = function.decode(), ["-s", fleet.nodes["a"].address]
    with fleet.connect("a") as client, fleet.connect("b") as worker:
        for number in range(30):
            client.submit(function, unique=b"%d" % number, background=True)
        worker.can_do(function)
        worker.settle()
        rows = [row for row in json.loads(gearfleet("status", "--json", *at).out) if row["function"] == name]
        # Jobs wait on nodes where nobody works on them.
        elsewhere = {"no_worker_on": ["a", "c"]}
        assert rows == [
            {"fleet": "test", **elsewhere, "function": name, "total": 30, "running": 0, "workers": 1}
        ]
        lines = gearfleet("status", *at).out.decode().splitlines()
        assert lines[2].split() == [name, "30", "0", "1", "!", "no", "worker", "on", "a,", "c"]
        rows = json.loads(gearfleet("status", "--by-node", "--json", *at).out)
        counts = {row["node"]: row["total"] for row in rows if row["function"] == name}
        assert set(counts) <= {"a", "b", "c"}
        assert sum(counts.values()) == 30
        assert len(counts) > 1
        rows = json.loads(gearfleet("status", "--priorities", "--json", *at).out)
        assert [row["normal"] for row in rows if row["function"] == name] == [30]
        ended = gearfleet("nodes", "--check", *peer(fleet))
        assert ended.code == 1
        said = f"! jobs of {name} wait on a, c, and its workers are connected to other nodes only"
        assert said in ended.out.decode()
        assert len(json.loads(gearfleet("jobs", "--json", *at).out)) == 30
        rows = json.loads(gearfleet("workers", "--json", *at).out)
        assert [row["node"] for row in rows if name in row["functions"]] == ["b"]
        top = gearfleet("top", "--once", *at).out.decode()
        assert all(node.address in top for node in fleet.nodes.values())
        # Two addresses of one fleet are not counted twice.
        both = ["-s", f"{fleet.nodes['a'].address},{fleet.nodes['b'].address}"]
        rows = [
            row for row in json.loads(gearfleet("status", "--json", *both).out) if row["function"] == name
        ]
        assert [row["total"] for row in rows] == [30]
    with fleet.connect("b") as worker:
        handles = [row["handle"] for row in json.loads(gearfleet("jobs", "--json", *at).out)]
        assert gearfleet("cancel", *handles, *at).code == 0
    assert gearfleet("nodes", "--check", *peer(fleet)).code == 0


def test_all_of_one_job_is_told_from_any_node(fleet: Fleet, gearfleet: RunCommand, function: bytes) -> None:
    name, at = function.decode(), ["-s", fleet.nodes["a"].address]
    with fleet.connect("b") as client:
        handle = client.submit(function, b"payload", unique=b"the-one", background=True).decode()
    for words in ([handle], ["the-one", "--function", name], ["the-one"]):
        (told,) = json.loads(gearfleet("job", *words, "--json", *at).out)
        assert (told["handle"], told["unique"], told["state"]) == (handle, "the-one", "waiting")
        assert told["leader"] == told["node"]
    text = gearfleet("job", handle, *at).out.decode()
    assert f"Led by:     {told['leader']}" in text
    assert "Payload:    7 bytes" in text
    assert gearfleet("cancel", handle, *at).code == 0
    ended = gearfleet("job", handle, *at)
    assert (ended.code, ended.out) == (1, b"")
    assert f"no job {handle}".encode() in ended.err


def test_nodes_that_do_not_answer_have_rows_and_the_sum_is_incomplete(
    fleet: Fleet, gearfleet: RunCommand, function: bytes
) -> None:
    name, at = function.decode(), ["-s", fleet.nodes["a"].address, "--timeout", "1"]
    with fleet.connect("a") as client:
        for number in range(30):
            client.submit(function, unique=b"%d" % number, background=True)
    for frozen in "bc":  # one alone takes nothing over
        fleet.freeze(frozen)
    try:
        ended = gearfleet("status", *at)
        assert ended.code == 0
        text = ended.out.decode()
        assert next(line for line in text.splitlines() if name in line).endswith("! no worker, incomplete")
        silent = [line.split()[0] for line in text.splitlines() if "! did not answer: " in line]
        assert sorted(silent) == ["b", "c"]
        assert b"! incomplete: jobs on b, on c" in ended.err
        told = json.loads(gearfleet("status", "--json", *at).out)
        assert [row["incomplete"] for row in told if row.get("function") == name] == [True]
        assert sorted(row["node"] for row in told if "fault" in row) == ["b", "c"]
        for command in ("jobs", "workers"):
            assert gearfleet(command, *at).out.decode().count("! did not answer") == 2
        assert "! incomplete: " in gearfleet("top", "--once", *at).out.decode()
        for command in ("job", "cancel"):
            ended = gearfleet(command, "no-such-key", *at)
            assert ended.code == 1
            assert b"job no-such-key is unknown: " in ended.err
            assert b"did not answer and may have it" in ended.err
            assert b"never here" not in ended.err
    finally:
        for frozen in "bc":
            fleet.wake(frozen)
    fleet.wait_until_in_sync()

    def sums() -> list[tuple[int, bool | None]]:
        rows = json.loads(gearfleet("status", "--json", *at).out)
        return [(row["total"], row.get("incomplete")) for row in rows if row["function"] == name]

    eventually(lambda: sums() == [(30, None)])
    handles = [row["handle"] for row in json.loads(gearfleet("jobs", "-f", name, "--json", *at).out)]
    assert len(handles) == 30
    assert gearfleet("cancel", *handles, *at).code == 0


def test_a_sum_is_whole_again_when_a_dead_node_was_taken_over(
    fleet: Fleet, gearfleet: RunCommand, function: bytes
) -> None:
    name, at = function.decode(), ["-s", fleet.nodes["a"].address]
    with fleet.connect("a") as client:
        for number in range(30):
            client.submit(function, unique=b"%d" % number, background=True)
    fleet.kill("c")

    def whole() -> bool:
        rows = json.loads(gearfleet("status", "--json", *at).out)
        (row,) = [row for row in rows if row.get("function") == name]
        # At no moment less than all without saying so.
        assert row["total"] == 30 or row.get("incomplete"), row
        return row["total"] == 30 and not row.get("incomplete")

    eventually(whole)
    # The others lead what the dead node had led: nobody else could have it.
    assert b"no job no-such-key: it is done, or was never here" in gearfleet("job", "no-such-key", *at).err
    handles = [
        row["handle"]
        for row in json.loads(gearfleet("jobs", "-f", name, "--json", *at).out)
        if "handle" in row
    ]
    assert len(handles) == 30
    assert gearfleet("cancel", *handles, *at).code == 0


def test_a_drained_node_leads_nothing_and_ends(fleet: Fleet, gearfleet: RunCommand) -> None:
    # When it is told by its own environment, as a container's preStop does
    node = fleet.nodes["c"]
    environment = {
        "GEARFLEET_NAME": "c",
        "GEARFLEET_ETCD": fleet.etcd.address,
        "GEARFLEET_FLEET": fleet.fleet,
        "GEARFLEET_PEER_PORT": str(node.peer_port),
        "GEARFLEET_ADVERTISE": "127.0.0.1",
    }
    ended = run_process(GEARFLEET, "drain", "--self", "--restart", environment=environment)
    # Then it says how far it is, and its process ends well.
    assert ended.code == 0, ended
    lines = ended.out.decode().splitlines()
    assert lines[0].startswith("c: still leads ")
    assert lines[-1] == "c leads nothing, and no slot needs its copy: it stops"
    assert node.wait_for_exit() == 0
    leads = {
        n["name"]: n["leads"] for n in json.loads(gearfleet("nodes", "--json", *peer(fleet)).out)["nodes"]
    }
    assert leads.get("c", 0) == 0
    assert sum(leads.values()) == 1024
    # When nothing listens, then the init system hears 1 at once.
    ended = run_process(GEARFLEET, "drain", "--self", environment=environment)
    assert ended.code == 1
    assert b"c cannot be drained: no node answered. nothing answers at 127.0.0.1" in ended.err
    # And when another node has its port, that one is left alone.
    environment["GEARFLEET_PEER_PORT"] = str(fleet.nodes["a"].peer_port)
    ended = run_process(GEARFLEET, "drain", "--self", environment=environment)
    assert ended.code == 1
    assert b"the node that listens there is a, the environment says c" in ended.err


def test_a_drain_goes_on_when_nobody_watches(fleet: Fleet, gearfleet: RunCommand) -> None:
    assert gearfleet("drain", "c", "--restart", "--timeout", "0.01", *peer(fleet)).code == 1
    assert fleet.nodes["c"].wait_for_exit() == 0


def test_a_drain_that_cannot_end_is_given_up_and_called_off(
    whole_fleet: Fleet, gearfleet: RunCommand
) -> None:
    fleet = whole_fleet
    # Given two nodes of three, and two have to have each job: the last but one cannot go for good.
    if fleet.nodes["c"].running:
        fleet.drain("c")
    ended = gearfleet("drain", "b", "--timeout", "0.5", *peer(fleet))
    assert ended.code == 1
    assert b"gearfleet join b calls it off" in ended.err
    states = {
        n["name"]: n["state"] for n in json.loads(gearfleet("nodes", "--json", *peer(fleet)).out)["nodes"]
    }
    assert states["b"] == "draining"

    assert gearfleet("join", "b", *peer(fleet)).out == b"b takes part again\n"
    assert gearfleet("join", "b", *peer(fleet)).out == b"b takes part already\n"
    ended = gearfleet("join", "nobody", *peer(fleet))
    assert ended.code == 1
    assert b"has no node called nobody; it has a, b" in ended.err


def test_a_drain_by_name_passes_through_another_node_and_shows_itself_on_a_terminal(fleet: Fleet) -> None:
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.environ.update(COLUMNS="100", TERM="xterm")
        os.execv(GEARFLEET, [GEARFLEET, "drain", "b", "--restart", *peer(fleet)])
    shown = b""

    def ended() -> bool:
        nonlocal shown
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the terminal closes with the process
            return True
        return False

    try:
        eventually(ended)
        assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0
    finally:
        os.close(terminal)
    assert b"b: still leads" in shown
    assert b"b leads nothing, and no slot needs its copy: it stops" in shown
    assert fleet.nodes["b"].wait_for_exit() == 0


def test_nodes_are_listed_and_a_missing_one_fails_the_check(fleet: Fleet, gearfleet: RunCommand) -> None:
    # Given three nodes that are well
    ended = gearfleet("nodes", "--check", *peer(fleet))
    assert ended.code == 0, ended
    lines = ended.out.decode().splitlines()
    row = lines[2].split()
    assert row[:5] == ["a", "up", "-", fleet.nodes["a"].address, "0.1.0"]
    assert row[6:] == ["1,024", "0"]
    assert sum(int(line.split()[5]) for line in lines[2:5]) == 1024
    assert lines[-1] == "all slots have all their copies; etcd answers"
    # When one is killed, then the others say so, and a command finds one that answers.
    fleet.kill("a")

    def seen() -> bool:
        told = json.loads(gearfleet("nodes", "--json", *peer(fleet, "b")).out)
        return bool(told["under_replicated"])

    eventually(seen)
    ended = gearfleet("nodes", "--check", *peer(fleet, "a", "b"))
    assert ended.code == 1
    assert b"nothing answers at 127.0.0.1" in ended.err
    assert b"under-replicated, with fewer than 3" in ended.out
    assert gearfleet("nodes", *peer(fleet, "b")).code == 0
    rows = json.loads(gearfleet("slots", "--under-replicated", "--json", "0-9", *peer(fleet, "b")).out)
    assert rows
    assert gearfleet("slots", "--unavailable", *peer(fleet, "b")).out == b"No such slots.\n"


def test_waiting_for_a_fleet_ends_when_it_is_complete(whole_fleet: Fleet, gearfleet: RunCommand) -> None:
    fleet = whole_fleet
    fleet.start()
    fleet.wait_until_in_sync()
    # Given a node that is away, then a short wait says what is missing,
    fleet.kill("c")
    eventually(lambda: gearfleet("nodes", "--check", *peer(fleet)).code == 1)
    ended = gearfleet("nodes", "--wait", "--wait-seconds", "0.3", *peer(fleet))
    assert ended.code == 1
    assert b"down: c" in ended.out
    assert b"the fleet was not complete within 0.3 s; --wait-seconds gives it longer" in ended.err
    # and one that nobody answers as much as that.
    ended = gearfleet("nodes", "--wait", "--wait-seconds", "0", "--peer", "127.0.0.1:1")
    assert ended.code == 3
    # When it is started, then the wait ends with a fleet that is whole.
    fleet.restart("c")
    ended = gearfleet("nodes", "--wait", *peer(fleet))
    assert ended.code == 0, ended
    assert ended.out.decode().splitlines()[-1] == "all slots have all their copies; etcd answers"


def test_a_node_that_is_up_is_not_forgotten_one_that_is_gone_is(
    whole_fleet: Fleet, gearfleet: RunCommand
) -> None:
    fleet = whole_fleet
    ended = gearfleet("forget", "b", *peer(fleet, "b"))
    assert ended.code == 1
    assert b"b is up: drain it" in ended.err
    if fleet.nodes["a"].running:
        fleet.kill("a")

    def forgotten() -> bool:
        return gearfleet("forget", "a", *peer(fleet, "b")).code == 0

    eventually(forgotten)


# ---- without a fleet


def test_where_nobody_listens_the_exit_code_is_3(
    gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARFLEET_PEER", "127.0.0.1:1")
    commands = [["nodes"], ["map"], ["slots"], ["drain", "a"], ["join", "a"], ["forget", "a"]]
    for command in [*commands, ["promote", "--lossy"]]:
        ended = gearfleet(*command)
        assert ended.code == 3, command
        assert b"no node answered. nothing answers at 127.0.0.1:1 (Connection refused)" in ended.err


FLEET_COMMANDS = [
    ["nodes"],
    ["map"],
    ["slots"],
    ["drain", "a"],
    ["join", "a"],
    ["forget", "a"],
    ["promote", "--lossy"],
]


@pytest.mark.parametrize("command", FLEET_COMMANDS)
def test_the_hosts_of_the_environment_s_servers_are_asked_and_not_this_machine(
    command: list[str], gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "127.0.0.9:1,[::1]:2,127.0.0.9:3")
    ended = gearfleet(*command)
    assert ended.code == 3
    assert ended.err.count(b"127.0.0.9:4731") == 1
    assert b"[::1]:4731" in ended.err
    assert b"127.0.0.1" not in ended.err
    assert b"give --peer HOST:PORT or set GEARFLEET_PEER" in ended.err


def test_an_option_and_a_variable_of_their_own_go_before_the_environment_s_servers(
    gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "127.0.0.9")
    monkeypatch.setenv("GEARFLEET_PEER", "127.0.0.8:1")
    for words, asked in (([], b"127.0.0.8:1"), (["--peer", "127.0.0.7:1"], b"127.0.0.7:1")):
        ended = gearfleet("nodes", *words)
        assert asked in ended.err
        assert b"127.0.0.9" not in ended.err
        assert b"GEARMAN_SERVERS" not in ended.err


def test_servers_that_a_name_tells_are_looked_up(
    gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "dns://127.0.0.9:4730")
    ended = gearfleet("nodes")
    assert ended.code == 3
    assert b"127.0.0.9:4731" in ended.err


@pytest.mark.parametrize(("servers", "code"), [("h:x", 2), ("etcd://127.0.0.1:1/fleet", 3)])
def test_servers_that_cannot_be_found_are_no_reason_to_ask_this_machine(
    servers: str, code: int, gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", servers)
    ended = gearfleet("nodes")
    assert ended.code == code
    assert b"GEARMAN_SERVERS" in ended.err
    assert b"--peer HOST:PORT" in ended.err
    assert b"4731" not in ended.err
    # The init system's command knows its node, and looks up nobody.
    assert b"GEARMAN_SERVERS" not in gearfleet("drain", "--self").err


def test_a_node_that_stands_alone_has_nobody_to_give_to(gearfleet: RunCommand) -> None:
    ended = gearfleet("drain", "--self")
    assert ended.code == 1
    assert b"GEARFLEET_ETCD is not set, so this node stands alone" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nodes", "--peer", "h:x"], b"the port must be a number"),
        (["nodes", "--peer", ","], b"give 1 to 64 nodes"),
        (["nodes", "--peer-ca", "x"], b"set peer_certificate and peer_key too"),
        (["drain"], b"name the NODE to drain"),
        (["drain", "a", "--self"], b"or give --self"),
    ],
)
def test_a_slip_is_a_usage_error(gearfleet: RunCommand, arguments: list[str], message: bytes) -> None:
    ended = gearfleet(*arguments)
    assert ended.code == 2
    assert message in ended.err


def test_the_environment_of_drain_self_is_checked(
    gearfleet: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARFLEET_PEER_PORT", "many")
    ended = gearfleet("drain", "--self")
    assert ended.code == 1
    assert b"GEARFLEET_PEER_PORT cannot be 'many'" in ended.err
