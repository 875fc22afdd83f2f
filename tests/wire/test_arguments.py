"""Arguments: how a body is split, and what is missing."""

from __future__ import annotations

import pytest

from cluster.wire import EXTENSION_PACKETS, PACKETS, MissingArguments, error, split_arguments
from cluster.wire import packets as wire
from cluster.wire.packets import HEADER_BYTES

WITH_ARGUMENTS = [packet_type for packet_type, spec in sorted(PACKETS.items()) if spec.arguments > 1]
WITHOUT = [packet_type for packet_type, spec in sorted(PACKETS.items()) if spec.arguments == 0]


def name_of(packet_type: int) -> str:
    return PACKETS[packet_type].name


@pytest.mark.parametrize("packet_type", WITH_ARGUMENTS, ids=name_of)
def test_too_few_arguments_are_named(packet_type: int) -> None:
    # Given one argument less than the type needs
    needed = PACKETS[packet_type].arguments
    body = b"\0".join([b"x"] * (needed - 1))
    # When it is split, then the error says which type, how many it needs and how many came
    with pytest.raises(MissingArguments) as caught:
        split_arguments(packet_type, body)
    message = str(caught.value)
    assert PACKETS[packet_type].name in message
    assert f"needs {needed} " in message
    assert f"got {needed - 1}" in message


@pytest.mark.parametrize("packet_type", WITH_ARGUMENTS, ids=name_of)
def test_only_the_last_argument_may_contain_nul(packet_type: int) -> None:
    needed = PACKETS[packet_type].arguments
    body = b"\0".join([b"x"] * (needed + 3))
    arguments = split_arguments(packet_type, body)
    assert arguments == [b"x"] * (needed - 1) + [b"x\0x\0x\0x"]


@pytest.mark.parametrize("packet_type", WITH_ARGUMENTS, ids=name_of)
def test_empty_arguments_are_arguments(packet_type: int) -> None:
    needed = PACKETS[packet_type].arguments
    assert split_arguments(packet_type, b"\0" * (needed - 1)) == [b""] * needed


@pytest.mark.parametrize("packet_type", WITHOUT, ids=name_of)
def test_a_body_that_must_not_be_looked_at_gives_no_arguments(packet_type: int) -> None:
    assert split_arguments(packet_type, b"anything\0at all") == []


def test_a_type_that_the_protocol_does_not_have_has_no_arguments_to_split() -> None:
    with pytest.raises(KeyError):
        split_arguments(5, b"")


def test_an_error_packet_carries_a_code_and_a_sentence() -> None:
    packet = error(wire.QUEUE_ERROR, "Job queue is full")
    assert packet[HEADER_BYTES:] == b"QUEUE_ERROR\0Job queue is full"


def test_an_error_s_sentence_never_breaks_the_packet() -> None:
    # Text from a peer may land in a sentence: NULs and what is no UTF-8 must not change its form
    packet = error(wire.INVALID_ARGUMENT, "bad \0 name \udcff")
    assert split_arguments(wire.ERROR, packet[HEADER_BYTES:]) == [b"INVALID_ARGUMENT", b"bad ? name ?"]


def test_the_extension_has_a_table_of_its_own() -> None:
    # What gearmand speaks, and what a connection without the option may use, is PACKETS alone
    assert not EXTENSION_PACKETS.keys() & PACKETS.keys()
    assert [spec.name for spec in EXTENSION_PACKETS.values()] == [
        "GET_MAP",
        "MAP_RES",
        "CLAIM_JOB",
        "CLAIM_RES",
        "GIVE_BACK",
    ]
    assert min(EXTENSION_PACKETS) > 1000


def test_the_extension_s_arguments_are_split_as_all_are() -> None:
    assert split_arguments(wire.GET_MAP, b"") == []
    assert split_arguments(wire.MAP_RES, b'{"revision": 1}') == [b'{"revision": 1}']
    assert split_arguments(wire.CLAIM_JOB, b"H:x:2a.3.1") == [b"H:x:2a.3.1"]
    assert split_arguments(wire.CLAIM_RES, b"H:x:2a.3.1\0kept") == [b"H:x:2a.3.1", wire.CLAIM_KEPT]
    with pytest.raises(MissingArguments, match="CLAIM_RES needs 2 "):
        split_arguments(wire.CLAIM_RES, b"H:x:2a.3.1")
