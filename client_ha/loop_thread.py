"""An event loop in a thread of its own: how the synchronous classes use the asynchronous engine.

Calls go into a list that the loop empties in one go: a burst of submits wakes the loop once.
"""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from client_ha.log import logger

Result = TypeVar("Result")

# What a forked child inherited and must neither use nor free: see `let_go`.
_INHERITED: Final[list[object]] = []


class Outbox:
    """Calls from any thread into an event loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._closed = False

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call `function` in the loop's thread, after what was posted before. Nothing after `close`."""
        self._calls.append((function, arguments))
        # Append first, look second; the loop does it the other way round. So no call is overlooked.
        if not self._woken and not self._closed:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop was closed in this moment
                self._loop.call_soon_threadsafe(self._drain)

    def close(self) -> None:
        """From the loop's thread: take no more calls."""
        self._closed = True
        self._calls.clear()

    def _drain(self) -> None:
        self._woken = False
        calls = self._calls
        while calls:
            function, arguments = calls.popleft()
            try:
                function(*arguments)
            except Exception:
                # What was posted after it must not wait for the next post, which may never come.
                logger.exception("%s raised; what was posted after it goes on", function)


class LoopThread:
    """Runs until `stop`. Must not outlive a fork: the child makes its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.post = Outbox(self.loop).post
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop and wait for what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Stop the loop, close it, and wait for the thread."""
        with contextlib.suppress(RuntimeError):  # closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_current():
            self._thread.join()


def let_go(filenos: list[int], *objects: object) -> None:
    """In a forked child: release inherited sockets without a word to the servers.

    The parent still uses the connections. The numbers are pointed at /dev/null, not closed, so that nothing
    else gets them while inherited objects believe in them; the objects are kept from being freed.
    """
    _INHERITED.extend(objects)
    devnull = os.open(os.devnull, os.O_RDWR)
    for number in filenos:
        if number >= 0:
            with contextlib.suppress(OSError):
                os.dup2(devnull, number)
    os.close(devnull)
