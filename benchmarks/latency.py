"""One caller, one worker, one job in flight: what the caller waits for its result."""

import argparse
from collections import defaultdict

from benchmarks import report
from benchmarks.load import Load, Outcome, apply
from benchmarks.servers import gearfleet, gearmand, gearmand_path, running

SHARES = ((0.5, "p50"), (0.99, "p99"), (1.0, "max"))
WORKS = (("foreground", "fg"), ("background", "bg"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=20_000, help="per measurement (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--payload-bytes", type=int, default=64, help="(%(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[0, 1, 4], help="gearmand's -t (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    report.header(options)
    kinds = [gearfleet("fsync")]
    if gearmand_path() is not None:
        kinds += [gearmand(count) for count in options.threads]
    results: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for repetition in range(options.repetitions):
        for kind in kinds:
            report.progress(f"{repetition + 1}/{options.repetitions} {kind.column} {kind.variant}")
            for _, mode in WORKS:
                load = Load(
                    mode, options.jobs, clients=1, workers=1, in_flight=1, payload_bytes=options.payload_bytes
                )
                with running(kind) as server:
                    results[mode, f"{kind.column} {kind.variant}"].append(apply(load, server))
    rows = []
    for name, mode in WORKS:
        figures = {
            column: [report.median([outcome.wait_us(share) for outcome in outcomes]) for share, _ in SHARES]
            for (of, column), outcomes in results.items()
            if of == mode
        }
        peers = [waits[0] or 0.0 for column, waits in figures.items() if not column.startswith("gearfleet")]
        best = min(peers, default=None)
        for column, waits in figures.items():
            cells = [report.number(wait) for wait in waits]
            rows.append((name, column, *cells, report.ratio(waits[0], best)))
    report.table(
        f"microseconds a caller waits ({options.jobs:,} jobs, one in flight)",
        ("work", "server", *(label for _, label in SHARES), "p50 : best gearmand"),
        rows,
    )
    report.note(
        "background: until the acknowledgement; gearmand's is in memory, gearfleet's is on disk (fsync)"
    )
    return 0
