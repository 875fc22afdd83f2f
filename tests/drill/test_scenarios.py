"""What a drill can do with what it was given, and the plan it makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.drill.commands import BadTemplate
from cluster.drill.faults import Means, choose_proxies, make_means
from cluster.drill.scenarios import LEADER, Scenario, clock, impossible, in_words, make_round
from cluster.drill.toxiproxy import Proxy
from cluster.server.control import NodeStatus

KILLS = {"kill_command": "kill {node}", "start_command": "start {node}"}
ETCD = {"etcd_stop": ("stop etcd",), "etcd_start": ("start etcd",)}


def proxy(name: str, upstream: str, listen: str = "127.0.0.1:9") -> Proxy:
    return Proxy(name, listen, upstream, True, ())


def possible(**options: Any) -> list[str]:
    means = make_means(**options)
    return [str(scenario) for scenario in Scenario if not impossible(scenario, means)]


def test_what_is_possible_follows_from_what_was_given() -> None:
    assert possible() == []
    assert possible(**KILLS) == ["rolling-kill", "leader-loss", "drain"]
    assert possible(kill_with="systemd") == ["rolling-kill", "leader-loss", "drain"]
    assert possible(comes_back=True) == ["drain"]
    assert possible(**ETCD) == ["etcd-outage"]


def test_what_is_missing_is_named_by_its_option() -> None:
    means = make_means(toxiproxy="http://127.0.0.1:8474")
    missing = {str(scenario): impossible(scenario, means) for scenario in Scenario}
    assert "--kill-with" in missing["rolling-kill"]
    assert "--comes-back" in missing["drain"]
    assert "--slow-proxies" in missing["slow-link"]
    assert "--etcd-proxies" in missing["etcd-outage"]
    assert "--toxiproxy" in impossible(Scenario.SLOW_LINK, Means())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kill_command": "kill {node}"}, "how does a killed node come back"),
        ({"kill_command": "pkill gearfleet", "comes_back": True}, "--kill-command: must say which node"),
        ({"kill_command": "kill {pod}", "comes_back": True}, "--kill-command: .* has {pod}"),
        ({"kill_with": "docker", "kill_command": "x {node}"}, "exclude each other"),
        ({"etcd_stop": ("stop",)}, "go together"),
        ({"etcd_stop": ("stop {node}",), "etcd_start": ("x",)}, "--etcd-stop-command: .* no placeholders"),
        ({"kill_with": "docker", "unit": "a b"}, "--unit: must be one word"),
        ({"unit": "{unit}"}, "--unit: .* has {unit}"),
    ],
)
def test_options_that_do_not_fit_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadTemplate, match=message):
        make_means(**options)


def test_a_unit_is_made_for_each_node() -> None:
    means = make_means(kill_with="docker", unit="fleet-{node}")
    assert means.kill is not None
    assert means.kill.shown(means.values(NodeStatus("b", host="h"))) == "docker kill -s KILL fleet-b"


def test_links_are_known_by_their_ports_and_those_to_etcd_by_name_or_port() -> None:
    nodes = [NodeStatus("a", port=4730, peer_port=4731), NodeStatus("b", port=4830, peer_port=4831)]
    proxies = [
        proxy("a-to-b", "10.0.0.2:4831"),
        proxy("clients", "10.0.0.9:1", listen="0.0.0.0:4730"),
        proxy("a-to-etcd", "10.0.0.5:12379"),
        proxy("store", "10.0.0.5:2379"),
        proxy("database", "10.0.0.7:5432"),
    ]

    def chosen(slow: str | None, etcd: str | None) -> tuple[list[str], list[str]]:
        links, etcds = choose_proxies(proxies, nodes, slow, etcd)
        return [each.name for each in links], [each.name for each in etcds]

    assert chosen(None, None) == (["a-to-b", "clients"], ["a-to-etcd", "store"])
    assert chosen("a-*", "*:2379") == (["a-to-b", "a-to-etcd"], ["store"])


def test_what_is_no_kill_is_not_called_so() -> None:
    means = make_means(kill_with="kubectl")
    assert [step.words for step in make_round([Scenario.ROLLING_KILL], "a", means, 1.0)] == [
        "delete a; it comes back by itself"
    ]
    assert "no kill -9" in means.caveat
    assert make_means(kill_with="docker").caveat == ""


def test_a_round_makes_each_fault_once_in_order() -> None:
    means = make_means(**KILLS, **ETCD)
    steps = make_round([*list(Scenario)[:2], Scenario.ETCD_OUTAGE, Scenario.DRAIN], "abc", means, 10.0)
    assert [(step.scenario, step.target) for step in steps] == [
        *((Scenario.ROLLING_KILL, node) for node in "abc"),
        (Scenario.LEADER_LOSS, LEADER),
        (Scenario.ETCD_OUTAGE, "etcd"),
        *((Scenario.DRAIN, node) for node in "abc"),
    ]
    # Only what is to be missed for a while is.
    assert [step.hold_seconds for step in steps] == [1.0, 1.0, 1.0, 10.0, 10.0, 0.0, 0.0, 0.0]


def test_a_plan_is_told_in_words_with_times() -> None:
    steps = make_round([Scenario.ROLLING_KILL, Scenario.LEADER_LOSS], "ab", make_means(**KILLS), 15.0)
    lines = in_words(steps, 4.0, None)
    assert [line.split(maxsplit=2) for line in lines[:3]] == [
        ["0:04", "rolling-kill", "kill a; it is started again"],
        ["0:14", "rolling-kill", "kill b; it is started again"],
        ["0:24", "leader-loss", "kill the node that leads most; after 15 s it is started again"],
    ]
    assert "0:48  about the end of the round" in lines[3]
    assert in_words(steps, 4.0, 25.0)[-1] == "In 0:25 there is time for about the first 2 of these 3 faults"
    assert in_words(steps, 4.0, 96.0)[-1] == "In 1:36 there is time for about 2.0 rounds"


def test_times_are_shown_as_on_a_clock() -> None:
    assert [clock(seconds) for seconds in (0.2, 65.2, 3601)] == ["0:00", "1:05", "1:00:01"]
