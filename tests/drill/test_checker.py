"""For each promise a history that breaks it, and others that only nearly do."""

from collections.abc import Callable

import pytest

from cluster.drill.checker import Gap, Verdict, check
from cluster.drill.history import History, Kind
from tests.drill.stories import Story

KINDS = (
    "lost",
    "unexpected",
    "duplicated_explained",
    "duplicated_unexplained",
    "coalescing_broken",
    "order_broken",
    "split",
)

H1, H2, H3 = "H:a:1.2.1", "H:a:1.2.2", "H:a:1.2.3"  # slot 1, epoch 2
ELSEWHERE = "H:a:9.2.1"
FOREGROUND = "H:a:1.tff.1"


@pytest.fixture
def story() -> Story:
    return Story()


def found(verdict: Verdict) -> dict[str, int]:
    return {kind: len(getattr(verdict, kind)) for kind in KINDS if getattr(verdict, kind)}


def fine(story: Story, **options: float) -> bool:
    verdict = story.check(**options)  # type: ignore[arg-type]
    assert found(verdict) == {}
    assert verdict.valid, verdict.problems
    return True


def broken(story: Story, kind: str, **options: float) -> Verdict:
    verdict = story.check(**options)  # type: ignore[arg-type]
    assert found(verdict) == {kind: 1}
    assert not verdict.valid
    assert len(verdict.problems) == 1
    return verdict


def test_what_was_promised_and_done_is_fine(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.refuse(story.submit("f/2"))
    story.give_up(story.submit("f/3"))

    verdict = story.check()
    assert verdict.valid
    assert (verdict.submitted, verdict.acknowledged, verdict.refused, verdict.unknown) == (3, 1, 1, 1)
    assert (verdict.done, verdict.runs, verdict.unfinished) == (1, 1, 0)


# ---- lost


def test_lost_is_what_was_acknowledged_and_never_run(story: Story) -> None:
    story.promise("f/1", H1)
    verdict = broken(story, "lost")
    assert verdict.lost[0][1:] == ("f/1", H1, "acknowledged, never run", 0)
    assert verdict.problems == ["1 lost: f/1 at 2.000 s (acknowledged, never run)"]


def test_lost_is_also_what_was_run_and_never_finished(story: Story) -> None:
    story.promise("f/1", H1)
    fault = story.fault("kill w1", "w1")
    story.run("f/1", H1)
    story.abandoned("f/1", H1)
    story.heal(fault)
    broken(story, "lost")


def test_a_job_that_failed_has_ended(story: Story) -> None:
    story.promise("f/1", H1)
    story.run("f/1", H1)
    story.failed("f/1", H1)
    assert fine(story)
    assert story.check().failed == 1


def test_a_job_of_the_same_key_does_not_stand_for_a_lost_one(story: Story) -> None:
    story.promise("f/1", H1)
    story.promise("f/1", H2)
    story.work("f/1", H2)
    assert found(story.check()) == {"lost": 1, "coalescing_broken": 1}


def test_a_caller_in_the_foreground_is_not_promised_the_background_job_that_it_joined(story: Story) -> None:
    """That job may not be committed yet, and its own caller was told of nothing."""
    background, call = story.submit("f/1"), story.submit("f/1", foreground=True)
    story.ack(call, H1)
    story.fault("power cut", "all")
    story.give_up(call)
    story.give_up(background)
    assert fine(story)


def test_a_caller_in_the_foreground_wants_to_be_told_the_end_of_a_background_job_too(story: Story) -> None:
    story.promise("f/1", H1)
    call = story.submit("f/1", foreground=True)
    story.ack(call, H1)
    story.work("f/1", H1)
    assert broken(story, "lost").lost[0].text == "its caller was never told the end"
    story.result(call)
    assert fine(story)


@pytest.mark.parametrize("ended", [True, False])
def test_a_background_submit_that_joined_a_foreground_job_is_a_promise(story: Story, ended: bool) -> None:
    call = story.submit("f/1", foreground=True)
    story.ack(call, FOREGROUND)
    story.promise("f/1", FOREGROUND, foreground=False)
    story.fault("kill", "all")
    story.give_up(call)
    if ended:
        story.work("f/1", FOREGROUND)
        assert fine(story)
    else:
        assert broken(story, "lost").lost[0].text == "acknowledged, never run"


def test_a_submit_of_unknown_end_may_be_run_or_not(story: Story) -> None:
    story.give_up(story.submit("f/1"))
    story.give_up(story.submit("f/2"))
    story.work("f/2", H2)
    story.promise("f/0", ELSEWHERE)
    story.work("f/0", ELSEWHERE)
    story.submit("f/3")  # never answered
    story.submit("f/4")
    story.work("f/4", H3)
    assert fine(story)


def test_what_was_never_drained_is_not_valid_and_nothing_is_called_lost(story: Story) -> None:
    story.promise("f/1", H1)
    verdict = story.check(drained=False)
    assert found(verdict) == {}
    assert verdict.unfinished == 1
    assert [problem.split(":")[0] for problem in verdict.problems] == ["the fleet was not drained"]


def test_what_still_waits_after_a_drain_is_a_problem(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    assert story.check(queued=1).problems == ["the queues are not empty: 1 jobs wait, 0 run"]


def test_an_empty_history_proves_nothing(story: Story) -> None:
    assert story.check().problems == ["nothing was submitted: this proves nothing"]
    assert not story.check().broken


@pytest.mark.parametrize("answer", [Story.refuse, Story.give_up])
def test_a_history_in_which_nothing_was_acknowledged_proves_nothing(
    story: Story, answer: Callable[[Story, int], None]
) -> None:
    for number in range(50):
        answer(story, story.submit(f"f/{number}"))
    verdict = story.check()
    assert verdict.problems == ["nothing of 50 submits was acknowledged: this proves nothing"]
    assert not verdict.broken


def test_a_function_of_which_nothing_was_acknowledged_proves_nothing(story: Story) -> None:
    story.promise("g/1", H1)
    story.work("g/1", H1)
    for number in range(9):
        story.give_up(story.submit(f"f/{number}"))
    assert fine(story)  # the only submits of a few seconds may all have met a fault
    story.give_up(story.submit("f/9"))
    assert story.check().problems == ["nothing of 10 submits of f was acknowledged: this proves nothing"]


def test_a_promise_that_was_broken_is_told_from_a_history_that_proves_nothing(story: Story) -> None:
    story.promise("f/1", H1)
    assert not story.check(drained=False).broken
    assert story.check().broken


def test_a_foreground_call_is_lost_when_its_caller_is_never_told_the_end(story: Story) -> None:
    told = story.promise("f/1", FOREGROUND)
    story.work("f/1", FOREGROUND)
    broken(story, "lost")
    story.result(told)
    assert fine(story)


def test_a_foreground_call_that_gave_up_is_of_unknown_end(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.give_up(call)
    assert fine(story)
    assert story.check().unknown == 1


def test_a_foreground_call_that_gave_up_long_after_the_jobs_end_is_lost(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.work("f/1", FOREGROUND)
    story.give_up(call)
    assert fine(story)  # it may have been on its way
    broken(story, "lost", grace_seconds=0.5)


def test_a_fault_is_reason_enough_to_give_up_a_foreground_call(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.work("f/1", FOREGROUND)
    story.heal(story.fault("reset", "client>a"))
    story.give_up(call)
    assert fine(story, grace_seconds=0.5)


def passed_over(
    story: Story, handle: str = "H:a:3.tff.2", priority: str = "normal", **options: float
) -> bool:
    """A foreground call that gave up though its node gave out a later job long before."""
    call = story.promise("f/1", FOREGROUND)
    later = story.promise("f/2", handle, priority=priority)
    story.work("f/2", handle)  # at 5 s
    story.result(later) if ".t" in handle else None
    story.wait(10)
    story.give_up(call)
    verdict = story.check(**options)  # type: ignore[arg-type]
    assert found(verdict) in ({}, {"lost": 1})
    return not verdict.valid


def test_a_foreground_call_whose_job_is_forgotten_is_lost(story: Story) -> None:
    assert passed_over(story)
    assert not passed_over(Story(), grace_seconds=30)


@pytest.mark.parametrize("handle", ["H:a:3.2.1", "H:a:3.tff.2"])
def test_a_later_job_of_the_same_node_shows_that_a_foreground_job_is_forgotten(
    story: Story, handle: str
) -> None:
    assert passed_over(story, handle)


def test_a_foreground_call_may_give_up_when_the_queue_is_long(story: Story) -> None:
    """Other nodes have other queues, and what is more urgent goes first."""
    assert not passed_over(story, "H:b:3.tff.2")
    assert not passed_over(Story(), priority="high")
    call = story.promise("g/1", FOREGROUND + "1")
    story.wait(100)
    story.give_up(call)
    assert fine(story)


def test_a_fault_is_reason_enough_for_a_foreground_job_that_is_forgotten(story: Story) -> None:
    story.heal(story.fault("freeze", "a"))
    assert not passed_over(story)


# ---- unexpected


def test_a_foreground_caller_is_told_of_success_only_when_a_run_is_done(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.result(call)
    text = broken(story, "unexpected").unexpected[0].text
    assert text == "call 1 was told of success, and no run was done"
    story.wait(50)
    story.work("f/1", FOREGROUND)
    broken(story, "unexpected")


def test_a_foreground_caller_is_told_of_no_success_when_the_run_failed(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.run("f/1", FOREGROUND)
    story.failed("f/1", FOREGROUND)
    story.result(call, "JobFailed")
    assert fine(story)
    again = story.promise("f/1", "H:a:1.tff.2")
    story.run("f/1", "H:a:1.tff.2")
    story.failed("f/1", "H:a:1.tff.2")
    story.result(again)
    text = broken(story, "unexpected").unexpected[0].text
    assert text == "call 2 was told of success, and no run was done"


def test_a_foreground_caller_is_told_of_a_failure_only_when_a_run_failed_or_was_cut_off(
    story: Story,
) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.run("f/1", FOREGROUND)
    story.result(call, "JobFailed")
    assert fine(story)  # tried often enough
    story = Story()
    call = story.promise("f/1", FOREGROUND)
    story.work("f/1", FOREGROUND)
    story.result(call, "JobFailed")
    text = broken(story, "unexpected").unexpected[0].text
    assert text == "call 1 was told of a failure, and no run had failed"


def test_a_fault_may_make_a_foreground_job_fail(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.heal(story.fault("kill", "a"))
    story.result(call, "JobFailed")
    assert fine(story)


def test_a_result_of_long_ago_is_none_for_a_later_call(story: Story) -> None:
    call = story.promise("f/1", FOREGROUND)
    story.work("f/1", FOREGROUND)
    story.result(call)
    story.wait(30)
    later = story.promise("f/1", "H:a:1.tff.2")
    story.result(later)
    broken(story, "unexpected")


def test_callers_of_one_key_may_be_told_one_result(story: Story) -> None:
    """Two foreground jobs, or one of background that another call has made."""
    story.promise("f/1", H1)
    story.run("f/1", H1)
    call = story.submit("f/1", foreground=True)
    other = story.submit("f/1", foreground=True)
    story.history.done("f/1", worker="w1", handle=H1)
    story.history.ack(call, handle=H1)
    story.history.result(call)  # at one instant
    story.ack(other, FOREGROUND)
    story.result(other)
    assert fine(story, grace_seconds=10)


def test_a_result_may_come_from_a_run_that_names_no_key(story: Story) -> None:
    """Its node had passed the job on, so nobody was told the handle."""
    story.give_up(story.submit("f/0"))
    call = story.promise("f/", FOREGROUND)
    story.work("", "H:b:1.tff.7")
    story.result(call)
    assert fine(story)


def test_unexpected_is_what_nobody_submitted(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.work("f/2", H2)
    assert broken(story, "unexpected").unexpected[0].text == "run, never submitted"


def test_unexpected_is_what_was_only_ever_refused(story: Story) -> None:
    story.promise("f/0", ELSEWHERE)
    story.work("f/0", ELSEWHERE)
    story.refuse(story.submit("f/1"))
    story.work("f/1", H1)
    assert broken(story, "unexpected").unexpected[0].text == "run, only ever refused"


def test_what_was_refused_once_and_then_timed_out_may_run(story: Story) -> None:
    story.promise("f/0", ELSEWHERE)
    story.work("f/0", ELSEWHERE)
    story.refuse(story.submit("f/1"))
    story.give_up(story.submit("f/1"))
    story.work("f/1", H1)
    assert fine(story)


def test_unexpected_is_what_runs_before_it_was_submitted(story: Story) -> None:
    story.work("f/1", H1)
    story.promise("f/1", H1)
    assert broken(story, "unexpected").unexpected[0].text == "run, before it was submitted"


def test_a_worker_may_have_it_before_the_acknowledgement_arrives(story: Story) -> None:
    call = story.submit("f/1")
    story.work("f/1", H1)
    story.ack(call, H1)
    assert fine(story)


def test_jobs_without_a_unique_are_known_by_their_handles(story: Story) -> None:
    story.promise("f/", H1)
    story.promise("f/", H2)
    story.work("f/", H1)
    story.work("f/", H2)
    assert fine(story)
    story.work("f/", H3)
    assert broken(story, "unexpected").unexpected[0].text == "run, and no submit made it"


def test_a_run_that_names_no_key_is_known_by_its_handle(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("", H1)
    assert fine(story)
    story.work("", H2)
    broken(story, "unexpected")
    story.give_up(story.submit("f/3"))  # too late to be it
    broken(story, "unexpected")


def test_a_run_that_names_no_handle_is_known_by_its_key(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", "")
    assert fine(story)
    story.work("f/1", "")
    broken(story, "duplicated_unexplained")


def test_runs_that_name_no_handle_are_of_one_job_after_the_other(story: Story) -> None:
    story.promise("f/", H1)
    story.promise("f/", H2)
    story.work("f/", "")
    broken(story, "lost")
    story.work("f/", "")
    assert fine(story)


# ---- duplicated


def test_a_second_run_of_a_handle_is_a_duplicate(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.work("f/1", H1, "w2")
    assert broken(story, "duplicated_unexplained").duplicated_unexplained[0].text == "run by w1 and by w2"


def test_a_second_submit_makes_no_second_run_of_one_handle_right(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.promise("f/1", H1)  # remembered
    story.work("f/1", H1)
    broken(story, "duplicated_unexplained")


def test_a_key_may_be_submitted_again_when_its_job_has_ended(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.promise("f/1", H2)
    story.work("f/1", H2)
    assert fine(story)


def twice(story: Story, *touches: str, node: str = "", leads: bool = True) -> dict[str, int]:
    """Run by w1 while there was a fault, and then by w2; led by a, and from the fault on by b."""
    if leads:
        story.leads("a", 1, 2)
    story.promise("f/1", H1)
    story.run("f/1", H1, "w1", node)
    story.promise("f/2", H2)
    story.work("f/2", H2, "w3")
    story.fault("trouble", *touches)
    if leads:
        story.leads("b", 1, 3)
    story.work("f/1", H1, "w2")
    return found(story.check())


@pytest.mark.parametrize(
    "touched",
    ["w1", "w2", "a", "b", "all", "etcd", "w1>a", "w1>c", "c>w1", "a>b", "c>a", "worker>a", "a>etcd", "n"],
)
def test_a_duplicate_is_explained_by_a_fault_that_touched_it(story: Story, touched: str) -> None:
    assert twice(story, "nothing", touched, node="n") == {"duplicated_explained": 1}
    explained = story.check().duplicated_explained[0]
    assert explained.text == "run by w1 and by w2: trouble"
    assert explained.fault == 1
    assert story.check().valid


@pytest.mark.parametrize("touched", ["w3", "c", "w3>a", "a>w3", "c>d", "client>a", "c>etcd", "worker>c", ""])
def test_a_fault_elsewhere_explains_nothing(story: Story, touched: str) -> None:
    assert twice(story, touched) == {"duplicated_unexplained": 1}


def long_over(story: Story) -> None:
    """A background job of the key f/k, and nothing for long after it."""
    story.promise("f/k", "H:a:1.2.1")
    story.work("f/k", "H:a:1.2.1")
    story.wait(100)


@pytest.mark.parametrize("fault", [True, False])
def test_a_caller_that_was_told_of_two_jobs_one_after_the_other_wants_a_fault_between(
    story: Story, fault: bool
) -> None:
    long_over(story)
    call = story.submit("f/k", foreground=True)
    story.ack(call, "H:a:1.t5.1")
    story.work("f/k", "H:a:1.t5.1", "w1")
    if fault:
        story.fault("power cut", "a")
    story.wait(100)
    story.ack(call, "H:b:1.t6.1")
    story.work("f/k", "H:b:1.t6.1", "w2")
    story.result(call)
    assert found(story.check()) == {"duplicated_explained" if fault else "duplicated_unexplained": 1}


@pytest.mark.parametrize("fault", [True, False])
def test_a_caller_that_was_told_only_of_the_second_of_two_jobs_wants_a_fault(
    story: Story, fault: bool
) -> None:
    long_over(story)
    if fault:
        story.fault("cut", "a", "b")
    call = story.submit("f/k", foreground=True)
    repeated = story.submit("f/k")
    story.work("f/k", "H:a:1.t5.1", "w1")
    story.work("f/k", "H:b:1.t6.1", "w2")
    story.ack(call, "H:b:1.t6.1")
    story.result(call)
    story.ack(repeated, "H:a:1.2.1")  # by a node that remembers it
    assert found(story.check()) == {"duplicated_explained" if fault else "duplicated_unexplained": 1}


def test_a_job_that_stands_for_the_one_that_its_caller_was_told_of_is_no_second_one(story: Story) -> None:
    """Its node passed it on again, when the other was lost before it was run."""
    long_over(story)
    call = story.submit("f/k", foreground=True)
    story.ack(call, "H:a:1.t5.1")
    story.work("f/k", "H:b:1.t6.1")
    story.result(call)
    assert fine(story)


def test_who_led_is_known_from_handles_when_nothing_else_tells(story: Story) -> None:
    assert twice(story, "a", leads=False) == {"duplicated_explained": 1}


def test_who_did_not_lead_is_known_from_handles_too(story: Story) -> None:
    assert twice(story, "b", leads=False) == {"duplicated_unexplained": 1}


def test_a_fault_of_any_node_may_explain_when_nothing_tells_who_led(story: Story) -> None:
    story.promise("f/1", "H:host:1")
    story.run("f/1", "H:host:1", "w1")
    story.fault("kill b", "b")
    story.work("f/1", "H:host:1", "w2")
    assert found(story.check()) == {"duplicated_explained": 1}


def test_a_fault_explains_from_its_beginning_until_a_while_after_its_end(story: Story) -> None:
    story.promise("f/1", H1)
    fault = story.fault("kill w1", "w1")
    story.heal(fault)
    story.wait(0.5)
    story.run("f/1", H1, "w1")  # 1.5 s after the end
    story.work("f/1", H1, "w2")
    assert found(story.check(grace_seconds=1.6)) == {"duplicated_explained": 1}
    assert found(story.check(grace_seconds=1.4)) == {"duplicated_unexplained": 1}


def test_of_several_faults_the_last_one_explains(story: Story) -> None:
    story.promise("f/1", H1)
    story.heal(story.fault("kill w1", "w1"))
    story.run("f/1", H1, "w1")
    story.fault("cut", "w1>a")
    story.work("f/1", H1, "w2")
    assert [finding.fault for finding in story.check(grace_seconds=9).duplicated_explained] == [2]


def test_a_fault_after_the_second_run_does_not_explain_it(story: Story) -> None:
    story.promise("f/1", H1)
    story.run("f/1", H1, "w1")
    story.run("f/1", H1, "w2")
    story.fault("kill w1", "w1")
    story.done("f/1", H1, "w2")
    broken(story, "duplicated_unexplained")


def test_a_fault_long_after_the_end_of_the_first_run_does_not_explain_the_second(story: Story) -> None:
    """The end was on disk by then: whoever takes over must know of it."""
    story.leads("a", 1, 2)
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.fault("kill a", "a")
    assert fine(story)
    story.work("f/1", H1, "w2")
    assert found(story.check(grace_seconds=1.5)) == {"duplicated_explained": 1}
    broken(story, "duplicated_unexplained", grace_seconds=0.5)


def test_a_fault_of_all_may_undo_what_has_ended(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.wait(100)
    story.fault("restore a backup", "all")
    story.work("f/1", H1, "w2")
    assert found(story.check()) == {"duplicated_explained": 1}


def test_a_run_that_was_cut_off_may_be_made_up_for_much_later(story: Story) -> None:
    story.promise("f/1", H1)
    story.run("f/1", H1)
    story.abandoned("f/1", H1)
    story.wait(100)
    story.fault("kill a", "a")
    story.work("f/1", H1, "w2")
    assert found(story.check()) == {"duplicated_explained": 1}


def test_one_submit_that_made_two_jobs_long_before_they_were_run_is_explained(story: Story) -> None:
    call = story.submit("f/1", foreground=True)
    story.heal(story.fault("cut", "client>a"))
    story.ack(call, "H:b:1.tff.1", "b")
    story.wait(100)  # nobody works
    story.work("f/1", FOREGROUND)
    story.work("f/1", "H:b:1.tff.1")
    story.result(call)
    assert found(story.check()) == {"duplicated_explained": 1}


def test_each_further_run_wants_an_explanation_of_its_own(story: Story) -> None:
    story.promise("f/1", H1)
    story.run("f/1", H1, "w1")
    story.heal(story.fault("kill w1", "w1"))
    story.run("f/1", H1, "w2")
    story.wait(100)
    story.work("f/1", H1, "w3")
    assert found(story.check()) == {"duplicated_explained": 1, "duplicated_unexplained": 1}


def test_one_submit_that_made_two_jobs_is_a_duplicate(story: Story) -> None:
    call = story.submit("f/1")
    story.work("f/1", H1)  # and the answer was lost, so the client sent it again
    story.ack(call, H2)
    story.work("f/1", H2)
    text = broken(story, "duplicated_unexplained").duplicated_unexplained[0].text
    assert text == f"run as {H2}, too: no submit made both"


def test_one_submit_that_made_two_jobs_is_a_duplicate_also_when_a_later_one_is_told_of_the_second(
    story: Story,
) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.work("f/1", H2)
    story.promise("f/1", H2)  # remembered
    broken(story, "duplicated_unexplained")


def test_two_submits_may_make_two_jobs_though_one_timed_out(story: Story) -> None:
    story.give_up(story.submit("f/1"))
    story.work("f/1", H1)
    story.promise("f/1", H2)
    story.work("f/1", H2)
    assert fine(story)


def test_a_foreground_job_that_its_client_submitted_again_is_explained_by_the_clients_link(
    story: Story,
) -> None:
    call = story.submit("f/1", foreground=True)
    story.ack(call, FOREGROUND, "a")
    story.run("f/1", FOREGROUND, "w1", "a")
    story.fault("reset", "client>a")
    story.ack(call, "H:b:1.tff.1", "b")
    story.work("f/1", "H:b:1.tff.1", "w2")
    story.result(call)
    assert found(story.check()) == {"duplicated_explained": 1}


def test_a_foreground_job_whose_road_broke_before_its_caller_was_told_of_it_is_explained(
    story: Story,
) -> None:
    """It had asked another node, which passed it on."""
    call = story.submit("f/1", foreground=True)
    story.work("f/1", FOREGROUND)
    story.fault("freeze", "c")
    story.ack(call, "H:a:1.tff.2", "a")
    story.work("f/1", "H:a:1.tff.2", "w2")
    story.result(call)
    assert found(story.check()) == {"duplicated_explained": 1}


@pytest.mark.parametrize("key", ["f/1", "f/"])
def test_a_foreground_job_that_a_node_passed_on_again_runs_under_a_handle_that_nobody_was_told(
    story: Story, key: str
) -> None:
    """Not only after a fault: a node that is stopped gives away what waits."""
    call = story.submit(key, foreground=True)
    story.ack(call, FOREGROUND, "a")
    story.work(key, "H:b:1.tff.2")
    story.result(call)
    assert fine(story)


@pytest.mark.parametrize(("key", "kind"), [("f/1", "duplicated_unexplained"), ("f/", "unexpected")])
@pytest.mark.parametrize("told_first", [True, False])
def test_a_foreground_job_that_was_run_is_not_passed_on_again_without_a_fault(
    story: Story, key: str, kind: str, told_first: bool
) -> None:
    call = story.submit(key, foreground=True)
    story.ack(call, FOREGROUND, "a")
    for handle in sorted([FOREGROUND, "H:b:1.tff.2"], reverse=not told_first):
        story.work(key, handle)
    story.result(call)
    broken(story, kind)


def test_one_foreground_call_stands_for_one_job_that_nobody_was_told_of(story: Story) -> None:
    call = story.submit("f/", foreground=True)
    story.ack(call, FOREGROUND, "a")
    story.work("f/", "H:b:1.tff.2")
    story.work("f/", "H:c:1.tff.3")
    story.result(call)
    broken(story, "unexpected")


def test_a_job_without_a_key_may_be_made_twice_by_a_node_that_did_not_see_it_committed(story: Story) -> None:
    """The next primary has it, and cannot know that this is the one."""
    call = story.submit("f/")
    story.heal(story.fault("freeze", "a"))
    story.work("f/", H1)
    story.ack(call, H2, "a")
    story.work("f/", H2)
    explained = story.check().duplicated_explained
    assert found(story.check()) == {"duplicated_explained": 1}
    assert explained[0][2:] == (H1, f"{H2} was submitted again: freeze", 1)


def test_a_fault_excuses_no_jobs_without_a_key_that_were_submitted_before_or_after_it(story: Story) -> None:
    story.promise("f/", H1)
    story.work("f/", H1)
    story.heal(story.fault("kill", "a"))
    story.wait(3600)
    for number in range(5):
        story.promise("f/", f"H:a:1.3.1{number}")
        story.work("f/", f"H:a:1.3.1{number}")
        story.work("f/", f"H:a:1.3.2{number}")
    assert found(story.check()) == {"unexpected": 5}


def test_each_fault_may_make_one_more_job_of_each_call_without_a_key(story: Story) -> None:
    call, other = story.submit("f/"), story.submit("f/")
    story.heal(story.fault("freeze", "a"))
    story.ack(other, H2)
    story.heal(story.fault("freeze", "b"))
    story.ack(call, H1)
    story.heal(story.fault("freeze", "c"))  # touches none
    story.wait(100)
    for handle in (H1, H2, *(f"H:a:1.3.{number}" for number in range(5))):
        story.work("f/", handle)
    verdict = story.check()
    assert found(verdict) == {"duplicated_explained": 3, "unexpected": 2}
    assert sorted(finding.fault for finding in verdict.duplicated_explained) == [1, 1, 2]


@pytest.mark.parametrize("touched", ["w1", "w1>a", "client>a"])
def test_a_fault_of_no_node_makes_no_more_jobs_of_a_call_without_a_key(story: Story, touched: str) -> None:
    story.promise("f/0", ELSEWHERE)
    story.work("f/0", ELSEWHERE)
    call = story.submit("f/")
    story.fault("trouble", touched)
    story.work("f/", H1)
    story.ack(call, H2, "a")
    story.work("f/", H2)
    broken(story, "unexpected")


def test_a_call_without_a_key_and_an_answer_may_have_made_two_jobs_while_there_was_a_fault(
    story: Story,
) -> None:
    story.promise("f/0", ELSEWHERE)
    story.work("f/0", ELSEWHERE)
    story.give_up(story.submit("f/"))
    story.fault("freeze", "a")
    for handle in (H1, H2):
        story.work("f/", handle)
    assert found(story.check()) == {"duplicated_explained": 1}
    story.work("f/", H3)
    assert found(story.check()) == {"duplicated_explained": 1, "unexpected": 1}


def test_a_job_without_a_key_that_was_made_twice_is_unexpected_without_a_fault(story: Story) -> None:
    call = story.submit("f/")
    story.work("f/", H1)
    story.ack(call, H2, "a")
    story.work("f/", H2)
    broken(story, "unexpected")


# ---- coalescing


def test_two_handles_of_one_key_at_a_time_break_coalescing(story: Story) -> None:
    story.promise("f/1", H1)
    story.promise("f/1", H2)
    story.work("f/1", H1)
    story.work("f/1", H2)
    assert broken(story, "coalescing_broken").coalescing_broken[0].text == f"made while {H1} had the key"


def test_one_handle_for_all_who_ask_while_the_job_lives_is_coalescing(story: Story) -> None:
    story.promise("f/1", H1)
    late = story.submit("f/1")
    story.run("f/1", H1)
    story.promise("f/1", H1)
    story.done("f/1", H1)
    story.ack(late, H1)
    assert fine(story)


def test_a_key_is_free_as_soon_as_the_job_may_have_ended(story: Story) -> None:
    story.promise("f/1", H1)
    again = story.submit("f/1")
    story.work("f/1", H1)
    story.ack(again, H2)
    story.work("f/1", H2)
    assert fine(story)


def test_a_job_that_is_given_out_while_another_has_its_key_breaks_coalescing(story: Story) -> None:
    story.promise("f/1", H1)
    again = story.submit("f/1")
    story.run("f/1", H2)
    story.run("f/1", H1, "w2")
    story.done("f/1", H1, "w2")
    story.done("f/1", H2)
    story.ack(again, H2)
    broken(story, "coalescing_broken")


def test_an_answer_with_a_finished_job_while_another_has_the_key_breaks_coalescing(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.promise("f/1", H2)
    story.promise("f/1", H1)
    story.work("f/1", H2)
    text = broken(story, "coalescing_broken").coalescing_broken[0].text
    assert text == f"answered while {H2} had the key"


def test_an_answer_with_a_finished_job_is_fine_when_nothing_else_has_the_key(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.promise("f/1", H1)
    assert fine(story)


def test_keys_that_are_remembered_are_not_free_when_the_job_has_ended(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.wait(10)
    story.promise("f/1", H2)
    story.work("f/1", H2)
    broken(story, "coalescing_broken", remember_seconds=13)
    assert fine(story, remember_seconds=11)


def test_no_call_is_answered_with_a_job_of_long_ago(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)  # at 4 s
    story.wait(100)
    story.promise("f/1", H1)  # at 105 s
    text = broken(story, "lost", remember_seconds=99).lost[0].text
    assert text == "acknowledged 101 s after its end, and not run again"
    assert fine(story, remember_seconds=100)
    assert fine(story)  # nobody knows how long they are remembered
    story.work("f/1", H1)
    broken(story, "duplicated_unexplained", remember_seconds=99)


def test_jobs_without_a_unique_do_not_join(story: Story) -> None:
    story.promise("f/", H1)
    story.promise("f/", H2)
    story.work("f/", H1)
    story.work("f/", H2)
    assert fine(story)


def test_a_unique_may_end_with_a_slash(story: Story) -> None:
    story.promise("f/dir/", H1)
    story.promise("f/dir/", H2)
    story.work("f/dir/", H1)
    story.work("f/dir/", H2)
    broken(story, "coalescing_broken")


# ---- order


def in_a_row(story: Story, *handles: str) -> None:
    for number, handle in enumerate(handles, 1):
        story.promise(f"f/{handle}", handle, order=number)


def test_who_comes_first_is_given_out_first(story: Story) -> None:
    in_a_row(story, H1, H2, H3)
    story.work(f"f/{H2}", H2)
    story.work(f"f/{H1}", H1)
    story.work(f"f/{H3}", H3)
    text = broken(story, "order_broken").order_broken[0].text
    assert text == f"given out after {H2}, which was submitted later"


def test_another_worker_may_be_late_to_tell_of_the_first(story: Story) -> None:
    in_a_row(story, H1, H2)
    story.work(f"f/{H2}", H2, "w1")
    story.work(f"f/{H1}", H1, "w2")  # may have been given it long ago
    assert fine(story)


def test_another_worker_that_was_not_free_before_proves_it_too(story: Story) -> None:
    in_a_row(story, H1, H2, H3)
    story.run(f"f/{H1}", H1, "w2")
    story.run(f"f/{H3}", H3, "w1")
    story.done(f"f/{H1}", H1, "w2")
    story.run(f"f/{H2}", H2, "w2")
    story.done(f"f/{H3}", H3, "w1")
    story.done(f"f/{H2}", H2, "w2")
    broken(story, "order_broken")


def test_a_worker_that_takes_several_at_a_time_proves_nothing(story: Story) -> None:
    in_a_row(story, H1, H2, H3)
    story.run(f"f/{H3}", H3)
    story.run(f"f/{H2}", H2)
    story.done(f"f/{H3}", H3)
    story.run(f"f/{H1}", H1)
    story.done(f"f/{H1}", H1)
    story.done(f"f/{H2}", H2)
    assert fine(story)


def test_a_run_that_was_cut_off_does_not_make_its_worker_one_of_several_at_a_time(story: Story) -> None:
    story.promise("f/0", "H:a:3.2.1")
    story.run("f/0", "H:a:3.2.1")
    story.heal(story.fault("kill w1", "w1"))
    story.work("f/0", "H:a:3.2.1", "w2")
    story.wait(10)
    in_a_row(story, H1, H2, H3)
    story.work(f"f/{H2}", H2)
    story.work(f"f/{H1}", H1)
    story.work(f"f/{H3}", H3)
    assert found(story.check()) == {"duplicated_explained": 1, "order_broken": 1}


def test_jobs_without_a_unique_have_an_order_whatever_the_priorities_of_others(story: Story) -> None:
    story.promise("f/", H1, order=1)
    story.promise("f/", H2, order=2)
    story.promise("f/", ELSEWHERE, priority="high")
    for handle in (H2, H1, ELSEWHERE):
        story.work("f/", handle)
    broken(story, "order_broken")


def test_submits_at_the_same_time_have_no_order(story: Story) -> None:
    first = story.submit("f/1", order=1)
    second = story.submit("f/2", order=2)
    story.ack(first, H1)
    story.ack(second, H2)
    story.work("f/2", H2)
    story.work("f/1", H1)
    assert fine(story)


@pytest.mark.parametrize(
    "other", [("f/2", "H:a:2.2.2", "normal", 2), ("g/2", H2, "normal", 2), ("f/2", H2, "normal", 0)]
)
def test_other_slots_other_functions_and_those_who_do_not_mind_have_no_order(
    story: Story, other: tuple[str, str, str, int]
) -> None:
    key, handle, priority, order = other
    story.promise("f/1", H1, order=1)
    story.promise(key, handle, priority=priority, order=order)
    story.work(key, handle)
    story.work("f/1", H1)
    assert fine(story)


def test_a_higher_priority_goes_first(story: Story) -> None:
    story.promise("f/0", H3, order=1)
    story.run("f/0", H3)
    story.promise("f/1", H1, priority="low", order=1)
    story.promise("f/2", H2, priority="high", order=2)
    story.done("f/0", H3)
    story.work("f/1", H1)
    story.work("f/2", H2)
    text = broken(story, "order_broken").order_broken[0].text
    assert text == f"given out after {H1}, which has a lower priority"


def test_a_lower_priority_may_be_given_out_before_a_higher_comes(story: Story) -> None:
    story.promise("f/0", H3, order=1)
    story.promise("f/1", H1, priority="low", order=1)
    story.work("f/0", H3)
    call = story.submit("f/2", priority="high", order=2)
    story.run("f/1", H1)
    story.ack(call, H2)
    story.done("f/1", H1)
    story.work("f/2", H2)
    assert fine(story)


def test_who_may_have_been_given_out_and_lost_is_excused(story: Story) -> None:
    story.leads("a", 1, 2)
    in_a_row(story, H1, H2)
    story.fault("kill w9", "w9")
    story.promise("f/9", H3)
    story.work("f/9", H3, "w9")
    story.work(f"f/{H2}", H2)
    story.work(f"f/{H1}", H1)
    assert fine(story)


def test_a_fault_of_another_node_excuses_nobody(story: Story) -> None:
    story.leads("a", 1, 2)
    in_a_row(story, H1, H2)
    story.fault("kill b", "b")
    story.work(f"f/{H2}", H2)
    story.work(f"f/{H1}", H1)
    broken(story, "order_broken")


def test_a_retry_has_no_place_in_the_queue(story: Story) -> None:
    in_a_row(story, H1, H2)
    story.run(f"f/{H1}", H1)
    story.fault("kill w1", "w1")
    story.work(f"f/{H2}", H2, "w2")
    story.work(f"f/{H1}", H1, "w2")
    assert found(story.check()) == {"duplicated_explained": 1}


# ---- split


def test_two_leaders_in_one_epoch_are_a_split(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.leads("a", 1, 2)
    story.leads("a", 1, 2)
    assert fine(story)
    story.leads("b", 1, 2)
    assert broken(story, "split").split[0].text == "slot 1, epoch 2: a and b lead it"


def test_another_leader_in_another_epoch_or_slot_is_none(story: Story) -> None:
    story.promise("f/1", H1)
    story.work("f/1", H1)
    story.leads("a", 1, 2)
    story.leads("b", 1, 3)
    story.leads("b", 2, 2)
    assert fine(story)


def test_handles_of_two_nodes_in_one_epoch_are_a_split(story: Story) -> None:
    story.promise("f/1", "H:a:1.2.1")
    story.promise("f/2", "H:b:1.2.1")
    story.work("f/1", "H:a:1.2.1")
    story.work("f/2", "H:b:1.2.1")
    broken(story, "split")


def test_a_handle_of_who_does_not_lead_is_a_split(story: Story) -> None:
    story.leads("b", 1, 2)
    story.leads("a", 1, 1)
    story.promise("f/1", H1)
    story.work("f/1", H1)
    broken(story, "split")


def test_any_node_may_pass_on_an_acknowledgement(story: Story) -> None:
    for number, node in enumerate("abc"):
        story.ack(story.submit(f"f/{number}"), f"H:a:1.2.{number}", node)
        story.work(f"f/{number}", f"H:a:1.2.{number}")
    assert fine(story)


def test_one_prefix_for_all_nodes_is_no_split(story: Story) -> None:
    story.leads("a", 1, 2)
    story.promise("f/1", "jobs:1.2.1")
    story.work("f/1", "jobs:1.2.1")
    assert fine(story)


def test_a_handle_of_a_node_of_which_nothing_else_tells_is_a_split(story: Story) -> None:
    story.leads("b", 1, 2)
    story.promise("f/1", H1)
    story.work("f/1", H1)
    assert fine(story)  # it may be the prefix of all nodes
    story.leads("b", 3, 2)
    story.promise("f/2", "H:b:3.2.1")
    story.work("f/2", "H:b:3.2.1")
    assert broken(story, "split").split[0].text == "slot 1, epoch 2: a and b lead it"


def test_a_handle_of_an_unknown_node_in_an_epoch_whose_leader_is_not_known_is_no_split(story: Story) -> None:
    story.leads("b", 3, 2)
    story.promise("f/2", "H:b:3.2.1")
    story.work("f/2", "H:b:3.2.1")
    story.promise("f/1", H1)
    story.work("f/1", H1)
    assert fine(story)


def test_one_handle_for_two_jobs_is_a_split(story: Story) -> None:
    story.promise("f/1", H1)
    story.promise("f/2", H1)
    story.work("f/1", H1)
    broken(story, "split")


def test_one_handle_for_two_jobs_without_a_unique_is_a_split(story: Story) -> None:
    story.promise("f/", H1)
    story.promise("f/", H1)
    story.work("f/", H1)
    assert broken(story, "split").split[0].text == f"{H1} is f/, and it is another f/"


def test_an_old_epoch_that_acknowledges_a_job_without_a_unique_is_a_split(story: Story) -> None:
    story.promise("f/", "H:a:1.2.1")
    story.promise("f/", "H:b:1.3.1")
    story.promise("f/", "H:a:1.2.9")
    for handle in ("H:a:1.2.1", "H:b:1.3.1", "H:a:1.2.9"):
        story.work("f/", handle)
    broken(story, "split")


def test_an_old_epoch_that_still_acknowledges_is_a_split(story: Story) -> None:
    story.promise("f/1", "H:b:1.3.1")
    story.promise("f/2", "H:a:1.2.9")
    story.work("f/1", "H:b:1.3.1")
    story.work("f/2", "H:a:1.2.9")
    assert broken(story, "split").split[0].text == "made in epoch 2 after epoch 3 had acknowledged"


def test_an_old_epoch_may_be_heard_of_late(story: Story) -> None:
    old = story.submit("f/2")
    story.promise("f/1", "H:b:1.3.1")
    story.ack(old, "H:a:1.2.9")
    story.promise("f/2", "H:a:1.2.9")  # and its job is joined in the new one
    story.work("f/1", "H:b:1.3.1")
    story.work("f/2", "H:a:1.2.9")
    assert fine(story)


def test_a_job_that_an_unanswered_call_made_in_an_old_epoch_is_no_split(story: Story) -> None:
    story.give_up(story.submit("f/2"))
    story.promise("f/1", "H:b:1.3.1")
    story.promise("f/2", "H:a:1.2.9")
    story.work("f/1", "H:b:1.3.1")
    story.work("f/2", "H:a:1.2.9")
    assert fine(story)


# ---- times


def test_a_gap_is_the_time_without_acknowledgements_while_somebody_waits(story: Story) -> None:
    story.promise("f/1", H1)  # 1 s .. 2 s
    story.wait(50)
    call = story.submit("f/2")  # at 53 s
    story.wait(5)
    other = story.submit("f/3")
    story.ack(call, H2)  # at 60 s
    story.ack(other, H3)
    for handle, key in ((H1, "f/1"), (H2, "f/2"), (H3, "f/3")):
        story.work(key, handle)
    verdict = story.check()
    assert verdict.longest_gap_seconds == {1: 7.0}
    assert verdict.gaps == [Gap(1, 1.0, 1.0), Gap(1, 53.0, 7.0), Gap(1, 60.0, 1.0)]


def test_one_who_tries_again_at_once_still_waits(story: Story) -> None:
    story.promise("f/1", H1)
    for _ in range(4):
        story.refuse(story.submit("f/1"))  # from 3 s to 10 s
    story.promise("f/1", H1)  # until 12 s
    assert story.check().longest_gap_seconds == {1: 9.0}


def test_nobody_waits_between_two_tries_that_are_far_apart(story: Story) -> None:
    story.promise("f/1", H1)
    story.refuse(story.submit("f/1"))  # from 3 s to 4 s
    story.wait(60)
    story.promise("f/1", H1)  # until 66 s
    assert story.check().longest_gap_seconds == {1: 1.0}


def test_who_waits_at_the_end_waits_until_the_end(story: Story) -> None:
    story.promise("f/1", H1)
    story.submit("f/1")  # at 3 s
    story.wait(30)
    story.history.note("the end")
    assert story.check().longest_gap_seconds == {1: 30.0}


def recoveries(story: Story) -> dict[str, float | None]:
    return {fault.text: seconds for fault, seconds in story.check().recoveries}


def test_a_fault_is_over_with_the_last_wait_that_it_overlapped_where_it_struck(story: Story) -> None:
    story.leads("a", 1, 2)
    story.leads("a", 3, 2)
    story.leads("b", 2, 2)
    waiting = story.submit("f/1")  # in slot 1
    fault = story.fault("kill a", "a")  # at 2 s
    story.promise("f/3", "H:a:3.2.1")  # it takes a moment to die
    story.ack(waiting, H1)  # at 5 s
    story.promise("f/2", "H:b:2.2.2")
    call = story.submit("f/4")  # at 8 s, in slot 1
    other = story.submit("f/5")
    story.heal(fault)  # at 10 s
    story.wait(20)
    story.ack(call, "H:b:1.3.1")  # at 31 s
    story.ack(other, "H:b:2.2.3")
    story.promise("f/6", "H:b:1.3.2")  # after it
    assert recoveries(story) == {"kill a": 29.0}


def test_a_wait_in_another_slot_is_not_that_of_a_fault(story: Story) -> None:
    story.leads("a", 1, 2)
    story.leads("b", 2, 2)
    story.promise("f/1", H1)
    story.fault("kill a", "a")
    story.fault("kill w1", "w1")
    story.run("f/0", "H:a:1.2.0", "w1")
    story.promise("f/2", "H:b:2.2.2")
    assert recoveries(story) == {"kill a": None}  # of workers nobody waits for acknowledgements


def test_a_wait_of_every_day_is_not_that_of_a_fault(story: Story) -> None:
    story.leads("a", 1, 2)
    for number in range(2):
        call = story.submit(f"f/{number}")
        fault = story.history.fault(f"fault {number}", "a")
        story.wait(0.09 + 0.02 * number)
        story.history.ack(call, handle=f"H:a:1.2.{number}")
        story.history.healed(fault)
    assert recoveries(story) == {"fault 0": None, "fault 1": pytest.approx(0.11)}
    assert story.check().gaps == []


def test_a_fault_of_a_node_that_leads_nothing_is_not_noticed(story: Story) -> None:
    story.leads("a", 1, 2)
    call = story.submit("f/1")
    story.heal(story.fault("kill c", "c"))
    story.ack(call, H1)
    assert recoveries(story) == {"kill c": None}


@pytest.mark.parametrize("touched", ["etcd", "all"])
def test_a_fault_of_all_is_noticed_in_any_slot(story: Story, touched: str) -> None:
    story.leads("a", 1, 2)
    call = story.submit("f/1")  # at 1 s
    story.fault("outage", touched)
    story.ack(call, "H:b:7.1.1")  # at 3 s
    assert recoveries(story) == {"outage": 1.0}


def test_a_fault_of_a_node_is_noticed_in_any_slot_when_nothing_tells_who_leads(story: Story) -> None:
    call = story.submit("f/1")
    story.fault("kill a", "a")
    story.ack(call, "handle")
    assert recoveries(story) == {"kill a": 1.0}


def test_a_wait_of_a_submit_that_nobody_answered_may_have_been_anywhere(story: Story) -> None:
    story.leads("a", 1, 2)
    story.fault("kill a", "a")  # at 1 s
    call = story.submit("f/1")
    story.wait(10)
    story.give_up(call)  # at 13 s
    assert recoveries(story) == {"kill a": 12.0}


def test_latencies_are_those_of_acknowledged_calls(story: Story) -> None:
    for number in range(100):
        call = story.submit(f"f/{number}")
        story.wait(number)
        story.ack(call, f"H:a:1.2.{number:x}")
    verdict = story.check()
    assert verdict.ack_seconds_p50 == 51
    assert verdict.ack_seconds_p99 == 100
    assert verdict.ack_seconds_max == 100


def test_events_that_belong_to_nothing_are_left_out() -> None:
    history = History()
    history.ack(7, handle=H1)
    history.unknown(8)
    history.result(9)
    history.healed(3)
    history.add(Kind.NOTE, text="hello")
    assert check(history, drained=True).problems == ["nothing was submitted: this proves nothing"]
