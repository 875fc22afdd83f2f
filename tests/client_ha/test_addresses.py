"""Where servers are."""

from __future__ import annotations

import pytest

from client_ha import HAClient, InvalidArgument, Server, parse_servers


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("a:1,b:2", [Server("a", 1), Server("b", 2)]),
        ("a", [Server("a", 4730)]),
        (" a:1 , b:2 ,", [Server("a", 1), Server("b", 2)]),
        ("a:1,a:1", [Server("a", 1)]),
        ("[::1]:4731,[fe80::1]", [Server("::1", 4731), Server("fe80::1", 4730)]),
        (["a:1", "b,c:3"], [Server("a", 1), Server("b"), Server("c", 3)]),
        ([Server("a", 1)], [Server("a", 1)]),
    ],
)
def test_servers_are_read_in_order_without_repeats(text: str, servers: list[Server]) -> None:
    assert list(parse_servers(text)) == servers


@pytest.mark.parametrize("text", ["", ",", "a:port", "a:0", "a:65536", "::1", "[::1", "[::1]4730", ":4730"])
def test_a_bad_address_is_named_in_the_error(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_servers(text)


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "a:1,b")
    assert HAClient().servers == (Server("a", 1), Server("b", 4730))
    monkeypatch.delenv("GEARMAN_SERVERS")
    with pytest.raises(InvalidArgument, match="GEARMAN_SERVERS"):
        HAClient()


def test_an_address_reads_as_it_is_written() -> None:
    for text in ("a:1", "[::1]:4730"):
        assert str(parse_servers(text)[0]) == text
