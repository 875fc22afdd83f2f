"""`make demo`, shorter: nodes die, freeze and leave; nothing is lost, and nothing stays behind."""

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

from cluster.drill.history import History, Kind
from examples.demo import pictures, tally
from examples.demo.__main__ import main
from examples.demo.callers import THUMBNAILS, WIDTHS_MAX, WIDTHS_MIN, Acknowledged, Promises, widths
from tests.support import eventually, need_command
from tests.support.ending import runs
from tests.support.etcd import needs_etcd

ROOT = Path(__file__).parents[2]
DRAWN = 4
DEMO_SECONDS_MAX = 90.0
SHORT = (
    *("--drawn", str(DRAWN), "--lease-seconds", "2"),
    *("--work-seconds", "8", "--pause-seconds", "0.2"),
)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def demo(tmp_path: Path, scratch: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *SHORT, "--output", str(tmp_path / "out")],
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
    started = [
        int(number) for match in re.findall(r"process ([\d, ]+)", output) for number in match.split(",")
    ]
    assert len(started) >= 1 + 3 + 3, output
    return started


def assert_gone(process_id: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


@needs_etcd()
def test_nodes_are_killed_frozen_and_drained_and_nothing_is_lost(
    demo: subprocess.Popen[str], tmp_path: Path, scratch: Path
) -> None:
    output, _ = demo.communicate(timeout=DEMO_SECONDS_MAX)

    assert demo.returncode == 0, output
    assert re.search(r"kill -9 \d+: node a is dead", output)
    assert re.search(r"kill -STOP \d+: node b is frozen", output)
    assert "gearfleet drain c" in output
    assert output.count("is started again") == 2
    assert output.count("it has caught up") == 3
    background, foreground = DRAWN * WIDTHS_MAX, DRAWN
    rows = table_rows(output)
    assert rows["background"][:4] == [str(background)] * 3 + ["0"]
    assert rows["foreground"][:4] == [str(foreground)] * 3 + ["0"]
    assert rows["all"][:4] == [str(background + foreground)] * 3 + ["0"]
    assert {"a killed", "b frozen", "c drained"} < rows.keys()
    last = output.splitlines()[-1]
    assert last.startswith(
        f"acknowledged {background + foreground}, done {background + foreground}, lost 0, run"
    )
    with Image.open(tmp_path / "out" / "thumbnails" / "0000-hills-000-200.jpg") as thumbnail:
        assert thumbnail.size == (200, 150)
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">Nothing was lost<" in page
    assert page.count("data:image/jpeg;base64,") == DRAWN
    # One clock: what the terminal says at 2.0 s stands at 2 s in the report.
    history = History.load(tmp_path / "out" / "history.jsonl")
    struck = [event.at for event in history.events if event.kind is Kind.FAULT]
    said = re.findall(r"^ *([\d.]+) s  (?:kill -9|kill -STOP|gearfleet drain)", output, re.MULTILINE)
    assert struck == pytest.approx([float(seconds) for seconds in said], abs=0.2)
    assert min(event.at for event in history.events if event.kind is Kind.SUBMIT) < 1.0
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == background
    assert len(list((tmp_path / "out" / "previews").iterdir())) == foreground
    assert list(scratch.iterdir()) == []
    for process_id in process_ids(output):
        assert_gone(process_id)


@needs_etcd()
def test_ctrl_c_ends_the_demo_and_all_its_processes(demo: subprocess.Popen[str], scratch: Path) -> None:
    assert demo.stdout is not None
    output = ""
    while "is frozen" not in output:
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


@needs_etcd()
def test_a_killed_demo_leaves_no_process(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    need_command("setpriv")
    output = ""
    while "workers: process" not in output:
        line = demo.stdout.readline()
        assert line, output
        output += line

    demo.kill()

    for process_id in process_ids(output):
        eventually(lambda number=process_id: not runs(number))


def results(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): path.read_text() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("slip", ["nowhere", "empty", "its own", "no etcd"])
def test_what_cannot_begin_leaves_the_last_results_alone(
    slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for folder in ("photographs", "thumbnails", "previews", "logs"):
        (output / folder).mkdir(parents=True)
        (output / folder / "of-the-last-run").write_text(folder)
    (output / "made-by-the-demo.txt").write_text("")
    (tmp_path / "empty").mkdir()
    before = results(output)
    photos = {"nowhere": tmp_path / "nowhere", "empty": tmp_path / "empty", "its own": output / "photographs"}
    arguments = ["--photos", str(photos[slip])] if slip in photos else []
    if slip == "no etcd":
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["demo", *arguments, "--output", str(output)])

    assert main() == 2

    assert "the demo could not go on" in capsys.readouterr().out
    assert results(output) == before


@needs_etcd()
def test_folders_that_no_demo_has_made_are_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "wedding.jpg").write_bytes(b"the only copy")
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(tmp_path)])

    assert main() == 2

    assert "has folders that no demo has made" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "photographs" / "wedding.jpg").read_bytes() == b"the only copy"


def test_the_slowest_acknowledgement_of_a_fault_is_one_that_was_waited_for_meanwhile() -> None:
    fault = tally.Fault("a killed", begun=10.0, taken_over_seconds=1.0, ended=20.0)
    waits = [
        Acknowledged(9.0, 8.0),
        Acknowledged(12.0, 3.0),
        Acknowledged(21.0, 2.0),
        Acknowledged(30.0, 9.0),
    ]

    assert fault.slowest_seconds(waits) == 3.0
    assert fault.slowest_seconds([]) == 0.0


@pytest.mark.parametrize(
    ("photos", "count"), [(1, WIDTHS_MAX), (100, THUMBNAILS // 100), (10_000, WIDTHS_MIN)]
)
def test_few_photographs_are_wanted_in_more_widths(photos: int, count: int) -> None:
    found = widths(photos)
    assert len(set(found)) == len(found) == count
    assert min(found) > 0


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
    with History(path=tmp_path / "1.jsonl") as one, History(path=tmp_path / "2.jsonl") as two:
        one.run("f/a", worker="w1", handle="H:a:1.2.3")
        one.done("f/a", worker="w1", handle="H:a:1.2.3")
        one.done("f/b", worker="w1", handle="H:a:1.2.4")
        with (tmp_path / "1.jsonl").open("a") as file:
            file.write('{"at":1,"kind":"done","key":"f/c-is-not-comple')
        assert records.read() == {"a": 1, "b": 1}

        with (tmp_path / "1.jsonl").open("a") as file:
            file.write('te"}\n')
        two.done("f/a", worker="w2", handle="H:a:1.2.3")
        assert records.read() == {"a": 2, "b": 1, "c-is-not-complete": 1}


def test_a_folder_of_photographs_is_searched_and_broken_files_are_counted(tmp_path: Path) -> None:
    drawn = list(pictures.draw(tmp_path / "summer", 1))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not looked at")

    assert pictures.find(tmp_path) == (drawn, 1)
