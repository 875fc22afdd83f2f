"""No process outlives the run that started it, whatever ends the run: kill -9, too.

Who starts servers calls `end_with_this_process()` once, before the first of them. From then on all that it
starts inherits a mark in its environment, over forks, sessions and programs in between; and a guard waits for
the end of this process and kills what bears the mark. The guard is this file, run as a program.

A mark, because nothing else reaches all of them: a pipe would have to be read by servers of others, a process
group is left by a daemon, and what PR_SET_PDEATHSIG asks for is forgotten by fork and setuid.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

# No name that begins with GEARFLEET_: nodes warn of those that they do not know.
MARK = "STARTED_BY_TEST_RUN"
_GIVE_UP_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.05


def end_with_this_process() -> None:
    """What this process starts from now on ends with it. Once is enough; Linux only."""
    if os.environ.get(MARK, "").startswith(f"{os.getpid()}-"):
        return
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), os.environ[MARK]],
        env=unmarked,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C at the run is not meant for it
    )
    assert guard.stdout is not None
    with guard.stdout:
        assert guard.stdout.readline() == b"watching\n"
    guard.returncode = 0  # it is not waited for: it ends after this process


def marked(mark: str) -> list[int]:
    """The processes that were started under a mark, as far as this user may see."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # another user's, or gone
                continue
            if wanted in variables:
                found.append(int(folder.name))
    return found


def runs(process_id: int) -> bool:
    """It has not ended; one that nobody has waited for yet has."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _guard(process_id: int, mark: str) -> None:
    watched = os.pidfd_open(process_id)
    if os.getppid() == process_id:
        os.write(1, b"watching\n")
        os.close(1)
        select.select([watched], [], [])
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while time.monotonic() < deadline and (left := marked(mark)):
        for each in left:
            try:
                os.kill(each, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_LOOK_AGAIN_SECONDS)  # a process that was just forked is found the next time


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
