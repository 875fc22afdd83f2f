"""gearfleet fleet: what is done with a whole fleet while it is stopped."""

import asyncio
from pathlib import Path
from typing import Any, Final

import click

from cluster.cli.nodes import ranges
from cluster.cli.sections import SectionCommand, SectionOption
from cluster.cli.server import setting_option
from cluster.cli.servers import Failed, NoServer, complain
from cluster.cli.suggest import SuggestingGroup
from cluster.cli.tables import say
from cluster.server.settings import REPLICAS_MAX, SettingsError, load_settings

ETCD_SETTINGS: Final = (
    *("etcd", "fleet", "etcd_user", "etcd_password_file", "etcd_ca", "etcd_certificate", "etcd_key"),
    "rpc_timeout_seconds",
)

RESTORE_HELP: Final = """Bring a fleet back after etcd was lost, wiped or restored from a backup.

All nodes must be stopped. From what all of them know, given as their data directories (--data-dir) or as
FILEs that gearfleet fleet saved-map has written, this takes the newest map, raises all its epochs beyond any
that a node knows, and writes it into etcd. Then start the nodes: they take over from themselves.

Nothing in the data directories is changed, and no job is lost by it. It refuses while a node is up, when a
node's data is missing that may know more, and when etcd has lost nothing.

Exit codes: 0 done, 1 refused, 2 usage, 3 etcd did not answer."""


@click.group("fleet", cls=SuggestingGroup)
def fleet() -> None:
    """Bring a fleet back after etcd was lost; show or exchange its secret."""


@fleet.command("saved-map")
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Write it there.")
def saved_map(data_dir: Path, output: Path | None) -> int:
    """Print what a stopped node knows of its fleet, for gearfleet fleet restore.

    That is the map it acted on last, and the highest epoch of each slot in its journal.
    """
    from cluster.server.errors import DirectoryError
    from cluster.server.recovery import encode_saved, read_saved

    try:
        saved = read_saved(data_dir)
        text = encode_saved(saved)
        if output is None:
            say(text)
        else:
            output.write_text(text + "\n")
    except DirectoryError as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename} cannot be read or written: {error.strerror}") from None
    if saved.damage:
        complain(saved.damage)
    return 0


def _restore(
    files: tuple[Path, ...],
    data_dir: tuple[Path, ...],
    without: tuple[str, ...],
    replicas: int | None,
    min_in_sync: int | None,
    force: bool,
    dry_run: bool,
    **typed: Any,
) -> int:
    from cluster.placement import FleetConfig
    from cluster.server.errors import DirectoryError, StartError, StoreError, Unreachable
    from cluster.server.etcd import etcd_options
    from cluster.server.recovery import RestoreRefused, decode_saved, plan_restore, read_saved, restore

    if not files and not data_dir:
        raise click.UsageError("give what all nodes know: --data-dir DIR of each, or FILEs of saved-map")
    try:
        settings = load_settings({name: value for name, value in typed.items() if value is not None})
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    if not settings.etcd:
        raise click.UsageError("--etcd is missing: where is the fleet's map to be written?")
    config = None
    if (replicas is None) != (min_in_sync is None):
        raise click.UsageError("--replicas and --min-in-sync go together")
    if replicas is not None and min_in_sync is not None:
        if min_in_sync > replicas:
            raise click.UsageError(f"--min-in-sync cannot be {min_in_sync} of {replicas} replicas")
        from cluster.replication import SLOT_COUNT

        config = FleetConfig(SLOT_COUNT, replicas, min_in_sync)
    try:
        saved = [read_saved(path) for path in data_dir]
        saved += [decode_saved(path.read_bytes(), str(path)) for path in files]
        plan = plan_restore(settings.fleet, saved, without)
        for each in saved:
            if each.damage:
                complain(each.damage)
        fleet_map, written = asyncio.run(
            restore(etcd_options(settings), plan, config=config, force=force, dry_run=dry_run)
        )
    except (DirectoryError, RestoreRefused, StartError) as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename} cannot be read: {error.strerror}") from None
    except Unreachable as error:
        raise NoServer(
            f"{error}. If it was asked to write, nobody knows whether it did: repeat this"
        ) from None
    except StoreError as error:
        raise Failed(str(error)) from None
    assert plan.newest.map is not None
    epochs = [row.epoch for row in fleet_map.slots]
    click.echo(
        f"newest map: {plan.newest.source} (generation {plan.newest.map.generation}, revision "
        f"{plan.newest.map.revision}), of {len(saved)} read"
    )
    click.echo(
        f"{'would be written' if dry_run else 'written'} to {settings.etcd}, fleet {settings.fleet}: "
        f"generation {fleet_map.generation}, {len(fleet_map.slots)} slots, epochs {min(epochs)} to "
        f"{max(epochs)}; {written.replicas} copies, {written.min_in_sync} to acknowledge; "
        "what etcd knew of earlier starts is forgotten"
    )
    if plan.lost:
        complain(
            f"no whole copy of {len(plan.lost)} slots is among these ({ranges(plan.lost)}): they stay "
            "unavailable until a node that has one is back, or gearfleet promote --lossy"
        )
    if not dry_run:
        click.echo("Now start the nodes: gearfleet nodes shows when they have taken over.")
    return 0


fleet.add_command(
    SectionCommand(
        "restore",
        help=RESTORE_HELP,
        callback=_restore,
        params=[
            click.Argument(["files"], metavar="[FILE…]", nargs=-1, type=click.Path(path_type=Path)),
            SectionOption(
                ["--data-dir"],
                type=click.Path(path_type=Path),
                multiple=True,
                metavar="DIR",
                section="What the nodes know",
                help="A stopped node's data directory; repeat it for each.",
            ),
            SectionOption(
                ["--without"],
                multiple=True,
                metavar="NODE",
                section="What the nodes know",
                help="A node whose data is lost for good.",
            ),
            SectionOption(
                ["--replicas"],
                type=click.IntRange(1, REPLICAS_MAX),
                metavar="NUMBER",
                section="What the nodes know",
                help="Copies that the fleet keeps, where neither nodes nor etcd say it.",
            ),
            SectionOption(
                ["--min-in-sync"],
                type=click.IntRange(1, REPLICAS_MAX),
                metavar="NUMBER",
                section="What the nodes know",
                help="How many of them acknowledge a job.",
            ),
            SectionOption(
                ["--force"],
                is_flag=True,
                section="What the nodes know",
                help="Write a new map although etcd has lost nothing.",
            ),
            SectionOption(
                ["--dry-run"],
                is_flag=True,
                section="What the nodes know",
                help="Say what would be written.",
            ),
            *(setting_option(name, "etcd") for name in ETCD_SETTINGS),
        ],
    )
)
