"""Jobs per second in each direction, in turns: every server once, then every server again."""

import argparse
from collections import defaultdict
from dataclasses import dataclass

from benchmarks import report
from benchmarks.load import Load, Outcome, apply, processes_default
from benchmarks.servers import (
    GEARMAND_SQLITE,
    Server,
    ServerKind,
    gearfleet,
    gearmand,
    gearmand_path,
    gearmand_tuned,
    has_sqlite_queue,
    running,
)

# A queue in sqlite takes some 1,000 to 1,600 jobs per second: fewer jobs, or nothing else would get its turn.
SQLITE_JOBS_MAX = 2_000
SQLITE_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Work:
    """A row of the table. Foreground jobs are never on disk, so durability matters to the others only."""

    name: str
    mode: str
    durability: str = "fsync"
    in_flight: int = 64


ROWS = (
    Work("foreground, pipelined", "fg"),
    Work("background, memory", "bg", "memory"),
    Work("background, os", "bg", "os"),
    Work("background, fsync", "bg"),
    Work("background, fsync, 4 × 256 in flight", "bg", in_flight=256),
    Work("drain, fsync", "drain"),
    Work("submit and work at once, fsync", "bgfull"),
)

# What one start of a server is used for: drain takes what bg has just queued.
SEQUENCES = (("fg",), ("bg", "drain"), ("bgfull",))

Results = dict[tuple[str, str, int, str], list[Outcome]]  # column, mode, in flight, variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=200_000, help="per measurement (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="connections that submit (%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="connections that work (%(default)s)")
    parser.add_argument("--payload-bytes", type=int, default=64, help="(%(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[0, 1, 4],
        help="gearmand's -t: the best of these is its figure in each row (%(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=processes_default(), help="load generators (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    report.header(options)
    results: Results = defaultdict(list)
    for repetition in range(options.repetitions):
        for kind in kinds(options.threads):
            report.progress(f"{repetition + 1}/{options.repetitions} {kind.column} {kind.variant}")
            measure(kind, options, results)
    show(options, results)
    return 0


def kinds(threads: list[int]) -> list[ServerKind]:
    chosen = [gearfleet("memory"), gearfleet("os"), gearfleet("fsync")]
    if gearmand_path() is not None:
        chosen += [make(count) for make in (gearmand, gearmand_tuned) for count in threads]
    if has_sqlite_queue():
        chosen.append(GEARMAND_SQLITE)
    return chosen


def measure(kind: ServerKind, options: argparse.Namespace, results: Results) -> None:
    wanted = {
        (row.mode, row.in_flight)
        for row in ROWS
        if (kind.program != "gearfleet" or row.durability == kind.variant)
        and (kind is not GEARMAND_SQLITE or (row.mode != "fg" and row.in_flight == 64))
    }
    for in_flight in (64, 256):
        for sequence in SEQUENCES:
            modes = [mode for mode in sequence if (mode, in_flight) in wanted]
            if not modes:
                continue
            with running(kind) as server:
                for mode in modes:
                    outcome = apply(_load(kind, mode, in_flight, options), server)
                    results[kind.column, mode, in_flight, kind.variant].append(outcome)
                    _check(server, mode, outcome)


def _load(kind: ServerKind, mode: str, in_flight: int, options: argparse.Namespace) -> Load:
    slow = kind is GEARMAND_SQLITE
    return Load(
        mode,
        jobs=min(options.jobs, SQLITE_JOBS_MAX) if slow else options.jobs,
        clients=options.clients,
        workers=options.workers,
        in_flight=in_flight,
        payload_bytes=options.payload_bytes,
        processes=options.processes,
        seconds_max=SQLITE_SECONDS_MAX if slow else 60.0,
    )


def _check(server: Server, mode: str, outcome: Outcome) -> None:
    if outcome.errors:
        report.note(
            f"{server.kind.column} {server.kind.variant}, {mode}: {outcome.errors} jobs ended with an error"
        )


def show(options: argparse.Namespace, results: Results) -> None:
    rows = []
    bound = False
    for row in ROWS:
        cells: list[str] = []
        rates: dict[str, float | None] = {}
        for column in ("gearfleet", "gearmand", "tuned", "sqlite"):
            variant, outcomes = _best(results, column, row)
            rate = rates[column] = report.median([outcome.rate for outcome in outcomes])
            mark = report.BOUND_MARK if report.generator_bound(outcomes) else ""
            bound = bound or bool(mark)
            suffix = f" {variant}" if variant.startswith("-t") else ""
            cells.append(report.number(rate) + mark + suffix)
        ours = rates["gearfleet"]
        ratios = [report.ratio(ours, rates[column]) for column in ("gearmand", "tuned", "sqlite")]
        rows.append((row.name, *cells, *ratios))
    report.table(
        f"jobs per second ({options.jobs:,} jobs of {options.payload_bytes} bytes, "
        f"{options.clients} clients × 64 in flight, {options.workers} workers)",
        ("work", "gearfleet", "gearmand", "tuned", "sqlite queue", ": gearmand", ": tuned", ": sqlite"),
        rows,
    )
    report.note(
        "gearmand: as installed, queue in memory, the best of its -t; tuned: with --hashtable-buckets 1000003"
    )
    if bound:
        report.note(report.BOUND_NOTE)


def _best(results: Results, column: str, row: Work) -> tuple[str, list[Outcome]]:
    """The variant with the highest median; Gearfleet's variant is the row's own durability."""
    candidates = {
        variant: outcomes
        for (of, mode, in_flight, variant), outcomes in results.items()
        if (of, mode, in_flight) == (column, row.mode, row.in_flight)
        and (column != "gearfleet" or variant == row.durability)
    }
    if not candidates:
        return "", []
    return max(
        candidates.items(), key=lambda item: report.median([outcome.rate for outcome in item[1]]) or 0.0
    )
