"""What a worker's task is given: the job, and the means to report on it."""

from collections.abc import Callable
from typing import Final

from client_ha.arguments import check_count, data_bytes
from client_ha.errors import InvalidArgument
from cluster.wire import request
from cluster.wire.packets import WORK_DATA, WORK_STATUS, WORK_WARNING

COUNT_MAX: Final = 2**32 - 1  # servers keep progress in 32 bits


class JobContext:
    """A job in a task's hands. Its methods return at once and may be called from any thread.

    payload     bytes, as submitted
    function    the name it was submitted under
    unique      the unique key
    handle      the server's name for the job
    server      "host:port" that it came from
    """

    __slots__ = ("_send", "_stopping", "function", "handle", "payload", "server", "unique")

    def __init__(
        self,
        *,
        function: str,
        unique: str,
        handle: str,
        payload: bytes,
        server: str,
        send: Callable[[bytes], object],
        stopping: Callable[[], bool],
    ) -> None:
        self.function = function
        self.unique = unique
        self.handle = handle
        self.payload = payload
        self.server = server
        self._send = send
        self._stopping = stopping

    def __repr__(self) -> str:
        return f"<JobContext {self.function} {self.handle} unique={self.unique}>"

    @property
    def text(self) -> str:
        """The payload as UTF-8 text. Raises UnicodeDecodeError."""
        return self.payload.decode()

    @property
    def stopping(self) -> bool:
        """The worker is draining: a long task may want to end early."""
        return self._stopping()

    def progress(self, numerator: int, denominator: int) -> None:
        """Report progress: `numerator` of `denominator`, whole numbers that fit in 32 bits.

        Raises InvalidArgument.
        """
        check_count("numerator", numerator, least=0)
        check_count("denominator", denominator, least=0)
        if not (0 <= numerator <= COUNT_MAX and 0 <= denominator <= COUNT_MAX):
            raise InvalidArgument(f"progress({numerator}, {denominator}): both must be from 0 to {COUNT_MAX}")
        self._send(request(WORK_STATUS, self.handle.encode(), b"%d" % numerator, b"%d" % denominator))

    def send_data(self, data: bytes | str) -> None:
        """Send a part of the result to the clients that wait now; servers do not keep it."""
        self._send(request(WORK_DATA, self.handle.encode(), data_bytes("data", data)))

    def warn(self, data: bytes | str) -> None:
        """Send a warning to the clients that wait now."""
        self._send(request(WORK_WARNING, self.handle.encode(), data_bytes("data", data)))
