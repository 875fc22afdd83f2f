"""The map as it comes, and the slot of a key: the same for all clients in all languages."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_ha import Server
from client_ha.slot_map import BadMap, HandlePlace, MapNode, SlotMap, parse_map, place_of_handle
from cluster.wire import EXTENSION_PACKETS, request, response
from cluster.wire import packets as wire

PAGE = Path(__file__).parents[2] / "docs" / "protocol-extensions.md"


def a_map(**changes: Any) -> dict[str, Any]:
    nodes = [
        {"name": "a", "host": "10.0.0.1", "port": 4730, "state": "up", "zone": "z"},
        {"name": "b", "host": "10.0.0.2", "port": 4731, "state": "draining", "zone": ""},
    ]
    value = {"revision": 7, "fleet": "f", "slots": 4, "nodes": nodes, "primaries": [0, 1, -1, 0], "self": "b"}
    return value | changes


def test_a_map_is_read_and_what_a_later_release_adds_is_ignored() -> None:
    slot_map, name = parse_map(json.dumps(a_map(later={"x": 1})).encode())
    assert name == "b"
    assert slot_map == SlotMap(
        "f",
        7,
        (
            MapNode("a", Server("10.0.0.1", 4730), "up", "z"),
            MapNode("b", Server("10.0.0.2", 4731), "draining", ""),
        ),
        (0, 1, -1, 0),
    )
    assert [slot_map.primary(slot) for slot in range(5)] == [
        slot_map.nodes[0],
        slot_map.nodes[1],
        None,
        slot_map.nodes[0],
        None,
    ]


def test_a_node_that_stands_alone_has_no_map() -> None:
    alone: dict[str, Any] = {"revision": 0, "fleet": None, "nodes": [], "slots": 1024, "primaries": []}
    assert parse_map(json.dumps(alone).encode()) == (None, None)


def test_a_state_that_is_not_known_is_not_sent_to_first() -> None:
    node = {"name": "a", "host": "h", "port": 1, "state": "meditating"}
    slot_map, _ = parse_map(json.dumps(a_map(nodes=[node], primaries=[0, 0, 0, 0])).encode())
    assert slot_map is not None
    assert slot_map.nodes[0].state == "draining"


def test_a_node_that_is_away_has_no_address_and_a_fleet_may_have_no_map_yet() -> None:
    node = {"name": "a", "host": "", "port": 0, "state": "down", "zone": ""}
    slot_map, _ = parse_map(json.dumps(a_map(nodes=[node], primaries=[])).encode())
    assert slot_map is not None
    assert slot_map.nodes == (MapNode("a", None, "down"),)
    assert slot_map.primaries == (-1,) * 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"slots": 3, "primaries": [0, 0, 0]}, "power of two"),
        ({"slots": 131_072}, "power of two up to 65536"),
        ({"slots": True}, "power of two"),
        ({"primaries": [0]}, "list of 4"),
        ({"primaries": [0, 2, 0, 0]}, "not in 'nodes'"),
        ({"primaries": [0, True, 0, 0]}, "not in 'nodes'"),
        ({"revision": -1}, "'revision'"),
        ({"fleet": 5}, "'fleet'"),
        ({"self": 5}, "'self'"),
        ({"nodes": None}, "'nodes' must be a list of at most 4096"),
        ({"nodes": [{}] * 4097}, "at most 4096"),
        ({"nodes": [5, 5]}, "no JSON object"),
        ({"nodes": [{"name": "", "host": "h", "port": 1}]}, "a name and a host"),
        ({"nodes": [{"name": "a", "host": "", "port": 1}]}, "no host"),
        ({"nodes": [{"name": "a", "host": "h", "port": 65536}]}, "the port is 65536"),
        ({"nodes": [{"name": "a", "host": "h", "port": 1}] * 2}, "two nodes have one name"),
    ],
)
def test_what_is_no_map_is_refused_with_the_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadMap, match=re.escape(why)):
        parse_map(json.dumps(a_map(**changes)).encode())


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_anything_else_is_a_bad_map_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(BadMap):
        parse_map(body)


@pytest.mark.parametrize(
    ("handle", "place"),
    [
        (b"H:host:2a.3.1", HandlePlace(0x2A, False)),
        (b"3ff.1.ffff", HandlePlace(0x3FF, False)),
        (b"H:[::1]:0.t18c2.1", HandlePlace(0, True)),
        (b"H:host:17", None),
        (b"H:host:2A.3.1", None),
        (b"H:host:2a.3.", None),
        (b"H:a.b.c:7", None),
        (b"", None),
    ],
)
def test_a_handle_says_its_slot(handle: bytes, place: HandlePlace | None) -> None:
    assert place_of_handle(handle) == place


def test_the_documented_vectors_hold() -> None:
    # When this fails, clients of two releases, or languages, send one key to two nodes.
    rows = re.findall(r"^\| `(\w*)` \| `([^`]*)` \| `([^`]*)` \| (\d+) \|", PAGE.read_text(), re.M)
    assert len(rows) >= 5
    slots = SlotMap("f", 1, (), (-1,) * 1024)
    for function, unique, payload, slot in rows:
        if unique == "-":
            key = function.encode() + b"\0-\0" + blake2b(payload.encode(), digest_size=16).digest()
            assert crc32(key) & 1023 == int(slot)
        else:
            assert slots.slot_of(function.encode(), unique.encode()) == int(slot)


def test_the_documented_bytes_are_the_packets() -> None:
    documented = re.sub(r"\s+", " ", PAGE.read_text())
    for packet in (
        request(wire.OPTION_REQ, wire.OPTION_GEARFLEET),
        response(wire.OPTION_RES, wire.OPTION_GEARFLEET),
        request(wire.GET_MAP),
        request(wire.CLAIM_JOB, b"H:a:20d.3.1"),
    ):
        assert packet.hex(" ") in documented
    packet = request(wire.GIVE_BACK, b"H:a:20d.3.1", b"30000").hex(" ")
    assert packet.removesuffix(" 00 33 30 30 30 30") in documented
    answer = response(wire.CLAIM_RES, b"H:a:20d.3.1", wire.CLAIM_KEPT).hex(" ")
    assert answer.removesuffix(" 00 6b 65 70 74") in documented
    for number, spec in EXTENSION_PACKETS.items():
        assert f"| {number} | {spec.name} |" in documented


def test_the_documented_map_is_one() -> None:
    body = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.S)
    assert body is not None
    slot_map, name = parse_map(body[1].encode())
    assert slot_map is not None
    assert (slot_map.revision, name) == (17, "a")
    assert slot_map.nodes[2] == MapNode("c", None, "down")
