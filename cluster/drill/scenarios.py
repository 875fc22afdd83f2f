"""Plans: which faults a drill makes, in which order, for how long each.

    rolling-kill   every node in turn is killed and comes straight back
    leader-loss    the node that leads most is killed and stays away
    slow-link      every link that toxiproxy has is slow for a while, one at a time
    etcd-outage    etcd is away for a while
    drain          every node in turn is drained and comes back: a rolling restart

One round makes each fault once. A longer drill goes round again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cluster.drill.faults import Means

HOLD_SECONDS_DEFAULT: Final = 15.0
HOLD_SECONDS_ROLLING: Final = 1.0
PAUSE_SECONDS_DEFAULT: Final = 3.0  # of undisturbed work before each fault and after the last
MEND_SECONDS_EXPECTED: Final = 5.0  # what a fleet takes to be whole again, for a plan's times only
LEADER: Final = "the node that leads most"


class Scenario(StrEnum):
    ROLLING_KILL = "rolling-kill"
    LEADER_LOSS = "leader-loss"
    SLOW_LINK = "slow-link"
    ETCD_OUTAGE = "etcd-outage"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault. `target`: a node, a proxy, or LEADER, which is known when its time has come."""

    scenario: Scenario
    target: str
    hold_seconds: float  # from when it has begun until it is mended
    words: str

    @property
    def expected_seconds(self) -> float:
        """Until the fleet is whole again."""
        return self.hold_seconds + MEND_SECONDS_EXPECTED


def impossible(scenario: Scenario, means: Means) -> str:
    """What a scenario needs and was not given, by the option's name; empty: it can be done."""
    if scenario in (Scenario.ROLLING_KILL, Scenario.LEADER_LOSS) and means.kill is None:
        return "needs --kill-with or --kill-command"
    if scenario is Scenario.DRAIN and not means.can_start:
        return (
            "a drained node stops: needs --start-command, or --comes-back when something starts it by itself"
        )
    if scenario is Scenario.SLOW_LINK and means.toxiproxy is None:
        return "needs --toxiproxy"
    if scenario is Scenario.SLOW_LINK and not means.slow_proxies:
        return "toxiproxy has no link of this fleet's nodes: needs --slow-proxies"
    if scenario is Scenario.ETCD_OUTAGE and not means.etcd_stop:
        if means.toxiproxy is None:
            return "needs --etcd-stop-command and --etcd-start-command, or --toxiproxy"
        if not means.etcd_proxies:
            return "toxiproxy has no link to etcd: needs --etcd-proxies, or --etcd-stop-command"
    return ""


def make_round(
    scenarios: Sequence[Scenario], nodes: Sequence[str], means: Means, hold_seconds: float
) -> list[Step]:
    """The faults of one round."""
    steps: list[Step] = []
    back = "it is started again" if means.start is not None else "it comes back by itself"
    for scenario in scenarios:
        if scenario is Scenario.ROLLING_KILL:
            hold = min(hold_seconds, HOLD_SECONDS_ROLLING)
            steps += [Step(scenario, node, hold, f"{means.verb} {node}; {back}") for node in nodes]
        elif scenario is Scenario.LEADER_LOSS:
            # Without a command nobody can keep it from coming back.
            away = f"; after {hold_seconds:g} s {back}" if means.start is not None else f"; {back}"
            steps.append(Step(scenario, LEADER, hold_seconds, f"{means.verb} {LEADER}{away}"))
        elif scenario is Scenario.SLOW_LINK:
            steps += [
                Step(
                    scenario,
                    proxy.name,
                    hold_seconds,
                    f"{means.latency_ms} ms each way on {proxy.name}, for {hold_seconds:g} s",
                )
                for proxy in means.slow_proxies
            ]
        elif scenario is Scenario.ETCD_OUTAGE:
            how = "stop etcd" if means.etcd_stop else "cut the links to etcd"
            steps.append(Step(scenario, "etcd", hold_seconds, f"{how}, for {hold_seconds:g} s"))
        elif scenario is Scenario.DRAIN:
            steps += [Step(scenario, node, 0.0, f"drain {node}; {back}") for node in nodes]
    return steps


def in_words(steps: Sequence[Step], pause_seconds: float, duration_seconds: float | None) -> list[str]:
    """The plan, a line for each fault, with about when it begins."""
    lines = []
    at = 0.0
    fit = 0
    for step in steps:
        at += pause_seconds
        lines.append(f"{clock(at):>8}  {step.scenario:<12}  {step.words}")
        at += step.expected_seconds
        fit += duration_seconds is not None and at <= duration_seconds
    at += pause_seconds
    lines.append(f"{clock(at):>8}  about the end of the round: each fault waits until the fleet is whole")
    if duration_seconds is not None and fit < len(steps):
        some = f"the first {fit} of these {len(steps)} faults" if fit else "the first of these faults"
        lines.append(f"In {clock(duration_seconds)} there is time for about {some}")
    elif duration_seconds is not None:
        rounds = duration_seconds / at
        lines.append(f"In {clock(duration_seconds)} there is time for about {rounds:.1f} rounds")
    return lines


def clock(seconds: float) -> str:
    """65.2 -> 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


__all__ = [
    "HOLD_SECONDS_DEFAULT",
    "LEADER",
    "PAUSE_SECONDS_DEFAULT",
    "Scenario",
    "Step",
    "clock",
    "impossible",
    "in_words",
    "make_round",
]
