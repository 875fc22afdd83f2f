"""Stops that come at a bad moment."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

from cluster.server.server import Server
from cluster.server.settings import Settings
from cluster.server.turns import TurnSelector
from tests.support.fleet import FleetNode
from tests.support.ports import lasting_port


def test_a_node_that_waits_for_etcd_can_be_stopped(tmp_path: Path) -> None:
    node = FleetNode("a", tmp_path, "--etcd", f"127.0.0.1:{lasting_port()}")
    node.spawn()
    try:
        node.wait_for_event("waiting for etcd")
        node.signal(signal.SIGTERM)
        assert node.wait_for_exit() == 0
        assert [event for event in node.log_events if event["level"] in ("error", "critical")] == []
    finally:
        node.close()


def test_a_node_whose_turn_fails_stops_and_answers_nothing_more(tmp_path: Path) -> None:
    selector = TurnSelector()
    with socket.create_server(("127.0.0.1", 0)) as sock:

        async def run() -> bool:
            server = Server(Settings.model_validate({"data_dir": tmp_path, "host": "127.0.0.1"}), selector)
            await server.start(sock)
            server.node.context.dirty.append(object())  # type: ignore[arg-type]
            server.turn()
            async with asyncio.timeout(10):
                await server.stopped.wait()
            return server.failed

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            assert runner.run(run())
