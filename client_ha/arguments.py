"""The caller's arguments, checked at the door: what each kind may be, and what is said of anything else.

Every message names the argument, what it got and what is wanted.
"""

import ssl
import threading
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, Final

from client_ha.errors import InvalidArgument
from client_ha.timing import Timing

SECONDS_MAX: Final = threading.TIMEOUT_MAX  # nothing can be waited for longer; some 290 years


def got(value: object) -> str:
    """A value for a message: short, and with its type."""
    try:
        text = repr(value)
    except Exception:  # the caller's own class
        text = ""
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def check_seconds(argument: str, value: object, *, least: float = 0.0, or_none: bool = True) -> None:
    """A time limit. Raises InvalidArgument."""
    if value is None and or_none:
        return
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value <= SECONDS_MAX  # never true of NaN
    ):
        return
    wanted = "a number of seconds" if least == -inf else f"a number of seconds, {least:g} or more"
    raise InvalidArgument(f"{argument}={got(value)}: give {wanted}{', or None' if or_none else ''}")


def check_wait(timeout: object) -> None:
    """The `timeout` of a wait; what is left of a time limit may be below zero. Raises InvalidArgument."""
    check_seconds("timeout", timeout, least=-inf)


def check_count(argument: str, value: object, *, least: int, or_none: bool = False) -> None:
    """A whole number. Raises InvalidArgument."""
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        end = ", or None" if or_none else ""
        raise InvalidArgument(f"{argument}={got(value)}: must be a whole number, at least {least}{end}")


def check_connecting(tls: object, timing: object, address_remap: object) -> None:
    """How clients and workers connect. Raises InvalidArgument."""
    if timing is not None and not isinstance(timing, Timing):
        raise InvalidArgument(
            f"timing={got(timing)}: give a Timing, such as Timing(connect_seconds=1), or None"
        )
    if not (address_remap is None or callable(address_remap) or isinstance(address_remap, Mapping)):
        raise InvalidArgument(
            f"address_remap={got(address_remap)}: give a function or a mapping of (host, port), or None"
        )
    if tls is not None and not isinstance(tls, ssl.SSLContext):
        raise InvalidArgument(
            f"tls={got(tls)}: give an ssl.SSLContext, such as ssl.create_default_context(), or None"
        )


def text_bytes(argument: str, value: object) -> bytes:
    """Text as it is sent: bytes, or str in UTF-8. Raises InvalidArgument."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{argument} {got(value)} cannot be sent as UTF-8: {error}") from None
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise InvalidArgument(f"{argument} is {got(value)}: give str or bytes")


def name_bytes(argument: str, value: object) -> bytes:
    """A name: text without NUL. Raises InvalidArgument."""
    name = text_bytes(argument, value)
    if b"\0" in name:
        raise InvalidArgument(f"{argument} contains a NUL byte; Gearman separates arguments with it")
    return name


def data_bytes(argument: str, value: object) -> bytes:
    """Data of a job; str becomes UTF-8, whatever has bytes in memory is taken. Raises InvalidArgument."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return text_bytes(argument, value)
    try:
        return bytes(memoryview(value))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(
            f"{argument} is {got(value)}; give bytes or str, such as json.dumps(value)"
        ) from None


def check_list(argument: str, value: Any) -> None:
    """Many values: one str or bytes is no list of them. Raises InvalidArgument."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise InvalidArgument(f"{argument} is {got(value)}: give a list of them, such as [{argument[:-1]}]")
