"""drain, join, forget, promote: what an operator does to a fleet."""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from client_ha.addresses import Server
from cluster.cli.control import Peers, ask, peer_options
from cluster.cli.nodes import live_copies, ranges, wanted_slots
from cluster.cli.servers import Failed, NoServer
from cluster.cli.tables import say

if TYPE_CHECKING:
    from cluster.server.control import ControlClient, DrainStep, FleetStatus

# Between two lines of a drain into a pipe or a log.
LINE_SECONDS: Final = 1.0
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}


def own_peer(peers: Peers) -> tuple[Peers, str]:
    """The node of this container or unit, from its environment alone: where it listens, and its name."""
    from cluster.cli.control import peer_tls
    from cluster.server.settings import SettingsError, load_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        raise Failed(f"--self reads the node's environment, and it is wrong: {error}") from None
    tls = peers.tls or peer_tls(settings.peer_certificate, settings.peer_key, settings.peer_ca)
    address = Server(_LOOPBACK.get(settings.peer_host, settings.peer_host), settings.peer_port)
    if not settings.etcd:
        raise Failed(
            "GEARFLEET_ETCD is not set, so this node stands alone, and nobody can take its slots. Just stop "
            "it; its jobs are on its disk"
        )
    return Peers((address,), peers.timeout_seconds, tls, settings.advertise, peers.secrets), settings.name


class Progress:
    """A drain as it goes: one line that changes on a terminal, else a line a second."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._said: tuple[int, int, str] | None = None
        self._said_at = 0.0
        self._write: Callable[[str], None] = say
        self._end: Callable[[], None] = lambda: None
        self.live = sys.stdout.isatty()
        if self.live:
            from rich.console import Console

            waiting = Console().status(f"{node}: asking")
            waiting.start()
            self._write = waiting.update
            self._end = waiting.stop

    def step(self, step: "DrainStep") -> None:
        found = (step.leads, step.last_copy, step.message)
        now = time.monotonic()
        if found == self._said or (not self.live and self._said and now - self._said_at < LINE_SECONDS):
            return
        self._said, self._said_at = found, now
        text = f"{self._node}: still leads {step.leads} slots; {step.last_copy} wait for a copy elsewhere"
        self._write(f"{text}. {step.message}" if step.message else text)

    def close(self) -> None:
        self._end()


@click.command()
@click.argument("node", required=False)
@peer_options(timeout=False)
@click.option(
    "--self",
    "own",
    is_flag=True,
    help="The node that this container's or unit's environment describes: GEARFLEET_NAME, …_PEER_PORT.",
)
@click.option("--restart", is_flag=True, help="It comes back soon: its copies are not made anew elsewhere.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.01),
    metavar="SECONDS",
    help="Give up after that. The drain goes on; gearfleet join calls it off.  [default: no limit]",
)
def drain(node: str | None, peers: Peers, own: bool, restart: bool, timeout: float | None) -> int:
    """Take a node out of its fleet: it hands over all its slots, and then stops.

    Clients and workers move to the others; no job waits for it. Without --restart it also waits until its
    copies are made anew elsewhere, where there are nodes enough for that.

    Exit codes: 0 it has given everything away and stops; 1 it was refused, or --timeout has passed; with
    --self also when the node stands alone or does not run; 3 no node answered.
    """
    if own == (node is not None):
        raise click.UsageError("name the NODE to drain (gearfleet nodes lists them), or give --self")
    name = node or ""
    if own:
        peers, name = own_peer(peers)
    try:
        return ask(peers, lambda client, status: _drain(client, status, name, own, restart, timeout))
    except NoServer as fault:
        if own:  # an init system need not tell "it does not run" from "it would not"
            raise Failed(f"{name} cannot be drained: {fault.message}") from None
        raise


async def _drain(
    client: "ControlClient",
    status: "FleetStatus",
    name: str,
    own: bool,
    restart: bool,
    limit_seconds: float | None,
) -> int:
    if own and status.answered_by != name:
        raise Failed(
            f"the node that listens there is {status.answered_by}, the environment says {name}: correct "
            "GEARFLEET_NAME or GEARFLEET_PEER_PORT"
        )
    _check_known(name, status)
    progress = Progress(name)
    done: DrainStep | None = None
    try:
        async with asyncio.timeout(limit_seconds):
            async for step in client.drain(name, restart=restart):
                if step.done:
                    done = step
                    break
                progress.step(step)
    except TimeoutError:
        raise Failed(
            f"{name} has not given everything away within {limit_seconds:g} s, and goes on: gearfleet nodes "
            f"shows what is left, the same command waits again, gearfleet join {name} calls it off"
        ) from None
    finally:
        progress.close()
    if done is None:
        raise Failed(f"{name} ended before it said that all was given away: look at gearfleet nodes")
    say(done.message or f"{name} has given everything away")
    return 0


def _check_known(name: str, status: "FleetStatus") -> None:
    if all(node.name != name for node in status.nodes):
        known = ", ".join(node.name for node in status.nodes)
        raise Failed(f"the fleet {status.fleet} has no node called {name}; it has {known}")


@click.command()
@click.argument("node")
@peer_options()
def join(node: str, peers: Peers) -> None:
    """Call off a drain: the node takes part again.

    A node that has stopped joins by being started.
    """

    async def request(client: "ControlClient", status: "FleetStatus") -> str:
        _check_known(node, status)
        return await client.join(node)

    say(ask(peers, request))


@click.command()
@click.argument("node")
@peer_options()
def forget(node: str, peers: Peers) -> None:
    """Say that a node is gone for good.

    Its copies are made anew on other nodes at once, not after --replace-after-seconds. A node that is up is
    not forgotten: drain it.
    """

    async def request(client: "ControlClient", status: "FleetStatus") -> str:
        _check_known(node, status)
        return await client.forget(node)

    say(ask(peers, request))


@click.command()
@click.argument("slots", metavar="[SLOT…]", nargs=-1)
@peer_options()
@click.option("--lossy", is_flag=True, required=True, help="Acknowledged jobs may be lost; must be said.")
@click.option("--node", default="", metavar="NODE", help="Who shall lead.  [default: who has most of it]")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def promote(slots: tuple[str, ...], peers: Peers, lossy: bool, node: str, yes: bool) -> None:
    """Let slots be led from what is left of them, although all their whole copies are gone.

    Only for slots whose in-sync nodes will not come back: their jobs that no other node has are lost, and
    should one of those nodes return, what it has is thrown away. Without SLOT all such slots are meant. A
    slot that a whole copy is left of needs no promotion: start other nodes, and it serves again.
    """

    async def request(client: "ControlClient", status: "FleetStatus") -> list[str]:
        chosen = choose(status, slots, node)
        count = sum(map(len, chosen.values()))
        for leader, led in chosen.items():
            say(f"{leader} is to lead {len(led)} slots from what it has: {ranges(led)}")
        if sys.stdin.isatty() and not yes:
            click.confirm(f"Jobs of {count} slots may be lost. Go on?", abort=True, err=True)
        return [await client.promote(leader, sorted(led), lossy=True) for leader, led in chosen.items()]

    for line in ask(peers, request, slots=True):
        say(line)


def choose(status: "FleetStatus", texts: tuple[str, ...], node: str) -> dict[str, list[int]]:
    """Who is to lead which slots. Raises Failed when nothing, or nobody, is left to choose."""
    up = [each.name for each in status.nodes if each.state != "down"]
    if node and node not in up:
        raise Failed(f"{node} is not up; these are: {', '.join(up)}")
    wanted = wanted_slots(texts, len(status.slots)) if texts else None
    chosen: dict[str, list[int]] = defaultdict(list)
    whole: dict[int, list[str]] = {}
    for row in status.slots:
        if wanted is not None and row.slot not in wanted:
            continue
        if live_copies(row):
            whole[row.slot] = sorted(set(row.in_sync) - set(row.missing))
            continue
        # A learner has a part of it; somebody else nothing but the slot's number.
        learners = [name for name in row.learners if name in up]
        chosen[node or (learners or up)[0]].append(row.slot)
    if not chosen or (wanted is not None and whole):
        if not whole:
            raise Failed("the fleet has no slots yet: it waits for more nodes")
        slot, names = next(iter(whole.items()))
        if wanted is None:
            raise Failed(
                "nothing to promote: every slot has a whole copy on a node that is up. Where fewer than "
                f"{status.min_in_sync} have one, start other nodes"
            )
        raise Failed(
            f"slot {slot} has a whole copy on {', '.join(names)}: it loses nothing, and serves as soon as "
            f"{status.min_in_sync} nodes have one. Start others"
        )
    return chosen
