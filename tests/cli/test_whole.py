"""An answer is whole only if no slot came or went while it was given, and none was nobody's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client_ha.addresses import Server
from client_ha.slot_map import MapNode, SlotMap
from cluster.cli.admin import Admin, SlotCount
from cluster.cli.discover import Heard, Source, Told


class Asked(Admin):
    """A node whose `show slots` is known beforehand."""

    def __init__(self, *counts: SlotCount | None) -> None:
        self._counts: Iterator[SlotCount | None] = iter(counts)

    def slots(self) -> SlotCount | None:
        return next(self._counts)


@pytest.mark.parametrize(
    ("before", "after", "unsure"),
    [
        (SlotCount(512, 512), SlotCount(512, 512), 0),
        (SlotCount(512, 500), SlotCount(512, 512), 12),  # loaded while it answered
        (SlotCount(341, 341), SlotCount(512, 512), 171),  # taken over and loaded while it answered
        (SlotCount(512, 512), SlotCount(341, 341), 171),  # given away
        (None, SlotCount(512, 512), 0),  # a server that cannot tell
    ],
)
def test_slots_that_come_or_go_meanwhile_may_be_missing(
    before: SlotCount | None, after: SlotCount | None, unsure: int
) -> None:
    assert Asked(before, after).ask_whole(lambda admin: "answer").unsure == unsure


@pytest.mark.parametrize(
    ("led", "incomplete"), [((2, 2), False), ((2, 1), True), ((3, 2), True), ((2, None), False)]
)
def test_a_slot_that_moves_between_two_answers_is_in_neither(
    led: tuple[int, int | None], incomplete: bool
) -> None:
    nodes = tuple(MapNode(name, Server("127.0.0.1", 4730), "up") for name in "ab")
    heard: Heard[str] = Heard(maps={"f": SlotMap("f", 1, nodes, (0, 0, 1, 1))})
    for node, count in zip("ab", led, strict=True):
        source = Source(fleet="f", node=node)
        heard.told.append(Told(source, "answer"))
        heard.led[source] = count
    assert heard.incomplete("f") is incomplete
