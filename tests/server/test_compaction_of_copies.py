"""When a fleet's node compacts its journal."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster.node.fleet import FleetSettings
from cluster.placement import Member
from cluster.replication import entries
from cluster.server.server import Server
from cluster.server.settings import Settings
from cluster.server.turns import TurnSelector


def test_what_is_kept_for_other_nodes_is_no_history(tmp_path: Path) -> None:
    """Else a node that leads nothing writes its copies anew every second."""
    selector = TurnSelector()

    async def living_bytes() -> int:
        server = Server(Settings.model_validate({"data_dir": tmp_path, "host": "127.0.0.1"}), selector)
        fleet = server.node.join(Member("a", f"{1:032x}", 1, "h", 1, 1), FleetSettings())
        for slot in range(8):
            replica = fleet.replicator.replicas[slot]
            assert replica is not None
            for number in range(100):
                body = b"f\0%d\0" % number + b"x" * 1000
                replica.append(entries.encode_submitted(slot, 1, number + 1, 1, b"H:a:%d" % number, body))
            replica.fold()
        return server._living_bytes()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(living_bytes()) >= 8 * 100 * 1000
