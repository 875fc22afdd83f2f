"""drill: break a fleet on purpose, and see whether it keeps its promises."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from client_ha.addresses import Server
from cluster.cli import EXIT_USAGE
from cluster.cli.control import Peers, found_peers, peer_options, secrets_from_etcd
from cluster.cli.fleet import json_option
from cluster.cli.nodes import faults as faults_of
from cluster.cli.sections import SectionCommand, SectionOption
from cluster.cli.servers import NoServer, Servers, complain, server_options
from cluster.cli.suggest import SuggestingChoice
from cluster.cli.tables import console, print_json, say

if TYPE_CHECKING:
    from cluster.drill.faults import Means
    from cluster.drill.history import History
    from cluster.drill.run import Outcome, Plan
    from cluster.drill.scenarios import Scenario, Step
    from cluster.drill.watch import Watch
    from cluster.drill.workload import Workload
    from cluster.server.control import FleetStatus

SCENARIOS: Final = ("rolling-kill", "leader-loss", "slow-link", "etcd-outage", "drain")
MANAGERS: Final = ("systemd", "docker", "compose", "kubectl")
FUNCTION_DEFAULT: Final = "drill.echo"
REMEMBER_SECONDS_DEFAULT: Final = 600.0  # the nodes' own
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


class Refused(click.ClickException):
    """The drill does not begin; the command line may be right."""

    exit_code = EXIT_USAGE


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in click's later releases
    """90, 90s, 10m, 1h30m; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        seconds = 0.0
        if match is not None:
            seconds = float(match[1] or 0) * 3600 + float(match[2] or 0) * 60 + float(match[3] or 0)
        if seconds <= 0:
            self.fail(f"{value!r} is no time: write 90s, 10m or 1h30m", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options that are about the drill itself."""

    fleet: str | None
    scenarios: tuple[str, ...]
    slow_proxies: str | None
    etcd_proxies: str | None
    duration_seconds: float | None
    pause_seconds: float
    hold_seconds: float
    only: tuple[str, ...]
    recovery_seconds: float
    function: str
    rate: float
    workers: int
    remember_seconds: float
    dry_run: bool
    yes: bool
    as_json: bool
    report: Path | None
    history: Path | None


def _option(section: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=SectionOption, section=section, **attributes)


_WHAT: Final = "What to do"
_KILL: Final = "Kill nodes, and start them"
_ETCD: Final = "etcd, and slow links"
_LOAD: Final = "The drill's own jobs"
_REPORT: Final = "The report"


_FLEET: Final = "The fleet"


@click.command(
    cls=SectionCommand,
    sections=dict.fromkeys(
        (
            *("peer", "peer_certificate", "peer_key", "peer_ca"),
            *("servers", "tls", "tls_ca", "tls_certificate", "tls_key"),
        ),
        _FLEET,
    ),
)
@peer_options(timeout=False)
@server_options(timeout=False, default="the nodes, as they call themselves")
@_option(
    _WHAT,
    "--scenario",
    "scenarios",
    type=SuggestingChoice([*SCENARIOS, "all"]),
    multiple=True,
    default=("all",),
    show_default=True,
    help="What befalls the fleet; may be given several times. all: everything that the other options make "
    "possible.",
)
@_option(
    _WHAT,
    "--duration",
    "duration_seconds",
    type=Duration(),
    metavar="TIME",
    help="Go round and round for so long: 10m, 1h.  [default: each fault once]",
)
@_option(
    _WHAT,
    "--node",
    "only",
    multiple=True,
    metavar="NODE",
    help="Kill and drain this one; may be given several times.  [default: all of them, in turn]",
)
@_option(
    _WHAT,
    "--pause",
    "pause_seconds",
    type=Duration(),
    default="3s",
    show_default=True,
    metavar="TIME",
    help="Undisturbed work before each fault.",
)
@_option(
    _WHAT,
    "--hold",
    "hold_seconds",
    type=Duration(),
    default="15s",
    show_default=True,
    metavar="TIME",
    help="How long a fault stays; in rolling-kill and drain the node comes back at once.",
)
@_option(
    _WHAT,
    "--recovery-timeout",
    "recovery_seconds",
    type=Duration(),
    default="2m",
    show_default=True,
    metavar="TIME",
    help="Give up when the fleet is not whole so long after a fault was mended.",
)
@_option(_WHAT, "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@_option(
    _WHAT,
    "--fleet",
    metavar="NAME",
    help="Do nothing unless the fleet that answers is called so; do not ask.",
)
@_option(_WHAT, "--yes", "-y", is_flag=True, help="Do not ask.")
@_option(
    _KILL,
    "--kill-with",
    type=SuggestingChoice(MANAGERS),
    help="Who runs the nodes: systemd by ssh, docker, docker compose, or a Kubernetes StatefulSet (its pods "
    "are deleted, which is no kill -9).",
)
@_option(
    _KILL,
    "--unit",
    metavar="NAME",
    help="What a node is called there, with placeholders.  [default: systemd: gearfleet; else {node}]",
)
@_option(
    _KILL,
    "--kill-command",
    metavar="COMMAND",
    help="Instead: kills one node. Placeholders: {node} {host} {port} {peer_port} {unit}; no shell runs it.",
)
@_option(_KILL, "--start-command", metavar="COMMAND", help="Starts a node again, when nothing else does.")
@_option(
    _KILL,
    "--comes-back",
    is_flag=True,
    help="Something else starts a node that has ended: systemd, Kubernetes.",
)
@_option(
    _KILL,
    "--command-timeout",
    "command_seconds",
    type=Duration(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="For each command to end.",
)
@_option(
    _ETCD,
    "--etcd-stop-command",
    "etcd_stop",
    multiple=True,
    metavar="COMMAND",
    help="Stops etcd; several times where its members need several.",
)
@_option(
    _ETCD, "--etcd-start-command", "etcd_start", multiple=True, metavar="COMMAND", help="Starts it again."
)
@_option(
    _ETCD,
    "--toxiproxy",
    metavar="URL",
    help="toxiproxy's HTTP address, when nodes reach each other or etcd through it: http://HOST:8474.",
)
@_option(
    _ETCD,
    "--slow-proxies",
    metavar="PATTERN",
    help="Its links to slow down, by name or upstream address, as in a shell.  [default: by nodes' ports]",
)
@_option(
    _ETCD,
    "--etcd-proxies",
    metavar="PATTERN",
    help="Its links to etcd.  [default: 'etcd' in the name, or port 2379]",
)
@_option(
    _ETCD,
    "--latency-ms",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="How slow, each way.",
)
@_option(
    _LOAD,
    "--function",
    default=FUNCTION_DEFAULT,
    show_default=True,
    metavar="NAME",
    help="Nobody else's; nor NAME.order.",
)
@_option(
    _LOAD,
    "--rate",
    type=click.FloatRange(min=0.1, max=5000.0),
    default=50.0,
    show_default=True,
    metavar="N",
    help="Jobs a second.",
)
@_option(
    _LOAD,
    "--workers",
    type=click.IntRange(min=1, max=64),
    default=2,
    show_default=True,
    metavar="N",
    help="Workers, here in this process.",
)
@_option(
    _LOAD,
    "--remember-seconds",
    type=click.FloatRange(min=0.0),
    default=REMEMBER_SECONDS_DEFAULT,
    show_default=True,
    metavar="N",
    help="The nodes' setting of that name: so long a finished job's key must make no second job.",
)
@_option(
    _REPORT,
    "--report",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE.html",
    help="Write the report with its timeline there, too.",
)
@_option(
    _REPORT,
    "--history",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Keep every event there, one JSON object a line.",
)
@json_option
def drill(
    peers: Peers,
    servers: Servers,
    kill_with: str | None,
    unit: str | None,
    kill_command: str | None,
    start_command: str | None,
    comes_back: bool,
    command_seconds: float,
    etcd_stop: tuple[str, ...],
    etcd_start: tuple[str, ...],
    toxiproxy: str | None,
    latency_ms: int,
    **wishes: Any,
) -> int:
    """Break a staging or production fleet on purpose, and see whether it keeps its promises.

    A drill submits jobs of its own beside the real ones, kills nodes, drains them, slows links down or stops
    etcd, one fault at a time, and checks that no acknowledged job is lost, none runs twice without a fault
    that explains it, and equal keys stay one job. It does not begin on a fleet that lacks anything, and waits
    until every slot has all its copies before the next fault. Ctrl-C mends everything and ends; a second one
    leaves at once and says what is still broken. One drill at a time: a second one in the same fleet is
    refused.

    \b
    gearfleet drill --kill-with systemd --dry-run
    gearfleet drill --kill-with kubectl --scenario rolling-kill --fleet staging
    gearfleet drill --kill-command 'ssh {host} podman kill {node}' \\
        --start-command 'ssh {host} podman start {node}' --duration 10m

    Exit codes: 0 the fleet kept its promises; 1 it broke one; 2 the drill could not begin (the command line,
    a degraded fleet), a fault could not be done, or it proved nothing; 3 no node answered, the fleet did not
    become whole again, or something could not be mended; 130 interrupted, and everything is mended.
    """
    from cluster.drill.commands import BadTemplate
    from cluster.drill.faults import make_means

    try:
        means = make_means(
            kill_with=kill_with,
            kill_command=kill_command,
            start_command=start_command,
            comes_back=comes_back,
            unit=unit,
            etcd_stop=etcd_stop,
            etcd_start=etcd_start,
            command_seconds=command_seconds,
            toxiproxy=toxiproxy,
            latency_ms=latency_ms,
        )
    except BadTemplate as error:
        raise click.UsageError(str(error)) from None
    # What clients and workers say about lost connections is what a drill is for.
    logging.getLogger("client_ha").setLevel(logging.CRITICAL)
    # Outside of the event loop: names are looked up in one of their own.
    return asyncio.run(_drill(found_peers(peers), servers, means, Wishes(**wishes)))


async def _drill(peers: Peers, servers: Servers, means: "Means", wishes: Wishes) -> int:
    from cluster.drill.run import Plan
    from cluster.drill.watch import Watch

    secrets = peers.secrets or secrets_from_etcd()
    watch = Watch(peers.addresses, secrets=secrets, tls=peers.tls, tls_host=peers.tls_host)
    status = await _first_look(watch, wishes)
    means = await _with_proxies(means, status, wishes)
    scenarios = _choose(wishes, means)
    from cluster.drill.scenarios import make_round

    names = tuple(node.name for node in status.nodes)
    for name in wishes.only:
        if name not in names:
            raise Refused(f"the fleet {status.fleet} has no node called {name}; it has {', '.join(names)}")
    targets = wishes.only or names
    plan = Plan(
        steps=tuple(make_round(scenarios, targets, means, wishes.hold_seconds)),
        nodes=names,
        targets=targets,
        duration_seconds=wishes.duration_seconds,
        pause_seconds=wishes.pause_seconds,
        recovery_seconds=wishes.recovery_seconds,
        remember_seconds=wishes.remember_seconds,
    )
    where = servers.addresses or tuple(Server(node.host, node.port) for node in status.nodes if node.host)
    servers = dataclasses.replace(servers, addresses=where)
    problem = await watch.problem(names)
    _print_plan(plan, status, means, wishes, where)
    if wishes.dry_run:
        problem = problem or _cannot_report(wishes) or await _cannot_work(servers, status, wishes)
        if problem:
            say(f"\nIt would not begin now: {problem}")
        return EXIT_USAGE if problem else 0
    if problem:
        raise Refused(
            f"the fleet {status.fleet} is degraded, and a drill would make it worse: {problem}. gearfleet "
            "nodes shows how it stands"
        )
    _confirm(plan, status, wishes)
    outcome = await _run(plan, means, watch, status, servers, wishes)
    return int(outcome.code)


async def _first_look(watch: "Watch", wishes: Wishes) -> "FleetStatus":
    """Raises NoServer, and Refused when it is another fleet."""
    from cluster.server.control import ControlError

    try:
        status = await watch.look(slots=True)
    except ControlError as error:
        raise NoServer(str(error)) from None
    if wishes.fleet is not None and wishes.fleet != status.fleet:
        raise Refused(f"the fleet that answers is called {status.fleet}, not {wishes.fleet}")
    return status


async def _with_proxies(means: "Means", status: "FleetStatus", wishes: Wishes) -> "Means":
    """What toxiproxy has of this fleet. Raises Refused when it does not answer or its links are not well."""
    from cluster.drill.faults import choose_proxies
    from cluster.drill.toxiproxy import ToxiproxyError

    if means.toxiproxy is None:
        return means
    try:
        proxies = await means.toxiproxy.proxies()
    except ToxiproxyError as error:
        raise Refused(f"--toxiproxy: {error}") from None
    slow, etcd = choose_proxies(proxies, status.nodes, wishes.slow_proxies, wishes.etcd_proxies)
    for proxy in (*slow, *etcd):
        if not proxy.enabled or proxy.toxics:
            state = f"has toxics ({', '.join(proxy.toxics)})" if proxy.enabled else "is disabled"
            how = f"toxic remove -n TOXIC {proxy.name}" if proxy.enabled else f"toggle {proxy.name}"
            raise Refused(f"the link {proxy.name} {state} already: mend it first, with toxiproxy-cli {how}")
    return dataclasses.replace(means, slow_proxies=slow, etcd_proxies=etcd)


def _choose(wishes: Wishes, means: "Means") -> "list[Scenario]":
    """What was asked for, in the usual order. Raises UsageError that names the missing option."""
    from cluster.drill.scenarios import Scenario, impossible

    if "all" not in wishes.scenarios:
        for name in wishes.scenarios:
            if missing := impossible(Scenario(name), means):
                raise click.UsageError(f"{name}: {missing}")
        return [scenario for scenario in Scenario if scenario in wishes.scenarios]
    possible = []
    for scenario in Scenario:
        if missing := impossible(scenario, means):
            complain(f"left out: {scenario}: {missing}")
        else:
            possible.append(scenario)
    if not possible:
        raise click.UsageError(
            "no scenario is possible with what was given: begin with --kill-with or --comes-back"
        )
    return possible


def _print_plan(
    plan: "Plan", status: "FleetStatus", means: "Means", wishes: Wishes, where: Sequence[Server]
) -> None:
    """To standard error when standard output is for JSON."""
    from cluster.drill.scenarios import Scenario, in_words

    def say(line: str = "") -> None:
        _say(line, err=wishes.as_json and not wishes.dry_run)

    nodes = ", ".join(plan.nodes)
    say(f"fleet {status.fleet}: {nodes}; {status.replicas} copies, {status.min_in_sync} acknowledge")
    for line in faults_of(status):
        say("! " + line)
    say(
        f"{wishes.rate:g} jobs a second of {wishes.function}, {wishes.workers} workers, by way of "
        f"{', '.join(map(str, where))}"
    )
    if cost := what_it_costs(len(plan.nodes), status):
        say(f"! {cost}")
    say()
    for line in in_words(plan.steps, plan.pause_seconds, plan.duration_seconds):
        say(line)
    commands = example_commands(plan.steps, status, means)
    if means.caveat and {Scenario.ROLLING_KILL, Scenario.LEADER_LOSS} & {
        step.scenario for step in plan.steps
    }:
        say(f"! {means.caveat}")
    if commands:
        where_they_act = f", in {means.where}: see that it is this fleet's" if means.where else ""
        say(f"\nwith these commands, for example{where_they_act}:")
        for line in commands:
            say(f"  {line}")


def what_it_costs(nodes: int, status: "FleetStatus") -> str:
    """What the real jobs have to bear while a node is away, beyond a takeover; empty: nothing."""
    if status.replicas == 1:
        return "each slot has one copy: while its node is away its jobs wait, the real ones, too"
    if nodes <= status.min_in_sync:
        return "every node acknowledges: while one is away all background submits wait, the real ones, too"
    if status.replicas <= status.min_in_sync:
        return (
            "every copy acknowledges: while a node is away background submits to its slots wait until others "
            "have copies of them, the real ones, too"
        )
    return ""


def _cannot_report(wishes: Wishes) -> str:
    """Why the report or the history could not be written; empty: they can."""
    for option, path in (("--report", wishes.report), ("--history", wishes.history)):
        if path is None:
            continue
        if not path.parent.is_dir():
            return f"{option}: there is no folder {path.parent}"
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            return f"{option}: {path} cannot be written by this user: name another file"
    return ""


async def _cannot_work(servers: Servers, status: "FleetStatus", wishes: Wishes) -> str:
    """Why the drill's own jobs could not begin; empty: they can."""
    from cluster.drill.history import History
    from cluster.drill.workload import NotReady

    try:
        await _make_workload(History(), servers, status, wishes).check_unused()
    except NotReady as error:
        return str(error)
    return ""


def example_commands(steps: "Sequence[Step]", status: "FleetStatus", means: "Means") -> list[str]:
    """The commands of the first node, and those of etcd. Raises UsageError when a name cannot be put in."""
    from cluster.drill.commands import BadTemplate
    from cluster.drill.scenarios import Scenario

    scenarios = {step.scenario for step in steps}
    shown: list[str] = []
    try:
        for node in status.nodes:
            values = means.values(node)
            kills = [means.kill] if scenarios & {Scenario.ROLLING_KILL, Scenario.LEADER_LOSS} else []
            starts = [means.start] if scenarios - {Scenario.SLOW_LINK, Scenario.ETCD_OUTAGE} else []
            lines = [each.shown(values) for each in (*kills, *starts) if each is not None]
            shown = shown or lines
    except BadTemplate as error:
        raise click.UsageError(str(error)) from None
    if Scenario.ETCD_OUTAGE in scenarios:
        shown += [each.shown({}) for each in (*means.etcd_stop, *means.etcd_start)]
    return shown


def _confirm(plan: "Plan", status: "FleetStatus", wishes: Wishes) -> None:
    """Ask whoever sits there, unless it was said which fleet is meant. Raises click.Abort, and Refused when
    nobody does."""
    if wishes.yes or wishes.fleet is not None:
        return
    if not sys.stdin.isatty():
        raise Refused(
            f"nobody can be asked here whether {status.fleet} is to be broken: --fleet NAME says it"
        )
    click.confirm(f"\nBreak the fleet {status.fleet} on purpose, as above?", abort=True, err=True)


def _make_workload(history: "History", servers: Servers, status: "FleetStatus", wishes: Wishes) -> "Workload":
    from cluster.drill.run import node_names
    from cluster.drill.workload import Workload

    return Workload(
        history,
        servers.addresses,
        drill_id=secrets.token_hex(4),
        function=wishes.function,
        rate=wishes.rate,
        workers=wishes.workers,
        tls=servers.tls,
        node_of=node_names(status),
    )


async def _run(
    plan: "Plan", means: "Means", watch: "Watch", status: "FleetStatus", servers: Servers, wishes: Wishes
) -> "Outcome":
    from cluster.cli.drill_screen import Lines, Screen
    from cluster.drill.history import History
    from cluster.drill.run import Drill

    if problem := _cannot_report(wishes):
        raise Refused(problem)
    try:
        history = History(path=wishes.history)
    except OSError as error:
        raise Refused(f"--history: {error}") from None
    with history:
        workload = _make_workload(history, servers, status, wishes)
        out = sys.stderr if wishes.as_json else sys.stdout
        view = Screen(out) if out.isatty() else Lines(out)
        work = Drill(plan, means, watch, workload, history, view.line, view.leave)
        async with view.showing(work):
            outcome = await work.run()
        if history.write_error is not None:
            complain(f"--history: {wishes.history} is not complete: {history.write_error}")
        # The drill is over: that nobody reads on changes nothing of how it ended. Rich leaves by itself then.
        with contextlib.suppress(OSError, SystemExit):
            _report(outcome, history, status, wishes)
        _let_go_of_dead_outputs()
    return outcome


def _say(line: str, *, err: bool = False) -> None:
    """Before and during a drill, whose exit code must tell of it also when nobody reads."""
    with contextlib.suppress(OSError):
        say(line, err=err)


def _let_go_of_dead_outputs() -> None:
    """Standard output and error that do not work lead nowhere from now on: Python flushes them at its end,
    and takes another exit code when that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def _report(outcome: "Outcome", history: "History", status: "FleetStatus", wishes: Wishes) -> None:
    from cluster.drill.report import as_json, show, write_html
    from cluster.drill.run import Exit

    if outcome.verdict is not None and wishes.report is not None:
        try:
            write_html(wishes.report, history, outcome.verdict, title=f"Drill in the fleet {status.fleet}")
        except OSError as error:
            complain(f"--report: {error}")
    if wishes.as_json:
        record: dict[str, Any] = {
            "fleet": status.fleet,
            "exit_code": int(outcome.code),
            "reasons": list(outcome.reasons),
            "faults": outcome.faults,
            "seconds": round(outcome.seconds, 3),
            "verdict": None if outcome.verdict is None else json.loads(as_json(outcome.verdict)),
        }
        print_json(record)
        return
    if outcome.verdict is None:
        return  # it did not begin, and has said why
    conclusions = {
        Exit.KEPT: "The fleet kept its promises.",
        Exit.BROKEN: "The fleet broke a promise.",
        Exit.USAGE: "The drill did not get through; what it began is mended.",
        Exit.NOT_RECOVERED: "Something is still broken: gearfleet nodes shows how the fleet stands.",
        Exit.INTERRUPTED: "Interrupted; everything is mended, and no promise was broken until then.",
    }
    click.echo()
    show(outcome.verdict, console())
    for reason in outcome.reasons:
        if reason not in outcome.verdict.problems:
            say("! " + reason)
    if wishes.report is not None:
        click.echo(f"The report with its timeline: {wishes.report}")
    click.echo(conclusions[outcome.code])
    if outcome.code == Exit.NOT_RECOVERED and outcome.verdict.broken:
        click.echo(conclusions[Exit.BROKEN])


__all__ = ["drill"]
