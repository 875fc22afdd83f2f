"""What proves that somebody is of a fleet: good for one thing, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.replication.frames import Hello
from cluster.server.proof import (
    ACCEPTOR,
    CALLS_REMEMBERED_MAX,
    CHALLENGE_SECONDS,
    DIALLER,
    NONCE_BYTES,
    PROOFS_MAX,
    SECRET_BYTES,
    BadSecret,
    Challenges,
    agree,
    answer_proofs,
    call_proofs,
    decode_secrets,
    encode_secrets,
    stream_proofs,
)

OLD, NEW, OTHER = (bytes([byte]) * SECRET_BYTES for byte in b"one")
A = Hello("f", "a", "a" * 32, 1, 1, 1024, "1")
B = Hello("f", "b", "b" * 32, 7, 1, 1024, "1")
NONCE_A, NONCE_B = b"a" * NONCE_BYTES, b"b" * NONCE_BYTES
GOOD = (DIALLER, A, NONCE_A, B, NONCE_B)


def test_whoever_knows_the_secret_is_believed_and_nobody_else() -> None:
    proofs = stream_proofs((OLD,), *GOOD)
    assert agree(stream_proofs((OLD,), *GOOD), proofs)
    assert not agree(stream_proofs((OTHER,), *GOOD), proofs)
    assert not agree(stream_proofs((OLD,), *GOOD), ())
    assert not agree(stream_proofs((), *GOOD), proofs)
    assert not agree((), ())


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param((ACCEPTOR, A, NONCE_A, B, NONCE_B), id="the other direction"),
        pytest.param((DIALLER, B, NONCE_B, A, NONCE_A), id="sides exchanged"),
        pytest.param((DIALLER, A._replace(fleet="g"), NONCE_A, B, NONCE_B), id="another fleet"),
        pytest.param((DIALLER, A._replace(node="c"), NONCE_A, B, NONCE_B), id="another dialler"),
        pytest.param((DIALLER, A._replace(identity="c" * 32), NONCE_A, B, NONCE_B), id="another directory"),
        pytest.param((DIALLER, A._replace(incarnation=2), NONCE_A, B, NONCE_B), id="another start"),
        pytest.param((DIALLER, A._replace(protocol=2), NONCE_A, B, NONCE_B), id="another protocol"),
        pytest.param((DIALLER, A, NONCE_B, B, NONCE_B), id="another nonce of the dialler"),
        pytest.param((DIALLER, A, NONCE_A, B._replace(node="c"), NONCE_B), id="another acceptor"),
        pytest.param((DIALLER, A, NONCE_A, B._replace(incarnation=8), NONCE_B), id="its other start"),
        pytest.param((DIALLER, A, NONCE_A, B, NONCE_A), id="another nonce of the acceptor"),
    ],
)
def test_a_proof_is_good_for_its_stream_alone(changed: tuple[bytes, Hello, bytes, Hello, bytes]) -> None:
    assert not agree(stream_proofs((OLD,), *changed), stream_proofs((OLD,), *GOOD))


@given(
    st.lists(st.text(max_size=4), min_size=2, max_size=2),
    st.lists(st.text(max_size=4), min_size=2, max_size=2),
)
def test_no_two_hellos_read_the_same(one: list[str], other: list[str]) -> None:
    proofs = [
        stream_proofs((OLD,), DIALLER, A._replace(node=n, identity=i), NONCE_A, B, NONCE_B)
        for n, i in (one, other)
    ]
    assert agree(*proofs) is (one == other)


@pytest.mark.parametrize(
    ("dialler", "acceptor", "works"),
    [
        ((OLD,), (NEW, OLD), True),
        ((NEW, OLD), (OLD,), True),
        ((NEW, OLD), (NEW,), True),
        ((NEW,), (NEW, OLD), True),
        ((OLD,), (NEW,), False),
    ],
)
def test_while_a_secret_is_exchanged_one_in_common_is_enough(
    dialler: tuple[bytes, ...], acceptor: tuple[bytes, ...], works: bool
) -> None:
    assert agree(stream_proofs(acceptor, *GOOD), stream_proofs(dialler, *GOOD)) is works


def test_whoever_shows_more_proofs_than_a_node_has_secrets_is_not_believed() -> None:
    good = stream_proofs((OLD,), *GOOD)
    assert agree(good, (*([b"x"] * (PROOFS_MAX - 1)), *good))
    assert not agree(good, (*([b"x"] * PROOFS_MAX), *good))


def test_secrets_are_read_as_they_are_written() -> None:
    assert decode_secrets(encode_secrets((NEW, OLD))) == (NEW, OLD)
    assert encode_secrets((OLD,)) == b"6f" * SECRET_BYTES + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"6f",
        b"6f" * SECRET_BYTES + b"00",
        b"xy" * SECRET_BYTES,
        b"\xff",
        encode_secrets((OLD,) * 3),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(data: bytes) -> None:
    with pytest.raises(BadSecret) as caught:
        decode_secrets(data)
    assert "6f6f" not in str(caught.value)


# ---- calls


def test_a_calls_proof_is_good_for_its_request_alone() -> None:
    good = call_proofs((OLD,), A, b"challenge", "Drain", b"request")
    assert agree(call_proofs((OLD,), A, b"challenge", "Drain", b"request"), good)
    for changed in (
        ((OTHER,), A, b"challenge", "Drain", b"request"),
        ((OLD,), B, b"challenge", "Drain", b"request"),
        ((OLD,), A._replace(incarnation=2), b"challenge", "Drain", b"request"),
        ((OLD,), A, b"another", "Drain", b"request"),
        ((OLD,), A, b"challenge", "Join", b"request"),
        ((OLD,), A, b"challenge", "Drain", b"another"),
    ):
        assert not agree(call_proofs(*changed), good)
    # What the node says in answer to a command is not what a command says.
    assert not agree(
        answer_proofs((OLD,), b"", A, b"challenge"), call_proofs((OLD,), A, b"challenge", "", b"")
    )


def test_a_challenge_is_good_once_in_time_and_where_it_was_made() -> None:
    ours, others = Challenges(b"k" * 32), Challenges(b"o" * 32)
    challenge = ours.make(100.0, NONCE_A)
    assert not others.use(challenge, 100.0)
    assert not ours.use(challenge[:-1] + b"x", 100.0)
    assert not ours.use(b"", 100.0)
    assert ours.use(challenge, 100.0)
    assert not ours.use(challenge, 100.0)
    late = ours.make(100.0, NONCE_B)
    assert not ours.use(late, 100.0 + CHALLENGE_SECONDS)


def test_challenges_that_nobody_used_cost_nothing_and_used_ones_are_forgotten_when_they_have_run_out() -> (
    None
):
    ours = Challenges(b"k" * 32)
    for number in range(1000):
        ours.make(0.0, number.to_bytes(NONCE_BYTES, "big"))
    assert len(ours._used) == 0
    for number in range(CALLS_REMEMBERED_MAX):
        assert ours.use(ours.make(0.0, number.to_bytes(NONCE_BYTES, "big")), 0.0)
    assert not ours.use(ours.make(0.0, NONCE_A), 0.0)
    now = CHALLENGE_SECONDS + 1
    assert ours.use(ours.make(now, NONCE_A), now)
    assert len(ours._used) == 1
