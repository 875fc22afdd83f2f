"""The worker's engine: registered on all servers, asleep on all, grabbing where work is.

Per connection:

    connected -> awake --GRAB--> JOB_ASSIGN -> awake (a job runs; more may be there)
                   ^       \\--> NO_JOB ----> asleep (PRE_SLEEP)
                   +---- NOOP, or time to poll again ----+

Invariants: running jobs + grabs awaiting their answer <= concurrency, so no job is held that no thread is
free for. A job belongs to the server that gave it and to its handle, not to the connection: when that breaks,
the job goes on, and its result is delivered by handle on the next connection to that server, before
anything else is asked there. A server that has forgotten the job answers JOB_NOT_FOUND, which is logged.

Results have no acknowledgement in this protocol. But servers answer in order: the answer to a GRAB proves
that the results sent before it were read. What is not proven when a connection breaks is sent again.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from client_ha.addresses import Server
from client_ha.connection import Connection
from client_ha.context import JobContext
from client_ha.link import Link
from client_ha.tasks import Task
from client_ha.timing import COMPLAINT_SECONDS, KEPT_RESULT_SECONDS, KEPT_RESULTS_MAX, Timing
from cluster.wire import MissingArguments, request, split_arguments
from cluster.wire.packets import (
    CANT_DO,
    ERROR,
    GRAB_JOB_UNIQ,
    INVALID_COMMAND,
    JOB_ASSIGN_UNIQ,
    JOB_NOT_FOUND,
    NO_JOB,
    NOOP,
    PRE_SLEEP,
    SET_CLIENT_ID,
    WORK_FAIL,
)

logger = logging.getLogger("client_ha")

_GRAB: Final = request(GRAB_JOB_UNIQ)
_SLEEP: Final = request(PRE_SLEEP)


class Run:
    """A job that this worker runs."""

    __slots__ = ("connection", "context", "handle", "link", "replaced", "task", "timer")

    def __init__(self, link: Link, connection: Connection, handle: bytes, task: Task[Any]) -> None:
        self.link = link
        self.connection: Connection | None = connection  # None once it broke
        self.handle = handle
        self.task = task
        self.context: JobContext
        self.replaced = False  # over its time, or the handle was given out again: its result is not wanted
        self.timer: asyncio.TimerHandle | None = None


class _Peer:
    """What the engine keeps per connection."""

    __slots__ = (
        "asleep",
        "dry",
        "giving_back",
        "grabs",
        "reduced",
        "results",
        "results_sent",
        "running",
        "window",
    )

    def __init__(self) -> None:
        self.asleep = False
        self.dry = False  # NO_JOB was heard since the last NOOP
        self.window = 1  # grabs at a time: grows while jobs come
        self.grabs: deque[int] = deque()  # awaiting an answer; each with `results_sent` when it was sent
        self.running: dict[bytes, Run] = {}
        self.results: deque[tuple[int, bytes]] = deque(maxlen=KEPT_RESULTS_MAX)  # sent, not yet proven read
        self.results_sent = 0
        self.giving_back = False  # to be closed as soon as nothing runs on it
        self.reduced = False  # draining, and idle functions were taken back


class WorkerEngine:
    """Create and use it in one event loop. `begin(run)` is called for each job; answer with `finish`."""

    def __init__(
        self,
        servers: Sequence[Server],
        tasks: Mapping[bytes, Task[Any]],
        begin: Callable[[Run], None],
        send: Callable[[Run, bytes], object],
        timing: Timing,
        *,
        concurrency: int,
        client_id: bytes,
        max_jobs: int | None = None,
        tls: ssl.SSLContext | None = None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._begin = begin
        self._send = send
        self._timing = timing
        self._concurrency = concurrency
        self._client_id = client_id
        self._tells_change = changed
        self._remaining_jobs = max_jobs
        self._running = 0
        self._grabs = 0
        self._complain_at = 0.0  # when it may next be said that no server is reached
        self._orphans: dict[tuple[Server, bytes], Run] = {}  # their connection broke while they ran
        self._kept: dict[Server, deque[tuple[float, bytes]]] = {}
        self._all_delivered = asyncio.Event()
        self.draining = False
        self.idle = asyncio.Event()  # draining, and nothing runs or is being grabbed
        self.finished = asyncio.Event()  # max_jobs were done
        self._links = [Link(server, self, timing, tls=tls) for server in servers]
        self._ring: deque[Link] = deque(self._links)
        self._poll: asyncio.TimerHandle | None = None

    def start(self) -> None:
        for link in self._links:
            link.start()
        self._poll_later()

    def connected(self) -> list[Server]:
        """The servers that it is registered with now."""
        return [link.server for link in self._links if link.connection is not None]

    def drain(self) -> None:
        """Grab no more; `idle` is set when what runs has ended."""
        if not self.draining:
            self.draining = True
            for link in self._links:
                self._leave(link)
            self._check_idle()

    async def close(self) -> None:
        """Deliver what is kept if servers come back within a moment, then close; what runs is given up."""
        self.drain()
        if self._kept:
            try:
                async with asyncio.timeout(self._timing.connect_seconds):
                    await self._all_delivered.wait()
            except TimeoutError:
                for server, results in self._kept.items():
                    logger.warning("%s is away; %d results could not be delivered", server, len(results))
        if self._poll is not None:
            self._poll.cancel()
        await asyncio.gather(*(link.close("the worker stops") for link in self._links))

    def finish(self, run: Run, packet: bytes | None) -> None:
        """A run has ended with this result; None: give the job back."""
        self._running -= 1
        del run.context  # it refers to the run: no garbage cycle per job
        if run.timer is not None:
            run.timer.cancel()
        connection = run.connection
        if connection is None:
            self._orphans.pop((run.link.server, run.handle), None)
        if connection is not None and not run.replaced:
            peer = _peer(connection)
            peer.running.pop(run.handle, None)
            if packet is None:
                peer.giving_back = True
            else:
                peer.results_sent += 1
                peer.results.append((peer.results_sent, packet))
                connection.write(packet)
            if peer.giving_back and not peer.running:
                connection.close("gives a job back")
        elif run.replaced:
            logger.warning("%s: the result of %s comes too late and is dropped", run.link.server, run.handle)
        elif packet is not None:
            self._deliver_later(run.link, packet)
        if self._remaining_jobs is not None and self._remaining_jobs <= 0 and not self._running:
            self.finished.set()
        if self.draining:
            self._leave(run.link)
            self._check_idle()
        else:
            self._schedule()

    def expire(self, run: Run) -> None:
        """A run is over its time and cannot be stopped: report failure, and do not wait for its result.

        The server's own clock was to decide first. But gearmand forgets it when the worker goes to sleep with
        a slot free, and has one for all jobs of a connection. If it did take the job back, it knows no job to
        fail and says so; that does no harm.
        """
        if run.replaced:
            return
        run.replaced = True
        connection = run.connection
        if connection is None:
            self._orphans.pop((run.link.server, run.handle), None)
            return
        peer = _peer(connection)
        peer.running.pop(run.handle, None)
        connection.write(request(WORK_FAIL, run.handle))
        if peer.giving_back and not peer.running:
            connection.close("gives a job back")

    def report(self, run: Run, packet: bytes) -> None:
        """Progress, data or a warning of a run. Without a connection it is dropped: nobody waits for it."""
        connection = run.connection or run.link.connection
        if connection is not None and not run.replaced:
            connection.write(packet)

    def _deliver_later(self, link: Link, packet: bytes) -> None:
        connection = link.connection
        if connection is not None:
            connection.write(packet)
            return
        kept = self._kept.setdefault(link.server, deque(maxlen=KEPT_RESULTS_MAX))
        kept.append((self._loop.time(), packet))

    # Grabbing.

    def _schedule(self) -> None:
        """Hand out free slots as grabs, one per awake connection and round, each server in its turn."""
        free = self._concurrency - self._running - self._grabs
        if self._remaining_jobs is not None:
            free = min(free, self._remaining_jobs - self._grabs)
        if self.draining:
            return
        ring = self._ring
        passed = 0
        while free > 0 and passed < len(ring):
            link = ring[0]
            ring.rotate(-1)
            passed += 1
            connection = link.connection
            if connection is None:
                continue
            peer = _peer(connection)
            if peer.asleep or peer.dry or peer.giving_back or len(peer.grabs) >= peer.window:
                continue
            peer.grabs.append(peer.results_sent)
            self._grabs += 1
            connection.write(_GRAB)
            free -= 1
            passed = 0

    def _poll_later(self) -> None:
        self._poll = self._loop.call_later(self._timing.repoll_seconds, self._poll_again)

    def _poll_again(self) -> None:
        """A wake-up may have been lost: ask those that sleep."""
        for link in self._links:
            if link.connection is not None:
                peer = _peer(link.connection)
                peer.asleep = peer.dry = False
        self._schedule()
        self._poll_later()

    # Draining.

    def _leave(self, link: Link) -> None:
        """Draining: leave a server as far as the jobs that run there allow."""
        connection = link.connection
        if connection is None:
            # One that is away is waited for only while a result may have to be delivered there.
            if link.server not in self._kept and not any(run.link is link for run in self._orphans.values()):
                link.leave("the worker stops")
            return
        peer = _peer(connection)
        if peer.grabs:
            return
        if not peer.running and not any(run.link is link for run in self._orphans.values()):
            link.leave("the worker stops")
        elif not peer.reduced:
            # Servers requeue a running job when its function is taken back, so only the idle ones are. They
            # must be: a wake-up sent to a worker that does not grab is lost for others.
            peer.reduced = True
            busy = {run.task.name for run in peer.running.values()}
            for name in self._tasks:
                if name not in busy:
                    connection.write(request(CANT_DO, name))

    def _check_idle(self) -> None:
        if self.draining and not self._running and not self._grabs:
            self.idle.set()

    # Links tell.

    def new_state(self) -> object:
        return _Peer()

    def link_up(self, link: Link, connection: Connection) -> None:
        logger.info("registered with %s", link.server)
        if not self.draining:
            if self._client_id:
                connection.write(request(SET_CLIENT_ID, self._client_id))
            for task in self._tasks.values():
                connection.write(task.announcement())
        # Before any grab: a restarted gearmand counts handles anew, and then a kept result must find nothing.
        oldest = self._loop.time() - KEPT_RESULT_SECONDS
        for kept_at, packet in self._kept.pop(link.server, ()):
            if kept_at >= oldest:
                connection.write(packet)
        if not self._kept:
            self._all_delivered.set()
        self._schedule()
        if self.draining:
            self._leave(link)
        self._tells_change()

    def link_failed(self, link: Link) -> None:
        logger.debug("%s: %s", link.server, link.error)
        now = self._loop.time()
        if now >= self._complain_at and not self.connected():
            # A worker that reaches nobody must not look like one that has nothing to do.
            self._complain_at = now + COMPLAINT_SECONDS
            logger.warning("no server reached, trying on; last: %s: %s", link.server, link.error)

    def link_down(self, link: Link, connection: Connection, reason: str) -> None:
        peer = _peer(connection)
        if not self.draining and not peer.giving_back:
            logger.warning("%s lost (%s); %d of its jobs go on", link.server, reason, len(peer.running))
        self._grabs -= len(peer.grabs)
        peer.grabs.clear()
        for run in peer.running.values():
            run.connection = None
            self._orphans[link.server, run.handle] = run
        if not self.draining and not peer.giving_back:
            for _, packet in peer.results:
                self._deliver_later(link, packet)
        self._check_idle()
        self._schedule()
        self._tells_change()

    def outstanding(self, connection: Connection) -> bool:
        peer = _peer(connection)
        return bool(peer.grabs or peer.running)

    # Packets.

    def received(self, connection: Connection, packets: list[tuple[int, bytes]]) -> None:
        peer = _peer(connection)
        link = next(link for link in self._links if link.server == connection.server)
        for packet_type, body in packets:
            if packet_type == JOB_ASSIGN_UNIQ:
                self._assigned(link, connection, peer, body)
            elif packet_type == NO_JOB:
                self._answered(peer)
                peer.dry = True
                peer.window = 1
            elif packet_type == NOOP:
                peer.asleep = peer.dry = False
            elif packet_type == ERROR:
                self._error(connection, peer, body)
        if self.draining:
            self._leave(link)
            self._check_idle()
            return
        if peer.dry and not peer.grabs and not peer.asleep:
            peer.asleep = True
            connection.write(_SLEEP)
        self._schedule()

    def _answered(self, peer: _Peer) -> None:
        """A grab was answered; so what was sent before it was read."""
        if peer.grabs:
            sent = peer.grabs.popleft()
            self._grabs -= 1
            while peer.results and peer.results[0][0] <= sent:
                peer.results.popleft()

    def _assigned(self, link: Link, connection: Connection, peer: _Peer, body: bytes) -> None:
        try:
            handle, function, unique, payload = split_arguments(JOB_ASSIGN_UNIQ, body)
        except MissingArguments as error:
            connection.abort(f"it assigned a job that cannot be read: {error}")
            return
        self._answered(peer)
        peer.window = min(peer.window * 2, self._concurrency)
        task = self._tasks.get(function)
        if task is None:
            logger.error("%s gave a job of %r, which was not offered", link.server, function)
            connection.write(request(WORK_FAIL, handle))
            return
        # The same handle again: the server has taken the job back, because it took too long or the connection
        # broke; or it was restarted and counts anew. What the earlier run ends with must not end this job.
        earlier = peer.running.get(handle) or self._orphans.pop((link.server, handle), None)
        if earlier is not None:
            earlier.replaced = True
        run = Run(link, connection, handle, task)
        run.context = JobContext(
            function=function.decode("utf-8", "replace"),
            unique=unique.decode("utf-8", "replace"),
            handle=handle.decode("utf-8", "replace"),
            payload=payload,
            server=str(link.server),
            send=lambda packet: self._send(run, packet),
            stopping=lambda: self.draining,
        )
        peer.running[handle] = run
        self._running += 1
        if self._remaining_jobs is not None:
            self._remaining_jobs -= 1
        self._begin(run)

    def _error(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        code, _, text = body.partition(b"\0")
        if code == JOB_NOT_FOUND:
            logger.warning("%s no longer knows a job whose result it was sent: %s", connection.server, text)
        else:
            logger.error("%s sent an error: %r %r", connection.server, code, text)
            if code == INVALID_COMMAND and peer.grabs:
                connection.abort("it does not know how to hand out jobs (GRAB_JOB_UNIQ)")


def _peer(connection: Connection) -> _Peer:
    state = connection.state
    assert isinstance(state, _Peer)
    return state
