"""Command templates: how a drill stops and starts what it cannot reach itself.

    ssh {host} sudo systemctl kill -s KILL {unit}

A template is split into words first, as a shell would, and then its placeholders are replaced: no shell runs
here. But ssh runs one over there, so a value is put in only when it is a plain name or address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Final

NODE_PLACEHOLDERS: Final = ("node", "host", "port", "peer_port", "unit")
OUTPUT_CHARACTERS_MAX: Final = 4_000  # of a command, in messages and in the report
_END_SECONDS: Final = 2.0  # for a command that was killed to be gone

_PLACEHOLDER: Final = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:\[\]@-]*")


class BadTemplate(ValueError):
    """A template cannot be used; the text says why."""


class CommandFailed(Exception):
    """A command did not end well, or in time; the text has what it printed. `ran`: it may have done
    something, and may do more."""

    def __init__(self, text: str, *, ran: bool = True) -> None:
        super().__init__(text)
        self.ran = ran


@dataclass(frozen=True, slots=True)
class Template:
    """A command with placeholders, checked. Raises BadTemplate."""

    text: str
    known: tuple[str, ...] = NODE_PLACEHOLDERS

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.text)
        except ValueError as error:
            raise BadTemplate(f"{self.text!r} is no command: {error}") from None
        if not words:
            raise BadTemplate("the command is empty")
        for name in self.placeholders:
            if name not in self.known:
                takes = ", ".join(f"{{{each}}}" for each in self.known) or "no placeholders"
                raise BadTemplate(f"{self.text!r} has {{{name}}}; known are: {takes}")

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(_PLACEHOLDER.findall(self.text))

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The command's words. Raises BadTemplate when a value could mean something to a shell."""
        return [_PLACEHOLDER.sub(lambda match: _plain(match[1], values), word) for word in self._split()]

    def shown(self, values: Mapping[str, str]) -> str:
        """The command as somebody would type it."""
        return shlex.join(self.words(values))

    def _split(self) -> list[str]:
        return shlex.split(self.text)


def _plain(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name, "")
    if not _PLAIN.fullmatch(value):
        raise BadTemplate(f"{{{name}}} is {value!r}, which is not put into a command")
    return value


@dataclass(frozen=True, slots=True)
class Manager:
    """Who runs the nodes: how one of them is killed there, and started when that is needed."""

    kill: str
    start: str  # empty: the manager starts it again by itself
    unit: str  # what a node is called there
    where: str = ""  # its commands act, when no placeholder says so
    verb: str = "kill"
    caveat: str = ""  # why that is not what kill -9 is


# `systemctl kill` leaves Restart= in force, and a StatefulSet makes a deleted pod anew; docker takes a kill
# for a wish of its user, whatever the restart policy says.
MANAGERS: Final[Mapping[str, Manager]] = {
    "systemd": Manager(
        "ssh -o BatchMode=yes {host} sudo -n systemctl kill -s KILL {unit}",
        "",
        "gearfleet",
    ),
    "docker": Manager(
        "docker kill -s KILL {unit}",
        "docker start {unit}",
        "{node}",
        "docker's current context",
    ),
    "compose": Manager(
        "docker compose kill -s KILL {unit}",
        "docker compose start {unit}",
        "{node}",
        "docker's current context and the project of this folder",
    ),
    "kubectl": Manager(
        "kubectl delete pod {unit} --grace-period=0 --force --wait=false",
        "",
        "{node}",
        "kubectl's current context and namespace",
        "delete",
        "kubectl deletes the pod, which is no kill -9: its preStop may drain the node first, and it has its "
        "terminationGracePeriodSeconds to end",
    ),
}


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended well."""

    command: str
    output: str  # standard output and error, shortened


async def run_command(words: list[str], timeout_seconds: float) -> Ran:
    """Run a command without a shell, input or terminal, in a session of its own: a Ctrl-C at the drill must
    not cut off what mends the fleet. It is killed with its children at the end of its time.

    Raises CommandFailed.
    """
    shown = shlex.join(words)
    # A file, not a pipe: what the command leaves running must neither hold this up nor lose its output.
    with tempfile.TemporaryFile() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            text = f"{shown}: cannot be run: {error.strerror or error}"
            raise CommandFailed(text, ran=False) from None
        try:
            async with asyncio.timeout(timeout_seconds):
                status = await process.wait()
        except TimeoutError:
            raise CommandFailed(
                f"{shown}: did not end within {timeout_seconds:g} s{_said(_tail(output))}"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await process.wait()
        text = _tail(output)
    if status:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        raise CommandFailed(f"{shown}: {how}{_said(text)}")
    return Ran(shown, text)


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - OUTPUT_CHARACTERS_MAX))
    return output.read().decode("utf-8", "replace").strip()


def _said(text: str) -> str:
    return f", and said: {text}" if text else ""
