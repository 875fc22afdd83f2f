"""A log line does nothing but print, whatever a stranger called a function."""

import io
import sys
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cluster.server.process import configure_log
from cluster.server.settings import Settings
from tests.wire.test_shown import TEXTS


@pytest.fixture(scope="module", autouse=True)
def structlog_s_defaults() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_log_line_only_prints(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_log(Settings(log_format=log_format))
    log = structlog.get_logger("gearfleet")

    @given(TEXTS | st.binary(max_size=20))
    def writes(name: str | bytes) -> None:
        before = written.tell()
        log.info("a function is odd", function=name)
        log.warning(f"odd: {name!s}", functions=[name])
        lines = written.getvalue()[before:]
        assert lines.count("\n") == 2
        assert lines.replace("\n", "").isprintable()

    writes()
    log.error("it raised", exc_info=ValueError("\x1b]0;title\x07"))
    assert "title" in written.getvalue()
    assert "\x1b" not in written.getvalue()
