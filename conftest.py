"""For all tests: what this machine could not test is named at the end of a run."""

from __future__ import annotations

import signal

import pytest

pytest.register_assert_rewrite("tests.support")

from tests.support.ending import end_with_this_process  # noqa: E402
from tests.support.machine import NEEDS  # noqa: E402


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, nohup a terminal that closes, and so would
    all that tests interrupt. What a killed run had started ends, too."""
    end_with_this_process()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what this machine could not test, and how to change that."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(NEEDS):
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("not tested on this machine")
        for reason, tests in sorted(reasons.items()):
            terminalreporter.line(f"{tests:4d} tests: {reason}")
