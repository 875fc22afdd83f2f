"""Starts load generators at the same instant and adds up what they saw."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

from benchmarks.servers import HOST, Server, ServerFailed

# Of a core. A generator this busy may have been what limited the figure, and not the server.
BUSY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Load:
    """What to do to a server: `jobs` are shared out over the processes, connections are per process."""

    mode: str
    jobs: int
    clients: int = 4
    workers: int = 4
    in_flight: int = 64
    payload_bytes: int = 64
    processes: int = 1
    seconds_max: float = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    jobs: int
    seconds: float
    errors: int
    generator_share: float  # of one core, of the busiest generator
    waits_us: Counter[int]  # from a submit to its end: microseconds to number of jobs

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds

    def wait_us(self, share: float) -> int:
        """The wait that this share of the jobs did not exceed."""
        left = share * self.waits_us.total()
        longest = 0
        for wait, count in sorted(self.waits_us.items()):
            longest = wait
            left -= count
            if left <= 0:
                break
        return longest


def processes_default() -> int:
    """One core for the server, the others for generators; beyond four the server is surely the slower."""
    return max(1, min(4, (os.cpu_count() or 2) - 1))


def apply(load: Load, server: Server) -> Outcome:
    """Each process has a function of its own, so that each sees the end of its own jobs."""
    generators = [_spawn(load, server.port, number) for number in range(load.processes)]
    try:
        for generator in generators:
            assert generator.stdout is not None
            if generator.stdout.readline() != "ready\n":
                raise ServerFailed(f"a load generator did not come up\n{server.last_words()}")
        for generator in generators:
            assert generator.stdin is not None
            generator.stdin.write("go\n")
            generator.stdin.flush()
        results = []
        for generator in generators:
            output, _ = generator.communicate()
            if generator.returncode:
                raise ServerFailed(f"{server.kind.column} failed under load\n{server.last_words()}")
            results.append(json.loads(output))
    finally:
        for generator in generators:
            generator.kill()
            generator.wait()
    waits_us: Counter[int] = Counter()
    for result in results:
        waits_us.update(dict(result["waits_us"]))
    return Outcome(
        jobs=sum(result["jobs"] for result in results),
        seconds=max(result["ended"] for result in results) - min(result["begun"] for result in results),
        errors=sum(result["errors"] for result in results),
        generator_share=max(
            result["cpu_seconds"] / (result["ended"] - result["begun"]) for result in results
        ),
        waits_us=waits_us,
    )


def _spawn(load: Load, port: int, number: int) -> subprocess.Popen[str]:
    share = load.jobs // load.processes + (number < load.jobs % load.processes)
    options = {
        "--clients": load.clients,
        "--workers": load.workers,
        "--in-flight": load.in_flight,
        "--jobs": share,
        "--payload-bytes": load.payload_bytes,
        "--function": f"bench-{number}",
        "--seconds-max": load.seconds_max,
    }
    command = [sys.executable, "-m", "benchmarks.generator", load.mode, HOST, str(port)]
    for name, value in options.items():
        command += [name, str(value)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
