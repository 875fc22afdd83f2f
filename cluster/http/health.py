"""Whether a node lives, and whether it serves: what /healthz and /readyz answer.

Neither asks etcd or a peer. If they did, one outage there would restart every node, or take all of them
out of their service at once, while they could still serve.
"""

from __future__ import annotations

from typing import Final

from cluster.server.status import NodeStatus, Phase

# Without a sign of life for so long a node should be started again. Lax: a start costs more than a stall.
TURN_AGE_SECONDS_MAX: Final = 30.0
# A disk that has not finished a write for so long does not acknowledge jobs.
WRITE_PENDING_SECONDS_MAX: Final = 10.0


def why_sick(status: NodeStatus) -> str | None:
    """Why the process should be started again, or None."""
    if status.turn_age_seconds > TURN_AGE_SECONDS_MAX:
        return (
            f"the node has not taken a turn for {status.turn_age_seconds:.0f} s "
            f"(at most {TURN_AGE_SECONDS_MAX:.0f}): start it again, and keep its log"
        )
    return None


def why_not_ready(status: NodeStatus) -> str | None:
    """Why clients should be sent to other nodes, or None."""
    if status.phase is Phase.STARTING:
        return "the node starts" + _waits_for(status)
    if status.phase is Phase.STOPPING:
        return "the node stops"
    if status.phase is Phase.DRAINING or (status.fleet is not None and status.fleet.draining):
        return "the node drains: it takes no more work and ends when it holds none"
    if status.fleet is not None and not status.fleet.joined:
        return f"the node has not joined the fleet {status.fleet.fleet}" + _waits_for(status)
    if status.refusal is not None:
        return f"background jobs are refused: {status.refusal}"
    if status.journal is not None and status.journal.write_pending_seconds > WRITE_PENDING_SECONDS_MAX:
        return (
            f"the disk has not finished a write for {status.journal.write_pending_seconds:.0f} s "
            f"(at most {WRITE_PENDING_SECONDS_MAX:.0f}): look at the disk"
        )
    return why_sick(status)


def _waits_for(status: NodeStatus) -> str:
    waits_for = status.fleet.waits_for if status.fleet is not None else ""
    return f": it waits for {waits_for}" if waits_for else ""
