"""Defects put into the production code on purpose, one at a time: the simulation has to find each of them.

    python -m chaos_tests.sim.mutations [PART OF A NAME ...] [--jobs 2]

A mutation replaces text in the source of one or more functions while its seeds are played. It says within
how many seeds it is found; the exit code is not 0 when one is not. When the production code has changed so
that a text is not there any more, that is an error too: mend the mutation.

Some break only in histories that dice hardly ever make. Those have a scripted test that plays such a history,
and fails with the mutation.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from types import CodeType, FunctionType
from typing import Final, NamedTuple

from chaos_tests.sim.hunt import few_collections
from chaos_tests.sim.worlds import STEPS, WORLDS, Broken, play
from cluster.replication.replicator import ProtocolBroken
from tests.support.ending import end_with_this_process


class DoesNotApply(Exception):
    """The production code is not what the mutation was written for."""


class Edit(NamedTuple):
    """In the source of a function (`module:Class.name`, under `cluster`) one text becomes another."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One defect."""

    name: str
    edits: tuple[Edit, ...]
    seeds: int  # found within so many; 0: by the scripted test only
    world: str = "turns"
    script: str = ""  # a test without arguments that fails with it: `module:function`
    raises: tuple[type[Exception], ...] = ()  # what the code may raise with it instead


def mutation(
    name: str,
    seeds: int,
    *edits: tuple[str, str, str],
    world: str = "turns",
    script: str = "",
    raises: tuple[type[Exception], ...] = (),
) -> Mutation:
    return Mutation(name, tuple(Edit(*edit) for edit in edits), seeds, world, script, raises)


# ---- applying one


@contextmanager
def applied(wanted: Mutation) -> Iterator[None]:
    """The defect is there meanwhile. Raises DoesNotApply."""
    edits: dict[str, list[Edit]] = {}
    for edit in wanted.edits:
        edits.setdefault(edit.where, []).append(edit)
    with ExitStack() as stack:
        for where, some in edits.items():
            function = _find(where)
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = _compile(function, some)
        yield


def _find(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: object = import_module(f"cluster.{module}")
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    if not isinstance(found, FunctionType):
        raise DoesNotApply(f"{where} is {type(found).__name__}, not a function")
    return found


def _compile(function: FunctionType, edits: Sequence[Edit]) -> CodeType:
    """The edited function's code."""
    lines, first = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    for where, old, new in edits:
        if source.count(old) != 1:
            raise DoesNotApply(f"{where} has {source.count(old)} times, not once:\n{old}")
        source = source.replace(old, new)
    tree = ast.parse(source)
    ast.increment_lineno(tree, first - 1)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.decorator_list = []
    code = compile(tree, f"<mutated {edits[0].where}>", "exec", __future__.annotations.compiler_flag, True)
    namespace = dict(function.__globals__)
    exec(code, namespace)
    made = namespace[function.__name__]
    assert isinstance(made, FunctionType)
    return made.__code__


# ---- hunting


class Result(NamedTuple):
    """How it went."""

    name: str
    played: int
    allowed: int
    what: str  # was broken; empty: nothing
    seconds: float
    error: str = ""

    @property
    def good(self) -> bool:
        return bool(self.what) and not self.error


def find(wanted: Mutation, seeds: int | None = None) -> Result:
    """Play its scripted test; else seeds until one fails, or as many as are allowed."""
    started = time.monotonic()
    allowed = seeds or wanted.seeds
    what = ""
    played = 0
    try:
        with applied(wanted), few_collections():
            if not allowed:
                what = fails(wanted.script)
            while played < allowed and not what:
                what = broken(wanted, played)
                played += 1
    except DoesNotApply as error:
        return Result(wanted.name, 0, allowed, "", 0.0, str(error))
    return Result(wanted.name, played, allowed, what, time.monotonic() - started)


def broken(wanted: Mutation, seed: int) -> str:
    """The rule that a seed breaks; empty: none.

    Raises DoesNotApply when the edited code itself raises: a slip of the pen is not what was meant.
    """
    try:
        play(wanted.world, seed, steps=STEPS)
    except Broken as error:
        return error.rule
    except wanted.raises as error:
        return type(error).__name__
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].name
        text = f"{type(error).__name__} in {where} with seed {seed}: {error}"
        raise DoesNotApply(f"{text}; the mutation does not say that it raises that") from error
    return ""


def fails(script: str) -> str:
    """The name of a scripted test when it fails, else nothing."""
    module, _, name = script.partition(":")
    test = getattr(import_module(module), name)
    try:
        test()
    except AssertionError:
        return name
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos_tests.sim.mutations")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="those whose names have one of these in them"
    )
    parser.add_argument("--world", choices=[*WORLDS], help="those of this world (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--seeds", type=int, help="instead of the number that each is allowed")
    options = parser.parse_args()
    end_with_this_process()
    chosen = [
        wanted
        for wanted in MUTATIONS
        if options.world in (None, wanted.world)
        and (not options.names or any(part in wanted.name for part in options.names))
    ]
    bad = 0
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for result in pool.map(find, chosen, [options.seeds] * len(chosen)):
            bad += not result.good
            print(describe(result), flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} found")
    return 1 if bad or not chosen else 0


def describe(result: Result) -> str:
    if result.error:
        return f"DOES NOT APPLY  {result.name}: {result.error}"
    if not result.what:
        return f"NOT FOUND in {result.played:4}  {result.name} ({result.seconds:.0f} s)"
    if not result.played:
        return f"fails its script         {result.name}: {result.what}"
    return f"found after {result.played:4} of {result.allowed:4}  {result.name}: {result.what}"


REPLICATOR: Final = "replication.replicator:Replicator"
LEAD: Final = "replication.replicator:Lead"
FLEET: Final = "node.fleet:Fleet"
CLIENT: Final = "node.client:ClientVerbs"
WORKER: Final = "node.worker:WorkerVerbs"
LEDGER: Final = "jobs.ledger:Ledger"
NOTHING: Final = "            pass"
CHANGING: Final = "placement.changes:_Changing"

MUTATIONS: Final = (
    # Commits.
    mutation(
        "acknowledge before fsync",
        20,
        (
            f"{REPLICATOR}._owe_acknowledgement",
            "    if group.local:\n",
            "    if group.number:\n        peer.due = group_number\n    elif group.local:\n",
        ),
    ),
    mutation(
        "own disk does not count",
        20,
        (
            f"{REPLICATOR}.advance",
            "while uncommitted and uncommitted[0].number <= self.written:",
            "while uncommitted:",
        ),
    ),
    mutation(
        "ignore one in-sync member",
        20,
        (f"{REPLICATOR}.required_peers", "in lead.counting:", "in [*lead.counting][1:]:"),
    ),
    mutation(
        "majority instead of all",
        20,
        (
            f"{REPLICATOR}.advance",
            """\
            for identity, slots in needs.items():
                if not self._covers(self._by_identity.get(identity), slots, group):
                    break
""",
            """\
            silent = [not self._covers(self._by_identity.get(who), needs[who], group) for who in needs]
            for _ in range(sum(silent) - len(silent) // 2):
                break
""",
        ),
    ),
    mutation(
        "commit around a silent member before it has left the set",
        50,
        (
            f"{REPLICATOR}.required_peers",
            "for identity in lead.counting:\n",
            "for identity in filter(self._by_identity.__contains__, lead.counting):\n",
        ),
    ),
    mutation(
        "an acknowledgement counts for slots that the peer does not follow",
        50,
        (
            f"{REPLICATOR}.holds",
            "since is not None and peer.acked >= since and peer.acked >= group_number",
            "peer.acked >= group_number",
        ),
    ),
    mutation(
        "an acknowledgement counts before the peer was attached",
        50,
        (f"{REPLICATOR}._covers", "peer.acked >= peer.attached_last", "True"),
        (f"{REPLICATOR}.holds", "peer.acked >= since and ", ""),
    ),
    mutation(
        "a submit that joins an uncommitted job is acknowledged at once",
        20,
        (
            f"{CLIENT}.submit_background",
            "            self._make_background(job)\n",
            "            self._make_background(job)\n"
            "        context.send(connection, CREATED_HEADERS[len(handle)] + handle)\n"
            "        return\n",
        ),
    ),
    mutation(
        "jobs are given out before they are committed",
        20,
        (f"{CLIENT}.submit_background", "group.jobs.append(job)", "self._ledger.enqueue(job)"),
    ),
    # Epochs.
    mutation(
        "skip the epoch check",
        50,
        (
            f"{REPLICATOR}._take_offer",
            "offer.epoch < slot.promised or (slot_index in self.leads and offer.epoch <= slot.promised)",
            "not slot",
        ),
    ),
    mutation(
        "skip the promise check",
        100,
        (f"{REPLICATOR}._take_offer", "offer.epoch < slot.promised or ", ""),
    ),
    mutation(
        "a new primary goes on taking entries of the last one",
        300,
        (f"{REPLICATOR}._follow_no_more", "    self._detach_backup(slot_index)\n", ""),
        raises=(ProtocolBroken,),
    ),
    mutation(
        "epoch not persisted",
        20,
        (
            f"{REPLICATOR}._take_offer",
            'group.local.append(entries.encode(entries.EPOCH, slot_index, offer.epoch, 0, b""))',
            "pass",
        ),
    ),
    mutation(
        "a primary does not persist its epoch",
        100,
        (
            f"{REPLICATOR}.lead",
            'group.local.append(entries.encode(entries.EPOCH, slot_index, epoch, 0, b""))',
            "pass",
        ),
    ),
    mutation(
        "a promise is told before it is on disk",
        100,
        (
            f"{REPLICATOR}._take_offer",
            "self._promised.append((group.number, peer, answer))",
            "peer.frame.answers.append(answer)",
        ),
    ),
    mutation(
        "offers leave before the epoch is on disk",
        300,
        (f"{REPLICATOR}._offer", "lead.persisted_by > self.written\n        or ", ""),
    ),
    mutation(
        "epoch not raised at takeover",
        20,
        (f"{CHANGING}._take_over", "row.epoch + 1, me.name", "row.epoch, me.name"),
    ),
    mutation(
        "a restarted primary goes on in its epoch",
        20,
        (f"{FLEET}._adopt", "row.incarnation == me.incarnation and ", ""),
    ),
    # Who is in sync.
    mutation(
        "a learner enters without having caught up",
        100,
        (
            f"{REPLICATOR}.caught_up",
            "        if self.holds(self._by_identity.get(identity), slot_index, self.log.committed)\n",
            "",
        ),
    ),
    mutation(
        "a learner enters at the commit point, whatever was inherited",
        400,
        (
            f"{REPLICATOR}.caught_up",
            "if self.holds(self._by_identity.get(identity), slot_index, self.log.committed)",
            "if identity in self._by_identity and self._by_identity[identity].acked >= self.log.committed",
        ),
    ),
    mutation(
        "a pending add does not count",
        200,
        (f"{LEAD}.counting", "(*self.in_sync, *self.pending) if", "self.in_sync if"),
    ),
    mutation(
        "an unanswered add counts as refused",
        200,
        (
            f"{FLEET}.swapped",
            "    self._swapping = None\n",
            "    self._swapping = None\n"
            "    self._pending.clear()\n"
            "    for slot, lead in self.replicator.leads.items():\n"
            "        self.replicator.set_members(slot, lead.in_sync, (), lead.learners)\n",
        ),
    ),
    mutation(
        "a set shrinks below min_in_sync",
        600,
        (f"{CHANGING}._leave", "len(row.in_sync) <= self._config.min_in_sync", "len(row.in_sync) <= 1"),
        ("placement.propose:_Proposing._strike_dead", "self._config.min_in_sync", "1"),
    ),
    mutation(
        "non-member takes over",
        100,
        ("placement.succession:_heirs", "for identity in row.in_sync\n", "for identity in present\n"),
        (f"{CHANGING}._take_over", "me.identity not in row.in_sync", "not me.identity"),
        (
            f"{CHANGING}._take_over",
            "in_sync, learners = row.in_sync, row.learners",
            "in_sync, learners = _with(row.in_sync, me.identity), _without(row.learners, me.identity)\n"
            "    self._names.setdefault(me.identity, me.name)",
        ),
    ),
    mutation(
        "names instead of identities",
        150,
        (
            "placement.succession:_heirs",
            "        present[identity]\n        for identity in row.in_sync\n"
            "        if identity in present and not",
            "        view.members[names[identity]]\n        for identity in row.in_sync\n"
            "        if names[identity] in view.members and not",
        ),
        (
            "placement.succession:_heirs",
            "not _moving(present[identity], view, names)",
            "not _moving(view.members[names[identity]], view, names)",
        ),
        (
            f"{CHANGING}._take_over",
            "me.identity not in row.in_sync",
            "me.name not in [self._names[identity] for identity in row.in_sync]",
        ),
        (f"{FLEET}._adopt", " and me.identity in row.in_sync", ""),
    ),
    mutation(
        "takeover only if the key is gone",
        50,
        (
            "placement.succession:takeovers",
            "member is not None and member.incarnation == row.incarnation and row.primary not in missed",
            "member is not None and row.primary not in missed",
        ),
    ),
    # Logs.
    mutation(
        "tails are never compared",
        400,
        (
            f"{REPLICATOR}._take_offer",
            "common = common_number(slot.history, slot.number, offer.history, offer.number)",
            "common = slot.number",
        ),
    ),
    mutation(
        "a cut is not written to the disk",
        200,
        (
            f"{REPLICATOR}._take_offer",
            'group.local.append(entries.encode(entries.CUT, slot_index, offer.epoch, common, b""))',
            "pass",
        ),
    ),
    mutation(
        "the inherited tail counts as written in the new epoch",
        50,
        (
            f"{REPLICATOR}.lead",
            "extend(slot.history, epoch, slot.number + 1)",
            "slot.history[:] = [(epoch, 1)]",
        ),
    ),
    mutation(
        "a whole state is not written to the disk",
        100,
        (f"{REPLICATOR}._install", "    local.append(data[:state_bytes])\n", ""),
    ),
    mutation(
        "a whole state counts before it is all there",
        300,
        (f"{REPLICATOR}._send_tails", "peer.to_transfer.append(lead.slot)", "self._attach(peer, lead.slot)"),
        raises=(ProtocolBroken,),
    ),
    mutation(
        "a tail is made of whatever has the right numbers",
        1000,
        (
            "replication.replicator:_tail",
            'if int.from_bytes(recent[start - 1][12:16], "big") != epoch_of(history, expected):',
            "if not history:",
        ),
    ),
    mutation(
        "a new primary serves before the others have what it inherited",
        50,
        (
            f"{REPLICATOR}._look_for_ready",
            "if not self.holds(self._by_identity.get(identity), slot_index, 0):",
            "if not identity:",
        ),
    ),
    # Jobs and workers.
    mutation(
        "what is remembered is not replicated",
        400,
        (
            f"{FLEET}._make_jobs",
            "    table.remembered, replica.remembered = replica.remembered, table.remembered\n",
            "",
        ),
    ),
    mutation(
        "running jobs are given out at once after a takeover",
        1000,
        ("node.restore:Restorer.finish", "if job in assigned:", "if not jobs:"),
    ),
    mutation(
        "jobs are given out without a lease",
        500,
        (f"{FLEET}._fence", "may = now < self._lease_until", "may = now < self._lease_until + 1000"),
    ),
    # Histories for which dice have to fall together.
    mutation(
        # Needs a primary that reaches nobody, has nothing else to commit, and is asked to join what is over.
        "a joined job's slot is not in the group's promises",
        1000,
        (f"{CLIENT}.submit_background", "        group.promises.add(slot_index)\n", ""),
        script="tests.replication.test_rules:test_rule_3_a_join_is_not_confirmed_by_a_primary_that_reaches_nobody",
    ),
    mutation(
        # Needs a job after such a read, while the swap lands and the new member hears nothing.
        "a read of the same revision says that the swap was refused",
        600,
        (f"{FLEET}.see", "view.map.revision > self._swapped[0]", "view.map.revision >= self._swapped[0]"),
        script="tests.replication.test_rules:"
        "test_rule_3_an_unanswered_swap_keeps_both_sets_counting_until_a_later_revision_is_read",
    ),
    mutation(
        "older view adopted",
        600,
        (f"{FLEET}.see", "view.revision < self.view.revision", "view.revision < 0"),
        (f"{FLEET}.see", "view.map.revision < old.map.revision", "view.map.revision < 0"),
        script="tests.replication.test_rules:test_rule_3_a_view_never_goes_back",
    ),
    mutation(
        # A backup cuts when it accepts, so in one epoch there is nothing more to compare; unless it could not
        # cut and asked for a whole state, its stream broke before that came, and the primary's log became as
        # long as its own meanwhile.
        "tails are compared only when the epoch rises",
        1000,
        (
            f"{REPLICATOR}._take_offer",
            "    self._follow_no_more(slot_index, offer.epoch, peer)\n",
            "    rises = offer.epoch > slot.promised\n"
            "    self._follow_no_more(slot_index, offer.epoch, peer)\n",
        ),
        (
            f"{REPLICATOR}._take_offer",
            "if common is not None and common < slot.number:",
            "if not rises:\n        common = slot.number\n"
            "    if common is not None and common < slot.number:",
        ),
        script="tests.replication.test_rules:"
        "test_rule_7_a_tail_that_waited_for_a_state_is_compared_again_in_the_same_epoch",
    ),
    mutation(
        # The successor's offer says it, too, on its own stream and never behind its acknowledgements, and
        # without those nothing is committed. But for a primary that the successor does not list any more (its
        # key was gone for so long that its place was given away, or an operator forgot it): it is offered
        # nothing, and its empty groups would be acknowledged for ever.
        "a deposed primary is not told that it was",
        0,
        (
            f"{REPLICATOR}._follow_no_more",
            "led_by is not None and led_by is not successor",
            "led_by is not None and epoch < 0",
        ),
        script="tests.replication.test_rules:"
        "test_rule_2_a_primary_that_is_not_listed_any_more_learns_it_from_those_who_follow_another",
    ),
    mutation(
        # Needs two learners of one slot at a time, proposed one after the other on the same map: the first
        # swap lands late, and its member hears nothing.
        "a second proposal forgets what the first one added",
        0,
        (f"{FLEET}.propose", "tuple({*earlier, change.identity})", "(change.identity,)"),
        script="tests.replication.test_rules:test_rule_3_two_members_proposed_on_one_map_both_count",
    ),
    mutation(
        # Needs a primary that loses a slot and gets it back before a frame leaves for a member.
        "unsent entries of a slot's last epoch are sent",
        0,
        (f"{REPLICATOR}._drop", "peer.stale.add(slot_index)", "pass"),
        script="tests.replication.test_replicator:"
        "test_unsent_entries_of_an_epoch_that_is_over_are_not_sent_in_a_later_one",
    ),
    # What becomes of jobs.
    mutation(
        "the end of a job is not journaled",
        20,
        (
            f"{WORKER}.complete",
            "            context.log.append_done(job.slot, entries.COMPLETED, handle)",
            NOTHING,
        ),
        (f"{WORKER}.complete", "            context.record_done(job, entries.COMPLETED)", NOTHING),
    ),
    mutation(
        "a finished job is queued once more",
        20,
        (
            f"{WORKER}.complete",
            "    context = self._context\n",
            "    context = self._context\n"
            "    if job.background and job.deliveries == 1:\n"
            "        self._ledger.release(job)\n"
            "        self._ledger.enqueue(job)\n"
            "        return\n",
        ),
    ),
    mutation("the last job comes first", 50, (f"{LEDGER}.grab", "queue.popleft()", "queue.pop()")),
    mutation(
        "the least urgent jobs come first",
        50,
        (f"{LEDGER}.grab", "in enumerate(self.ready)", "in reversed([*enumerate(self.ready)])"),
    ),
    mutation(
        "the result of a job that waits for it is refused",
        300,
        (f"{WORKER}._held", "not _waits_again(job)", "job.state != QUEUED"),
    ),
    mutation(
        "a job that came back twice is forgotten in its pause",
        20,
        ("node.context:Context.pause", "self._sleep(job, seconds)", "pass"),
    ),
    mutation(
        # A count and a moment, which no history tells of.
        "a takeover does not know of a pause",
        0,
        ("node.context:Context.pause", "self.record_job(job)", "pass"),
        script="tests.node.test_returns:test_a_pause_is_kept_over_a_takeover",
    ),
    mutation(
        # Needs a worker that leaves in the moment between a slot's being led and its being served.
        "a claim that waits is granted although its worker has gone",
        0,
        ("node.returns:Returns.release", "elif self._context.fleet is not None:", "elif not handle:"),
        ("node.forward:Forwarder._claimed", "self._tell(name, RELEASE, request.body)", "pass"),
        script="tests.node.test_moving_slots:"
        "test_a_worker_that_leaves_before_its_claim_is_granted_has_its_job_run_by_another",
    ),
    mutation(
        # Needs what a node says of a leaving worker to be later than the answer to its claim.
        "a claim that is granted too late is not given back",
        0,
        ("node.forward:Forwarder._claimed", "self._tell(name, RELEASE, request.body)", "pass"),
        script="tests.node.test_moving_slots:test_a_claim_that_is_granted_too_late_is_given_back",
    ),
    mutation(
        "a cancel of a slot that goes elsewhere is not asked again",
        1000,
        (f"{FLEET}._ask_again", "if isinstance(chunk, Cancelled) and", "if not connections and"),
    ),
    # Of the shell around the nodes.
    mutation(
        "fsync is skipped",
        20,
        ("server.journal:Journal._fdatasync", "os.fdatasync(self._descriptor)", "pass"),
        world="shell",
    ),
    mutation(
        "swap without revision check",
        20,
        ("server.store:Store.swap", "compare = [unchanged(keys.map, swap.compare_revision)]", "compare = []"),
        world="shell",
    ),
    mutation(
        # In the world's own restores no node is started before the operator has come: one that never saw
        # what was lost would go on from the old map.
        "an older map is acted on after a restore of etcd",
        0,
        ("server.fleet:FleetLife._check_descent", "    if saved is None:\n", "    if saved or not saved:\n"),
        world="shell",
        script="chaos_tests.sim.shell.test_restoring:"
        "test_nodes_that_are_started_on_a_restored_etcd_lead_nothing_until_an_operator_has_mended_it",
    ),
    # Nobody in the world lies about who he is: chaos_tests/model/handshake.py has that enemy.
    mutation(
        "the proof of a node that calls is not looked at",
        0,
        ("server.peers:PeerPort._exchange_proofs", "if not agree(", "if agree((), ()) and agree("),
        script="tests.server.test_peers:test_a_stranger_who_says_who_another_node_is_gets_nothing",
    ),
    mutation(
        "the proof of a node that is called is not looked at",
        0,
        ("server.peers:PeerPort._greet", "if not agree(", "if agree((), ()) and agree("),
        script="tests.server.test_peers:test_whoever_is_dialled_has_to_prove_itself_before_a_frame_goes_there",
    ),
    mutation(
        "a command's proof is good again and again",
        0,
        ("server.proof:Challenges.use", "or challenge in self._used", ""),
        script="tests.server.test_control:test_a_call_that_was_overheard_cannot_be_repeated_or_changed",
    ),
)

if __name__ == "__main__":
    sys.exit(main())
