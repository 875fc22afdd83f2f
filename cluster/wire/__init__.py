"""The Gearman protocol as bytes: packets in both directions and text commands. Pure: no I/O, no jobs.

    packets.py   the table of packet types and the limits; the vocabulary of everything else
    decode.py    bytes in, packets out, in whatever pieces they arrive
    encode.py    packets to bytes
    numbers.py   numbers as gearmand reads them
    shown.py     names of strangers, for each medium in which they are shown

Source of all of it: the PROTOCOL document of gearmand; where gearmand differs from that document,
`docs/compatibility.md` says what is done here.
"""

from cluster.wire.decode import MISDIRECTED, TEXT, Decoder, ProtocolError
from cluster.wire.encode import error, request, response
from cluster.wire.packets import EXTENSION_PACKETS, PACKETS, MissingArguments, PacketSpec, split_arguments

__all__ = [
    "EXTENSION_PACKETS",
    "MISDIRECTED",
    "PACKETS",
    "TEXT",
    "Decoder",
    "MissingArguments",
    "PacketSpec",
    "ProtocolError",
    "error",
    "request",
    "response",
    "split_arguments",
]
