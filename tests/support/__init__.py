"""What tests of several rooms share.

    peer.py      Peer: one blocking Gearman connection, and Packet
    node.py      Node: a real `gearfleet server` process; Gearmand: the reference server
    machine.py   what this machine offers: commands, root, file descriptors; and why a test is skipped
    etcd.py      Etcd: real etcd servers; FleetEtcd: a fleet in one of them; certificates
    fleet.py     Fleet: an etcd and several nodes; kill, freeze, drain, add
    faulty.py    nodes whose clock is wrong or whose disk fails
    program.py   Program: a client or worker of others
    waiting.py   bounded waits
    ending.py    nothing outlives the run that started it

No test sleeps: it waits for an answer, a log line or the end of a process, and says what it waited for.
"""

from tests.support.etcd import Certificates, Etcd, FleetEtcd, make_certificates
from tests.support.fleet import Fleet, FleetNode
from tests.support.machine import need_command, need_root, needs_command, needs_root
from tests.support.node import Gearmand, Node
from tests.support.peer import Packet, Peer, PeerClosed, PeerTimeout
from tests.support.waiting import WAIT_SECONDS, eventually

__all__ = [
    "WAIT_SECONDS",
    "Certificates",
    "Etcd",
    "Fleet",
    "FleetEtcd",
    "FleetNode",
    "Gearmand",
    "Node",
    "Packet",
    "Peer",
    "PeerClosed",
    "PeerTimeout",
    "eventually",
    "make_certificates",
    "need_command",
    "need_root",
    "needs_command",
    "needs_root",
]
