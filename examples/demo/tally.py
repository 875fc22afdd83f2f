"""Promised against made."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from examples.demo.callers import Promises


class Records:
    """Reads what the workers wrote down, each line once, as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self.made: Counter[str] = Counter()

    def read(self) -> Counter[str]:
        for path in self._folder.glob("*.txt"):
            with path.open("rb") as record:
                record.seek(self._offsets.get(path, 0))
                new = record.read()
            complete = new[: new.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(complete)
            self.made.update(complete.decode().split())
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


def table(rows: list[Row], seconds: float) -> Table:
    grid = Table(title="one node, killed with -9 in the middle", title_justify="left")
    grid.add_column("jobs")
    for column in ("submitted", "acknowledged", "done", "lost", "run twice", "seconds"):
        grid.add_column(column, justify="right")
    total = Row(
        "all",
        *(
            sum(getattr(one, field) for one in rows)
            for field in ("submitted", "acknowledged", "done", "lost", "run_twice")
        ),
    )
    for one in (*rows, total):
        last = one is total
        lost = f"[bold red]{one.lost}[/]" if one.lost else "[bold green]0[/]"
        counts = (str(one.submitted), str(one.acknowledged), str(one.done), lost, str(one.run_twice))
        grid.add_row(one.name, *counts, f"{seconds:.1f}" if last else "", style="bold" if last else "")
        if one is rows[-1]:
            grid.add_section()
    return grid
