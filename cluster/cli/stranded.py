"""Jobs that wait on one node of a fleet while all who could do them are connected to others.

A node gives out the jobs of the slots that it leads. A stock worker that knows one node only leaves the jobs
of the others waiting, and each node by itself looks well: only who compares them all sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from client_ha.addresses import Server
from cluster.cli.admin import Admin, FunctionStatus
from cluster.cli.peer import TLS_CA_ENVIRONMENT, tls_context
from cluster.cli.servers import Failed, Servers, ask_each

if TYPE_CHECKING:
    from cluster.server.control import FleetStatus

ANSWER_SECONDS: Final = 2.0  # a look at the queues; how the fleet stands is known already
NAMED_MAX: Final = 5  # functions


def stranded(by_node: Mapping[str, Sequence[FunctionStatus]]) -> dict[str, list[str]]:
    """Function -> nodes on which its jobs wait without a worker, where another node has one."""
    waiting: dict[str, list[str]] = {}
    worked: set[str] = set()
    for node, functions in sorted(by_node.items()):
        for row in functions:
            if row.workers:
                worked.add(row.function)
            elif row.waiting:
                waiting.setdefault(row.function, []).append(node)
    return {function: nodes for function, nodes in waiting.items() if function in worked}


def stranded_faults(status: FleetStatus) -> list[str]:
    """The same of a fleet, in words. Nodes whose Gearman port does not answer here are left out."""
    nodes = {
        Server(node.host, node.port): node.name
        for node in status.nodes
        if node.state != "down" and node.host and node.port
    }
    try:
        tls = tls_context() if os.environ.get(TLS_CA_ENVIRONMENT) else None
        answers, _ = ask_each(Servers(tuple(nodes), ANSWER_SECONDS, tls), Admin.status)
    except (Failed, ValueError):
        return []
    return in_words(stranded({nodes[server]: functions for server, functions in answers}))


def in_words(found: Mapping[str, Iterable[str]]) -> list[str]:
    lines = [
        f"jobs of {function} wait on {', '.join(nodes)}, and its workers are connected to other nodes only: "
        "connect workers to every node"
        for function, nodes in sorted(found.items())[:NAMED_MAX]
    ]
    if len(found) > NAMED_MAX:
        lines.append(f"the same of {len(found) - NAMED_MAX:,} more functions; gearfleet status marks them")
    return lines
