import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from cluster.drill.checker import Finding, Verdict, check
from cluster.drill.history import History
from cluster.drill.report import FINDINGS_SHOWN, Picture, as_html, as_json, show, summary
from cluster.drill.timeline import BUCKETS_MAX, clock, count, counts_of, span
from cluster.drill.words import MEANINGS, judgement
from tests.drill.stories import Story

H1, H2 = "H:a:1.2.1", "H:a:1.2.2"


@pytest.fixture
def story() -> Story:
    """A bad day: one lost, one run twice for no reason, one run twice because its worker was killed."""
    story = Story()
    story.leads("a", 1, 2)
    story.promise("f/lost", "H:a:1.2.9")
    story.promise("f/1", H1)
    story.promise("f/2", H2)
    story.work("f/1", H1)
    story.work("f/1", H1, "w2")
    story.wait(60)
    story.run("f/2", H2, "w1")
    fault = story.history.fault("kill", "w1", note="kill -9")
    story.work("f/2", H2, "w2")
    story.heal(fault)
    story.leads("b", 1, 3)
    story.give_up(story.submit("f/3"))
    story.history.note("the end")
    return story


class Page(HTMLParser):
    """Tags must be closed in their order; text and addresses are kept."""

    VOID = frozenset({"meta", "rect", "circle", "line", "path", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)


def page_of(history: History, verdict: Verdict, title: str = "A drill") -> tuple[Page, str]:
    html = as_html(history, verdict, title=title)
    svg = re.search(r"<svg.* viewBox=.*?</svg>", html, re.DOTALL)
    assert svg is not None
    ElementTree.fromstring(svg[0])  # well-formed, for whoever cuts it out
    return Page(html), html


def test_the_summary_says_all_that_counts_in_one_line(story: Story) -> None:
    assert summary(story.check()) == (
        "Jobs were lost: acknowledged 3, done 2, lost 1, unexpected 0, run twice 2 (1 unexplained), "
        "longest wait of a slot 1.00 s"
    )


def test_the_summary_names_other_broken_promises_only_when_they_are(story: Story) -> None:
    story.leads("c", 1, 3)
    assert "split 1" in summary(story.check())


def test_the_text_tells_every_problem_and_ends_with_the_summary(story: Story) -> None:
    out = io.StringIO()
    verdict = story.check()
    show(verdict, Console(file=out, width=1000))
    lines = out.getvalue().splitlines()
    assert lines[-1].strip() == summary(verdict)
    assert [line.strip() for line in lines if line.startswith("problem: ")] == [
        f"problem: {problem}" for problem in verdict.problems
    ]


def test_it_says_when_no_order_was_checked(story: Story) -> None:
    def shown() -> tuple[str, str]:
        out = io.StringIO()
        show(story.check(), Console(file=out, width=1000))
        line = next(line for line in out.getvalue().splitlines() if "order broken" in line)
        return line.lower(), page_of(story.history, story.check())[0].words.lower()

    assert all("not checked" in text for text in shown())
    story.promise("f/ordered", "H:a:1.3.1", order=1)
    assert not any("not checked" in text for text in shown())
    assert json.loads(as_json(story.check()))["ordered"] == 1


def test_a_fault_that_kept_nobody_waiting_was_not_noticed(story: Story) -> None:
    story.fault("kill -9", "a")
    story.fault("kill -9", "b")
    story.promise("f/late", "H:b:1.3.2")
    out = io.StringIO()
    show(story.check(), Console(file=out, width=1000))
    rows = [line.split() for line in out.getvalue().splitlines() if line.startswith("kill -9")]
    assert rows == [["kill", "-9", "a", "not", "noticed"], ["kill", "-9", "b", "2.00", "s"]]
    page, _ = page_of(story.history, story.check())
    assert "not noticed" in page.words
    assert [each["seconds"] for each in json.loads(as_json(story.check()))["recoveries"]] == [None, 2.0]


def test_brackets_of_users_are_no_markup_in_the_text() -> None:
    story = Story()
    story.fault("[bold]kill[/bold]", "[red]a[/]")
    story.promise("f/[/]", H1)
    out = io.StringIO()
    show(story.check(), Console(file=out, width=1000))
    assert "[bold]kill[/bold]" in out.getvalue()
    assert "f/[/]" in out.getvalue()


def test_the_json_holds_the_whole_verdict(story: Story) -> None:
    record = json.loads(as_json(story.check()))
    assert record["valid"] is False
    assert record["counts"]["lost"] == 1
    assert record["lost"][0]["key"] == "f/lost"
    assert record["duplicated_explained"][0]["fault"] == 1
    assert record["recoveries"] == []
    assert record["problems"] == story.check().problems


def test_the_page_shows_faults_findings_and_problems(story: Story) -> None:
    page, _ = page_of(story.history, story.check())
    for words in (
        "Jobs were lost",
        "A drill",
        "f/lost",
        "acknowledged, never run",
        "kill -9",
        "the end",
        *["w1", "w2"],
    ):
        assert words in page.words
    assert "slots changed their leader" in page.words


def test_the_page_of_a_valid_history_says_so() -> None:
    story = Story()
    story.promise("f/1", H1)
    story.work("f/1", H1)
    page, _ = page_of(story.history, story.check())
    assert "Nothing was lost" in page.words
    assert "Every job that was acknowledged was done." in page.words


def test_only_figures_that_say_something_have_a_tile_and_each_word_is_explained(story: Story) -> None:
    good = Story()
    good.promise("f/1", H1, order=1)
    good.work("f/1", H1)
    html = page_of(good.history, good.check())[1]
    assert re.findall(r"<b>0</b><span>(.*?)</span>", html) == ["lost"]
    assert "Looked for, and none found: refused; of unknown end; unexpected; " in html
    assert "not checked" not in html.lower()
    html = page_of(story.history, story.check())[1]
    assert "<b>1</b><span>lost</span>" in html
    assert "<b>1</b><span>duplicated, unexplained</span>" in html
    shown = re.findall(r'class="tile.*?<span>(.*?)</span>', html)
    assert set(shown) <= set(re.findall(r"<dt>(.*?)</dt>", html)) == set(MEANINGS)


def test_the_first_words_say_how_it_ended() -> None:
    finding = Finding(0.0, "f/1", H1, "why")
    assert judgement(Verdict()) == "Nothing was lost"
    assert judgement(Verdict(problems=["p"], lost=[finding])) == "Jobs were lost"
    assert judgement(Verdict(problems=["p"], split=[finding])) == "A promise was broken"
    assert judgement(Verdict(problems=["nothing was submitted"])) == "Nothing is proved"


def test_what_the_jobs_made_can_be_in_the_page() -> None:
    story = Story()
    story.promise("f/1", H1)
    html = as_html(story.history, story.check(), title="A demo", pictures=[Picture('a"b.jpg', b"jpeg")])
    page = Page(html)
    assert ("src", "data:image/jpeg;base64,anBlZw==") in page.attributes
    assert ("alt", 'a"b.jpg') in page.attributes


def test_seconds_can_be_counted_from_another_moment() -> None:
    now = 100.0
    history = History(lambda: now)
    history.note("before")
    now = 103.0
    history.note("meanwhile")

    history.begin_at(102.0)

    assert [event.at for event in history.events] == [0.0, 1.0]
    assert history.now() == 1.0


def test_the_page_needs_nothing_else(story: Story) -> None:
    page, html = page_of(story.history, story.check())
    assert not {"script", "link", "img", "iframe", "image", "use", "a"} & set(page.tags)
    assert not {"src", "href", "onclick", "onload"} & {name for name, _ in page.attributes}
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_what_others_named_is_escaped() -> None:
    evil = '"><script>alert(1)</script>\x00\x1b[31m&amp;'
    story = Story()
    story.fault(evil, evil)
    story.leads(evil, 1, 2)
    story.promise(f"f/{evil}", f"H:{evil}:1.2.1")
    story.work("f/other", H2, evil)
    story.work("f/other", H2, evil)
    story.history.note(evil)
    page, html = page_of(story.history, story.check(), title=evil)
    assert "script" not in page.tags
    assert "<script" not in html
    assert "\x00" not in html
    assert "\x1b" not in html
    assert "<script>alert(1)</script>" in page.words


def test_an_empty_history_has_a_page_too() -> None:
    page, _ = page_of(History(), check(History(), drained=True))
    assert "nothing was submitted" in page.words


def test_a_history_with_one_event_has_a_page_too() -> None:
    history = History(lambda: 0.0)
    history.submit("f/1")
    page, _ = page_of(history, check(history, drained=False))
    assert "Nothing is proved" in page.words


def test_a_day_of_troubles_makes_no_more_than_a_megabyte() -> None:
    now = 0.0
    history = History(lambda: now)
    for number in range(12_000):
        now += 86_400 / 12_000
        slot = number % 1024
        call = history.submit(f"drill.echo/{number}", order=number + 1)
        now += 0.6
        if number % 3 == 0:
            history.unknown(call, "timed out")
        elif number % 3 == 1:
            history.ack(call, handle=f"H:a:{slot:x}.1.{number:x}")  # and lost
        if number % 7 == 0:
            history.run(f"drill.echo/{number}x", worker=f"w{number}", handle=f"H:a:{slot:x}.1.{number:x}x")
        if number % 20 == 0:
            history.healed(history.fault("kill", f"a{number}", f"a{number}>b", note="x" * 500))
            history.note("a long note " * 20)
    verdict = check(history, drained=True)
    assert len(verdict.lost) > FINDINGS_SHOWN
    _, html = page_of(history, verdict)
    assert len(html) < 1_000_000
    assert len(counts_of(history, verdict)) <= BUCKETS_MAX


def test_buckets_count_what_happened_in_them(story: Story) -> None:
    verdict = story.check()
    counts = counts_of(story.history, verdict)
    assert counts.size == 0.25
    assert sum(counts.acked) == 3
    assert sum(counts.ended) == 3
    assert sum(counts.refused) == 1
    assert sum(counts.changed) == 1
    assert [bucket * counts.size for bucket, slots in enumerate(counts.silent) if slots][:2] == [1.0, 1.25]
    assert [len(waits) for waits in counts.waits if waits] == [1, 1, 1]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (7.5, "7.5 s"), (59, "59 s"), (60, "1:00"), (200, "3:20"), (3800, "1:03:20")],
)
def test_times_of_day_are_short(seconds: float, told: str) -> None:
    assert clock(seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 ms"), (0.0023, "2.3 ms"), (0.45, "450 ms"), (4.81, "4.81 s"), (125, "2 min 5 s")],
)
def test_spans_have_three_digits_or_so(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0"), (2.5, "2.5"), (4310, "4,310"), (1_234_567, "1.2M"), (12_345_678, "12M")]
)
def test_counts_are_short(number: float, told: str) -> None:
    assert count(number) == told
