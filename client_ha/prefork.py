"""Worker processes: forked, watched, replaced when they die, drained together."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

from client_ha.log import logger
from client_ha.stopping import Patience
from client_ha.timing import Timing, backoff_seconds

HEALTHY_SECONDS: Final = 5.0  # a child that lived so long is replaced at once; others after a pause
KILL_GRACE_SECONDS: Final = 5.0  # a child that has not drained this long after its own limit is killed
_POLL_SECONDS: Final = 0.2  # where no signal says that a child died (not in the main thread)


# What the parent says to its children. Not by signals: a child may have got the parent's own already, since
# systemd, supervisord and `tini -g` signal the whole group, and would take a second one for impatience.
DRAIN: Final = b"d"
END: Final = b"e"


class _Child(NamedTuple):
    started_at: float
    words: socket.socket  # the parent's end: DRAIN, END


class Prefork:
    """Keeps `count` children running. `child(parent)` runs in each.

    `parent` is a socket with the parent's words, DRAIN or END; its end means that the parent is gone.
    """

    def __init__(self, count: int, child: Callable[[socket.socket], None], drain_seconds: float) -> None:
        self._count = count
        self._child = child
        self._drain_seconds = drain_seconds
        self._children: dict[int, _Child] = {}  # by process id
        self._failures = 0
        self._stopping = False
        self._hurry = False
        self._patience = Patience()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    @property
    def process_ids(self) -> list[int]:
        return list(self._children)

    def stop(self) -> None:
        """Drain and end. From any thread, or a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_write.send(b"s")

    def _signalled(self) -> None:
        self._hurry = self._patience.signalled(time.monotonic()) or self._hurry
        self.stop()

    def run(self) -> None:
        """Return when all children have ended after `stop`."""
        in_main = threading.current_thread() is threading.main_thread()
        before: dict[signal.Signals, object] = {}
        wakeup_before = -1
        if in_main:
            wakeup_before = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, lambda *_: self._signalled())
        try:
            self._watch(None if in_main else _POLL_SECONDS)
        finally:
            if in_main:
                signal.set_wakeup_fd(wakeup_before)
                for number, handler in before.items():
                    signal.signal(number, handler)  # type: ignore[arg-type]
            self._wake_read.close()
            self._wake_write.close()

    def _watch(self, poll_seconds: float | None) -> None:
        next_start = 0.0
        told = hurried = False
        deadline = float("inf")
        while True:
            now = time.monotonic()
            if self._stopping and not told:
                told = True
                deadline = now + self._drain_seconds + KILL_GRACE_SECONDS
                self._tell(DRAIN)
            if self._hurry and not hurried:
                hurried = True
                deadline = now + KILL_GRACE_SECONDS
                self._tell(END)
            if told and not self._children:
                return
            if now > deadline:
                logger.error("worker processes %s did not drain; killing them", self.process_ids)
                self._kill()
                deadline = float("inf")
            if not self._stopping and now >= next_start:
                while len(self._children) < self._count:
                    self._start()
            waits = [deadline - now]
            if poll_seconds is not None:
                waits.append(poll_seconds)
            if not self._stopping and len(self._children) < self._count:
                waits.append(next_start - now)
            wait = min(waits)
            select.select([self._wake_read], [], [], None if wait == float("inf") else max(0.0, wait))
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4096)
            next_start = max(next_start, self._reap())

    def _tell(self, word: bytes) -> None:
        for child in self._children.values():
            with contextlib.suppress(OSError):
                child.words.send(word)

    def _kill(self) -> None:
        for process_id in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def _reap(self) -> float:
        """Collect dead children; return when the next may be started."""
        next_start = 0.0
        for process_id, child in list(self._children.items()):
            try:
                ended, status = os.waitpid(process_id, os.WNOHANG)
            except ChildProcessError:  # somebody else has collected it
                ended, status = process_id, 0
            if not ended:
                continue
            del self._children[process_id]
            child.words.close()
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            now = time.monotonic()
            if code == 0 or now - child.started_at >= HEALTHY_SECONDS:
                self._failures = 0
            else:
                self._failures += 1
                next_start = now + backoff_seconds(
                    Timing(backoff_first_seconds=0.1, backoff_max_seconds=10.0), self._failures, lambda: 1.0
                )
            if code:
                logger.error("worker process %d ended with %d; another takes its place", process_id, code)
        return next_start

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent, words = socket.socketpair()
        process_id = os.fork()
        if process_id:
            parent.close()
            self._children[process_id] = _Child(time.monotonic(), words)
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Ctrl-C reaches the whole group; the parent passes it on, once.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._wake_read.close()
            self._wake_write.close()
            # Were the parent's ends open here, its children would not notice its death.
            for other in self._children.values():
                other.words.close()
            words.close()
            parent.setblocking(False)
            self._child(parent)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
