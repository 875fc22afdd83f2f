"""The simulation can fail: defects that are put in on purpose are found. All of them:
`python -m chaos_tests.sim.mutations`."""

from __future__ import annotations

import pytest

from chaos_tests.sim.mutations import MUTATIONS, DoesNotApply, Edit, Mutation, applied, fails, find
from cluster.replication.replicator import Replicator

QUICK = (
    "acknowledge before fsync",
    "ignore one in-sync member",
    "majority instead of all",
    "epoch not persisted",
    "a restarted primary goes on in its epoch",
    "jobs are given out before they are committed",
    "the end of a job is not journaled",
    "a finished job is queued once more",
    "the last job comes first",
    "the least urgent jobs come first",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_found(name: str) -> None:
    (wanted,) = (mutation for mutation in MUTATIONS if mutation.name == name)

    result = find(wanted)

    assert result.good, result


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_still_fits_the_code(mutation: Mutation) -> None:
    with applied(mutation):
        pass


@pytest.mark.parametrize(
    "mutation", [mutation for mutation in MUTATIONS if mutation.script], ids=lambda mutation: mutation.name
)
def test_a_scripted_history_goes_wrong_with_its_mutation_and_not_without(mutation: Mutation) -> None:
    assert not fails(mutation.script)
    with applied(mutation):
        assert fails(mutation.script)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_has_seeds_or_a_script(mutation: Mutation) -> None:
    assert mutation.seeds or mutation.script


def test_a_mutation_is_gone_afterwards() -> None:
    usual = Replicator.advance.__code__

    with applied(next(mutation for mutation in MUTATIONS if mutation.name == "majority instead of all")):
        assert Replicator.advance.__code__ is not usual

    assert Replicator.advance.__code__ is usual


@pytest.mark.parametrize("new", ["nobody_knows_this_name", "self.log.no_such_thing", "len(self.log)"])
def test_a_slip_of_the_pen_is_not_what_was_meant(new: str) -> None:
    edit = Edit("replication.replicator:Replicator.advance", "self.written", new)

    result = find(Mutation("with a slip", (edit,), 5))

    assert not result.good
    assert "does not say that it raises that" in result.error


def test_a_mutation_may_say_what_it_raises() -> None:
    edit = Edit("replication.replicator:Replicator.advance", "self.written", "1 // 0")

    result = find(Mutation("that raises", (edit,), 5, raises=(ZeroDivisionError,)))

    assert (result.good, result.what) == (True, "ZeroDivisionError")


def test_a_mutation_of_code_that_has_changed_says_so() -> None:
    edit = Edit("replication.replicator:Replicator.advance", "what is not there", "")

    with pytest.raises(DoesNotApply, match="0 times"), applied(Mutation("of the past", (edit,), 1)):
        pass
