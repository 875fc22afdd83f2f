"""The simulated etcd answers as the real one does."""

from __future__ import annotations

from random import Random
from typing import Any

import grpc
from aetcd import rpc  # type: ignore[import-untyped]

from chaos_tests.sim.shell.etcd import EtcdError, State
from tests.support.etcd import Etcd, needs_etcd

KEYS = (b"/a", b"/a/b", b"/a/c", b"/b", b"/c")
VALUES = (b"", b"1", b"2", b"3")
LEASES = (11, 12, 13)


class Real:
    """A real etcd, asked as State is."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        keys, leases = rpc.KVStub(self.channel), rpc.LeaseStub(self.channel)
        self._calls = {
            "txn": keys.Txn,
            "range": keys.Range,
            "put": keys.Put,
            "delete": keys.DeleteRange,
            "grant": leases.LeaseGrant,
            "revoke": leases.LeaseRevoke,
            "time_to_live": leases.LeaseTimeToLive,
        }
        self.compact = keys.Compact

    def ask(self, method: str, request: Any) -> Any:
        return self._calls[method](request, timeout=5)

    def watch(self, *requests: Any, until: int) -> list[Any]:
        """Answers to these requests, up to the first that is of revision `until`, or final."""
        call = rpc.WatchStub(self.channel).Watch(iter_open(requests), timeout=5)
        answers = []
        for answer in call:
            answers.append(answer)
            if answer.canceled or any(event.kv.mod_revision >= until for event in answer.events):
                break
        call.cancel()
        return answers


def iter_open(requests: tuple[Any, ...]) -> Any:
    """The requests, and then none for ever: a stream that ends would end the watch."""
    from threading import Event

    yield from requests
    Event().wait(5)


def random_operation(dice: Random) -> Any:
    key = dice.choice(KEYS)
    kind = dice.randrange(5)
    # Real etcd overlooks that a key is put beside the deletion of all keys from one on.
    end = dice.choice((b"", b"", b"", b"/a0", b"/b", b"\0" if kind < 2 else b""))
    if kind < 2:
        limit = dice.choice((0, 0, 0, 1))
        return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, range_end=end, limit=limit))
    if kind == 2:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))
    lease = dice.choice((0, 0, *LEASES))
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=dice.choice(VALUES), lease=lease))


def random_compare(dice: Random, revision: int) -> Any:
    compare = rpc.Compare(key=dice.choice(KEYS), result=dice.randrange(4), target=dice.randrange(5))
    if dice.random() < 0.3:
        compare.range_end = dice.choice((b"/a0", b"/b", b"\0"))
    target = rpc.Compare.CompareTarget.Name(compare.target)
    if target == "VALUE":
        compare.value = dice.choice(VALUES)
    elif target == "VERSION":
        compare.version = dice.randrange(4)
    elif target == "LEASE":
        compare.lease = dice.choice((0, *LEASES))
    else:
        name = "mod_revision" if target == "MOD" else "create_revision"
        setattr(compare, name, dice.choice((0, revision, dice.randrange(1, revision + 2))))
    return compare


def random_request(dice: Random, revision: int) -> tuple[str, Any]:
    method = dice.choice(("txn",) * 12 + ("range", "put", "delete", "grant", "revoke", "time_to_live"))
    if method == "txn":
        return method, rpc.TxnRequest(
            compare=[random_compare(dice, revision) for _ in range(dice.randrange(3))],
            success=[random_operation(dice) for _ in range(dice.randrange(4))],
            failure=[random_operation(dice) for _ in range(dice.randrange(3))],
        )
    if method == "range":
        return method, rpc.RangeRequest(key=dice.choice(KEYS), range_end=b"/b")
    if method == "put":
        lease = dice.choice((0, *LEASES))
        return method, rpc.PutRequest(key=dice.choice((*KEYS, b"")), value=b"x", lease=lease)
    if method == "delete":
        return method, rpc.DeleteRangeRequest(key=dice.choice(KEYS))
    lease = dice.choice(LEASES)
    if method == "grant":
        return method, rpc.LeaseGrantRequest(ID=lease, TTL=dice.choice((1, 1000)) * 1000)
    if method == "revoke":
        return method, rpc.LeaseRevokeRequest(ID=lease)
    return method, rpc.LeaseTimeToLiveRequest(ID=lease)


def ask(state: State, method: str, request: Any) -> Any:
    if method in ("grant", "time_to_live"):
        return getattr(state, method)(request, 0.0)
    return getattr(state, method)(request)


def plain(reply: Any) -> Any:
    """Without what two etcds need not have in common."""
    copy = type(reply)()
    copy.CopyFrom(reply)
    copy.header.cluster_id = copy.header.member_id = copy.header.raft_term = 0
    if isinstance(copy, rpc.LeaseTimeToLiveResponse) and copy.TTL > 0:
        copy.TTL = copy.grantedTTL  # a second may have passed
    return copy


@needs_etcd()
def test_random_requests_are_answered_as_real_etcd_answers_them() -> None:
    etcd = Etcd()
    try:
        real = Real(etcd.start().address)
        state = State(lease_seconds_min=1)
        dice = Random(4)
        refused = 0
        for number in range(3000):
            method, request = random_request(dice, state.revision)
            told: Any
            try:
                told = plain(real.ask(method, request))
            except grpc.RpcError as error:
                told = (error.code(), error.details())
            try:
                mine: Any = plain(ask(state, method, request))
            except EtcdError as error:
                mine = (error.code, error.details)
                refused += 1
            assert mine == told, f"request {number}: {method} {request}"
        assert 100 < refused < 2000

        # The same history, from any revision; and none that was compacted.
        start = state.revision - 50
        create = rpc.WatchCreateRequest(key=b"/a", range_end=b"/b", start_revision=start)
        expected = list(state.events(start - 1, state.revision, b"/a", b"/b"))
        answers = real.watch(rpc.WatchRequest(create_request=create), until=expected[-1][0])
        heard = [event for answer in answers for event in answer.events]
        assert heard == [event for _, events in expected for event in events]
        real.compact(rpc.CompactionRequest(revision=start + 1, physical=True))
        answers = real.watch(rpc.WatchRequest(create_request=create), until=expected[-1][0])
        assert [answer.canceled for answer in answers] == [False, True]
        assert answers[-1].compact_revision == start + 1
        real.channel.close()
    finally:
        etcd.close()
