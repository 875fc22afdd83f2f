"""A history as one picture: what was done to the fleet, above what its users saw of it, on one time axis.

Rows from top to bottom: a lane for each thing that faults touched; slots that changed their leader; slots
whose submits waited without an answer; acknowledgements and ends per second; how long acknowledgements took;
a lane for each kind of finding. Everything is counted in buckets, so the picture of millions of jobs is as
small as that of a hundred. Plain SVG; its colours are CSS variables of the page around it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from cluster.drill.checker import Finding, Verdict
from cluster.drill.history import Event, History, Kind

BUCKETS_MAX: Final = 400
BUCKET_SECONDS: Final = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
TICK_SECONDS: Final = (
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    6 * 3600,
    24 * 3600,
)
LANES_MAX: Final = 20  # of faults; what is left shares the last
BURST: Final = 1.5  # times what 19 of 20 buckets have at most: there the axis of a rate ends
LINES_MAX: Final = 60  # from broken promises up through the other rows
BARS_MAX: Final = 600  # of faults, in all lanes
MANY_BARS: Final = 30  # more are drawn paler through the other rows
NOTES_MAX: Final = 100

WIDTH: Final = 1200
LEFT: Final = 186
RIGHT: Final = 54
LANE: Final = 20
CHART: Final = 92
SMALL_CHART: Final = 44
SPACE: Final = 16
CHARACTER: Final = 6.6  # about the width of one, in the labels

# Each kind of finding: its field in the verdict, its lane, and whether it breaks a promise.
FINDINGS: Final = (
    ("lost", "lost", True),
    ("unexpected", "unexpected", True),
    ("duplicated_unexplained", "duplicated, unexplained", True),
    ("coalescing_broken", "coalescing broken", True),
    ("order_broken", "order broken", True),
    ("split", "split", True),
    ("duplicated_explained", "duplicated, explained", False),
)


def clean(text: str) -> str:
    """For HTML: escaped, without characters that no document may hold."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def clock(seconds: float) -> str:
    """On the time axis: 7.5 s, 3:20, 1:03:20."""
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """How long something took: 2.3 ms, 450 ms, 4.81 s, 2 min 5 s."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def count(number: float) -> str:
    """Of jobs, slots or a rate: 12, 4,310, 1.2M."""
    if number >= 10_000_000:
        return f"{number / 1e6:.0f}M"
    if number >= 1_000_000:
        return f"{number / 1e6:.1f}M"
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def fault_name(event: Event) -> str:
    return event.text.partition(": ")[0] or "fault"


@dataclass(slots=True)
class Bar:
    """A fault in its lane."""

    begun: float
    ended: float
    event: Event
    healed: bool


@dataclass(slots=True)
class Counts:
    """A history by buckets."""

    seconds: float  # of the history
    size: float  # seconds of a bucket
    acked: list[int]
    refused: list[int]  # or of unknown end
    ended: list[int]
    waits: list[array[float]]
    changed: list[int]  # slots that were led by another node than before
    silent: list[int] = field(default_factory=list)  # slots whose submits waited for an acknowledgement
    bars: list[Bar] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.acked)

    def bucket(self, at: float) -> int:
        return min(len(self.acked) - 1, max(0, int(at / self.size)))


def counts_of(history: History, verdict: Verdict) -> Counts:
    """Everything that is drawn of a history."""
    seconds = max((event.at for event in history.events), default=0.0)
    size = next((size for size in BUCKET_SECONDS if seconds / size <= BUCKETS_MAX), seconds / BUCKETS_MAX)
    length = max(1, math.ceil(seconds / size))
    counts = Counts(
        seconds,
        size,
        acked=[0] * length,
        refused=[0] * length,
        ended=[0] * length,
        waits=[array("d") for _ in range(length)],
        changed=[0] * length,
    )
    begun: dict[int, float] = {}
    leader: dict[int, str] = {}
    open_faults: dict[int, Bar] = {}
    for event in history.events:
        kind = event.kind
        bucket = counts.bucket(event.at)
        if kind is Kind.SUBMIT:
            begun[event.call] = event.at
        elif kind is Kind.ACK:
            counts.acked[bucket] += 1
            if (at := begun.pop(event.call, None)) is not None:
                counts.waits[bucket].append(event.at - at)
        elif kind is Kind.REFUSED or kind is Kind.UNKNOWN:
            counts.refused[bucket] += 1
            begun.pop(event.call, None)
        elif kind is Kind.DONE or kind is Kind.FAILED:
            counts.ended[bucket] += 1
        elif kind is Kind.LEADS:
            if leader.get(event.slot, event.node) != event.node:
                counts.changed[bucket] += 1
            leader[event.slot] = event.node
        elif kind is Kind.FAULT:
            bar = open_faults[event.fault] = Bar(event.at, seconds, event, healed=False)
            counts.bars.append(bar)
        elif kind is Kind.HEALED:
            if (healed := open_faults.pop(event.fault, None)) is not None:
                healed.ended, healed.healed = event.at, True
        elif kind is Kind.NOTE:
            counts.notes.append(event)
    silent: list[set[int]] = [set() for _ in range(length)]
    for gap in verdict.gaps:
        for bucket in range(counts.bucket(gap.begun), counts.bucket(gap.begun + gap.seconds) + 1):
            silent[bucket].add(gap.slot)
    counts.silent = [len(slots) for slots in silent]
    return counts


class Timeline:
    """Draws downwards: each row begins where the last one ended."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._seconds = max(counts.seconds, counts.size)
        self._parts: list[str] = []
        self._y = 8.0

    def svg(self, verdict: Verdict) -> str:
        counts = self._counts
        self._fault_lanes()
        top = self._y
        size = f"in {counts.size:g} s"
        if any(counts.changed):
            told = f"slots changed their leader {size}"
            self._small("leader changes", "slots", counts.changed, "change", told)
        self._small("no acknowledgement", "slots waiting", counts.silent, "bad", "slots waited in vain")
        self._rates("acknowledged", counts.acked, "ack", counts.refused)
        self._rates("ended", counts.ended, "end", ())
        self._latencies()
        self._findings(verdict)
        self._notes()
        self._axis()
        bands = "".join((*self._bands(top), *self._plumb_lines(top, verdict)))
        height = self._y
        label = "Faults, acknowledgements, ends and findings over time"
        style = ' class="many"' if len(counts.bars) > MANY_BARS else ""
        return (
            f'<svg{style} viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">'
            f"{bands}{''.join(self._parts)}</svg>"
        )

    # ---- coordinates

    def _x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, seconds / self._seconds))

    def _bucket_x(self, bucket: int) -> tuple[float, float]:
        """Left side and width."""
        x = self._x(bucket * self._counts.size)
        return x, self._x((bucket + 1) * self._counts.size) - x

    def _text(self, x: float, y: float, text: str, style: str = "", anchor: str = "") -> None:
        anchor = f' text-anchor="{anchor}"' if anchor else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}"{anchor}>{clean(text)}</text>')

    def _label(self, text: str, second: str = "", *, height: float = LANE) -> None:
        """At the left of the row that begins here."""
        y = self._y + (14 if second or height > LANE else height / 2 + 4)
        self._text(LEFT - 12, y, _cut(text, 22), "label", "end")
        if second:
            self._text(LEFT - 12, y + 14, second, "dim", "end")

    def _line(self, y: float, style: str = "grid") -> None:
        self._parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="{style}"/>'
        )

    # ---- rows

    def _fault_lanes(self) -> None:
        lanes: dict[str, list[Bar]] = {}
        bars = sorted(self._counts.bars, key=lambda bar: bar.begun)[:BARS_MAX]
        for bar in bars:
            name = ", ".join(bar.event.touches) or "–"
            if name not in lanes and len(lanes) >= LANES_MAX - 1:
                name = "others"
            lanes.setdefault(name, []).append(bar)
        if not lanes:
            self._label("faults")
            self._text(LEFT + 6, self._y + LANE / 2 + 4, "none", "dim")
            self._y += LANE
        for name in sorted(lanes, key=_lane_order):
            self._label(name)
            self._line(self._y + LANE / 2)
            row = lanes[name]
            for position, bar in enumerate(row):
                follows = self._x(row[position + 1].begun) if position + 1 < len(row) else WIDTH
                self._bar(bar, follows)
            self._y += LANE
        self._y += SPACE / 2

    def _bar(self, bar: Bar, follows: float) -> None:
        x, end = self._x(bar.begun), self._x(bar.ended)
        width = max(3.0, end - x)
        name = fault_name(bar.event)
        until = f"{clock(round(bar.ended, 1))} ({span(bar.ended - bar.begun)})" if bar.healed else "the end"
        told = f"{bar.event.text}: {clock(round(bar.begun, 1))} to {until}; on {', '.join(bar.event.touches)}"
        self._rect(x, self._y + 3, width, LANE - 6, f"fault {_style(bar.event)}", told)
        needed = len(name) * CHARACTER + 10
        baseline = self._y + LANE / 2 + 4
        if needed <= width:
            self._text(x + 5, baseline, name, "on")
        elif x + width + needed <= min(follows, WIDTH - 4):
            self._text(x + width + 5, baseline, name, "beside")
        elif x - needed > LEFT and follows >= WIDTH:
            self._text(x - 5, baseline, name, "beside", "end")

    def _bands(self, top: float) -> Iterator[str]:
        """Each fault, faintly, behind all that is below its lane."""
        for bar in self._counts.bars[:BARS_MAX]:
            x = self._x(bar.begun)
            width = max(1.0, self._x(bar.ended) - x)
            yield (
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{self._y - top - 22:.1f}" '
                f'class="band {_style(bar.event)}"/>'
            )

    def _plumb_lines(self, top: float, verdict: Verdict) -> Iterator[str]:
        """When promises were broken, through all rows."""
        findings = (finding for name, _, bad in FINDINGS if bad for finding in getattr(verdict, name))
        for bucket in sorted({self._counts.bucket(finding.at) for finding in findings})[:LINES_MAX]:
            x, width = self._bucket_x(bucket)
            yield f'<path d="M{x + width / 2:.1f} {top:.1f}V{self._y - 22:.1f}" class="plumb"/>'

    def _small(self, label: str, unit: str, values: Sequence[int], style: str, told: str) -> None:
        most = max(values)
        self._label(label, f"{unit}, up to {count(most)}" if most else unit, height=SMALL_CHART)
        bottom = self._y + SMALL_CHART
        self._line(bottom, "base")
        if most:
            self._bars(values, most, bottom, SMALL_CHART - 6, style)
            self._tips(lambda b: f"{count(values[b])} {told}" if values[b] else "", SMALL_CHART)
        else:
            self._text(LEFT + 6, self._y + SMALL_CHART / 2 + 4, "none", "dim")
        self._y = bottom + SPACE

    def _rates(self, label: str, values: Sequence[int], style: str, bad: Sequence[int]) -> None:
        size = self._counts.size
        most_seen = max(max(values), max(bad, default=0)) / size
        usual = sorted(value for value in values if value) or [0]
        usual_most = usual[len(usual) * 95 // 100] / size
        # What waited is made good in one burst, beside which all else would look like nothing.
        top = min(most_seen, max(BURST * usual_most, max(bad, default=0) / size))
        self._label(label, f"per second, up to {count(most_seen)}", height=CHART)
        bottom = self._y + CHART
        ticks = _nice_ticks(top)
        most = ticks[-1] * size
        for tick in ticks:
            y = bottom - (CHART - 8) * tick / ticks[-1]
            self._line(y, "grid" if tick else "base")
            if tick:
                self._text(WIDTH - RIGHT + 4, y + 4, count(tick), "tick")
        self._area(values, most, bottom, CHART - 8, style)
        if any(bad):
            self._bars(bad, most, bottom, CHART - 8, "bad")

        def told(bucket: int) -> str:
            text = f"{count(values[bucket] / size)} {label} per second"
            return (
                f"{text}, {count(bad[bucket])} refused or timed out"
                if any(bad[bucket : bucket + 1])
                else text
            )

        self._tips(told, CHART)
        self._y = bottom + SPACE

    def _latencies(self) -> None:
        """The 99th of a hundred and the slowest, on a scale of powers of ten."""
        counts = self._counts
        slow = [_percentile(waits, 0.99) for waits in counts.waits]
        slowest = [max(waits, default=0.0) for waits in counts.waits]
        seen = [wait for wait in (*slow, *slowest) if wait > 0]
        self._label("acknowledged after", "p99, slowest", height=CHART)
        bottom = self._y + CHART
        low = math.floor(math.log10(max(1e-4, min(seen, default=1e-3))))
        high = max(low + 1, math.ceil(math.log10(max(max(seen, default=1e-3), 1e-4))))

        def height(seconds: float) -> float:
            share = (math.log10(max(seconds, 10.0**low)) - low) / (high - low)
            return (CHART - 8) * min(1.0, max(0.0, share))

        for power in range(low, high + 1):
            y = bottom - height(10.0**power)
            self._line(y, "base" if power == low else "grid")
            if power > low:
                self._text(WIDTH - RIGHT + 4, y + 4, _power(power), "tick")
        for bucket, seconds in enumerate(slowest):
            if seconds > 0:
                x, width = self._bucket_x(bucket)
                self._circle(x + width / 2, bottom - height(seconds), 1.6, "slowest")
        for begin, end in _stretches(slow):
            points = []
            for bucket in range(begin, end):
                x, width = self._bucket_x(bucket)
                points.append(f"{x + width / 2:.1f},{bottom - height(slow[bucket]):.1f}")
            if len(points) == 1:
                x = self._bucket_x(begin)[0]
                points.append(f"{x + self._bucket_x(begin)[1]:.1f},{points[0].split(',')[1]}")
            self._parts.append(f'<polyline points="{" ".join(points)}" class="slow"/>')
        self._tips(lambda b: f"p99 {span(slow[b])}, slowest {span(slowest[b])}" if slowest[b] else "", CHART)
        self._y = bottom + SPACE

    def _findings(self, verdict: Verdict) -> None:
        lanes = [(label, bad, getattr(verdict, name)) for name, label, bad in FINDINGS]
        for label, bad, findings in lanes:
            if findings:
                self._label(f"{label}")
                self._marks(findings, "bad" if bad else "mild")
                self._y += LANE
        if not any(bad and findings for _, bad, findings in lanes):
            self._label("broken promises")
            self._text(LEFT + 6, self._y + LANE / 2 + 4, "none", "good")
            self._y += LANE

    def _marks(self, findings: Iterable[Finding], style: str) -> None:
        y = self._y + LANE / 2
        self._line(y)
        by_bucket: dict[int, list[Finding]] = {}
        for finding in findings:
            by_bucket.setdefault(self._counts.bucket(finding.at), []).append(finding)
        for bucket, here in by_bucket.items():
            x, width = self._bucket_x(bucket)
            radius = min(8.5, 4.5 + math.log10(len(here)) * 2)
            first = here[0]
            told = f"{len(here)}: {first.key or first.handle} at {first.at:.2f} s, {first.text}"
            self._circle(x + width / 2, y, radius, f"mark {style}", _cut(told, 300))

    def _notes(self) -> None:
        notes = self._counts.notes[:NOTES_MAX]
        if not notes:
            return
        self._label("notes")
        for position, note in enumerate(notes):
            x = self._x(note.at)
            y = self._y
            self._parts.append(
                f'<path d="M{x:.1f} {y + 3:.1f}v14M{x:.1f} {y + 3:.1f}h7l-2 3.5l2 3.5h-7z" class="note">'
                f"<title>{clean(f'{clock(round(note.at, 1))}: {note.text}')}</title></path>"
            )
            follows = self._x(notes[position + 1].at) if position + 1 < len(notes) else WIDTH
            if x + 12 + len(note.text) * CHARACTER < follows - 4:
                self._text(x + 11, y + 13, note.text, "dim")
        self._y += LANE

    def _axis(self) -> None:
        self._line(self._y + 4, "base")
        step = next((tick for tick in TICK_SECONDS if self._seconds / tick <= 12), self._seconds)
        for number in range(int(self._seconds / step) + 1):
            x = self._x(number * step)
            self._parts.append(f'<path d="M{x:.1f} {self._y + 4:.1f}v5" class="base"/>')
            self._text(x, self._y + 22, clock(number * step), "tick", "middle")
        self._y += 28

    # ---- shapes

    def _rect(self, x: float, y: float, width: float, height: float, style: str, told: str = "") -> None:
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect {box} class="{style}"{_end("rect", told)}')

    def _circle(self, x: float, y: float, radius: float, style: str, told: str = "") -> None:
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
        self._parts.append(f'<circle {place} class="{style}"{_end("circle", told)}')

    def _bars(self, values: Sequence[int], most: float, bottom: float, height: float, style: str) -> None:
        for bucket, value in enumerate(values):
            if value:
                x, width = self._bucket_x(bucket)
                tall = max(2.0, height * value / most)
                self._rect(x, bottom - tall, max(1.0, width), tall, style)

    def _area(self, values: Sequence[int], most: float, bottom: float, height: float, style: str) -> None:
        steps = [f"M{LEFT} {bottom:.1f}"]
        for bucket, value in enumerate(values):
            x, width = self._bucket_x(bucket)
            steps.append(f"V{bottom - height * min(1.05, value / most):.1f}H{x + width:.1f}")
        self._parts.append(f'<path d="{"".join(steps)}V{bottom:.1f}z" class="area {style}"/>')

    def _tips(self, told: Callable[[int], str], height: float) -> None:
        """What the pointer is told over each bucket of the row that begins here."""
        for bucket in range(len(self._counts)):
            text = told(bucket)
            if text:
                x, width = self._bucket_x(bucket)
                when = clock(round(bucket * self._counts.size, 2))
                self._rect(x, self._y, width, height, "tip", f"{when}: {text}")


def _style(event: Event) -> str:
    """What kind of thing a fault touches."""
    touches = event.touches
    if "all" in touches:
        return "on-all"
    if any(touched == "etcd" or touched.endswith(">etcd") for touched in touches):
        return "on-etcd"
    if any(">" in touched for touched in touches):
        return "on-link"
    if touches and all(touched.startswith(("w", "client")) and len(touched) > 1 for touched in touches):
        return "on-worker"
    return "on-node"


_LANE_ORDER: Final = ("on-all", "on-node", "on-link", "on-etcd", "on-worker")


def _lane_order(name: str) -> tuple[bool, int, str]:
    style = _style(Event(0.0, Kind.FAULT, touches=tuple(name.split(", "))))
    return name == "others", _LANE_ORDER.index(style), name


def _end(shape: str, told: str) -> str:
    """Of a shape that may tell something to the pointer."""
    return f"><title>{clean(told)}</title></{shape}>" if told else "/>"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _percentile(waits: array[float], share: float) -> float:
    return sorted(waits)[min(len(waits) - 1, int(len(waits) * share))] if waits else 0.0


def _stretches(values: Sequence[float]) -> Iterator[tuple[int, int]]:
    """From and to: where there are values, without a hole."""
    begin: int | None = None
    for position, value in enumerate((*values, 0.0)):
        if value > 0 and begin is None:
            begin = position
        elif value <= 0 and begin is not None:
            yield begin, position
            begin = None


def _nice_ticks(top: float) -> list[float]:
    """0 and two to four more, the last not below `top`."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(top / step - 1e-9) + 1)]


def _power(power: int) -> str:
    return f"{10**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms"
