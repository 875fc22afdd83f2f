"""One peer of the Gearman port."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs import Job, Worker


class Held:
    """Answers of one turn that cannot leave yet."""

    __slots__ = ("chunks", "gate", "missing")

    def __init__(self, gate: int, chunks: list[bytes]) -> None:
        self.gate = gate  # the group that they wait for
        self.chunks = chunks
        self.missing = 0  # how many of them another node has yet to give


class Connection:
    """What a peer is owed and what it holds.

    Answers leave in the order of the requests. So once one of them waits for a group to be committed,
    all that follow wait behind it: they are in `held`. So do those that another node has to give.
    """

    __slots__ = (
        "address",
        "attached",
        "batch",
        "client_id",
        "closing",
        "exceptions",
        "gate",
        "held",
        "local",
        "map_wanted",
        "node",
        "number",
        "out",
        "out_replies",
        "relayed",
        "remember",
        "transport",
        "worker",
    )

    def __init__(self, number: int, address: str, *, local: bool = False, exceptions: bool = False) -> None:
        self.number = number  # the file descriptor, as `workers` shows it
        self.address = address
        self.local = local  # over a loopback address
        self.exceptions = exceptions
        self.client_id = b"-"
        self.out: list[bytes] = []  # answers of this turn
        self.gate = 0  # the last group that an answer waits for
        self.held: deque[Held] = deque()
        self.batch: Held | None = None  # this turn's answers, if another node has to give some of them
        self.attached: dict[Job, bytes] = {}  # jobs whose results it wants, with the answers that said so
        self.worker: Worker | None = None
        self.closing = False
        self.remember = False  # completed background jobs of this client are remembered
        self.map_wanted = False  # it is told the map whenever that changes
        self.node: str | None = None  # the other node of the fleet that speaks here for its clients
        self.out_replies: list[bytes] = []  # to such a node, unsent
        self.relayed: set[bytes] | None = None  # handles of jobs at other nodes whose results it wants
        self.transport: Any = None  # belongs to the server; opaque here

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.address}>"
