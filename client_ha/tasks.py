"""The tasks of a worker: names, handlers, time limits; and what a handler's end means on the wire."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from client_ha.arguments import check_seconds
from client_ha.errors import (
    FAILED_WITHOUT_TEXT,
    FAILURE_TEXT,
    RETRY_AFTER_SECONDS_MAX,
    InvalidArgument,
    JobFailed,
    Retry,
)
from client_ha.flight import function_bytes
from client_ha.interrupt import reraise_interrupt
from client_ha.log import error_text, logger, value_text
from cluster.wire import request
from cluster.wire.packets import (
    CAN_DO,
    CAN_DO_TIMEOUT,
    GIVE_BACK,
    MAGIC_REQUEST,
    WORK_COMPLETE,
    WORK_EXCEPTION,
    WORK_FAIL,
    WORK_WARNING,
)
from cluster.wire.shown import control_character

TIMEOUT_SECONDS_MIN: Final = 1.0  # gearmand takes nothing shorter
TIMEOUT_SECONDS_MAX: Final = 2_000_000.0  # its milliseconds must fit in 31 bits
# A text beyond what servers take would end the connection, and the job would come again and again.
EXCEPTION_TEXT_BYTES_MAX: Final = 64 * 1024
_GIVE_BACK: Final = MAGIC_REQUEST + GIVE_BACK.to_bytes(4, "big")

Handler = TypeVar("Handler", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Task(Generic[Handler]):
    """One function that a worker can do."""

    name: bytes
    handler: Handler
    timeout_seconds: float | None

    def announcement(self) -> bytes:
        """The packet that registers it with a server."""
        if self.timeout_seconds is None:
            return request(CAN_DO, self.name)
        # gearmand reads milliseconds since 1.1.19.
        return request(CAN_DO_TIMEOUT, self.name, b"%d" % round(self.timeout_seconds * 1000))


def make_task(name: str | bytes, handler: Handler, timeout_seconds: float | None) -> Task[Handler]:
    """Check and make a task. Raises InvalidArgument."""
    check_seconds("timeout_seconds", timeout_seconds)
    if timeout_seconds is not None and not TIMEOUT_SECONDS_MIN <= timeout_seconds <= TIMEOUT_SECONDS_MAX:
        raise InvalidArgument(
            f"timeout_seconds={timeout_seconds}: must be between {TIMEOUT_SECONDS_MIN:g} and "
            f"{TIMEOUT_SECONDS_MAX:g} seconds"
        )
    function = function_bytes(name)
    character = control_character(function)
    if character is not None:
        raise InvalidArgument(
            f"the task's name {name!r} has the control character {character}, which servers refuse"
        )
    return Task(function, handler, timeout_seconds)


def completed(handle: bytes, output: object) -> bytes:
    """The packet for what a handler returned: bytes, str (UTF-8) or None (empty)."""
    if output is None:
        data = b""
    elif isinstance(output, str):
        data = output.encode()
    elif isinstance(output, bytes | bytearray | memoryview):
        data = bytes(output)
    else:
        text = f"TypeError: the task returned {type(output).__name__}; it must return bytes, str or None"
        logger.error(text)
        return request(WORK_EXCEPTION, handle, text.encode())
    return request(WORK_COMPLETE, handle, data)


def gives_back(packet: bytes) -> bool:
    """Whether what a run ended with is no result: the job is to run again."""
    return packet.startswith(_GIVE_BACK)


def raised(handle: bytes, function: bytes, error: BaseException) -> bytes:
    """The packet for what a handler raised. It raises nothing itself.

    The exception is somebody else's code: its text, its class's name and even `__class__` may raise.
    """
    name, job = function.decode("utf-8", "replace"), handle.decode("utf-8", "replace")
    kind = type(error)
    if issubclass(kind, Retry):
        logger.info("%s %s is given back to its server: %s", name, job, error_text(error))
        return request(GIVE_BACK, handle, _pause_ms(name, job, error))
    if issubclass(kind, JobFailed):
        logger.warning("%s %s failed: %s", name, job, error_text(error))
        return _failed(handle, error)
    logger.error("%s %s raised", name, job, exc_info=error)
    # Only this one packet: servers end the job with it, and a WORK_FAIL after it would name a job that is
    # gone. Clients that did not ask for exceptions get WORK_FAIL from the server.
    text = error_text(error).encode("utf-8", "replace")
    return request(WORK_EXCEPTION, handle, text[:EXCEPTION_TEXT_BYTES_MAX])


def _pause_ms(name: str, job: str, error: BaseException) -> bytes:
    """How long a job that is given back shall wait at least; "": as the server sees fit.

    A wish to retry never fails its job, so what cannot be granted is corrected here. A class of the user's
    own may not say, and what it says is somebody else's code.
    """
    asked: object = None
    try:
        asked = getattr(error, "after", None)
        if asked is None:
            return b""
        if isinstance(asked, int | float) and asked == asked:  # not NaN
            seconds = min(max(asked, 0), RETRY_AFTER_SECONDS_MAX)
            if seconds != asked:
                _warn_of_pause(
                    name, job, asked, f"taken as {seconds:g}; it is 0 to {RETRY_AFTER_SECONDS_MAX} seconds"
                )
            return b"%d" % round(seconds * 1000)
    except BaseException as fault:
        reraise_interrupt(fault)
    _warn_of_pause(name, job, asked, "no number of seconds, so the server decides how long the job waits")
    return b""


def _warn_of_pause(name: str, job: str, asked: object, what: str) -> None:
    logger.warning("%s %s asks for Retry(after=%s): %s", name, job, value_text(asked), what)


def _failed(handle: bytes, error: BaseException) -> bytes:
    """WORK_FAIL, and before it the text as a warning: clients know the failure, and may know why."""
    # A class that hides its name has its text all the same.
    text = error_text(error).partition(": ")[2]
    if not text or text == FAILED_WITHOUT_TEXT:
        return request(WORK_FAIL, handle)
    data = text.encode("utf-8", "replace")[:EXCEPTION_TEXT_BYTES_MAX]
    return request(WORK_WARNING, handle, b"%b%b\n" % (FAILURE_TEXT, data)) + request(WORK_FAIL, handle)


def failure_text(warning: bytes) -> str:
    """The text of a failure that this warning goes before; "" for any other warning."""
    if not warning.startswith(FAILURE_TEXT):
        return ""
    return warning.removeprefix(FAILURE_TEXT).removesuffix(b"\n").decode("utf-8", "replace")
