"""One peer of the Gearman port."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs import Job, Worker


class Connection:
    """What a peer is owed and what it holds.

    Answers leave in the order of the requests. So once one of them waits for a group to be committed,
    all that follow wait behind it: they are in `held`, each list with the group that it waits for.
    """

    __slots__ = (
        "address",
        "attached",
        "client_id",
        "closing",
        "exceptions",
        "gate",
        "held",
        "local",
        "number",
        "out",
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
        self.held: deque[tuple[int, list[bytes]]] = deque()
        self.attached: dict[Job, None] = {}  # jobs whose results it wants
        self.worker: Worker | None = None
        self.closing = False
        self.transport: Any = None  # belongs to the server; opaque here

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.address}>"
