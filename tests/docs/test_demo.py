"""`make demo`, smaller: it kills a node, loses nothing, leaves nothing behind, and would notice a loss."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from examples.demo import pictures, tally
from examples.demo.callers import PIXELS, Promises

ROOT = Path(__file__).parents[2]
DRAWN = 10
DEMO_SECONDS_MAX = 90.0


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def demo(tmp_path: Path, scratch: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*(sys.executable, "-m", "examples.demo", "--drawn", str(DRAWN), "--output", str(tmp_path / "out"))],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def table_rows(output: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def process_ids(output: str) -> list[int]:
    started = re.findall(r"process (\d+)", output)
    workers = re.search(r"worker processes: ([\d, ]+)", output)
    assert started
    assert workers
    return [int(number) for number in started + workers[1].split(",")]


def assert_gone(process_id: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_the_demo_kills_the_node_and_loses_nothing(
    demo: subprocess.Popen[str], tmp_path: Path, scratch: Path
) -> None:
    output, _ = demo.communicate(timeout=DEMO_SECONDS_MAX)

    assert demo.returncode == 0, output
    assert re.search(r"kill -9 \d+: the node is dead, \d+ jobs are not done", output)
    assert "started again as process" in output
    background, foreground = DRAWN * len(PIXELS), DRAWN
    rows = table_rows(output)
    assert rows["background"][:4] == [str(background)] * 3 + ["0"]
    assert rows["foreground"][:4] == [str(foreground)] * 3 + ["0"]
    assert rows["all"][:4] == [str(background + foreground)] * 3 + ["0"]
    with Image.open(tmp_path / "out" / "thumbnails" / "0000-hills-000-200.jpg") as thumbnail:
        assert thumbnail.size == (200, 150)
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == background
    assert len(list((tmp_path / "out" / "previews").iterdir())) == foreground
    assert list(scratch.iterdir()) == []
    for process_id in process_ids(output):
        assert_gone(process_id)


def test_ctrl_c_ends_the_demo_and_all_its_processes(demo: subprocess.Popen[str], scratch: Path) -> None:
    assert demo.stdout is not None
    output = ""
    while "worker processes" not in output:
        line = demo.stdout.readline()
        assert line, output
        output += line

    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=DEMO_SECONDS_MAX)

    assert demo.returncode == 130, output + rest
    assert "Traceback" not in rest
    assert list(scratch.iterdir()) == []
    for process_id in process_ids(output):
        assert_gone(process_id)


def test_a_promised_job_that_nobody_made_is_lost() -> None:
    promises = Promises(submitted=["a", "b", "c"], acknowledged=["a", "b"], answered=["a"])
    made = Counter({"a": 2, "b": 1})

    background = tally.row("background", promises, made - Counter({"b": 1}), answered=False)
    assert (background.submitted, background.acknowledged, background.done) == (3, 2, 1)
    assert (background.lost, background.run_twice) == (1, 1)

    foreground = tally.row("foreground", promises, made, answered=True)
    assert (foreground.done, foreground.lost) == (1, 1)  # b was made, but its result never came


def test_records_count_only_complete_lines(tmp_path: Path) -> None:
    records = tally.Records(tmp_path)
    (tmp_path / "1.txt").write_text("a\nb\nc-is-not-comple")
    assert records.read() == {"a": 1, "b": 1}

    (tmp_path / "1.txt").write_text("a\nb\nc-is-not-complete\n")
    (tmp_path / "2.txt").write_text("a\n")
    assert records.read() == {"a": 2, "b": 1, "c-is-not-complete": 1}


def test_a_folder_of_photographs_is_searched_and_broken_files_are_counted(tmp_path: Path) -> None:
    drawn = list(pictures.draw(tmp_path / "summer", 1))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not looked at")

    assert pictures.find(tmp_path) == (drawn, 1)
