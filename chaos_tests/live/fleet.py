"""ChaosFleet: a fleet to which things happen under load, and which is checked afterwards.

    def test_something(fleet: ChaosFleet) -> None:
        with fleet.under_load() as load:            # in order, and jobs flow
            with fleet.partition("a", "bc"):        # recorded; ends with its block
                load.flow(100)                      # wait for so many acknowledgements
            fleet.kill("b")
            fleet.wait_until_serving()
        # healed, in sync, drained; and the history was checked

What can be done to it is in faults.py, how it is connected in wired.py, the load in workload.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from chaos_tests.live.faults import FaultyFleet
from chaos_tests.live.leaders import LeaderWatch
from chaos_tests.live.workload import Shape, Workload
from cluster.drill.checker import Verdict, check
from cluster.drill.report import summary, write_html
from tests.support.fleet import FLEET_SECONDS
from tests.support.waiting import eventually

DRAIN_SECONDS: Final = 120.0  # for what is queued after the healing
_runs = itertools.count(1)


class ChaosFleet(FaultyFleet):
    """See the module's docstring."""

    _reports = Path("chaos-output")
    _keep_reports = False
    failed = False  # the last run did
    verdicts: ClassVar[list[Verdict]] = []  # of all runs of all fleets

    def report_as(self, directory: Path, *, keep: bool = False) -> None:
        """Where a run that fails is described; with `keep` each run."""
        self._reports, self._keep_reports = directory, keep

    @contextmanager
    def under_load(self, shape: Shape | None = None) -> Iterator[Workload]:
        """Raises AssertionError when a promise was broken, or the fleet does not come to order again."""
        self.failed = True  # until the end says otherwise
        self.heal()
        self.start()
        self.wait_until_in_sync()
        history = self.begin_history()
        verdict = Verdict(problems=["the scenario did not come to its end"])
        try:
            name = f"run{next(_runs)}"
            with (
                LeaderWatch(self.etcd, self.fleet, history) as leaders,
                Workload(self, history, name, shape, directory=self.directory / name) as load,
            ):
                yield load
                self.heal()
                self.wait_until_in_sync(2 * FLEET_SECONDS)
                load.flow_of_each()
                load.stop()
                self.drain_queues(load)
                leaders.catch_up()
            load.problems += self.unseen_faults()
            self.history = load.whole_history()
            verdict = check(self.history, drained=True)
            verdict.problems += load.problems
        finally:
            self.failed = not verdict.valid
            self.verdicts.append(verdict)
            print(summary(verdict))
            if self.failed or self._keep_reports:
                self._report(verdict)
        assert verdict.valid, "\n".join([*verdict.problems, f"see {self._reports}"])

    def _report(self, verdict: Verdict) -> None:
        """Picture and logs, and the history of a run that failed, for whoever wants to know why."""
        self._reports.mkdir(parents=True, exist_ok=True)
        write_html(self._reports / "report.html", self.history, verdict, title=self._reports.name)
        if self.failed:
            self.history.save(self._reports / "history.jsonl")
        for name, node in self.all_nodes.items():
            (self._reports / f"{name}.log").write_text("\n".join(node.log_lines) + "\n")

    def busiest(self) -> str:
        """The node that leads most slots."""
        leads = self.leads()
        return max(sorted(leads), key=lambda name: leads[name])

    def drain_queues(self, load: Workload) -> None:
        """Wait until nothing of this load is queued or runs."""

        def left() -> dict[str, tuple[int, int]]:
            return {name: counts for name, counts in self.queues(load.functions).items() if any(counts)}

        eventually(lambda: not left(), timeout_seconds=DRAIN_SECONDS, poll_seconds=0.1)
        eventually(lambda: load.under_way, 0, poll_seconds=0.1)

    def queues(self, functions: Iterable[str]) -> dict[str, tuple[int, int]]:
        """(jobs, of them running) of each function, over all nodes that run."""
        found = dict.fromkeys(functions, (0, 0))
        for node in self.serving_nodes:
            for row in node.table("status"):
                name, total, running, _ = row.split("\t")
                if name in found:
                    found[name] = (found[name][0] + int(total), found[name][1] + int(running))
        return found
