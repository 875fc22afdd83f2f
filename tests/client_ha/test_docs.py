"""docs/client.md tells the truth: its snippets run, in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.client_ha.conftest import Server

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def test_the_page_s_snippets_run(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(snippets) == 3
    names: dict[str, Any] = {}
    try:
        for snippet in snippets:
            code = snippet.replace("10.0.0.1:4730,10.0.0.2:4730", server.address)
            exec(code.replace("worker.run()", "worker.start()"), names)
    finally:
        if "worker" in names:
            names["worker"].stop()
    printed = capsys.readouterr().out
    assert printed.startswith("b'olleh'\n")
    assert "1 b'dc'" in printed
