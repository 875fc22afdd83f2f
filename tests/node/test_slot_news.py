"""What the log is told of slots: one line for each story, however many slots it has."""

from __future__ import annotations

from cluster.node import slot_news
from cluster.node.slot_news import SlotEvent, SlotNews


def test_a_takeover_is_one_line_when_its_last_slot_is_served() -> None:
    news = SlotNews()
    for slot in range(512):
        news.gained(slot, slot_news.TOOK_OVER, "b", 10.0)
    news.served(range(500), 10.2)
    assert news.take(12.0) == []
    news.served(range(500, 512), 10.5)
    assert news.take(11.4) == []  # more may come
    assert news.take(11.5) == [SlotEvent("took over slots", {"slots": 512, "from_node": "b", "seconds": 0.5})]
    assert news.take(100.0) == []


def test_slots_that_come_swap_by_swap_are_one_story_and_others_are_theirs() -> None:
    news = SlotNews()
    for second in range(5):
        news.gained(second, slot_news.GOT, "b", second * 0.5)
        news.served([second], second * 0.5)
        news.gave(100 + second, slot_news.HANDED_OVER, "c", second * 0.5)
        assert news.take(second * 0.5) == []
    assert sorted(news.take(3.0)) == [
        SlotEvent("got slots", {"slots": 5, "from_node": "b", "seconds": 2.0}),
        SlotEvent("handed over slots", {"slots": 5, "to_node": "c", "seconds": 2.0}),
    ]


def test_slots_that_are_long_on_the_way_are_told_of_once_with_who_is_waited_for() -> None:
    news = SlotNews()
    news.gained(1, slot_news.TOOK_OVER, "b", 0.0)
    assert news.take(4.9, ["c"]) == []
    assert news.take(5.0, ["c"]) == [SlotEvent("slots cannot be served yet", {"slots": 1, "waits_for": "c"})]
    assert news.take(6.0, ["c"]) == []
    news.served([1], 8.0)
    assert news.take(9.0) == [SlotEvent("took over slots", {"slots": 1, "from_node": "b", "seconds": 8.0})]


def test_what_is_lost_on_the_way_is_waited_for_no_more() -> None:
    news = SlotNews()
    news.gained(1, slot_news.TOOK_OVER, "b", 0.0)
    news.gave(1, slot_news.LOST, "c", 1.0)
    assert [event.what for event in news.take(2.0)] == ["took over slots", slot_news.LOST]


def test_unavailable_slots_are_told_with_each_reason_and_once_more_when_they_are_back() -> None:
    news = SlotNews()
    news.unreachable(dict.fromkeys(range(1024), "start b or c"), 10.0)
    assert news.take(10.5) == []
    for now in (11.0, 20.0, 60.0):
        news.unreachable(dict.fromkeys(range(1024), "start b or c"), now)
        assert news.take(now) == (
            [SlotEvent("slots unavailable", {"slots": 1024, "reason": "start b or c"})] if now == 11.0 else []
        )
    news.unreachable({}, 70.0)
    assert news.take(71.0) == [SlotEvent("slots available again", {"slots": 1024, "seconds": 60.0})]


def test_what_was_unavailable_for_a_moment_only_is_no_news() -> None:
    news = SlotNews()
    news.unreachable({1: "start b"}, 10.0)
    news.unreachable({}, 10.5)
    assert news.take(20.0) == []


def test_of_very_many_reasons_the_greatest_are_told() -> None:
    news = SlotNews()
    news.unreachable({slot: f"start {slot % 20}" for slot in range(1024)}, 0.0)
    assert len(news.take(1.0)) == slot_news.REASONS_MAX


def test_refused_jobs_are_told_of_and_that_they_are_taken_again() -> None:
    news = SlotNews()
    news.refused("b does not answer", 1.0)
    news.refused(None, 31.0)
    assert news.take(31.0) == [
        SlotEvent("background jobs are refused", {"reason": "b does not answer"}),
        SlotEvent("background jobs are taken again", {"seconds": 30.0}),
    ]


def test_events_that_nobody_takes_are_bounded() -> None:
    news = SlotNews()
    for second in range(1000):
        news.refused("b" if second % 2 else None, float(second))
    assert len(news.take(1000.0)) == slot_news.EVENTS_MAX
