"""How much memory there is, and when background jobs are refused for the lack of it.

What counts is the process: jobs, copies of other nodes' jobs, output that nobody reads. It is looked at once
a second, and sooner when much has arrived; all that is counted for each job is the size of its payload.

Memory that jobs leave is not always given back to the system, but the next jobs use it. So after a refusal
jobs are taken again when the process has shrunk, or when so many of the jobs are gone that others fit in.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

MARK_SHARE: Final = 0.8  # of what there is, where the operator says nothing
RESUME_SHARE: Final = 0.9  # of the mark, or of the jobs that brought it there
CEILING_SHARE: Final = 1.1  # of the mark: refused, whatever the jobs take
EMPTY_GROWTH_BYTES: Final = 16 * 1024 * 1024  # of a node without jobs between its start and its work
START_SHARE: Final = 0.95  # of what there is, while the journal is read
LOOK_BYTES_MAX: Final = 8 * 1024 * 1024
LOOK_BYTES_MIN: Final = 256 * 1024
JOB_BYTES: Final = 500  # of a job in memory beside its payload, about
_GIVE_STEP_BYTES: Final = 32 * 1024 * 1024  # what an operator is told to give is a multiple of this
_UNLIMITED_FROM: Final = 1 << 60  # version 1 of cgroups writes the largest number of pages


class Available(NamedTuple):
    """What the process may have at most, and who says so."""

    size_bytes: int  # 0 = not known
    source: str


def find_available(root: Path = Path("/")) -> Available:
    """The least of the machine's memory, the limits of all cgroups above the process, and ulimit's."""
    found = [*_machine(root), *_cgroups(root)]
    if root == Path("/"):
        found += _ulimits()
    return min(found, default=Available(0, ""))


def _machine(root: Path) -> Iterator[Available]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            yield Available(int(line.split()[1]) * 1024, "the machine's memory")


def _cgroups(root: Path) -> Iterator[Available]:
    """Of version 1, 2 or both, nested, with or without a namespace of their own."""
    paths: dict[str, str] = {}  # by controllers; "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["memory" if controllers else ""] = path
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        beginning, place = fields.split()[3:5]
        file_system, _, options = kind.split(" ", 2)
        if file_system == "cgroup2":
            path, names = paths.get("", ""), ["memory.max", "memory.high"]
        elif file_system == "cgroup" and "memory" in options.split(","):
            path, names = paths.get("memory", ""), ["memory.limit_in_bytes"]
        else:
            continue
        if not path:
            continue
        top = root / place.lstrip("/")
        # The mount may show a part of the tree only, and the path the whole.
        inner = path[len(beginning) :] if path.startswith(beginning.rstrip("/") + "/") else ""
        directory = top / (path if beginning == "/" else inner).lstrip("/")
        while directory.is_relative_to(top):
            for name in names:
                for text in _lines(directory / name):
                    if text.isdigit() and int(text) < _UNLIMITED_FROM:
                        yield Available(int(text), "the cgroup's limit")
            directory = directory.parent


def _ulimits() -> Iterator[Available]:
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    for line in _lines(Path("/proc/self/statm")):
        size, resident = (int(pages) * resource.getpagesize() for pages in line.split()[:2])
        if address_space != resource.RLIM_INFINITY:
            # Libraries and stacks take of it, too, without being in memory.
            yield Available(max(1, address_space - (size - resident)), "the limit of ulimit -v")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


class Memory:
    """The high-water mark, with hysteresis."""

    def __init__(self, max_bytes: int, available: Available) -> None:
        """`max_bytes` 0: a share of what is available."""
        self.available = available
        self.mark_bytes = max_bytes or int(available.size_bytes * MARK_SHARE)
        self.source = "--max-memory" if max_bytes else f"{MARK_SHARE:.0%} of {available.source}"
        self.look_bytes = max(LOOK_BYTES_MIN, min(LOOK_BYTES_MAX, self.mark_bytes // 64))
        self.full = False
        self._jobs_bytes = 0  # when it was full last

    def look(self, resident_bytes: int, jobs_bytes: int) -> bool:
        """Whether it has become full, or has room again. `jobs_bytes`: what its jobs take of it, about."""
        mark = self.mark_bytes
        if not mark:
            return False
        before = self.full
        has_shrunk = resident_bytes < mark * RESUME_SHARE
        beyond = resident_bytes >= mark * CEILING_SHARE
        if before:
            fits = jobs_bytes < self._jobs_bytes * RESUME_SHARE and not beyond
            self.full = not (has_shrunk or fits)
        elif beyond or (resident_bytes >= mark and jobs_bytes >= self._jobs_bytes):
            self.full = True
            self._jobs_bytes = jobs_bytes
        if has_shrunk:
            self._jobs_bytes = 0
        return self.full != before

    @property
    def refusal(self) -> str:
        """What the clients of refused jobs are told."""
        return (
            f"this node has no memory for more jobs (more than {self.mark_bytes >> 20} MiB are in use): add "
            "workers, and submit again when jobs are done; or raise --max-memory, if there is more"
        )

    def empty_fault(self, resident_bytes: int) -> str | None:
        """Why the start cannot go on, before any job is there: without jobs it would be full, for ever."""
        needed_bytes = resident_bytes + EMPTY_GROWTH_BYTES
        if not self.mark_bytes or self.mark_bytes * RESUME_SHARE > needed_bytes:
            return None
        mark = -(-2 * needed_bytes // _GIVE_STEP_BYTES) * (_GIVE_STEP_BYTES >> 20)
        if self.source == "--max-memory":
            remedy = f"give --max-memory {mark}M or more, or leave it out"
        else:
            size = int(mark / MARK_SHARE)
            remedy = f"raise {self.available.source} to {size}M or more, or give --max-memory {mark}M"
        return (
            f"the memory from which on background jobs are refused is {self.mark_bytes >> 10} KiB "
            f"({self.source}), and a node without any job takes {resident_bytes >> 20} MiB and soon "
            f"{needed_bytes >> 20}: it would refuse all of them, for ever. {remedy[0].upper()}{remedy[1:]}"
        )

    def start_fault(self, resident_bytes: int, read_bytes: int) -> str | None:
        """Why the start cannot go on, while the journal is read."""
        size = self.available.size_bytes
        if not size or resident_bytes < size * START_SHARE:
            return None
        return too_little(f"{size >> 20} MiB ({self.available.source})", read_bytes)


def too_little(what: str, read_bytes: int) -> str:
    """There is less memory than the journal's jobs need."""
    return (
        f"the jobs in the journal do not fit into {what}: after {read_bytes >> 20} MiB of it nothing is "
        "left. No job is lost: give the node more memory and start it again; once it is up, workers make room"
    )
