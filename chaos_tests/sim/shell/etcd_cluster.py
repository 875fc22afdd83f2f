"""A simulated etcd cluster: when a request takes effect, when its caller hears of it, and what goes wrong.

There is one State, of what a majority has agreed on. A member answers when it has caught up with that, and
tells its watches of events as it does: so what a member says is never wrong, only late, as in etcd.

    write   waits for a leader; takes effect after a while, unless the leader changed meanwhile: then the next
            leader has it or has it not, and either way the caller learns nothing for long
    read    waits for a leader, and for the member to catch up
    lease   kept by the leader, and by a deposed one for a moment; a new leader begins all of them anew; what
            runs out is revoked by a write. Without a leader nothing runs out

Times come from `timers` (an event loop will do), chances from `dice`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from aetcd import rpc  # type: ignore[import-untyped]

from chaos_tests.sim.shell.etcd import EtcdError, State, unavailable, writes

ELECTION_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.5  # how often the leader looks for leases that have run out
REQUEST_SECONDS: Final = 7.0  # how long a member itself waits for a majority
LEADERLESS_SECONDS: Final = 3 * ELECTION_SECONDS  # then streams that want a leader are ended
COMMIT_SECONDS: Final = (0.0005, 0.003)
APPLY_SECONDS: Final = (0.0, 0.001)  # how far a member is behind

Done = Callable[[Any], None]  # is given the reply, or the EtcdError


class Timers(Protocol):
    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Any: ...


class Asked:
    """A request on its way."""

    __slots__ = ("apply", "at", "done", "given_up", "member", "started", "write")

    def __init__(
        self, member: Member, apply: Callable[[], Any], done: Done, *, write: bool, at: float
    ) -> None:
        self.member = member
        self.apply = apply
        self.done = done
        self.write = write
        self.at = at
        self.started = False  # a leader has it
        self.given_up = False

    def give_up(self) -> None:
        """Nobody waits for the reply any more. What a leader has goes on all the same."""
        self.given_up = True


class Watch:
    """One watch of one member."""

    __slots__ = ("awaited", "end", "feeding", "key", "member", "over", "position", "tell", "wants_leader")

    def __init__(
        self, member: Member, key: bytes, end: bytes, position: int, tell: Done, *, wants_leader: bool
    ) -> None:
        self.member = member
        self.key = key
        self.end = end
        self.position = position  # told up to this revision
        self.tell = tell  # is given WatchResponses, and at the end perhaps an EtcdError
        self.wants_leader = wants_leader
        self.awaited = 0  # progress requests
        self.feeding = False
        self.over = False


@dataclass(slots=True, eq=False)
class Member:
    """One etcd process as the others see it."""

    number: int
    up: bool = True
    cut: bool = False  # from the other members, not from clients
    lag_seconds: float = 0.0
    applied: int = 0  # commits
    revision: int = 1  # as of these
    deposed_at: float = -ELECTION_SECONDS  # it was the leader until then, and may not know
    leaderless_since: float | None = None
    waiting: list[tuple[int, Callable[[], None]]] = field(default_factory=list)  # for so many commits
    watches: list[Watch] = field(default_factory=list)

    @property
    def connected(self) -> bool:
        return self.up and not self.cut


class Cluster:
    """See the module's docstring. Begin with `start`."""

    def __init__(
        self,
        timers: Timers,
        dice: Random,
        *,
        members: int = 3,
        state: State | None = None,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.state = state or State()
        self.members = [Member(number) for number in range(members)]
        self.leader: Member | None = None
        self.term = 1
        self.watch_delay_seconds = 0.0
        self.commit_seconds = COMMIT_SECONDS
        self.answers_lost = 0.0  # of writes that were made: the chance that nobody is told
        self._timers = timers
        self._dice = dice
        self._note = note
        self._commits: list[int] = [1]  # the revision after each
        self._queue: list[Asked] = []  # waiting for a leader
        self._undecided: list[Asked] = []  # the last leader had them
        self._electing = False

    def start(self) -> None:
        """Elect the first leader at once, and look after the leases from now on."""
        self._lead(self.members[0])
        self._timers.call_later(LOOK_SECONDS, self._look)

    # ---- requests

    def txn(self, number: int, request: Any, done: Done) -> Asked:
        return self._ask(number, lambda: self.state.txn(request), done, write=writes(request))

    def grant(self, number: int, request: Any, done: Done) -> Asked:
        return self._ask(number, lambda: self.state.grant(request, self._now()), done, write=True)

    def revoke(self, number: int, request: Any, done: Done) -> Asked:
        return self._ask(number, lambda: self.state.revoke(request), done, write=True)

    def time_to_live(self, number: int, request: Any, done: Done) -> Asked:
        return self._ask(number, lambda: self.state.time_to_live(request, self._now()), done, write=False)

    def keep_alive(self, number: int, request: Any, done: Done) -> Asked:
        """The leader alone decides, also one that does not know yet that it is none."""
        member = self.members[number]
        asked = Asked(member, lambda: None, done, write=False, at=self._now())

        def renew() -> None:
            if asked.given_up or not member.up:
                return
            lease = self.state.leases.get(request.ID)
            header = self.state.header(member.number, self.term)
            header.revision = member.revision
            seconds = 0 if lease is None else lease.seconds
            reply = rpc.LeaseKeepAliveResponse(header=header, ID=request.ID, TTL=seconds)
            if self._has_leader(member):
                if lease is not None and lease.expires_at <= self._now():
                    # It is about to be revoked, or to be begun anew by another leader.
                    self._timers.call_later(LOOK_SECONDS / 4, renew)
                    return
                if lease is not None:
                    lease.expires_at = self._now() + lease.seconds
                done(reply)
            elif self._now() < member.deposed_at + ELECTION_SECONDS:
                done(reply)
            elif self._now() > asked.at + REQUEST_SECONDS:
                done(unavailable("request timed out"))
            else:
                self._timers.call_later(LOOK_SECONDS / 4, renew)

        self._timers.call_later(self._between(self.commit_seconds), renew)
        return asked

    def watch(self, number: int, request: Any, tell: Done, *, wants_leader: bool) -> Watch:
        """A watch that was asked for with this WatchCreateRequest; end it with `unwatch`."""
        member = self.members[number]
        position = request.start_revision - 1 if request.start_revision else member.revision
        watch = Watch(member, request.key, request.range_end, position, tell, wants_leader=wants_leader)
        if wants_leader and not self._has_leader(member):
            watch.over = True
            tell(unavailable("no leader"))
            return watch
        member.watches.append(watch)
        tell(rpc.WatchResponse(header=self._header(member), created=True))
        self._feed_later(watch)
        return watch

    def progress(self, watch: Watch) -> None:
        """Say how far this watch is, when it is as far as its member."""
        watch.awaited += 1
        self._feed_later(watch)

    def unwatch(self, watch: Watch) -> None:
        watch.over = True
        if watch in watch.member.watches:
            watch.member.watches.remove(watch)

    # ---- troubles

    def depose(self) -> None:
        """The leader is one no more; an election follows."""
        if self.leader is not None:
            self._note(f"etcd's leader {self.leader.number} steps down")
            self.leader.deposed_at = self._now()
            self.leader = None
            self.term += 1
        self._elect()

    def cut(self, number: int) -> None:
        """A member no longer reaches the others. Clients still reach it."""
        self.members[number].cut = True
        self._changed()

    def join(self, number: int) -> None:
        self.members[number].cut = False
        self._changed()

    def stop(self, number: int) -> None:
        """Its process is gone: nobody hears of what was asked there."""
        member = self.members[number]
        member.up = False
        member.waiting.clear()
        for watch in member.watches:
            watch.over = True
        member.watches.clear()
        self._queue = [asked for asked in self._queue if asked.member is not member]
        self._changed()

    def restart(self, number: int) -> None:
        self.members[number].up = True
        self._changed()

    def compact(self) -> None:
        """Forget all history: watches that are behind are told so, and end."""
        self.state.compact(self.state.revision)

    def replace(self, state: State) -> None:
        """Another content, as after a restore from a backup. All members are stopped."""
        assert not any(member.up for member in self.members)
        self.state = state
        for lease in state.leases.values():
            lease.expires_at = self._now() + lease.seconds
        self._commits = [state.revision]
        self._undecided.clear()
        for member in self.members:
            member.applied, member.revision = 0, state.revision

    def heal(self) -> None:
        """No trouble from now on."""
        self.watch_delay_seconds = self.answers_lost = 0.0
        self.commit_seconds = COMMIT_SECONDS
        self.state.full = False
        for member in self.members:
            member.cut, member.up, member.lag_seconds = False, True, 0.0
        self._changed()

    # ---- who leads

    def _now(self) -> float:
        return self._timers.time()

    def _between(self, bounds: tuple[float, float]) -> float:
        return self._dice.uniform(*bounds)

    def _header(self, member: Member) -> Any:
        header = self.state.header(member.number, self.term)
        header.revision = member.revision
        return header

    @property
    def majority(self) -> bool:
        return 2 * sum(member.connected for member in self.members) > len(self.members)

    def _has_leader(self, member: Member) -> bool:
        return self.leader is not None and member.connected and self.majority

    def _changed(self) -> None:
        """Members came or went."""
        if self.leader is not None and not (self.leader.connected and self.majority):
            self.depose()
        elif self.leader is None:
            self._elect()
        for member in self.members:
            self._catch_up(member)
        self._proceed()

    def _elect(self) -> None:
        if not self._electing:
            self._electing = True
            self._timers.call_later(ELECTION_SECONDS * self._between((1.0, 2.0)), self._elected)

    def _elected(self) -> None:
        self._electing = False
        if self.leader is None and self.majority:
            self._lead(self._dice.choice([member for member in self.members if member.connected]))

    def _lead(self, member: Member) -> None:
        self._note(f"etcd's member {member.number} leads")
        self.leader = member
        self.term += 1
        for lease in self.state.leases.values():
            lease.expires_at = self._now() + lease.seconds + ELECTION_SECONDS
        undecided, self._undecided = self._undecided, []
        for asked in undecided:
            if self._dice.random() < 0.5:
                self._commit(asked)
            else:
                text = "request timed out, possibly due to previous leader failure"
                self._timers.call_later(REQUEST_SECONDS, self._tell, asked, unavailable(text))
        self._proceed()

    # ---- a request's way

    def _ask(self, number: int, apply: Callable[[], Any], done: Done, *, write: bool) -> Asked:
        asked = Asked(self.members[number], apply, done, write=write, at=self._now())
        self._queue.append(asked)
        self._proceed()
        return asked

    def _proceed(self) -> None:
        """What waited for a leader begins when there is one."""
        waiting, self._queue = self._queue, []
        for asked in waiting:
            if asked.given_up:
                continue
            if self._has_leader(asked.member):
                asked.started = True
                self._timers.call_later(self._between(self.commit_seconds), self._agreed, asked, self.term)
            else:
                self._queue.append(asked)

    def _agreed(self, asked: Asked, term: int) -> None:
        """The majority has answered, unless the leader has changed since."""
        if self.leader is not None and term == self.term:
            if asked.write:
                self._commit(asked)
            else:
                self._when_applied(asked.member, lambda: self._answer(asked))
        elif asked.write:
            self._undecided.append(asked)
            if self.leader is not None:
                self._decide_late()
        elif self._dice.random() < 0.5:
            self._tell(asked, unavailable("leader changed"))
        else:
            self._queue.append(asked)
            self._proceed()

    def _decide_late(self) -> None:
        """The new leader is there already: what the old one had been given is lost, or comes now."""
        for asked in self._undecided:
            if self._dice.random() < 0.5:
                self._commit(asked)
        self._undecided.clear()

    def _commit(self, asked: Asked) -> None:
        try:
            reply = asked.apply()
        except EtcdError as error:
            reply = error
        self._commits.append(self.state.revision)
        for member in self.members:
            self._catch_up(member)
        if self._dice.random() >= self.answers_lost:
            self._when_applied(asked.member, lambda: self._tell(asked, reply))

    def _answer(self, asked: Asked) -> None:
        if asked.given_up:
            return
        try:
            reply = asked.apply()
        except EtcdError as error:
            reply = error
        self._tell(asked, reply)

    def _tell(self, asked: Asked, reply: Any) -> None:
        if asked.given_up or not asked.member.up:
            return
        if not isinstance(reply, EtcdError):
            revision = reply.header.revision
            reply.header.CopyFrom(self._header(asked.member))
            reply.header.revision = revision
        asked.done(reply)

    # ---- members catch up

    def _catch_up(self, member: Member) -> None:
        if member.connected and member.applied < len(self._commits) - 1:
            behind = self._between(APPLY_SECONDS) + member.lag_seconds
            self._timers.call_later(behind, self._applied, member, len(self._commits) - 1, self._commits)

    def _applied(self, member: Member, commits: int, history: list[int]) -> None:
        if not member.connected or member.applied >= commits or history is not self._commits:
            return  # or etcd has been restored meanwhile
        member.applied = commits
        member.revision = self._commits[commits]
        ready = [each for each in member.waiting if each[0] <= commits]
        member.waiting = [each for each in member.waiting if each[0] > commits]
        for _, then in ready:
            then()
        for watch in list(member.watches):
            self._feed_later(watch)

    def _when_applied(self, member: Member, then: Callable[[], None]) -> None:
        commits = len(self._commits) - 1
        if member.applied >= commits:
            then()
        elif member.up:
            member.waiting.append((commits, then))

    # ---- watches

    def _feed_later(self, watch: Watch) -> None:
        if not watch.feeding:
            watch.feeding = True
            delay = self._dice.random() * self.watch_delay_seconds
            self._timers.call_later(delay, self._feed, watch)

    def _feed(self, watch: Watch) -> None:
        watch.feeding = False
        if watch.over:
            return
        member = watch.member
        if watch.position < min(self.state.compacted, member.revision):
            self.unwatch(watch)
            header = self._header(member)
            compacted = self.state.compacted
            watch.tell(rpc.WatchResponse(header=header, canceled=True, compact_revision=compacted))
            return
        for revision, events in self.state.events(watch.position, member.revision, watch.key, watch.end):
            header = self._header(member)
            header.revision = revision
            watch.tell(rpc.WatchResponse(header=header, events=events))
        watch.position = max(watch.position, member.revision)
        for _ in range(watch.awaited):
            watch.tell(rpc.WatchResponse(header=self._header(member), watch_id=-1))
        watch.awaited = 0

    # ---- as time goes by

    def _look(self) -> None:
        now = self._now()
        self._timers.call_later(LOOK_SECONDS, self._look)
        if self.leader is not None:
            for number, lease in list(self.state.leases.items()):
                if lease.expires_at <= now:
                    self._expire(number)
        for member in self.members:
            if self._has_leader(member):
                member.leaderless_since = None
            elif member.leaderless_since is None:
                member.leaderless_since = now
            elif now - member.leaderless_since >= LEADERLESS_SECONDS:
                for watch in [each for each in member.watches if each.wants_leader]:
                    self.unwatch(watch)
                    watch.tell(unavailable("no leader"))
        for asked in self._queue:
            if now - asked.at > REQUEST_SECONDS:
                self._tell(asked, unavailable("request timed out"))
                asked.give_up()

    def _expire(self, number: int) -> None:
        assert self.leader is not None
        self._note(f"etcd's lease {number:x} has run out")

        def revoke() -> Any:
            lease = self.state.leases.get(number)
            if lease is not None:
                return self.state.revoke(rpc.LeaseRevokeRequest(ID=number))
            raise EtcdError(*_GONE)

        self._ask(self.leader.number, revoke, lambda reply: None, write=True)


_GONE: Final = (unavailable("gone").code, "etcdserver: requested lease not found")
