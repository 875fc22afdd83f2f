"""Which server a key prefers: the same for all processes and releases, and only what must move moves."""

from __future__ import annotations

from collections import Counter
from zlib import crc32

from client_ha import Server
from client_ha.routing import RendezvousRouter, SlotRouter
from client_ha.slot_map import MapNode, SlotMap

SERVERS = [Server("10.0.0.1"), Server("10.0.0.2"), Server("10.0.0.3")]
KEYS = [b"key-%d" % number for number in range(3000)]


def test_the_hash_is_a_contract_between_clients() -> None:
    # When this fails, clients of two releases send one key to two servers, and a repeat runs twice.
    router = RendezvousRouter(SERVERS)
    order = ["".join(s.host[-1] for s in router.order(b"resize", key)) for key in KEYS[:12]]
    assert order == ["231", "213", "312", "321", "123", "321", "312", "231", "123", "123", "231", "132"]


def test_the_list_s_order_does_not_matter() -> None:
    one, other = RendezvousRouter(SERVERS), RendezvousRouter(SERVERS[::-1])
    assert all(list(one.order(b"f", key)) == list(other.order(b"f", key)) for key in KEYS)


def test_keys_spread_evenly_in_first_and_second_place() -> None:
    orders = [RendezvousRouter(SERVERS).order(b"f", key) for key in KEYS]
    places = Counter((place, server) for order in orders for place, server in enumerate(order))
    assert all(900 < count < 1100 for count in places.values()), places
    heirs = Counter(order[1] for order in orders if order[0] == SERVERS[0])
    assert all(400 < count < 600 for count in heirs.values()), heirs


def test_without_a_server_only_its_own_keys_move_and_to_their_second_choice() -> None:
    all_three, two = RendezvousRouter(SERVERS), RendezvousRouter(SERVERS[:2])
    for key in KEYS:
        assert list(two.order(b"f", key)) == [s for s in all_three.order(b"f", key) if s != SERVERS[2]]


# ---- with a fleet's map


def slot_map(states: str = "uuu", primaries: tuple[int, ...] = (0, 1, 2, -1)) -> SlotMap:
    names = {"u": "up", "g": "draining", "d": "down"}
    nodes = tuple(
        MapNode(name, server, names[state])  # type: ignore[arg-type]
        for name, server, state in zip("abc", SERVERS, states, strict=True)
    )
    return SlotMap("fleet", 1, nodes, primaries)


REACHED = dict(zip("abc", SERVERS, strict=True))


def key_of(slot: int, slots: int = 4) -> bytes:
    return next(key for key in KEYS if crc32(b"f\0" + key) & (slots - 1) == slot)


def test_until_a_map_is_known_and_after_it_is_forgotten_keys_go_where_they_always_went() -> None:
    router, plain = SlotRouter(SERVERS), RendezvousRouter(SERVERS)
    assert all(list(router.order(b"f", key)) == plain.order(b"f", key) for key in KEYS[:50])
    router.follow(tuple(SERVERS), slot_map(), REACHED)
    router.follow(tuple(SERVERS), None, {})
    assert all(list(router.order(b"f", key)) == plain.order(b"f", key) for key in KEYS[:50])


def test_a_job_goes_to_its_slot_s_primary_and_then_to_any_other() -> None:
    router = SlotRouter(SERVERS)
    router.follow(tuple(SERVERS), slot_map(), REACHED)
    for slot in range(3):
        order = router.order(b"f", key_of(slot))
        assert order[0] == SERVERS[slot]
        assert sorted(order) == SERVERS
        assert router.order(b"f", key_of(slot)) is order  # worked out once
    assert sorted(router.order(b"f", key_of(3))) == SERVERS  # nobody leads it: any node will do


def test_nodes_that_drain_come_late_and_those_that_are_down_last_also_as_primaries() -> None:
    router = SlotRouter(SERVERS)
    router.follow(tuple(SERVERS), slot_map("gdu"), REACHED)
    for slot in range(4):
        assert router.order(b"f", key_of(slot)) == (SERVERS[2], SERVERS[0], SERVERS[1])


def test_without_a_primary_slots_spread_over_the_others_and_all_clients_agree() -> None:
    one, other = SlotRouter(SERVERS), SlotRouter(SERVERS[::-1])
    headless = slot_map(primaries=(0,) * 1024)
    headless = SlotMap(
        "fleet", 1, (headless.nodes[0]._replace(state="down"), *headless.nodes[1:]), (0,) * 1024
    )
    for router in (one, other):
        router.follow(tuple(router.servers), headless, REACHED)
    firsts = Counter(one.order(b"f", key)[0] for key in KEYS)
    assert set(firsts) == set(SERVERS[1:])
    assert min(firsts.values()) > 1200
    assert all(one.order(b"f", key) == other.order(b"f", key) for key in KEYS)


def test_a_node_is_where_it_is_reached_and_servers_outside_the_map_come_last() -> None:
    alias, stock = Server("localhost", 4731), Server("gearmand")
    router = SlotRouter([alias, stock])
    router.follow((alias, stock, SERVERS[1]), slot_map(), {"a": alias, "b": SERVERS[1]})
    assert router.order(b"f", key_of(0)) == (alias, SERVERS[1], stock)
    assert router.order(b"f", key_of(2))[-1] == stock  # its primary is not reached yet
    assert SERVERS[2] not in router.order(b"f", key_of(2))
