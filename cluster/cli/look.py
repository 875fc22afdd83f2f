"""jobs and job: what waits and runs, and all of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import click

from cluster.cli import EXIT_FAILED
from cluster.cli.discover import Heard, Source, ask_fleet
from cluster.cli.fleet import flat, json_option, print_rows
from cluster.cli.found_jobs import FoundJob, JobQuestion
from cluster.cli.servers import Failed, Servers, complain, server_options
from cluster.cli.suggest import SuggestingChoice
from cluster.cli.tables import print_json, say

STATES: Final = ("waiting", "scheduled", "pending", "running", "reclaim")
HANDLE_MARK: Final = "H:"
JOBS_OF_A_KEY_MAX: Final = 100


@click.command()
@server_options()
@json_option
@click.option("--function", "-f", metavar="NAME", help="Only jobs of this function.")
@click.option("--unique", "-u", metavar="KEY", help="Only jobs of this unique key.")
@click.option("--state", type=SuggestingChoice(STATES), help="Only jobs in this state.")
@click.option("--oldest", is_flag=True, help="The oldest first.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
def jobs(
    servers: Servers,
    as_json: bool,
    function: str | None,
    unique: str | None,
    state: str | None,
    oldest: bool,
    limit: int | None,
) -> None:
    """Show jobs: those that wait, run, or wait for their time.

    The servers look for what fits, page by page, so that other work goes on meanwhile. An age with ">" is at
    least that: the job is from before the node's start or from the slot's former primary. Tries counts how
    often it was given to a worker, lost how often that one went away. One node of a fleet is enough: the
    others are asked, too.
    """
    question = JobQuestion(function, unique, None, state, oldest, limit)
    heard = ask_for_jobs(servers, question)
    records = flat(heard.told)
    if oldest:
        records.sort(key=lambda record: -(record[1].age_seconds or 0.0))
    print_rows(
        records[:limit],
        ["Job", "Function", "Unique", "Priority", "State", "Age", "Tries", "Lost", "Bytes", "Worker"],
        _cells,
        as_json=as_json,
        nothing="No such jobs." if question.narrow else "No jobs.",
        several=len(servers.addresses) > 1,
        silent=heard.silent,
    )


def ask_for_jobs(servers: Servers, question: JobQuestion) -> Heard[list[FoundJob]]:
    try:
        return ask_fleet(servers, lambda admin: admin.find_jobs(question))
    except Failed as failure:
        if "UNKNOWN_COMMAND" in failure.message:
            raise Failed(f"{failure.message}: gearmand lists only all its jobs, by handle") from None
        raise


def _cells(row: FoundJob) -> tuple[object, ...]:
    return (
        row.handle,
        _or_dash(row.function),
        _or_dash(row.unique),
        _or_dash(row.priority),
        row.state,
        row.age,
        "-" if row.deliveries is None else row.deliveries,
        row.retries,
        "-" if row.size_bytes is None else row.size_bytes,
        _or_dash(row.worker),
    )


def _or_dash(text: str | None) -> str:
    return text or "-"


@click.command()
@click.argument("job", metavar="HANDLE|KEY")
@server_options()
@json_option
@click.option("--function", "-f", metavar="NAME", help="The function of that unique key; it is found faster.")
def job(job: str, servers: Servers, as_json: bool, function: str | None) -> int:
    """Show all of one job, by its handle or its unique key.

    In a fleet the node that leads its slot is named, too. A job that is over is in no list: it is told as
    unknown.

    Exit codes: 0, 1 there is no such job, 3 no server answered.
    """
    by_handle = job.startswith(HANDLE_MARK)
    question = JobQuestion(handle=job) if by_handle else JobQuestion(function, job, limit=JOBS_OF_A_KEY_MAX)
    heard = ask_for_jobs(servers, question)
    if by_handle and not any(told.answer for told in heard.told):
        # A unique key may look like a handle.
        heard = ask_for_jobs(servers, JobQuestion(function, job, limit=JOBS_OF_A_KEY_MAX))
    records = [(source, row, _leader(heard, source, row)) for source, row in flat(heard.told)]
    if as_json:
        print_json([{**source.columns, **_json(row), "leader": leader} for source, row, leader in records])
    for index, (source, row, leader) in enumerate(records if not as_json else ()):
        if index:
            say("")
        for name, value in _lines(source, row, leader):
            say(f"{name + ':':<12}{value}")
    if not records:
        complain(not_found(job, heard))
        return EXIT_FAILED
    return 0


def not_found(job: str, heard: Heard[list[FoundJob]]) -> str:
    """What is known of a job that nobody told of: "never here" only where all that could have it answered."""
    torn = [fleet for fleet in heard.maps if heard.incomplete(fleet)]
    silent = [str(each.source) for each in heard.silent if each.source.fleet in ("", *torn)]
    if silent:
        return f"job {job} is unknown: {', '.join(silent)} did not answer and may have it"
    if torn:
        return f"job {job} is unknown: it may be {heard.missing(torn[0])}; ask again"
    return f"no job {job}: it is done, or was never here; gearfleet jobs lists all"


def _leader(heard: Heard[list[FoundJob]], source: Source, row: FoundJob) -> str:
    """The node that leads the job's slot; empty outside of a fleet."""
    slot_map = heard.maps.get(source.fleet)
    if slot_map is None or row.slot is None:
        return ""
    primary = slot_map.primary(row.slot)
    return primary.name if primary is not None else "nobody now"


def _json(row: FoundJob) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _lines(source: Source, row: FoundJob, leader: str) -> list[tuple[str, object]]:
    due = datetime.fromtimestamp(row.due_seconds, UTC).isoformat() if row.due_seconds else ""
    kind = "" if row.background is None else "background" if row.background else "foreground"
    lost = f", {row.retries} of them lost with their worker" if row.retries else ""
    lines: list[tuple[str, object]] = [
        ("Job", row.handle),
        ("Function", row.function),
        ("Unique", row.unique),
        ("Priority", row.priority),
        ("Kind", kind),
        ("State", row.state),
        ("Age", row.age),
        ("Tries", "" if row.deliveries is None else f"{row.deliveries}{lost}"),
        ("Payload", "" if row.size_bytes is None else f"{row.size_bytes:,} bytes"),
        ("Not before", due),
        ("Schedule", row.cron),
        ("Worker", row.worker),
        ("Progress", row.progress),
        ("Waiting", f"{row.clients} clients" if row.clients else ""),
        ("Told by", source),
        ("Slot", row.slot if leader else ""),
        ("Led by", leader),
    ]
    return [(name, value) for name, value in lines if value not in (None, "")]
