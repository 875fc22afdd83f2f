"""The packet types of the Gearman protocol, their arguments and the limits on them.

A packet is a 12-byte header (magic, type, size; both numbers big-endian) and a body of NUL-separated
arguments. The last argument is bounded by the size and not by a NUL, so it alone may contain NULs.
"""

from typing import Final, NamedTuple

MAGIC_REQUEST: Final = b"\0REQ"
MAGIC_RESPONSE: Final = b"\0RES"
HEADER_BYTES: Final = 12

# Limits that stock clients know (libgearman-1.0/limits.h; there they include the closing NUL).
HANDLE_BYTES_MAX: Final = 63
# libgearman announces 64, and a SHA-256 in hex has 64: taken whole, where gearmand cuts it to 63.
UNIQUE_BYTES_MAX: Final = 64
FUNCTION_BYTES_MAX: Final = 511
OPTION_BYTES_MAX: Final = 63
CLIENT_ID_BYTES_MAX: Final = 127
TEXT_LINE_BYTES_MAX: Final = 8192
# The protocol allows 4 GiB; a server that allowed it could be made to hold that much for each connection.
PACKET_BYTES_MAX_DEFAULT: Final = 64 * 1024 * 1024

CAN_DO: Final = 1
CANT_DO: Final = 2
RESET_ABILITIES: Final = 3
PRE_SLEEP: Final = 4
NOOP: Final = 6
SUBMIT_JOB: Final = 7
JOB_CREATED: Final = 8
GRAB_JOB: Final = 9
NO_JOB: Final = 10
JOB_ASSIGN: Final = 11
WORK_STATUS: Final = 12
WORK_COMPLETE: Final = 13
WORK_FAIL: Final = 14
GET_STATUS: Final = 15
ECHO_REQ: Final = 16
ECHO_RES: Final = 17
SUBMIT_JOB_BG: Final = 18
ERROR: Final = 19
STATUS_RES: Final = 20
SUBMIT_JOB_HIGH: Final = 21
SET_CLIENT_ID: Final = 22
CAN_DO_TIMEOUT: Final = 23
ALL_YOURS: Final = 24
WORK_EXCEPTION: Final = 25
OPTION_REQ: Final = 26
OPTION_RES: Final = 27
WORK_DATA: Final = 28
WORK_WARNING: Final = 29
GRAB_JOB_UNIQ: Final = 30
JOB_ASSIGN_UNIQ: Final = 31
SUBMIT_JOB_HIGH_BG: Final = 32
SUBMIT_JOB_LOW: Final = 33
SUBMIT_JOB_LOW_BG: Final = 34
SUBMIT_JOB_SCHED: Final = 35
SUBMIT_JOB_EPOCH: Final = 36
SUBMIT_REDUCE_JOB: Final = 37
SUBMIT_REDUCE_JOB_BACKGROUND: Final = 38
GRAB_JOB_ALL: Final = 39
JOB_ASSIGN_ALL: Final = 40
GET_STATUS_UNIQUE: Final = 41
STATUS_RES_UNIQUE: Final = 42

# Gearfleet's extension (docs/protocol-extensions.md): only on a connection where the option was granted.
# Far above what gearmand numbers, so that a later release of it does not take them.
OPTION_GEARFLEET: Final = b"gearfleet"
GET_MAP: Final = 1001
MAP_RES: Final = 1002
CLAIM_JOB: Final = 1003
CLAIM_RES: Final = 1004
GIVE_BACK: Final = 1005
OPTION_GIVE_BACK: Final = b"gearfleet-give-back"  # is GIVE_BACK known?
# The verdicts of CLAIM_RES.
CLAIM_KEPT: Final = b"kept"  # the job is the asker's: its result is awaited on this connection
CLAIM_GONE: Final = b"gone"  # unknown, finished, or given to another worker: its result is not wanted
CLAIM_ELSEWHERE: Final = b"elsewhere"  # this node does not lead the job's slot

# Error codes as libgearman knows them (libgearman/error_code.gperf, without the GEARMAN_ prefix).
INVALID_MAGIC: Final = b"INVALID_MAGIC"
INVALID_COMMAND: Final = b"INVALID_COMMAND"
INVALID_PACKET: Final = b"INVALID_PACKET"
ARGUMENT_TOO_LARGE: Final = b"ARGUMENT_TOO_LARGE"
INVALID_ARGUMENT: Final = b"INVALID_ARGUMENT"
QUEUE_ERROR: Final = b"QUEUE_ERROR"
UNKNOWN_OPTION: Final = b"UNKNOWN_OPTION"
JOB_NOT_FOUND: Final = b"JOB_NOT_FOUND"


class PacketSpec(NamedTuple):
    """One row of the protocol's table."""

    name: str
    arguments: int  # how many, the last one included; 0 means that the body must not be looked at
    from_client: bool = False
    from_worker: bool = False
    from_server: bool = False


def _c(name: str, arguments: int) -> PacketSpec:
    return PacketSpec(name, arguments, from_client=True)


def _w(name: str, arguments: int) -> PacketSpec:
    return PacketSpec(name, arguments, from_worker=True)


def _s(name: str, arguments: int) -> PacketSpec:
    return PacketSpec(name, arguments, from_server=True)


def _ws(name: str, arguments: int) -> PacketSpec:
    return PacketSpec(name, arguments, from_worker=True, from_server=True)


def _cw(name: str, arguments: int) -> PacketSpec:
    return PacketSpec(name, arguments, from_client=True, from_worker=True)


PACKETS: Final[dict[int, PacketSpec]] = {
    CAN_DO: _w("CAN_DO", 1),
    CANT_DO: _w("CANT_DO", 1),
    RESET_ABILITIES: _w("RESET_ABILITIES", 0),
    PRE_SLEEP: _w("PRE_SLEEP", 0),
    NOOP: _s("NOOP", 0),
    SUBMIT_JOB: _c("SUBMIT_JOB", 3),
    JOB_CREATED: _s("JOB_CREATED", 1),
    GRAB_JOB: _w("GRAB_JOB", 0),
    NO_JOB: _s("NO_JOB", 0),
    JOB_ASSIGN: _s("JOB_ASSIGN", 3),
    WORK_STATUS: _ws("WORK_STATUS", 3),
    WORK_COMPLETE: _ws("WORK_COMPLETE", 2),
    WORK_FAIL: _ws("WORK_FAIL", 1),
    GET_STATUS: _c("GET_STATUS", 1),
    ECHO_REQ: _cw("ECHO_REQ", 1),
    ECHO_RES: _s("ECHO_RES", 1),
    SUBMIT_JOB_BG: _c("SUBMIT_JOB_BG", 3),
    ERROR: _s("ERROR", 2),
    STATUS_RES: _s("STATUS_RES", 5),
    SUBMIT_JOB_HIGH: _c("SUBMIT_JOB_HIGH", 3),
    SET_CLIENT_ID: _w("SET_CLIENT_ID", 1),
    CAN_DO_TIMEOUT: _w("CAN_DO_TIMEOUT", 2),
    ALL_YOURS: _w("ALL_YOURS", 0),
    WORK_EXCEPTION: _ws("WORK_EXCEPTION", 2),
    OPTION_REQ: _cw("OPTION_REQ", 1),
    OPTION_RES: _s("OPTION_RES", 1),
    WORK_DATA: _ws("WORK_DATA", 2),
    WORK_WARNING: _ws("WORK_WARNING", 2),
    GRAB_JOB_UNIQ: _w("GRAB_JOB_UNIQ", 0),
    JOB_ASSIGN_UNIQ: _s("JOB_ASSIGN_UNIQ", 4),
    SUBMIT_JOB_HIGH_BG: _c("SUBMIT_JOB_HIGH_BG", 3),
    SUBMIT_JOB_LOW: _c("SUBMIT_JOB_LOW", 3),
    SUBMIT_JOB_LOW_BG: _c("SUBMIT_JOB_LOW_BG", 3),
    SUBMIT_JOB_SCHED: _c("SUBMIT_JOB_SCHED", 8),
    SUBMIT_JOB_EPOCH: _c("SUBMIT_JOB_EPOCH", 4),
    # The PROTOCOL document leaves out the fourth argument; libgearman sends it (libgearman/command.cc).
    SUBMIT_REDUCE_JOB: _c("SUBMIT_REDUCE_JOB", 5),
    SUBMIT_REDUCE_JOB_BACKGROUND: _c("SUBMIT_REDUCE_JOB_BACKGROUND", 5),
    GRAB_JOB_ALL: _w("GRAB_JOB_ALL", 0),
    JOB_ASSIGN_ALL: _s("JOB_ASSIGN_ALL", 5),
    GET_STATUS_UNIQUE: _c("GET_STATUS_UNIQUE", 1),
    STATUS_RES_UNIQUE: _s("STATUS_RES_UNIQUE", 6),
}

# Not in PACKETS: that is what gearmand speaks, and what a connection without the option may use.
EXTENSION_PACKETS: Final[dict[int, PacketSpec]] = {
    GET_MAP: _cw("GET_MAP", 0),
    MAP_RES: _s("MAP_RES", 1),
    CLAIM_JOB: _w("CLAIM_JOB", 1),
    CLAIM_RES: _s("CLAIM_RES", 2),
    GIVE_BACK: _w("GIVE_BACK", 2),
}


class MissingArguments(ValueError):
    """A packet has fewer arguments than its type needs."""

    def __init__(self, packet_type: int, got: int) -> None:
        spec = PACKETS.get(packet_type) or EXTENSION_PACKETS[packet_type]
        super().__init__(f"{spec.name} needs {spec.arguments} arguments, separated by NUL; got {got}")


def split_arguments(packet_type: int, body: bytes) -> list[bytes]:
    """Split a body into the arguments that its packet type has.

    Raises MissingArguments when there are fewer, KeyError when the protocol has no such type.
    """
    spec = PACKETS.get(packet_type) or EXTENSION_PACKETS[packet_type]
    count = spec.arguments
    if count == 0:
        return []
    arguments = body.split(b"\0", count - 1)
    if len(arguments) != count:
        raise MissingArguments(packet_type, len(arguments))
    return arguments
