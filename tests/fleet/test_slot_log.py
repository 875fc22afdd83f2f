"""The log of a node tells what became of its slots, in one line for each story."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support import eventually
from tests.support.etcd import needs_etcd
from tests.support.fleet import SHORT_LEASE, Fleet

pytestmark = needs_etcd()


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), ("a", "b", "c"), *SHORT_LEASE) as fleet:
        fleet.start()
        fleet.wait_until_in_sync()
        yield fleet


def test_a_takeover_an_outage_and_their_ends_are_a_few_lines(fleet: Fleet) -> None:
    led = fleet.leads()["c"]
    fleet.kill("c")

    def taken() -> list[dict[str, object]]:
        return [line for name in "ab" for line in fleet.nodes[name].events("took over slots")]

    eventually(lambda: sum(int(str(line["slots"])) for line in taken()) == led)
    assert all(line["from_node"] == "c" for line in taken())
    assert len(taken()) == 2

    fleet.kill("b")
    a = fleet.nodes["a"]
    eventually(lambda: bool(a.events("slots unavailable")))
    lines = a.events("slots unavailable")
    assert sum(line["slots"] for line in lines) >= 1024
    assert any("again; nothing acknowledged is lost" in line["reason"] for line in lines)
    fleet.restart("b", "c")
    eventually(lambda: bool(a.events("slots available again")))
    assert len(a.events("slots unavailable")) < 10


def test_a_stopping_node_tells_how_far_it_is_and_the_others_what_they_got(fleet: Fleet) -> None:
    led = fleet.leads()["c"]
    fleet.nodes["c"].signal(signal.SIGTERM)
    assert fleet.nodes["c"].wait_for_exit() == 0
    (begin,) = fleet.nodes["c"].events("stopping")
    assert (begin["slots"], begin["hands_over_to"]) == (led, 2)
    (end,) = fleet.nodes["c"].events("leads nothing any more")
    assert end["handed_over"] == led

    def got() -> int:
        return sum(
            int(str(line["slots"]))
            for name in "ab"
            for line in fleet.nodes[name].events("got slots")
            if line["from_node"] == "c"
        )

    eventually(lambda: got() == led)
