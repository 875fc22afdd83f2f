"""Faults that no test machine has at hand: another time of day, a disk that fails.

A node started with this folder on PYTHONPATH runs it before anything else (Python's `site`). See
tests/support/faulty.py for how to ask for it.
"""

import errno
import os
import time

_real_time = time.time
_shift_seconds = float(os.environ.get("TEST_CLOCK_SHIFT_SECONDS", "0"))
_shift_path = os.environ.get("TEST_CLOCK_SHIFT_FILE", "")


def _read_shift() -> float:
    with open(_shift_path) as file:
        return float(file.read())


if _shift_path:
    time.time = lambda: _real_time() + _read_shift()
elif _shift_seconds:
    time.time = lambda: _real_time() + _shift_seconds

# While this file exists, the calls that it names fail.
_failing_calls_path = os.environ.get("TEST_FAILING_CALLS", "")
if _failing_calls_path:
    _real_pwrite, _real_fdatasync = os.pwrite, os.fdatasync

    def _words() -> list[str]:
        try:
            with open(_failing_calls_path) as file:
                return file.read().split()
        except FileNotFoundError:
            return []

    def _delay_seconds() -> float:
        call, *seconds = _words() or [""]
        return float(seconds[0]) if call == "fdatasync-slow" else 0.0

    def _hangs(descriptor: int) -> bool:
        call, *last_good = _words() or [""]
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        return call == "fdatasync-hangs" and (not last_good or name > last_good[0])

    def _pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if "pwrite" in _words():
            # As on a disk that fills up: a part is written before the error comes.
            if len(data) > 1:
                _real_pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _real_pwrite(descriptor, data, offset)

    def _fdatasync(descriptor: int) -> None:
        if "fdatasync" in _words():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if delay_seconds := _delay_seconds():
            time.sleep(delay_seconds)
        while _hangs(descriptor):
            time.sleep(0.01)
        _real_fdatasync(descriptor)

    os.pwrite, os.fdatasync = _pwrite, _fdatasync
