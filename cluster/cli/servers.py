"""Which servers a command talks to, and asking all of them."""

import asyncio
import functools
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from client_ha.addresses import SERVERS_ENVIRONMENT, Server
from client_ha.discovery import Discovery, Sources, parse_sources
from client_ha.errors import InvalidArgument
from cluster.cli import EXIT_FAILED, EXIT_NO_SERVER
from cluster.cli.admin import ANSWER_SECONDS, Admin, Refused
from cluster.cli.peer import Unreachable, tls_context
from cluster.wire.shown import for_terminal_lines

SERVERS_DEFAULT: Final = "127.0.0.1:4730"
ASKED_AT_A_TIME: Final = 32
LOOK_UP_SECONDS: Final = 15.0  # for a name or etcd, with all its endpoints

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that the user named, and how to reach them."""

    addresses: tuple[Server, ...]
    timeout_seconds: float
    tls: ssl.SSLContext | None
    # The same for HAClient and HAWorker, which look names and etcd up again while they run.
    named: tuple[Server | Discovery, ...] = ()


AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any] | click.Command)  # as click has it


def sources(text: str) -> Sources:
    """Servers as HAClient takes them: HOST:PORT, dns:// and etcd://."""
    try:
        return parse_sources(text)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from None


def look_up(found: Sources) -> tuple[Server, ...]:
    """The servers that are listed, and those that a name or etcd tells now. Raises NoServer."""
    servers = list(found.servers)
    faults = []
    for discovery in found.discoveries:
        try:
            servers += asyncio.run(_within(discovery.look_up()))
        except (OSError, TimeoutError) as error:
            # str(discovery) has no password.
            faults.append(f"{discovery}: {error or f'no answer within {LOOK_UP_SECONDS:g} s'}")
    if not servers:
        raise NoServer(f"no server was found. {'. '.join(faults)}")
    for fault in faults:
        complain(fault)
    return tuple(dict.fromkeys(servers))


async def _within(looking: Awaitable[Sequence[Server]]) -> Sequence[Server]:
    async with asyncio.timeout(LOOK_UP_SECONDS):
        return await looking


def client_tls(
    wanted: bool, ca: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext | None:
    """The TLS options as a context; naming a file wants TLS, too."""
    if not (wanted or ca or certificate or key):
        return None
    try:
        return tls_context(ca, certificate, key)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def timeout_option(default_seconds: float, who: str) -> Callable[[AnyCommand], AnyCommand]:
    """--timeout, for commands that wait for a `who`'s answer; the command gets `answer_seconds`."""
    return click.option(
        "--timeout",
        "answer_seconds",
        type=click.FloatRange(min=0.01),
        default=default_seconds,
        show_default=True,
        metavar="SECONDS",
        help=f"How long to wait for a {who}'s answer.",
    )


def server_options(
    *, timeout: bool = True, default: str = "", looked_up: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --servers, --timeout (unless the command has its own) and the TLS options.

    The command gets them all as `servers`: without addresses when it has a default of its own, named here,
    and nothing was given. Without `looked_up` it looks dns:// and etcd:// up by itself: `servers.named`.
    """
    path = click.Path(path_type=Path)
    options = [
        click.option(
            "--servers",
            "-s",
            metavar="HOST:PORT,…",
            help="Servers to use; dns://NAME:PORT and etcd://HOST:PORT/FLEET, too.  "
            f"[{SERVERS_ENVIRONMENT}; default: {default or SERVERS_DEFAULT}]",
        ),
        click.option("--tls", is_flag=True, help="Speak TLS and verify the server's certificate."),
        click.option(
            "--tls-ca", type=path, metavar="FILE", help="Authorities to trust.  [GEARMAN_CA_CERTIFICATE]"
        ),
        click.option(
            "--tls-certificate",
            type=path,
            metavar="FILE",
            help="This client's certificate.  [GEARMAN_CLIENT_PEM]",
        ),
        click.option("--tls-key", type=path, metavar="FILE", help="Its key.  [GEARMAN_CLIENT_KEY]"),
    ]

    if timeout:
        options.append(timeout_option(ANSWER_SECONDS, "server"))

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(
            *arguments: Any,
            servers: str | None,
            tls: bool,
            tls_ca: Path | None,
            tls_certificate: Path | None,
            tls_key: Path | None,
            answer_seconds: float = ANSWER_SECONDS,
            **rest: Any,
        ) -> Any:
            context = client_tls(tls, tls_ca, tls_certificate, tls_key)
            given = servers or os.environ.get(SERVERS_ENVIRONMENT, "").strip()
            found = sources(given or SERVERS_DEFAULT) if given or not default else Sources((), ())
            where = look_up(found) if looked_up and (found.servers or found.discoveries) else found.servers
            named: tuple[Server | Discovery, ...] = (*found.servers, *found.discoveries)
            return command(*arguments, servers=Servers(where, answer_seconds, context, named), **rest)

        result: Callable[..., Any] = wrapped
        for option in reversed(options):
            result = option(result)
        return result

    return decorate


class NoServer(click.ClickException):
    """None of the servers answered."""

    exit_code = EXIT_NO_SERVER


class Failed(click.ClickException):
    """The servers answered, and it did not work."""

    exit_code = EXIT_FAILED


def complain(text: str) -> None:
    """One line on standard error."""
    click.echo(f"gearfleet: {for_terminal_lines(text)}", err=True)


@dataclass(frozen=True, slots=True)
class Silence:
    """A server that did not answer: what happened in a few words, and as a sentence with its remedy."""

    server: Server
    what: str
    sentence: str


def ask_all(servers: Servers, question: Callable[[Admin], Answer]) -> list[tuple[Server, Answer]]:
    """Ask every server; those that are down are named on standard error.

    Raises NoServer when none answered, Failed when one refused.
    """
    answers, silences = ask_each(servers, question)
    if not answers:
        raise no_answer(silences)
    for silence in silences:
        complain(silence.sentence)
    return answers


def no_answer(silences: Iterable[Silence]) -> NoServer:
    return NoServer("no server answered. " + ". ".join(silence.sentence for silence in silences))


def ask_each(
    servers: Servers, question: Callable[[Admin], Answer]
) -> tuple[list[tuple[Server, Answer]], list[Silence]]:
    """Ask every server, all at a time: several that are silent take as long as one. Raises Failed."""

    def ask(server: Server) -> tuple[Server, Answer] | Silence | Refused:
        try:
            with Admin(server, timeout_seconds=servers.timeout_seconds, tls=servers.tls) as admin:
                answer = question(admin)
                for line in admin.odd_lines:
                    complain(f"{server}: a line that is no row of its table was left out: {line[:200]!r}")
                return server, answer
        except Unreachable as fault:
            return Silence(server, fault.what, str(fault))
        except Refused as refusal:
            return refusal

    if not servers.addresses:
        return [], []
    answers: list[tuple[Server, Answer]] = []
    silences: list[Silence] = []
    with ThreadPoolExecutor(min(ASKED_AT_A_TIME, len(servers.addresses))) as pool:
        for told in pool.map(ask, servers.addresses):
            if isinstance(told, Silence):
                silences.append(told)
            elif isinstance(told, Refused):
                raise Failed(str(told)) from None
            else:
                answers.append(told)
    return answers, silences


__all__ = [
    "SERVERS_DEFAULT",
    "Failed",
    "NoServer",
    "Servers",
    "Silence",
    "ask_all",
    "ask_each",
    "client_tls",
    "complain",
    "look_up",
    "no_answer",
    "server_options",
    "sources",
]
