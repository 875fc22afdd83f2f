"""Who led is known from every map, whatever happens to etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos_tests.live.leaders import LeaderWatch
from cluster.drill.history import History, Kind
from cluster.placement import FleetMap, SlotRow, encode_map
from tests.support.etcd import Etcd, EtcdMember, needs_etcd
from tests.support.waiting import eventually

pytestmark = needs_etcd()

A, B = "a" * 32, "b" * 32
MAP = "/gearfleet/f/map"


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    cluster = Etcd(3).start()
    try:
        yield cluster
    finally:
        cluster.close()


def put(etcd: Etcd, primary: str, epoch: int) -> None:
    """Slot 0 has this primary; the others are a's for ever."""
    rows = [SlotRow(1, "a", 1, (A, B))] * 1024
    rows[0] = SlotRow(epoch, primary, 1, (A, B))
    etcd.put(MAP, encode_map(FleetMap(tuple(rows), {A: "a", B: "b"})))


def led(history: History) -> list[tuple[str, int]]:
    """Primary and epoch of slot 0."""
    return [
        (event.node, event.epoch) for event in history.events if event.kind is Kind.LEADS and not event.slot
    ]


def wait_for_others(etcd: Etcd, member: EtcdMember) -> None:
    others = [other for other in etcd.members if other is not member]
    eventually(lambda: all(other.healthy() for other in others))


def test_every_leader_is_noted_when_it_comes(etcd: Etcd) -> None:
    history = History()
    put(etcd, "a", 1)
    with LeaderWatch(etcd, "f", history) as leaders:
        assert led(history) == [("a", 1)]
        for epoch in range(2, 12):  # faster than anybody could ask
            put(etcd, "ab"[epoch % 2], epoch)
        leaders.catch_up()
    assert led(history) == [("a", 1), *(("ab"[epoch % 2], epoch) for epoch in range(2, 12))]
    assert {event.slot for event in history.events} == set(range(1024))
    put(etcd, "a", 12)
    assert len(led(history)) == 11


def test_no_leader_is_missed_while_members_of_etcd_die_and_stand_still(etcd: Etcd) -> None:
    history = History()
    put(etcd, "a", 1)
    with LeaderWatch(etcd, "f", history) as leaders:
        epoch = 1
        for member in etcd.members:
            for fault, healing in ((member.suspend, member.resume), (member.kill, etcd.start)):
                fault()
                wait_for_others(etcd, member)
                epoch += 1
                if member is etcd.members[0] and fault == member.suspend:
                    healing()  # it is the one that `put` asks
                put(etcd, "ab"[epoch % 2], epoch)
                healing()
                leaders.catch_up()
    assert led(history) == [("a", 1), *(("ab"[each % 2], each) for each in range(2, epoch + 1))]


def test_after_a_compaction_the_last_map_is_noted(etcd: Etcd) -> None:
    history = History()
    put(etcd, "a", 1)
    with LeaderWatch(etcd, "f", history) as leaders:
        for member in etcd.members:
            member.kill()
        etcd.start()
        put(etcd, "b", 2)
        put(etcd, "a", 3)
        etcd.compact()
        leaders.catch_up()
    assert led(history)[-1] == ("a", 3)


def test_a_map_that_cannot_be_read_is_told(etcd: Etcd) -> None:
    history = History()
    put(etcd, "a", 1)
    with LeaderWatch(etcd, "f", history) as leaders:
        etcd.put(MAP, b"{}")
        with pytest.raises(AssertionError, match="cannot be used"):
            leaders.catch_up()
