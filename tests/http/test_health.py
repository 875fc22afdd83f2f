"""What lives and what serves, from a node's status alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.http.health import (
    TURN_AGE_SECONDS_MAX,
    WRITE_PENDING_SECONDS_MAX,
    why_not_ready,
    why_sick,
)
from cluster.server.status import NodeStatus, Phase
from tests.http.support import FLEET, JOURNAL, STATUS


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        replace(STATUS, journal=None),
        replace(STATUS, fleet=FLEET),
        # An outage of etcd or of all peers must neither restart a node nor send its clients away.
        replace(STATUS, fleet=replace(FLEET, etcd_reachable=False, lease_age_seconds=900.0, peers_up=0)),
        replace(STATUS, fleet=replace(FLEET, slots_unavailable=341, lease_age_seconds=None)),
        replace(STATUS, turn_age_seconds=TURN_AGE_SECONDS_MAX),
        replace(STATUS, journal=replace(JOURNAL, write_pending_seconds=WRITE_PENDING_SECONDS_MAX)),
    ],
)
def test_lives_and_serves(status: NodeStatus) -> None:
    assert why_sick(status) is None
    assert why_not_ready(status) is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (replace(STATUS, phase=Phase.STARTING), "the node starts"),
        (
            replace(STATUS, phase=Phase.STARTING, fleet=replace(FLEET, joined=False, waits_for="etcd")),
            "the node starts: it waits for etcd",
        ),
        (
            replace(STATUS, fleet=replace(FLEET, joined=False, waits_for="2 more nodes")),
            "the node has not joined the fleet default: it waits for 2 more nodes",
        ),
        (replace(STATUS, phase=Phase.DRAINING), "the node drains"),
        (replace(STATUS, fleet=replace(FLEET, draining=True)), "the node drains"),
        (replace(STATUS, phase=Phase.STOPPING), "the node stops"),
        (
            replace(STATUS, refusal="disk full; make room"),
            "background jobs are refused: disk full; make room",
        ),
        (
            replace(STATUS, journal=replace(JOURNAL, write_pending_seconds=WRITE_PENDING_SECONDS_MAX + 1)),
            "the disk has not finished a write for 11 s",
        ),
    ],
)
def test_lives_but_does_not_serve(status: NodeStatus, reason: str) -> None:
    assert why_sick(status) is None
    assert (why_not_ready(status) or "").startswith(reason)


def test_a_loop_that_stands_still_is_sick_and_serves_nobody() -> None:
    status = replace(STATUS, turn_age_seconds=TURN_AGE_SECONDS_MAX + 1)
    assert "not taken a turn for 31 s" in (why_sick(status) or "")
    assert why_not_ready(status) == why_sick(status)
