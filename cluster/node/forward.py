"""What a node asks other nodes for its clients: a Gearman conversation inside the peer stream.

Stock clients cannot be redirected, so the node that they talk to speaks for them: it sends their packets to
the slot's primary, and gives the answers out in the order of the requests. To the other node it is one more
connection, whose answers wait for their groups like any other's.

    client ──▶ ask() ──▶ asked of the slot's primary ──▶ answered ──▶ client, in its place
                 │               │ stream lost, or not the primary
                 └──▶ parked ◀───┘      nobody leads the slot now; asked again when the map changes

A request is in exactly one place: some node's `asked`, `parked`, or answered. What was asked of a node that
went away is asked again of its successor, under the same unique key: background jobs coalesce there.

A foreground job at another node is relayed: what is said of its handle goes on to every client that waits
for it; when its node dies it is submitted again, and the clients keep the handle that they were told.

A worker's result for a job that is led elsewhere is passed on. While a worker here runs a job whose slot has
gone to another node, that node is told (CLAIM_JOB), so that the job is not run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, Final

from cluster.jobs import Job
from cluster.node.connection import Connection, Held
from cluster.node.context import Context, slot_of_handle
from cluster.wire import Decoder, error, response
from cluster.wire import packets as wire

if TYPE_CHECKING:
    from cluster.node.fleet import Fleet

# Only between nodes. A submit of a client that asked for its jobs to be remembered has REMEMBERED added.
REMEMBERED_SUBMIT: Final = 2000
DETACH: Final = 3001  # handle: nobody here waits for it any more
RELEASE: Final = 3002  # handle: the worker that had it is gone. With NUL and milliseconds: it gave it back
CANCEL: Final = 3003  # handle; answered by CANCEL_RES with the text for the operator
CANCEL_RES: Final = 3004
MOVED: Final = 3005  # handle: who waits for this job has to submit again, its slot goes to another node
NOT_PRIMARY: Final = b"NOT_PRIMARY"

PARKED_REQUESTS_MAX: Final = 100_000
PARKED_BYTES_MAX: Final = 64 * 1024 * 1024
ASKED_BYTES_MAX: Final = 64 * 1024 * 1024  # of one node, unanswered; beyond it clients are refused
NODE_PACKET_BYTES_MAX: Final = 65 * 1024 * 1024  # a fleet's nodes take payloads of at most 64 MiB
FORWARD_BYTES_MAX: Final = 8 * 1024 * 1024  # of requests, and of replies, in one frame
RETRY_SECONDS: Final = 0.05  # after a node said that it is not the primary
NODE_PARK_SECONDS: Final = 1.0  # how long another node's request waits here for a slot that is led here
CLAIM_SECONDS_MAX: Final = 1.0  # between claims for guests; less than a new primary waits for them
GUESTS_MAX: Final = 100_000

_pack: Final = Struct(">4sII").pack
ASK_AGAIN: Final = error(NOT_PRIMARY, "ask again when the map has changed")
_CREATED: Final = b"\0RES" + wire.JOB_CREATED.to_bytes(4, "big")
_FOREGROUND: Final = frozenset(
    {wire.SUBMIT_JOB, wire.SUBMIT_JOB_HIGH, wire.SUBMIT_JOB_LOW, wire.SUBMIT_REDUCE_JOB}
)
_ANSWERS: Final = frozenset(
    {
        wire.JOB_CREATED,
        wire.ERROR,
        wire.STATUS_RES,
        wire.STATUS_RES_UNIQUE,
        wire.CLAIM_RES,
        CANCEL_RES,
    }
)
WORK_RESULTS: Final = frozenset(
    {
        wire.WORK_COMPLETE,
        wire.WORK_FAIL,
        wire.WORK_EXCEPTION,
        wire.WORK_STATUS,
        wire.WORK_DATA,
        wire.WORK_WARNING,
    }
)
_FINAL: Final = frozenset({wire.WORK_COMPLETE, wire.WORK_FAIL, wire.WORK_EXCEPTION})


class Request:
    """One packet that another node has to answer."""

    __slots__ = (
        "batch",
        "body",
        "connection",
        "due",
        "gather",
        "index",
        "node",
        "packet_type",
        "relay",
        "schedule",
        "slot",
    )

    def __init__(self, connection: Connection | None, packet_type: int, body: bytes, slot: int) -> None:
        self.connection = connection
        self.packet_type = packet_type
        self.body = body
        self.slot = slot  # -1: of no slot
        self.batch: Held | None = None  # where the answer belongs, and ...
        self.index = 0  # ... its place there
        self.due = 0.0  # when it has been parked for too long (monotonic)
        self.node = ""  # that answered it
        self.gather: Gather | None = None
        self.relay: Relay | None = None  # a foreground job that is submitted again
        self.schedule: Job | None = None


class Gather:
    """A question to all nodes; the best answer counts."""

    __slots__ = ("best", "left", "request")

    def __init__(self, request: Request, best: bytes, left: int) -> None:
        self.request = request
        self.best = best
        self.left = left


class Relay:
    """A foreground job at another node, and who waits for it here."""

    __slots__ = ("clients", "handle", "node", "packet")

    def __init__(self, handle: bytes, node: str, packet: tuple[int, bytes, int]) -> None:
        self.handle = handle
        self.node = node
        self.packet = packet  # type, body, slot: to submit it again
        self.clients: list[tuple[Connection, bytes]] = []  # with the handle that each was told


class Channel:
    """The conversation with one other node (or, looped back, with this one)."""

    __slots__ = ("asked", "asked_bytes", "decoder", "requests")

    def __init__(self) -> None:
        self.asked: deque[Request] = deque()
        self.asked_bytes = 0
        self.requests: list[bytes] = []  # unsent
        self.decoder = Decoder(from_server=True, packet_bytes_max=NODE_PACKET_BYTES_MAX)


class Forwarder:
    """See the module's docstring."""

    def __init__(self, context: Context, fleet: Fleet) -> None:
        self._context = context
        self._fleet = fleet
        self.channels: dict[str, Channel] = {}
        self.parked: dict[int, deque[Request]] = {}
        self.parked_count = 0
        self.parked_bytes = 0
        self.relays: dict[bytes, Relay] = {}
        self.guests: dict[bytes, Connection] = {}  # handle of a job led elsewhere -> who runs it here
        self.claims_again: dict[int, float] = {}  # slots of guests whose claim was not understood: when again
        self._claim_pauses: dict[int, float] = {}  # how long that was last
        self._own = Connection(-1, "this node", local=True)
        self._own.node = fleet.me.name
        self._own.exceptions = True
        self._own_channel = Channel()
        self._own_decoder = Decoder(packet_bytes_max=NODE_PACKET_BYTES_MAX)
        self.forwarded = 0  # packets, since the start

    # ---- asking

    def ask(self, connection: Connection, packet_type: int, body: bytes, slot: int) -> None:
        """A packet whose answer another node gives; it keeps its place among the connection's answers."""
        if connection.remember:
            packet_type += REMEMBERED_SUBMIT
        self._put(Request(connection, packet_type, body, slot))

    def _place(self, request: Request) -> None:
        """Keep a place for the answer."""
        connection = request.connection
        assert connection is not None
        batch = connection.batch
        if batch is None:
            batch = connection.batch = Held(0, connection.out)
        if not connection.out:
            self._context.dirty.append(connection)
        request.batch = batch
        request.index = len(connection.out)
        connection.out.append(b"")
        batch.missing += 1

    def _put(self, request: Request) -> None:
        if request.connection is not None:
            self._place(request)
        self._dispatch(request)

    def ask_by_handle(
        self, connection: Connection, handle: bytes, packet_type: int = wire.GET_STATUS
    ) -> bool:
        """GET_STATUS or CANCEL for whoever knows the job; false when it is this node that has to answer.

        Another node that asks is told to ask again if the slot is not served here.
        """
        slot = slot_of_handle(handle)
        job = self._context.find_handle(handle)
        if slot is None or (job is not None and not job.background):
            return False
        name = self._foreground_node(handle)
        if name is not None:
            channel = self.channels.get(name)
            if channel is None or connection.node is not None:
                return False
            request = Request(connection, packet_type, handle, -1)
            self._place(request)
            self._send(channel, request)
            return True
        if self._context.log.slots[slot].serving or (connection.node is not None and is_foreground(handle)):
            return False
        self._put(Request(connection, packet_type, handle, slot))
        return True

    def ask_all(self, connection: Connection, packet_type: int, body: bytes, answer: bytes) -> bool:
        """A question to every node that can be reached; false when there is none."""
        channels = [self.channels[name] for name in self._fleet.replicator.peers if name in self.channels]
        if not channels:
            return False
        first = Request(connection, packet_type, body, -1)
        self._place(first)
        gather = Gather(first, answer, len(channels))
        for channel in channels:
            request = Request(None, packet_type, body, -1)
            request.gather = gather
            self._send(channel, request)
        return True

    def fire(self, schedule: Job, packet_type: int, body: bytes, slot: int) -> None:
        """A schedule's job belongs to another node; its next time is set when that has it."""
        request = Request(None, packet_type, body, slot)
        request.schedule = schedule
        self._put(request)

    def _foreground_node(self, handle: bytes) -> str | None:
        """The other node on which a foreground job lives; None for background jobs and own ones."""
        if not is_foreground(handle):
            return None
        name = self._fleet.node_of_prefix(handle.rpartition(b":")[0])
        return None if name == self._fleet.me.name else name

    def _dispatch(self, request: Request) -> None:
        """To the slot's primary if it can be asked, else into the park."""
        slot, connection = request.slot, request.connection
        fleet = self._fleet
        if self._context.log.slots[slot].serving:
            channel: Channel | None = self._own_channel
        elif connection is not None and connection.node is not None:
            # Never asked of a third: answers leave in order, so nodes would wait for each other in a circle.
            if fleet.leads(slot) and connection is not self._own:
                request.due = request.due or self._context.monotonic_seconds + NODE_PARK_SECONDS
                self.park(request)
            else:
                self._fill(request, ASK_AGAIN)
            return
        else:
            name = fleet.primary_names[slot]
            channel = self.channels.get(name) if name is not None else None
        if channel is None:
            self.park(request)
        else:
            self._send(channel, request)

    def _send(self, channel: Channel, request: Request) -> None:
        body = request.body
        if channel.asked_bytes > ASKED_BYTES_MAX:
            self._refuse(request, "too much waits for the node that leads this job's slot; try again later")
            return
        self.forwarded += 1
        channel.asked.append(request)
        channel.asked_bytes += len(body)
        channel.requests.append(_pack(b"\0REQ", request.packet_type, len(body)) + body)

    def park(self, request: Request) -> None:
        """Wait until somebody can be asked."""
        result = request.packet_type in WORK_RESULTS
        reason = None if result else self._fleet.refusal_of(request.slot)
        if reason is not None:
            self._refuse(request, reason)
            return
        if self.parked_count >= PARKED_REQUESTS_MAX or self.parked_bytes > PARKED_BYTES_MAX:
            if result:
                # It is run again: neither claimed for a worker that has done it, nor taken for running.
                handle = request.body.split(b"\0", 1)[0]
                self.guests.pop(handle, None)
                self._fleet.give_up_run(handle)
            self._refuse(request, "too many jobs wait for a new primary of their slots; try again later")
            return
        if not request.due:
            request.due = self._context.monotonic_seconds + self._fleet.settings.park_seconds
        self.parked.setdefault(request.slot, deque()).append(request)
        self.parked_count += 1
        self.parked_bytes += len(request.body)

    def ask_claim(self, connection: Connection, handle: bytes, slot: int) -> None:
        """A claim for a slot that is about to be served here."""
        request = Request(connection, wire.CLAIM_JOB, handle, slot)
        if connection.node is not None:
            # It asks again; meanwhile nothing else that it asked is to wait.
            request.due = self._context.monotonic_seconds + NODE_PARK_SECONDS
        self._place(request)
        self.park(request)

    def withdraw_claim(self, connection: Connection, handle: bytes) -> None:
        """The worker for which another node claims this job is gone, and the claim is yet to be granted."""
        slot = slot_of_handle(handle)
        waiting = self.parked.get(slot) if slot is not None else None
        if waiting is None:
            return
        assert slot is not None
        kept: deque[Request] = deque()
        for request in waiting:
            if (
                request.connection is connection
                and request.packet_type == wire.CLAIM_JOB
                and request.body == handle
            ):
                self.parked_count -= 1
                self.parked_bytes -= len(handle)
                self._refuse(request, "")
            else:
                kept.append(request)
        if kept:
            self.parked[slot] = kept
        else:
            del self.parked[slot]

    def join_again(
        self, connection: Connection, packet_type: int, body: bytes, slot: int, handle: bytes
    ) -> None:
        """A client waits for a background job whose slot goes to another node."""
        relay = Relay(handle, "", (packet_type, body, slot))
        relay.clients.append((connection, handle))
        request = Request(None, packet_type, body, slot)
        request.relay = relay
        self.park(request)

    def open_batch(self, connection: Connection) -> None:
        """Answers that are still open may have to be given by another node."""
        if connection.batch is None:
            connection.batch = Held(connection.gate, connection.out)

    @property
    def own_waits(self) -> bool:
        return bool(self._own_channel.requests)

    def flush(self, slots: Iterable[int]) -> None:
        """These slots may have somebody to ask now."""
        for slot in slots:
            waiting = self.parked.pop(slot, None)
            if waiting is not None:
                self.parked_count -= len(waiting)
                for request in waiting:
                    self.parked_bytes -= len(request.body)
                    self._again(request)

    def _again(self, request: Request) -> None:
        """What was parked: done here if the slot is served here now, else asked of whoever leads it."""
        slot, connection = request.slot, request.connection
        serving = self._context.log.slots[slot].serving
        if request.packet_type in WORK_RESULTS:
            # A worker's result came while the slot was in between.
            if serving:
                assert connection is not None
                self._fleet.receive_own(connection, [(request.packet_type, request.body)])
            else:
                self._result(request, back=True)
        elif request.packet_type == wire.CLAIM_JOB and connection is not None and connection.node is None:
            # Never asked of another node: that one would think that this one's worker is known here as its.
            if connection.closing:
                self._refuse(request, "")
            elif serving:
                self._fill(request, self._fleet.claim(connection, request.body))
            elif self._fleet.leads(slot):
                self.park(request)
            else:
                self._refuse(request, "")
        elif request.packet_type == wire.CLAIM_JOB and serving:
            if connection is not None and not connection.closing:
                self._fill(request, self._fleet.claim(connection, request.body))
        else:
            self._dispatch(request)

    def expire(self, now: float) -> None:
        """What was parked for too long is refused; results, for which nobody waits, are kept."""
        for slot in list(self.parked):
            waiting = self.parked[slot]
            reason = self._fleet.refusal_of(slot)
            kept: deque[Request] = deque()
            for request in waiting:
                result = request.packet_type in WORK_RESULTS
                if result or (request.due > now and reason is None):
                    kept.append(request)
                    continue
                self.parked_count -= 1
                self.parked_bytes -= len(request.body)
                connection = request.connection
                if reason is None and connection is not None and connection.node is not None:
                    self._fill(request, ASK_AGAIN)
                else:
                    self._refuse(request, reason or "no node leads this job's slot now; try again later")
            if kept:
                self.parked[slot] = kept
            else:
                del self.parked[slot]

    def _refuse(self, request: Request, text: str) -> None:
        if request.packet_type == CANCEL:
            self._fill_cancel(request, b"ERR NO_PRIMARY " + text.replace(" ", "+").encode() + b"\r\n")
        elif request.packet_type == wire.CLAIM_JOB:
            self._fill(request, response(wire.CLAIM_RES, request.body, wire.CLAIM_ELSEWHERE))
        elif request.packet_type == wire.GET_STATUS:
            self._fill(request, response(wire.STATUS_RES, request.body, b"0", b"0", b"0", b"0"))
        else:
            self._fill(request, error(wire.QUEUE_ERROR, text))

    def _fill_cancel(self, request: Request, text: bytes) -> None:
        """Text for the operator, or for the node that he talks to."""
        connection = request.connection
        self._fill(
            request, text if connection is None or connection.node is None else response(CANCEL_RES, text)
        )

    def _fill(self, request: Request, packet: bytes) -> None:
        """Put an answer into its place."""
        context = self._context
        if request.gather is not None:
            gather = request.gather
            gather.left -= 1
            if packet[12:] > b"" and _known(packet) > _known(gather.best):
                gather.best = packet
            if not gather.left:
                self._fill(gather.request, gather.best)
            return
        if request.schedule is not None:
            schedule = request.schedule
            if packet.startswith(_CREATED):
                self._fleet.fired(schedule)
            elif schedule.options is not None:
                schedule.options.due_seconds = int(context.wall_seconds) + 1
                context.scheduled.add(schedule.options.due_seconds, schedule)
            return
        if request.relay is not None:
            self._relayed_again(request, packet)
            return
        batch, connection = request.batch, request.connection
        if batch is None or connection is None:
            return
        batch.chunks[request.index] = packet
        batch.missing -= 1
        if not batch.missing:
            context.released[connection] = None  # also of one that is closed as soon as it has its answers

    # ---- answers

    def replies(self, name: str, data: bytes) -> None:
        """What another node answered, or says of jobs that are relayed."""
        channel = self._own_channel if name == self._fleet.me.name else self.channels.get(name)
        if channel is None:
            return
        asked = channel.asked
        for packet_type, body in channel.decoder.feed(data):
            if packet_type in _ANSWERS:
                if not asked:
                    continue
                request = asked.popleft()
                request.node = name
                channel.asked_bytes -= len(request.body)
                if packet_type == wire.JOB_CREATED:
                    if request.packet_type % REMEMBERED_SUBMIT in _FOREGROUND and request.relay is None:
                        self._begin_relay(name, body, request)
                elif packet_type == wire.ERROR and body.startswith(NOT_PRIMARY):
                    self._ask_later(request)
                    continue
                elif packet_type == wire.CLAIM_RES and body.endswith(b"\0" + wire.CLAIM_ELSEWHERE):
                    self._claim_later(request)
                    continue
                elif packet_type == wire.CLAIM_RES and request.connection is None:
                    self._claimed(name, request, body)
                    continue
                elif packet_type == CANCEL_RES:
                    self._fill_cancel(request, body)
                    continue
                self._fill(request, _pack(b"\0RES", packet_type, len(body)) + body)
            else:
                self._relay(packet_type, body)

    def _ask_later(self, request: Request) -> None:
        """The node is not the primary: one of both has an old map."""
        if request.slot < 0:
            self._refuse(request, "the node that was asked does not know")
            return
        if request.packet_type == wire.CLAIM_JOB:
            self._claim_later(request)
            return
        now = self._context.monotonic_seconds
        if request.due and request.due <= now:
            self._refuse(request, "no node leads this job's slot now; try again later")
            return
        self.park(request)
        self._fleet.look_again(now + RETRY_SECONDS)

    def _claim_later(self, request: Request) -> None:
        """The node does not lead the slot, or not yet. A worker is told so; for a guest it is asked again."""
        if request.connection is not None:
            self._refuse(request, "")
            return
        slot = request.slot
        if request.body in self.guests and slot not in self.claims_again:
            pause = min(CLAIM_SECONDS_MAX, 2 * self._claim_pauses.get(slot, RETRY_SECONDS / 2))
            self._claim_pauses[slot] = pause
            at = self.claims_again[slot] = self._context.monotonic_seconds + pause
            self._fleet.look_again(at)

    def _claimed(self, name: str, request: Request, body: bytes) -> None:
        """The primary of a guest's slot has answered a claim."""
        self._claim_pauses.pop(request.slot, None)
        if body.endswith(b"\0" + wire.CLAIM_KEPT) and request.body not in self.guests:
            # Its worker has gone meanwhile, or has sent its result: that came there before this.
            self._tell(name, RELEASE, request.body)

    def claims_due(self, now: float) -> list[int]:
        """Slots of guests that are to be claimed again now."""
        due = [slot for slot, at in self.claims_again.items() if at <= now]
        for slot in due:
            del self.claims_again[slot]
        if self.claims_again:
            self._fleet.look_again(min(self.claims_again.values()))
        return due

    # ---- relays

    def _begin_relay(self, name: str, handle: bytes, request: Request) -> None:
        connection = request.connection
        if connection is None:
            return
        if connection.closing:
            if handle not in self.relays:
                self._detach(name, handle, self._foreground_asked(name))
            return
        relay = self.relays.get(handle)
        if relay is None:
            packet = (request.packet_type, request.body, request.slot)
            relay = self.relays[handle] = Relay(handle, name, packet)
        relay.clients.append((connection, handle))  # once for each submit, as at the primary itself
        if connection.relayed is None:
            connection.relayed = set()
        connection.relayed.add(handle)

    def _relay(self, packet_type: int, body: bytes) -> None:
        handle, separator, rest = body.partition(b"\0")
        relay = self.relays.get(handle)
        if relay is None:
            return
        if packet_type == MOVED:
            self._submit_again(relay)
            return
        context = self._context
        plain = _pack(b"\0RES", packet_type, len(body)) + body
        for connection, told in relay.clients:
            if packet_type == wire.WORK_EXCEPTION and not connection.exceptions:
                packet = response(wire.WORK_FAIL, told)
            elif told == handle:
                packet = plain
            else:
                other = told + separator + rest
                packet = _pack(b"\0RES", packet_type, len(other)) + other
            context.send(connection, packet)
            if packet_type in _FINAL and connection.relayed is not None:
                connection.relayed.discard(handle)
        if packet_type in _FINAL:
            del self.relays[handle]

    def leave(self, connection: Connection) -> None:
        """A client with relayed jobs is gone."""
        asked: dict[str, set[int]] = {}
        for handle in connection.relayed or ():
            relay = self.relays.get(handle)
            if relay is None:
                continue
            relay.clients = [item for item in relay.clients if item[0] is not connection]
            if not relay.clients:
                del self.relays[handle]
                if relay.node not in asked:
                    asked[relay.node] = self._foreground_asked(relay.node)
                self._detach(relay.node, handle, asked[relay.node])
        connection.relayed = None

    def _tell(self, name: str | None, packet_type: int, body: bytes) -> None:
        """Something that is not answered."""
        channel = self.channels.get(name) if name is not None else None
        if name == self._fleet.me.name:
            channel = self._own_channel
        if channel is not None:
            channel.requests.append(_pack(b"\0REQ", packet_type, len(body)) + body)

    def _foreground_asked(self, name: str) -> set[int]:
        """Slots of foreground submits that this node has yet to answer."""
        channel = self._own_channel if name == self._fleet.me.name else self.channels.get(name)
        if channel is None:
            return set()
        return {
            request.slot
            for request in channel.asked
            if request.packet_type % REMEMBERED_SUBMIT in _FOREGROUND
        }

    def _detach(self, name: str, handle: bytes, asked: set[int]) -> None:
        """Nobody here waits for this job any more, unless an answer on its way says that somebody does."""
        if slot_of_handle(handle) not in asked:
            self._tell(name, DETACH, handle)

    def _submit_again(self, relay: Relay) -> None:
        """Its node is gone, or has given the job to another."""
        self.relays.pop(relay.handle, None)
        for connection, _ in relay.clients:
            if connection.relayed is not None:
                connection.relayed.discard(relay.handle)
        packet_type, body, slot = relay.packet
        request = Request(None, packet_type, body, slot)
        request.relay = relay
        self._dispatch(request)

    def _relayed_again(self, request: Request, packet: bytes) -> None:
        """A relayed job was submitted again: its clients keep the handle that they were told."""
        relay = request.relay
        assert relay is not None
        relay.clients = [item for item in relay.clients if not item[0].closing]
        if not packet.startswith(_CREATED):
            for connection, told in relay.clients:
                self._context.send(connection, response(wire.WORK_FAIL, told))
            return
        handle = packet[12:]
        relay.node = request.node
        if not relay.clients:
            if handle not in self.relays:
                self._detach(relay.node, handle, self._foreground_asked(relay.node))
            return
        known = self.relays.get(handle)
        if known is not None:
            known.clients += relay.clients
            relay = known
        relay.handle = handle
        self.relays[handle] = relay
        for connection, _ in relay.clients:
            if connection.relayed is None:
                connection.relayed = set()
            connection.relayed.add(handle)

    # ---- workers

    def pass_result(self, connection: Connection, packet_type: int, body: bytes, handle: bytes) -> bool:
        """What a worker says of a job that is led elsewhere; false when it is not."""
        slot = slot_of_handle(handle)
        if slot is None or self._context.log.slots[slot].serving:
            return False
        if connection.node is None and handle not in self.guests and is_foreground(handle):
            # A foreground job's, unless it was made a background job and is on its way elsewhere.
            job = self._context.find_handle(handle)
            if job is None or not job.background:
                return False
        if self._fleet.primary_names[slot] is None:
            return False
        self._result(Request(connection, packet_type, body, slot))
        return True

    def _result(self, request: Request, *, back: bool = False) -> None:
        """To the slot's primary. `back`: also if it came from there, because the slot has moved since."""
        connection = request.connection
        assert connection is not None
        name = self._fleet.primary_names[request.slot]
        if name is not None and name in self.channels and (back or name != connection.node):
            if request.packet_type in _FINAL:
                handle = request.body.split(b"\0", 1)[0]
                self.guests.pop(handle, None)
                if request.packet_type == wire.WORK_EXCEPTION and connection.worker and not connection.node:
                    connection.worker.forgive(handle, excepted=True)  # WORK_FAIL may follow
            self._tell(name, request.packet_type, request.body)
        elif request.packet_type in _FINAL:
            self.park(request)
            if name is not None and name == connection.node:
                # The primary by this node's map says that it is not: the maps will agree in a moment.
                self._fleet.look_again(self._context.monotonic_seconds + RETRY_SECONDS)

    def host(self, job: Job, connection: Connection) -> None:
        """A worker here runs a job whose slot goes to another node."""
        if len(self.guests) < GUESTS_MAX:
            self.guests[job.handle] = connection
        if connection.worker is not None:
            connection.worker.forgiven.pop(job.handle, None)  # of an earlier run: this one's result is wanted

    def claim_guests(self, slots: set[int]) -> None:
        """Tell the new primaries of these slots what runs here."""
        for handle in list(self.guests):
            slot = slot_of_handle(handle)
            if slot in slots:
                assert slot is not None
                self._dispatch_claim(handle, slot)

    def _dispatch_claim(self, handle: bytes, slot: int) -> None:
        if self._context.log.slots[slot].serving:
            # It came back: the worker itself gets its job again.
            connection = self.guests.pop(handle)
            self._fleet.reclaim_own(connection, handle)
            return
        name = self._fleet.primary_names[slot]
        channel = self.channels.get(name) if name is not None else None
        if channel is not None:
            self._send(channel, Request(None, wire.CLAIM_JOB, handle, slot))

    def worker_left(self, connection: Connection) -> None:
        """The jobs of a worker that is gone are free again, wherever they are led."""
        if not self.guests:
            return
        for handle in [handle for handle, owner in self.guests.items() if owner is connection]:
            del self.guests[handle]
            slot = slot_of_handle(handle)
            if slot is not None:
                self._tell(self._fleet.primary_names[slot], RELEASE, handle)

    def give_back(self, handle: bytes, milliseconds: bytes) -> None:
        """A worker here does not end a job that is led elsewhere. While nobody leads it nobody is told: its
        next primary waits for the worker in vain, and runs it again."""
        slot = slot_of_handle(handle)
        if slot is None or self.guests.pop(handle, None) is None:
            return
        name = self._fleet.primary_names[slot]
        self._tell(name, RELEASE, b"%b\0%b" % (handle, milliseconds))
        # A node of an older release heeds only this one.
        self._tell(name, RELEASE, handle)

    # ---- streams

    def node_up(self, name: str) -> None:
        self.channels[name] = Channel()

    def node_down(self, name: str) -> None:
        """What it was asked is asked again elsewhere; what ran there for clients here is submitted again."""
        channel = self.channels.pop(name, None)
        if channel is None:
            return
        for request in channel.asked:
            if request.packet_type == wire.CLAIM_JOB:
                self._claim_later(request)
            elif request.slot >= 0:
                self._dispatch(request)
            elif request.gather is not None:
                self._fill(request, b"")
            else:
                self._refuse(request, "the node that knew has gone")
        for relay in list(self.relays.values()):
            if relay.node == name:
                self._submit_again(relay)

    def take_requests(self, name: str) -> bytes:
        """Unsent packets for a node."""
        channel = self.channels.get(name)
        if channel is None or not channel.requests:
            return b""
        return take_bytes(channel.requests, FORWARD_BYTES_MAX)

    def loop_back(self) -> list[tuple[int, bytes]]:
        """Packets that this node asks of itself: what was parked and is led here now."""
        channel = self._own_channel
        if not channel.requests:
            return []
        data = b"".join(channel.requests)
        channel.requests.clear()
        return self._own_decoder.feed(data)

    @property
    def own(self) -> Connection:
        """The connection over which this node asks itself."""
        return self._own


def is_foreground(handle: bytes) -> bool:
    """Whether the handle was given to a foreground job, which lives at the node that its prefix names."""
    return b".t" in handle.rpartition(b":")[2]


def take_bytes(chunks: list[bytes], count_max: int) -> bytes:
    """The head of a list of chunks, joined and taken from it; a chunk may be split."""
    data = b"".join(chunks)
    chunks.clear()
    if len(data) > count_max:
        chunks.append(data[count_max:])
        return data[:count_max]
    return data


def _known(packet: bytes) -> int:
    """How much a STATUS_RES_UNIQUE tells: 0 unknown, 1 known, 2 running."""
    fields = packet[12:].split(b"\0")
    if len(fields) < 3:
        return -1
    return (fields[1] == b"1") + (fields[2] == b"1")
