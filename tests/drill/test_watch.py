"""When a drill may begin a fault: only in a fleet that lacks nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.drill.watch import lacks
from cluster.server.control import FleetStatus, NodeStatus, SlotStatus

WHOLE = FleetStatus(
    fleet="f",
    answered_by="a",
    revision=9,
    replicas=3,
    min_in_sync=2,
    nodes=tuple(NodeStatus(name, incarnation=1, leads=1, in_sync=3) for name in "abc"),
    slots=tuple(SlotStatus(slot, 1, "abc"[slot], ("a", "b", "c"), serving=True) for slot in range(3)),
)


def with_node(**more: object) -> FleetStatus:
    return replace(WHOLE, nodes=(*WHOLE.nodes[:2], replace(WHOLE.nodes[2], **more)))  # type: ignore[arg-type]


def test_a_whole_fleet_lacks_nothing() -> None:
    assert lacks(WHOLE, "abc") == ""


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (with_node(state="down"), "c is down"),
        (with_node(state="draining"), "c is draining"),
        (replace(WHOLE, nodes=WHOLE.nodes[:2]), "c is down"),
        (with_node(learning=1200), "1,200 copies are being made"),
        (replace(WHOLE, under_replicated=341), "341 slots are under-replicated"),
        (replace(WHOLE, under_replicated=341, unavailable=7), "7 slots are unavailable"),
        (replace(WHOLE, etcd_reachable=False), "etcd: not reached"),
        (replace(WHOLE, etcd_error="too slow"), "etcd: too slow"),
        (replace(WHOLE, nodes=tuple(replace(n, leads=0) for n in WHOLE.nodes)), "nobody leads a slot"),
        (
            replace(WHOLE, slots=(replace(WHOLE.slots[0], serving=False), *WHOLE.slots[1:])),
            "1 slots are not served yet",
        ),
    ],
)
def test_what_is_lacking_is_told(status: FleetStatus, problem: str) -> None:
    assert lacks(status, "abc") == problem
