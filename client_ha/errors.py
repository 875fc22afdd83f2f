"""Everything that can go wrong, as one tree.

    GearfleetError
    ├── CallerMistake             fix the call
    │   ├── InvalidArgument       (also a ValueError) an argument that no server would take
    │   ├── ClientClosed          used after close(), or closed while a job was under way
    │   ├── NoResult              result() of a background job: nobody tells its client how it ends
    │   ├── TooManyJobs           more jobs under way than the client may hold
    │   └── WrongThread           result() called where waiting for it can never end
    ├── ServerError               the servers' side; the job did not begin
    │   ├── NoServerAvailable     nobody acknowledged in time; `attempts`: who was tried, what happened
    │   └── ServerRefused         a server answered with an error; `code`, `text`, `server`
    │       └── ServerBusy        … that says "try again" (QUEUE_ERROR), until the time was up
    ├── NotAllAcknowledged        submit_many: some jobs were refused; `jobs`, `failed`
    ├── JobError                  the job began
    │   ├── JobFailed             the worker said that it failed (WORK_FAIL)
    │   │   └── JobCancelled      … or this client's cancel() took it from its server
    │   ├── JobException          the worker raised; `payload` is what it sent (WORK_EXCEPTION)
    │   ├── JobTimeout            (also a TimeoutError) not finished in time; it may still finish
    │   └── JobLost               its server went away again and again
    └── Retry                     raised by a worker's task: give the job back to its server

A task of a worker may raise JobFailed (WORK_FAIL) and Retry itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from client_ha.job import BaseJob

RETRY_AFTER_SECONDS_MAX: Final = 86_400  # a day; servers take no more


class GearfleetError(Exception):
    """The root of the tree."""


class CallerMistake(GearfleetError):
    """The call has to be changed; trying it again does not help."""


class InvalidArgument(CallerMistake, ValueError):
    """An argument that no Gearman server would take; the message names the limit."""


class ClientClosed(CallerMistake):
    """The client was closed, before or while this was under way."""


class NoResult(CallerMistake):
    """The result of a background job was asked for; Gearman sends it to nobody."""


class TooManyJobs(CallerMistake):
    """More jobs are under way than one client may hold; take results before submitting more, or use map()."""


class WrongThread(CallerMistake):
    """A result was awaited inside a callback of the same client; it could never come."""


class ServerError(GearfleetError):
    """No server took the job, so nothing is known to run; repeat it with the same unique key."""


class NoServerAvailable(ServerError):
    """No server acknowledged in time. `attempts` has each server with what happened there."""

    def __init__(self, what: str, seconds: float, attempts: Sequence[tuple[str, str]]) -> None:
        self.attempts: tuple[tuple[str, str], ...] = tuple(attempts)
        tried = "; ".join(f"{server}: {error}" for server, error in self.attempts)
        super().__init__(
            f"no Gearman server acknowledged {what} within {seconds:.3g} s. Tried {tried or 'nobody'}. "
            "Check that a server runs at these addresses, then submit again with the same unique key"
        )


class ServerRefused(ServerError):
    """A server answered with an ERROR packet."""

    def __init__(self, code: str, text: str, server: str, what: str, remedy: str = "") -> None:
        self.code = code
        self.text = text
        self.server = server
        super().__init__(
            f"{server} refused {what}: {code} {text!r}. "
            + (remedy or "The same submit would be refused again: change it, or the server's limits")
        )


class ServerBusy(ServerRefused):
    """Every server that could be reached said "try again" (queue or disk full) until the time was up."""

    def __init__(self, code: str, text: str, server: str, what: str) -> None:
        super().__init__(
            code, text, server, what, "Nothing was queued: submit again later with the same unique key"
        )


class NotAllAcknowledged(GearfleetError):
    """submit_many: some jobs were not acknowledged. `jobs` has all, `failed` those with an error."""

    def __init__(self, jobs: Sequence["BaseJob"], failed: Sequence["BaseJob"]) -> None:
        self.jobs = tuple(jobs)
        self.failed = tuple(failed)
        first = self.failed[0].error if self.failed else None
        super().__init__(
            f"{len(self.failed)} of {len(self.jobs)} jobs were not acknowledged; the first: {first}. "
            "Submit those in `failed` again, with the same unique keys"
        )


FAILED_WITHOUT_TEXT: Final = (
    "the worker reported failure; its own log says why. A job that another client cancels ends like this, too"
)
# Begins the warning (WORK_WARNING) with a failure's text, which ends with a line's end. Every client shows
# warnings as they come, and is then told of the failure.
FAILURE_TEXT: Final = b"JobFailed: "


class JobError(GearfleetError):
    """A server took the job, and it did not end well."""


class JobFailed(JobError):
    """The worker reported failure (WORK_FAIL). A task raises it to report that; its text reaches the client.

    Gearman's packet has no room for one: HAWorker sends it just before, as a warning (FAILURE_TEXT).
    """

    def __init__(self, message: str = FAILED_WITHOUT_TEXT) -> None:
        super().__init__(message)


class JobCancelled(JobFailed):
    """This client cancelled the job. Servers tell others who wait that it failed: there it is JobFailed."""


class JobException(JobError):
    """The task raised; `payload` is what the worker sent of it."""

    def __init__(self, payload: bytes, what: str = "the task") -> None:
        self.payload = payload
        text = payload[:500].decode("utf-8", "replace")
        super().__init__(f"{what} raised in its worker: {text}. See the worker's log; a repeat runs it again")


class JobTimeout(JobError, TimeoutError):
    """Not finished within the time given. The job goes on at its server; result() may be asked again.

    `jobs` has a task set's jobs, when a task set ran out of time.
    """

    def __init__(self, message: str, jobs: "Sequence[BaseJob]" = ()) -> None:
        super().__init__(message)
        self.jobs = tuple(jobs)


class JobLost(JobError):
    """The job's servers went away too many times while it was under way."""


class Retry(GearfleetError):
    """Raised by a worker's task to give its job back to the server, which hands it to a worker again.

    The server counts it as a failed try (`--job-retries`). A job that comes back again and again waits ever
    longer, up to five minutes; with `after` it waits at least so many seconds, from 0 to a day. A number
    outside is taken as the nearest of these, anything else as no `after`; the worker's log warns of it.

    Gearman has no packet for it. To a stock server the worker closes the connection that the job came on, as
    soon as no other job runs on it, and connects again; `after` is without effect there.
    """

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        # Taken as it is: an error raised here would take the place of the wish, and the job would fail.
        super().__init__(message)
        self.after = after
