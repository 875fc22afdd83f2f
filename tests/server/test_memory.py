"""Memory: how much there is, the mark from which on background jobs are refused, and its very end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.server.memory import CEILING_SHARE, MARK_SHARE, Available, Memory, find_available
from cluster.wire import packets as wire
from tests.support import Node, Peer, eventually, need_command
from tests.support.machine import resident_bytes

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]

GIB = 1024**3
MIB = 1024**2
V2 = "30 23 0:26 {} {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {} {} rw,nosuid - cgroup cgroup rw,memory"
OTHER = "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"


def machine(root: Path, files: dict[str, str]) -> Path:
    """A machine with 8 GiB, as its /proc and /sys tell it."""
    files = {"proc/meminfo": "MemFree: 1 kB\nMemTotal:        8388608 kB\n"} | files
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "size_bytes", "source"),
    [
        ({}, 8 * GIB, "the machine's memory"),
        # Version 2: a service, nested: the least counts
        (
            {
                "proc/self/cgroup": "0::/system.slice/gearfleet.service",
                "proc/self/mountinfo": V2.format("/", "/sys/fs/cgroup"),
                "sys/fs/cgroup/system.slice/memory.max": f"{GIB}",
                "sys/fs/cgroup/system.slice/gearfleet.service/memory.max": f"{2 * GIB}",
            },
            GIB,
            "the cgroup's limit",
        ),
        # "max" is none, and memory.high is one
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "proc/self/mountinfo": V2.format("/", "/sys/fs/cgroup"),
                "sys/fs/cgroup/a/memory.high": f"{3 * GIB}",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            3 * GIB,
            "the cgroup's limit",
        ),
        # A container: its namespace begins at its own cgroup
        (
            {
                "proc/self/cgroup": "0::/",
                "proc/self/mountinfo": V2.format("/", "/sys/fs/cgroup"),
                "sys/fs/cgroup/memory.max": f"{512 * MIB}",
            },
            512 * MIB,
            "the cgroup's limit",
        ),
        # A container without one: the path is the machine's, the mount shows its own part
        (
            {
                "proc/self/cgroup": f"4:memory:/docker/{'a' * 8}\n3:cpu:/docker/x\n1:name=systemd:/x",
                "proc/self/mountinfo": OTHER
                + "\n"
                + V1.format(f"/docker/{'a' * 8}", "/sys/fs/cgroup/memory"),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}",
            },
            256 * MIB,
            "the cgroup's limit",
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/a/b\n0::/a",
                "proc/self/mountinfo": V1.format("/", "/cgroup") + "\n" + V2.format("/", "/cgroup/unified"),
                "cgroup/a/memory.limit_in_bytes": f"{700 * MIB}",
                "cgroup/a/b/memory.limit_in_bytes": "9223372036854771712",
            },
            700 * MIB,
            "the cgroup's limit",
        ),
        # A limit above what the machine has is none
        (
            {
                "proc/self/cgroup": "0::/a",
                "proc/self/mountinfo": V2.format("/", "/sys/fs/cgroup"),
                "sys/fs/cgroup/a/memory.max": f"{64 * GIB}",
            },
            8 * GIB,
            "the machine's memory",
        ),
        ({"proc/meminfo": ""}, 0, ""),
    ],
)
def test_the_least_of_all_limits_is_found(
    tmp_path: Path, files: dict[str, str], size_bytes: int, source: str
) -> None:
    assert find_available(machine(tmp_path, files)) == Available(size_bytes, source)


def test_the_mark_is_a_share_of_what_there_is_or_what_the_operator_says() -> None:
    assert Memory(0, Available(1000 * MIB, "")).mark_bytes == MARK_SHARE * 1000 * MIB
    assert Memory(100 * MIB, Available(1000 * MIB, "")).mark_bytes == 100 * MIB
    unknown = Memory(0, Available(0, ""))
    assert not unknown.look(1 << 50, 1 << 50)
    assert unknown.start_fault(1 << 50, 0) is None


@pytest.mark.parametrize(
    ("max_bytes", "available_bytes", "words"),
    [
        (1024, 8 * GIB, "Give --max-memory 160M or more"),
        (70 * MIB, 8 * GIB, "(--max-memory)"),
        (0, 64 * MIB, "(80% of the cgroup's limit)"),
        (0, 64 * MIB, "Raise the cgroup's limit to 200M or more"),
    ],
)
def test_a_mark_below_what_a_node_without_jobs_takes_is_refused_in_words(
    max_bytes: int, available_bytes: int, words: str
) -> None:
    memory = Memory(max_bytes, Available(available_bytes, "the cgroup's limit"))
    fault = memory.empty_fault(60 * MIB)
    assert fault is not None
    assert words in fault
    assert "takes 60 MiB" in fault


def test_a_mark_above_what_a_node_without_jobs_takes_is_taken() -> None:
    for max_bytes, available_bytes in ((100 * MIB, 8 * GIB), (0, 128 * MIB), (0, 0)):
        assert Memory(max_bytes, Available(available_bytes, "")).empty_fault(60 * MIB) is None


@pytest.mark.parametrize("size", ["1K", "40M"])
def test_a_node_does_not_start_with_too_little_for_any_job(start_node: StartNode, size: str) -> None:
    node = start_node()
    node.kill()
    node.options = ["--max-memory", size]
    node.spawn()
    assert node.wait_for_exit() == 1
    said = [event for event in node.log_events if event["event"] == "cannot start"]
    assert "--max-memory" in str(said[-1]["reason"])
    assert "without any job" in str(said[-1]["reason"])


def test_it_is_full_from_the_mark_on_and_has_room_again_below_it() -> None:
    memory = Memory(100, Available(0, ""))
    steps = [
        (99, 50, False),
        (100, 50, True),
        (95, 50, True),
        (91, 48, True),
        (89, 48, False),
        (95, 49, False),
    ]
    for resident, jobs, full in steps:
        memory.look(resident, jobs)
        assert memory.full == full


def test_memory_that_the_system_does_not_get_back_is_used_again() -> None:
    memory = Memory(100, Available(0, ""))
    memory.look(100, 60)
    # Half of the jobs are done, and the process is as large as before
    memory.look(100, 30)
    assert not memory.full
    memory.look(104, 59)
    assert not memory.full
    memory.look(104, 60)
    assert memory.full
    # But never beyond the ceiling, whatever takes it
    memory.look(100, 1)
    memory.look(int(100 * CEILING_SHARE) + 1, 1)
    assert memory.full


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200))))
def test_it_tells_each_change_once_and_never_takes_jobs_beyond_the_ceiling(
    looks: list[tuple[int, int]],
) -> None:
    memory = Memory(100, Available(0, ""))
    for resident, jobs in looks:
        before = memory.full
        assert memory.look(resident, jobs) == (memory.full != before)
        assert memory.full or resident < 100 * CEILING_SHARE
        assert not memory.full or resident >= 90


# ---- a node


PAYLOAD = bytes(256 * 1024)


def events(node: Node, words: str) -> list[dict[str, object]]:
    return [event for event in node.log_events if words in str(event.get("event"))]


def fill(client: Peer, payloads_max: int = 4000) -> tuple[list[bytes], str]:
    """Background jobs until one is refused; returns the handles, and why."""
    handles: list[bytes] = []
    for _ in range(payloads_max):
        client.send(wire.SUBMIT_JOB_BG, b"f", b"", PAYLOAD)
        answer = client.receive()
        if answer.type == wire.ERROR:
            assert answer.arguments[0] == wire.QUEUE_ERROR
            return handles, answer.arguments[1].decode()
        handles.append(answer.arguments[0])
    raise AssertionError(f"{payloads_max} jobs were taken")


@pytest.mark.parametrize("durability", ["os", "memory"])
def test_background_jobs_are_refused_from_the_mark_on_until_there_is_room(
    start_node: StartNode, connect: Connect, durability: str
) -> None:
    # Given a node that may take 100 MiB more than it has
    node = start_node(durability=durability)
    mark_bytes = resident_bytes(node.process_id) + 100 * MIB
    node.kill()
    node.options = ["--max-memory", str(mark_bytes)]
    node.restart()
    client, worker = connect(node), connect(node)
    # When it is filled, then at the mark it refuses, and says what to do
    handles, reason = fill(client)
    assert "no memory for more jobs" in reason
    assert "--max-memory" in reason
    assert resident_bytes(node.process_id) < mark_bytes * CEILING_SHARE + 32 * MIB
    # And foreground jobs go on
    connect(node).submit(b"g", b"foreground")
    worker.can_do(b"g")
    worker.complete(worker.grab_one().handle)
    # When workers have made room, then it takes jobs again
    worker.can_do(b"f")
    for _ in handles:
        worker.complete(worker.grab_one().handle)
    node.wait_for_event("background jobs are accepted again: there is memory for more")
    assert client.submit(b"f", PAYLOAD, background=True)
    # And each was told once
    assert len(events(node, "are refused")) == 1
    assert events(node, "are refused")[0]["of"] == "--max-memory"
    assert len(events(node, "accepted again")) == 1


def test_a_start_with_too_little_memory_says_so_and_loses_nothing(
    start_node: StartNode, connect: Connect
) -> None:
    # Given a journal with 200 MiB of jobs
    node = start_node(durability="os")
    client = connect(node)
    handles = [client.submit(b"f", PAYLOAD, background=True) for _ in range(800)]
    space = int(Path(f"/proc/{node.process_id}/statm").read_text().split()[0]) * 4096
    node.terminate()
    # When it is started with less
    node.prefix = [need_command("prlimit"), f"--as={space - 100 * MIB}", "--"]
    first = len(node.log_lines)
    node.spawn()
    # Then it ends with words and not with a traceback
    assert node.wait_for_exit() == 1
    said = [event for event in node.log_events if event["event"] == "cannot start"]
    assert "give the node more" in str(said[-1]["reason"])
    assert not [line for line in node.log_lines[first:] if "Traceback" in line]
    # And with enough all is there
    node.prefix = []
    node.restart()
    assert len(node.table("show jobs")) == len(handles)


def test_at_the_end_of_memory_a_node_ends_with_words(start_node: StartNode, connect: Connect) -> None:
    # Given a node that believes that it may take more than there is
    prefix = [need_command("prlimit"), f"--as={1000 * MIB}", "--"]
    node = start_node("--max-memory", "1T", durability="os", prefix=prefix)
    client = connect(node)
    handles: list[bytes] = []

    def ended() -> bool:
        try:
            handles.append(client.submit(b"f", bytes(32 * MIB), background=True))
        except (OSError, AssertionError, EOFError):
            return True
        return False

    # When it is filled to the end, then it disconnects who asks for more, or stops, and says why
    eventually(ended, timeout_seconds=60)
    node.wait_for_line(lambda line: "memory" in line and "remedy" in line)
    assert not [line for line in node.log_lines if "Traceback" in line]
    # And nothing that was acknowledged is lost
    node.close()
    node.prefix = []
    node.restart()
    assert {handle.decode() for handle in handles} <= {row.split("\t")[0] for row in node.table("show jobs")}
