"""What shows that a fault is in force: not who made it says so, but who suffers it, or the system.

Each function raises AssertionError where there is nothing to be seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from chaos_tests.live.proxies import Link, Proxies, Stream, Toxic
from chaos_tests.live.questions import LARGE, SMALL, Answer, Server, ask, hears_the_end
from cluster.placement.encoding import decode_map
from cluster.placement.view import FleetMap
from tests.support.etcd import Etcd
from tests.support.fleet import FLEET_SECONDS, FleetNode
from tests.support.node import ServerProcess
from tests.support.waiting import eventually

ASK_SECONDS: Final = 0.3  # who is well answers in a hundredth of it
ASKERS: Final = 16
CLOCK_SECONDS: Final = 1.0  # so far a clock may be from what it was set to
TORN_TAIL: Final = "cut a torn tail: the node died while it wrote; nothing in it had been acknowledged"
DAMAGED: Final = "the journal is damaged; this node begins with nothing"
_NO_SPACE: Final = b"database space exceeded"
Asked = tuple[Link, Server]


# ---- processes


def is_dead(process: ServerProcess) -> None:
    """It was killed, and nobody listens where it did."""
    assert process.wait_for_exit() == -signal.SIGKILL
    assert ask((process.host, process.port), "node", ASK_SECONDS) == "refused"


def stands_still(process: ServerProcess) -> None:
    """All its threads are stopped."""

    def states() -> set[str]:
        tasks = Path(f"/proc/{process.process_id}/task").glob("*/stat")
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks}

    eventually(states, {"T"})


# ---- links


def refuse(links: Iterable[Asked]) -> None:
    answers = _ask_all(links, ASK_SECONDS, SMALL)
    assert set(answers.values()) == {"refused"}, answers


def are_silent(links: Iterable[Asked]) -> None:
    """Who asks over them is not answered, and not refused either."""
    answers = _ask_all(links, ASK_SECONDS, SMALL)
    assert set(answers.values()) == {"silent"}, answers


def are_poisoned(links: Iterable[Asked], toxic: Toxic, streams: Sequence[Stream]) -> None:
    """Who asks over them is answered as late as the toxic promises, or not at all."""
    found = list(links)
    if toxic.toxicity < 1:
        return
    if toxic.kind == "slow_close":
        within = min(ASK_SECONDS, toxic.attributes["delay"] / 1000)
        early = [link.name for link, server in found if hears_the_end(link.address, server, within)]
        assert not early, f"{toxic} is not in force: {early}"
        return
    within, count = _promised(toxic, len(streams))
    if within:
        answers = _ask_all(found, within, count)
        early = [name for name, answer in answers.items() if answer == "answered"]
        assert not early, f"{toxic} is not in force: {early}"


def _promised(toxic: Toxic, streams: int) -> tuple[float, int]:
    """(for how long there is certainly no answer, to a question of so many bytes); 0: who knows."""
    it = toxic.attributes
    if toxic.kind == "latency":
        return min(ASK_SECONDS, streams * (it["latency"] - it["jitter"]) / 1000), SMALL
    if toxic.kind == "bandwidth":
        count = LARGE if it["rate"] < 100 else 8 * LARGE
        return min(ASK_SECONDS, count / 1024 / it["rate"] / 2 if it["rate"] else ASK_SECONDS), count
    if toxic.kind == "slicer":
        pieces = LARGE / (it["average_size"] + it["size_variation"])
        return min(ASK_SECONDS, pieces * it["delay"] / 1_000_000 / 2), LARGE
    if toxic.kind == "limit_data":
        return (ASK_SECONDS, LARGE) if it["bytes"] < LARGE else (0.0, 0)
    if toxic.kind in ("timeout", "reset_peer"):
        return ASK_SECONDS, SMALL
    raise AssertionError(f"nobody knows what {toxic} does")


def _ask_all(links: Iterable[Asked], within_seconds: float, count: int) -> dict[str, Answer]:
    with ThreadPoolExecutor(ASKERS) as pool:
        asked = {
            link.name: pool.submit(ask, link.address, server, within_seconds, count) for link, server in links
        }
        return {name: answer.result() for name, answer in asked.items()}


def are_listed(proxies: Proxies, toxics: Iterable[tuple[Link, Sequence[str]]]) -> None:
    """toxiproxy itself has these toxics on these links."""
    standing = proxies.standing()
    missing = [
        link.name for link, names in toxics if not names or set(names) - set(standing[link.name].toxics)
    ]
    assert not missing, f"toxiproxy does nothing to {missing}"


# ---- disks and clocks


def metric(node: FleetNode, name: str) -> float:
    """What the node's own metrics say, of those without labels."""

    def found() -> str:
        with (
            contextlib.suppress(OSError),  # it starts
            urllib.request.urlopen(f"http://{node.host}:{node.http_port}/metrics", timeout=10) as answer,
        ):
            for line in answer.read().decode().splitlines():
                words = line.split()
                if words and words[0] == name:
                    return str(words[1])
        return ""  # nor before it has joined

    return float(eventually(found, timeout_seconds=FLEET_SECONDS))


class Syncs(NamedTuple):
    """What a node says of its disk."""

    syncs: float
    seconds: float

    @classmethod
    def of(cls, node: FleetNode) -> Syncs:
        name = "gearfleet_journal_fsync_latency_seconds"
        return cls(metric(node, f"{name}_count"), metric(node, f"{name}_sum"))

    def slower_by(self, before: Syncs, seconds: float) -> bool:
        """Whether the fsyncs since then took so much, or nearly; those before it began are among them."""
        count = self.syncs - before.syncs
        return count > 0 and (self.seconds - before.seconds) / count >= seconds / 4


def is_full(directory: Path) -> None:
    room = os.statvfs(directory)
    assert room.f_bavail * room.f_frsize < 4096, f"{directory} has room"


def clock_offset(node: FleetNode) -> float:
    """How far the node's time of day is from ours: it dates a line of its log when it is asked to."""
    start = len(node.log_lines)
    node.signal(signal.SIGHUP)
    stamp = node.wait_for_event("log file opened anew", start=start)["timestamp"]
    return (datetime.fromisoformat(stamp) - datetime.now().astimezone()).total_seconds()


def is_off(node: FleetNode, seconds: float) -> None:
    eventually(lambda: abs(clock_offset(node) - seconds) < CLOCK_SECONDS, poll_seconds=0.1)


def identity_on_disk(node: FleetNode) -> str:
    """Of a node's data directory, in hexadecimal digits."""
    assert node.data_dir is not None
    content = json.loads((node.data_dir / "identity").read_text())
    return str(content["identity"]).replace("-", "")


def said(node: FleetNode, since_line: int, event: str) -> list[dict[str, Any]]:
    """All that the node has logged under this name from that line on."""
    found = []
    for line in node.log_lines[since_line:]:
        if event in line:
            found.append(json.loads(line))
    return found


# ---- etcd


def map_key(fleet: str) -> str:
    """Where etcd has a fleet's map."""
    return f"/gearfleet/{fleet}/map"


def fleet_map(etcd: Etcd, fleet: str) -> FleetMap:
    """The map as it is in etcd now."""
    key = map_key(fleet)
    found = etcd.call("kv/range", {"key": b64encode(key.encode()).decode()}).get("kvs", [])
    assert found, "there is no map"
    return decode_map(b64decode(found[0]["value"]), int(found[0]["mod_revision"]), key=key)


def is_compacted(etcd: Etcd, revision: int) -> None:
    """etcd cannot tell any more how it stood then."""
    body = json.dumps({"key": "AA==", "revision": str(revision)})
    running = [member for member in etcd.members if member.running]
    eventually(lambda: all(b"compacted" in it.request("POST", "/v3/kv/range", body) for it in running))


def takes_no_writes(etcd: Etcd) -> None:
    """It has raised the alarm, and refuses a put."""
    alarms = etcd.call("maintenance/alarm", {"action": "GET"}).get("alarms", [])
    assert any(alarm.get("alarm") == "NOSPACE" for alarm in alarms), f"etcd has raised {alarms}"
    body = json.dumps({"key": "AA==", "value": "AA=="})
    for member in etcd.members:
        reply = member.request("POST", "/v3/kv/put", body)
        assert _NO_SPACE in reply, reply


def was_refused(node: FleetNode) -> bool:
    """Whether the node has logged, since its start, that etcd had no room for what it wanted to write."""
    return any("takes no writes" in event["reason"] for event in said(node, node.start_line, "etcd refuses"))
