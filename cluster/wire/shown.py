"""What strangers wrote, as it is shown: one function for each medium.

Function names, unique keys, client ids and error texts come from whoever can connect. Shown as they are,
a name could move the cursor, retitle the window, turn the reading direction around, or forge the next line.

    medium           function            what is replaced
    text protocol    for_text_protocol   control characters but the tab: they break lines; in valid UTF-8 also
                                         C1, line and paragraph separators, bidirectional overrides
    terminal         for_terminal        all that does not print: control and format characters, C1 and
                                         bidirectional marks, invalid UTF-8, every blank but the space
    a log line       for_log             the same
    a label          for_label           the same, and cut to a length
    JSON             for_json            the same, in JSON's own way, so that reading gives back the original

The text protocol keeps the tab, which Perl's `prefix` puts into names, and all bytes from 0x80 on of names
that are no UTF-8: its readers are programs that look for the bytes that they sent, and in Latin-1 or GBK
any of these bytes may be part of a letter.
"""

import re
from typing import Final

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# C1 (U+0085 ends a line, U+009B begins an escape code), the line and the paragraph separator, and what turns
# the text beside it around. Joiners and direction marks are none: some languages are written with them.
_CONTROL_BEYOND_ASCII: Final = re.compile("[\x80-\x9f\u2028-\u202e\u2066-\u2069]")
_ASCII_PRINTS: Final = re.compile(r"[ -~]*")


def control_character(name: bytes) -> str | None:
    """The first control character but the tab, for people to read; a new name must not have one."""
    found = _CONTROL.search(name)
    if found is not None:
        return f"0x{found.group()[0]:02x}"
    text = _beyond_ascii(name)
    beyond = text and _CONTROL_BEYOND_ASCII.search(text)
    return f"U+{ord(beyond.group()):04X}" if beyond else None


def for_text_protocol(name: bytes) -> bytes:
    """A name in a line of the text protocol; control characters become \\xNN or \\uNNNN."""
    text = _beyond_ascii(name)
    if text:
        name = _CONTROL_BEYOND_ASCII.sub(lambda found: _escape(found.group()), text).encode()
    return _CONTROL.sub(lambda found: b"\\x%02x" % found.group()[0], name)


def _beyond_ascii(name: bytes) -> str:
    """The name as text if it is UTF-8 and more than ASCII; empty if it is not."""
    if name.isascii():
        return ""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return ""


def for_terminal(text: str) -> str:
    """A text as one line that does nothing but print."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def for_terminal_lines(text: str) -> str:
    """The same for a text of several lines, whose line ends are ours."""
    return "\n".join(map(for_terminal, text.split("\n")))


def for_log(value: object) -> str:
    """A value in a line of the log that people read."""
    return for_terminal(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))


def for_label(name: bytes, characters_max: int) -> str:
    """A name as the value of a metric's label."""
    # A character has at most 4 bytes: the rest is not worth being looked at.
    text = name[: 4 * characters_max].decode("utf-8", "backslashreplace")
    return for_terminal(text)[:characters_max]


def for_json(document: str) -> str:
    """A JSON document that does nothing but print, and reads the same."""
    if _ASCII_PRINTS.fullmatch(document):
        return document
    return "".join(
        character if character == "\n" or character.isprintable() else _json_escape(character)
        for character in document
    )


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8 (surrogateescape)
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


__all__ = [
    "control_character",
    "for_json",
    "for_label",
    "for_log",
    "for_terminal",
    "for_terminal_lines",
    "for_text_protocol",
]
