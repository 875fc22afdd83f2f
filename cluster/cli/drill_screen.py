"""How a drill goes: a table that changes below the lines on a terminal, lines alone into a pipe or a log."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import IO, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.cli.tables import table
from cluster.drill.run import Drill, Exit
from cluster.drill.scenarios import clock
from cluster.wire.shown import for_terminal, for_terminal_lines

REFRESH_SECONDS: Final = 0.5
LINE_SECONDS: Final = 15.0  # between two lines that say only how it stands


def standing(drill: Drill) -> str:
    """Nodes and jobs in one line."""
    counts = drill.workload.counts
    parts = []
    if drill.status is not None:
        nodes = drill.status.nodes
        parts.append(" ".join(f"{n.name}:{n.leads if n.state == 'up' else n.state}" for n in nodes))
    parts.append(f"{counts.acknowledged:,} acknowledged ({drill.workload.acknowledged_per_second():.0f}/s)")
    parts.append(f"{counts.done:,} done")
    if counts.unknown:
        parts.append(f"{counts.unknown:,} without an answer")
    return ", ".join(parts)


def picture(drill: Drill) -> Group:
    """The table of a terminal."""
    limit = drill.plan.duration_seconds
    counts = drill.workload.counts
    of = f" of {clock(limit)}" if limit is not None else ""
    rows = (
        []
        if drill.status is None
        else [(node.name, node.state, node.leads, node.in_sync, node.learning) for node in drill.status.nodes]
    )
    fleet = drill.status.fleet if drill.status is not None else ""
    faults = f"{drill.faults} of {len(drill.plan.steps)}" if limit is None else str(drill.faults)
    head = Text.assemble(
        (f"{clock(drill.seconds)}{of}", "bold"),
        f"  fleet {fleet}, fault {faults}  ",
        (for_terminal(drill.doing), "bold"),
    )
    jobs = Text(
        f"{counts.submitted:,} submitted   {counts.acknowledged:,} acknowledged "
        f"({drill.workload.acknowledged_per_second():.0f}/s)   {counts.done:,} done   "
        f"{counts.unknown:,} without an answer   {drill.workload.under_way:,} under way"
    )
    return Group(
        Text(), head, Text(), table(["Node", "State", "Leads", "In sync", "Learning"], rows), Text(), jobs
    )


class Lines:
    """One line for all that happens, and now and then one for how it stands."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def line(self, text: str) -> None:
        # Whoever read this may be gone; the fleet is to be mended all the same.
        with contextlib.suppress(OSError, ValueError):
            print(for_terminal_lines(text), file=self._out, flush=True)

    def leave(self, lines: Sequence[str]) -> None:
        for text in lines:
            self.line(text)
        os._exit(Exit.INTERRUPTED)

    @contextlib.asynccontextmanager
    async def showing(self, drill: Drill) -> AsyncIterator[None]:
        async def show() -> None:
            while True:
                await asyncio.sleep(LINE_SECONDS)
                drill.tell(standing(drill))

        task = asyncio.create_task(show())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Screen:
    """The same lines, and a table below them that changes."""

    def __init__(self, out: IO[str]) -> None:
        self._console = Console(file=out, highlight=False)
        self._live: Live | None = None

    def line(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(for_terminal_lines(text)), soft_wrap=True)

    def leave(self, lines: Sequence[str]) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
        for text in lines:
            self.line(text)
        os._exit(Exit.INTERRUPTED)

    @contextlib.asynccontextmanager
    async def showing(self, drill: Drill) -> AsyncIterator[None]:
        live = Live(picture(drill), console=self._console, auto_refresh=False, transient=True)

        async def show() -> None:
            while True:
                with contextlib.suppress(OSError, ValueError):
                    live.update(picture(drill), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        # A terminal that closes must not end the drill, nor give it another exit code.
        with contextlib.suppress(OSError, ValueError):
            live.start()
        self._live = live
        task = asyncio.create_task(show())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(OSError, ValueError):
                live.stop()
            self._live = None


__all__ = ["Lines", "Screen", "picture", "standing"]
