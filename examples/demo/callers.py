"""Those who want thumbnails: one queues background jobs, some wait for foreground ones."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from client_ha import GearfleetError, HAClient

PIXELS = (800, 400, 200)  # the longer side of the thumbnails of each photograph
FOREGROUND_CALLERS = 4
RESULT_SECONDS_MAX = 120.0


@dataclass(slots=True)
class Promises:
    """What was asked for and what the node promised, by unique key; appended to by the callers' threads."""

    submitted: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)  # foreground: the result came back
    errors: list[str] = field(default_factory=list)


class Callers:
    """Starts threads that submit all jobs through one HAClient, which is made for many threads."""

    def __init__(self, address: str, photos: Sequence[Path], output: Path) -> None:
        self.background = Promises()
        self.foreground = Promises()
        self._client = HAClient(address, submit_timeout=RESULT_SECONDS_MAX)
        self._photos = photos
        self._thumbnails = output / "thumbnails"
        self._previews = output / "previews"
        self._stopping = threading.Event()
        self._queue: SimpleQueue[tuple[int, Path]] = SimpleQueue()
        for numbered in enumerate(photos):
            self._queue.put(numbered)
        self._threads = [threading.Thread(target=self._submit_background, daemon=True)]
        self._threads += [
            threading.Thread(target=self._wait_foreground, daemon=True) for _ in range(FOREGROUND_CALLERS)
        ]

    @property
    def background_total(self) -> int:
        return len(self._photos) * len(PIXELS)

    @property
    def foreground_total(self) -> int:
        return len(self._photos)

    def start(self) -> None:
        self._thumbnails.mkdir(parents=True, exist_ok=True)
        self._previews.mkdir(parents=True, exist_ok=True)
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        self._stopping.set()
        self._client.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(5)

    def _submit_background(self) -> None:
        """Returns from each submit when the node has the job on disk; waits out a node that is down."""
        for number, photo in enumerate(self._photos):
            for pixels in PIXELS:
                target = self._thumbnails / f"{number:04d}-{photo.stem}-{pixels}.jpg"
                order = json.dumps({"photo": str(photo), "pixels": pixels, "target": str(target)})
                unique = f"thumbnail-{number:04d}-{pixels}"

                def submit(order: str = order, unique: str = unique) -> None:
                    self._client.submit("thumbnail", order, unique=unique, background=True)
                    self.background.acknowledged.append(unique)

                self._guarded(submit, unique, self.background)
                if self._stopping.is_set():
                    return

    def _wait_foreground(self) -> None:
        while not self._stopping.is_set():
            try:
                number, photo = self._queue.get_nowait()
            except Empty:
                return
            unique = f"preview-{number:04d}"

            def submit(photo: Path = photo, unique: str = unique, number: int = number) -> None:
                job = self._client.submit("preview", photo.read_bytes(), unique=unique)
                try:
                    small = job.result(timeout=RESULT_SECONDS_MAX)
                finally:
                    if job.handle is not None:
                        self.foreground.acknowledged.append(unique)
                (self._previews / f"{number:04d}-{photo.stem}.jpg").write_bytes(small)
                self.foreground.answered.append(unique)

            self._guarded(submit, unique, self.foreground)

    def _guarded(self, submit: Callable[[], None], unique: str, promises: Promises) -> None:
        promises.submitted.append(unique)
        try:
            submit()
        except (GearfleetError, OSError) as error:
            if not self._stopping.is_set():
                promises.errors.append(f"{unique}: {error}")
