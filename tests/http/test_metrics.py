"""The exposition: read back by Prometheus' own parser, bounded, and every row of it documented."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cluster.http.metrics import (
    FUNCTION_CHARACTERS_MAX,
    OTHER_FUNCTIONS,
    SAMPLES_PER_PIECE,
    FunctionSums,
    families,
    written,
)
from cluster.server.status import FunctionStatus, Latency, NodeStatus
from tests.http.support import FLEET, STATUS, samples

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
WHOLE = replace(STATUS, fleet=FLEET)


def exposition(
    status: NodeStatus = STATUS, functions: list[FunctionStatus] | None = None, functions_max: int = 1000
) -> str:
    sums = FunctionSums(functions_max)
    for function in functions or []:
        sums.add(function)
    return b"".join(written(families(status, sums, True))).decode()


def test_what_a_node_says_is_in_it() -> None:
    text = exposition(WHOLE, [FunctionStatus(b"resize", 3, 2, 1, 5)])
    found = samples(text)
    assert found["gearfleet_jobs", (("function", "resize"), ("state", "queued"))] == 3
    assert found["gearfleet_jobs", (("function", "resize"), ("state", "running"))] == 2
    assert found["gearfleet_jobs", (("function", "resize"), ("state", "held"))] == 1
    assert found["gearfleet_workers", (("function", "resize"),)] == 5
    assert found["gearfleet_phase", (("phase", "serving"),)] == 1
    assert found["gearfleet_phase", (("phase", "draining"),)] == 0
    plain = {name: value for (name, labels), value in found.items() if not labels}
    assert plain["gearfleet_connections"] == 4
    assert plain["gearfleet_connections_turned_away_total"] == 6
    assert plain["gearfleet_groups_committed_total"] == 8
    assert plain["gearfleet_journal_written_bytes_total"] == 200
    assert plain["gearfleet_slots_led"] == 341
    assert plain["gearfleet_slots_under_replicated"] == 3
    assert plain["gearfleet_takeovers_total"] == 5
    assert plain["gearfleet_lease_age_seconds"] == 0.5
    assert plain["gearfleet_peers_up"] == 1
    assert plain["gearfleet_slots_learning"] == 9
    assert plain["gearfleet_payload_bytes"] == 500
    assert plain["gearfleet_memory_max_bytes"] == 8000
    assert plain["process_resident_memory_bytes"] == 1000
    assert plain["process_cpu_seconds_total"] == 12.5
    assert plain["gearfleet_journal_free_bytes"] == 7000
    assert found["gearfleet_peer_lag_seconds", (("peer", "b"),)] == 0.25
    assert found["gearfleet_peer_lag_seconds", (("peer", "c"),)] == 0
    assert plain["gearfleet_background_refused"] == 1  # for the slots that are unavailable
    (info,) = [labels for name, labels in found if name == "gearfleet_build_info"]
    assert dict(info)["version"] == "1.2.3"


def test_a_refusal_for_whatever_cause_is_shown() -> None:
    assert samples(exposition(STATUS))["gearfleet_background_refused", ()] == 0
    refusing = replace(STATUS, refuses_background=True)
    assert samples(exposition(refusing))["gearfleet_background_refused", ()] == 1


def test_a_standalone_node_has_no_fleet_and_one_without_lease_no_age() -> None:
    alone = exposition()
    assert "gearfleet_slots_led" not in alone
    assert "gearfleet_takeovers" not in alone
    assert "gearfleet_lease_age" not in exposition(
        replace(STATUS, fleet=replace(FLEET, lease_age_seconds=None))
    )
    assert "gearfleet_journal" not in exposition(replace(STATUS, journal=None))


def test_a_histogram_counts_each_duration_once_and_sums_up() -> None:
    latency = Latency((0.001, 0.01))
    for seconds in (0.0005, 0.001, 0.002, 3.0):
        latency.observe(seconds)
    found = samples(exposition(replace(STATUS, commit=latency.read())))
    name = "gearfleet_commit_latency_seconds"
    buckets = {
        dict(labels)["le"]: value for (sample, labels), value in found.items() if sample == name + "_bucket"
    }
    assert buckets == {"0.001": 2, "0.01": 3, "+Inf": 4}
    assert found[name + "_count", ()] == 4
    assert found[name + "_sum", ()] == 3.0035


function_statuses = st.builds(
    FunctionStatus,
    st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"(other)", b'"\\\n', b"\xff", b"\\xff", b"x" * 999]),
    *[st.integers(0, 1000)] * 4,
    counts=st.tuples(*[st.integers(0, 1000)] * 10),
    listed=st.just(True),
)


@given(st.lists(function_statuses, max_size=30), st.integers(0, 5))
def test_any_names_can_be_read_back_and_no_job_is_left_out(
    functions: list[FunctionStatus], functions_max: int
) -> None:
    found = samples(exposition(functions=functions, functions_max=functions_max))
    jobs = {labels: value for (name, labels), value in found.items() if name == "gearfleet_jobs"}
    assert sum(jobs.values()) == sum(each.queued + each.running + each.held for each in functions)
    labels = {dict(key)["function"] for key in jobs}
    assert len(labels - {OTHER_FUNCTIONS}) <= functions_max
    assert all(len(label) <= FUNCTION_CHARACTERS_MAX for label in labels)
    workers = sum(value for (name, _), value in found.items() if name == "gearfleet_workers")
    assert workers == sum(each.workers for each in functions)


def test_counts_of_functions_that_are_gone_are_kept_and_those_of_too_many_are_summed() -> None:
    counts = (5, 1, 0, 0, 0, 0, 2, 0, 0, 0)
    functions = [
        FunctionStatus(b"f", 0, 0, 0, 0, counts=counts, listed=False),
        FunctionStatus(b"g", 1, 0, 0, 0, counts=counts),
        FunctionStatus(b"h", 1, 0, 0, 0, counts=counts),
    ]
    found = samples(exposition(functions=functions, functions_max=1))
    ended, returned = "gearfleet_jobs_ended_total", "gearfleet_jobs_returned_total"
    assert found[ended, (("function", "f"), ("outcome", "completed"))] == 5
    assert found[ended, (("function", OTHER_FUNCTIONS), ("outcome", "failed"))] == 2
    assert found[returned, (("function", OTHER_FUNCTIONS), ("reason", "worker_lost"))] == 4
    assert ("gearfleet_jobs", (("function", "f"), ("state", "queued"))) not in found


def test_it_is_written_in_pieces_of_bounded_size() -> None:
    """Given many functions / When the exposition is written / Then each piece is small, and all is there."""
    functions = [FunctionStatus(b"f%d" % number, number, 0, 0, 0) for number in range(500)]
    sums = FunctionSums(1000)
    for function in functions:
        sums.add(function)
    pieces = list(written(families(STATUS, sums, True)))
    assert max(piece.count(b"\n") for piece in pieces) <= SAMPLES_PER_PIECE + 2  # HELP and TYPE
    text = b"".join(pieces).decode()
    assert text.count("# TYPE gearfleet_jobs ") == 1
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    assert samples(text)["gearfleet_jobs", (("function", "f499"), ("state", "queued"))] == 499


def test_every_metric_has_its_row_in_the_document() -> None:
    text = exposition(WHOLE, [FunctionStatus(b"f", 1, 1, 1, 1, counts=(1,) * 10)])
    table = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith(("| `gearfleet_", "| `process_"))
    ]
    documented = {name: (labels, kind, meaning) for name, kind, labels, meaning in table}
    shown = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        (meaning,) = re.findall(rf"^# HELP {name} (.*)$", text, re.MULTILINE)
        lines = re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}} ", text, re.MULTILINE)
        labels = sorted({label for line in lines for label in re.findall(r'(\w+)="', line)} - {"le"})
        shown[name] = (", ".join(labels), kind, meaning)
    assert documented == shown
    assert list(documented) == list(shown), "the order, too"


def test_units_stand_last() -> None:
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition(WHOLE), re.MULTILINE):
        assert name.startswith(("gearfleet_", "process_"))  # the latter are as everywhere
        assert name.endswith("_total") == (kind == "counter"), name
        for unit in ("seconds", "bytes"):
            assert unit not in name or name.removesuffix("_total").endswith("_" + unit), name
