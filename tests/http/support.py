"""A node that says of itself what a test wants, and a bare HTTP client that sends what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from cluster.server.status import (
    FleetStatus,
    FunctionStatus,
    JournalStatus,
    Latency,
    MemoryStatus,
    NodeStatus,
    Phase,
)
from tests.support import WAIT_SECONDS

FLEET = FleetStatus(
    fleet="default",
    joined=True,
    map_revision=7,
    slots_led=341,
    slots_in_sync=1024,
    slots_under_replicated=3,
    slots_unavailable=2,
    takeovers=5,
    lease_age_seconds=0.5,
    etcd_reachable=True,
    peers=2,
    peers_up=1,
    slots_learning=9,
    peer_lag_seconds={"b": 0.25, "c": 0.0},
)
JOURNAL = JournalStatus(
    size_bytes=100,
    written_bytes=200,
    frames_written=3,
    write_pending_seconds=0.0,
    fsync=Latency().read(),
    free_bytes=7000,
)
STATUS = NodeStatus(
    name="a",
    version="1.2.3",
    phase=Phase.SERVING,
    durability="fsync",
    refusal=None,
    turn_age_seconds=0.1,
    connections=4,
    connections_max=100,
    connections_turned_away=6,
    groups_committed=8,
    commit=Latency().read(),
    journal=JOURNAL,
    fleet=None,
    memory=MemoryStatus(
        resident_bytes=1000, processor_seconds=12.5, payload_bytes=500, mark_bytes=8000, full=False
    ),
)


@dataclass
class Told:
    """Stands where the Server stands."""

    node: NodeStatus = STATUS
    functions: list[FunctionStatus] = field(default_factory=list)
    asked: int = 0

    def status(self) -> NodeStatus:
        return self.node

    def function_statuses(self) -> Iterator[FunctionStatus]:
        self.asked += 1
        yield from self.functions


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes on a connection of their own; everything that comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), WAIT_SECONDS)
    except ConnectionResetError:
        return b""
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def get(port: int, path: str, method: str = "GET", *headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in small letters, body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: node", *headers, "", ""]
    return parsed(await exchange(port, "\r\n".join(lines).encode()))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = (line.split(": ", 1) for line in rest)
    return int(first.split()[1]), {name.lower(): value for name, value in fields}, body


def fetch(port: int, path: str, timeout_seconds: float = WAIT_SECONDS) -> tuple[int, str]:
    """Status and body, from a real node's process."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of an exposition by its name and labels; each may be there once."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found
