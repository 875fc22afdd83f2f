"""How long the library waits for what, and how much it holds: all limits in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# One client holds at most so many jobs that have neither ended nor, in the background, been acknowledged.
JOBS_UNDER_WAY_MAX: Final = 100_000
# A foreground job whose server dies is submitted again at most so often, then it is JobLost.
RESUBMITS_MAX: Final = 20
# submit_many and map have at most so many jobs under way unless told otherwise.
SUBMIT_MANY_IN_FLIGHT: Final = 2_000
MAP_IN_FLIGHT: Final = 64
# A worker keeps at most so many results per server that is away, each for at most so long.
KEPT_RESULTS_MAX: Final = 10_000
COMPLAINT_SECONDS: Final = 60.0  # between two warnings that a worker reaches no server
KEPT_RESULT_SECONDS: Final = 300.0
# In a fleet a worker asks at least so often what is to become of a job whose server it lost.
CLAIM_SECONDS: Final = 1.0
# A result that a node has read may be lost with it all the same: so many, of so many bytes at most, are kept
# per connection for so long, to be offered to the next primary.
RECENT_RESULTS_MAX: Final = 1_000
RECENT_RESULT_BYTES_MAX: Final = 16_384
RECENT_RESULT_SECONDS: Final = 2.0
# A worker that stops waits so long for a place to deliver results whose server it lost.
LAST_RESULTS_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The waits of connections, in seconds. The defaults find a dead server within three seconds."""

    connect_seconds: float = 2.0  # for one attempt to connect
    silence_seconds: float = 1.0  # something is outstanding and nothing was heard so long: probe
    answer_seconds: float = 2.0  # a probe not answered so long: the connection is dead
    idle_probe_seconds: float = 15.0  # nothing is outstanding and nothing was heard so long: probe
    backoff_first_seconds: float = 0.05  # between attempts; doubles, with jitter
    backoff_max_seconds: float = 2.0
    repoll_seconds: float = 30.0  # a worker asks a sleeping server for jobs: should a wake-up be lost


def backoff_seconds(timing: Timing, failures: int, dice: Callable[[], float]) -> float:
    """The pause after so many failures in a row: doubling, bounded, half of it random."""
    full = min(timing.backoff_max_seconds, timing.backoff_first_seconds * 2.0 ** min(failures - 1, 30))
    return full * (0.5 + 0.5 * dice())
