"""A worker's log on a terminal does nothing but print."""

import io
import logging

from client_ha.worker_log import PrintingFormatter


def test_what_a_client_sent_is_only_read() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PrintingFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("worker")
    log.addHandler(handler)
    try:
        raise ValueError("payload \x1b]0;title\x07 \x9b31m")
    except ValueError:
        log.exception("%s raised", "x\u202egnp")
    lines = written.getvalue().splitlines()
    assert lines[0] == "ERROR x\\u202egnp raised"
    assert lines[-1] == "ValueError: payload \\x1b]0;title\\x07 \\x9b31m"
    assert all(line.isprintable() for line in lines)
