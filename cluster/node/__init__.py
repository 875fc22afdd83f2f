"""One node's turn: introduces the four cores to each other. Pure: events in, "write this, then send
that" out.

    connection.py  one peer: what it is owed, what it holds
    context.py     what all verbs share: ledger, log, settings, the outputs of the turn
    client.py      what clients say: submits, status, options
    worker.py      what workers say: abilities, grabs, results
    returns.py     jobs that come back: lost, given back, over their time limit
    events.py      what the shell is to log of single jobs
    admin.py       what people say: the text commands
    restore.py     a journal's entries back into a ledger; checkpoints the other way
    node.py        Node: the table of verbs, the turn, commits, timers

A job's journey: `Node.receive` -> `ClientVerbs.submit_background` (ledger and log) -> `Node.end_turn`
(the group leaves for the disk) -> `Node.committed` (JOB_CREATED leaves, the job is queued, sleepers are
woken) -> `WorkerVerbs.grab` -> `WorkerVerbs.complete`.
"""

from cluster.node.connection import Connection
from cluster.node.context import NodeSettings
from cluster.node.node import Node, Output

__all__ = ["Connection", "Node", "NodeSettings", "Output"]
