"""cancel: jobs that wait, by handle or by unique key."""

from __future__ import annotations

from typing import Final

import click

from cluster.cli import EXIT_FAILED
from cluster.cli.admin import Admin
from cluster.cli.discover import Heard
from cluster.cli.fleet import flat
from cluster.cli.found_jobs import FoundJob, JobQuestion
from cluster.cli.look import HANDLE_MARK, ask_for_jobs, not_found
from cluster.cli.servers import Failed, Servers, ask_each, complain, no_answer, server_options
from cluster.cli.tables import say

NAMED_MAX: Final = 10  # of the jobs that a key may mean


@click.command()
@click.argument("jobs", metavar="HANDLE|KEY…", nargs=-1, required=True)
@server_options()
@click.option("--function", "-f", metavar="NAME", help="The function of the unique keys.")
def cancel(jobs: tuple[str, ...], servers: Servers, function: str | None) -> int:
    """Cancel jobs that wait, by their handles or unique keys.

    A job that runs is not stopped. A key that several jobs have cancels none of them: they are named, to
    choose a handle or a function.

    Exit codes: 0, 1 a job is unknown or not the only one of its key, 3 no server answered.
    """
    # Handles may begin with something else, see gearfleet server --handle-prefix. A space is in keys only.
    handles = [
        job for job in jobs if job.startswith(HANDLE_MARK) or (function is None and job.split() == [job])
    ]
    cancelled, silent = _cancel(servers, [handle for handle in handles if handle.split() == [handle]])
    code = 0
    for job in jobs:
        if job in cancelled:
            say(f"cancelled {job}")
        elif job.startswith(HANDLE_MARK) and function is None:
            code = EXIT_FAILED
            complain(_no_handle(job, silent))
        elif not _cancel_key(servers, function, job):
            code = EXIT_FAILED
    return code


def _cancel(servers: Servers, handles: list[str]) -> tuple[set[str], list[str]]:
    """Which of them were cancelled, and which servers did not answer. Raises NoServer and Failed."""
    found: set[str] = set()
    if not handles:
        return found, []

    def cancel_here(admin: Admin) -> None:
        found.update(handle for handle in handles if admin.cancel(handle))

    answers, silences = ask_each(servers, cancel_here)
    if not answers:
        raise no_answer(silences)
    if found.issuperset(handles) or all(handle.startswith(HANDLE_MARK) for handle in handles):
        for silence in silences:
            complain(silence.sentence)
    return found, [str(silence.server) for silence in silences]


def _no_handle(handle: str, silent: list[str]) -> str:
    if silent:
        return f"job {handle} is unknown: {', '.join(silent)} did not answer and may have it"
    return f"no job {handle}: it is done, or was never here; gearfleet jobs lists all"


def _cancel_key(servers: Servers, function: str | None, key: str) -> bool:
    """Cancel the only job of a key; say what came of it."""
    try:
        heard: Heard[list[FoundJob]] = ask_for_jobs(servers, JobQuestion(function, key, limit=NAMED_MAX))
    except Failed as failure:
        if "UNKNOWN_COMMAND" not in failure.message:
            raise
        complain(f"no job has the handle {key}, and gearmand finds none by its key: gearfleet jobs lists all")
        return False
    jobs = {row.handle: row for _, row in flat(heard.told)}
    if not jobs:
        complain(not_found(key, heard))
        return False
    if len(jobs) > 1:
        named = ", ".join(f"{handle} ({row.function}, {row.state})" for handle, row in jobs.items())
        complain(f"several jobs have the key {key}; cancel one by its handle, or give --function: {named}")
        return False
    (handle,) = jobs
    cancelled, silent = _cancel(servers, [handle])
    if cancelled:
        say(f"cancelled {handle}")
    else:
        complain(_no_handle(handle, silent))
    return bool(cancelled)
