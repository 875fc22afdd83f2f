"""What a queued background job takes of memory: resident memory before and after, divided by the jobs."""

import argparse

from benchmarks import report
from benchmarks.load import Load, apply
from benchmarks.servers import gearfleet, gearmand, gearmand_path, gearmand_tuned, running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=200_000, help="to queue (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--payload-bytes", type=int, default=64, help="(%(default)s)")


def run(options: argparse.Namespace) -> int:
    report.header(options)
    kinds = [gearfleet("memory"), gearfleet("fsync")]
    if gearmand_path() is not None:
        kinds += [gearmand(4), gearmand_tuned(4)]
    figures: dict[str, list[float]] = {}
    for _ in range(options.repetitions):
        for kind in kinds:
            name = f"{kind.column} {kind.variant}"
            report.progress(name)
            with running(kind) as server:
                # The first jobs bring the server's buffers to their size.
                apply(Load("bgfull", 2_000, payload_bytes=options.payload_bytes), server)
                before = server.memory_bytes()
                outcome = apply(Load("bg", options.jobs, payload_bytes=options.payload_bytes), server)
                figures.setdefault(name, []).append((server.memory_bytes() - before) / outcome.jobs)
    peer = report.median(figures.get("gearmand -t 4", []))
    report.table(
        f"bytes of memory per queued job ({options.jobs:,} jobs of {options.payload_bytes} bytes)",
        ("server", "bytes", ": gearmand"),
        [
            (name, report.number(report.median(values)), report.ratio(report.median(values), peer))
            for name, values in figures.items()
        ],
    )
    return 0
