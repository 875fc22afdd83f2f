"""FaultyFleet: what can go wrong, as verbs and blocks that record themselves in the fleet's history.

with fleet.killed("a"): ...                     # a block heals its fault at its end
fleet.kill("a")                                 # a verb is healed by its counterpart, or by `heal`
fleet.restart("a")

Each of them shows that its fault is in force, by what others see of it (proofs.py), at once or afterwards. A
run with a fault that nobody has seen fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Final

from chaos_tests.live import proofs
from chaos_tests.live.proofs import Asked, Syncs
from chaos_tests.live.proxies import BOTH, Link, Stream, Toxic, black_hole
from chaos_tests.live.wired import WiredFleet
from cluster.drill.history import History, Kind
from cluster.placement.view import FleetMap
from cluster.server.control import ControlError
from cluster.server.journal import FRAME_MAGIC
from tests.support.etcd import EtcdMember
from tests.support.fleet import FLEET_SECONDS
from tests.support.waiting import eventually

_SEGMENT_HEADER_BYTES: Final = 48
_LEAST_RECORD_BYTES: Final = 40  # there is none that is shorter
_FILLER_BYTES: Final = 256 * 1024  # of one key in etcd
Action = Callable[[], object]
Cut = tuple[Link, Sequence[Stream]]  # a link, and what is lost on it


class FaultyFleet(WiredFleet):
    """See the module's docstring."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.history = History()
        self._undo: dict[int, Action] = {}  # of the faults that have not ended
        self._gone: dict[str, int] = {}  # nodes killed or frozen: the fault's number
        self._shown: set[int] = set()  # faults that somebody has seen
        self._to_show: dict[int, Action] = {}  # those of which that is seen only afterwards
        self._torn: dict[str, tuple[Path, int]] = {}  # journals that were torn: the end, its bytes
        super().__init__(*arguments, **options)

    # ---- the books

    def begin_history(self) -> History:
        """A new one, with nothing in it."""
        self.history = History()
        self._shown.clear()
        self._to_show.clear()
        return self.history

    def _begin(self, name: str, touches: Iterable[str], undo: Action, note: str = "") -> int:
        """Record a fault, before it is done. `undo` ends it however it stands then."""
        number = self.history.fault(name, *dict.fromkeys(touches), note=note)
        self._undo[number] = undo
        return number

    def shown(self, number: int) -> None:
        """Somebody has seen this fault."""
        self._shown.add(number)

    def unseen_faults(self) -> list[str]:
        """Those of the history that nobody has seen in force: what came of them proves nothing."""
        for number, show in list(self._to_show.items()):
            with contextlib.suppress(AssertionError):
                show()
                self.shown(number)
        return [
            f"fault {event.fault} ({event.text}) was not seen to be in force"
            for event in self.history.events
            if event.kind is Kind.FAULT and event.fault not in self._shown
        ]

    def _end(self, number: int) -> None:
        """End a fault, if it has not ended."""
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()
            self.history.healed(number)

    @contextmanager
    def _fault(
        self,
        name: str,
        touches: Iterable[str],
        do: Action,
        undo: Action,
        note: str = "",
        *,
        shows: Action,
        still_shows: Action = lambda: None,
    ) -> Iterator[None]:
        """`shows` raises when the fault is not in force, at the block's begin; `still_shows` at its end."""
        number = self._begin(name, touches, undo, note)
        try:
            do()
            shows()
            yield
            if number in self._undo:
                still_shows()
                self.shown(number)
        finally:
            self._end(number)

    def heal(self) -> None:
        """End all faults that have not ended, the last one first."""
        for number in sorted(self._undo, reverse=True):
            self._end(number)

    # ---- processes

    def kill(self, *names: str) -> None:
        """kill -9, all at once. Whoever connects then is refused, as by a machine that is still there."""
        links = {name: self.links(f"*>{name}") for name in names}
        for name in names:
            undo = partial(self._revive, name, partial(_each, Link.up, links[name]))
            self._gone[name] = self._begin("kill -9", [name], undo)
        super().kill(*names)
        for name in names:
            _each(Link.down, links[name])
        for name in names:
            proofs.is_dead(self.nodes[name])
            proofs.refuse(self._asked(links[name]))
            self.shown(self._gone[name])

    def kill_while(self, name: str, state: Action) -> None:
        """Kill a node in a state that passes soon: it is stopped, and looked at; when the state has passed it
        goes on."""
        node = self.nodes[name]

        def caught() -> bool:
            if not state():
                return False
            node.suspend()
            proofs.stands_still(node)
            if state():
                return True
            node.resume()
            return False

        eventually(caught)
        self.kill(name)

    def vanish(self, *names: str) -> None:
        """The machine is gone: whoever speaks to it hears nothing, and nothing refuses.

        Its process is stopped, and killed when it is to start again: were it killed now, the ends of its
        connections would be told, through a black hole, too.
        """
        for name in names:
            poisoned: list[tuple[Link, list[str]]] = []
            undo = partial(self._revive, name, partial(_cure, poisoned))
            number = self._gone[name] = self._begin("vanish", [name], undo)
            links = self.links(f"{name}>*", f"*>{name}")
            for link in links:
                poisoned.append((link, link.poison(black_hole())))
            super().freeze(name)
            proofs.stands_still(self.nodes[name])
            proofs.are_listed(self.proxies, poisoned)
            proofs.are_silent(self._asked(links))
            self.shown(number)

    def _revive(self, name: str, mend_links: Action) -> None:
        self._gone.pop(name, None)
        node = self.nodes[name]
        if node.running and node.frozen:
            node.kill()
        node.frozen = False
        mend_links()
        if not node.running:
            node.spawn()

    def map(self) -> FleetMap:
        """The fleet's map as it is in etcd."""
        return proofs.fleet_map(self.etcd, self.fleet)

    def copies_under_way(self) -> set[tuple[str, str]]:
        """Who makes a copy for whom, as the map in etcd says."""
        found = self.map()
        return {(row.primary, found.names[learner]) for row in found.slots for learner in row.learners}

    def has_copies(self, name: str) -> bool:
        """Whether the map in etcd counts on this node for a slot."""
        found = self.map()
        return any(found.names[each] == name for row in found.slots for each in row.in_sync)

    def _asked(self, links: Iterable[Link]) -> list[Asked]:
        return [(link, self.server_at(link)) for link in links]

    def restart(self, *names: str) -> None:
        """Start nodes again that were killed or have vanished."""
        for name in names:
            self._end(self._gone[name])

    @contextmanager
    def killed(self, *names: str) -> Iterator[None]:
        self.kill(*names)
        try:
            yield
        finally:
            self.restart(*(name for name in names if name in self._gone))

    def freeze(self, *names: str) -> None:
        """SIGSTOP: connections stand, nothing is answered."""
        for name in names:
            self._gone[name] = self._begin("freeze", [name], partial(self._thaw, name))
            super().freeze(name)
            proofs.stands_still(self.nodes[name])
            self.shown(self._gone[name])

    def _thaw(self, name: str) -> None:
        self._gone.pop(name, None)
        if self.nodes[name].running:
            super().wake(name)

    def wake(self, *names: str) -> None:
        for name in names:
            self._end(self._gone[name])

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        self.freeze(*names)
        try:
            yield
        finally:
            self.wake(*(name for name in names if name in self._gone))

    @contextmanager
    def draining(self, name: str) -> Iterator[None]:
        """A drain is under way in the block, and is followed no further after it."""
        worker = Thread(target=self._drain_to_the_end, args=(name,), daemon=True)
        worker.start()
        eventually(lambda: self.nodes[name].events("draining"))
        yield
        worker.join(FLEET_SECONDS)

    def _drain_to_the_end(self, name: str) -> None:
        with contextlib.suppress(ControlError, AssertionError):
            self.drain(name, restart=True)

    # ---- links

    @contextmanager
    def poisoned(self, toxic: Toxic, *links: str, streams: Sequence[Stream] = BOTH) -> Iterator[None]:
        """Any toxic on links: `poisoned(latency(100, jitter_ms=50), "a>b", "client>*")`."""
        with self._cuts(toxic.kind, [(link, streams) for link in self.links(*links)], toxic):
            yield

    @contextmanager
    def refused(self, *links: str) -> Iterator[None]:
        """Connections break, new ones are refused."""
        found = self.links(*links)
        with self._fault(
            "refused",
            [_touch(link) for link in found],
            lambda: _each(Link.down, found),
            lambda: _each(Link.up, found),
            shows=lambda: proofs.refuse(self._asked(found)),
            still_shows=lambda: proofs.refuse(self._asked(found)),
        ):
            yield

    @contextmanager
    def partition(self, *sides: str, etcd: str | None = None) -> Iterator[None]:
        """Nodes of different sides do not hear each other: `partition("a", "bc")`.

        `etcd`: nodes that still reach it; None for all of them. Clients and workers reach every node.
        """
        pairs = [
            (one, other) for side in sides for one in side for other in "".join(sides) if other not in side
        ]
        cuts: list[Cut] = [(self.link(f"{one}>{other}"), BOTH) for one, other in pairs]
        if etcd is not None:
            cut_off = set(self.nodes) - set(etcd)
            cuts += [(link, BOTH) for name in sorted(cut_off) for link in self.links(f"{name}>etcd-*")]
        shape = " | ".join(sides) + ("" if etcd is None else f", etcd for {etcd or 'nobody'}")
        with self._cuts(f"partition {shape}", cuts):
            yield

    @contextmanager
    def partitioned_users(self, *users: str, nodes: str = "") -> Iterator[None]:
        """These clients and workers, and these nodes, or all of them, do not hear each other."""
        links = [self.link(f"{user}>{name}") for user in users for name in nodes or self.nodes]
        with self._cuts(f"{' '.join(users)} cut off", [(link, BOTH) for link in links]):
            yield

    @contextmanager
    def unheard(self, *pairs: str) -> Iterator[None]:
        """The two nodes of each pair do not hear each other: `unheard("ac")`."""
        links = [self.link(f"{pair[way]}>{pair[1 - way]}") for pair in pairs for way in (0, 1)]
        with self._cuts(f"no word between {', '.join(pairs)}", [(link, BOTH) for link in links]):
            yield

    @contextmanager
    def one_way(self, speaker: str, *listeners: str) -> Iterator[None]:
        """What `speaker` sends to these nodes, or to "etcd", is lost; what they send arrives."""
        cuts: list[Cut] = []
        for listener in listeners:
            if listener == "etcd":
                cuts += [(link, ["upstream"]) for link in self.links(f"{speaker}>etcd-*")]
            else:
                cuts.append((self.link(f"{speaker}>{listener}"), ["upstream"]))
                cuts.append((self.link(f"{listener}>{speaker}"), ["downstream"]))
        with self._cuts(f"one way {speaker} to {' '.join(listeners)}", cuts):
            yield

    @contextmanager
    def _cuts(self, name: str, cuts: Sequence[Cut], toxic: Toxic | None = None) -> Iterator[None]:
        assert cuts, f"{name} touches no link"
        poison = toxic or black_hole()
        done: list[tuple[Link, list[str]]] = []

        def cut() -> None:
            for link, streams in cuts:
                done.append((link, link.poison(poison, *streams)))

        def show() -> None:
            show_again()
            for streams in {tuple(streams) for _, streams in cuts}:
                links = [link for link, of_link in cuts if tuple(of_link) == streams]
                proofs.are_poisoned(self._asked(links), poison, streams)

        def show_again() -> None:
            assert len(done) == len(cuts), f"{len(done)} of {len(cuts)} links were touched"
            proofs.are_listed(self.proxies, done)

        note = "" if toxic is None else " ".join(f"{key}={value}" for key, value in toxic.attributes.items())
        touches = [_touch(link) for link, _ in cuts]
        with self._fault(name, touches, cut, lambda: _cure(done), note, shows=show, still_shows=show_again):
            yield

    # ---- disks and clocks

    def tear_journal(self, name: str, cut_bytes: int = 0) -> None:
        """The journal of a killed node ends in the middle of a record: of one more that had been begun, or of
        one of its own, when so many bytes of its end are lost. Its next start says so. A node that was killed
        again before it had mended that keeps the end that it has: two of them would be another damage."""
        segment = self._last_segment(name)
        data = segment.read_bytes()
        if self._torn.get(name) == (segment, len(data)):
            return
        if cut_bytes:
            last = data.rindex(FRAME_MAGIC, 0, len(data) - cut_bytes)
            data = data[: max(last + _LEAST_RECORD_BYTES, len(data) - cut_bytes - 1)]
        else:
            data += data[_SEGMENT_HEADER_BYTES:][:_LEAST_RECORD_BYTES]
        node, line = self.nodes[name], len(self.nodes[name].log_lines)

        def torn() -> None:
            tails = proofs.said(node, line, proofs.TORN_TAIL)
            assert any(tail["segment"] == segment.name for tail in tails)

        with self._damage("torn journal", name, f"{cut_bytes} bytes of {segment.name}", torn):
            segment.write_bytes(data)
        self._torn[name] = (segment, len(data))

    def flip_bit(self, name: str) -> None:
        """A bit in the middle of the journal of a killed node is another. Its next start says so, under a new
        identity."""
        segment = self._last_segment(name)
        data = bytearray(segment.read_bytes())
        place = (_SEGMENT_HEADER_BYTES + len(data)) // 2
        node, line = self.nodes[name], len(self.nodes[name].log_lines)
        identity = proofs.identity_on_disk(node)

        def damaged() -> None:
            assert proofs.said(node, line, proofs.DAMAGED)
            assert proofs.identity_on_disk(node) != identity

        with self._damage("flipped bit", name, f"byte {place} of {segment.name}", damaged):
            data[place] ^= 1
            segment.write_bytes(data)

    def _last_segment(self, name: str) -> Path:
        assert not self.nodes[name].running
        return max((self.directory / name).rglob("*.segment"))

    @contextmanager
    def _damage(self, what: str, name: str, note: str, show: Action) -> Iterator[None]:
        """What nobody heals, and what the node's next start shows."""
        number = self.history.fault(what, name, note=note)
        self._to_show[number] = show
        yield
        self.history.healed(number)

    @contextmanager
    def full_disk(self, name: str) -> Iterator[None]:
        """No room is left on the small disk of a node (`small_disks`). It ends; afterwards it is started."""
        filler = self.directory / name / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        def clear() -> None:
            filler.unlink(missing_ok=True)
            if not self.nodes[name].running:
                self.nodes[name].spawn()

        with self._fault(
            "full disk", [name], fill, clear, shows=lambda: proofs.is_full(self.directory / name)
        ):
            yield

    def jump_clock(self, name: str, seconds: float) -> None:
        """The time of day of a node (`clocks`) is so far from ours; monotonic time is not. Returns when the
        node dates its log so, which takes up to a second."""
        clock = self.directory / f"{name}.clock"
        number = self.history.fault("clock jump", name, note=f"{seconds:+g} s")
        new = clock.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        new.replace(clock)
        self.history.healed(number)
        proofs.is_off(self.nodes[name], seconds)
        self.shown(number)

    @contextmanager
    def slow_disk(self, name: str, seconds: float) -> Iterator[None]:
        """Each fsync of this node takes so much longer. The block ends when the node has said so itself."""
        disk, node = self.disks[name], self.nodes[name]
        alone = not self._undo  # else the node may have nothing to write
        before = Syncs.of(node) if alone else None

        def is_slower() -> None:
            if before is not None and len(self._undo) == 1:
                eventually(lambda: Syncs.of(node).slower_by(before, seconds), poll_seconds=0.2)

        with self._fault(
            "slow disk",
            [name],
            lambda: disk.slow_down(seconds),
            disk.heal,
            f"{seconds:g} s",
            shows=lambda: None,
            still_shows=is_slower,
        ):
            yield

    # ---- etcd

    def compact_etcd(self) -> None:
        """etcd forgets all history; who watched from an older revision has to list again."""
        before = self.etcd.revision - 1
        number = self.history.fault("compaction of etcd", "etcd")
        self.etcd.compact()
        self.history.healed(number)
        proofs.is_compacted(self.etcd, before)
        self.shown(number)

    @contextmanager
    def etcd_full(self) -> Iterator[None]:
        """etcd has reached its quota and only deletes. For a fleet whose etcd was given a small one."""
        name = "/filler"

        def fill() -> None:
            with contextlib.suppress(AssertionError):  # the refusal
                while True:
                    self.etcd.put(name, bytes(_FILLER_BYTES))

        def clear() -> None:
            self.etcd.delete(name)
            self.etcd.compact()
            for member in self.etcd.members:
                member.request("POST", "/v3/maintenance/defragment", "{}")
            for alarm in self.etcd.call("maintenance/alarm", {"action": "GET"}).get("alarms", []):
                self.etcd.call("maintenance/alarm", {"action": "DEACTIVATE", **alarm})

        def show() -> None:
            proofs.takes_no_writes(self.etcd)

        with self._fault("full etcd", ["etcd"], fill, clear, shows=show, still_shows=show):
            yield

    @contextmanager
    def etcd_killed(self, *members: EtcdMember) -> Iterator[None]:
        """kill -9 of these members; without any, of all of them."""
        victims = members or tuple(self.etcd.members)

        def kill() -> None:
            for member in victims:
                member.kill()

        names = " ".join(member.name for member in victims)

        def show() -> None:
            for member in victims:
                proofs.is_dead(member)

        with self._fault(
            "kill -9 of etcd", ["etcd"], kill, self.etcd.start, names, shows=show, still_shows=show
        ):
            yield

    @contextmanager
    def etcd_frozen(self, *members: EtcdMember) -> Iterator[None]:
        victims = members or tuple(self.etcd.members)

        def freeze() -> None:
            for member in victims:
                member.suspend()

        def wake() -> None:
            for member in victims:
                member.resume()
            self.etcd.wait()

        names = " ".join(member.name for member in victims)

        def show() -> None:
            for member in victims:
                proofs.stands_still(member)

        with self._fault("freeze of etcd", ["etcd"], freeze, wake, names, shows=show, still_shows=show):
            yield


def _each(action: Callable[[Link], None], links: Iterable[Link]) -> None:
    for link in links:
        action(link)


def _cure(poisoned: Iterable[tuple[Link, Sequence[str]]]) -> None:
    for link, names in poisoned:
        link.cure(*names)


def _touch(link: Link) -> str:
    """A link's name in a history: there is one etcd."""
    who, _, where = link.name.partition(">")
    return f"{who}>etcd" if where.startswith("etcd") else link.name
