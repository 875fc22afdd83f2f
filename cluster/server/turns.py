"""The loop's selector: one wait for everything, and plain connections served on the spot.

asyncio makes a handle and a callback for each readable socket, and its transports a few objects more:
several microseconds for each read and write, as much as the job itself. Here the plain connections are
registered with the loop's own epoll, beside asyncio's files, but not with asyncio: what is ready of them
is handed over in one call, which is one turn of the node. Everything else (journal, TLS, timers, signals)
goes asyncio's ordinary way.
"""

from __future__ import annotations

import contextlib
import math
import select
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from time import monotonic
from typing import Any, Final

EVENTS_PER_TURN: Final = 1024
SPIN_CREDIT_MAX: Final = 8
SPIN_PROBE: Final = 64
TURNS_PER_SELECT: Final = 16  # before timers and the loop's other callbacks are looked at


class TurnSelector(BaseSelector):
    """An epoll selector for asyncio.SelectorEventLoop.

    Files that `epoll` has but asyncio did not register are `on_ready`'s business: it gets all events of
    a wait and picks its own.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        # Whether the loop has no callback of ours to run before the next wait.
        self.only_ours: Callable[[], bool] = lambda: True
        self.on_ready: Callable[[list[tuple[int, int]]], None] = lambda events: None
        self.spin_seconds = 0.0  # see _spin; 0 = never
        self._spins = 0
        self._spin_credit = 0
        self._keys: dict[int, SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None:
            wait = -1.0
        elif timeout <= 0:
            wait = 0.0
        else:
            # epoll counts milliseconds; wait at least as long as was asked.
            wait = math.ceil(timeout * 1e3) * 1e-3
        keys = self._keys
        poll = self.epoll.poll
        ready = []
        for _ in range(TURNS_PER_SELECT):
            try:
                events = poll(wait, EVENTS_PER_TURN)
            except InterruptedError:
                break
            for descriptor, mask in events:
                key = keys.get(descriptor)
                if key is not None:
                    found = (EVENT_WRITE if mask & ~select.EPOLLIN else 0) | (
                        EVENT_READ if mask & ~select.EPOLLOUT else 0
                    )
                    ready.append((key, found & key.events))
            if len(ready) < len(events):
                self.on_ready(events)
            if ready or not events or not self.only_ours():
                break
            if timeout is not None and timeout <= 0:
                break  # the loop has callbacks of others that are due: they must not wait for our load
            wait = 0.0  # as long as there is more, the loop has nothing to do with it
            if self.spin_seconds:
                self._spin()
        return ready

    def _spin(self) -> None:
        """Look out for the next event for a moment before the loop sleeps.

        An answer to what was just sent is often on its way, and waking a sleeping process costs more
        than the wait. Where it seldom pays, it is tried seldom.
        """
        self._spins += 1
        if self._spin_credit <= 0 and self._spins % SPIN_PROBE:
            return
        deadline = monotonic() + self.spin_seconds
        poll = self.epoll.poll
        while True:
            if poll(0, 1):
                self._spin_credit = min(SPIN_CREDIT_MAX, self._spin_credit + 1)
                return
            if monotonic() >= deadline:
                self._spin_credit = max(0, self._spin_credit - 2)
                return

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        descriptor = _descriptor(fileobj)
        if descriptor in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        key = SelectorKey(fileobj, descriptor, events, data)
        self.epoll.register(descriptor, _mask(events))
        self._keys[descriptor] = key
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        with contextlib.suppress(OSError):  # closed already, which takes it out
            self.epoll.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self._keys[_descriptor(fileobj)]
        key = old._replace(events=events, data=data)
        if events != old.events:
            self.epoll.modify(key.fd, _mask(events))
        self._keys[key.fd] = key
        return key

    def get_map(self) -> Mapping[Any, SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def close(self) -> None:
        self._keys.clear()
        self.epoll.close()


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _mask(events: int) -> int:
    return (select.EPOLLIN if events & EVENT_READ else 0) | (select.EPOLLOUT if events & EVENT_WRITE else 0)
