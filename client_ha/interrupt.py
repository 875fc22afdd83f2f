"""Ctrl-C told apart from a KeyboardInterrupt that somebody's code raises: a task, a callback, a `__str__`.

A signal interrupts only the main thread, by way of the handler that is set for SIGINT. `asyncio.run` sets
one that cancels the main task and raises nothing before the second Ctrl-C. Python's own, which is left where
a loop is run in another way, is no Python code and leaves no trace: there the two look the same, and each
counts as Ctrl-C.
"""

import functools
import signal
import threading
import traceback


def is_interrupt(error: BaseException) -> bool:
    """Whether it may come from the user's Ctrl-C."""
    if not issubclass(type(error), KeyboardInterrupt):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    handler: object = signal.getsignal(signal.SIGINT)
    if isinstance(handler, signal.Handlers):
        return False  # ignored, or it would have ended the process
    while isinstance(handler, functools.partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)
    return code is None or any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))


def reraise_interrupt(error: BaseException) -> None:
    """Raise Ctrl-C again: it is the user's, and everything else somebody's exception."""
    if is_interrupt(error):
        raise error
