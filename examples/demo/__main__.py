"""python -m examples.demo [--photos DIR]: what happens, in order."""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cluster.drill.checker import Verdict, check
from cluster.drill.history import History
from cluster.drill.report import Picture, write_html
from cluster.drill.words import judgement
from examples.demo import pictures, processes, tally
from examples.demo.callers import Callers
from examples.demo.processes import DemoFailed, Node, Process
from examples.demo.screen import Screen
from examples.demo.watcher import Watcher

WORKERS = max(3, min(8, os.cpu_count() or 1))
NAMES = ("a", "b", "c")
FOLDERS = ("photographs", "thumbnails", "previews", "logs")  # of the output; each run makes them anew
MARK = "made-by-the-demo.txt"  # in an output folder that may be replaced
START_SECONDS_MAX = 60.0
MEND_SECONDS_MAX = 60.0  # until all is whole again
GIVE_UP_SECONDS = 120.0  # without any progress
FROZEN_SECONDS = 2.0  # longer than the lease
POLL_SECONDS = 0.02
PICTURES_SHOWN = 6  # in the report
REMEMBER_SECONDS = 600.0  # nodes do, unless they are told otherwise

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it pictures are drawn")
    parser.add_argument("--drawn", type=int, default=64, help="pictures to draw (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="(%(default)s)")
    parser.add_argument(
        "--lease-seconds", type=int, default=5, help="a node silent so long is dead (%(default)s)"
    )
    parser.add_argument(
        "--work-seconds", type=float, default=36.0, help="jobs come for so long (%(default)s)"
    )
    parser.add_argument("--pause-seconds", type=float, default=1.0, help="between events (%(default)s)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return demonstrate(options)
    except DemoFailed as failure:
        console.print(f"[bold red]the demo could not go on:[/] {failure}")
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; etcd, nodes and workers are stopped")
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _clear_away_undisturbed() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def demonstrate(options: argparse.Namespace) -> int:
    chosen = _chosen(options)
    processes.find_etcd()
    logs = _make_room(options.output)
    # What clients notice: interesting, and far too much for one screen.
    logging.basicConfig(filename=logs / "clients.log", format="%(asctime)s %(message)s")
    photos = chosen or _drawn(options)
    with ExitStack() as cleanup:
        scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gearfleet-demo-")))
        records = scratch / "records"
        records.mkdir()
        demo = Demo(options, photos, scratch, logs, records)
        cleanup.callback(demo.close)
        cleanup.callback(_clear_away_undisturbed)  # called first
        demo.start()
        with demo.screen:
            demo.play()
        verdict = demo.judge(options.output)
    return _conclude(demo, options.output, verdict)


def _chosen(options: argparse.Namespace) -> list[Path]:
    """The pictures of --photos; none without it. Raises DemoFailed."""
    if options.photos is None:
        return []
    folder: Path = options.photos
    if not folder.is_dir():
        raise DemoFailed(f"{folder} is no folder: give one with pictures in it, or none to have some drawn")
    if any(folder.resolve().is_relative_to(old.resolve()) for old in _made_by_demo(options.output)):
        raise DemoFailed(f"{folder} is what this run replaces: copy the pictures elsewhere first")
    photos, broken = pictures.find(folder.resolve())
    note = f"; {broken} more cannot be read as pictures" if broken else ""
    console.print(f"{len(photos)} photographs in {folder}{note}")
    if not photos:
        raise DemoFailed(f"no picture in {folder}: it looks for {' '.join(sorted(pictures.SUFFIXES))}")
    return photos


def _made_by_demo(output: Path) -> list[Path]:
    return [output / folder for folder in FOLDERS]


def _make_room(output: Path) -> Path:
    """Take away what the run before has left, and nothing else; returns the folder of logs. Raises
    DemoFailed."""
    mark = output / MARK
    mine = mark.exists() or (output / "history.jsonl").exists()
    if not mine and any(folder.exists() for folder in _made_by_demo(output)):
        raise DemoFailed(
            f"{output} has folders that no demo has made ({', '.join(FOLDERS)} are replaced): "
            "name another with --output, or remove them"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        mark.write_text("Made by make demo, which replaces it each time.\n")
        for folder in _made_by_demo(output):
            if folder.exists():
                shutil.rmtree(folder)
        logs = output / "logs"
        logs.mkdir()
    except OSError as error:
        raise DemoFailed(f"{error.filename} cannot be written: {error.strerror}") from None
    return logs


def _drawn(options: argparse.Namespace) -> list[Path]:
    folder = (options.output / "photographs").resolve()
    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console) as progress:
        drawn = pictures.draw(folder, options.drawn)
        return list(progress.track(drawn, total=options.drawn, description="drawing pictures"))


class Demo:
    """etcd, three nodes, some workers, and callers who want thumbnails."""

    def __init__(
        self, options: argparse.Namespace, photos: list[Path], scratch: Path, logs: Path, records: Path
    ) -> None:
        self._lease_seconds: int = options.lease_seconds
        self._pause_seconds: float = options.pause_seconds  # long enough to be seen
        self._etcd = processes.Etcd(scratch, logs)
        self._nodes = [Node(name, self._etcd, self._lease_seconds, scratch, logs) for name in NAMES]
        addresses = ",".join(node.address for node in self._nodes)
        self._workers = [processes.worker(number, addresses, records, logs) for number in range(WORKERS)]
        self._records = records
        self._history = History()
        self._watcher = Watcher(self._nodes, self._history)
        self.callers = Callers(addresses, photos, options.output, options.work_seconds, self._history)
        self.made = tally.Records(records)
        self.screen = Screen(console, self._nodes, self._watcher, self.callers, self.made)
        self.faults: list[tally.Fault] = []
        self.seconds = 0.0

    @property
    def _processes(self) -> list[Process]:
        return [self._etcd, *self._nodes, *self._workers]

    def start(self) -> None:
        self._etcd.start()
        self._until(self._etcd.healthy, "etcd does not answer", START_SECONDS_MAX)
        for process in (*self._nodes, *self._workers):
            process.start()
        self._watcher.start()
        pids = {"etcd": [self._etcd.pid], "nodes": [node.pid for node in self._nodes]}
        pids["workers"] = [worker.pid for worker in self._workers]
        for what, numbers in pids.items():
            console.print(f"{what}: process {', '.join(map(str, numbers))}")
        self._until(self._watcher.whole, "the nodes do not make a fleet", START_SECONDS_MAX)

    def close(self) -> None:
        """No process stays. The nodes' data is thrown away, so they need not hand it over."""
        self.callers.close()
        self._watcher.close()
        for worker in self._workers:
            worker.ask_to_stop()
        for process in self._workers:
            process.stop()
        for process in (*self._nodes, self._etcd):
            process.kill()

    # ---- what happens

    def play(self) -> None:
        """Jobs come evenly; meanwhile one node after the other goes away and comes back."""
        begun = time.monotonic()
        self.callers.start()
        killed, frozen, drained = self._nodes
        self.screen.say("three nodes, each leads a third of 1024 slots; jobs come in")
        self._pass(2 * self._pause_seconds)
        self._kill(killed)
        self._pass(self._pause_seconds)
        self._freeze(frozen)
        self._pass(self._pause_seconds)
        self._drain(drained)
        self.screen.say("all nodes are back; the rest of the jobs")
        self._finish()
        self.seconds = time.monotonic() - begun

    def _kill(self, node: Node) -> None:
        fault = tally.Fault(f"{node.name} killed", number=self._history.fault("kill -9", node.name))
        self.screen.say(f"[bold red]kill -9 {node.pid}[/]: node {node.name} is dead")
        node.kill()
        self._taken_over(fault, node, "by proof: its port refuses")
        self._pass(self._pause_seconds)
        node.start()
        self.screen.say(f"[bold green]node {node.name} is started again[/] as process {node.pid}")
        self._whole(fault)

    def _freeze(self, node: Node) -> None:
        fault = tally.Fault(f"{node.name} frozen", number=self._history.fault("freeze", node.name))
        self.screen.say(f"[bold red]kill -STOP {node.pid}[/]: node {node.name} is frozen, its port is open")
        node.freeze()
        # With as many copies as nodes it is in everybody's way: the picture is right.
        self._history.note("submits wait until its lease ends")
        self.screen.say(
            "each slot has a copy on it, so all submits wait until its lease ends; "
            "with more nodes than copies only some would"
        )
        self._taken_over(fault, node, f"when its lease of {self._lease_seconds} s had run out")
        self._pass(FROZEN_SECONDS)
        self.screen.say(f"[bold green]kill -CONT {node.pid}[/]: it wakes in an epoch that is over")
        node.wake()
        self._whole(fault)

    def _drain(self, node: Node) -> None:
        fault = tally.Fault(f"{node.name} drained", number=self._history.fault("drain", node.name))
        self.screen.say(f"[bold yellow]gearfleet drain {node.name}[/]")
        node.may_end = True
        self._watcher.drain(node.name)
        self._taken_over(fault, node, "handed over, while serving")
        self._until(lambda: not node.runs, f"{node.name} does not stop", MEND_SECONDS_MAX)
        self._pass(self._pause_seconds)
        node.start()
        self.screen.say(f"[bold green]node {node.name} is started again[/] as process {node.pid}")
        self._whole(fault)

    def _taken_over(self, fault: tally.Fault, node: Node, how: str) -> None:
        """Wait until the others serve all slots."""

        def done() -> bool:
            status = self._watcher.status
            if status is None or any(each.leads for each in status.nodes if each.name == node.name):
                return False
            return self._watcher.serving_exactly() == sum(each.leads for each in status.nodes)

        self._until(done, f"nobody takes over from {node.name}", MEND_SECONDS_MAX)
        fault.taken_over_seconds = time.monotonic() - fault.begun
        self.screen.say(f"the others serve its slots after {fault.taken_over_seconds:.2f} s ({how})")

    def _whole(self, fault: tally.Fault) -> None:
        self._until(self._watcher.whole, "the fleet does not become whole again", MEND_SECONDS_MAX)
        fault.ended = time.monotonic()
        self._history.healed(fault.number)
        self.faults.append(fault)
        self.screen.say("it has caught up: every slot has three copies, and each node leads a third")

    def _finish(self) -> None:
        """Until everything that was promised is done."""
        seen = -1
        moved_at = time.monotonic()

        def done() -> bool:
            nonlocal seen, moved_at
            progress = sum(self.made.read().values()) + len(self.callers.foreground.answered)
            if progress != seen:
                seen, moved_at = progress, time.monotonic()
            if time.monotonic() - moved_at > GIVE_UP_SECONDS:
                self.screen.say(f"[red]no progress for {GIVE_UP_SECONDS:.0f} s: giving up[/]")
                return True
            return self.callers.finished and all(one.done >= one.acknowledged for one in self.rows())

        self._until(done, "", float("inf"))

    def rows(self) -> list[tally.Row]:
        made = self.made.read()
        return [
            tally.row("background", self.callers.background, made, answered=False),
            tally.row("foreground", self.callers.foreground, made, answered=True),
        ]

    def judge(self, output: Path) -> Verdict:
        """Put what callers and workers wrote down together, check it, and leave it with a picture of it."""
        mine = self._records / "callers.jsonl"
        self._history.save(mine)
        history = History.merge([mine, *self._records.glob("[0-9]*.jsonl")])
        history.begin_at(self.screen.begun)  # the terminal's clock
        verdict = check(history, drained=True, remember_seconds=REMEMBER_SECONDS)
        history.save(output / "history.jsonl")
        made = pictures.some(output / "thumbnails", PICTURES_SHOWN)
        shown = [Picture(path.name, path.read_bytes()) for path in made]
        write_html(output / "report.html", history, verdict, title="A fleet makes thumbnails", pictures=shown)
        return verdict

    # ---- waiting

    def _pass(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= end, "", float("inf"))

    def _until(self, condition: Callable[[], bool], failure: str, seconds_max: float) -> None:
        limit = time.monotonic() + seconds_max
        while not condition():
            for process in self._processes:
                process.check()
            if time.monotonic() > limit:
                raise DemoFailed(f"{failure} within {seconds_max:.0f} s; logs: {self._etcd.log_folder}")
            self.screen.refresh()
            time.sleep(POLL_SECONDS)


def _conclude(demo: Demo, output: Path, verdict: Verdict) -> int:
    rows = demo.rows()
    waits = demo.callers.background.waits
    console.print(tally.table(rows, demo.seconds))
    console.print(tally.fault_table(demo.faults, waits))
    for error in (demo.callers.background.errors + demo.callers.foreground.errors)[:5]:
        console.print(f"[red]{error}[/]")
    for problem in verdict.problems:
        console.print(Text(problem, style="red"))
    where = f"thumbnails, previews and logs: {output}; what happened when: {output / 'report.html'}"
    console.print(where, soft_wrap=True)
    style = "bold green" if verdict.valid else "bold red"
    console.print(f"{judgement(verdict)}, says the checker of every call and run", style=style)
    console.print(tally.verdict(rows, demo.faults, waits), style="bold", soft_wrap=True)
    complete = all(one.lost == 0 and one.done == one.submitted for one in rows)
    return 0 if complete and verdict.valid else 1


if __name__ == "__main__":
    sys.exit(main())
