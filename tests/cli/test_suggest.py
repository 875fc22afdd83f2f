"""A mistyped word is answered with the word that was meant, and a strange one without a guess."""

import pytest

from tests.cli.conftest import RunCommand


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu"], b"No such command 'statsu'. Did you mean 'status'?"),
        (["Node"], b"Did you mean 'nodes'?"),
        (["fleet", "restroe"], b"No such command 'restroe'. Did you mean 'restore'?"),
        (["submit", "f", "x", "--priority", "hihg"], b"Did you mean 'high'?"),
        (["drill", "--scenario", "etcd-outag"], b"Did you mean 'etcd-outage'?"),
        (["status", "--jsn"], b"--json"),
        (["server", "--durability", "fsnyc"], b"Did you mean 'fsync'?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    gearfleet: RunCommand, arguments: list[str], message: bytes
) -> None:
    ended = gearfleet(*arguments)
    assert ended.code == 2
    assert message in b" ".join(ended.err.split())


def test_nothing_is_guessed_for_a_word_that_is_like_no_other(gearfleet: RunCommand) -> None:
    ended = gearfleet("xyzzy")
    assert ended.code == 2
    assert b"No such command 'xyzzy'." in ended.err
    assert b"mean" not in ended.err
