"""A worker process of the demo: python -m examples.demo.worker SERVERS RECORDS

Each job that is begun or finished is one line in a file of this process (cluster.drill.history); the end is
written after the thumbnail itself. So the table and the verdict at the end count what workers did, and not
what anybody believes.
"""

import io
import json
import os
import sys
from pathlib import Path

from PIL import Image, ImageFile

from client_ha import HAWorker, JobContext
from cluster.drill.history import History

TASK_SECONDS_MAX = 60
ImageFile.LOAD_TRUNCATED_IMAGES = True  # half a photograph makes half a thumbnail


def shrink(source: Path | io.BytesIO, pixels: int) -> bytes:
    with Image.open(source) as photo:
        photo.draft("RGB", (pixels * 2, pixels * 2))  # lets the JPEG decoder skip what nobody will see
        small = photo.convert("RGB")
        small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()


def make_worker(servers: str, records: Path) -> HAWorker:
    worker = HAWorker(servers)
    name = f"worker {os.getpid()}"
    record = History(path=records / f"{os.getpid()}.jsonl")

    def begun(job: JobContext) -> None:
        record.run(f"{job.function}/{job.unique}", worker=name, handle=job.handle)

    def done(job: JobContext) -> None:
        record.done(f"{job.function}/{job.unique}", worker=name, handle=job.handle)

    @worker.task("thumbnail", timeout_seconds=TASK_SECONDS_MAX)
    def thumbnail(job: JobContext) -> bytes:
        """In the background: reads a file, writes a file."""
        begun(job)
        order = json.loads(job.payload)
        target = Path(order["target"])
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(shrink(Path(order["photo"]), order["pixels"]))
        partial.replace(target)
        done(job)
        return b""

    @worker.task("preview", timeout_seconds=TASK_SECONDS_MAX)
    def preview(job: JobContext) -> bytes:
        """In the foreground: a photograph comes in, a small one goes back."""
        begun(job)
        small = shrink(io.BytesIO(job.payload), 480)
        done(job)
        return small

    return worker


if __name__ == "__main__":
    make_worker(sys.argv[1], Path(sys.argv[2])).run()
