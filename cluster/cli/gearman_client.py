"""Client mode of `gearfleet gearman`: jobs from arguments, lines or standard input, one after another."""

import contextlib
import functools
import os
import ssl
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from client_ha.addresses import Server
from cluster.cli.gearman import Options, message
from cluster.cli.no_worker import NoWorkerWatch
from cluster.cli.peer import Peer, Unreachable
from cluster.cli.servers import Servers
from cluster.wire import packets as wire
from cluster.wire import request, split_arguments
from cluster.wire.numbers import progress_number

EXIT_JOB_FAILED: Final = 1
_SUBMITS: Final = {
    (False, "high"): wire.SUBMIT_JOB_HIGH,
    (False, "normal"): wire.SUBMIT_JOB,
    (False, "low"): wire.SUBMIT_JOB_LOW,
    (True, "high"): wire.SUBMIT_JOB_HIGH_BG,
    (True, "normal"): wire.SUBMIT_JOB_BG,
    (True, "low"): wire.SUBMIT_JOB_LOW_BG,
}


@dataclass(slots=True)
class Task:
    """One job under way: its function, and its handle once it has one."""

    function: str
    handle: bytes = b""


def run(options: Options, servers: Sequence[Server], tls: ssl.SSLContext | None) -> int:
    """Submit everything; return 1 when a job failed, else 0, as gearman does even without a server."""
    client = Client(options, servers, tls)
    asked = Servers(tuple(servers), 0.0, tls)
    try:
        for payload in payloads(options):
            with contextlib.ExitStack() as watching:
                if not options.background:
                    say = functools.partial(message, "gearman_client_run_tasks")
                    watching.enter_context(NoWorkerWatch(asked, options.functions, say))
                client.run(payload)
    finally:
        client.close()
    return EXIT_JOB_FAILED if client.failed else 0


def payloads(options: Options) -> Iterator[bytes]:
    """Arguments; else nothing with -s; else the lines, or the whole, of standard input."""
    if options.arguments:
        yield from (os.fsencode(argument) for argument in options.arguments)
    elif options.no_input:
        yield b""
    elif options.lines:
        for line in sys.stdin.buffer:
            yield line.removesuffix(b"\n") if options.strip else line
    else:
        yield sys.stdin.buffer.read()


class Client:
    """A connection, made when first needed, to the first server that answers."""

    def __init__(self, options: Options, servers: Sequence[Server], tls: ssl.SSLContext | None) -> None:
        self._options = options
        self._servers = servers
        self._tls = tls
        self._peer: Peer | None = None
        self.failed = False

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def run(self, payload: bytes) -> None:
        """Submit one payload to every function and see the jobs to their ends."""
        # The last function comes first, as libgearman does it.
        functions = [f for f in reversed(self._options.functions) if self._acceptable(f)]
        tasks = [Task(function) for function in functions]
        if not tasks:
            return
        try:
            peer = self._peer = self._peer or self._connect()
            for task in tasks:
                peer.send(self._submit(task, payload))
            self._wait(peer, tasks)
        except Unreachable as fault:
            message("gearman_client_run_tasks", f"(GEARMAN_COULD_NOT_CONNECT) {fault}")
            self.close()
        except TimeoutError:
            message("gearman_client_run_tasks", "(GEARMAN_TIMEOUT) timeout reached")
            # Answers to these jobs may still come; they must not be taken for the next ones'.
            self.close()

    def _acceptable(self, function: str) -> bool:
        size_bytes = len(os.fsencode(function))
        unique_bytes = len(os.fsencode(self._options.unique or ""))
        if not 0 < size_bytes <= wire.FUNCTION_BYTES_MAX:
            fault = f"a function's name has 1 to {wire.FUNCTION_BYTES_MAX} bytes, not {size_bytes}"
        elif unique_bytes > wire.UNIQUE_BYTES_MAX:
            fault = f"a unique key has at most {wire.UNIQUE_BYTES_MAX} bytes, not {unique_bytes}"
        else:
            return True
        message("gearman_client_add_task", f"(GEARMAN_INVALID_ARGUMENT) {fault}")
        return False

    def _connect(self) -> Peer:
        fault: Unreachable | None = None
        for server in self._servers:
            try:
                return Peer(server, timeout_seconds=self._options.timeout_seconds, tls=self._tls)
            except Unreachable as unreachable:
                fault = fault or unreachable
        assert fault is not None
        raise fault

    def _submit(self, task: Task, payload: bytes) -> bytes:
        # libgearman gives a job without a unique key one of its own.
        unique = os.fsencode(self._options.unique) if self._options.unique else str(uuid.uuid4()).encode()
        kind = _SUBMITS[self._options.background, self._options.priority]
        return request(kind, os.fsencode(task.function), unique, payload)

    def _wait(self, peer: Peer, tasks: list[Task]) -> None:
        created = iter(tasks)
        waiting = len(tasks)
        running: dict[bytes, list[Task]] = {}
        while waiting:
            packet_type, body = peer.packet()
            arguments = split_arguments(packet_type, body)
            if packet_type == wire.JOB_CREATED:
                # In the order of the submits; a joined job gives the same handle twice.
                task = next(created)
                task.handle = body
                if self._options.verbose:
                    _write(sys.stdout, b"Task created: " + body + b"\n")
                if self._options.background:
                    waiting -= 1
                else:
                    running.setdefault(body, []).append(task)
            elif packet_type == wire.ERROR:
                next(created, None)
                waiting -= 1
                code, text = (argument.decode("utf-8", "replace") for argument in arguments)
                message("gearman_client_run_tasks", f"(GEARMAN_{code}) {text}")
            elif arguments and arguments[0] in running:
                for task in running[arguments[0]]:
                    self._hear(task, packet_type, arguments)
                if packet_type in (wire.WORK_COMPLETE, wire.WORK_FAIL, wire.WORK_EXCEPTION):
                    waiting -= len(running.pop(arguments[0]))

    def _hear(self, task: Task, packet_type: int, arguments: list[bytes]) -> None:
        prefix = f"{task.function}: ".encode() if self._options.prefix else b""
        if packet_type in (wire.WORK_DATA, wire.WORK_COMPLETE):
            _write(sys.stdout, prefix + arguments[1])
        elif packet_type in (wire.WORK_WARNING, wire.WORK_EXCEPTION):
            _write(sys.stderr, prefix + arguments[1])
        elif packet_type == wire.WORK_STATUS:
            numerator, denominator = (int(progress_number(text)) for text in arguments[1:3])
            share = 100 * numerator // denominator if denominator else 0
            _write(sys.stdout, prefix + b"%d%% Complete\n" % share)
        elif packet_type == wire.WORK_FAIL:
            _write(sys.stderr, prefix + b"Job failed\n")
            self.failed = True


def _write(stream: TextIO, data: bytes) -> None:
    stream.buffer.write(data)
    stream.buffer.flush()
