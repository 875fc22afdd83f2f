"""World "turns": a whole fleet in one thread, one turn or one frame at a time.

Nodes, replicators and the placement are the real ones, as are the clients' packets; etcd, disks and streams
are those of `tests/node/fleets.py`. A node has few slots, so that a run takes a fraction of a second.

    simulation.py   a seed becomes steps; after the last everything is mended, and must come to rest
    stage.py        the fleet, the dice and the trace, which all others share
    streams.py      frames: late, lost, in one direction only
    nodes.py        turns, disks, crashes
    etcd.py         reads that come late, swaps whose answers do not come
    users.py        clients and workers, and what they are owed
    account.py      what was promised, kept the dumb way beside; the rules that are checked after each step
"""

from chaos_tests.sim.turns.simulation import Simulation, run

__all__ = ["Simulation", "run"]
