"""gearfleet server: one option for each field of Settings."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from cluster.cli.sections import SectionCommand, SectionOption
from cluster.server.settings import (
    ALIASES,
    CONFIG_ENVIRONMENT,
    Settings,
    SettingsError,
    environment_notes,
    fields,
    load_settings,
    shown,
)

if TYPE_CHECKING:
    from cluster.server.server import Server

HELP: Final = f"""Run a node: a Gearman job server that keeps its background jobs on disk.

Any Gearman client or worker can use it. SIGTERM ends it cleanly; SIGUSR1 lets it finish the jobs it has
and then ends it; SIGHUP opens the log file anew.

Every option may also be set in the environment, by the name in brackets, or in a TOML file (--config or
{CONFIG_ENVIRONMENT}): there the name is the same in small letters without GEARFLEET_, at the top level:

\b
    port = 4731
    data_dir = "/var/lib/gearfleet"
    max_payload_bytes = "16M"

The command line wins over the environment, the environment over the file. Sizes take K, M and G."""


REPEATABLE: Final = frozenset({"peer_remap"})  # what is typed several times is a list with commas


def is_switch(name: str) -> bool:
    """Whether a setting is on or off, and so its option takes no value."""
    return fields()[name].annotation is bool


def size_text(size_bytes: int) -> str:
    """67108864 as 64M, when it comes out even."""
    for power, letter in ((3, "G"), (2, "M"), (1, "K")):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{letter}"
    return str(size_bytes)


def default_text(name: str) -> str:
    """A setting's default, as one would type it."""
    if words := shown(name)["default"]:
        return words
    default = fields()[name].default
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if name.endswith("_bytes"):
        return size_text(default)
    return str(default)


def _metavar(name: str) -> str:
    annotation = fields()[name].annotation
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if annotation in (Path, Path | None):
        return "DIR" if name.endswith("_dir") else "FILE"
    if name.endswith("_bytes"):
        return "SIZE"
    if name.endswith("_seconds"):
        return "SECONDS"
    if name in REPEATABLE:
        return "NAME=HOST:PORT"
    return "NUMBER" if annotation is int else name.rpartition("_")[2].upper()


def setting_option(name: str, section: str | None = None) -> SectionOption:
    """The option of a setting. What was typed goes to Settings as it is, so that there is one judge of it."""
    row = shown(name)
    attributes: dict[str, Any] = {"is_flag": True} if is_switch(name) else {"metavar": _metavar(name)}
    if name in REPEATABLE:
        attributes |= {"multiple": True, "callback": lambda _context, _option, typed: ",".join(typed) or None}
    option = f"{row['option']}/--no-{row['option'][2:]}" if is_switch(name) else row["option"]
    return SectionOption(
        [option, *ALIASES.get(name, ()), name],
        default=None,
        section=row["group"] if section is None else section,
        help=f"{fields()[name].description}  [{row['environment']}; default: {default_text(name)}]",
        **attributes,
    )


def start(settings: Settings) -> int:
    """Run the node; return its exit code. The imports are late: --help needs no event loop."""
    from cluster.server import run

    return int(run(settings, environment_notes(), attach=[_http_port] if settings.http_listens else []))


async def _http_port(server: "Server") -> "Callable[[], Awaitable[None]]":
    from cluster.http import HttpPort

    settings = server.settings
    port = HttpPort(
        server, settings.http_host, settings.http_port, functions_max=settings.metrics_functions_max
    )
    await port.start()
    return port.close


def _server(config: Path | None, **values: object) -> int:
    typed = {name: value for name, value in values.items() if value is not None}
    try:
        settings = load_settings(typed, config=config)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    return start(settings)


server = SectionCommand(
    "server",
    help=HELP,
    callback=_server,
    params=[
        *(setting_option(name) for name in fields()),
        SectionOption(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            section="Process",
            help=f"TOML file with settings.  [{CONFIG_ENVIRONMENT}]",
        ),
    ],
)
