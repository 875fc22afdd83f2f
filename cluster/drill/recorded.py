"""Submits through HAClients and runs in HAWorkers, written into a history as its rules want.

The drill, the live tests and the simulation have workloads of their own; what they record of a call or a run
is the same, and is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from client_ha import AsyncHAClient, GearfleetError, JobContext, JobFailed
from client_ha.errors import JobException
from client_ha.flight import Priority
from client_ha.job import AsyncJob
from cluster.drill.history import History

_LOOK_SECONDS: Final = 0.002


class Recorder:
    """Says in a history what callers and workers see."""

    def __init__(self, history: History, node_of: Callable[[str], str] = lambda _: "") -> None:
        """`node_of`: a node's name, by the address over which somebody reaches it."""
        self.history = history
        self.node_of = node_of
        self.under_way: dict[int, None] = {}  # calls whose end nobody has heard

    # ---- calls

    async def background(
        self,
        client: AsyncHAClient,
        function: str,
        unique: str,
        payload: bytes,
        *,
        priority: Priority = "normal",
        order: int = 0,
        at: int | None = None,
    ) -> AsyncJob | None:
        """Submit a background job. Returns it when it was acknowledged, and None when nobody knows.

        `order`: see Event. `at`: not before (seconds since 1970).
        """
        call = self._begin(function, unique, priority, order=order)
        try:
            job = await client.submit(
                function, payload, unique=unique, priority=priority, background=True, at=at
            )
        except GearfleetError as error:
            # Also a refusal: it is the last of several attempts, and an earlier one may have been taken.
            self._unknown(call, f"{type(error).__name__}: {error}")
            return None
        except asyncio.CancelledError:
            self._unknown(call, "its caller ended")
            raise
        self._acknowledged(call, job)
        del self.under_way[call]
        return job

    async def foreground(
        self,
        client: AsyncHAClient,
        function: str,
        unique: str,
        payload: bytes,
        *,
        timeout_seconds: float,
        priority: Priority = "normal",
        told: Callable[[], object] = lambda: None,
    ) -> bytes | JobFailed | JobException | None:
        """Submit a job and wait for its end: the result, or what its worker raised; None when nobody knows.

        `told` is called when it is acknowledged.
        """
        call = self._begin(function, unique, priority, foreground=True)
        handle = None
        end: bytes | JobFailed | JobException
        try:
            job = await client.submit(
                function, payload, unique=unique, priority=priority, timeout=timeout_seconds
            )
            # The client tells of a result, and not of the acknowledgement before it.
            while job.handle is None and not job.finished:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
            if job.handle is not None:
                handle = job.handle
                self._acknowledged(call, job)
                told()
            end = await job.result()
        except (JobFailed, JobException) as error:
            end = error
        except GearfleetError as error:
            self._unknown(call, f"{type(error).__name__}: {error}")
            return None
        except asyncio.CancelledError:
            self._unknown(call, "its caller ended")
            raise
        if job.handle is not None and job.handle != handle:
            # Its node died, and the client has submitted it again.
            self._acknowledged(call, job)
        self.history.result(call, text="" if isinstance(end, bytes) else f"{type(end).__name__}: {end}")
        del self.under_way[call]
        return end

    def give_up(self, text: str) -> None:
        """Whoever waited is there no more."""
        for call in list(self.under_way):
            self._unknown(call, text)

    def _begin(
        self, function: str, unique: str, priority: Priority, *, order: int = 0, foreground: bool = False
    ) -> int:
        key = f"{function}/{unique}"
        call = self.history.submit(key, priority=priority, order=order, foreground=foreground)
        self.under_way[call] = None
        return call

    def _acknowledged(self, call: int, job: AsyncJob) -> None:
        self.history.ack(call, handle=job.handle or "", node=self.node_of(job.server or ""))

    def _unknown(self, call: int, text: str) -> None:
        self.under_way.pop(call, None)
        self.history.unknown(call, text)

    # ---- runs

    @contextmanager
    def run(self, job: JobContext, worker: str) -> Iterator[None]:
        """Around a worker's work. What that raises ends the job, and a cancelled run is abandoned."""
        key = f"{job.function}/{job.unique}"
        handle, node = job.handle, self.node_of(job.server)
        self.history.run(key, worker=worker, handle=handle, node=node)
        try:
            yield
        except asyncio.CancelledError:
            self.history.abandoned(key, worker=worker, handle=handle, node=node)
            raise
        except Exception:
            self.history.failed(key, worker=worker, handle=handle, node=node)
            raise
        self.history.done(key, worker=worker, handle=handle, node=node)
