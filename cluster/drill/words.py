"""What the checker's words mean, for who has not read it."""

from __future__ import annotations

from typing import Final

from cluster.drill.checker import Verdict

# Each figure of a report, and what it counts. The checker's own text has the exact rules.
MEANINGS: Final = {
    "acknowledged": (
        "The fleet promised to do the job. A background job is on the disks of several nodes by then."
    ),
    "done": "Jobs that a worker finished.",
    "refused": "The caller was told to try again later; nothing was promised.",
    "of unknown end": "The caller heard nothing. The job may exist or not; nothing was promised.",
    "lost": "Promised, and never done.",
    "unexpected": "Done or answered, though nobody had asked for it.",
    "duplicated, unexplained": "Run twice, without a fault that explains it.",
    "coalescing broken": "Two jobs with the same unique key at the same time.",
    "order broken": "Given to a worker before a job that was acknowledged earlier or is more urgent.",
    "split": "Two nodes believed at the same time that they lead the same jobs.",
    "duplicated, explained": (
        "Run twice, because a fault cut off the first run or the news of its end. That is allowed: "
        "a job is done at least once."
    ),
    "longest wait of a slot": (
        "Jobs are spread over slots, each led by one node. For so long no submit to one of them was answered."
    ),
    "acknowledged after, p50": "Half of all were acknowledged faster than that.",
    "acknowledged after, p99": "99 of 100 were acknowledged faster than that.",
    "acknowledged after, slowest": "The one that waited longest.",
}


def judgement(verdict: Verdict) -> str:
    """What came of it, in a few words."""
    if verdict.valid:
        return "Nothing was lost"
    if verdict.lost:
        return "Jobs were lost"
    return "A promise was broken" if verdict.broken else "Nothing is proved"
