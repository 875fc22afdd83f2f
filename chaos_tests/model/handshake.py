"""The opening of a stream, in a network that belongs to an enemy who does not know the fleet's secret.

    python -m chaos_tests.model.handshake

The enemy takes every message, and delivers whatever it can make of all that it has ever seen, to anybody, in
any order: Hellos it writes as it likes, with any nonce; proofs it can only repeat. The proofs are made by
cluster/server/proof.py itself; the two sides are what cluster/server/peers.py does with them.

Up to three openings run at once, each of an honest process: two starts of node a (the older one is not dead,
as it should be), nodes b and c, and a node b of another fleet whose etcd is a copy, with the same secret.

What has to hold of every side that takes a stream for opened: the process that it believes to speak with has
shown its proof in an opening with this very process, in the other role, with these two nonces; and no two
sides have one and the same opening at their other end. So whoever is believed is there, now, and means this
stream.

A mutation takes something out. Each has to be found; then the model says what the thing is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, Final, NamedTuple

from cluster.replication.frames import Hello
from cluster.server.proof import ACCEPTOR, DIALLER, SECRET_BYTES, agree, stream_proofs

OPENINGS_MAX: Final = 3
SECRETS: Final = (b"s" * SECRET_BYTES,)
ENEMY: Final = b"the enemy's nonce"

A1 = Hello("f", "a", "a" * 32, 1, 1, 1024, "1")
A2 = A1._replace(incarnation=2)
B = Hello("f", "b", "b" * 32, 1, 1, 1024, "1")
C = Hello("f", "c", "c" * 32, 1, 1, 1024, "1")
COPY_A, COPY = A1._replace(fleet="g"), B._replace(fleet="g")
EVERYBODY: Final = (A1, A2, B, C, COPY_A, COPY)

Prove = Callable[[bytes, Hello, bytes, Hello, bytes], tuple[bytes, ...]]


def prove(
    direction: bytes, dialler: Hello, of_dialler: bytes, acceptor: Hello, of_acceptor: bytes
) -> tuple[bytes, ...]:
    return stream_proofs(SECRETS, direction, dialler, of_dialler, acceptor, of_acceptor)


@dataclass(frozen=True)
class Rules:
    """What both sides do; the defaults are the production code's."""

    prove: Prove = prove
    fresh: bool = True  # a nonce for each opening, not for each process
    dialler_checks_who: bool = True  # the Hello that answers is of whom it called
    dialler_checks_proof: bool = True
    acceptor_checks_proof: bool = True


class Part(NamedTuple):
    """An honest process's side of an opening: who it is, and for a dialler whom it calls."""

    who: Hello
    calls: Hello | None = None

    def __str__(self) -> str:
        name = f"{self.who.node}{self.who.incarnation} of {self.who.fleet}"
        return f"{name} calls {self.calls.node}" if self.calls else f"{name} is called"


MENU: Final = (Part(A1, B), Part(A1, C), Part(A2, B), Part(B), Part(C), Part(COPY))


class Side(NamedTuple):
    """How far it is. `shown`: its proof went out with this peer and these nonces."""

    peer: Hello | None = None
    other_nonce: bytes = b""
    shown: bool = False
    open: bool = False


class State(NamedTuple):
    sides: tuple[Side, ...]
    proofs: frozenset[bytes]  # that the enemy has seen


def nonce_of(rules: Rules, parts: tuple[Part, ...], index: int) -> bytes:
    part = parts[index]
    return b"%d" % index if rules.fresh else f"{part.who.fleet}{part.who.node}{part.who.incarnation}".encode()


def transcript(
    rules: Rules, parts: tuple[Part, ...], index: int, peer: Hello, other: bytes
) -> tuple[Hello, bytes, Hello, bytes]:
    """Both Hellos and nonces as one side has seen them, the dialler's first."""
    own = (parts[index].who, nonce_of(rules, parts, index))
    return (*own, peer, other) if parts[index].calls is not None else (peer, other, *own)


def steps(rules: Rules, parts: tuple[Part, ...], state: State) -> Iterator[tuple[str, State]]:
    """What the enemy can do next. Nonces and Hellos are no secrets: it knows all of them from the start."""
    nonces = {ENEMY, *(nonce_of(rules, parts, index) for index in range(len(parts)))}

    def after(index: int, side: Side, said: tuple[bytes, ...] = ()) -> State:
        sides = list(state.sides)
        sides[index] = side
        return State(tuple(sides), state.proofs | set(said))

    for index, (part, side) in enumerate(zip(parts, state.sides, strict=True)):
        if side.open:
            continue
        if part.calls is None and side.shown:  # it awaits the dialler's proof
            assert side.peer is not None
            wanted = rules.prove(DIALLER, *transcript(rules, parts, index, side.peer, side.other_nonce))
            if not rules.acceptor_checks_proof or _has(state, wanted):
                yield f"{part}: gets a proof", after(index, side._replace(open=True))
            continue
        for peer in EVERYBODY:
            if peer.fleet != part.who.fleet or peer.node == part.who.node:
                continue  # what _fault refuses
            if part.calls is None and peer.node > part.who.node:
                continue
            if part.calls is not None and rules.dialler_checks_who and peer != part.calls:
                continue
            for other in sorted(nonces):
                seen = transcript(rules, parts, index, peer, other)
                what = f"{part}: gets the Hello of {peer.node}{peer.incarnation} with nonce {other!r}"
                if part.calls is None:
                    proofs = rules.prove(ACCEPTOR, *seen)
                    yield what, after(index, Side(peer, other, shown=True), proofs)
                elif not rules.dialler_checks_proof or _has(state, rules.prove(ACCEPTOR, *seen)):
                    proofs = rules.prove(DIALLER, *seen)
                    yield what + " and a proof", after(index, Side(peer, other, True, True), proofs)


def _has(state: State, wanted: tuple[bytes, ...]) -> bool:
    return any(agree(wanted, (proof,)) for proof in state.proofs)


def fault(rules: Rules, parts: tuple[Part, ...], state: State) -> str:
    """What does not hold of a state; empty: all does."""
    ends: dict[int, int] = {}
    for index, (part, side) in enumerate(zip(parts, state.sides, strict=True)):
        if not side.open:
            continue
        if part.calls is not None and side.peer != part.calls:
            return f"{part}, and takes another one for it"
        found = [
            at
            for at, (their, other) in enumerate(zip(parts, state.sides, strict=True))
            if other.shown
            and their.who == side.peer
            and (their.calls is None) is not (part.calls is None)
            and other.peer == part.who
            and other.other_nonce == nonce_of(rules, parts, index)
            and side.other_nonce == nonce_of(rules, parts, at)
        ]
        if not found:
            return f"{part}, and believes somebody who is not there"
        if found[0] in ends:
            return f"{part}, and so does another side, with one opening at their other end"
        ends[found[0]] = index
    return ""


def search(rules: Rules) -> tuple[str, int]:
    """All states of all choices of openings: the first fault and the way to it; how many there were."""
    count = 0
    for size in range(1, OPENINGS_MAX + 1):
        for parts in combinations_with_replacement(MENU, size):
            start = State((Side(),) * size, frozenset())
            came: dict[State, tuple[State, str] | None] = {start: None}
            queue = [start]
            for state in queue:
                count += 1
                wrong = fault(rules, parts, state)
                if wrong:
                    return "; ".join([*_way(came, state), wrong]), count
                for what, new in steps(rules, parts, state):
                    if new not in came:
                        came[new] = (state, what)
                        queue.append(new)
    return "", count


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way = []
    while (step := came[state]) is not None:
        state, what = step
        way.append(what)
    return way[::-1]


def _without(**blank: Any) -> Rules:
    """The proof does not cover these fields of the Hellos."""

    def weaker(direction: bytes, one: Hello, n1: bytes, other: Hello, n2: bytes) -> tuple[bytes, ...]:
        return prove(direction, one._replace(**blank), n1, other._replace(**blank), n2)

    return Rules(prove=weaker)


MUTATIONS: Final[dict[str, Rules]] = {
    "the same in both directions": Rules(prove=lambda _, *seen: prove(b"", *seen)),
    "not bound to the fleet": _without(fleet=""),
    "not bound to names and directories": _without(node="", identity=""),
    "not bound to the start of a process": _without(incarnation=0),
    "not bound to the dialler's nonce": Rules(prove=lambda way, a, _, b, n: prove(way, a, b"", b, n)),
    "not bound to the acceptor's nonce": Rules(prove=lambda way, a, n, b, _: prove(way, a, n, b, b"")),
    "not bound to the dialler": Rules(prove=lambda way, _, n1, b, n2: prove(way, B, n1, b, n2)),
    "not bound to the acceptor": Rules(prove=lambda way, a, n1, _, n2: prove(way, a, n1, B, n2)),
    "a nonce that is used again": replace(Rules(), fresh=False),
    "the dialled node need not prove itself": replace(Rules(), dialler_checks_proof=False),
    "the dialler need not prove itself": replace(Rules(), acceptor_checks_proof=False),
    "the dialler takes whoever answers": replace(Rules(), dialler_checks_who=False),
}


def main() -> None:
    wrong, count = search(Rules())
    print(f"as it is: {wrong or 'nothing found'} ({count:,} states)")
    for name, rules in MUTATIONS.items():
        wrong, count = search(rules)
        print(f"{name}: {wrong or 'NOT FOUND'} ({count:,} states)")


if __name__ == "__main__":
    main()
