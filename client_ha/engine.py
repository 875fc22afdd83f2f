"""The client's engine: connections to all servers, a job to the one that leads its slot or its key prefers.

The journey of a job:

    submit -> _place -> at a server, unacknowledged -> JOB_CREATED -> WORK_COMPLETE and its like -> ended
                 ^          |                              |
                 |          | connection lost, refused     | connection lost (foreground)
                 +----------+------------------------------+
                 |
                 +-> waiting, while no server is up -> placed when one is, or NoServerAvailable

Invariants: a flight is in exactly one place: `_waiting`, a connection's `unacknowledged`, or a connection's
`running` (foreground, acknowledged); or it is resting between two rounds of refusals; or it has ended. An
unacknowledged flight has a ticket with `_deadlines`, so it ends in bounded time, whatever servers do.

All of it runs in one event loop, without a task or a future per job.
"""

import asyncio
import random
import ssl
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from client_ha.addresses import AddressRemap, Server, parse_server
from client_ha.arguments import check_seconds
from client_ha.cancelling import Cancelling, TextAnswers
from client_ha.connection import Connection
from client_ha.cron import cron_fields
from client_ha.deadlines import Deadlines
from client_ha.discovery import Discovery
from client_ha.errors import (
    ClientClosed,
    GearfleetError,
    InvalidArgument,
    JobCancelled,
    JobException,
    JobFailed,
    JobLost,
    JobTimeout,
    NoServerAvailable,
    ServerBusy,
    ServerRefused,
    TooManyJobs,
)
from client_ha.flight import (
    Flight,
    Priority,
    Refusal,
    epoch_seconds,
    function_bytes,
    payload_bytes,
    submit_packet,
    unique_bytes,
)
from client_ha.job import BaseJob, JobStatus
from client_ha.link import Link
from client_ha.log import logger
from client_ha.roster import Roster, RosterPeer
from client_ha.routing import Router, SlotRouter
from client_ha.tasks import failure_text
from client_ha.timing import JOBS_UNDER_WAY_MAX, RESUBMITS_MAX, Timing, backoff_seconds
from cluster.wire import TEXT, request
from cluster.wire.numbers import leading_number
from cluster.wire.packets import (
    ERROR,
    GET_STATUS,
    GET_STATUS_UNIQUE,
    JOB_CREATED,
    MAP_RES,
    OPTION_RES,
    STATUS_RES,
    STATUS_RES_UNIQUE,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_FAIL,
    WORK_STATUS,
    WORK_WARNING,
)

_OPTION_EXCEPTIONS: Final = b"exceptions"
# Refusals that another server, or a later try, may not repeat.
_TRY_AGAIN: Final = frozenset({b"QUEUE_ERROR", b"JOB_QUEUE_FULL", b"SHUTDOWN", b"SHUTDOWN_GRACEFUL"})
_UNKNOWN: Final = JobStatus(False, False, 0, 0)

AnyJob = TypeVar("AnyJob", bound=BaseJob)


class UniqueKeys:
    """Keys for jobs submitted without one: a UUID of this process and client, and a count."""

    __slots__ = ("_count", "_prefix")

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex
        self._count = 0

    def next(self) -> bytes:
        self._count += 1
        return f"{self._prefix}-{self._count:x}".encode()


def prepare(
    make_job: Callable[..., AnyJob],
    keys: UniqueKeys,
    function: str | bytes,
    payload: bytes | str,
    *,
    unique: str | bytes | None,
    priority: Priority,
    background: bool,
    at: datetime | float | int | None,
    cron: str | None = None,
    submit_seconds: float,
    **job_arguments: Any,
) -> AnyJob:
    """Check the arguments and make the job with its flight; nothing is sent. Raises InvalidArgument."""
    function_name = function_bytes(function)
    check_seconds("timeout", submit_seconds)
    background = background or at is not None or cron is not None  # Gearman has no others for later
    if cron is not None and unique is None:
        raise InvalidArgument(
            "cron= needs unique=: it names the schedule, so that submitting it again makes no second one"
        )
    key = keys.next() if unique is None else unique_bytes(unique)
    packet = submit_packet(
        function_name,
        key,
        payload_bytes(payload),
        priority,
        background,
        None if at is None else epoch_seconds(at),
        None if cron is None else cron_fields(cron),
    )
    job = make_job(
        function if isinstance(function, str) else function_name.decode("utf-8", "replace"),
        unique if isinstance(unique, str) else key.decode("utf-8", "replace"),
        background=background,
        **job_arguments,
    )
    joinable = unique is not None and not background
    Flight(job, function_name, key, packet, submit_seconds, joinable=joinable)
    return job


class _Peer(RosterPeer):
    """What the engine keeps per connection: which answers are awaited."""

    __slots__ = ("lines", "running", "sequence", "statuses", "unacknowledged", "uniques")

    def __init__(self) -> None:
        super().__init__()
        self.unacknowledged: deque[Flight] = deque()  # JOB_CREATED comes in the order of the submits
        self.running: dict[bytes, Flight] = {}
        self.statuses: deque[tuple[int, asyncio.Future[JobStatus]]] = deque()
        self.uniques: deque[tuple[int, asyncio.Future[JobStatus]]] = deque()
        self.lines = TextAnswers()
        self.sequence = 0


class Engine:
    """Create and use it in one event loop. `submit` never blocks; jobs hear of everything else."""

    def __init__(
        self,
        router: Router,
        timing: Timing,
        *,
        tls: ssl.SSLContext | None = None,
        discoveries: Sequence[Discovery] = (),
        address_remap: AddressRemap | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._router = router
        self._timing = timing
        self._closed = False
        self._waiting: OrderedDict[Flight, None] = OrderedDict()
        self._resting: set[Flight] = set()
        self._shared: dict[tuple[bytes, bytes], Flight] = {}
        self._under_way = 0
        self._deadlines: Deadlines[Flight] = Deadlines(self._loop, self._flight_expired)
        self._job_deadlines: Deadlines[BaseJob] = Deadlines(self._loop, self._job_expired)
        self._changed: list[asyncio.Future[None]] = []
        self._handles_awaited: list[asyncio.Future[None]] = []
        self._being_cancelled: set[Flight] = set()
        # A router of the user's own knows its servers; only ours follows a fleet's map.
        self._slots = router if isinstance(router, SlotRouter) else None
        self._roster = Roster(
            router.servers if self._slots is None else self._slots.configured,
            self,
            timing,
            tls=tls,
            discoveries=discoveries,
            follow_map=self._slots is not None,
            address_remap=address_remap,
        )
        self._links = self._roster.links
        self._cancelling = Cancelling(
            self._links,
            lambda connection: _peer(connection).lines,
            lambda: self._roster.map is not None,
            self._next_change,
            self._attempts,
        )
        if self._slots is not None:
            # It may have followed a map already, in the process that this one was forked from.
            self._slots.follow(tuple(self._links), None, {})
        self._roster.start()

    async def close(self) -> None:
        """End every job under way with ClientClosed and close the connections."""
        self._closed = True
        error = ClientClosed(
            "the client was closed while this job was under way; its server may still run it"
        )
        for link in self._links.values():
            if link.connection is not None:
                peer = _peer(link.connection)
                for flight in [*peer.unacknowledged, *peer.running.values()]:
                    self._end(flight, b"", error)
        for flight in [*self._waiting, *self._resting]:
            self._end(flight, b"", error)
        self._waiting.clear()
        self._resting.clear()
        self._deadlines.close()
        self._job_deadlines.close()
        await self._roster.close("closed by this client")
        self._tell_change()

    def filenos(self) -> list[int]:
        """The sockets' numbers, for a process that has been forked and must let go of them."""
        return [link.connection.fileno() for link in self._links.values() if link.connection is not None]

    # Submitting.

    def submit(self, job: BaseJob, timeout: float | None = None) -> None:
        """Send a job that `prepare` made. `timeout`: seconds, see HAClient.submit. It raises nothing."""
        flight: Flight = job.flight
        try:
            self._submit(job, flight, timeout)
        except Exception as error:
            # Somebody waits for this job, in another thread perhaps: it hears of it.
            logger.exception("the submitting of %r raised", job.function)
            if flight.why is None:  # not counted yet
                job._hear_end(b"", _defect(error))
            else:
                self._end(flight, b"", _defect(error))

    def _submit(self, job: BaseJob, flight: Flight, timeout: float | None) -> None:
        if self._closed:
            job._hear_end(b"", ClientClosed("the client is closed; make a new one"))
            return
        if self._under_way >= JOBS_UNDER_WAY_MAX:
            text = f"{JOBS_UNDER_WAY_MAX} jobs are under way, which is the limit of one client; wait for some"
            job._hear_end(b"", TooManyJobs(text))
            return
        if timeout is not None and not flight.background:
            job.deadline = timeout
            job.ticket = self._job_deadlines.add(self._loop.time() + timeout, job)
        if flight.key is not None:
            # Two attached submits of one key on one connection could not be told apart in the answers.
            shared = self._shared.get(flight.key)
            if shared is not None:
                shared.jobs.append(job)
                job.flight = shared
                if shared.handle is not None and shared.connection is not None:
                    job._hear_created(shared.handle.decode(), str(shared.connection.server))
                return
            self._shared[flight.key] = flight
        self._under_way += 1
        flight.why = self._why_unacknowledged
        self._set_deadline(flight)
        self._place(flight)

    def _set_deadline(self, flight: Flight) -> None:
        flight.deadline = self._loop.time() + flight.submit_seconds
        flight.ticket = self._deadlines.add(flight.deadline, flight)

    def _place(self, flight: Flight) -> None:
        """Send a flight to the best server that is up; let it wait when there is none.

        What a router of the user's own makes it raise ends this flight, and no other.
        """
        try:
            self._send(flight)
        except Exception as error:
            logger.exception("no server was found for %r", flight.function)
            self._end(flight, b"", _defect(error))

    def _send(self, flight: Flight) -> None:
        refusals = flight.refusals
        for server in self._order(flight):
            if refusals is not None and server in refusals:
                continue
            link = self._links.get(server)
            if link is None:
                continue
            connection = link.connection
            if connection is not None:
                peer = _peer(connection)
                peer.sequence += 1
                flight.sequence = peer.sequence
                flight.connection = connection
                peer.unacknowledged.append(flight)
                connection.write(flight.packet)
                return
            if link.untried and self._roster.map is None:
                # The first attempt to connect is under way; a moment's patience keeps keys at their server.
                self._waiting[flight] = None
                return
        if refusals:
            # Every server that is up said "try again": begin a new round after a pause.
            flight.rounds += 1
            pause = backoff_seconds(self._timing, flight.rounds, random.random)
            self._resting.add(flight)
            self._loop.call_later(pause, self._next_round, flight)
            return
        self._waiting[flight] = None

    def _order(self, flight: Flight) -> Sequence[Server]:
        if self._slots is not None:
            return self._slots.order(flight.function, flight.unique)
        try:
            return tuple(self._router.order(flight.function, flight.unique))
        except Exception:  # the user's code: no job waits for ever because of it
            logger.exception("the router raised; %r goes to any server", flight.function)
            return tuple(self._links)

    def _next_round(self, flight: Flight) -> None:
        self._resting.discard(flight)
        if not flight.ended:
            # Kept for the error's text, should the time be up before anyone answers again.
            flight.last_refusal = next(reversed(flight.refusals.values())) if flight.refusals else None
            flight.refusals = None
            self._place(flight)

    def _place_waiting(self) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for flight in waiting:
            self._place(flight)

    def _end(self, flight: Flight, output: bytes, error: GearfleetError | None) -> None:
        """A flight has ended: tell its jobs."""
        if flight.ended:
            return
        flight.ended = True
        self._forget(flight)
        for job in flight.jobs:
            if job.ticket >= 0:
                self._job_deadlines.discard(job.ticket, job)
            job._hear_end(output, error)
        if self._handles_awaited:
            self._tell_of_handles()

    def _forget(self, flight: Flight) -> None:
        self._under_way -= 1
        if flight.ticket >= 0:
            self._deadlines.discard(flight.ticket, flight)
            flight.ticket = -1
        if flight.key is not None:
            self._shared.pop(flight.key, None)

    # Time is up.

    def _flight_expired(self, flight: Flight) -> None:
        """Not acknowledged in time. Where it waits for JOB_CREATED it stays, to match the answer."""
        flight.ticket = -1
        self._waiting.pop(flight, None)
        self._end(flight, b"", self._unacknowledged_error(flight, flight.submit_seconds))

    def _unacknowledged_error(self, flight: Flight, seconds: float) -> GearfleetError:
        refusal = flight.last_refusal
        if flight.refusals:
            refusal = next(reversed(flight.refusals.values()))
        what = repr(flight.jobs[0].function) if flight.jobs else "a job"
        if refusal is not None:
            return ServerBusy(refusal.code, refusal.text, str(refusal.server), what)
        return NoServerAvailable(what, seconds, self._attempts(flight))

    def _job_expired(self, job: BaseJob) -> None:
        """A foreground job's own deadline passed. Others may still want the flight."""
        flight: Flight | None = job.flight
        job.ticket = -1
        if flight is None or job.finished:
            return
        if flight.handle is None:
            error = self._unacknowledged_error(flight, job.deadline)
        else:
            error = JobTimeout(
                f"{job.function!r} did not end within its {job.deadline:.3g} s (accepted by {job.server} as "
                f"{job.handle}, progress {job.numerator}/{job.denominator}). It may still run; submitting it "
                "again with the same unique key joins it"
            )
        flight.jobs.remove(job)
        if not flight.jobs:
            flight.ended = True
            self._waiting.pop(flight, None)
            self._forget(flight)
            if flight.handle is not None and flight.connection is not None:
                _peer(flight.connection).running.pop(flight.handle, None)
        job._hear_end(b"", error)
        if self._handles_awaited:
            self._tell_of_handles()

    def _attempts(self, flight: Flight | None = None) -> list[tuple[str, str]]:
        attempts = self._roster.attempts()
        for server, link in self._links.items():
            if link.connection is None:
                attempts.append((str(server), link.error))
            elif flight is not None and flight.connection is link.connection:
                attempts.append((str(server), "connected, but it did not acknowledge"))
            else:
                attempts.append((str(server), "connected"))
        return attempts

    def _why_unacknowledged(self, flight: Flight) -> tuple[tuple[str, str], ...]:
        return tuple(self._attempts(flight))

    # Links tell.

    def new_state(self) -> object:
        return _Peer()

    def link_up(self, link: Link, connection: Connection) -> None:
        # Asked for, not waited for: a server that does not know the option must not cost anything.
        self._roster.greet(link, connection, _peer(connection), _OPTION_EXCEPTIONS)
        self._place_waiting()
        self._tell_change()

    def link_failed(self, link: Link) -> None:
        logger.debug("%s: %s", link.server, link.error)
        self._roster.failed(link)
        if self._waiting:
            self._place_waiting()
        self._tell_change()

    def link_down(self, link: Link, connection: Connection, reason: str) -> None:
        peer = _peer(connection)
        flights = [*peer.running.values(), *peer.unacknowledged]
        if not self._closed and not connection.closing:
            logger.warning("%s lost (%s); %d jobs go elsewhere", link.server, reason, len(flights))
        self._roster.lost(link, connection)
        for flight in flights:
            if flight.ended:
                continue
            if flight.handle is not None:
                flight.resubmits += 1
                if flight.resubmits > RESUBMITS_MAX:
                    text = (
                        f"{flight.jobs[0].function!r} was submitted {flight.resubmits} times and each time "
                        f"its server went away, lastly {link.server} ({reason}); look at the servers' logs"
                    )
                    self._end(flight, b"", JobLost(text))
                    continue
                flight.handle = None
                for job in flight.jobs:
                    job.handle = None
                self._set_deadline(flight)
            flight.connection = None
            self._place(flight)
        peer.lines.lost(reason)
        for _, future in [*peer.statuses, *peer.uniques]:
            if not future.done():
                future.set_exception(ConnectionResetError(reason))
        self._tell_change()

    def link_added(self, link: Link) -> None:
        pass

    def link_removed(self, link: Link) -> None:
        if self._slots is not None:
            self._slots.follow(tuple(self._links), self._roster.map, self._roster.reached)

    def map_changed(self) -> None:
        """What is under way is not disturbed; what waits may go now."""
        if self._slots is not None:
            self._slots.follow(tuple(self._links), self._roster.map, self._roster.reached)
            self._place_waiting()

    def outstanding(self, connection: Connection) -> bool:
        peer = _peer(connection)
        return bool(peer.unacknowledged or peer.running or peer.statuses or peer.uniques or peer.lines)

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    # Packets.

    def received(self, connection: Connection, packets: list[tuple[int, bytes]]) -> None:
        peer = _peer(connection)
        for packet_type, body in packets:
            if packet_type == JOB_CREATED:
                self._job_created(connection, peer, body)
            elif packet_type == WORK_COMPLETE:
                handle, _, output = body.partition(b"\0")
                flight = peer.running.pop(handle, None)
                if flight is not None:
                    self._end(flight, output, None)
            else:
                method = _METHODS.get(packet_type)
                if method is not None:
                    method(self, connection, peer, body)
        link = peer.link
        if link is not None and link.retired:
            self._roster.sweep(link)

    def _job_created(self, connection: Connection, peer: _Peer, handle: bytes) -> None:
        if not peer.unacknowledged:
            connection.abort("it acknowledged a job that nobody submitted")
            return
        flight = peer.unacknowledged.popleft()
        if flight.ended:
            return
        name = handle.decode("utf-8", "replace")
        server = str(connection.server)
        for job in flight.jobs:
            job._hear_created(name, server)
        if flight.background:
            self._end(flight, b"", None)
            return
        self._deadlines.discard(flight.ticket, flight)
        flight.ticket = -1
        flight.handle = handle
        flight.refusals = flight.last_refusal = None
        peer.running[handle] = flight
        if self._handles_awaited:
            self._tell_of_handles()

    def _work_data(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        handle, _, data = body.partition(b"\0")
        flight = peer.running.get(handle)
        for job in flight.jobs if flight is not None else ():
            job._hear_data(data)

    def _work_warning(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        handle, _, data = body.partition(b"\0")
        flight = peer.running.get(handle)
        if flight is None:
            return
        why_failed = failure_text(data)
        if why_failed:
            flight.why_failed = why_failed  # WORK_FAIL comes next
            return
        for job in flight.jobs:
            job._hear_warning(data)

    def _work_status(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        handle, _, rest = body.partition(b"\0")
        numerator, _, denominator = rest.partition(b"\0")
        flight = peer.running.get(handle)
        for job in flight.jobs if flight is not None else ():
            job._hear_status(leading_number(numerator), leading_number(denominator))

    def _work_fail(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        flight = peer.running.pop(body.rstrip(b"\0"), None)
        if flight is None:
            return
        if flight.why_failed:
            self._end(flight, b"", JobFailed(flight.why_failed))
        elif flight in self._being_cancelled:
            self._end(flight, b"", _cancelled(flight))
        else:
            self._end(flight, b"", JobFailed())

    def _work_exception(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        handle, _, payload = body.partition(b"\0")
        flight = peer.running.pop(handle, None)
        if flight is not None:
            self._end(flight, b"", JobException(payload, repr(flight.jobs[0].function)))

    def _error(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        code, _, text = body.partition(b"\0")
        if self._roster.refused(connection, peer, code):
            return
        # The protocol does not say what an error belongs to: answers keep the order of the questions.
        oldest: list[tuple[int, deque[Any]]] = []
        if peer.unacknowledged:
            oldest.append((peer.unacknowledged[0].sequence, peer.unacknowledged))
        oldest.extend((queue[0][0], queue) for queue in (peer.statuses, peer.uniques) if queue)
        if not oldest:
            logger.warning("%s sent an error that answers nothing: %r %r", connection.server, code, text)
            return
        _, queue = min(oldest, key=lambda entry: entry[0])
        code_text, message = code.decode("utf-8", "replace"), text.decode("utf-8", "replace")
        if queue is not peer.unacknowledged:
            _, future = queue.popleft()
            if not future.done():
                future.set_exception(
                    ServerRefused(code_text, message, str(connection.server), "a question for a job's status")
                )
            return
        flight = peer.unacknowledged.popleft()
        if flight.ended:
            return
        flight.connection = None
        if code in _TRY_AGAIN:
            if flight.refusals is None:
                flight.refusals = {}
            flight.refusals[connection.server] = Refusal(connection.server, code_text, message)
            self._place(flight)
            return
        what = repr(flight.jobs[0].function)
        self._end(flight, b"", ServerRefused(code_text, message, str(connection.server), what))

    def _option_res(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        self._roster.granted(connection, peer, body)

    def _map_res(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        self._roster.learn(connection, peer, body)

    def _status_res(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        parts = body.split(b"\0")
        if peer.statuses and len(parts) == 5:
            _, future = peer.statuses.popleft()
            if not future.done():
                numbers = [leading_number(part) for part in parts[1:]]
                future.set_result(JobStatus(bool(numbers[0]), bool(numbers[1]), numbers[2], numbers[3]))

    def _status_res_unique(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        # PROTOCOL calls the first argument a handle; gearmand sends the unique key. The order tells anyway.
        parts = body.split(b"\0")
        if peer.uniques and len(parts) == 6:
            _, future = peer.uniques.popleft()
            if not future.done():
                numbers = [leading_number(part) for part in parts[1:]]
                future.set_result(JobStatus(bool(numbers[0]), bool(numbers[1]), *numbers[2:]))

    # Cancelling: see cancelling.py.

    async def cancel(self, handle: str, server: str | None, seconds: float) -> bool:
        """See HAClient.cancel."""
        check_seconds("timeout", seconds, or_none=False)
        check_handle(handle)
        issuer = None if server is None else parse_server(server)
        own = [
            flight
            for one, link in self._links.items()
            if link.connection is not None and issuer in (None, one)
            if (flight := _peer(link.connection).running.get(handle.encode())) is not None
        ]
        asking = self._cancelling.cancel(handle, issuer, seconds)
        return await self._cancel_own(own, asking, certain=issuer is not None)

    async def cancel_unique(self, function: bytes, unique: bytes, seconds: float) -> bool:
        """See HAClient.cancel_unique."""
        check_seconds("timeout", seconds, or_none=False)
        own = [
            flight
            for link in self._links.values()
            if link.connection is not None
            for flight in _peer(link.connection).running.values()
            if flight.function == function and flight.unique == unique
        ]
        return await self._cancel_own(
            own, self._cancelling.cancel_unique(function, unique, seconds), certain=False
        )

    async def _cancel_own(self, flights: list[Flight], asking: Awaitable[bool], *, certain: bool) -> bool:
        """Cancel, and tell those of this client who wait. gearmand does not tell them.

        certain     the server that took it away is the one that these flights are at; without a fleet
                    several servers may use the same handle
        """
        self._being_cancelled.update(flights)
        try:
            taken = await asking
        finally:
            self._being_cancelled.difference_update(flights)
        if taken and (certain or self._roster.map is not None or len(self._links) == 1):
            for flight in flights:
                if not flight.ended and flight.handle is not None and flight.connection is not None:
                    _peer(flight.connection).running.pop(flight.handle, None)
                    self._end(flight, b"", _cancelled(flight))
        return taken

    async def acknowledged(self, job: BaseJob, seconds: float) -> float:
        """Wait until a job has a handle; return what is left of the time. Raises what ended it before."""
        check_seconds("timeout", seconds, or_none=False)
        deadline = self._loop.time() + seconds
        while job.handle is None and job.flight is not None:
            change: asyncio.Future[None] = self._loop.create_future()
            self._handles_awaited.append(change)
            try:
                async with asyncio.timeout_at(deadline):
                    await change
            except TimeoutError:
                raise NoServerAvailable(repr(job.function), seconds, self._attempts(job.flight)) from None
        if job.handle is None:
            job.raise_if_unacknowledged()
        return max(0.0, deadline - self._loop.time())

    def _tell_of_handles(self) -> None:
        awaited, self._handles_awaited = self._handles_awaited, []
        for change in awaited:
            if not change.done():
                change.set_result(None)

    def _next_change(self) -> asyncio.Future[None]:
        """Done when a server comes or goes."""
        if self._closed:
            raise ClientClosed("the client is closed; make a new one")
        changed = self._loop.create_future()
        self._changed.append(changed)
        return changed

    def _text(self, connection: Connection, peer: _Peer, body: bytes) -> None:
        peer.lines.take(body)

    # Status.

    async def status(self, handle: str, server: str | None, seconds: float) -> JobStatus:
        """Ask the server that issued the handle, then the others. See HAClient.status."""
        check_seconds("timeout", seconds, or_none=False)
        check_handle(handle)
        question = request(GET_STATUS, handle.encode())
        issuer = None if server is None else parse_server(server)
        first = [] if issuer is None else [issuer]
        return await self._ask(
            lambda: [first, [s for s in self._links if s != issuer]], "statuses", question, seconds
        )

    async def status_unique(self, unique: bytes, seconds: float) -> JobStatus:
        """Ask all servers. See HAClient.status_unique."""
        check_seconds("timeout", seconds, or_none=False)
        question = request(GET_STATUS_UNIQUE, unique)
        return await self._ask(lambda: [list(self._links)], "uniques", question, seconds)

    async def _ask(
        self, groups: Callable[[], list[list[Server]]], queue: str, question: bytes, seconds: float
    ) -> JobStatus:
        """Ask group after group until one server knows the job; wait for servers while none answers."""
        deadline = self._loop.time() + seconds
        while True:
            changed = self._next_change()
            refusal: ServerRefused | None = None
            answered = False
            for group in groups():
                answers = []
                for server in group:
                    asked = self._links.get(server)  # a node may have left meanwhile
                    connection = None if asked is None else asked.connection
                    if connection is not None:
                        peer = _peer(connection)
                        peer.sequence += 1
                        answer: asyncio.Future[JobStatus] = self._loop.create_future()
                        getattr(peer, queue).append((peer.sequence, answer))
                        connection.write(question)
                        answers.append(answer)
                if not answers:
                    continue
                await asyncio.wait(answers, timeout=max(0.0, deadline - self._loop.time()))
                best = _UNKNOWN
                for answer in answers:
                    if not answer.done():
                        answer.cancel()
                        continue
                    failure = answer.exception()
                    if isinstance(failure, ServerRefused):
                        refusal = failure
                    elif failure is None:
                        answered = True
                        found = answer.result()
                        if (found.known, found.running) > (best.known, best.running):
                            best = found
                if best.known:
                    return best
            if answered:
                return _UNKNOWN
            if refusal is not None:
                raise refusal
            try:
                async with asyncio.timeout_at(deadline):
                    await changed
            except TimeoutError:
                raise NoServerAvailable("a question for a job's status", seconds, self._attempts()) from None


def _defect(error: Exception) -> GearfleetError:
    """What a job ends with when the engine itself, or the user's router, raised."""
    ended = GearfleetError(f"the client failed on this job: {type(error).__name__}: {error}; see its log")
    ended.__cause__ = error
    return ended


def _cancelled(flight: Flight) -> JobCancelled:
    what = repr(flight.jobs[0].function) if flight.jobs else "the job"
    return JobCancelled(f"{what} was cancelled by this client's own cancel()")


def check_handle(handle: str) -> None:
    """Raises InvalidArgument."""
    if not handle or len(handle.encode()) > 255 or "\0" in handle:
        raise InvalidArgument(f"{handle!r} is no job handle")


def _peer(connection: Connection) -> _Peer:
    state = connection.state
    assert isinstance(state, _Peer)
    return state


_METHODS: Final[dict[int, Callable[[Engine, Connection, _Peer, bytes], None]]] = {
    WORK_DATA: Engine._work_data,
    WORK_WARNING: Engine._work_warning,
    WORK_STATUS: Engine._work_status,
    WORK_FAIL: Engine._work_fail,
    WORK_EXCEPTION: Engine._work_exception,
    ERROR: Engine._error,
    OPTION_RES: Engine._option_res,
    MAP_RES: Engine._map_res,
    STATUS_RES: Engine._status_res,
    STATUS_RES_UNIQUE: Engine._status_res_unique,
    TEXT: Engine._text,
}
