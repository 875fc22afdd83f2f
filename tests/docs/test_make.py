"""What `make` may delete: a slip in VENV costs nothing that it did not make."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import need_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and what it runs, apart from the real environment."""
    folder = tmp_path / "checkout"
    (folder / "requirements").mkdir(parents=True)
    for name in ("Makefile", "requirements/make-venv"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "letters.txt").write_text("the only copy")
    return folder


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_command("make"), "-C", str(checkout), f"PYTHON={sys.executable}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("goal", ["setup", "clean"])
def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path, home: Path, goal: str) -> None:
    (checkout / "requirements" / "dev.lock").touch()
    (checkout / "pyproject.toml").touch()

    ended = make(checkout, goal, f"VENV={home}")

    assert ended.returncode != 0
    assert f"{home} is no virtual environment" in ended.stdout + ended.stderr
    assert (home / "letters.txt").read_text() == "the only copy"


def test_clean_takes_away_an_environment(checkout: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").touch()

    assert make(checkout, "clean", f"VENV={venv}").returncode == 0

    assert not venv.exists()
