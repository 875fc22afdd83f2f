"""The shell around the pure node: the only room with asyncio, sockets, disk, clock and signals.

settings.py    what an operator may set
directory.py   the data directory: lock and identity
journal.py     segments, group commit, the writer thread; reading them back
peer.py        one TCP connection
server.py      Server: the loop's turn around the node's turn, timers, housekeeping, stopping
status.py      what the node tells about itself
process.py     run(): signals, files, limits, logging of one server process
"""

from cluster.server.process import run
from cluster.server.settings import Settings, SettingsError, load_settings

__all__ = ["Settings", "SettingsError", "load_settings", "run"]
