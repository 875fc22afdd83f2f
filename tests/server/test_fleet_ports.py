"""The ports that a node tells its fleet of."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.etcd import needs_etcd
from tests.support.fleet import Fleet

pytestmark = needs_etcd()


def test_a_node_without_a_port_for_health_is_a_member_like_any_other(
    start_fleet: Callable[..., Fleet],
) -> None:
    fleet = start_fleet("a", "--replicas", "1", "--http-port", "-1")

    (node,) = fleet.status().nodes
    assert (node.state, node.http_port) == ("up", 0)
