"""A deep queue: is a submit as quick as into an empty one, and how long does a restart take."""

import argparse
import time

from benchmarks import report
from benchmarks.load import Load, apply
from benchmarks.servers import (
    Server,
    ServerFailed,
    ask,
    gearfleet,
    gearmand,
    gearmand_path,
    gearmand_tuned,
    running,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1_000_000, help="to queue (%(default)s)")
    parser.add_argument("--probe-jobs", type=int, default=20_000, help="whose waits are taken (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=1, help="(%(default)s)")
    parser.add_argument(
        "--durability", default="fsync", choices=("memory", "os", "fsync"), help="(%(default)s)"
    )
    parser.add_argument(
        "--default-gearmand",
        action="store_true",
        help="also gearmand as installed; with 991 hash buckets a million jobs take it minutes",
    )


def run(options: argparse.Namespace) -> int:
    report.header(options)
    kinds = [gearfleet(options.durability)]
    if gearmand_path() is not None:
        kinds.append(gearmand_tuned(0))
        if options.default_gearmand:
            kinds.append(gearmand(0))
    rows = []
    for kind in kinds:
        measured: list[tuple[float, ...]] = []
        for _ in range(options.repetitions):
            report.progress(f"{kind.column} {kind.variant}")
            with running(kind) as server:
                measured.append(_measure(server, options))
        empty_p99, deep_p99, fill_rate, memory, back_seconds = (
            report.median(values) for values in zip(*measured, strict=True)
        )
        restored = kind.program == "gearfleet" and options.durability != "memory"
        rows.append(
            (
                f"{kind.column} {kind.variant}",
                *(report.number(empty_p99), report.number(deep_p99), report.ratio(deep_p99, empty_p99)),
                report.number(fill_rate),
                report.number((memory or 0) / 2**20),
                f"{back_seconds:.1f}" if restored else "jobs are gone",
            )
        )
    report.table(
        f"{options.jobs:,} queued jobs (64 bytes, unique keys, 4 clients × 64 in flight)",
        (
            "server",
            "p99 µs, empty",
            "p99 µs, deep",
            "deep : empty",
            "jobs/s",
            "MiB",
            "restart s, after kill -9",
        ),
        rows,
    )
    return 0


def _measure(server: Server, options: argparse.Namespace) -> tuple[float, ...]:
    probe = Load("bg", options.probe_jobs)
    empty = apply(probe, server)
    fill = apply(Load("bg", options.jobs - options.probe_jobs, seconds_max=600.0), server)
    deep = apply(probe, server)
    memory = server.memory_bytes()
    total = empty.jobs + fill.jobs + deep.jobs
    back_seconds = 0.0
    if server.kind.program == "gearfleet" and options.durability != "memory":
        server.kill()
        begun = time.monotonic()
        server.start()
        queued = queued_jobs(server)
        back_seconds = time.monotonic() - begun
        if queued != total:
            raise ServerFailed(
                f"{total} jobs were acknowledged before the restart; {queued} are there after it"
            )
    return empty.wait_us(0.99), deep.wait_us(0.99), fill.rate, memory, back_seconds


def queued_jobs(server: Server) -> int:
    """The sum over all functions, from the text command `status`."""
    lines = ask(server.port, "status").splitlines()
    return sum(int(line.split("\t")[1]) for line in lines if line != ".")
