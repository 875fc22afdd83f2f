"""Whatever a stranger calls a function: no medium does more with the name than to show it."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.wire.shown import (
    control_character,
    for_json,
    for_label,
    for_log,
    for_terminal,
    for_terminal_lines,
    for_text_protocol,
)

# C0 and C1 controls, marks that turn the reading direction, blanks that are no blank, half a surrogate pair
NASTY = st.sampled_from(
    "\x00\t\n\r\x1b\x07\x7f\x80\x9b\x9d\xad\u061c\u200b\u200f\u2028\u202e\u2066\ufeff\ud800"
)
TEXTS = st.text(NASTY | st.characters(codec=None), max_size=30)


@given(TEXTS)
@example("\x9b31m")
@example("\u202egnp.exe")
@example("\U000e0001")
def test_a_terminal_only_prints(text: str) -> None:
    shown = for_terminal(text)
    assert shown.isprintable()
    shown.encode()  # no half of a pair is left
    assert for_terminal(shown) == shown
    assert for_terminal_lines(text).split("\n") == [for_terminal(line) for line in text.split("\n")]


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=30))
def test_what_prints_is_shown_as_it_is(text: str) -> None:
    assert for_terminal(text) == text
    assert for_text_protocol(text.encode()) == text.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("App\\Jobs\\Mail", "App\\Jobs\\Mail"),
        ("größe 数", "größe 数"),
        ("site\tmail", "site\\x09mail"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\u202eb", "a\\u202eb"),
        (b"\xff\x9b".decode("utf-8", "surrogateescape"), "\\xff\\x9b"),
    ],
)
def test_what_does_not_print_is_named(text: str, shown: str) -> None:
    assert for_terminal(text) == shown


@given(st.binary(max_size=40))
def test_a_name_stays_in_its_line_of_the_text_protocol(name: bytes) -> None:
    shown = for_text_protocol(name)
    assert not set(shown) & (set(range(0x20)) - {9} | {0x7F})
    assert (shown == name) == (control_character(name) is None)


@given(st.lists(NASTY | st.characters(codec="utf-8"), max_size=30).map("".join))
def test_a_name_of_utf_8_ends_no_line_and_begins_no_escape_code(text: str) -> None:
    name = text.encode(errors="ignore")
    shown = for_text_protocol(name).decode()
    assert len(shown.splitlines()) <= 1
    assert not any("\x80" <= each <= "\x9f" for each in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert (shown.encode() == name) == (control_character(name) is None)


@pytest.mark.parametrize(
    ("name", "character", "shown"),
    [
        ("f\x9b2J".encode(), "U+009B", b"f\\x9b2J"),
        ("f\x85g\t1".encode(), "U+0085", b"f\\x85g\t1"),
        ("f\u2028\u2029".encode(), "U+2028", b"f\\u2028\\u2029"),
        ("größe\u202egnp".encode(), "U+202E", "größe\\u202egnp".encode()),
        ("f\u2066".encode(), "U+2066", b"f\\u2066"),
        (b"f\x1b\xc2\x9b", "0x1b", b"f\\x1b\\x9b"),
        # Written with a joiner, and with a direction mark
        ("می\u200cخواهم\u200f".encode(), None, "می\u200cخواهم\u200f".encode()),
        # No UTF-8: Latin-1, Windows-1252, GBK
        (b"gr\xf6\xdfe", None, b"gr\xf6\xdfe"),
        (b"\x80uro\x85", None, b"\x80uro\x85"),
        ("镕".encode("gbk"), None, "镕".encode("gbk")),
    ],
)
def test_control_characters_beyond_ascii(name: bytes, character: str | None, shown: bytes) -> None:
    assert control_character(name) == character
    assert for_text_protocol(name) == shown


@given(st.binary(max_size=40), st.integers(1, 20))
def test_a_label_is_short_and_prints(name: bytes, characters_max: int) -> None:
    label = for_label(name, characters_max)
    assert label.isprintable()
    assert len(label) <= characters_max


@given(st.binary(max_size=40) | TEXTS | st.integers() | st.none())
def test_a_value_in_the_log_prints(value: object) -> None:
    assert for_log(value).isprintable()


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_json_prints_and_reads_the_same(value: object) -> None:
    for indent in (None, 2):
        document = for_json(json.dumps(value, indent=indent, ensure_ascii=False))
        assert all(line.isprintable() for line in document.split("\n"))
        document.encode()
        # Two halves of a pair, one after the other, are read as the character that they make
        joined = json.loads(json.dumps(value))
        assert json.loads(document) == joined
