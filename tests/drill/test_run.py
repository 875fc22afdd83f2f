"""What must be done to its end is, whoever gives up meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from cluster.drill.run import node_names, uninterrupted
from cluster.server.control import FleetStatus, NodeStatus


def play(scene: Awaitable[None]) -> None:
    async def run() -> None:
        await scene

    asyncio.run(run())


def test_mending_goes_on_when_whoever_waits_for_it_is_cancelled() -> None:
    async def scene() -> None:
        begun, go_on, mended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def mend() -> None:
            begun.set()
            await go_on.wait()
            mended.set()

        waiting = asyncio.create_task(uninterrupted(mend()))
        await begun.wait()
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=0.01)
        assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert mended.is_set()

    play(scene())


def test_mending_goes_on_when_whoever_waits_for_it_is_cancelled_again() -> None:
    async def scene() -> None:
        go_on = asyncio.Event()

        async def mend() -> None:
            await go_on.wait()

        waiting = asyncio.create_task(uninterrupted(mend()))
        for _ in range(3):
            await asyncio.wait({waiting}, timeout=0.01)
            waiting.cancel()
        await asyncio.wait({waiting}, timeout=0.01)
        assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    play(scene())


def test_that_mending_failed_is_told_also_to_who_was_cancelled() -> None:
    async def scene() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def mend() -> None:
            begun.set()
            await go_on.wait()
            raise ValueError("no such unit")

        waiting = asyncio.create_task(uninterrupted(mend()))
        await begun.wait()
        waiting.cancel()
        go_on.set()
        with pytest.raises(ValueError, match="no such unit"):
            await waiting

    play(scene())


def test_addresses_are_shown_by_the_nodes_names() -> None:
    status = FleetStatus("f", "a", 1, 3, 2, nodes=(NodeStatus("a", host="10.0.0.1", port=4730),))
    name = node_names(status)
    assert (name("10.0.0.1:4730"), name("10.0.0.9:4730")) == ("a", "10.0.0.9:4730")
