"""Clients and workers for a fleet to which something happens: what was promised, when, and what was done.

    with Load(fleet.addresses, rate=1000) as load:
        begun = load.now()
        ...                             # the event
        load.longest_gap_seconds(begun)
    load.drain(); load.lost(); load.repeats()

A client with many jobs under way submits background jobs with unique keys at a steady rate; a worker runs
them. Both are HAClient's and HAWorker's asyncio kin, each in a thread with a loop of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple
from zlib import crc32

from client_ha import AsyncHAClient, AsyncHAWorker, GearfleetError, JobContext
from tests.support.waiting import eventually

FUNCTION: Final = "bench"
SLOTS: Final = 1024
SUBMIT_SECONDS: Final = 30.0  # what a caller waits for an acknowledgement before it is an error
STUCK_SECONDS: Final = 20.0  # nothing was run for so long although there are jobs: they are lost


class Acknowledged(NamedTuple):
    """One promise. The handle says which node gave it, in which epoch."""

    unique: str
    submitted_at: float
    at: float
    handle: str


def slot_of(unique: str, function: str = FUNCTION) -> int:
    return crc32(f"{function}\0{unique}".encode()) & (SLOTS - 1)


class LoopInThread:
    """An event loop in a thread, closed at the end."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Any, timeout_seconds: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Load:
    """See the module's docstring."""

    now = staticmethod(time.monotonic)

    def __init__(
        self,
        servers: str,
        *,
        rate: float,
        callers: int = 128,
        job_seconds: float = 0.0,
        concurrency: int = 32,
        submit_seconds: float = SUBMIT_SECONDS,
    ) -> None:
        """`rate`: submits a second, by so many callers, each of whom waits for its acknowledgement.
        `job_seconds`: how long a job takes."""
        self._servers = servers
        self._rate = rate
        self._callers = callers
        self._job_seconds = job_seconds
        self._concurrency = concurrency
        self._submit_seconds = submit_seconds
        self._stop = False
        self._token = secrets.token_hex(4)  # keys are remembered: another load's are answered, but not run
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self.acknowledged: list[Acknowledged] = []
        self.errors: list[str] = []
        self.runs: Counter[str] = Counter()

    def __enter__(self) -> Load:
        logging.getLogger("client_ha").setLevel(logging.CRITICAL)  # that nodes die is the point here
        self._client_loop, self._worker_loop = LoopInThread("client"), LoopInThread("worker")
        self._worker_loop.run(self._start_worker())
        self._client_loop.run(self._start_client())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client_loop.run(self._client.close())
        self._worker_loop.run(self._worker.__aexit__(None, None, None))
        self._client_loop.close()
        self._worker_loop.close()

    async def _start_worker(self) -> None:
        self._worker = AsyncHAWorker(self._servers, concurrency=self._concurrency, drain_seconds=5.0)

        @self._worker.task(FUNCTION)
        async def run(job: JobContext) -> None:
            self.runs[job.unique] += 1
            if self._job_seconds:
                await asyncio.sleep(self._job_seconds)

        await self._worker.__aenter__()

    async def _start_client(self) -> None:
        self._client = AsyncHAClient(self._servers, submit_timeout=self._submit_seconds)
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(self._callers)]

    async def _call(self, number: int) -> None:
        """One caller."""
        period = self._callers / self._rate
        due = self.now() + period * number / self._callers
        while not self._stop:
            await asyncio.sleep(max(0.0, due - self.now()))
            due = max(due + period, self.now())
            await self.submit(f"{self._token}-{next(self._numbers):08d}")

    async def submit(self, unique: str) -> None:
        """Submit one job and note what became of it."""
        begun = self.now()
        try:
            job = await self._client.submit(FUNCTION, unique, unique=unique, background=True)
        except GearfleetError as error:
            self.errors.append(str(error))
        else:
            self.acknowledged.append(Acknowledged(unique, begun, self.now(), job.handle or ""))

    def stop(self) -> None:
        """No more submits; returns when those under way have ended."""
        self._stop = True

        async def ended() -> None:
            await asyncio.gather(*self._tasks)

        self._client_loop.run(ended())

    def probe(self, slots: Iterable[int]) -> Callable[[], dict[int, float]]:
        """Submit one job for each slot, now; returns what waits for them: slot -> when acknowledged."""
        wanted = set(slots)
        keys: dict[int, str] = {}
        for number in itertools.count():
            unique = f"{self._token}-probe-{next(self._numbers)}-{number}"
            if (slot := slot_of(unique)) in wanted:
                keys[slot] = unique
                wanted.discard(slot)
            if not wanted:
                break

        async def all_of_them() -> None:
            await asyncio.gather(*(self.submit(unique) for unique in keys.values()))

        future = asyncio.run_coroutine_threadsafe(all_of_them(), self._client_loop.loop)

        def wait() -> dict[int, float]:
            future.result()
            when = {each.unique: each.at for each in self.acknowledged[-200_000:]}
            return {slot: when[unique] for slot, unique in keys.items() if unique in when}

        return wait

    # ---- what came of it

    def wait_for(self, count: int, timeout_seconds: float = SUBMIT_SECONDS) -> None:
        """Wait until so many more are acknowledged."""
        until = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= until, timeout_seconds=timeout_seconds)

    def longest_gap_seconds(self, begun: float, ended: float | None = None) -> float:
        """The longest time from one acknowledgement, of whichever node, to the next."""
        ended = self.now() if ended is None else ended
        times = sorted(each.at for each in list(self.acknowledged) if begun <= each.at <= ended)
        return max(later - earlier for earlier, later in itertools.pairwise([begun, *times, ended]))

    def longest_wait_seconds(self, begun: float) -> float:
        """The longest that a caller has waited for an acknowledgement that came since."""
        waits = (each.at - each.submitted_at for each in list(self.acknowledged) if each.at >= begun)
        return max(waits, default=self.now() - begun)

    def drain(self) -> None:
        """Wait until the worker has run all that was acknowledged; give up when nothing moves any more."""
        left = len(self.lost())

        def fewer() -> bool:
            return len(self.lost()) < left

        while left:
            try:
                eventually(fewer, timeout_seconds=STUCK_SECONDS)
            except AssertionError:
                return
            left = len(self.lost())

    def lost(self) -> list[str]:
        """Acknowledged and never run."""
        return [each.unique for each in list(self.acknowledged) if each.unique not in self.runs]

    def repeats(self) -> int:
        """Runs beyond the first of each job."""
        return sum(count - 1 for count in list(self.runs.values()))

    def error_summary(self) -> str:
        counts = Counter(error.partition(". Tried")[0][:300] for error in self.errors)
        return "; ".join(f"{count} × {text}" for text, count in counts.most_common(3))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
