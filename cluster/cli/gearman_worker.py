"""Worker mode of `gearfleet gearman`: a command for each job, its output as the result."""

import contextlib
import os
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from client_ha.addresses import Server
from client_ha.stopping import Patience
from cluster.cli.gearman import Options, message
from cluster.cli.peer import Peer, Unreachable
from cluster.cli.signals import stopped_by
from cluster.wire import packets as wire
from cluster.wire import request, split_arguments

# Between attempts to reach a server that is down. The stock tool tries without a pause.
RECONNECT_SECONDS: Final = 1.0


def run(options: Options, servers: Sequence[Server], tls: ssl.SSLContext | None) -> int:
    """Work until -c jobs are done; a time-out or an unreachable server counts as one, as in gearman.

    SIGTERM and SIGINT let the command that runs finish; a later one kills it, and its job goes back.
    """
    worker = Worker(options, servers, tls)
    left = options.count
    before = {number: signal.signal(number, worker.signalled) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            worker.work()
            if left > 0:
                left -= 1
                if left == 0:
                    return 0
            if not worker.connected:
                time.sleep(RECONNECT_SECONDS)
    except Stopped:
        return 0
    finally:
        worker.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """A signal has ended the worker, where nothing runs or whoever sent it has lost patience."""


class Worker:
    """Connections to all servers; takes jobs from each in turn."""

    def __init__(self, options: Options, servers: Sequence[Server], tls: ssl.SSLContext | None) -> None:
        self._options = options
        self._servers = list(servers)
        self._tls = tls
        self._peers: dict[Server, Peer] = {}
        self._next_attempt_seconds = 0.0  # on the monotonic clock
        self._patience = Patience()
        self._stopping = False
        self._ended = False  # Stopped was raised: what comes now finds the worker leaving
        self._busy = False  # has a job: from the assignment until the result was sent

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """A signal handler. Raises Stopped out of whatever waits; out of a job only at the second wish."""
        self._stopping = True
        impatient = self._patience.signalled(time.monotonic())
        if (impatient or not self._busy) and not self._ended:
            self._ended = True
            raise Stopped

    @property
    def connected(self) -> bool:
        """Whether at least one server is there."""
        return bool(self._peers)

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def work(self) -> None:
        """Wait for a job and do it. What goes wrong is said on standard error."""
        while True:
            fault = self._connect()
            if not self._peers:
                message("gearman_worker_work", f"(GEARMAN_COULD_NOT_CONNECT) {fault}")
                return
            for server, peer in list(self._peers.items()):
                try:
                    job = _grab(peer)
                    if job is not None:
                        self._do_whole(server, peer, *job)
                        return
                except Unreachable as gone:
                    self._lose(server, str(gone))
                except TimeoutError:
                    self._lose(server, f"{server}: (GEARMAN_TIMEOUT) timeout reached")
                    return
            if self._peers and not self._sleep():
                message("gearman_worker_work", "(GEARMAN_TIMEOUT) timeout reached")
                return

    def _connect(self) -> Unreachable | None:
        """Try the servers that are away, but not all the time; return the last fault."""
        fault = None
        if self._peers and time.monotonic() < self._next_attempt_seconds:
            return None
        self._next_attempt_seconds = time.monotonic() + 10 * RECONNECT_SECONDS
        for server in self._servers:
            if server in self._peers:
                continue
            try:
                peer = Peer(server, timeout_seconds=self._options.timeout_seconds, tls=self._tls)
                peer.send(b"".join(request(wire.CAN_DO, os.fsencode(f)) for f in self._options.functions))
                self._peers[server] = peer
            except Unreachable as unreachable:
                fault = unreachable
        return fault

    def _lose(self, server: Server, fault: str) -> None:
        message("gearman_worker_work", fault)
        self._peers.pop(server).close()
        self._next_attempt_seconds = 0.0 if not self._peers else self._next_attempt_seconds

    def _sleep(self) -> bool:
        """Wait until a server has a job, or went away; whether that came in time."""
        timeout_seconds = self._options.timeout_seconds
        if len(self._peers) < len(self._servers):
            # Servers that are away must be tried again, also when no job comes.
            timeout_seconds = min(timeout_seconds or 1e9, 10 * RECONNECT_SECONDS)
        for server, peer in list(self._peers.items()):
            try:
                peer.send(request(wire.PRE_SLEEP))
            except Unreachable as gone:
                self._lose(server, str(gone))
                return True
        if any(peer.has_packet for peer in self._peers.values()):
            return True
        readable, _, _ = select.select(list(self._peers.values()), [], [], timeout_seconds)
        return bool(readable) or self._options.timeout_seconds is None

    def _do_whole(self, server: Server, peer: Peer, handle: bytes, function: bytes, payload: bytes) -> None:
        """Do a job and send how it ended, whoever asks to stop meanwhile."""
        self._busy = True
        try:
            ended_by = self._do(peer, handle, function, payload)
        finally:
            self._busy = False
        if ended_by is not None:
            # Gearman has no packet for it: the server gives a job back whose worker hangs up.
            self._lose(
                server, f"{self._options.arguments[0]} was ended by {ended_by.name}; its job goes back"
            )
        else:
            # The other servers' turn comes first next time.
            self._peers[server] = self._peers.pop(server)
        if self._stopping and not self._ended:
            raise Stopped

    def _do(self, peer: Peer, handle: bytes, function: bytes, payload: bytes) -> signal.Signals | None:
        """Run the command and send what comes of it; return the signal that has stopped it, if one has."""
        options = self._options
        if not options.arguments:
            sys.stdout.buffer.write(payload)
            sys.stdout.buffer.flush()
            peer.send(request(wire.WORK_COMPLETE, handle, b""))
            return None
        try:
            process = subprocess.Popen(options.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            message(options.arguments[0], f"{error.strerror}")
            peer.send(request(wire.WORK_FAIL, handle))
            return None
        output = b""
        with process:
            try:
                if options.lines:
                    self._send_lines(peer, process, handle, payload)
                else:
                    output, _ = process.communicate(payload)
            except Stopped:
                process.kill()
                raise
        if process.returncode == 0:
            peer.send(request(wire.WORK_COMPLETE, handle, output))
            return None
        ended_by = stopped_by(process.returncode, stopping=self._stopping)
        if ended_by is None:
            if output:
                peer.send(request(wire.WORK_DATA, handle, output))
            peer.send(request(wire.WORK_FAIL, handle))
        return ended_by

    def _send_lines(
        self, peer: Peer, process: "subprocess.Popen[bytes]", handle: bytes, payload: bytes
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        # A command may print before it has read everything: feed it meanwhile.
        feeder = threading.Thread(target=_feed, args=(process, payload), daemon=True)
        feeder.start()
        for line in process.stdout:
            data = line.removesuffix(b"\n") if self._options.strip else line
            peer.send(request(wire.WORK_DATA, handle, data))
        feeder.join()


def _feed(process: "subprocess.Popen[bytes]", payload: bytes) -> None:
    assert process.stdin is not None
    # A command may end, or close its input, without having read it all.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(payload)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _grab(peer: Peer) -> tuple[bytes, bytes, bytes] | None:
    """Ask for a job: (handle, function, payload), or None."""
    peer.send(request(wire.GRAB_JOB_UNIQ))
    while True:
        packet_type, body = peer.packet()
        if packet_type == wire.NO_JOB:
            return None
        if packet_type == wire.JOB_ASSIGN_UNIQ:
            handle, function, _, payload = split_arguments(packet_type, body)
            return handle, function, payload
        if packet_type == wire.ERROR:
            code, text = split_arguments(packet_type, body)
            message("gearman_worker_work", f"(GEARMAN_{code.decode()}) {text.decode('utf-8', 'replace')}")
