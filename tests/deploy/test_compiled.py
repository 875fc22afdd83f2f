"""What `GEARFLEET_COMPILE=1 pip install` and `make compiled` build: setup.py compiles the hot rooms, and the
compiled node passes the tests of the pure one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.machine import NEEDS

PROJECT = Path(__file__).parents[2]
BUILD_SECONDS = 900.0  # a minute, if nothing else runs
TESTED = (
    "tests/node/test_clients.py",
    "tests/node/test_workers.py",
    "tests/node/test_commits.py",
    "tests/node/test_schedules.py",
    "tests/node/test_moving_slots.py",
    "tests/node/test_relays.py",
    "tests/server/test_packets.py",
    "tests/server/test_restart.py",
    "tests/server/test_text_commands.py",
)


def need_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{NEEDS}{compiler}, a C compiler: apt-get install gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip(f"{NEEDS}Python.h: apt-get install python3-dev")


def run(*command: str, directory: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(directory), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_SECONDS,
    )
    output = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{output[-4000:]}"
    return output


def test_the_compiled_node_can_be_built_and_passes_the_tests_of_the_pure_one(tmp_path: Path) -> None:
    need_compiler()
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("cluster", "client_ha", "tests"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "conftest.py"):
        shutil.copy(PROJECT / name, tmp_path / name)
    # Not optimised: that takes half the time, and what is wrong is wrong all the same.
    build = ("setup.py", "--quiet", "build_ext", "--inplace", "--parallel", "2")
    run(*build, directory=tmp_path, GEARFLEET_COMPILE="1", MYPYC_OPT_LEVEL="0")
    plugins = ("-p", "tests.deploy.compiled", "-p", "no:cacheprovider")
    run("-m", "pytest", "-q", "-x", *plugins, *TESTED, directory=tmp_path)
