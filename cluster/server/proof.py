"""Proof of belonging to a fleet: who knows the secret that its etcd holds is a node of it, or an operator.

A stream is opened with three messages, of which the first two are the Hellos with a fresh nonce each:

  dialler  -> acceptor   Hello, nonce
  acceptor -> dialler    Hello, nonce, the acceptor's proof
  dialler  -> acceptor   the dialler's proof; frames only after it

A proof is HMAC-SHA-256 over a label for the direction, and over both Hellos (fleet, names, identities,
incarnations) and both nonces. So none is good in the other direction, in another stream, for another pair of
nodes, another start of one, or another fleet that happens to have the same secret. Neither side says anything
of a job before the other has proved itself.

An operator's command asks for a challenge first, with a nonce of its own that the node proves itself with;
then the call carries a proof over the challenge, the node and the whole request. A challenge is good once.

While a secret is being exchanged there are two. Each side then sends a proof by each that it knows, and one
of them is enough, so that nodes which have read the new one yet and others which have not find each other.

Everything here is a function of its arguments: nonces, keys and times come from whoever has them. The model
in chaos_tests/model/handshake.py tells what each part of a proof is for.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

from cluster.replication.frames import Hello

SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 32
SECRETS_MAX: Final = 2  # the one in use, and while it is being exchanged the next
PROOFS_MAX: Final = SECRETS_MAX  # of one side; who sends more is not believed
CHALLENGE_SECONDS: Final = 30.0  # how long one is good
CALLS_REMEMBERED_MAX: Final = 65536  # proved ones within that time, so that none is repeated

DIALLER: Final = b"gearfleet stream: the dialler"
ACCEPTOR: Final = b"gearfleet stream: the acceptor"
ANSWERER: Final = b"gearfleet control: the node"
CALLER: Final = b"gearfleet control: the caller"
_CHALLENGE: Final = b"gearfleet control: a challenge of this process"

_SECRET: Final = re.compile(f"[0-9a-f]{{{2 * SECRET_BYTES}}}")
_TIME_BYTES: Final = 8

Secrets = tuple[bytes, ...]


class BadSecret(Exception):
    """What is no secret of a fleet; the text does not show it."""


def encode_secrets(secrets: Secrets) -> bytes:
    """As etcd has them and as a file may: in hex, a line for each; the one in use first."""
    return "".join(f"{secret.hex()}\n" for secret in secrets).encode()


def decode_secrets(data: bytes) -> Secrets:
    """Raises BadSecret."""
    lines = data.decode("ascii", "replace").split()
    if not 0 < len(lines) <= SECRETS_MAX or not all(_SECRET.fullmatch(line) for line in lines):
        raise BadSecret(f"it is not one or two lines of {2 * SECRET_BYTES} hexadecimal digits each")
    return tuple(bytes.fromhex(line) for line in lines)


def stream_proofs(
    secrets: Secrets, direction: bytes, dialler: Hello, of_dialler: bytes, acceptor: Hello, of_acceptor: bytes
) -> tuple[bytes, ...]:
    """One by each secret. `direction`: DIALLER or ACCEPTOR, whoever proves itself. `of_…`: the nonces."""
    parts = (*_parts(dialler), of_dialler, *_parts(acceptor), of_acceptor)
    return _proofs(secrets, direction, parts)


def answer_proofs(secrets: Secrets, nonce: bytes, node: Hello, challenge: bytes) -> tuple[bytes, ...]:
    """The node's, for a command's `nonce`."""
    return _proofs(secrets, ANSWERER, (nonce, *_parts(node), challenge))


def call_proofs(
    secrets: Secrets, node: Hello, challenge: bytes, method: str, request: bytes
) -> tuple[bytes, ...]:
    """A command's, for one call."""
    return _proofs(secrets, CALLER, (*_parts(node), challenge, method.encode(), request))


def agree(expected: Sequence[bytes], shown: Sequence[bytes]) -> bool:
    """Whether one of the proofs that were shown is expected. All are compared, each in constant time."""
    if len(shown) > PROOFS_MAX:
        return False
    found = False
    for proof in shown:
        for wanted in expected:
            found |= hmac.compare_digest(proof, wanted)
    return found


def _parts(hello: Hello) -> tuple[bytes, ...]:
    return tuple(str(value).encode() for value in hello)


def _proofs(secrets: Secrets, label: bytes, parts: Iterable[bytes]) -> tuple[bytes, ...]:
    # Each with its length before it: no two lists of parts are the same bytes.
    text = b"".join(len(part).to_bytes(8, "big") + part for part in (label, *parts))
    return tuple(hmac.digest(secret, text, sha256) for secret in secrets)


class Challenges:
    """A node's challenges for operators' commands. Nothing is kept for one that nobody proved itself with, so
    that strangers cannot fill the memory or push out other people's."""

    def __init__(self, key: bytes) -> None:
        """`key`: random, of this process alone."""
        self._key = key
        self._used: dict[bytes, float] = {}  # when each has run out

    def make(self, now: float, dice: bytes) -> bytes:
        """A new one; `dice`: NONCE_BYTES that nobody can guess."""
        head = int((now + CHALLENGE_SECONDS) * 1000).to_bytes(_TIME_BYTES, "big") + dice
        return head + self._seal(head)

    def use(self, challenge: bytes, now: float) -> bool:
        """Whether it is one of ours, in time, and new. To be called when its proof was found good."""
        head, seal = challenge[: _TIME_BYTES + NONCE_BYTES], challenge[_TIME_BYTES + NONCE_BYTES :]
        if not hmac.compare_digest(self._seal(head), seal):
            return False
        ends = int.from_bytes(head[:_TIME_BYTES], "big") / 1000
        if ends <= now or challenge in self._used:
            return False
        while self._used:  # oldest first
            first = next(iter(self._used))
            if self._used[first] > now:
                break
            del self._used[first]
        if len(self._used) >= CALLS_REMEMBERED_MAX:
            return False
        self._used[challenge] = ends
        return True

    def _seal(self, head: bytes) -> bytes:
        return hmac.digest(self._key, _CHALLENGE + head, sha256)
