"""Whatever a peer sends: a clear error or a clean close, and the others are served."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from cluster.wire import PACKETS, TEXT, request
from cluster.wire import packets as wire
from cluster.wire.packets import FUNCTION_BYTES_MAX, MAGIC_REQUEST, TEXT_LINE_BYTES_MAX, UNIQUE_BYTES_MAX
from tests.support import Node, Packet, Peer
from tests.support.peer import SUBMITS

Connect = Callable[..., Peer]
StartNode = Callable[..., Node]


@pytest.fixture(autouse=True)
def others_are_served(shared_node: Node) -> Iterator[None]:
    """Whatever a test here sends, a bystander's connection and new ones work afterwards, and nothing has
    failed inside."""
    with shared_node.connect() as bystander:
        bystander.settle()
        yield
        bystander.settle()
    assert shared_node.line("version").startswith("OK")
    assert not [line for line in shared_node.log_lines if "Traceback" in line or "failed on a packet" in line]


def expect_error_then_close(peer: Peer) -> bytes:
    """One ERROR packet and the end; returns the error's text."""
    said = peer.expect_closed()
    assert [packet.type for packet in said] == [wire.ERROR]
    return said[0].arguments[1]


# ---- no Gearman at all: an error, and the connection is closed


def test_wrong_magic_is_said_and_closed(connect: Connect) -> None:
    peer = connect()
    peer.send_bytes(b"\0BAD" + struct.pack(">II", 1, 0))
    assert b"not the Gearman protocol" in expect_error_then_close(peer)


def test_what_came_before_is_answered_first(connect: Connect, function: bytes) -> None:
    peer = connect()
    submit = request(wire.SUBMIT_JOB_BG, function, b"", b"")
    peer.send_bytes(request(wire.ECHO_REQ, b"1") + submit + b"\0BAD" + bytes(8) + submit)
    said = peer.expect_closed()
    assert [packet.type for packet in said] == [wire.ECHO_RES, wire.JOB_CREATED, wire.ERROR]


def test_a_length_over_the_limit_is_said_and_closed_before_it_is_sent(
    start_node: StartNode, connect: Connect
) -> None:
    node = start_node("--max-payload", "1M", durability="memory")
    # The largest that is allowed is taken
    peer = connect(node)
    peer.send(wire.ECHO_REQ, bytes(1 << 20))
    peer.expect(wire.ECHO_RES)
    # One byte more is refused when it is announced
    peer.send_bytes(MAGIC_REQUEST + struct.pack(">II", wire.SUBMIT_JOB, (1 << 20) + 1))
    text = expect_error_then_close(peer)
    assert b"1048577" in text
    assert b"1048576" in text


def test_four_gigabytes_are_refused_by_default(connect: Connect) -> None:
    peer = connect()
    peer.send_bytes(MAGIC_REQUEST + struct.pack(">II", wire.SUBMIT_JOB, 0xFFFFFFFF))
    expect_error_then_close(peer)


def test_an_endless_text_line_is_said_and_closed(connect: Connect) -> None:
    peer = connect()
    peer.send_bytes(b"x" * TEXT_LINE_BYTES_MAX)
    assert b"text line" in expect_error_then_close(peer)


def test_a_tls_hello_is_closed_at_once(connect: Connect) -> None:
    peer = connect()
    peer.send_bytes(bytes.fromhex("1603010200010001fc0303") + random.Random(1).randbytes(500))
    assert b"TLS" in expect_error_then_close(peer)


@pytest.mark.parametrize("method", ["GET / HTTP/1.1", "POST /f HTTP/1.0", "PRI * HTTP/2.0"])
def test_an_http_request_is_closed_at_once(connect: Connect, method: str) -> None:
    # A browser or a health check must not be left waiting
    peer = connect()
    peer.send_bytes(f"{method}\r\nHost: example.org\r\nAccept: */*\r\n\r\n".encode())
    assert b"HTTP" in expect_error_then_close(peer)


# ---- packets that make no sense: an error, and the connection goes on


@pytest.mark.parametrize(
    "packet_type",
    [
        number
        for number, spec in sorted(PACKETS.items())
        if spec.arguments > 1 and (spec.from_client or spec.from_worker)
    ],
    ids=lambda number: PACKETS[number].name,
)
@pytest.mark.parametrize("body", [b"", b"one"], ids=["none", "one"])
def test_missing_arguments_are_an_error(connect: Connect, packet_type: int, body: bytes) -> None:
    peer = connect()
    peer.send(packet_type, body)
    [code, text] = peer.expect(wire.ERROR)
    if packet_type in (wire.WORK_COMPLETE, wire.WORK_EXCEPTION, wire.WORK_DATA, wire.WORK_WARNING):
        # These may leave their data out; then the handle is unknown
        assert code in (wire.JOB_NOT_FOUND, wire.INVALID_PACKET)
    else:
        assert code in (wire.INVALID_PACKET, wire.INVALID_ARGUMENT)
    assert text
    peer.settle()


@pytest.mark.parametrize("packet_type", sorted(SUBMITS.values()), ids=lambda number: PACKETS[number].name)
class TestSubmits:
    """The six ways to submit have one set of limits."""

    def test_names_of_the_largest_size_are_taken(
        self, connect: Connect, function: bytes, packet_type: int
    ) -> None:
        peer = connect()
        name, unique = function.ljust(FUNCTION_BYTES_MAX, b"n"), function.ljust(UNIQUE_BYTES_MAX, b"u")
        peer.send(packet_type, name, unique, b"payload")
        peer.expect(wire.JOB_CREATED)
        worker = connect()
        worker.can_do(name)
        assert worker.grab_one()[1:] == (name, unique, b"payload")

    def test_an_over_long_unique_is_an_error(
        self, connect: Connect, function: bytes, packet_type: int
    ) -> None:
        peer = connect()
        peer.send(packet_type, function, b"u" * (UNIQUE_BYTES_MAX + 1), b"")
        peer.expect_error(wire.ARGUMENT_TOO_LARGE)
        peer.settle()

    def test_an_over_long_function_is_an_error(self, connect: Connect, packet_type: int) -> None:
        peer = connect()
        peer.send(packet_type, b"n" * (FUNCTION_BYTES_MAX + 1), b"", b"")
        peer.expect_error(wire.ARGUMENT_TOO_LARGE)
        peer.settle()

    def test_an_empty_function_is_an_error(self, connect: Connect, packet_type: int) -> None:
        peer = connect()
        peer.send(packet_type, b"", b"", b"payload")
        peer.expect_error(wire.INVALID_ARGUMENT)
        peer.settle()


@pytest.mark.parametrize(
    ("packet_type", "rest"),
    [
        (wire.SUBMIT_JOB_EPOCH, [b"0", b""]),
        (wire.SUBMIT_JOB_SCHED, [b"*", b"*", b"*", b"*", b"*", b""]),
        (wire.SUBMIT_REDUCE_JOB, [b"r", b"", b""]),
        (wire.SUBMIT_REDUCE_JOB_BACKGROUND, [b"r", b"", b""]),
    ],
    ids=["epoch", "sched", "reduce", "reduce-bg"],
)
def test_the_other_submits_have_the_same_limits(
    connect: Connect, function: bytes, packet_type: int, rest: list[bytes]
) -> None:
    peer = connect()
    peer.send(packet_type, b"n" * (FUNCTION_BYTES_MAX + 1), b"", *rest)
    peer.expect_error(wire.ARGUMENT_TOO_LARGE)
    peer.send(packet_type, function, b"u" * (UNIQUE_BYTES_MAX + 1), *rest)
    peer.expect_error(wire.ARGUMENT_TOO_LARGE)
    peer.send(packet_type, b"", b"", *rest)
    peer.expect_error(wire.INVALID_ARGUMENT)
    peer.settle()


@pytest.mark.parametrize(
    ("packet_type", "rest"), [(wire.CAN_DO, []), (wire.CAN_DO_TIMEOUT, [b"1000"])], ids=["CAN_DO", "TIMEOUT"]
)
def test_a_worker_s_function_has_the_same_limit(
    connect: Connect, packet_type: int, rest: list[bytes]
) -> None:
    peer = connect()
    peer.send(packet_type, b"n" * (FUNCTION_BYTES_MAX + 1), *rest)
    peer.expect_error(wire.ARGUMENT_TOO_LARGE)
    peer.send(packet_type, b"", *rest)
    peer.expect_error(wire.INVALID_ARGUMENT)
    peer.settle()


def test_a_reducer_that_is_over_long_is_an_error(connect: Connect, function: bytes) -> None:
    # It is stored with a length of two bytes, and is a function's name
    peer = connect()
    for packet_type in (wire.SUBMIT_REDUCE_JOB, wire.SUBMIT_REDUCE_JOB_BACKGROUND):
        for reducer, aggregate in ((b"r" * 70_000, b""), (b"r", b"a" * 70_000)):
            peer.send(packet_type, function, b"", reducer, aggregate, b"payload")
            peer.expect_error(wire.ARGUMENT_TOO_LARGE)
    peer.settle()


# ---- results for jobs that one does not hold


RESULTS = [
    (wire.WORK_COMPLETE, [b"x"]),
    (wire.WORK_FAIL, []),
    (wire.WORK_EXCEPTION, [b"x"]),
    (wire.WORK_STATUS, [b"1", b"2"]),
    (wire.WORK_DATA, [b"x"]),
    (wire.WORK_WARNING, [b"x"]),
]


@pytest.mark.parametrize(
    ("packet_type", "rest"), RESULTS, ids=[PACKETS[packet_type].name for packet_type, _ in RESULTS]
)
def test_only_the_worker_that_holds_a_job_may_speak_for_it(
    connect: Connect, function: bytes, packet_type: int, rest: list[bytes]
) -> None:
    # Given a job that a worker holds, and one that waits
    client, holder, stranger = connect(), connect(), connect()
    holder.can_do(function)
    stranger.can_do(function)
    held = client.submit(function)
    waiting = client.submit(function)
    assert holder.grab_one().handle == held
    # When another worker speaks for them, or for one that never was, then it is an error
    for handle in (held, waiting, b"H:never:1", b"", b"x" * 1000):
        stranger.send(packet_type, handle, *rest)
        stranger.expect_error(wire.JOB_NOT_FOUND)
    # And the client has heard nothing of it, and the holder may still deliver
    client.settle()
    holder.complete(held, b"mine")
    client.expect(wire.WORK_COMPLETE, held, b"mine")
    # And a second time is an error too
    holder.send(packet_type, held, *rest)
    holder.expect_error(wire.JOB_NOT_FOUND)


@pytest.mark.parametrize("numbers", [(b"x", b"2"), (b"1", b""), (b"0.5", b"1.0"), (b"9" * 100, b"1")])
def test_progress_that_is_no_number_is_passed_on(
    connect: Connect, function: bytes, numbers: tuple[bytes, bytes]
) -> None:
    client, worker = connect(), connect()
    worker.can_do(function)
    handle = client.submit(function)
    worker.grab_one()
    worker.send(wire.WORK_STATUS, handle, *numbers)
    client.expect(wire.WORK_STATUS, handle, *numbers)
    worker.complete(handle)
    client.expect(wire.WORK_COMPLETE, handle)


# ---- noise


def test_noise_is_answered_or_closed_never_swallowed(shared_node: Node) -> None:
    # Given packets and lines of every kind, whole, cut and spoiled, as a careless program sends them
    dice = random.Random(20)
    for _ in range(60):
        with shared_node.connect() as peer:
            data = b""
            for _ in range(dice.randrange(1, 30)):
                kind = dice.random()
                if kind < 0.7:
                    body = dice.choice([b"", b"f", b"f\0u", b"f\0u\0p", b"\0" * 9, dice.randbytes(50)])
                    data += request(dice.randrange(0, 45), body)
                elif kind < 0.9:
                    data += dice.choice(
                        [b"status\n", b"show jobs\r\n", b"\n", b"\xff\xfe\n", b"maxqueue f x\n"]
                    )
                else:
                    data += dice.randbytes(dice.randrange(1, 40))
            # When they are sent with an end of the stream behind them
            peer.send_bytes(data)
            peer.socket.shutdown(socket.SHUT_WR)
            # Then the node answers what it can, in whole messages, and closes
            for packet in peer.expect_closed():
                assert isinstance(packet, Packet)
                assert packet.type == TEXT or PACKETS[packet.type].from_server


def test_a_packet_that_is_never_finished_holds_up_nobody(shared_node: Node, connect: Connect) -> None:
    # Given connections that stop in the middle of a header, of a body, of a line
    for beginning in (b"\0", b"\0REQ\0\0\0", request(wire.ECHO_REQ, b"x" * 100)[:-1], b"stat"):
        connect().send_bytes(beginning)
    with shared_node.connect() as other:
        other.settle()
