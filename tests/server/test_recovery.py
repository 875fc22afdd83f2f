"""Rule 15: which map is written into an etcd that has lost it, and when that is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.placement import FleetConfig, FleetMap, Member, SlotRow, decode_map, encode_map, encode_member
from cluster.replication import SLOT_COUNT
from cluster.server.directory import DataDirectory
from cluster.server.errors import DirectoryError
from cluster.server.etcd import EtcdOptions
from cluster.server.recovery import (
    RestoreRefused,
    Saved,
    decode_saved,
    encode_saved,
    plan_restore,
    read_saved,
    restore,
)
from cluster.server.settings import parse_endpoints
from tests.support.etcd import FleetEtcd, needs_etcd

A, B, C = "a" * 32, "b" * 32, "c" * 32
NAMES = {A: "a", B: "b", C: "c"}
CONFIG = FleetConfig(SLOT_COUNT, 3, 2)


def fleet_map(epoch: int = 5, generation: int = 1, revision: int = 10, **changes: Any) -> FleetMap:
    rows = (SlotRow(epoch, "a", 77, (A, B, C)),) * SLOT_COUNT
    return replace(FleetMap(rows, NAMES, generation, revision=revision), **changes)


def saved(identity: str, known: FleetMap | None = None, promised: int = 0, **changes: Any) -> Saved:
    found = Saved(
        f"/data/{identity[0]}", "t", identity, (promised,) * SLOT_COUNT, known or fleet_map(), CONFIG
    )
    return replace(found, **changes)


def test_the_newest_map_is_taken_beyond_every_epoch_that_anybody_knows() -> None:
    # Given three nodes, of which b has the newest map, a a higher promise, and c a higher epoch in an old map
    one = fleet_map(9)
    old = replace(one, slots=(SlotRow(31, "c", 7, (B, C)), *one.slots[1:]), revision=9)
    newest = fleet_map(12, revision=12)
    everyone = [
        saved(A, promised=20),
        saved(B, newest),
        saved(C, old),
    ]
    plan = plan_restore("t", everyone)
    # then the map is b's, its epochs are above all, nobody leads yet, and the generation is a new one.
    assert plan.newest.identity == B
    assert plan.map.slots[0] == SlotRow(32, "a", 0, (A, B, C))
    assert plan.map.slots[1].epoch == 21
    assert plan.map.generation == 2
    assert (plan.config, plan.lost) == (CONFIG, ())


def test_a_later_generation_is_newer_than_a_higher_revision() -> None:
    restored = fleet_map(50, generation=2, revision=3)
    plan = plan_restore("t", [saved(A, fleet_map(revision=99)), saved(B, restored), saved(C)])
    assert (plan.newest.identity, plan.map.generation) == (B, 3)


def test_a_slot_without_a_whole_copy_is_told() -> None:
    rows = (SlotRow(1, "c", 7, (C,)), *fleet_map().slots[1:])
    plan = plan_restore("t", [saved(A, fleet_map(slots=rows)), saved(B)], without=["c"])
    assert plan.lost == (0,)


@pytest.mark.parametrize(
    ("known", "without", "message"),
    [
        ([saved(A), saved(B)], [], "what c knows is missing"),
        ([saved(A), saved(B), saved(B, source="/copy")], [], "/copy and /data/b are copies of one"),
        ([saved(A), saved(B), saved(C, fleet="u")], [], "/data/c is of the fleet u, not of t"),
        ([saved(A, map=None)], [], "none of these data directories holds a map"),
        ([saved(A), saved(B)], ["d"], "the newest map lists no node called d; it has a, b, c"),
    ],
)
def test_what_might_do_harm_is_refused(known: list[Saved], without: list[str], message: str) -> None:
    with pytest.raises(RestoreRefused, match=message):
        plan_restore("t", known, without)


def test_of_two_histories_an_operator_chooses_one() -> None:
    """Nodes went on with an etcd that had been restored, and others know what it has forgotten."""
    before = fleet_map(lineage=(1, 2, 3))
    after = fleet_map(lineage=(1, 2, 4, 5), revision=20)
    one, other = [saved(A, before), saved(B, before)], [saved(C, after)]
    with pytest.raises(
        RestoreRefused, match="two histories: that of /data/c does not continue that of /data/a"
    ):
        plan_restore("t", [*one, *other])
    assert plan_restore("t", one, without=["c"]).newest.map is before
    assert plan_restore("t", other, without=["a", "b"]).newest.map is after
    plan_restore("t", [*other, saved(A, fleet_map(lineage=(1, 2))), saved(B, fleet_map(lineage=(1, 2, 4)))])


def test_one_that_begins_with_nothing_is_heard_and_does_not_count_as_a_copy() -> None:
    rows = (SlotRow(1, "c", 7, (C,)), *fleet_map().slots[1:])
    plan = plan_restore("t", [saved(A, fleet_map(slots=rows)), saved(B), saved("d" * 32, formerly=(C,))])
    assert plan.lost == (0,)


def test_one_that_will_not_come_back_need_not_be_there() -> None:
    known = fleet_map(forgotten=frozenset({C}))
    assert plan_restore("t", [saved(A, known), saved(B, known)]).map.forgotten == {C}


def test_a_saved_map_may_be_carried_as_a_file() -> None:
    for each in (saved(A, promised=3, damage="some"), saved(B, map=None, config=None)):
        again = decode_saved(encode_saved(each), each.source)
        assert again == each
        assert (again.map and again.map.revision) == (each.map and each.map.revision)
    for text in (
        "",
        "{}",
        "[]",
        '{"format": 1}',
        encode_saved(saved(A)).replace('"promised": [', '"promised": ["x",'),
    ):
        with pytest.raises(RestoreRefused, match="is no output of gearfleet fleet saved-map"):
            decode_saved(text, "file")
    with pytest.raises(RestoreRefused, match="has format 2, this release knows 1"):
        decode_saved('{"format": 2}', "file")


@pytest.mark.parametrize(("reason", "heard"), [("damaged", True), ("copied", False)])
def test_a_damaged_directory_tells_which_one_it_was_and_a_copy_does_not(
    reason: str, heard: bool, tmp_path: Path
) -> None:
    directory = DataDirectory(tmp_path / "n", "t")
    directory.bind("t", SLOT_COUNT)
    before = directory.identity.hex
    directory.condemn(reason)  # and then it is killed
    directory.close()
    found = read_saved(tmp_path / "n")
    assert found.identity != before
    assert found.formerly == ((before,) if heard else ())
    assert decode_saved(encode_saved(found).encode(), found.source).formerly == found.formerly


def test_only_a_stopped_node_of_a_fleet_has_something_to_say(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="is no data directory of a node"):
        read_saved(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    directory = DataDirectory(tmp_path / "a", "t")
    with pytest.raises(DirectoryError, match="belongs to no fleet"):
        read_saved(tmp_path / "a")
    directory.bind("t", SLOT_COUNT)
    with pytest.raises(DirectoryError, match="is in use by process"):
        read_saved(tmp_path / "a")
    directory.save_map(encode_map(fleet_map()), 10, b"")
    directory.close()
    found = read_saved(tmp_path / "a")
    assert (found.map, found.config, found.damage) == (fleet_map(), None, "")
    (tmp_path / "a" / "map").write_bytes(b"torn")
    found = read_saved(tmp_path / "a")
    assert found.map is None
    assert "is damaged" in found.damage


# ---- with etcd


def put_back(etcd: FleetEtcd, **options: Any) -> FleetMap:
    """Restore from what a, b and c know, and what etcd has then."""
    known = fleet_map(revision=1)
    nodes = options.pop("nodes", None) or [saved(A, known), saved(B, known), saved(C, known)]
    plan = plan_restore("t", nodes)
    plan = replace(plan, fleet=etcd.fleet, config=options.pop("known_config", CONFIG))
    written, _ = asyncio.run(restore(EtcdOptions(parse_endpoints(etcd.address)), plan, **options))
    return written


def in_etcd(etcd: FleetEtcd) -> FleetMap:
    data = etcd.server.get(etcd.key("map"))
    assert data is not None
    return decode_map(data)


@needs_etcd()
def test_map_and_configuration_are_written_and_starts_are_forgotten(etcd: FleetEtcd) -> None:
    etcd.server.put(etcd.key(f"dirs/{A}"), "0" * 32)
    assert put_back(etcd, dry_run=True).generation == 2
    assert etcd.server.get(etcd.key("map")) is None
    assert put_back(etcd) == in_etcd(etcd)
    assert etcd.server.get(etcd.key("config")) is not None
    assert etcd.server.get(etcd.key(f"dirs/{A}")) is None


@needs_etcd()
def test_an_older_map_is_replaced_by_one_beyond_it(etcd: FleetEtcd) -> None:
    # etcd was restored from a backup; what was written after that is of a generation of its own
    older = fleet_map(4)
    older = replace(older, slots=(SlotRow(90, "b", 1, (A, B)), *older.slots[1:]))
    etcd.server.put(etcd.key("map"), encode_map(older))
    written = put_back(etcd)
    assert (written.slots[0].epoch, written.slots[0].in_sync) == (91, (A, B, C))
    assert written.slots[1].epoch == 7
    assert in_etcd(etcd) == written


@needs_etcd()
def test_a_map_that_was_edited_into_nonsense_is_replaced(etcd: FleetEtcd) -> None:
    etcd.server.put(etcd.key("map"), b"{")
    assert put_back(etcd) == in_etcd(etcd)


@needs_etcd()
def test_nothing_is_written_where_nothing_was_lost_or_a_node_is_up(etcd: FleetEtcd) -> None:
    etcd.server.put(etcd.key("map"), encode_map(fleet_map(6)))
    with pytest.raises(RestoreRefused, match="nothing was lost"):
        put_back(etcd)
    assert put_back(etcd, force=True).slots[0].epoch == 7
    member = Member("b", B, 1, "h", 1, 2)
    etcd.server.put(etcd.key("nodes/b"), encode_member(member))
    with pytest.raises(RestoreRefused, match="b is up, or was a moment ago: stop all nodes"):
        put_back(etcd, force=True)


@needs_etcd()
@pytest.mark.parametrize("nonce", ["", "1" * 32, "3" * 32])
def test_an_etcd_that_has_forgotten_a_start_has_lost_something_though_its_map_is_the_same(
    etcd: FleetEtcd, nonce: str
) -> None:
    # Given a map that nobody has changed since, and the nonce that etcd has for node b's data directory.
    etcd.server.put(etcd.key("map"), encode_map(fleet_map(6)))
    if nonce:
        etcd.server.put(etcd.key(f"dirs/{B}"), nonce)
    known = fleet_map(revision=1)
    started = saved(B, known, nonces=("2" * 32,), past_nonces=("1" * 32,))
    nodes = [saved(A, known), started, saved(C, known)]
    if nonce == "3" * 32:  # of a copy of this directory that was started since: its start says so
        with pytest.raises(RestoreRefused, match="nothing was lost"):
            put_back(etcd, nodes=nodes)
    else:  # b would refuse to start, and send its operator here
        assert put_back(etcd, nodes=nodes).generation > 1
        assert etcd.server.get(etcd.key(f"dirs/{B}")) is None
        # And once is enough.
        with pytest.raises(RestoreRefused, match="nothing was lost"):
            put_back(etcd, nodes=nodes)


@needs_etcd()
def test_the_configuration_is_asked_for_where_nobody_knows_it(etcd: FleetEtcd) -> None:
    with pytest.raises(RestoreRefused, match="give --replicas and --min-in-sync"):
        put_back(etcd, known_config=None)
    with pytest.raises(RestoreRefused, match="has 8 slots, the map 1024"):
        put_back(etcd, known_config=FleetConfig(8, 3, 2))
    put_back(etcd, known_config=None, config=FleetConfig(SLOT_COUNT, 5, 3))
    # and etcd's is good enough afterwards
    assert put_back(etcd, known_config=None, force=True)
