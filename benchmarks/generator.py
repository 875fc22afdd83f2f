"""The load: clients and workers in one process, on raw non-blocking sockets and epoll.

It must cost less than the server that it drives. So packets are encoded before the clock starts and sent as
slices of one block, and answers are counted by searching for their header in what arrived instead of being
parsed: a handle never contains a NUL, and neither does the payload used here. Only workers parse, because
they must give the handle back.

Run as a process of its own: it connects, says "ready", waits for a line, works, and prints its figures.

    fg      clients submit foreground jobs, workers echo them; a job ends with its WORK_COMPLETE
    bg      clients submit background jobs; a job ends with its acknowledgement, JOB_CREATED
    drain   workers alone: grab and complete what is queued
    bgfull  background submits and workers at once; a job ends when a worker has completed it
"""

import argparse
import json
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Final

from cluster.wire import packets, request
from cluster.wire.encode import HEADER
from cluster.wire.packets import HEADER_BYTES, MAGIC_REQUEST, MAGIC_RESPONSE

MODES: Final = ("fg", "bg", "drain", "bgfull")
RECEIVE_BYTES: Final = 64 * 1024  # from 128 KiB on, malloc maps and unmaps memory for each call
POLL_SECONDS: Final = 0.5

_ANSWER_BYTES: Final = 8  # magic and type
_CREATED: Final = HEADER.pack(MAGIC_RESPONSE, packets.JOB_CREATED, 0)[:_ANSWER_BYTES]
_COMPLETE: Final = HEADER.pack(MAGIC_RESPONSE, packets.WORK_COMPLETE, 0)[:_ANSWER_BYTES]
_ASSIGN: Final = HEADER.pack(MAGIC_RESPONSE, packets.JOB_ASSIGN, 0)[:_ANSWER_BYTES]
_FAIL: Final = HEADER.pack(MAGIC_RESPONSE, packets.WORK_FAIL, 0)[:_ANSWER_BYTES]
_ERROR: Final = HEADER.pack(MAGIC_RESPONSE, packets.ERROR, 0)[:_ANSWER_BYTES]
_GRAB: Final = request(packets.GRAB_JOB)
_PRE_SLEEP: Final = request(packets.PRE_SLEEP)


def encode_submits(
    packet_type: int, function: bytes, prefix: bytes, jobs: int, payload: bytes
) -> tuple[bytes, int]:
    """All packets of one client in one block, all of the same length; return the block and that length."""
    head = HEADER.pack(MAGIC_REQUEST, packet_type, len(function) + 1 + len(prefix) + 8 + 1 + len(payload)) + (
        function + b"\0" + prefix
    )
    tail = b"\0" + payload
    block = b"".join([b"%b%08x%b" % (head, number, tail) for number in range(jobs)])
    return block, len(head) + 8 + len(tail)


class Peer:
    """One non-blocking connection with what could not be sent yet."""

    __slots__ = ("_poller", "_unsent", "socket")

    def __init__(self, address: tuple[str, int], poller: select.epoll) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._unsent: bytes | memoryview = b""
        self._poller = poller
        poller.register(self.socket.fileno(), select.EPOLLIN)

    def send(self, data: bytes | memoryview) -> None:
        if self._unsent:
            self._unsent = bytes(self._unsent) + bytes(data)
            return
        sent = self._send_some(data)
        if sent < len(data):
            self._unsent = data[sent:]
            self._poller.modify(self.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        self._unsent = self._unsent[self._send_some(self._unsent) :]
        if not self._unsent:
            self._poller.modify(self.socket.fileno(), select.EPOLLIN)

    def _send_some(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes:
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise ConnectionError("the server closed a connection of the load generator")
        return data

    def begin(self) -> None:
        raise NotImplementedError

    def on_readable(self) -> int:
        """Take what arrived; return how many jobs came to their end with it."""
        raise NotImplementedError


class Client(Peer):
    """Keeps a number of submits in flight and counts what answers them."""

    __slots__ = (
        "_answer",
        "_batches",
        "_block",
        "_end",
        "_next",
        "_packet_bytes",
        "_rest",
        "errors",
        "waits_us",
    )

    def __init__(
        self, address: tuple[str, int], poller: select.epoll, block: bytes, packet_bytes: int, in_flight: int
    ) -> None:
        super().__init__(address, poller)
        self._answer = _CREATED
        self._block = memoryview(block)
        self._packet_bytes = packet_bytes
        self._next = 0
        self._end = in_flight * packet_bytes
        self._rest = b""
        self._batches: deque[tuple[int, int]] = deque()  # (when sent in ns, jobs), oldest first
        self.errors = 0
        self.waits_us: Counter[int] = Counter()

    def await_completion(self) -> None:
        self._answer = _COMPLETE

    def begin(self) -> None:
        self._submit(self._end)

    def _submit(self, size: int) -> None:
        piece = self._block[self._next : self._next + size]
        if piece:
            self._next += len(piece)
            self._batches.append((time.monotonic_ns(), len(piece) // self._packet_bytes))
            self.send(piece)

    def on_readable(self) -> int:
        data = self._rest + self.receive()
        answers = data.count(self._answer)
        errors = data.count(_ERROR)
        if self._answer is _COMPLETE:
            errors += data.count(_FAIL)
        self._rest = data[1 - _ANSWER_BYTES :]  # may be the beginning of a header, and is too short to be one
        self.errors += errors
        ended = answers + errors
        if ended:
            self._record(ended)
            self._submit(ended * self._packet_bytes)
        return ended

    def _record(self, ended: int) -> None:
        now = time.monotonic_ns()
        batches = self._batches
        while ended:
            sent_at, count = batches[0]
            taken = min(count, ended)
            self.waits_us[(now - sent_at) // 1000] += taken
            ended -= taken
            if taken == count:
                batches.popleft()
            else:
                batches[0] = (sent_at, count - taken)


class Worker(Peer):
    """Grabs one job at a time and answers it with a payload prepared beforehand."""

    __slots__ = ("_buffer", "_function", "_heads", "_payload_bytes", "_tail")

    def __init__(
        self, address: tuple[str, int], poller: select.epoll, function: bytes, payload: bytes
    ) -> None:
        super().__init__(address, poller)
        self._function = function
        self._payload_bytes = len(payload)
        self._tail = b"\0" + payload + _GRAB
        self._heads: dict[int, bytes] = {}  # by the length of a handle
        self._buffer = b""

    def begin(self) -> None:
        self.send(request(packets.CAN_DO, self._function) + _GRAB)

    def on_readable(self) -> int:
        data = self.receive()
        length = len(data)
        if (
            not self._buffer
            and data.startswith(_ASSIGN)
            and HEADER.unpack_from(data)[2] == length - HEADER_BYTES
        ):
            # One job and nothing else, as nearly always: the short way.
            end = data.find(b"\0", HEADER_BYTES)
            self.send(self._head(end - HEADER_BYTES) + data[HEADER_BYTES:end] + self._tail)
            return 1
        data = self._buffer + data
        length = len(data)
        offset = 0
        ended = 0
        out: list[bytes] = []
        while length - offset >= HEADER_BYTES:
            _, packet_type, size = HEADER.unpack_from(data, offset)
            body = offset + HEADER_BYTES
            if body + size > length:
                break
            if packet_type == packets.JOB_ASSIGN:
                handle = data[body : data.index(0, body)]
                out += (self._head(len(handle)), handle, self._tail)
                ended += 1
            elif packet_type == packets.NOOP:
                out.append(_GRAB)
            elif packet_type == packets.NO_JOB:
                out.append(_PRE_SLEEP)
            offset = body + size
        self._buffer = data[offset:]
        if out:
            self.send(b"".join(out))
        return ended

    def _head(self, handle_bytes: int) -> bytes:
        head = self._heads.get(handle_bytes)
        if head is None:
            size = handle_bytes + 1 + self._payload_bytes
            head = self._heads[handle_bytes] = HEADER.pack(MAGIC_REQUEST, packets.WORK_COMPLETE, size)
        return head


def generate(options: argparse.Namespace) -> dict[str, object]:
    poller = select.epoll()
    address = (options.host, options.port)
    function = options.function.encode()
    payload = b"x" * options.payload_bytes
    clients: list[Client] = []
    workers: list[Worker] = []
    if options.mode != "drain":
        packet_type = packets.SUBMIT_JOB if options.mode == "fg" else packets.SUBMIT_JOB_BG
        for number in range(options.clients):
            share = options.jobs // options.clients + (number < options.jobs % options.clients)
            # Unique for each run and each client, and of one length.
            prefix = b"%08x%04x-" % (time.monotonic_ns() // 1000 & 0xFFFFFFFF, os.getpid() & 0xFFFF)
            block, packet_bytes = encode_submits(
                packet_type, function, prefix + b"%02x" % number, share, payload
            )
            client = Client(address, poller, block, packet_bytes, options.in_flight)
            if options.mode == "fg":
                client.await_completion()
            clients.append(client)
    if options.mode != "bg":
        workers = [Worker(address, poller, function, payload) for _ in range(options.workers)]
    peers: dict[int, Peer] = {peer.socket.fileno(): peer for peer in (*clients, *workers)}
    counted = {peer.socket.fileno() for peer in (clients if options.mode in ("fg", "bg") else workers)}

    print("ready", flush=True)
    sys.stdin.readline()
    cpu_begun = time.process_time()
    begun = time.monotonic()
    for peer in (*workers, *clients):
        peer.begin()
    done = 0
    limit = begun + options.seconds_max
    while done < options.jobs:
        for descriptor, event in poller.poll(POLL_SECONDS):
            peer = peers[descriptor]
            if event & select.EPOLLOUT:
                peer.flush()
            if event & ~select.EPOLLOUT:
                ended = peer.on_readable()
                if descriptor in counted:
                    done += ended
        if time.monotonic() > limit:
            break
    ended_at = time.monotonic()
    waits_us: Counter[int] = Counter()
    for client in clients:
        waits_us += client.waits_us
    return {
        "jobs": done,
        "begun": begun,
        "ended": ended_at,
        "cpu_seconds": time.process_time() - cpu_begun,
        "errors": sum(client.errors for client in clients),
        "waits_us": sorted(waits_us.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generator", description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=64, help="submits in flight per client")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--payload-bytes", type=int, default=64)
    parser.add_argument("--function", default="bench")
    parser.add_argument("--seconds-max", type=float, default=60.0)
    print(json.dumps(generate(parser.parse_args())))


if __name__ == "__main__":
    main()
