"""Connections between the processes of a world: in order inside one, in any order between them.

What TCP does and this does, too:

- Nobody listens, or the process is dead: refused. The host is off, or a direction is cut: no answer, and
  ETIMEDOUT after CONNECT_SECONDS.
- A killed process's connections end at once: EOF, or a reset if it had unread bytes. A frozen one's stand,
  and take what is sent.
- Cutting a direction (`cut`) loses nothing: what is under way waits, and arrives when it is healed, unless
  the connection is given up first (`dead_seconds`, as cluster/server/silence.py does).
- A host without power takes its ends with it. The others learn it when it is back, or by their own patience.

See kernel.py for the interface.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from chaos_tests.sim.shell.kernel import Host, Process, World

LATENCY_SECONDS_MIN: Final = 0.00005
LATENCY_SECONDS_MAX: Final = 0.0004
# Now and then a message is late.
LATE_SHARE: Final = 0.01
LATE_SECONDS_MAX: Final = 0.02
CONNECT_SECONDS: Final = 20.0
DEAD_SECONDS: Final = 11.0
PORT_FIRST: Final = 40000
HIGH_WATER_BYTES: Final = 64 * 1024


class Network:
    """All connections of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[End, None] = {}  # that stand
        self.holding: dict[End, None] = {}  # have something kept back by a cut; closed ones, too
        self._listeners: dict[tuple[str, int], Listener] = {}  # by host and port
        self._cut: dict[tuple[str, str], None] = {}  # from, to
        self._slow: dict[tuple[str, str], float] = {}  # from, to: seconds more for each message
        self._dice: dict[tuple[str, str], Random] = {}
        self._ports: dict[str, int] = {}

    # ---- the interface: see kernel.py

    def listen(self, process: Process, port: int, accept: Callable[[End], None]) -> Listener:
        """Raises OSError (EADDRINUSE). Port 0 takes a free one."""
        port = port or self._free_port(process.host)
        key = (process.host.name, port)
        if key in self._listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener = self._listeners[key] = Listener(self, process, port, accept)
        return listener

    async def connect(self, process: Process, host: str, port: int, *, dead_seconds: float = 0.0) -> End:
        """`host`: a name or an address. `dead_seconds`: how long an end that cannot be reached is believed
        in; 0 = for ever. Raises OSError."""
        return await self._dial(process, self._host(host), port, dead_seconds)

    async def reach(self, process: Process, host: str, port: int) -> None:
        """Connect and hang up. Raises OSError."""
        end = await self._dial(process, self._host(host), port, 0.0)
        end.close()

    def resolve(self, host: str, port: int) -> list[Any]:
        """As getaddrinfo."""
        import socket

        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self._host(host).address, port))]

    # ---- what goes wrong

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one host to the other, until it is healed."""
        if (source, target) not in self._cut:
            self.world.say("cut", source, target)
            self._cut[source, target] = None
            for end in self.ends:
                if {end.process.host.name, end.other.process.host.name} == {source, target}:
                    end.expect_death()

    def heal(self, source: str, target: str) -> None:
        """What waited goes on."""
        if self._cut.pop((source, target), self) is None:
            self.world.say("heal", source, target)
            for end in list(self.holding):
                if (end.process.host.name, end.other.process.host.name) == (source, target):
                    del self.holding[end]
                    end.flush()

    def slow(self, source: str, target: str, seconds: float) -> None:
        """Each message takes so much longer; 0 is as before."""
        self.world.say("slow", source, target, seconds)
        self._slow[source, target] = seconds

    def reset(self, one: str, other: str) -> None:
        """All connections between two hosts end with a reset, on both sides."""
        self.world.say("reset", one, other)
        for end in list(self.ends):
            if (end.process.host.name, end.other.process.host.name) == (one, other):
                error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                end.lost(error)
                end.other.lost(error)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def heal_all(self) -> None:
        for source, target in list(self._cut):
            self.heal(source, target)
        self._slow.clear()

    # ---- the life of processes and hosts

    def process_died(self, process: Process, *, quietly: bool) -> None:
        for key, listener in list(self._listeners.items()):
            if listener.process is process:
                del self._listeners[key]
        for end in list(self.ends):
            if end.process is process:
                del self.ends[end]
                end.gone = True
                if not quietly:
                    end.say_goodbye()
                else:
                    end.other.expect_death()
        if quietly:
            for end in [end for end in self.holding if end.process is process]:
                del self.holding[end]
                end.forget()

    def host_is_back(self, host: Host) -> None:
        """It knows nothing of the old connections, and says so when it is asked."""
        for end in list(self.ends):
            if end.other.process.host is host and end.other.gone:
                delay = self._dice_of(host.name, end.process.host.name).uniform(0.0, 2.0)
                self.world.after(delay, end.other.say_goodbye)

    # ---- how it is done

    def latency(self, source: str, target: str) -> float:
        dice = self._dice_of(source, target).random
        seconds = LATENCY_SECONDS_MIN + dice() * (LATENCY_SECONDS_MAX - LATENCY_SECONDS_MIN)
        if dice() < LATE_SHARE:
            seconds += dice() * LATE_SECONDS_MAX
        return seconds + self._slow.get((source, target), 0.0)

    def _dice_of(self, source: str, target: str) -> Random:
        dice = self._dice.get((source, target))
        if dice is None:
            dice = self._dice[source, target] = self.world.dice_for(f"network {source} {target}")
        return dice

    def _host(self, name: str) -> Host:
        for host in self.world.hosts.values():
            if name in (host.name, host.address):
                return host
        raise OSError(errno.EHOSTUNREACH, f"there is no host {name}")

    def _free_port(self, host: Host) -> int:
        port = self._ports[host.name] = self._ports.get(host.name, PORT_FIRST) + 1
        return port

    def _dial(self, process: Process, host: Host, port: int, dead_seconds: float) -> asyncio.Future[End]:
        future: asyncio.Future[End] = process.loop.create_future()
        there = self.latency(process.host.name, host.name)
        self.world.after(there, self._arrive, future, process, host, port, dead_seconds)
        return future

    def _arrive(
        self, future: asyncio.Future[End], process: Process, host: Host, port: int, dead_seconds: float
    ) -> None:
        """The first packet is there, if it gets there; the answer may be lost, too."""
        here = process.host.name
        if not process.alive or future.cancelled():
            return
        if not host.up or self.is_cut(here, host.name) or self.is_cut(host.name, here):
            error = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self.world.after(CONNECT_SECONDS, process.post, _fail, future, error)
            return
        back = self.latency(host.name, here)
        listener = self._listeners.get((host.name, port))
        if listener is None:
            refused = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            self.world.after(back, process.post, _fail, future, refused)
            return
        near = End(self, process, (process.host.address, self._free_port(process.host)), dead_seconds)
        far = End(self, listener.process, (host.address, port), dead_seconds)
        near.other, far.other = far, near
        near.remote, far.remote = far.local, near.local
        self.ends[near] = self.ends[far] = None
        listener.process.post(listener.take, far)
        self.world.after(back, process.post, _connected, future, near)

    # ---- asyncio's transports

    async def create_connection(
        self, process: Process, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        end = await self.connect(process, host, port, dead_seconds=DEAD_SECONDS)
        protocol = factory()
        return Transport(end, protocol), protocol

    def create_server(
        self, process: Process, factory: Callable[[], asyncio.BaseProtocol], port: int
    ) -> SimServer:
        return SimServer(self.listen(process, port, lambda end: _serve(end, factory)))  # type: ignore[abstract]


def _serve(end: End, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    end.dead_seconds = DEAD_SECONDS
    Transport(end, factory())


def _fail(future: asyncio.Future[End], error: OSError) -> None:
    if not future.done():
        future.set_exception(error)


def _connected(future: asyncio.Future[End], end: End) -> None:
    if future.done():
        end.abort()
    else:
        future.set_result(end)


class Listener:
    """A port that is open."""

    def __init__(self, network: Network, process: Process, port: int, accept: Callable[[End], None]) -> None:
        self._network = network
        self._accept = accept
        self.process = process
        self.port = port
        self.open = True

    def take(self, end: End) -> None:
        if self.open:
            self._accept(end)
        else:
            end.abort()

    def close(self) -> None:
        """Refuse from now on."""
        if self.open and self.process.alive:
            self.open = False
            self._network._listeners.pop((self.process.host.name, self.port), None)


class End:
    """One side of a connection."""

    def __init__(
        self, network: Network, process: Process, local: tuple[str, int], dead_seconds: float
    ) -> None:
        self._network = network
        self.process = process
        self.number = process.world.number()
        self.local = local
        self.remote = local
        self.other: End = self
        self.dead_seconds = dead_seconds
        self.gone = False  # closed here, or its process is
        self.unsent = 0  # bytes that the other process has not taken
        self.on_message: Callable[[Any], None] | None = None
        self.on_lost: Callable[[Exception | None], None] | None = None
        self.on_taken: Callable[[], None] = lambda: None  # `unsent` has become less
        self._came: deque[Any] = deque()  # before somebody listened
        self._over: tuple[Exception | None] | None = None  # the end, too
        self._held: deque[Callable[[], None]] = deque()  # kept back by a cut
        self._caught = 0  # of these were under way when it came, and go first
        self._last_at = 0.0  # when the last thing that was sent arrives

    def __hash__(self) -> int:
        return self.number

    # ---- sending

    def send(self, message: Any, size: int = 0) -> None:
        """To the other side, in order."""
        if self.gone or not self.process.alive:
            return
        self.unsent += size
        self._carry(lambda: self._deliver(message, size))

    def close(self) -> None:
        """EOF, behind what was sent."""
        self._leave(None)

    def abort(self) -> None:
        """Reset."""
        self._leave(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _leave(self, error: Exception | None) -> None:
        if not self.gone and self.process.alive:
            self.gone = True
            self._network.ends.pop(self, None)
            self._carry(lambda: self.other.lost(error))

    def say_goodbye(self) -> None:
        """The system closes for a process that has died."""
        error = None
        if self._came or self.other.unsent:
            error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._carry(lambda: self.other.lost(error))

    def _carry(self, act: Callable[[], None]) -> None:
        source, target = self.process.host.name, self.other.process.host.name
        if self._held or self._network.is_cut(source, target):
            self._held.append(act)
            self._network.holding[self] = None
            return
        world = self._network.world
        self._last_at = max(self._last_at, world.now + self._network.latency(source, target))
        world.at(self._last_at, self._arrive, act)

    def _arrive(self, act: Callable[[], None]) -> None:
        source, target = self.process.host.name, self.other.process.host.name
        if self._held or self._network.is_cut(source, target):
            self._held.insert(self._caught, act)
            self._caught += 1
            self._network.holding[self] = None
        else:
            act()

    def flush(self) -> None:
        """The cut is healed: what it caught under way is there at once, before what is still under way."""
        held, caught = self._held, self._caught
        self._held, self._caught = deque(), 0
        for _ in range(caught):
            self._arrive(held.popleft())
        for act in held:
            self._carry(act)

    def forget(self) -> None:
        """What was kept back is lost with the machine that had sent it."""
        self._held.clear()
        self._caught = 0

    def _deliver(self, message: Any, size: int) -> None:
        other = self.other
        if not other.gone:
            other.process.post(other._take, message, size)

    # ---- receiving, in the process

    def _take(self, message: Any, size: int) -> None:
        if self.gone:
            return
        if self.on_message is None:
            self._came.append(message)
        else:
            self.on_message(message)
        self._taken(size)

    def _taken(self, size: int) -> None:
        if size:
            self.other.unsent -= size
            self.other.on_taken()

    def listen(self, on_message: Callable[[Any], None], on_lost: Callable[[Exception | None], None]) -> None:
        """Hear what comes, beginning with what has come."""
        self.on_message, self.on_lost = on_message, on_lost
        while self._came and not self.gone:
            on_message(self._came.popleft())
        if self._over is not None:
            self.process.post(self._lost, *self._over)

    # ---- the end

    def lost(self, error: Exception | None) -> None:
        """The connection is over for this side; heard in its process, behind what came before."""
        if self.gone:
            return
        self.process.post(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        if self.gone:
            return
        if self.on_lost is None:
            self._over = (error,)  # before anybody listened
            return
        self.gone = True
        self._network.ends.pop(self, None)
        self.on_lost(error)

    def expect_death(self) -> None:
        """The other side cannot be reached, perhaps; look again when patience ends."""
        if self.dead_seconds:
            self._network.world.after(self.dead_seconds, self._give_up)

    def _give_up(self) -> None:
        here, there = self.process.host.name, self.other.process.host.name
        network = self._network
        if not self.other.process.host.up or network.is_cut(here, there) or network.is_cut(there, here):
            self.lost(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))


class _Socket:
    """What is asked of a transport's socket."""

    def __init__(self, end: End) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.number

    def setsockopt(self, *options: object) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return self._end.local

    def getpeername(self) -> tuple[str, int]:
        return self._end.remote


class ListeningSocket:
    """Stands for a bound socket that a server is given."""

    def __init__(self, address: str, port: int) -> None:
        self._name = (address, port)

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def close(self) -> None:
        pass


class SimServer(asyncio.AbstractServer):
    """What create_server returns."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.sockets = [ListeningSocket(listener.process.host.address, listener.port)]

    def close(self) -> None:
        self._listener.close()

    def is_serving(self) -> bool:
        return self._listener.open

    async def wait_closed(self) -> None:
        pass


class Transport(asyncio.Transport):
    """Bytes over a connection."""

    def __init__(self, end: End, protocol: Any) -> None:
        super().__init__()
        self._end = end
        self._protocol = protocol
        self._high = HIGH_WATER_BYTES
        self._low = HIGH_WATER_BYTES // 4
        self._full = False
        self._paused = False
        self._unread: deque[bytes] = deque()
        self._closing = False
        self._over: tuple[Exception | None] | None = None  # it is lost, behind what is unread
        self._socket = _Socket(end)
        end.on_taken = self._taken
        protocol.connection_made(self)
        end.listen(self._came, self._lost)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self._socket, "peername": self._end.remote, "sockname": self._end.local}.get(
            name, default
        )

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._end.unsent

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        self._end.send(bytes(data), len(data))
        if not self._full and self._end.unsent > self._high:
            self._full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _taken(self) -> None:
        if self._full and self._end.unsent <= self._low:
            self._end.process.post(self._resume)

    def _resume(self) -> None:
        if self._full and not self._closing and self._end.unsent <= self._low:
            self._full = False
            self._protocol.resume_writing()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._end.process.post(self._read_on)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def _read_on(self) -> None:
        while self._unread and not self._paused and not self._closing:
            self._protocol.data_received(self._unread.popleft())
        if self._over is not None and not self._unread and not self._closing:
            self._finish(*self._over)

    def _came(self, data: bytes) -> None:
        if self._closing:
            return
        if self._paused or self._unread:
            self._unread.append(data)
        else:
            self._protocol.data_received(data)

    def _lost(self, error: Exception | None) -> None:
        if self._closing:
            return
        if self._unread:
            self._over = (error,)
        elif error is not None or not self._protocol.eof_received():
            self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        self._closing = True
        self._protocol.connection_lost(error)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._end.close()
            self._end.process.post(self._protocol.connection_lost, None)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._end.abort()
            self._end.process.post(self._protocol.connection_lost, None)
