"""Those who want thumbnails: some queue background jobs, some wait for foreground ones."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from client_ha import GearfleetError, HAClient
from cluster.drill.history import History

# A page offers each photograph in many widths, and the browser takes the one that fits its screen.
WIDTHS_MAX = 40
WIDTHS_MIN = 3
THUMBNAILS = 2_500  # about; many photographs have fewer widths each
WIDTH_STEP = 8
RESULT_SECONDS_MAX = 60.0


def widths(photos: int) -> list[int]:
    """The longer sides of the thumbnails of each photograph."""
    count = max(WIDTHS_MIN, min(WIDTHS_MAX, THUMBNAILS // max(1, photos)))
    return [WIDTH_STEP * number for number in range(1 + WIDTHS_MAX - count, WIDTHS_MAX + 1)]


class Acknowledged(NamedTuple):
    """One acknowledgement of a background job."""

    at: float  # monotonic
    waited_seconds: float


@dataclass(slots=True)
class Promises:
    """What was asked for and what the fleet promised, by unique key; appended to by the callers' threads."""

    submitted: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)  # foreground: the result came back
    errors: list[str] = field(default_factory=list)
    waits: list[Acknowledged] = field(default_factory=list)  # background


class Callers:
    """Submits all jobs through one HAClient, made for many threads: each job has a caller of its own, and
    comes at a time that was fixed before, evenly over `seconds`. So the jobs of one node wait while that is
    frozen, and all others go on: with few callers these would soon all wait for that node. What was submitted
    and what came of it is in `history`, too."""

    def __init__(
        self, addresses: str, photos: Sequence[Path], output: Path, seconds: float, history: History
    ) -> None:
        self.background = Promises()
        self.foreground = Promises()
        self._history = history
        self._addresses = addresses
        self._client: HAClient | None = None
        self._photos = photos
        self._widths = widths(len(photos))
        self._seconds = seconds
        self._thumbnails = output / "thumbnails"
        self._previews = output / "previews"
        self._stopping = threading.Event()
        self._coming: list[threading.Thread] = []  # one for each kind of jobs: it sends the callers
        self._waiting: set[threading.Thread] = set()  # callers

    @property
    def background_total(self) -> int:
        return len(self._photos) * len(self._widths)

    @property
    def foreground_total(self) -> int:
        return len(self._photos)

    def start(self) -> None:
        self._client = HAClient(self._addresses, submit_timeout=RESULT_SECONDS_MAX)
        self._thumbnails.mkdir(parents=True, exist_ok=True)
        self._previews.mkdir(parents=True, exist_ok=True)
        self._coming = [
            threading.Thread(target=self._come, args=(total, submit), daemon=True)
            for total, submit in (
                (self.background_total, self._background),
                (self.foreground_total, self._foreground),
            )
        ]
        for thread in self._coming:
            thread.start()

    @property
    def finished(self) -> bool:
        return not any(thread.is_alive() for thread in (*self._coming, *tuple(self._waiting)))

    def close(self) -> None:
        self._stopping.set()
        if self._client is not None:
            self._client.close()
        for thread in (*self._coming, *tuple(self._waiting)):
            thread.join(5)

    def _come(self, total: int, submit: Callable[[int], None]) -> None:
        """One caller after the other, each at its time."""
        begun = time.monotonic()
        for number in range(total):
            due = begun + number * self._seconds / total
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            caller = threading.Thread(target=self._call, args=(submit, number), daemon=True)
            self._waiting.add(caller)
            caller.start()

    def _call(self, submit: Callable[[int], None], number: int) -> None:
        submit(number)
        self._waiting.discard(threading.current_thread())

    def _background(self, number: int) -> None:
        """Returns when the job is on the disks of the fleet."""
        photo_index, width_index = divmod(number, len(self._widths))
        pixels, photo = self._widths[width_index], self._photos[photo_index]
        target = self._thumbnails / f"{photo_index:04d}-{photo.stem}-{pixels}.jpg"
        order = json.dumps({"photo": str(photo), "pixels": pixels, "target": str(target)})
        unique = f"thumbnail-{photo_index:04d}-{pixels}"
        promises = self.background
        assert self._client is not None
        promises.submitted.append(unique)
        call = self._history.submit(f"thumbnail/{unique}", order=number + 1)
        begun = time.monotonic()
        try:
            job = self._client.submit("thumbnail", order, unique=unique, background=True)
        except (GearfleetError, OSError) as error:
            self._history.unknown(call, str(error))
            self._failed(promises, unique, error)
            return
        self._history.ack(call, handle=job.handle or "")
        now = time.monotonic()
        promises.waits.append(Acknowledged(now, now - begun))
        promises.acknowledged.append(unique)

    def _foreground(self, number: int) -> None:
        """Returns with the result."""
        photo = self._photos[number]
        unique = f"preview-{number:04d}"
        promises = self.foreground
        assert self._client is not None
        promises.submitted.append(unique)
        call = self._history.submit(f"preview/{unique}", foreground=True)
        try:
            job = self._client.submit("preview", photo.read_bytes(), unique=unique)
            try:
                small = job.result(timeout=RESULT_SECONDS_MAX)
            finally:
                if job.handle is not None:
                    promises.acknowledged.append(unique)
                    self._history.ack(call, handle=job.handle)
            self._history.result(call)
            (self._previews / f"{number:04d}-{photo.stem}.jpg").write_bytes(small)
        except (GearfleetError, OSError) as error:
            self._history.unknown(call, str(error))
            self._failed(promises, unique, error)
            return
        promises.answered.append(unique)

    def _failed(self, promises: Promises, unique: str, error: Exception) -> None:
        if not self._stopping.is_set():
            promises.errors.append(f"{unique}: {error}")
