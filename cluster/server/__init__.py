"""The shell around the pure node: the only room with asyncio, sockets, disk, clock and signals.

settings.py    what an operator may set
directory.py   the data directory: lock and identity
journal.py     segments, group commit, the writer thread; reading them back
peer.py        one TCP connection
channels.py    gRPC: connecting, TLS between nodes, options; peers.py and control.py stand on it
messages.py    what peers say, as bytes
peers.py       PeerPort: the streams to the other nodes
proof.py       that somebody knows the fleet's secret
peer_hosts.py  where the peer port listens when nobody has said so
control.py     what an operator says to a fleet: service and client
server.py      Server: the loop's turn around the node's turn, timers, housekeeping, stopping
unkept.py      what is in no journal when a node stops
recovery.py    rule 15: the fleet's map back into an etcd that has lost it
stranger_log.py   who changed something, was refused or was no peer at the Gearman port
tls_listener.py   accepts connections that speak TLS
status.py      what the node tells about itself
rights.py      what root makes for the user that the node becomes
process.py     run(): signals, files, limits, logging of one server process
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

# gRPC reads these when it is imported, by whomever. Its core would write to standard error for each port
# scan; what matters of that reaches the log through the errors of calls. And it would hand each message
# through three threads of its own instead of one, a third more CPU for each.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

from cluster.server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from cluster.server.process import Attach


def run(settings: Settings, notes: Sequence[str] = (), attach: "Sequence[Attach]" = ()) -> int:
    """See process.run. Imported late: commands that only ask a node start in half the time without it."""
    from cluster.server.process import run

    return run(settings, notes, attach)


__all__ = ["Settings", "SettingsError", "load_settings", "run"]
