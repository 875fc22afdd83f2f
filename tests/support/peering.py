"""Owners for PeerPorts, diallers that speak as they like, and a loop like a node's."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cluster.replication.frames import Frame, Hello

# Through the room, which sets gRPC up before it is imported.
from cluster.server.channels import PeerTls, grpc, load_peer_tls
from cluster.server.messages import Refusal, pack_hello, pack_proofs, unpack_greeting
from cluster.server.peers import EXCHANGE, PeerAddress, PeerLimits, PeerPort
from cluster.server.proof import DIALLER, NONCE_BYTES, SECRET_BYTES, stream_proofs
from cluster.server.turns import TurnSelector
from tests.support.machine import need_command
from tests.support.waiting import WAIT_SECONDS

Value = TypeVar("Value")

SECRETS = (b"s" * SECRET_BYTES,)
QUICK = PeerLimits(
    message_bytes_max=4 * 1024 * 1024,
    keepalive_seconds=0.04,
    silence_seconds=0.2,
    drop_seconds=0.6,
    introduce_seconds=0.1,
)


def run(work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
    """Run on the loop that a node uses; nothing may be left of it."""
    faults: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(TurnSelector())) as runner:
        runner.get_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        result = runner.run(work())
        # gRPC's own tasks may take a moment more.
        left = [task for task in asyncio.all_tasks(runner.get_loop()) if "PeerPort" in repr(task)]
    gc.collect(1)  # what was not closed says so here, not in some other test
    faults = [fault for fault in faults if not _is_of_an_earlier_loop(fault)]
    assert not faults
    assert not left
    return result


def _is_of_an_earlier_loop(fault: dict[str, Any]) -> bool:
    """gRPC has one queue of events for all loops of a process: whoever reads it hands what ended late to the
    loop of a test before, which is closed by then. A node has one loop as long as it lives."""
    closed = isinstance(fault.get("exception"), RuntimeError) and "loop is closed" in str(fault["exception"])
    return closed and "PollerCompletionQueue._handle_events" in fault["message"]


class News(NamedTuple):
    """What an owner was told."""

    kind: str
    name: str
    value: Any = None


class Owner:
    """Notes what it is told; sends what is put into `queue` to whoever asks first, `to[name]` to that one."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self.queue: deque[Frame] = deque()
        self.to: defaultdict[str, deque[Frame]] = defaultdict(deque)
        self.taken = 0
        self.endless: Frame | None = None  # sent whenever asked
        self.fails_on: Frame | None = None
        self._told = asyncio.Event()

    def _note(self, kind: str, name: str, value: Any = None) -> None:
        self.news.append(News(kind, name, value))
        self._told.set()

    def peer_up(self, name: str, hello: Hello) -> None:
        self._note("up", name, hello)

    def peer_frame(self, name: str, frame: Frame) -> None:
        self._note("frame", name, frame)
        if frame == self.fails_on:
            raise ValueError("a defect")

    def peer_down(self, name: str, reason: str) -> None:
        self._note("down", name, reason)

    def peer_refused(self, name: str) -> None:
        self._note("refused", name)

    def peer_silent(self, name: str) -> None:
        self._note("silent", name)

    def peer_heard(self, name: str) -> None:
        self._note("heard", name)

    def take_frame(self, name: str) -> Frame | None:
        queue = self.to[name] or self.queue
        frame = queue.popleft() if queue else self.endless
        if frame is not None:
            self.taken += 1
            self._told.set()
        return frame

    def count(self, kind: str, name: str) -> int:
        return sum(1 for news in self.news if news[:2] == (kind, name))

    def last(self, kind: str) -> Any:
        return next(news.value for news in reversed(self.news) if news.kind == kind)

    async def told(self, kind: str, name: str, times: int = 1) -> Any:
        """Wait until told so this often; the last one's value."""
        await self.until(lambda: self.count(kind, name) >= times, f"{kind} {name} {times} times")
        return [news.value for news in self.news if news[:2] == (kind, name)][times - 1]

    async def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            raise AssertionError(f"waited for {what}; was told {self.news}") from None


def hello(name: str, **changes: Any) -> Hello:
    return Hello("fleet", name, name * 32, 1, 1, 1024, "0.1")._replace(**changes)


class Nodes:
    """Ports of one test; all are closed at its end."""

    def __init__(self) -> None:
        self.ports: list[PeerPort] = []

    async def start(self, greeting: Hello | str, owner: Owner | None = None, **options: Any) -> PeerPort:
        options.setdefault("limits", QUICK)
        options.setdefault("secrets", lambda: SECRETS)
        port = PeerPort(
            hello(greeting) if isinstance(greeting, str) else greeting,
            options.pop("host", "127.0.0.1"),
            options.pop("port", 0),
            owner or Owner(),
            **options,
        )
        await port.start()
        self.ports.append(port)
        return port


@asynccontextmanager
async def nodes() -> AsyncIterator[Nodes]:
    started = Nodes()
    try:
        yield started
    finally:
        for port in started.ports:
            await port.close()


def address(port: PeerPort, **changes: Any) -> PeerAddress:
    return PeerAddress("127.0.0.1", port.port, port.hello.identity, port.hello.incarnation)._replace(
        **changes
    )


def addresses(*ports: PeerPort) -> dict[str, PeerAddress]:
    return {port.name: address(port) for port in ports}


class Dialler:
    """The other end of a stream, that does as it is told and nothing else."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.call = channel.stream_stream(EXCHANGE)()

    async def greet(
        self, greeting: Hello, secrets: tuple[bytes, ...] = SECRETS, nonce: bytes = bytes(NONCE_BYTES)
    ) -> Hello | Frame | Refusal:
        await self.call.write(pack_hello(greeting, nonce))
        answer = unpack_greeting(await self.read())
        if isinstance(answer.content, Hello) and nonce:
            both = (greeting, nonce, answer.content, answer.nonce)
            await self.call.write(pack_proofs(stream_proofs(secrets, DIALLER, *both)))
        assert answer.content is not None
        return answer.content

    async def read(self) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            data = await self.call.read()
        assert isinstance(data, bytes), data
        return data

    async def end(self) -> grpc.aio.AioRpcError:
        """Read to the end, which is an error; that one."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the stream ended without an error")


@asynccontextmanager
async def dialler(port: PeerPort) -> AsyncIterator[Dialler]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}", options=options) as channel:
        yield Dialler(channel)


def certificates(directory: Path) -> PeerTls:
    """A new authority's certificate for both roles, good for 127.0.0.1."""
    paths = [directory / name for name in ("certificate.pem", "key.pem")]
    command = [
        *(need_command("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"),
        *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=node"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])),
    ]
    subprocess.run(command, check=True, capture_output=True)
    tls = load_peer_tls(paths[0], paths[1], paths[0])
    assert tls is not None
    return tls


class Process:
    """A node in a process of its own, to be frozen and killed: `python -m tests.support.peering NAME`."""

    def __init__(self, name: str, other: PeerPort) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.peering", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self._process.stdin.write(f"{other.name} {other.port}\n")
        self._process.stdin.flush()
        self.address = PeerAddress("127.0.0.1", port, name * 32, 1)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


async def _be(name: str) -> None:
    async with nodes() as started:
        port = await started.start(name)
        print(port.port, flush=True)
        other, number = (await asyncio.to_thread(sys.stdin.readline)).split()
        port.set_peers({other: PeerAddress("127.0.0.1", int(number), other * 32, 1)})
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(lambda: _be(sys.argv[1]))
