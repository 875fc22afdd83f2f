"""The library's log. A line that cannot be written must never end what it tells of.

A program's own filter or handler may raise, and so may what is to be shown: an exception whose text cannot be
made, an argument whose repr cannot. Whoever logs in this library is often just handling an error.
"""

import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any, Final

from client_ha.interrupt import reraise_interrupt

VALUE_CHARACTERS_MAX: Final = 80


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger that raises nothing; what it could not write it says on standard error, as logging does."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        # One frame more between the caller, whose place is shown, and logging.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except BaseException as fault:
            reraise_interrupt(fault)
            with contextlib.suppress(BaseException):
                name = type_name(fault)
                print(f"client_ha: a line of the log was not written ({name}): {msg}", file=sys.stderr)


logger: Final = Log(logging.getLogger("client_ha"))


def type_name(error: BaseException) -> str:
    """The class's name, also where a metaclass hides it."""
    return _made(lambda: str(type.__dict__["__name__"].__get__(type(error)))) or "an exception"


def error_text(error: BaseException) -> str:
    """An exception as "Class: text", or its class alone where it has no text or none can be made."""
    name = type_name(error)
    return _made(lambda: f"{name}: {error}").removesuffix(": ") or name


def value_text(value: object) -> str:
    """A value as Python writes it, in a line's length at most; its class where that cannot be made."""
    text = _made(lambda: repr(value)) or _made(lambda: f"<{type(value).__name__}>")
    return text[:VALUE_CHARACTERS_MAX] or "something"


def plain_text(error: BaseException) -> str:
    """Only the text, for errors whose class says nothing more; the class where there is none."""
    return _made(lambda: f"{error}") or type_name(error)


def _made(make: Callable[[], str]) -> str:
    """A text that somebody else's code makes; "" when that raises."""
    try:
        return make()
    except BaseException as fault:
        reraise_interrupt(fault)
        return ""
