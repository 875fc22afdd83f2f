"""Task sets, as in the PHP client (addTask..., runTasks) and the Perl client: add tasks, run all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from client_ha.arguments import check_wait
from client_ha.errors import GearfleetError, JobTimeout
from client_ha.flight import Priority
from client_ha.job import AsyncJob, Callbacks, Job


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a set: the arguments of a submit."""

    function: str | bytes
    payload: bytes | str
    unique: str | bytes | None
    priority: Priority
    background: bool
    at: datetime | float | int | None
    cron: str | None
    timeout: float | None
    callbacks: Callbacks[Any] | None


class _BaseTaskSet:
    """Adding is the same for both clients."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def add(
        self,
        function: str | bytes,
        payload: bytes | str = b"",
        *,
        unique: str | bytes | None = None,
        priority: Priority = "normal",
        background: bool = False,
        at: datetime | float | int | None = None,
        cron: str | None = None,
        timeout: float | None = None,
        on_data: Callable[[Any, bytes], object] | None = None,
        on_warning: Callable[[Any, bytes], object] | None = None,
        on_status: Callable[[Any, int, int], object] | None = None,
        on_complete: Callable[[Any, bytes], object] | None = None,
        on_fail: Callable[[Any, GearfleetError], object] | None = None,
        on_exception: Callable[[Any, bytes], object] | None = None,
    ) -> None:
        """Add a task; the arguments are those of HAClient.submit. Nothing is sent before run()."""
        callbacks: Callbacks[Any] | None = None
        if on_data or on_warning or on_status or on_complete or on_fail or on_exception:
            callbacks = Callbacks(on_data, on_warning, on_status, on_complete, on_fail, on_exception)
        self._tasks.append(
            Task(function, payload, unique, priority, background, at, cron, timeout, callbacks)
        )


class TaskSet(_BaseTaskSet):
    """Made by HAClient.task_set()."""

    def __init__(self, submit: Callable[[Sequence[Task]], list[Job]]) -> None:
        super().__init__()
        self._submit = submit

    def run(self, timeout: float | None = None) -> list[Job]:
        """Submit what was added, wait until all has ended, and return the jobs in the order of adding.

        In the background "ended" means acknowledged. A task that failed does not raise here: look at
        `job.error`, or call its result(). Afterwards the set is empty and can be used again.
        timeout: seconds for all. Raises InvalidArgument before anything is sent; JobTimeout when some
        have not ended by then; `jobs` of that error has all of them.
        """
        check_wait(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = self._submit(self._tasks)
        self._tasks = []
        for job in jobs:
            job.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        raise_if_unfinished(jobs, timeout)
        return jobs


class AsyncTaskSet(_BaseTaskSet):
    """Made by AsyncHAClient.task_set()."""

    def __init__(self, submit: Callable[[Sequence[Task]], list[AsyncJob]]) -> None:
        super().__init__()
        self._submit = submit

    async def run(self, timeout: float | None = None) -> list[AsyncJob]:  # noqa: ASYNC109
        """As TaskSet.run."""
        check_wait(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = self._submit(self._tasks)
        self._tasks = []
        for job in jobs:
            await job.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        raise_if_unfinished(jobs, timeout)
        return jobs


def raise_if_unfinished(jobs: Sequence[Job] | Sequence[AsyncJob], timeout: float | None) -> None:
    """Raise JobTimeout that names the jobs which have not ended."""
    left = [job for job in jobs if not job.finished]
    if left:
        names = ", ".join(f"{job.function} ({job.handle or 'not acknowledged'})" for job in left[:5])
        raise JobTimeout(
            f"{len(left)} of {len(jobs)} tasks did not end within {timeout or 0:.3g} s: {names}. They go "
            "on; ask their result(), or look whether workers for them run",
            jobs,
        )
