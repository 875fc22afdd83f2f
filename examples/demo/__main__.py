"""python -m examples.demo [--photos DIR]: what happens, in order."""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.demo import pictures, processes, tally
from examples.demo.callers import Callers

WORKERS = max(3, min(8, os.cpu_count() or 1))
KILL_AT_SHARE = 0.35  # of all jobs done; both kinds are under way then
DOWN_SECONDS = 1.0  # long enough to be seen
GIVE_UP_SECONDS = 600.0  # without any progress

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it pictures are drawn")
    parser.add_argument("--drawn", type=int, default=72, help="pictures to draw (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="(%(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    # What the client notices of the kill, above the progress bars.
    logging.basicConfig(
        level=logging.WARNING,
        format="%(name)s: %(message)s",
        handlers=[RichHandler(console=console, show_time=False, show_path=False, show_level=False)],
    )
    try:
        return demonstrate(options)
    except processes.DemoFailed as failure:
        console.print(f"[bold red]the demo could not go on:[/] {failure}")
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; node and workers are stopped")
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def demonstrate(options: argparse.Namespace) -> int:
    for folder in ("photographs", "thumbnails", "previews"):
        shutil.rmtree(options.output / folder, ignore_errors=True)
    photos = _photographs(options)
    with ExitStack() as cleanup:
        scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gearfleet-demo-")))
        records = scratch / "records"
        records.mkdir()
        node = processes.Node(scratch)
        cleanup.callback(node.stop)
        node.start()
        console.print(f"the node runs at {node.address} (process {node.pid}), data in {scratch}/data")
        workers = [processes.worker(number, node.address, records, scratch) for number in range(WORKERS)]
        for worker in workers:
            cleanup.callback(worker.stop)
            worker.start()
        cleanup.callback(_ask_to_stop, workers)  # called before each is waited for: all end at the same time
        console.print(f"{WORKERS} worker processes: {', '.join(str(worker.pid) for worker in workers)}")
        callers = Callers(node.address, photos, options.output)
        cleanup.callback(callers.close)
        begun = time.monotonic()
        callers.start()
        made = tally.Records(records)
        _watch(callers, made, node, workers)
        seconds = time.monotonic() - begun
    made.read()
    return _conclude(callers, made, seconds, options.output)


def _ask_to_stop(workers: list[processes.Process]) -> None:
    for worker in workers:
        worker.ask_to_stop()


def _photographs(options: argparse.Namespace) -> list[Path]:
    if options.photos is not None:
        if not options.photos.is_dir():
            raise processes.DemoFailed(f"{options.photos} is no folder")
        photos, broken = pictures.find(options.photos.resolve())
        note = f"; {broken} more cannot be read as pictures" if broken else ""
        console.print(f"{len(photos)} photographs in {options.photos}{note}")
        if not photos:
            raise processes.DemoFailed(f"no picture in {options.photos}")
        return photos
    folder = (options.output / "photographs").resolve()
    with _progress() as progress:
        return list(
            progress.track(
                pictures.draw(folder, options.drawn), total=options.drawn, description="drawing pictures"
            )
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _watch(
    callers: Callers, made: tally.Records, node: processes.Node, workers: list[processes.Process]
) -> None:
    """Show progress until everything is done; kill the node on the way."""
    total = callers.background_total + callers.foreground_total
    killed = False
    done = 0
    moved_at = time.monotonic()
    with _progress() as progress:
        background = progress.add_task("background thumbnails", total=callers.background_total)
        foreground = progress.add_task("foreground previews", total=callers.foreground_total)
        while not (callers.finished and done >= total - _failed(callers)):
            time.sleep(0.05)
            for process in (node, *workers):
                process.check()
            counts = made.read()
            thumbnails = sum(1 for unique in counts if unique.startswith("thumbnail"))
            progress.update(background, completed=thumbnails)
            progress.update(foreground, completed=len(callers.foreground.answered))
            now_done = thumbnails + len(callers.foreground.answered)
            if now_done != done:
                done, moved_at = now_done, time.monotonic()
            if time.monotonic() - moved_at > GIVE_UP_SECONDS:
                console.print(f"[red]no progress for {GIVE_UP_SECONDS:.0f} s: giving up[/]")
                return
            if not killed and done >= total * KILL_AT_SHARE:
                killed = True
                _kill_and_restart(node, total - done)


def _failed(callers: Callers) -> int:
    return len(callers.background.errors) + len(callers.foreground.errors)


def _kill_and_restart(node: processes.Node, left: int) -> None:
    console.print(f"[bold red]kill -9 {node.pid}[/]: the node is dead, {left} jobs are not done")
    node.kill()
    time.sleep(DOWN_SECONDS)
    begun = time.monotonic()
    node.start()
    console.print(
        f"[bold green]started again[/] as process {node.pid} after {time.monotonic() - begun:.1f} s"
    )


def _conclude(callers: Callers, made: tally.Records, seconds: float, output: Path) -> int:
    rows = [
        tally.row("background", callers.background, made.made, answered=False),
        tally.row("foreground", callers.foreground, made.made, answered=True),
    ]
    console.print(tally.table(rows, seconds))
    for error in (callers.background.errors + callers.foreground.errors)[:5]:
        console.print(f"[red]{error}[/]")
    console.print(f"thumbnails and previews: {output}")
    complete = all(one.lost == 0 and one.done == one.submitted for one in rows)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
