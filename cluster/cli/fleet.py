"""status, workers, maxqueue: look at servers and change what they hold."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click

from client_ha.addresses import Server
from cluster.cli.admin import Admin, FunctionPriorities, FunctionStatus
from cluster.cli.discover import Heard, Silent, Source, Told, ask_fleet
from cluster.cli.servers import Failed, Servers, ask_all, server_options
from cluster.cli.tables import say, show, show_json

Row = TypeVar("Row")
FUNCTIONS_SHOWN_MAX: Final = 50  # of one worker

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def flat(told: Iterable[Told[list[Row]]]) -> list[tuple[Source, Row]]:
    return [(each.source, row) for each in told for row in each.answer]


def _by_server(answers: Iterable[tuple[Server, list[Row]]]) -> list[Told[list[Row]]]:
    return [Told(Source(server), rows) for server, rows in answers]


def print_rows(
    records: list[tuple[Source, Any]],
    columns: Sequence[str],
    cells: Callable[[Any], tuple[object, ...]],
    *,
    as_json: bool,
    nothing: str,
    several: bool = False,
    silent: Sequence[Silent] = (),
) -> None:
    """One table for all servers; who said it is a column unless that is one server.

    Who did not answer has a row, too: a list that leaves somebody out must not look whole.
    """
    if as_json:
        show_json(
            ((source.columns, record) for source, record in records),
            ({**each.source.columns, "fault": each.what} for each in silent),
        )
        return
    several = several or bool(silent) or len({source for source, _ in records}) > 1
    rows = [((str(source),) if several else ()) + cells(record) for source, record in records]
    for each in silent:
        blank = [""] * (len(columns) - 1)
        rows.append((str(each.source), f"! did not answer: {each.what}", *blank))
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
    registers with every node. "No worker on" names nodes whose jobs wait while all who could do them are
    connected elsewhere. A node that does not answer has a row, and sums are "incomplete" while it may have
    jobs.

    Exit codes: 0 also when some did not answer, 3 when none did.
    """
    heard: Heard[Any] = ask_fleet(servers, Admin.priority_status if priorities else Admin.status)
    records = flat(heard.told)
    if not by_node:
        records = _sums(heard, add_priorities if priorities else add_status)
    print_rows(
        [(source, (source, row)) for source, row in sorted(records, key=_by_function)]
        if not as_json
        else sorted(records, key=_by_function),
        ["Function", *(("High", "Normal", "Low") if priorities else ("Waiting", "Running")), "Workers", ""],
        _priority_cells if priorities else status_cells,
        as_json=as_json,
        nothing="No functions: nobody has submitted a job or registered a worker yet.",
        several=len(servers.addresses) > 1 or by_node,
        silent=heard.silent,
    )
    for fleet in heard.maps if not as_json else ():
        if heard.incomplete(fleet):
            say(f"! incomplete: jobs {heard.missing(fleet)} are not counted", err=True)


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


def _sums(heard: Heard[Any], add: Callable[[Any, Any], Any]) -> list[tuple[Source, Any]]:
    """The rows of a fleet's nodes added up; those of other servers as they are."""
    sums: dict[tuple[str, str], Any] = {}
    others: list[tuple[Source, Any]] = []
    without: dict[tuple[str, str], list[str]] = {}
    for source, row in flat(heard.told):
        if not source.fleet:
            others.append((source, row))
            continue
        key = (source.fleet, row.function)
        sums[key] = add(sums[key], row) if key in sums else row
        if row.waiting and not row.workers:
            without.setdefault(key, []).append(source.node)
    incomplete = {fleet: heard.incomplete(fleet) for fleet in heard.maps}
    return others + [
        (
            Source(
                fleet=key[0],
                incomplete=incomplete[key[0]],
                no_worker_on=tuple(sorted(without.get(key, ()))) if row.workers else (),
            ),
            row,
        )
        for key, row in sums.items()
    ]


def _by_function(record: tuple[Source, Any]) -> tuple[str, str]:
    return record[1].function, str(record[0])


def _mark(source: Source, row: FunctionStatus | FunctionPriorities) -> str:
    """What is wrong with a function: nobody works on it, or not where its jobs are; or nobody knows all."""
    marks = []
    if row.waiting and not row.workers:
        marks.append("no worker")
    elif source.no_worker_on:
        marks.append(f"no worker on {', '.join(source.no_worker_on)}")
    if source.incomplete:
        marks.append("incomplete")
    return "! " + ", ".join(marks) if marks else ""


def status_cells(record: tuple[Source, FunctionStatus]) -> tuple[object, ...]:
    """A function's cells: name, waiting, running, workers, and a mark."""
    source, row = record
    return row.function, row.waiting, row.running, row.workers, _mark(source, row)


def _priority_cells(record: tuple[Source, FunctionPriorities]) -> tuple[object, ...]:
    source, row = record
    return row.function, row.high, row.normal, row.low, row.workers, _mark(source, row)


@click.command()
@server_options()
@json_option
@click.option("--all", "everyone", is_flag=True, help="Show clients, too: connections without a function.")
def workers(servers: Servers, as_json: bool, everyone: bool) -> None:
    """Show who is connected and what they can do.

    One node of a fleet is enough: the others are asked, too. A worker is listed by each node that it is
    connected with.
    """
    heard = ask_fleet(servers, Admin.workers)
    print_rows(
        [record for record in flat(heard.told) if everyone or record[1].functions],
        ["Address", "Name", "Functions"],
        lambda row: (row.address, row.client_id, _some(row.functions)),
        as_json=as_json,
        nothing="No connections." if everyone else "No workers. --all shows the other connections.",
        several=len(servers.addresses) > 1,
        silent=heard.silent,
    )


def _some(functions: Sequence[str]) -> str:
    """The first functions of a worker: one with thousands must not push the others off the screen."""
    left = len(functions) - FUNCTIONS_SHOWN_MAX
    shown = " ".join(functions[:FUNCTIONS_SHOWN_MAX])
    return f"{shown} … and {left:,} more (--json has all)" if left > 0 else shown


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
        found = flat(_by_server(ask_all(servers, Admin.maxqueues)))
    except Failed as failure:
        if "UNKNOWN_SHOW" in failure.message:
            raise Failed(f"{failure.message}: gearmand can set limits but not show them") from None
        raise
    print_rows(
        [r for r in found if function is None or r[1].function == function],
        ["Function", "High", "Normal", "Low"],
        lambda row: (row.function, *(limit or "no limit" for limit in (row.high, row.normal, row.low))),
        as_json=as_json,
        nothing=f"No limit for {function}." if function else "No limits.",
        several=len(servers.addresses) > 1,
    )
