"""The answer to a cancel, which is more than bytes.

It has a file of its own that is not compiled (see setup.py): mypyc cannot make a class from `bytes`.
"""

from __future__ import annotations


class Cancelled(bytes):
    """The answer to a cancel. As long as it waits for its group, this job is not surely over."""

    handle: bytes

    def __new__(cls, answer: bytes, handle: bytes) -> Cancelled:
        self = super().__new__(cls, answer)
        self.handle = handle
        return self
