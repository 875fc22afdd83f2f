"""What the person at the terminal sees: one screen that changes, or lines where there is no terminal."""

import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.demo.callers import Callers
from examples.demo.processes import Node
from examples.demo.tally import Records
from examples.demo.watcher import Watcher

REFRESH_SECONDS = 0.2
LINE_SECONDS = 5.0  # between two lines on how far it is, without a terminal
NEWS_LINES = 14
BAR_COLUMNS = 40


class Screen:
    """with Screen(...) as screen: screen.say(...), screen.refresh() again and again."""

    def __init__(
        self, console: Console, nodes: Sequence[Node], watcher: Watcher, callers: Callers, made: Records
    ) -> None:
        self._console = console
        self._nodes = nodes
        self._watcher = watcher
        self._callers = callers
        self._made = made
        self.begun = 0.0  # monotonic: what it says counts from here
        self._shown = False
        self._news: deque[str] = deque(maxlen=NEWS_LINES)
        self._drawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        self.begun = time.monotonic()
        self._shown = True
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        """Something has happened."""
        line = f"{time.monotonic() - self.begun:5.1f} s  {text}"
        self._news.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True)
        else:
            self._live.update(self._picture(), refresh=True)

    def refresh(self) -> None:
        """How it stands, if it is time for that."""
        now = time.monotonic()
        if not self._shown or now - self._drawn_at < (
            LINE_SECONDS if self._live is None else REFRESH_SECONDS
        ):
            return
        self._drawn_at = now
        if self._live is None:
            self._console.print(
                f"{now - self.begun:5.1f} s  {self._jobs_text()}; {self._slots_text()}", soft_wrap=True
            )
        else:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        jobs = Table.grid(padding=(0, 2))
        for name, done, acknowledged, total in self._jobs():
            bar = ProgressBar(total=total, completed=done, width=BAR_COLUMNS)
            jobs.add_row(name, bar, f"{done} done", f"{acknowledged} acknowledged", f"of {total}")
        return Group(self._nodes_table(), self._slots_text(), "", jobs, "", *self._news)

    def _nodes_table(self) -> Table:
        grid = Table()
        for column in ("node", "process", "the fleet says"):
            grid.add_column(column, min_width=14)
        for column in ("leads", "in sync", "catching up"):
            grid.add_column(column, justify="right", min_width=11)
        status = self._watcher.status
        found = {node.name: node for node in status.nodes} if status is not None else {}
        for node in self._nodes:
            process = node.state if node.state.startswith("process") else f"[bold red]{node.state}[/]"
            seen = found.get(node.name)
            if seen is None:
                grid.add_row(node.name, process, "", "", "", "")
                continue
            state = "[green]up[/]" if seen.state == "up" else f"[yellow]{seen.state}[/]"
            grid.add_row(
                node.name, process, state, str(seen.leads), str(seen.in_sync), str(seen.learning or "")
            )
        return grid

    def _slots_text(self) -> str:
        status = self._watcher.status
        if status is None:
            return "slots: no node answers yet"
        total = sum(node.leads for node in status.nodes)
        return (
            f"slots: {self._watcher.serving()} of {total} serving, {status.under_replicated} under-replicated"
        )

    def _jobs_text(self) -> str:
        return "; ".join(
            f"{name}: {done} done, {acknowledged} acknowledged of {total}"
            for name, done, acknowledged, total in self._jobs()
        )

    def _jobs(self) -> list[tuple[str, int, int, int]]:
        callers = self._callers
        thumbnails = sum(unique.startswith("thumbnail") for unique in self._made.read())
        return [
            ("thumbnails", thumbnails, len(callers.background.acknowledged), callers.background_total),
            (
                "previews",
                len(callers.foreground.answered),
                len(callers.foreground.acknowledged),
                callers.foreground_total,
            ),
        ]
