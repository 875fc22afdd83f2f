"""The decoder: each kind of message whole, byte by byte and with bytes behind it; limits; faults."""

from __future__ import annotations

import pytest

from cluster.wire import MISDIRECTED, PACKETS, TEXT, Decoder, request, response, split_arguments
from cluster.wire import packets as wire
from cluster.wire.packets import HEADER_BYTES, MAGIC_REQUEST, MAGIC_RESPONSE, TEXT_LINE_BYTES_MAX

ALL_TYPES = sorted(PACKETS)
ARGUMENTS = (b"first", b"2", b"", b"4", b"five", b"6", b"seven", b"eight")


def arguments_of(packet_type: int, last: bytes) -> list[bytes]:
    """As many arguments as the type has, ending with `last`."""
    how_many = PACKETS[packet_type].arguments
    return [*ARGUMENTS[: how_many - 1], last] if how_many else []


def feed_in_pieces(decoder: Decoder, data: bytes, piece_bytes: int) -> list[tuple[int, bytes]]:
    packets = []
    for offset in range(0, len(data), piece_bytes):
        packets += decoder.feed(data[offset : offset + piece_bytes])
    return packets


def name_of(packet_type: int) -> str:
    return PACKETS[packet_type].name


# ---- the table


def test_the_table_has_every_type_of_the_protocol() -> None:
    # 5 is unused in PROTOCOL; all others from 1 to 42 have a name and a sender
    assert [number for number in range(1, 43) if number != 5] == ALL_TYPES
    for spec in PACKETS.values():
        assert spec.from_client or spec.from_worker or spec.from_server


def test_names_in_the_table_are_those_of_the_constants() -> None:
    for packet_type, spec in PACKETS.items():
        assert getattr(wire, spec.name) == packet_type


# ---- every type, both directions


@pytest.mark.parametrize("from_server", [False, True], ids=["to-server", "from-server"])
@pytest.mark.parametrize("packet_type", ALL_TYPES, ids=name_of)
class TestEveryType:
    """PROTOCOL lets some types go both ways; the reader must not care which way a type goes."""

    def packet(self, packet_type: int, from_server: bool) -> tuple[bytes, list[bytes]]:
        arguments = arguments_of(packet_type, last=b"data\0with\nNULs\0REQ")
        encode = response if from_server else request
        return encode(packet_type, *arguments), arguments

    def test_whole(self, packet_type: int, from_server: bool) -> None:
        # Given one encoded packet
        data, arguments = self.packet(packet_type, from_server)
        # When it arrives whole
        decoder = Decoder(from_server=from_server)
        [(got_type, body)] = decoder.feed(data)
        # Then type and arguments are those that were encoded
        assert (got_type, split_arguments(got_type, body)) == (packet_type, arguments)
        assert decoder.error is None

    def test_byte_by_byte(self, packet_type: int, from_server: bool) -> None:
        # Given one encoded packet
        data, arguments = self.packet(packet_type, from_server)
        decoder = Decoder(from_server=from_server)
        # When all but its last byte arrive one by one, then nothing is complete
        assert feed_in_pieces(decoder, data[:-1], 1) == []
        # When the last one arrives, then it is
        [(got_type, body)] = decoder.feed(data[-1:])
        assert (got_type, split_arguments(got_type, body)) == (packet_type, arguments)

    def test_with_trailing_bytes(self, packet_type: int, from_server: bool) -> None:
        # Given a packet with a part of the next one behind it
        data, _ = self.packet(packet_type, from_server)
        decoder = Decoder(from_server=from_server)
        # When both arrive in one piece, then the first is complete
        assert len(decoder.feed(data + data[:-1])) == 1
        # And the rest waits for its last byte
        assert [got for got, _ in decoder.feed(data[-1:])] == [packet_type]

    def test_with_the_other_direction_s_magic(self, packet_type: int, from_server: bool) -> None:
        # Given a packet that belongs to the other direction
        data, _ = self.packet(packet_type, not from_server)
        after = (request if not from_server else response)(wire.ECHO_REQ, b"after")
        # When it arrives, then it is told apart, and what comes behind it is understood
        decoder = Decoder(from_server=from_server)
        assert [got for got, _ in decoder.feed(data + after)] == [MISDIRECTED, wire.ECHO_REQ]
        assert decoder.error is None


# ---- text


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("piece_bytes", [1, 3, 1000])
def test_text_lines_come_without_their_end(line_end: bytes, piece_bytes: int) -> None:
    data = b"status" + line_end + b"" + line_end + b"create function F" + line_end
    packets = feed_in_pieces(Decoder(), data, piece_bytes)
    assert packets == [(TEXT, b"status"), (TEXT, b""), (TEXT, b"create function F")]


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1000])
def test_text_and_packets_may_be_mixed_on_one_connection(piece_bytes: int) -> None:
    # Given text, a packet whose body looks like text, text, an empty packet, text
    data = (
        b"version\n"
        + request(wire.ECHO_REQ, b"status\nworkers\n")
        + b"status\r\n"
        + request(wire.GRAB_JOB)
        + b"workers\n"
    )
    # When it arrives in pieces of any size
    packets = feed_in_pieces(Decoder(), data, piece_bytes)
    # Then the first byte of each message has decided what it is
    assert packets == [
        (TEXT, b"version"),
        (wire.ECHO_REQ, b"status\nworkers\n"),
        (TEXT, b"status"),
        (wire.GRAB_JOB, b""),
        (TEXT, b"workers"),
    ]


# ---- limits: the largest that is allowed, and one byte more


@pytest.mark.parametrize("piece_bytes", [1, 10, 1000])
def test_a_packet_of_the_largest_size_is_taken(piece_bytes: int) -> None:
    decoder = Decoder(packet_bytes_max=100)
    assert feed_in_pieces(decoder, request(wire.ECHO_REQ, b"x" * 100), piece_bytes) == [
        (wire.ECHO_REQ, b"x" * 100)
    ]
    assert decoder.error is None


@pytest.mark.parametrize("piece_bytes", [1, 10, 1000])
def test_a_larger_one_is_refused_by_its_header_alone(piece_bytes: int) -> None:
    # Given a limit, and a packet before the one that is too large
    decoder = Decoder(packet_bytes_max=100)
    good = request(wire.ECHO_REQ, b"good")
    too_large = request(wire.ECHO_REQ, b"x" * 101)
    # When only the header of the large one has arrived
    packets = feed_in_pieces(decoder, good + too_large[:HEADER_BYTES], piece_bytes)
    # Then the good one is there, and the error names both numbers
    assert packets == [(wire.ECHO_REQ, b"good")]
    assert "101 bytes" in str(decoder.error)
    assert "100 bytes" in str(decoder.error)
    # And nothing after it is looked at
    assert decoder.feed(good) == []


@pytest.mark.parametrize("piece_bytes", [1, 10, 100_000])
def test_a_text_line_of_the_largest_size_is_taken(piece_bytes: int) -> None:
    line = b"x" * (TEXT_LINE_BYTES_MAX - 1)
    decoder = Decoder()
    assert feed_in_pieces(decoder, line + b"\n", piece_bytes) == [(TEXT, line)]
    assert decoder.error is None


@pytest.mark.parametrize("piece_bytes", [1, 10, 100_000])
def test_a_longer_text_line_is_refused(piece_bytes: int) -> None:
    decoder = Decoder()
    packets = feed_in_pieces(decoder, b"ok\n" + b"x" * TEXT_LINE_BYTES_MAX + b"\nstatus\n", piece_bytes)
    assert packets == [(TEXT, b"ok")]
    assert str(TEXT_LINE_BYTES_MAX) in str(decoder.error)


def test_a_packet_larger_than_any_limit_can_be_announced_but_not_held() -> None:
    # Given the largest size that four bytes can say
    decoder = Decoder()
    header = MAGIC_REQUEST + (7).to_bytes(4, "big") + b"\xff\xff\xff\xff"
    # When the header arrives, then it is refused at once
    assert decoder.feed(header) == []
    assert decoder.error is not None


# ---- what is not Gearman


@pytest.mark.parametrize(
    "magic", [b"\0req", b"\0RE1", b"\0\0\0\0", b"\0REs"], ids=["lower", "near", "zeros", "mixed"]
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_wrong_magic_is_a_protocol_error(magic: bytes, piece_bytes: int) -> None:
    decoder = Decoder()
    good = request(wire.ECHO_REQ, b"good")
    bad = magic + (16).to_bytes(4, "big") + (0).to_bytes(4, "big")
    assert feed_in_pieces(decoder, good + bad + good, piece_bytes) == [(wire.ECHO_REQ, b"good")]
    assert "not the Gearman protocol" in str(decoder.error)


def test_a_server_s_decoder_and_a_client_s_expect_each_other_s_magic() -> None:
    assert Decoder(from_server=True).feed(response(wire.NOOP)) == [(wire.NOOP, b"")]
    assert Decoder().feed(request(wire.PRE_SLEEP)) == [(wire.PRE_SLEEP, b"")]
    assert response(wire.NOOP)[:4] == MAGIC_RESPONSE
    assert request(wire.PRE_SLEEP)[:4] == MAGIC_REQUEST


def test_a_type_that_the_protocol_does_not_have_is_still_a_packet() -> None:
    # The connection need not be closed for it: its length is known
    assert Decoder().feed(request(5) + request(43) + request(0xFFFFFFFF)) == [
        (5, b""),
        (43, b""),
        (0xFFFFFFFF, b""),
    ]


@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_a_tls_hello_is_a_protocol_error_at_its_first_byte(piece_bytes: int) -> None:
    # Waiting for the end of a "line" would keep a TLS client waiting too
    decoder = Decoder()
    packets = feed_in_pieces(decoder, b"version\n\x16\x03\x01\x02\x00\x01\nstatus\n", piece_bytes)
    assert packets == [(TEXT, b"version")]
    assert "TLS" in str(decoder.error)


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
@pytest.mark.parametrize("first_line", [b"GET / HTTP/1.1", b"POST /f HTTP/1.0", b"PRI * HTTP/2.0"])
def test_an_http_request_is_a_protocol_error_at_its_first_line(first_line: bytes, piece_bytes: int) -> None:
    decoder = Decoder()
    data = b"version\n" + first_line + b"\r\nHost: example.org\r\n\r\n"
    assert feed_in_pieces(decoder, data, piece_bytes) == [(TEXT, b"version")]
    assert "HTTP" in str(decoder.error)
