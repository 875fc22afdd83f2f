"""nodes, map, slots: how a fleet stands."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import click

from cluster.cli import EXIT_FAILED
from cluster.cli.control import Peers, ask, peer_options, same_status
from cluster.cli.fleet import json_option
from cluster.cli.servers import NoServer, complain
from cluster.cli.stranded import stranded_faults
from cluster.cli.tables import print_json, say, show

if TYPE_CHECKING:
    from cluster.server.control import FleetStatus, SlotStatus

# The picture of the map: a letter for each node. With more nodes there are only the counts.
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PICTURE_COLUMNS: Final = 64
UNAVAILABLE_MARK: Final = "!"
WAIT_SECONDS: Final = 60.0  # nodes --wait
_ASK_AGAIN_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 5.0  # who waits longer hears what for
_SLOTS: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def faults(status: "FleetStatus") -> list[str]:
    """What is wrong with the fleet, in words; nothing when all is well."""
    found = []
    if not any(node.leads for node in status.nodes):
        found.append("the fleet has not been made yet: it waits for more nodes, see --bootstrap-nodes")
    down = [node.name for node in status.nodes if node.state == "down"]
    if down:
        found.append(f"down: {', '.join(down)}")
    if status.unavailable:
        found.append(
            f"{_slots(status.unavailable)} unavailable, with fewer than {status.min_in_sync} live copies: "
            "their background jobs are refused and wait; gearfleet slots --unavailable lists them"
        )
    if status.under_replicated:
        found.append(f"{_slots(status.under_replicated)} under-replicated, with fewer than {status.replicas}")
    if not status.etcd_reachable or status.etcd_error:
        found.append(
            f"etcd: {status.etcd_error or 'not reached'}; jobs go on, and nobody can take over from a node"
        )
    return found


def _slots(count: int) -> str:
    return f"{count:,} slot{'s' if count != 1 else ''}"


def summary(status: "FleetStatus", others: Sequence[str] = ()) -> list[str]:
    """The lines below the tables; `others`: faults that the status does not show."""
    found = [*faults(status), *others]
    head = (
        f"fleet {status.fleet}, as {status.answered_by} sees it: {status.replicas} copies, a job is "
        f"acknowledged when {status.min_in_sync} have it"
    )
    if not found:
        return [head, "all slots have all their copies; etcd answers"]
    return [head, *("! " + fault for fault in found)]


@click.command()
@peer_options()
@json_option
@click.option("--check", is_flag=True, help="Exit code 1 when anything is not as it should be.")
@click.option("--wait", is_flag=True, help="Wait until the fleet is complete, then show it.")
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0),
    default=WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits; exit code 1 when that was not enough.",
)
def nodes(peers: Peers, as_json: bool, check: bool, wait: bool, wait_seconds: float) -> int:
    """Show the nodes of a fleet, and what is wrong.

    Leads counts the slots that a node serves, in sync those that it has a whole copy of, learning those that
    it is catching up with.

    Jobs that wait on a node while their workers are connected to others only are told of as well.

    Exit codes: 0, 1 with --check or --wait when the fleet is degraded, 3 no node answered.
    """
    status = _complete(peers, wait_seconds) if wait else ask(peers, same_status)
    waiting = stranded_faults(status)
    if as_json:
        value = dataclasses.asdict(status)
        del value["slots"]
        print_json({**value, "faults": [*faults(status), *waiting]})
    else:
        show(
            ["Node", "State", "Zone", "Address", "Version", "Leads", "In sync", "Learning"],
            [
                (
                    node.name,
                    node.state,
                    node.zone or "-",
                    f"{node.host}:{node.port}" if node.host else "-",
                    node.version or "-",
                    node.leads,
                    node.in_sync,
                    node.learning,
                )
                for node in status.nodes
            ],
            nothing="No nodes.",
        )
        click.echo()
        for line in summary(status, waiting):
            say(line)
    if wait and not is_complete(status):
        complain(f"the fleet was not complete within {wait_seconds:g} s; --wait-seconds gives it longer")
        return EXIT_FAILED
    return EXIT_FAILED if check and (faults(status) or waiting) else 0


def is_complete(status: "FleetStatus") -> bool:
    """Whether nothing is wrong, and no node still learns what it is to have a copy of."""
    return not faults(status) and not any(node.learning for node in status.nodes)


def _complete(peers: Peers, seconds: float) -> "FleetStatus":
    """Ask again and again until the fleet is complete, or time is up; returns the last answer. Raises
    NoServer when the last one was none."""
    begun = time.monotonic()
    told = ""
    while True:
        status, missing = _look(peers)
        if status is not None and is_complete(status):
            return status
        waited = time.monotonic() - begun
        if waited >= seconds:
            return ask(peers, same_status) if status is None else status
        if waited >= _SILENT_SECONDS and missing != told:
            told = missing
            complain(f"waiting: {missing}")
        time.sleep(min(_ASK_AGAIN_SECONDS, seconds - waited))


def _look(peers: Peers) -> tuple["FleetStatus | None", str]:
    """How the fleet stands, when a node says so, and what is missing."""
    try:
        status = ask(peers, same_status)
    except NoServer as failure:
        return None, failure.message
    return status, "; ".join(faults(status)) or "nodes learn what they are to have copies of"


def ranges(slots: Iterable[int]) -> str:
    """0-3, 7, 9-10."""
    parts: list[list[int]] = []
    for slot in sorted(slots):
        if parts and slot == parts[-1][1] + 1:
            parts[-1][1] = slot
        else:
            parts.append([slot, slot])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def live_copies(row: "SlotStatus") -> int:
    return len(row.in_sync) - len(row.missing)


def picture(status: "FleetStatus") -> list[str]:
    """A letter for each slot: who leads it; small when it lacks copies, ! when it is unavailable."""
    letters = {node.name: letter for node, letter in zip(status.nodes, LETTERS, strict=False)}
    marks = []
    for row in status.slots:
        letter = letters.get(row.primary, "?")
        live = live_copies(row)
        if live < status.min_in_sync:
            letter = UNAVAILABLE_MARK
        elif live < status.replicas:
            letter = letter.lower()
        marks.append(letter)
    return [
        f"{start:>5}  {''.join(marks[start : start + PICTURE_COLUMNS])}"
        for start in range(0, len(marks), PICTURE_COLUMNS)
    ]


@click.command("map")
@peer_options()
@json_option
def show_map(peers: Peers, as_json: bool) -> None:
    """Show who leads which slot.

    One letter for each of the slots: the node that leads it; a small letter where copies are missing, "!"
    where the slot is unavailable. --json has every slot with its epoch and members.
    """
    status = ask(peers, same_status, slots=True)
    if as_json:
        print_json(dataclasses.asdict(status))
        return
    drawn = len(status.nodes) <= len(LETTERS)
    if drawn and status.slots:
        for line in picture(status):
            say(line)
        click.echo()
    rows = []
    for index, node in enumerate(status.nodes):
        epochs = [row.epoch for row in status.slots if row.primary == node.name]
        span = f"{min(epochs)}-{max(epochs)}" if epochs else "-"
        rows.append((LETTERS[index] if drawn else "", node.name, node.state, len(epochs), node.in_sync, span))
    show(["", "Node", "State", "Leads", "In sync", "Epochs"], rows, nothing="No nodes.")
    click.echo()
    for line in summary(status):
        say(line)


def wanted_slots(texts: Sequence[str], count: int) -> set[int]:
    """Read "5" and "10-19". Raises UsageError."""
    wanted: set[int] = set()
    for text in texts:
        match = _SLOTS.fullmatch(text)
        first = int(match[1]) if match else -1
        last = int(match[2]) if match and match[2] else first
        if not 0 <= first <= last < count:
            raise click.UsageError(f"{text!r} is no slot: give numbers from 0 to {count - 1}, or 10-19")
        wanted.update(range(first, last + 1))
    return wanted


def slot_marks(row: "SlotStatus", status: "FleetStatus") -> str:
    live = live_copies(row)
    marks = []
    if live < status.min_in_sync:
        marks.append("unavailable")
    elif live < status.replicas:
        marks.append("under-replicated")
    if not row.serving:
        marks.append("not serving")
    if row.lossy:
        marks.append("lossy")
    return ", ".join(marks)


@click.command()
@click.argument("slots", metavar="[SLOT…]", nargs=-1)
@peer_options()
@json_option
@click.option("--under-replicated", is_flag=True, help="Only slots that lack copies.")
@click.option("--unavailable", is_flag=True, help="Only slots that cannot acknowledge.")
def slots(
    peers: Peers, slots: tuple[str, ...], as_json: bool, under_replicated: bool, unavailable: bool
) -> None:
    """Show slots: epoch, primary, and who has a copy.

    SLOT is a number or a range such as 10-19; all when there is none. A name with a "!" has a copy that is
    out of reach. Lossy: once taken over from less than a whole copy (gearfleet promote).
    """
    status = ask(peers, same_status, slots=True)
    wanted = wanted_slots(slots, len(status.slots)) if slots else None
    tests: list[Callable[[SlotStatus], bool]] = []
    if under_replicated:
        tests.append(lambda row: live_copies(row) < status.replicas)
    if unavailable:
        tests.append(lambda row: live_copies(row) < status.min_in_sync)
    rows = [
        row
        for row in status.slots
        if (wanted is None or row.slot in wanted) and (not tests or any(test(row) for test in tests))
    ]
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    show(
        ["Slot", "Epoch", "Primary", "In sync", "Learning", ""],
        [
            (
                row.slot,
                row.epoch,
                row.primary,
                " ".join(name + ("!" if name in row.missing else "") for name in row.in_sync),
                " ".join(row.learners) or "-",
                slot_marks(row, status),
            )
            for row in rows
        ],
        nothing="No such slots." if status.slots else "The fleet has no slots yet: it waits for more nodes.",
    )
    if not status.etcd_reachable:
        complain(f"etcd: {status.etcd_error or 'not reached'}; this is what {status.answered_by} knew last")
