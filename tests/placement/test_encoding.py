"""The values in etcd: what is written is read again, and what cannot be right is refused with the mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement import (
    BadValue,
    FleetConfig,
    FleetMap,
    Member,
    SlotRow,
    decode_config,
    decode_map,
    decode_member,
    encode_config,
    encode_map,
    encode_member,
)
from tests.placement.fleet import Fleet, identity_of

MEMBER = Member(
    "a", identity_of(1), 7, "host-a", 4730, 4731, 4732, "z1", "0.2", 1, draining=True, empty=True, revision=5
)
CONFIG = FleetConfig(1024, 3, 2)


def small_map() -> FleetMap:
    a, b, c = (identity_of(number) for number in (1, 2, 3))
    rows = (
        SlotRow(1, "a", 1001, (a, b)),
        SlotRow(7, "b", 1002, (a, b), (c,)),
        SlotRow(2, "a", 0, (a,), (b, c), lossy=True),
        SlotRow(3, "c", 1003, (c,), (), lossy=True),
    )
    return FleetMap(rows, {a: "a", b: "b", c: "c"}, 4, frozenset({b}), (5, 66), revision=9)


def test_a_member_a_configuration_and_a_map_come_back_as_they_were() -> None:
    member = decode_member(encode_member(MEMBER), 5)
    assert member == MEMBER
    assert member.revision == 5
    assert decode_config(encode_config(CONFIG)) == CONFIG
    fleet_map = decode_map(encode_map(small_map()), 9)
    assert fleet_map == small_map()
    assert fleet_map.revision == 9


# These bytes are in the etcd of fleets that run: they may be added to, never changed.
def test_the_layout_of_version_1() -> None:
    assert encode_config(CONFIG) == b'{"version":1,"slots":1024,"replicas":3,"min_in_sync":2}'
    one, two, three = (identity_of(number) for number in (1, 2, 3))
    assert (
        encode_map(small_map())
        == (
            '{"version":1,"generation":4,'
            f'"identities":[["{one}","a"],["{two}","b"],["{three}","c"]],'
            '"primaries":[["a",0],["a",1001],["b",1002],["c",1003]],'
            f'"forgotten":["{two}"],"lineage":[5,66],'
            '"slots":[[1,1,[0,1]],[7,2,[0,1],[2]],[2,0,[0],[1,2],1],[3,3,[2],[],1]]}'
        ).encode()
    )
    assert json.loads(encode_member(MEMBER)) == {
        "version": 1,
        "name": "a",
        "identity": one,
        "incarnation": 7,
        "host": "host-a",
        "port": 4730,
        "peer_port": 4731,
        "http_port": 4732,
        "zone": "z1",
        "release": "0.2",
        "protocol": 1,
        "draining": True,
        "restarting": False,
        "empty": True,
    }


def test_a_map_is_compact() -> None:
    fleet = Fleet("abcde", slots=1024)
    assert fleet.map is not None
    data = encode_map(fleet.map)
    assert len(data) / 1024 < 40
    decoded = decode_map(data)
    assert decoded == fleet.map
    # Equal sets are one object: most rows list the same few.
    assert len({id(row.in_sync) for row in decoded.slots}) == len({row.in_sync for row in decoded.slots})


names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@st.composite
def maps(draw: st.DrawFn) -> FleetMap:
    identities = [identity_of(number) for number in range(draw(st.integers(1, 6)))]
    found = draw(st.lists(names, min_size=len(identities), max_size=len(identities), unique=True))
    name_of = dict(zip(identities, found, strict=True))
    rows = []
    for _ in range(2 ** draw(st.integers(0, 4))):
        in_sync = draw(st.lists(st.sampled_from(identities), min_size=1, unique=True))
        learners = draw(st.lists(st.sampled_from(identities), unique=True))
        rows.append(
            SlotRow(
                draw(st.integers(1, 2**63 - 1)),
                name_of[in_sync[0]],
                draw(st.integers(0, 2**63 - 1)),
                tuple(sorted(in_sync)),
                tuple(sorted(set(learners) - set(in_sync))),
                draw(st.booleans()),
            )
        )
    listed = {identity for row in rows for identity in row.in_sync + row.learners}
    used = {identity: name_of[identity] for identity in sorted(listed)}
    lineage = tuple(draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)))
    return FleetMap(tuple(rows), used, draw(st.integers(1, 9)), frozenset(identities[:1]), lineage)


@settings(max_examples=100, deadline=None)
@given(fleet_map=maps())
def test_every_map_comes_back_as_it_was(fleet_map: FleetMap) -> None:
    found = decode_map(encode_map(fleet_map), 3)
    assert found == replace(fleet_map, revision=3)
    assert found.lineage == fleet_map.lineage


DECODERS: list[tuple[Callable[..., Any], bytes, str]] = [
    (decode_config, encode_config(CONFIG), "config"),
    (decode_member, encode_member(MEMBER), "nodes/NODE"),
    (decode_map, encode_map(small_map()), "map"),
]


@pytest.mark.parametrize(("decode", "data", "key"), DECODERS)
def test_fields_of_a_later_release_are_passed_over(decode: Callable[..., Any], data: bytes, key: str) -> None:
    later = json.dumps({**json.loads(data), "of_a_later_release": [1, {"x": None}]}).encode()
    assert decode(later) == decode(data)


@pytest.mark.parametrize(("decode", "data", "key"), DECODERS)
def test_another_version_is_refused_clearly(decode: Callable[..., Any], data: bytes, key: str) -> None:
    other = json.dumps({**json.loads(data), "version": 2}).encode()
    with pytest.raises(
        BadValue, match=rf"{key} cannot be used: its version is 2; .*version 1 only. Mend: .*up"
    ):
        decode(other)


@pytest.mark.parametrize(("decode", "data", "key"), DECODERS)
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xff\xfe",
        b"hello",
        b"[]",
        b"null",
        b"17",
        b"{}",
        b'{"version":true}',
        b'{"version":1',
        b'{"version":1}',
        b'{"version":1,"version":1}',
        b'{"version":NaN}',
        b'{"version":1.0}',
        b"[" * 100_000,
        b'{"version":' + b"9" * 10_000 + b"}",
    ],
    ids=lambda bad: repr(bad[:20]),
)
def test_what_is_no_such_value_is_refused(
    decode: Callable[..., Any], data: bytes, key: str, bad: bytes
) -> None:
    with pytest.raises(BadValue, match=rf"the etcd key /x/{key} cannot be used: .* Mend: "):
        decode(bad, 1, key=f"/x/{key}")


@pytest.mark.parametrize(("decode", "data", "key"), DECODERS)
@settings(max_examples=150, deadline=None)
@given(random=st.data())
def test_a_damaged_value_is_refused_or_is_another_value(
    decode: Callable[..., Any], data: bytes, key: str, random: st.DataObject
) -> None:
    start = random.draw(st.integers(0, len(data)))
    end = random.draw(st.integers(start, min(len(data), start + 12)))
    put = random.draw(
        st.one_of(st.binary(max_size=4), st.sampled_from([b"-1", b"null", b"[]", b"true", b'"x"']))
    )
    with suppress(BadValue):  # and nothing else
        decode(data[:start] + put + data[end:])


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("slots", 1000, "1000, which is no power of two"),
        ("slots", 0, "0 instead of a number from 1 to 65536"),
        ("slots", 131072, "instead of a number from 1 to 65536"),
        ("slots", "1024", "instead of a number"),
        ("replicas", 0, "instead of a number from 1 to 64"),
        ("replicas", 65, "instead of a number from 1 to 64"),
        ("min_in_sync", 4, "4 instead of a number from 1 to 3"),
        ("min_in_sync", None, '"min_in_sync" is missing'),
    ],
)
def test_a_configuration_that_cannot_be(field: str, value: object, why: str) -> None:
    data = json.dumps({**json.loads(encode_config(CONFIG)), field: value}).encode()
    with pytest.raises(BadValue, match=rf"config cannot be used: .*{why}.*Mend: write back what it was"):
        decode_config(data)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("name", "", "instead of a text of 1 to 255 characters"),
        ("name", "x" * 256, "instead of a text of 1 to 255 characters"),
        ("name", "a/b", "a name has no slash"),
        ("name", "a\nb", "instead of a text"),
        ("identity", "A" * 32, "instead of 32 hexadecimal digits"),
        ("identity", "a" * 31, "instead of 32 hexadecimal digits"),
        ("identity", 5, "instead of 32 hexadecimal digits"),
        ("incarnation", 0, "instead of a number from 1"),
        ("incarnation", 2**63, "instead of a number from 1"),
        ("host", None, '"host" is missing'),
        ("port", 0, "instead of a number from 1 to 65535"),
        ("peer_port", 65536, "instead of a number from 1 to 65535"),
        ("http_port", -1, "instead of a number from 0 to 65535"),
        ("zone", 5, "instead of a text"),
        ("draining", 1, "instead of true or false"),
        ("empty", "no", "instead of true or false"),
    ],
)
def test_a_member_that_cannot_be(field: str, value: object, why: str) -> None:
    data = json.dumps({**json.loads(encode_member(MEMBER)), field: value}).encode()
    with pytest.raises(BadValue, match=rf"{why}.*Mend: delete the key: a node that is up puts it back"):
        decode_member(data)


def test_a_member_under_another_node_s_key_is_refused() -> None:
    key = "/gearfleet/default/nodes/b"
    with pytest.raises(BadValue, match=f'{key} cannot be used: "name" is "a", not what the key ends in'):
        decode_member(encode_member(MEMBER), 1, key=key)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("generation",), 0, '"generation" is 0 instead of a number from 1'),
        (("identities",), {}, "instead of a list"),
        (("identities", 0), ["zz", "a"], "instead of .32 hexadecimal digits, node name"),
        (("identities", 0, 1), "", "instead of .32 hexadecimal digits, node name"),
        (("identities", 1, 0), identity_of(1), "twice"),
        (("primaries",), None, '"primaries" is missing'),
        (("primaries", 0), ["a"], "instead of .node name, incarnation"),
        (("primaries", 0, 1), -1, "instead of .node name, incarnation"),
        (("forgotten",), [1], "no identity of 32 hexadecimal digits"),
        (("slots",), [], "has 0 rows, which is no power of two"),
        (("slots",), [[1, 1, [0]]] * 3, "has 3 rows, which is no power of two"),
        (("slots", 0), [1, 1], "slot 0 is .1, 1. instead of"),
        (("slots", 0), "x", "slot 0 is .x. instead of"),
        (("slots", 0), [1, 1, [0], [], 0, 9], "slot 0 is .* instead of"),
        (("slots", 1, 0), 0, "slot 1 has the epoch 0"),
        (("slots", 1, 0), True, "slot 1 has the epoch true"),
        (("slots", 1, 1), 4, "slot 1 names the primary 4"),
        (("slots", 1, 1), -1, "slot 1 names the primary -1"),
        (("slots", 1, 2), [], 'slot 1 does not have its primary "b" in the in-sync set'),
        (("slots", 1, 2), [0], 'slot 1 does not have its primary "b" in the in-sync set'),
        (("slots", 1, 2), [0, 3], "slot 1 lists .0, 3., which"),
        (("slots", 1, 2), [0, 1, 1], "slot 1 lists an identity twice"),
        (("slots", 1, 3), [1], "slot 1 has a learner that is in sync"),
        (("slots", 1, 3), 2, "slot 1 lists 2, which"),
        (("slots", 2, 4), 2, "slot 2 says 2 for lossy"),
        (("identities", 1, 1), "a", "slot 0 has two identities of one node in sync"),
    ],
)
def test_a_map_that_cannot_be(path: tuple[Any, ...], value: object, why: str) -> None:
    fields = json.loads(encode_map(small_map()))
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(BadValue, match=rf"the etcd key map cannot be used: .*{why}.*Mend: .*fleet restore"):
        decode_map(json.dumps(fields).encode())
