"""Which server a key prefers: the same for all processes and releases, and only what must move moves."""

from __future__ import annotations

from collections import Counter

from client_ha import Server
from client_ha.routing import RendezvousRouter

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
