"""Promised against made."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from cluster.drill.history import Kind
from examples.demo.callers import Acknowledged, Promises


class Records:
    """Reads what the workers wrote down as done, each line once, as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self.made: Counter[str] = Counter()

    def read(self) -> Counter[str]:
        """By unique key, how often."""
        for path in self._folder.glob("*.jsonl"):
            with path.open("rb") as record:
                record.seek(self._offsets.get(path, 0))
                new = record.read()
            complete = new[: new.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(complete)
            events = [json.loads(line) for line in complete.splitlines() if line]
            self.made.update(
                event["key"].partition("/")[2] for event in events if event.get("kind") == Kind.DONE
            )
        return self.made


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of jobs. Lost: promised, and no worker ever finished it, or its result never came back."""

    name: str
    submitted: int
    acknowledged: int
    done: int
    lost: int
    run_twice: int


def row(name: str, promises: Promises, made: Counter[str], *, answered: bool) -> Row:
    mine = {unique: made[unique] for unique in promises.submitted if made[unique]}
    arrived = mine.keys() & set(promises.answered) if answered else mine.keys()
    return Row(
        name,
        submitted=len(promises.submitted),
        acknowledged=len(promises.acknowledged),
        done=len(arrived),
        lost=len(set(promises.acknowledged) - arrived),
        run_twice=sum(1 for count in mine.values() if count > 1),
    )


@dataclass(slots=True)
class Fault:
    """What was done to a node, and how long it took to mend; seconds from its beginning."""

    name: str  # "a killed"
    number: int = 0  # in the history
    begun: float = field(default_factory=time.monotonic)
    taken_over_seconds: float = 0.0
    ended: float = 0.0  # all nodes are back and every slot has all its copies

    def slowest_seconds(self, waits: Sequence[Acknowledged]) -> float:
        """Of the acknowledgements that were waited for meanwhile."""
        return max(
            (
                wait.waited_seconds
                for wait in waits
                if wait.at >= self.begun and wait.at - wait.waited_seconds <= self.ended
            ),
            default=0.0,
        )


def table(rows: list[Row], seconds: float) -> Table:
    grid = Table(title=f"{seconds:.0f} seconds of work", title_justify="left")
    grid.add_column("jobs")
    for column in ("submitted", "acknowledged", "done", "lost", "run twice"):
        grid.add_column(column, justify="right")
    total = total_of(rows)
    for one in (*rows, total):
        lost = f"[bold red]{one.lost}[/]" if one.lost else "[bold green]0[/]"
        counts = (str(one.submitted), str(one.acknowledged), str(one.done), lost, str(one.run_twice))
        grid.add_row(one.name, *counts, style="bold" if one is total else "")
        if one is rows[-1]:
            grid.add_section()
    return grid


def total_of(rows: Sequence[Row]) -> Row:
    fields = ("submitted", "acknowledged", "done", "lost", "run_twice")
    return Row("all", *(sum(getattr(one, field) for one in rows) for field in fields))


def fault_table(faults: Sequence[Fault], waits: Sequence[Acknowledged]) -> Table:
    grid = Table(title="what happened", title_justify="left")
    grid.add_column("node")
    for column in ("others lead its slots after", "slowest acknowledgement", "all is whole again after"):
        grid.add_column(column, justify="right")
    for fault in faults:
        times = (fault.taken_over_seconds, fault.slowest_seconds(waits), fault.ended - fault.begun)
        grid.add_row(fault.name, *(f"{seconds:.2f} s" for seconds in times))
    return grid


def verdict(rows: Sequence[Row], faults: Sequence[Fault], waits: Sequence[Acknowledged]) -> str:
    """All that counts, in one line."""
    total = total_of(rows)
    slowest = max((wait.waited_seconds for wait in waits), default=0.0)
    taken_over = ", ".join(f"{fault.taken_over_seconds:.2f} s ({fault.name})" for fault in faults)
    return (
        f"acknowledged {total.acknowledged}, done {total.done}, lost {total.lost}, "
        f"run twice {total.run_twice}, slowest acknowledgement {slowest:.2f} s, taken over in {taken_over}"
    )
