"""status, workers, jobs, cancel, maxqueue: look at servers and change what they hold."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from client_ha.addresses import Server
from cluster.cli import EXIT_FAILED
from cluster.cli.admin import Admin, FunctionPriorities, FunctionStatus
from cluster.cli.discover import Source, Told, ask_fleet
from cluster.cli.servers import Failed, Servers, ask_all, complain, server_options
from cluster.cli.tables import say, show, show_json

Row = TypeVar("Row")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def _flat(told: Iterable[Told[list[Row]]]) -> list[tuple[Source, Row]]:
    return [(each.source, row) for each in told for row in each.answer]


def _by_server(answers: Iterable[tuple[Server, list[Row]]]) -> list[Told[list[Row]]]:
    return [Told(Source(server), rows) for server, rows in answers]


def _print(
    records: list[tuple[Source, Any]],
    columns: Sequence[str],
    cells: Callable[[Any], tuple[object, ...]],
    *,
    as_json: bool,
    nothing: str,
    several: bool = False,
) -> None:
    """One table for all servers; who said it is a column unless that is one server."""
    if as_json:
        show_json((source.columns, record) for source, record in records)
        return
    several = several or len({source for source, _ in records}) > 1
    rows = [((str(source),) if several else ()) + cells(record) for source, record in records]
    show((["Server"] if several else []) + list(columns), rows, nothing=nothing)


@click.command()
@server_options()
@json_option
@click.option("--priorities", is_flag=True, help="Show waiting jobs by priority.")
@click.option("--by-node", is_flag=True, help="Do not add up what the nodes of a fleet say.")
def status(servers: Servers, as_json: bool, priorities: bool, by_node: bool) -> None:
    """Show every function's jobs and workers.

    Waiting jobs without a worker are marked with a "!". One node of a fleet is enough to see all: the others
    are asked, too, and added up. Workers are those of the node that has the most of them, because a worker
    registers with every node.
    """
    several = len(servers.addresses) > 1
    if priorities:
        waiting = _flat(ask_fleet(servers, Admin.priority_status))
        _print(
            sorted(waiting if by_node else _sums(waiting, add_priorities), key=_by_function),
            ["Function", "High", "Normal", "Low", "Workers"],
            _priority_cells,
            as_json=as_json,
            nothing="No functions: nobody has submitted a job or registered a worker yet.",
            several=several or by_node,
        )
        return
    counts = _flat(ask_fleet(servers, Admin.status))
    _print(
        sorted(counts if by_node else _sums(counts, add_status), key=_by_function),
        ["Function", "Waiting", "Running", "Workers", ""],
        status_cells,
        as_json=as_json,
        nothing="No functions: nobody has submitted a job or registered a worker yet.",
        several=several or by_node,
    )


def add_status(one: FunctionStatus, other: FunctionStatus) -> FunctionStatus:
    return FunctionStatus(
        one.function, one.total + other.total, one.running + other.running, max(one.workers, other.workers)
    )


def add_priorities(one: FunctionPriorities, other: FunctionPriorities) -> FunctionPriorities:
    return FunctionPriorities(
        one.function,
        one.high + other.high,
        one.normal + other.normal,
        one.low + other.low,
        max(one.workers, other.workers),
    )


def _sums(records: list[tuple[Source, Any]], add: Callable[[Any, Any], Any]) -> list[tuple[Source, Any]]:
    """The rows of a fleet's nodes added up; those of other servers as they are."""
    sums: dict[tuple[Source, str], Any] = {}
    for source, row in records:
        key = (Source(fleet=source.fleet) if source.fleet else source, row.function)
        sums[key] = add(sums[key], row) if key in sums else row
    return [(source, row) for (source, _), row in sums.items()]


def _by_function(record: tuple[Source, Any]) -> tuple[str, str]:
    return record[1].function, str(record[0])


def status_cells(row: FunctionStatus) -> tuple[object, ...]:
    """A function's cells: name, waiting, running, workers, and a mark when nobody works on it."""
    mark = "! no worker" if row.waiting and not row.workers else ""
    return row.function, row.waiting, row.running, row.workers, mark


def _priority_cells(row: FunctionPriorities) -> tuple[object, ...]:
    return row.function, row.high, row.normal, row.low, row.workers


@click.command()
@server_options()
@json_option
@click.option("--all", "everyone", is_flag=True, help="Show clients, too: connections without a function.")
def workers(servers: Servers, as_json: bool, everyone: bool) -> None:
    """Show who is connected and what they can do.

    One node of a fleet is enough: the others are asked, too. A worker is listed by each node that it is
    connected with.
    """
    records = [r for r in _flat(ask_fleet(servers, Admin.workers)) if everyone or r[1].functions]
    _print(
        records,
        ["Address", "Name", "Functions"],
        lambda row: (row.address, row.client_id, " ".join(row.functions)),
        as_json=as_json,
        nothing="No connections." if everyone else "No workers. --all shows the other connections.",
        several=len(servers.addresses) > 1,
    )


@click.command()
@server_options()
@json_option
def jobs(servers: Servers, as_json: bool) -> None:
    """Show every job on the servers.

    Tries lost counts how often the job's worker went away before it was done. One node of a fleet is enough:
    the others are asked, too.
    """
    _print(
        _flat(ask_fleet(servers, Admin.jobs)),
        ["Job", "State", "Tries lost"],
        lambda row: (
            row.handle,
            "cancelled" if row.cancelled else "waiting" if row.queued else "running",
            row.retries,
        ),
        as_json=as_json,
        nothing="No jobs.",
        several=len(servers.addresses) > 1,
    )


@click.command()
@server_options()
@click.argument("handles", metavar="HANDLE…", nargs=-1, required=True)
def cancel(servers: Servers, handles: tuple[str, ...]) -> int:
    """Cancel jobs that wait.

    A job that runs is not stopped. Exit code 1: a handle is unknown on every server.
    """
    found: set[str] = set()

    def cancel_here(admin: Admin) -> None:
        found.update(handle for handle in handles if admin.cancel(handle))

    ask_all(servers, cancel_here)
    for handle in handles:
        if handle in found:
            say(f"cancelled {handle}")
        else:
            complain(f"no job {handle}: it is done, or was never here; gearfleet jobs lists all")
    return 0 if found.issuperset(handles) else EXIT_FAILED


@click.command(context_settings={"ignore_unknown_options": True})
@server_options()
@json_option
@click.argument("function", required=False)
@click.argument("limits", metavar="[N | HIGH NORMAL LOW]", nargs=-1, type=click.INT)
def maxqueue(servers: Servers, as_json: bool, function: str | None, limits: tuple[int, ...]) -> None:
    """Show or set how many jobs a function may hold.

    Without a number it shows the limits. N limits each priority alike; three numbers limit high, normal and
    low priority. 0 takes a limit away. A job beyond the limit is refused with QUEUE_ERROR.
    """
    if len(limits) not in (0, 1, 3):
        raise click.UsageError("give one number for all priorities, or three: HIGH NORMAL LOW")
    if function is not None and limits:
        # gearmand takes everything below 1 as "no limit".
        wanted = tuple(max(0, limit) for limit in limits)
        ask_all(servers, lambda admin: admin.set_maxqueue(function, wanted))
        if not as_json:
            return
    try:
        found = _flat(_by_server(ask_all(servers, Admin.maxqueues)))
    except Failed as failure:
        if "UNKNOWN_SHOW" in failure.message:
            raise Failed(f"{failure.message}: gearmand can set limits but not show them") from None
        raise
    _print(
        [r for r in found if function is None or r[1].function == function],
        ["Function", "High", "Normal", "Low"],
        lambda row: (row.function, *(limit or "no limit" for limit in (row.high, row.normal, row.low))),
        as_json=as_json,
        nothing=f"No limit for {function}." if function else "No limits.",
        several=len(servers.addresses) > 1,
    )
