"""A node's state in Prometheus' text format. Every metric is a row in docs/metrics.md.

The function names are the users': how many there are and how long they are is bounded here, and what is
left out is summed under one label, so that the sums stay right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from platform import python_version
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from cluster.jobs import OUTCOMES, RETURNS
from cluster.server.status import (
    FleetStatus,
    FunctionStatus,
    JournalStatus,
    LatencyCounts,
    MemoryStatus,
    NodeStatus,
    Phase,
)
from cluster.wire.shown import for_label

# Written at a time; the loop turns between two pieces, so that a scrape does not keep jobs waiting.
SAMPLES_PER_PIECE: Final = 200
FUNCTION_CHARACTERS_MAX: Final = 200
OTHER_FUNCTIONS: Final = "(other)"


class FunctionSums:
    """Jobs and workers by function label, at most `functions_max` of them and one for all others."""

    def __init__(self, functions_max: int) -> None:
        self._functions_max = functions_max
        self.sums: dict[str, tuple[int, int, int, int, float]] = {}
        self.counts: dict[str, list[int]] = {}

    def add(self, function: FunctionStatus) -> None:
        label = function_label(function.name)
        if any(function.counts):
            counted = label
            if label not in self.counts and len(self.counts) >= self._functions_max:
                counted = OTHER_FUNCTIONS
            counts = self.counts.setdefault(counted, [0] * (len(OUTCOMES) + len(RETURNS)))
            counts[:] = map(sum, zip(counts, function.counts, strict=True))
        if not function.listed:
            return
        if label not in self.sums and len(self.sums) >= self._functions_max:
            label = OTHER_FUNCTIONS
        queued, running, held, workers, oldest = self.sums.get(label, (0, 0, 0, 0, 0.0))
        self.sums[label] = (
            queued + function.queued,
            running + function.running,
            held + function.held,
            workers + function.workers,
            max(oldest, function.oldest_seconds),
        )


def function_label(name: bytes) -> str:
    """A function's name as a label: what does not print is written as \\xNN; a long one is cut."""
    return for_label(name, FUNCTION_CHARACTERS_MAX)


def families(status: NodeStatus, functions: FunctionSums, ready: bool) -> Iterator[Metric]:
    """All metrics of a node at one moment."""
    info = InfoMetricFamily("gearfleet_build", "The node's release, and the Python that runs it.")
    info.add_metric([], {"version": status.version, "python": python_version(), "node": status.name})
    yield info
    yield from _function_families(functions)
    phase = GaugeMetricFamily(
        "gearfleet_phase", "Where in its life the node is: 1 for that phase.", labels=["phase"]
    )
    for each in Phase:
        phase.add_metric([each.value], each is status.phase)
    yield phase
    yield GaugeMetricFamily("gearfleet_ready", "1 when /readyz says yes.", int(ready))
    yield GaugeMetricFamily(
        "gearfleet_background_refused",
        "1 while background jobs are refused: the journal cannot be written, too few copies answer, "
        "memory is short.",
        int(status.refuses_background or (status.fleet is not None and status.fleet.slots_unavailable > 0)),
    )
    yield from _memory_families(status.memory)
    yield GaugeMetricFamily(
        "gearfleet_turn_age_seconds", "Time since the loop's last sign of life.", status.turn_age_seconds
    )
    yield GaugeMetricFamily("gearfleet_connections", "Clients and workers connected.", status.connections)
    yield GaugeMetricFamily(
        "gearfleet_connections_max", "Connections served at once at most.", status.connections_max
    )
    yield CounterMetricFamily(
        "gearfleet_connections_turned_away",
        "Connections closed at once because there were too many.",
        status.connections_turned_away,
    )
    yield CounterMetricFamily(
        "gearfleet_groups_committed", "Groups of entries committed.", status.groups_committed
    )
    yield _histogram(
        "gearfleet_commit_latency_seconds", "Time from a group's cut to its commit.", status.commit
    )
    if status.journal is not None:
        yield from _journal_families(status.journal)
    if status.fleet is not None:
        yield from _fleet_families(status.fleet)


def _function_families(functions: FunctionSums) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "gearfleet_jobs",
        "Jobs on this node: queued, running, or held (being written, not due yet, to be reclaimed).",
        labels=["function", "state"],
    )
    workers = GaugeMetricFamily(
        "gearfleet_workers", "Workers connected to this node that can do the function.", labels=["function"]
    )
    oldest = GaugeMetricFamily(
        "gearfleet_oldest_waiting_job_age_seconds",
        "Age of the oldest job at the heads of the function's queues, 0 when nothing waits; of a job from "
        "before a restart or takeover at least that.",
        labels=["function"],
    )
    for label, (queued, running, held, can_do, oldest_seconds) in functions.sums.items():
        oldest.add_metric([label], round(oldest_seconds, 1))
        jobs.add_metric([label, "queued"], queued)
        jobs.add_metric([label, "running"], running)
        jobs.add_metric([label, "held"], held)
        workers.add_metric([label], can_do)
    yield jobs
    yield workers
    yield oldest
    ended = CounterMetricFamily(
        "gearfleet_jobs_ended",
        "Jobs that ended on this node, by how they ended.",
        labels=["function", "outcome"],
    )
    returned = CounterMetricFamily(
        "gearfleet_jobs_returned",
        "Jobs that came back: worker_lost, time_limit, given_back, or not_reclaimed after a restart.",
        labels=["function", "reason"],
    )
    for label, counts in functions.counts.items():
        for outcome, count in zip(OUTCOMES, counts, strict=False):
            ended.add_metric([label, outcome], count)
        for reason, count in zip(RETURNS, counts[len(OUTCOMES) :], strict=True):
            returned.add_metric([label, reason], count)
    yield ended
    yield returned


def _memory_families(memory: MemoryStatus) -> Iterator[Metric]:
    gauge = GaugeMetricFamily
    yield gauge("gearfleet_payload_bytes", "Payloads of all jobs on this node.", memory.payload_bytes)
    yield gauge(
        "gearfleet_memory_max_bytes",
        "Memory of the process from which on background jobs are refused; 0 when nobody knows.",
        memory.mark_bytes,
    )
    # As Prometheus' own libraries name them.
    yield gauge("process_resident_memory_bytes", "Memory that the process has.", memory.resident_bytes)
    yield CounterMetricFamily(
        "process_cpu_seconds", "Processor time that the process has used.", memory.processor_seconds
    )


def _journal_families(journal: JournalStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "gearfleet_journal_size_bytes", "Size of the journal's files.", journal.size_bytes
    )
    yield CounterMetricFamily(
        "gearfleet_journal_written_bytes", "Bytes written to the journal.", journal.written_bytes
    )
    yield CounterMetricFamily(
        "gearfleet_journal_frames", "Frames written to the journal, one write each.", journal.frames_written
    )
    yield GaugeMetricFamily(
        "gearfleet_journal_write_pending_seconds",
        "Age of the write that the disk has not finished; 0 when there is none.",
        journal.write_pending_seconds,
    )
    if journal.free_bytes is not None:
        yield GaugeMetricFamily(
            "gearfleet_journal_free_bytes",
            "Room on the journal's file system, as of a second ago.",
            journal.free_bytes,
        )
    yield _histogram(
        "gearfleet_journal_fsync_latency_seconds", "Time that the disk took for an fsync.", journal.fsync
    )


def _fleet_families(fleet: FleetStatus) -> Iterator[Metric]:
    gauge = GaugeMetricFamily
    yield gauge("gearfleet_fleet_joined", "1 when the node has joined its fleet.", int(fleet.joined))
    yield gauge(
        "gearfleet_fleet_map_revision", "Revision of the map that the node acts on.", fleet.map_revision
    )
    yield gauge("gearfleet_slots_led", "Slots that this node is the primary of.", fleet.slots_led)
    yield gauge("gearfleet_slots_in_sync", "Slots whose in-sync set has this node.", fleet.slots_in_sync)
    yield gauge("gearfleet_slots_learning", "Slots that this node is learning.", fleet.slots_learning)
    yield gauge(
        "gearfleet_slots_under_replicated",
        "Slots led here with fewer copies than the fleet wants.",
        fleet.slots_under_replicated,
    )
    yield gauge(
        "gearfleet_slots_unavailable",
        "Slots led here that cannot commit: too few in-sync copies answer.",
        fleet.slots_unavailable,
    )
    yield CounterMetricFamily(
        "gearfleet_takeovers", "Slots that this node took over from a dead primary.", fleet.takeovers
    )
    if fleet.lease_age_seconds is not None:
        yield gauge(
            "gearfleet_lease_age_seconds",
            "Time since the last good keep-alive of the node's lease was sent.",
            fleet.lease_age_seconds,
        )
    yield gauge("gearfleet_etcd_reachable", "1 while etcd answers.", int(fleet.etcd_reachable))
    yield gauge("gearfleet_peers", "Other nodes of the fleet.", fleet.peers)
    yield gauge("gearfleet_peers_up", "Other nodes that this one has a stream with.", fleet.peers_up)
    lag = gauge(
        "gearfleet_peer_lag_seconds",
        "Age of the first group of this node's that the other one lacks, 0 when it has all; of those that "
        "count for a slot led here.",
        labels=["peer"],
    )
    for peer, seconds in sorted(fleet.peer_lag_seconds.items()):
        lag.add_metric([peer], round(seconds, 3))
    yield lag


def _histogram(name: str, documentation: str, latency: LatencyCounts) -> Metric:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound_seconds, count in zip((*latency.bounds_seconds, float("inf")), latency.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound_seconds == float("inf") else str(bound_seconds), total))
    return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=latency.total_seconds)


class _One:
    """A collector of one family, for generate_latest()."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def written(metrics: Iterable[Metric]) -> Iterator[bytes]:
    """The text, in pieces of bounded cost."""
    for family in metrics:
        for first in range(0, max(1, len(family.samples)), SAMPLES_PER_PIECE):
            piece = Metric(family.name, family.documentation, family.type)
            piece.samples = family.samples[first : first + SAMPLES_PER_PIECE]
            text = generate_latest(_One(piece))
            # The family's HELP and TYPE lines come once.
            yield text.split(b"\n", 2)[2] if first else text
