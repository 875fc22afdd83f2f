"""A mistyped word is answered with the word that was meant, and a strange one without a guess."""

from pathlib import Path

import pytest

from tests.cli.conftest import GEARFLEET, RunCommand, run_process


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


def test_an_option_is_not_guessed_for_its_dashes(gearfleet: RunCommand) -> None:
    ended = gearfleet("server", "--liste=x")
    assert ended.code == 2
    assert b"No such option '--liste'" in ended.err
    assert b"mean" not in ended.err
    assert b"'--port'" in gearfleet("server", "--prot=1").err


@pytest.mark.parametrize(
    ("command", "typed", "meant"), [("server", "--host", b"--host"), ("gearmand", "--liste", b"--listen")]
)
def test_an_address_that_is_none_names_the_option_of_that_command(
    command: str, typed: str, meant: bytes, tmp_path: Path
) -> None:
    ended = run_process(GEARFLEET, command, f"{typed}=no.such.invalid", "--port=1", f"--data-dir={tmp_path}")
    assert ended.code == 1
    said = ended.out + ended.err
    assert b"is no address to listen on" in said
    assert said.rstrip().rstrip(b"'").endswith(b"correct " + meant)
