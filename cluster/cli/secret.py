"""gearfleet fleet secret: what nodes and commands prove themselves with, read and exchanged in etcd."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cluster.cli.restore import ETCD_SETTINGS, fleet
from cluster.cli.sections import SectionCommand
from cluster.cli.server import setting_option
from cluster.cli.servers import Failed, NoServer

if TYPE_CHECKING:
    from cluster.server.store import Store

CHANGE_TRIES: Final = 3
Answer = TypeVar("Answer")
Secrets = tuple[bytes, ...]


def with_store(typed: dict[str, Any], work: "Callable[[Store], Awaitable[Answer]]") -> Answer:
    """Do something with the fleet's etcd. Raises Failed and NoServer."""
    from cluster.server.errors import StartError, StoreError, Unreachable
    from cluster.server.settings import SettingsError, load_settings
    from cluster.server.store import Store, store_options

    try:
        settings = load_settings({name: value for name, value in typed.items() if value is not None})
        if not settings.etcd:
            raise click.UsageError("--etcd is missing: where is the fleet's secret?")
        options = store_options(settings)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    except StartError as error:
        raise Failed(str(error)) from None

    async def run() -> Answer:
        store = Store(options)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except Unreachable as error:
        raise NoServer(str(error)) from None
    except StoreError as error:
        raise Failed(str(error)) from None


async def _read(store: "Store") -> Secrets:
    await store.read()
    if not store.secrets:
        raise Failed(
            f"the fleet {store.options.fleet} has no secret in etcd yet: its first node of this release "
            "makes one when it starts; or is it another --fleet, or --etcd?"
        )
    return store.secrets


async def _change(store: "Store", change: Callable[[Secrets], Secrets]) -> Secrets:
    for _ in range(CHANGE_TRIES):
        old = await _read(store)
        new = change(old)
        done = await store.change_secret(new, old)
        if done:
            return new
        if done is None:
            raise NoServer("etcd did not answer, so nobody knows whether it was done: look with show")
    raise Failed(f"it was not done: {store.error or 'others change the secret at the same time'}")


def _show(output: Path | None, **typed: Any) -> int:
    from cluster.server.proof import encode_secrets

    text = encode_secrets(with_store(typed, _read)).decode()
    if output is None:
        click.echo(text, nl=False)
        return 0
    try:
        with open(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # it may have been there already
            file.truncate(0)
            file.write(text)
    except OSError as error:
        raise Failed(f"{output} cannot be written: {error.strerror}") from None
    return 0


def _rotate(**typed: Any) -> int:
    from cluster.server.proof import SECRET_BYTES, SECRETS_MAX

    def add(old: Secrets) -> Secrets:
        if len(old) >= SECRETS_MAX:
            raise Failed(
                "the secret is being exchanged already: both are good. gearfleet fleet secret retire ends it"
            )
        return (token_bytes(SECRET_BYTES), *old)

    with_store(typed, lambda store: _change(store, add))
    click.echo(
        "Both secrets are good now; nodes read the new one within seconds, and no stream breaks. Give it to "
        "whoever has a file of it (gearfleet fleet secret show), then: gearfleet fleet secret retire"
    )
    return 0


def _retire(**typed: Any) -> int:
    def drop(old: Secrets) -> Secrets:
        if len(old) == 1:
            raise Failed("there is one secret only: gearfleet fleet secret rotate adds the next one first")
        return old[:1]

    with_store(typed, lambda store: _change(store, drop))
    click.echo("The old secret is good for nothing any more. Streams that stand stay.")
    return 0


@fleet.group("secret")
def secret() -> None:
    """What nodes and commands prove themselves with: show it, or exchange it for another one."""


def _command(name: str, help: str, callback: Callable[..., int], *more: click.Parameter) -> None:
    options = [setting_option(setting, "etcd") for setting in ETCD_SETTINGS]
    secret.add_command(SectionCommand(name, help=help, callback=callback, params=[*more, *options]))


_command(
    "show",
    "Print the fleet's secret, for --secret-file. Whoever has it is a node: keep it as you keep a password.",
    _show,
    click.Option(
        ["--output", "-o"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write it there, for its owner to read only.",
    ),
)
_command("rotate", "Step one of an exchange: add a new secret. Both are good until retire.", _rotate)
_command("retire", "Step two of an exchange: take the old secret away.", _retire)

__all__ = ["fleet"]
