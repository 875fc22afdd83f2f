"""What a node that stands alone leaves in no file when it stops: that is no stop like others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cluster.jobs.job import Job
from cluster.replication import entries


class Unkept(NamedTuple):
    """A line of the log."""

    event: str
    jobs: int
    reason: str
    remedy: str


def unkept(
    jobs: Iterable[Job], owed: Iterable[bytes], *, lost: str, failure: str, directory: Path | None
) -> Unkept | None:
    """What to say, if anything. `lost`: why no next start will find what was written, "" when it will.
    `owed`: entries that could not be written, for the reason in `failure`. `directory` None: there
    was to be no journal."""
    if lost:
        waiting = sum(1 for job in jobs if job.background)
        if not waiting:
            return None
        return Unkept(
            f"{waiting} background jobs are in no journal and are gone",
            waiting,
            lost,
            f"put {directory} back before the next start, if it is anywhere; else submit them again"
            if directory is not None
            else "submit them again; with --durability fsync a restart keeps them",
        )
    ended = sum(1 for record in owed if record[9] == entries.DONE)
    if not ended:
        return None
    return Unkept(
        f"{ended} ended jobs could not be written and will run again",
        ended,
        failure,
        "stop their workers, or cancel them after the next start, if they must not run twice",
    )
