"""Numbers in packets and text commands, read as gearmand reads them: by C's atoi.

Perl's and PHP's users send "0.5", "50%", "1700000000.25" or nothing where PROTOCOL wants a whole number.
gearmand takes the digits at the beginning and never complains; an ERROR ends the worker of many a library.
"""

import re
from typing import Final

# Blanks, a sign, digits: what strtol reads. Leading zeros are no part of a number's size.
_LEADING: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_SOME_DIGIT: Final = re.compile(rb"[ \t\n\v\f\r]*[+-]?[0-9]")
NUMBER_DIGITS_MAX: Final = 18  # a longer number counts as the largest: it fits into 8 bytes
NUMBER_MAX: Final = 10**NUMBER_DIGITS_MAX - 1
_UNSIGNED: Final = 1 << 32


def leading_number(text: bytes) -> int:
    """The whole number that a text begins with; 0 when it begins with none."""
    found = _LEADING.match(text)
    assert found is not None  # it matches the empty text, too
    sign, digits = found.groups()
    if not digits:
        return 0
    number = int(digits) if len(digits) <= NUMBER_DIGITS_MAX else NUMBER_MAX
    return -number if sign == b"-" else number


def begins_with_number(text: bytes) -> bool:
    """Whether `leading_number` finds a digit to read."""
    return _SOME_DIGIT.match(text) is not None


def progress_number(text: bytes) -> bytes:
    """A number of WORK_STATUS as GET_STATUS tells it: gearmand keeps 32 bits without a sign.

    Larger numbers, which gearmand cannot keep, are told whole.
    """
    number = leading_number(text)
    return b"%d" % (number if number >= 0 else number % _UNSIGNED)


__all__ = ["NUMBER_MAX", "begins_with_number", "leading_number", "progress_number"]
