"""One submission on its way: what the engine keeps about a job at a server, or between servers."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Final, Literal

from client_ha.addresses import Server
from client_ha.arguments import data_bytes, got, name_bytes
from client_ha.connection import Connection
from client_ha.cron import CronFields
from client_ha.errors import InvalidArgument
from client_ha.job import BaseJob
from cluster.wire import request
from cluster.wire.packets import (
    FUNCTION_BYTES_MAX,
    PACKET_BYTES_MAX_DEFAULT,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    SUBMIT_JOB_EPOCH,
    SUBMIT_JOB_HIGH,
    SUBMIT_JOB_HIGH_BG,
    SUBMIT_JOB_LOW,
    SUBMIT_JOB_LOW_BG,
    SUBMIT_JOB_SCHED,
    UNIQUE_BYTES_MAX,
)

Priority = Literal["high", "normal", "low"]

_PACKET_TYPES: Final[dict[tuple[str, bool], int]] = {
    ("high", False): SUBMIT_JOB_HIGH,
    ("normal", False): SUBMIT_JOB,
    ("low", False): SUBMIT_JOB_LOW,
    ("high", True): SUBMIT_JOB_HIGH_BG,
    ("normal", True): SUBMIT_JOB_BG,
    ("low", True): SUBMIT_JOB_LOW_BG,
}


@dataclass(slots=True)
class Refusal:
    """A server's "try again"."""

    server: Server
    code: str
    text: str


class Flight:
    """A submit packet and who waits for it. Several foreground jobs with one key share a flight."""

    __slots__ = (
        "background",
        "connection",
        "deadline",
        "ended",
        "function",
        "handle",
        "jobs",
        "key",
        "last_refusal",
        "packet",
        "refusals",
        "resubmits",
        "rounds",
        "sequence",
        "submit_seconds",
        "ticket",
        "unique",
        "why",
        "why_failed",
    )

    def __init__(
        self,
        job: BaseJob,
        function: bytes,
        unique: bytes,
        packet: bytes,
        submit_seconds: float,
        *,
        joinable: bool,
    ) -> None:
        self.jobs: list[BaseJob] = [job]
        self.function = function
        self.unique = unique
        self.packet = packet
        self.background = job.background
        self.submit_seconds = submit_seconds  # how long it may be without an acknowledgement
        self.key: tuple[bytes, bytes] | None = (function, unique) if joinable else None
        self.connection: Connection | None = None
        self.handle: bytes | None = None
        self.deadline = 0.0
        self.ticket = -1
        self.sequence = 0
        self.resubmits = 0
        self.rounds = 0  # how often every server said "try again"
        self.refusals: dict[Server, Refusal] | None = None  # in this round
        self.last_refusal: Refusal | None = None  # of an earlier round
        self.why_failed = ""  # the text that comes before a WORK_FAIL
        self.ended = False  # ended; where it still waits for an answer, it only holds the place
        # The engine sets it: who was tried, and what happened.
        self.why: Callable[[Flight], tuple[tuple[str, str], ...]] | None = None
        job.flight = self

    def why_unacknowledged(self) -> tuple[tuple[str, str], ...]:
        """Each server and why it has not acknowledged; empty when it only was not answered yet."""
        return self.why(self) if self.why is not None and self.handle is None else ()


def function_bytes(function: str | bytes) -> bytes:
    """Check a function's name. Raises InvalidArgument."""
    name = name_bytes("the function's name", function)
    if not name:
        raise InvalidArgument("the function's name is empty")
    if len(name) > FUNCTION_BYTES_MAX:
        raise InvalidArgument(
            f"the function's name has {len(name)} bytes; Gearman's limit is {FUNCTION_BYTES_MAX} bytes"
        )
    return name


def unique_bytes(unique: str | bytes) -> bytes:
    """Check a unique key. Raises InvalidArgument."""
    key = name_bytes("the unique key", unique)
    if not key:
        raise InvalidArgument("the unique key is empty; leave it out (None) and the job gets one of its own")
    if key == b"-":
        raise InvalidArgument(
            "the unique key '-' is not taken: servers read it as 'the payload is the key', so the job could "
            "not be found again by its key; use a hash of the payload instead"
        )
    if len(key) > UNIQUE_BYTES_MAX:
        raise InvalidArgument(
            f"the unique key has {len(key)} bytes; the limit is {UNIQUE_BYTES_MAX} bytes: use a hash of it"
        )
    return key


def payload_bytes(payload: bytes | str) -> bytes:
    """Check a payload; str becomes UTF-8. Raises InvalidArgument."""
    payload = data_bytes("the payload", payload)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvalidArgument(
            f"the payload has {len(payload)} bytes; the limit is {PAYLOAD_BYTES_MAX} bytes: "
            "store it and send where it is"
        )
    return payload


# Room for the other arguments, so that the whole packet stays within what the decoders take.
PAYLOAD_BYTES_MAX: Final = PACKET_BYTES_MAX_DEFAULT - 4096


def epoch_seconds(at: datetime | float | int) -> int:
    """When a job shall start, in whole seconds since 1970, rounded up: never before its time.

    A datetime without a zone is local time. Raises InvalidArgument.
    """
    if isinstance(at, bool):
        raise InvalidArgument(f"at={got(at)} is no moment; give a datetime or seconds since 1970")
    try:
        moment = ceil(at.timestamp() if isinstance(at, datetime) else at)
    except (TypeError, ValueError, OverflowError, OSError):
        raise InvalidArgument(f"at={at!r} is no moment; give a datetime or seconds since 1970") from None
    if not isinstance(moment, int):
        raise InvalidArgument(f"at={at!r} is no moment; give a datetime or seconds since 1970")
    if moment < 0:
        raise InvalidArgument(f"at={at!r} lies before 1970")
    return moment


def submit_packet(
    function: bytes,
    unique: bytes,
    payload: bytes,
    priority: Priority,
    background: bool,
    epoch: int | None,
    cron: CronFields | None = None,
) -> bytes:
    """The packet that submits it. Raises InvalidArgument for a priority that does not exist."""
    if (epoch is not None or cron is not None) and priority != "normal":
        raise InvalidArgument("at= and cron= need priority='normal': Gearman's scheduled jobs have no other")
    if epoch is not None and cron is not None:
        raise InvalidArgument("at= and cron= exclude each other: a job runs once, or a schedule makes many")
    if cron is not None:
        return request(SUBMIT_JOB_SCHED, function, unique, *cron, payload)
    if epoch is not None:
        return request(SUBMIT_JOB_EPOCH, function, unique, b"%d" % epoch, payload)
    packet_type = _PACKET_TYPES.get((priority, background))
    if packet_type is None:
        raise InvalidArgument(f"priority={priority!r}: must be 'high', 'normal' or 'low'")
    return request(packet_type, function, unique, payload)
