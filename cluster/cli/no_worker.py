"""Says that a job waits for a worker that is not there: else a newcomer sees a command that hangs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from cluster.cli.admin import Admin, Refused
from cluster.cli.discover import Followed
from cluster.cli.peer import Unreachable
from cluster.cli.servers import Servers

NO_WORKER_SECONDS: Final = 2.0  # a job waits so long before it is asked whether there is a worker
_ANSWER_SECONDS: Final = 2.0


class NoWorkerWatch:
    """As long as it is entered, foreground jobs of these functions are waited for.

    It asks once, in a thread that ends with the process, and is silent about what it cannot find out.
    """

    def __init__(self, servers: Servers, functions: Sequence[str], say: Callable[[str], object]) -> None:
        self._servers = replace(servers, timeout_seconds=_ANSWER_SECONDS)
        self._functions = tuple(dict.fromkeys(functions))
        self._say = say
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "NoWorkerWatch":
        self._thread = threading.Thread(target=self._watch, name="no worker?", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        if self._over.wait(NO_WORKER_SECONDS):
            return
        asked = self._ask()
        for function in self._functions:
            found = [workers for rows in asked.values() for name, workers in rows if name == function]
            # Its own job makes a row; without one the name is shown in another way, or nobody has the job.
            if found and not any(found) and not self._over.is_set():
                where = ", ".join(asked)
                self._say(
                    f"no worker takes {function!r}, and so the job waits. Asked: {where}. Start a worker, or "
                    "see in gearfleet status how the workers' functions are called"
                )

    def _ask(self) -> dict[str, list[tuple[str, int]]]:
        """Each server that answered, of the whole fleet, and how many workers each function has there."""
        told: dict[str, list[tuple[str, int]]] = {}
        for server in Followed(self._servers).look().addresses:
            try:
                with Admin(server, timeout_seconds=_ANSWER_SECONDS, tls=self._servers.tls) as admin:
                    told[str(server)] = [(row.function, row.workers) for row in admin.status()]
            except (Unreachable, Refused):
                continue
        return told
