"""The worker's engine: registered on all servers, asleep on all, grabbing where work is.

Per connection:

    connected -> awake --GRAB--> JOB_ASSIGN -> awake (a job runs; more may be there)
                   ^       \\--> NO_JOB ----> asleep (PRE_SLEEP)
                   +---- NOOP, or time to poll again ----+

Invariants: running jobs + grabs awaiting their answer <= concurrency, so no job is held that no thread is
free for. A job belongs to the server that gave it and to its handle, not to the connection: when that breaks,
the job goes on, and its result is delivered by handle.

Results have no acknowledgement in this protocol. But servers answer in order: the answer to a GRAB proves
that the results sent before it were read. What is not proven when a connection breaks is sent again.

To a stock server: on the next connection to it, before anything else is asked there. One that has forgotten
the job answers JOB_NOT_FOUND, which is logged.

In a fleet the job may have gone to another node, so a run without its connection is late, and claimed:

    connection lost -> late --CLAIM_JOB to its slot's primary--> kept: that connection's, as if given there
                        ^                                   \\-> gone: its result is dropped, and counted
                        +---- map changed, or a second later <- elsewhere

The result, should it be there already, waits for "kept" too: so it goes to one node, and never to two. Runs
of a node that the map calls down are claimed while its connection still stands; first come, first served.
When the result comes first, it is sent there, and to who grants the claim that is still open: that one waits.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from client_ha.addresses import AddressRemap, Server
from client_ha.connection import Connection
from client_ha.context import JobContext
from client_ha.discovery import Discovery
from client_ha.link import Link
from client_ha.log import logger
from client_ha.roster import Roster, RosterPeer
from client_ha.slot_map import place_of_handle
from client_ha.tasks import Task, gives_back
from client_ha.timing import (
    CLAIM_SECONDS,
    COMPLAINT_SECONDS,
    KEPT_RESULT_SECONDS,
    KEPT_RESULTS_MAX,
    LAST_RESULTS_SECONDS,
    RECENT_RESULT_BYTES_MAX,
    RECENT_RESULT_SECONDS,
    RECENT_RESULTS_MAX,
    Timing,
)
from client_ha.worker_log import tell_end
from cluster.wire import MissingArguments, request, split_arguments
from cluster.wire.packets import (
    CANT_DO,
    CLAIM_GONE,
    CLAIM_JOB,
    CLAIM_KEPT,
    CLAIM_RES,
    ERROR,
    GRAB_JOB_UNIQ,
    INVALID_COMMAND,
    JOB_ASSIGN_UNIQ,
    JOB_NOT_FOUND,
    MAP_RES,
    NO_JOB,
    NOOP,
    OPTION_GIVE_BACK,
    OPTION_RES,
    PRE_SLEEP,
    SET_CLIENT_ID,
    WORK_FAIL,
)

_GRAB: Final = request(GRAB_JOB_UNIQ)
_SLEEP: Final = request(PRE_SLEEP)


@dataclass(slots=True)
class WorkerStats:
    """What a worker has done since it was made."""

    jobs: int = 0  # that ended, well or not
    moved: int = 0  # that another connection took on, after the one they came on was lost
    dropped: int = 0  # results that nobody wanted any more, or that could not be delivered


class Run:
    """A job that this worker runs, or has run and not delivered."""

    __slots__ = (
        "asked",
        "begun_at",
        "connection",
        "context",
        "handle",
        "late_key",
        "link",
        "lost_at",
        "node",
        "packet",
        "replaced",
        "sent",
        "task",
        "timer",
    )

    def __init__(
        self, link: Link, connection: Connection, handle: bytes, task: Task[Any], begun_at: float
    ) -> None:
        self.link = link
        self.connection: Connection | None = connection  # None once it broke
        self.handle = handle
        self.task = task
        self.context: JobContext
        self.replaced = False  # over its time, or the handle was given out again: its result is not wanted
        self.timer: asyncio.TimerHandle | None = None
        # When it is late: see the top.
        self.late_key: tuple[Server | None, bytes] | None = None
        self.node: str | None = None  # who gave it
        self.lost_at = 0.0
        self.asked: set[Connection] = set()  # where a claim awaits its answer
        self.packet: bytes | None = None  # the result, once there is one
        self.sent = False  # the result was sent once, and perhaps not heeded
        self.begun_at = begun_at


class _Peer(RosterPeer):
    """What the engine keeps per connection."""

    __slots__ = (
        "asleep",
        "closed_for_grabs",
        "dry",
        "giving_back",
        "grabs",
        "recent",
        "reduced",
        "results",
        "results_sent",
        "running",
        "window",
    )

    def __init__(self) -> None:
        super().__init__()
        self.asleep = False
        self.closed_for_grabs = False  # the node is leaving its fleet
        self.dry = False  # NO_JOB was heard since the last NOOP
        self.window = 1  # grabs at a time: grows while jobs come
        self.grabs: deque[int] = deque()  # awaiting an answer; each with `results_sent` when it was sent
        self.running: dict[bytes, Run] = {}
        # Sent, not yet proven read: number, packet, run.
        self.results: deque[tuple[int, bytes, Run]] = deque(maxlen=KEPT_RESULTS_MAX)
        # In a fleet: read, perhaps not yet safe with the others: when, packet, run.
        self.recent: deque[tuple[float, bytes, Run]] = deque(maxlen=RECENT_RESULTS_MAX)
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
        discoveries: Sequence[Discovery] = (),
        address_remap: AddressRemap | None = None,
        stats: WorkerStats | None = None,
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
        self._closed = False
        self._complain_at = 0.0  # when it may next be said that no server is reached
        self._orphans: dict[tuple[Server, bytes], Run] = {}  # their connection broke while they ran
        self._kept: dict[Server, deque[tuple[float, bytes]]] = {}
        # Fleet: jobs, or results, whose connection was lost. The key has a server where that stands alone.
        self._late: dict[tuple[Server | None, bytes], Run] = {}
        self._gone: dict[bytes, Run] = {}  # run on, though the fleet has said that they are not wanted
        self._chase: asyncio.TimerHandle | None = None
        self._all_delivered = asyncio.Event()
        self.stats = WorkerStats() if stats is None else stats
        self.draining = False
        self.idle = asyncio.Event()  # draining, and nothing runs or is being grabbed
        self.finished = asyncio.Event()  # max_jobs were done
        self._ring: deque[Link] = deque()
        self._roster = Roster(
            servers, self, timing, tls=tls, discoveries=discoveries, address_remap=address_remap
        )
        self._poll: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._roster.start()
        self._poll_later()

    @property
    def _links(self) -> list[Link]:
        return list(self._roster.links.values())

    def connected(self) -> list[Server]:
        """The servers that it is registered with now."""
        return [link.server for link in self._links if link.connection is not None]

    def drain(self) -> None:
        """Grab no more; `idle` is set when what runs has ended."""
        if not self.draining:
            self.draining = True
            self._leave_all()
            self._check_idle()

    async def close(self) -> None:
        """Deliver what is kept if servers come back within a moment, then close; what runs is given up."""
        self.drain()
        self._check_delivered()
        if not self._all_delivered.is_set():
            late = any(run.packet is not None for run in self._late.values())
            try:
                async with asyncio.timeout(LAST_RESULTS_SECONDS if late else self._timing.connect_seconds):
                    await self._all_delivered.wait()
            except TimeoutError:
                self._give_up_results()
        for timer in (self._poll, self._chase):
            if timer is not None:
                timer.cancel()
        self._closed = True
        await self._roster.close("the worker stops")

    def _give_up_results(self) -> None:
        for server, results in self._kept.items():
            self.stats.dropped += len(results)
            logger.warning("%s is away; %d results could not be delivered", server, len(results))
        late = [run for run in self._late.values() if run.packet is not None and not run.sent]
        if late:
            self.stats.dropped += len(late)
            logger.warning("%d results could not be delivered: no node has taken over their jobs", len(late))

    def _check_delivered(self) -> None:
        if self._kept or any(run.packet is not None for run in self._late.values()):
            self._all_delivered.clear()
        else:
            self._all_delivered.set()

    def finish(self, run: Run, packet: bytes) -> None:
        """A run has ended with this result, or gives its job back."""
        self._running -= 1
        self.stats.jobs += 1
        tell_end(run.task.name, run.handle, packet, self._loop.time() - run.begun_at)
        del run.context  # it refers to the run: no garbage cycle per job
        if run.timer is not None:
            run.timer.cancel()
        connection = run.connection
        self._gone.pop(run.handle, None)
        late = run.late_key is not None
        if late and (run.replaced or (connection is not None and not run.asked)):
            self._not_late(run)  # its server is there after all; or there is nothing to deliver
            late = False
        if run.replaced:
            self.stats.dropped += 1
            logger.warning("%s: the result of %s comes too late and is dropped", run.link.server, run.handle)
        elif connection is not None:
            peer = _peer(connection)
            peer.running.pop(run.handle, None)
            self._send_result(connection, peer, run, packet)
            if late:
                # Another node is being asked. If it grants the job, it wants the result of who asked.
                run.packet, run.sent = packet, True
            if peer.giving_back and not peer.running:
                connection.close("gives a job back")
        elif late:
            run.packet = packet
            self._claim(run)
        else:
            self._orphans.pop((run.link.server, run.handle), None)
            if not gives_back(packet):  # else the server has the job back already
                self._deliver_later(run.link, packet)
        if self._remaining_jobs is not None and self._remaining_jobs <= 0 and not self._running:
            self.finished.set()
        if self.draining:
            self._leave_all()
            self._check_idle()
        else:
            self._schedule()

    def _send_result(self, connection: Connection, peer: _Peer, run: Run, packet: bytes) -> None:
        if gives_back(packet):
            # Not repeated when the connection is lost: then the server has the job back anyhow.
            if peer.heeds_give_back:
                connection.write(packet)
            else:
                peer.giving_back = True  # closing the connection says the same, of all its jobs
            return
        peer.results_sent += 1
        peer.results.append((peer.results_sent, packet, run))
        connection.write(packet)

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
        self._not_late(run)
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
        connection = run.connection
        if connection is None and run.late_key is None:
            connection = run.link.connection
        if connection is not None and not run.replaced:
            connection.write(packet)

    def _deliver_later(self, link: Link, packet: bytes) -> None:
        connection = link.connection
        if connection is not None:
            connection.write(packet)
            return
        kept = self._kept.setdefault(link.server, deque(maxlen=KEPT_RESULTS_MAX))
        kept.append((self._loop.time(), packet))

    # Late: the fleet decides who gets the result.

    def _make_late(self, run: Run, connection: Connection, packet: bytes | None) -> None:
        peer = _peer(connection)
        run.node = peer.node
        run.lost_at = self._loop.time()
        run.packet = packet
        run.asked.clear()
        # A node that stands alone counts its own jobs; in a fleet a handle is one job's for ever.
        # It may be lost before it has sent its map.
        in_fleet = peer.in_fleet or (self._roster.map is not None and not peer.alone)
        run.late_key = (None if in_fleet else connection.server, run.handle)
        self._late[run.late_key] = run
        if len(self._late) > KEPT_RESULTS_MAX:
            oldest = next((other for other in self._late.values() if other.packet is not None), None)
            if oldest is not None:
                self._drop_late(oldest, f"more than {KEPT_RESULTS_MAX} are kept")

    def _not_late(self, run: Run) -> None:
        if run.late_key is not None:
            self._late.pop(run.late_key, None)
            run.late_key = None
            run.asked.clear()

    def _drop_late(self, run: Run, why: str) -> None:
        """Nobody wants the result, now or when it comes."""
        self._not_late(run)
        if run.packet is None:
            logger.warning("%s goes on, but its result will be dropped: %s", run.context, why)
            run.replaced = True
            self._gone[run.handle] = run
        elif not run.sent:
            self.stats.dropped += 1
            logger.warning("%s: the result of %s is dropped: %s", run.link.server, run.handle, why)
        self._check_delivered()

    def _claim(self, run: Run) -> None:
        """Ask who may know what becomes of it, unless that is being asked."""
        if run.asked:
            return
        packet = request(CLAIM_JOB, run.handle)
        for connection in self._whom_to_ask(run):
            run.asked.add(connection)
            connection.write(packet)
        if self._chase is None:
            self._chase = self._loop.call_later(CLAIM_SECONDS, self._chase_late)

    def _whom_to_ask(self, run: Run) -> list[Connection]:
        assert run.late_key is not None
        alone, handle = run.late_key
        links = self._roster.links
        if alone is not None:
            link = links.get(alone)
            connection = None if link is None else link.connection
            return [connection] if connection is not None and _peer(connection).granted else []
        fleet = [
            link.connection
            for link in links.values()
            if link.connection is not None
            and link.connection is not run.connection
            and _peer(link.connection).in_fleet
        ]
        slot_map, place = self._roster.map, place_of_handle(handle)
        if slot_map is None or place is None:
            return fleet
        leads = slot_map.primary(place.slot)
        if place.foreground and self._loop.time() - run.lost_at < CLAIM_SECONDS:
            # Foreground jobs live on the node that took them, as long as it lives. Asked first, not always:
            # an epoch that begins with f reads like one, and its primary knows.
            giver = slot_map.node(run.node)
            leads = giver if giver is not None and giver.state != "down" else leads
        if leads is not None:
            for connection in fleet:
                if _peer(connection).node == leads.name:
                    return [connection]
            if self._loop.time() - run.lost_at < CLAIM_SECONDS:
                return []  # it comes back, or the map changes
        return fleet

    def _claim_all(self) -> None:
        for run in list(self._late.values()):
            self._claim(run)

    def _chase_late(self) -> None:
        """No map, and no answer, came that decides it: ask again."""
        self._chase = None
        oldest = self._loop.time() - KEPT_RESULT_SECONDS
        for run in list(self._late.values()):
            if run.packet is not None and run.lost_at < oldest:
                self._drop_late(run, f"no node took it within {KEPT_RESULT_SECONDS:.3g} s")
            else:
                self._claim(run)
        if self._late and self._chase is None:
            self._chase = self._loop.call_later(CLAIM_SECONDS, self._chase_late)

    def _verdict(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        """CLAIM_RES."""
        handle, _, verdict = body.partition(b"\0")
        run = self._late.get((None, handle)) or self._late.get((connection.server, handle))
        if run is None or connection not in run.asked:
            return  # decided meanwhile
        if verdict == CLAIM_KEPT:
            self._take_on(run, connection, peer)
        elif verdict != CLAIM_GONE:
            run.asked.discard(connection)
        elif run.connection is not None:
            self._not_late(run)  # the node that gave it is still there, and has the last word
        else:
            self._drop_late(run, "the job was given to another worker, or is finished")

    def _take_on(self, run: Run, connection: Connection, peer: _Peer) -> None:
        """The job is this connection's now, as if it had been given on it."""
        self._not_late(run)
        packet, run.packet = run.packet, None
        if run.connection is connection:
            return
        if run.connection is not None:
            _peer(run.connection).running.pop(run.handle, None)
        assert peer.link is not None
        run.link = peer.link
        if packet is None:
            run.connection = connection
            peer.running[run.handle] = run
            self.stats.moved += 1
        else:
            if not run.sent:
                self.stats.moved += 1
            self._send_result(connection, peer, run, packet)
            if peer.giving_back and not peer.running:
                connection.close("gives a job back")
        self._check_delivered()

    def _claims_unknown(self, connection: Connection) -> None:
        """A node that has no claims: as with stock servers, there is only the one that gave the job."""
        for run in list(self._late.values()):
            run.asked.discard(connection)
            if run.late_key == (connection.server, run.handle):
                self._not_late(run)
                if run.packet is None:
                    self._orphans[connection.server, run.handle] = run
                elif not gives_back(run.packet):
                    self._deliver_later(run.link, run.packet)

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
            if peer.closed_for_grabs or link.retired:
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

    def _leave_all(self) -> None:
        for link in self._links:
            self._leave(link)

    def _fleet_busy(self) -> bool:
        """Does a job of a fleet run, or a result wait? Then every node may be needed."""
        return bool(self._late) or any(
            peer.granted and peer.running
            for peer in (_peer(link.connection) for link in self._links if link.connection is not None)
        )

    def _leave(self, link: Link) -> None:
        """Draining: leave a server as far as the jobs that run there allow."""
        connection = link.connection
        if connection is None:
            # One that is away is waited for only while a result may have to be delivered there.
            if (
                link.server not in self._kept
                and not any(run.link is link for run in self._orphans.values())
                and not self._fleet_busy()
            ):
                link.leave("the worker stops")
            return
        peer = _peer(connection)
        if peer.grabs:
            return
        needed = peer.running or any(run.link is link for run in self._orphans.values())
        if not needed and not (peer.granted and self._fleet_busy()):
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

    def link_added(self, link: Link) -> None:
        self._ring.append(link)

    def link_removed(self, link: Link) -> None:
        if link in self._ring:
            self._ring.remove(link)

    def map_changed(self) -> None:
        slot_map = self._roster.map
        for link in self._links:
            if link.connection is None:
                continue
            peer = _peer(link.connection)
            node = None if slot_map is None or not peer.in_fleet else slot_map.node(peer.node)
            peer.closed_for_grabs = node is not None and node.state == "draining"
            if node is not None and node.state == "down":
                for run in peer.running.values():
                    if run.late_key is None and not run.replaced:
                        self._make_late(run, link.connection, None)
        self._claim_all()
        self._schedule()

    def link_up(self, link: Link, connection: Connection) -> None:
        logger.info("registered with %s", link.server)
        self._roster.greet(link, connection, _peer(connection), OPTION_GIVE_BACK)
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
        self._check_delivered()
        self._schedule()
        if self.draining:
            self._leave(link)
        self._tells_change()

    def link_failed(self, link: Link) -> None:
        logger.debug("%s: %s", link.server, link.error)
        self._roster.failed(link)
        now = self._loop.time()
        if now >= self._complain_at and not self.connected():
            # A worker that reaches nobody must not look like one that has nothing to do.
            self._complain_at = now + COMPLAINT_SECONDS
            logger.warning("no server reached, trying on; last: %s: %s", link.server, link.error)

    def link_down(self, link: Link, connection: Connection, reason: str) -> None:
        peer = _peer(connection)
        if not self.draining and not peer.giving_back and not connection.closing:
            logger.warning("%s lost (%s); %d of its jobs go on", link.server, reason, len(peer.running))
        self._grabs -= len(peer.grabs)
        peer.grabs.clear()
        for run in peer.running.values():
            run.connection = None
            if not peer.granted:
                self._orphans[link.server, run.handle] = run
            elif run.late_key is None:
                self._make_late(run, connection, None)
        peer.running.clear()
        if peer.granted and not connection.closing and not self._closed:
            oldest = self._loop.time() - RECENT_RESULT_SECONDS
            recent = [(packet, run) for at, packet, run in peer.recent if at >= oldest]
            for packet, run in [*recent, *((packet, run) for _, packet, run in peer.results)]:
                run.sent = True
                run.connection = None
                self._make_late(run, connection, packet)
        elif not self.draining and not peer.giving_back:
            for _, packet, _ in peer.results:
                self._deliver_later(link, packet)
        for run in self._late.values():
            run.asked.discard(connection)
        self._roster.lost(link, connection)
        self._claim_all()
        self._check_delivered()
        self._check_idle()
        self._schedule()
        self._tells_change()

    def outstanding(self, connection: Connection) -> bool:
        peer = _peer(connection)
        return bool(peer.grabs or peer.running)

    # Packets.

    def received(self, connection: Connection, packets: list[tuple[int, bytes]]) -> None:
        peer = _peer(connection)
        link = peer.link
        assert link is not None
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
            elif packet_type == CLAIM_RES:
                self._verdict(connection, peer, body)
            elif packet_type == MAP_RES:
                self._roster.learn(connection, peer, body)
                self.map_changed()  # to this connection, at least, it is new
            elif packet_type == OPTION_RES:
                self._roster.granted(connection, peer, body)
                if peer.granted:
                    self._claim_all()
        if self.draining:
            self._leave_all()
            self._check_idle()
            return
        if link.retired:
            self._roster.sweep(link)
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
                _, packet, run = peer.results.popleft()
                if peer.granted and len(packet) <= RECENT_RESULT_BYTES_MAX:
                    peer.recent.append((self._loop.time(), packet, run))

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
        # In a fleet a handle is one job's for ever: what a lost connection gave is given again, and goes on.
        late = self._late.get((None, handle)) or self._gone.pop(handle, None)
        if late is not None and peer.in_fleet:
            late.replaced = False
            self._take_on(late, connection, peer)
            return
        earlier = (
            peer.running.get(handle)
            or self._orphans.pop((link.server, handle), None)
            or self._late.get((link.server, handle))
        )
        if earlier is not None:
            earlier.replaced = True
            self._not_late(earlier)
        run = Run(link, connection, handle, task, self._loop.time())
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
        if self._roster.refused(connection, peer, code):
            return
        if code == JOB_NOT_FOUND:
            logger.warning("%s no longer knows a job whose result it was sent: %s", connection.server, text)
        else:
            logger.error("%s sent an error: %r %r", connection.server, code, text)
            if code == INVALID_COMMAND and peer.granted:
                self._claims_unknown(connection)
            elif code == INVALID_COMMAND and peer.grabs:
                connection.abort("it does not know how to hand out jobs (GRAB_JOB_UNIQ)")


def _peer(connection: Connection) -> _Peer:
    state = connection.state
    assert isinstance(state, _Peer)
    return state
