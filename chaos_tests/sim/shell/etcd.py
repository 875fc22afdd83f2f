"""What a simulated etcd stores: keys, revisions, leases, history; the real one's messages in and out.

Only what cluster/server/etcd.py asks for is simulated; anything else raises NotImplementedError. When a
request takes effect, and who hears of it, is etcd_cluster.py's business.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from aetcd import rpc  # type: ignore[import-untyped]

CLUSTER_ID: Final = 0xE7CD


class EtcdError(Exception):
    """An answer that is a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def unavailable(text: str) -> EtcdError:
    return EtcdError(grpc.StatusCode.UNAVAILABLE, f"etcdserver: {text}")


def _no_lease() -> EtcdError:
    return EtcdError(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


def _no_space() -> EtcdError:
    return EtcdError(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


# ---- what is stored


@dataclass(slots=True)
class Lease:
    seconds: int
    expires_at: float
    keys: set[bytes] = field(default_factory=set)


class State:
    """What a majority has agreed on. Each method is one applied request; times are arguments."""

    def __init__(self, *, lease_seconds_min: int = 2, lease_ids: Callable[[], int] | None = None) -> None:
        self.cluster_id = CLUSTER_ID
        self.revision = 1
        self.compacted = 0  # history up to here is gone
        self.full = False  # the space alarm: nothing that puts is taken
        self.keys: dict[bytes, Any] = {}  # key -> KeyValue
        self.leases: dict[int, Lease] = {}
        self.history: list[tuple[int, list[Any]]] = []  # revision, Events
        self._lease_seconds_min = lease_seconds_min
        self._last_lease = 0x1000
        self._lease_ids = lease_ids or self._next_lease

    def _next_lease(self) -> int:
        self._last_lease += 1
        return self._last_lease

    def backup(self, *, same_cluster: bool = False) -> State:
        """What `etcdctl snapshot save` and `restore` make of it: its content, often in another cluster."""
        other = deepcopy(self)
        other.cluster_id += 0 if same_cluster else 1
        other.history.clear()
        other.compacted = other.revision
        return other

    def header(self, member: int = 0, term: int = 2) -> Any:
        return rpc.ResponseHeader(
            cluster_id=self.cluster_id, member_id=member + 1, revision=self.revision, raft_term=term
        )

    def txn(self, request: Any) -> Any:
        """A transaction; without changes it is a read."""
        _check_txn(request)
        if self.full and any(
            op.WhichOneof("request") == "request_put" for op in (*request.success, *request.failure)
        ):
            raise _no_space()
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        for operation in operations:
            if operation.WhichOneof("request") == "request_put":
                self._check_lease(operation.request_put.lease)
        change = _Change(self)
        reply = rpc.TxnResponse(succeeded=succeeded)
        for operation in operations:
            kind = operation.WhichOneof("request")
            made = reply.responses.add()
            if kind == "request_range":
                made.response_range.CopyFrom(change.range(operation.request_range))
            elif kind == "request_put":
                made.response_put.CopyFrom(change.put(operation.request_put))
            elif kind == "request_delete_range":
                made.response_delete_range.CopyFrom(change.delete(operation.request_delete_range))
            else:
                raise NotImplementedError("transactions in transactions")
        change.done()
        reply.header.revision = self.revision
        return reply

    def range(self, request: Any) -> Any:
        _require_key(request.key)
        reply = _Change(self).range(request)
        reply.header.revision = self.revision
        return reply

    def put(self, request: Any) -> Any:
        _require_key(request.key)
        if self.full:
            raise _no_space()
        self._check_lease(request.lease)
        change = _Change(self)
        reply = change.put(request)
        change.done()
        reply.header.revision = self.revision
        return reply

    def delete(self, request: Any) -> Any:
        _require_key(request.key)
        change = _Change(self)
        reply = change.delete(request)
        change.done()
        reply.header.revision = self.revision
        return reply

    def grant(self, request: Any, now: float) -> Any:
        if self.full:
            raise _no_space()
        lease = request.ID or self._lease_ids()
        if lease in self.leases:
            raise EtcdError(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
        seconds = max(request.TTL, self._lease_seconds_min)
        self.leases[lease] = Lease(seconds, now + seconds)
        return rpc.LeaseGrantResponse(header=self.header(), ID=lease, TTL=seconds)

    def revoke(self, request: Any) -> Any:
        lease = self.leases.pop(request.ID, None)
        if lease is None:
            raise _no_lease()
        change = _Change(self)
        for key in sorted(lease.keys):
            change.delete(rpc.DeleteRangeRequest(key=key))
        change.done()
        return rpc.LeaseRevokeResponse(header=self.header())

    def time_to_live(self, request: Any, now: float) -> Any:
        if request.keys:
            raise NotImplementedError("the keys of a lease")
        lease = self.leases.get(request.ID)
        if lease is None:
            return rpc.LeaseTimeToLiveResponse(header=self.header(), ID=request.ID, TTL=-1)
        return rpc.LeaseTimeToLiveResponse(
            header=self.header(),
            ID=request.ID,
            TTL=int(max(0.0, lease.expires_at - now)),
            grantedTTL=lease.seconds,
        )

    def compact(self, revision: int) -> None:
        """Forget history up to `revision`, inclusive."""
        self.compacted = max(self.compacted, revision)
        self.history = [each for each in self.history if each[0] > self.compacted]

    def events(self, after: int, until: int, key: bytes, end: bytes) -> Iterable[tuple[int, list[Any]]]:
        """What happened to keys of a range after a revision, until another, inclusive."""
        first = bisect_right(self.history, after, key=lambda each: each[0])
        for revision, events in self.history[first:]:
            if revision > until:
                break
            found = [event for event in events if _within(event.kv.key, key, end)]
            if found:
                yield revision, found

    def _check_lease(self, lease: int) -> None:
        if lease and lease not in self.leases:
            raise _no_lease()

    def _holds(self, compare: Any) -> bool:
        keys = _keys(self.keys, compare.key, compare.range_end)
        return all(_fits(self.keys[key], compare) for key in keys) if keys else _fits(None, compare)


def _fits(found: Any, compare: Any) -> bool:
    """Whether a key, None for one that is not there, is as a transaction wants it."""
    target = rpc.Compare.CompareTarget.Name(compare.target)
    if target == "VALUE":
        if found is None:
            return False
        have, want = found.value, compare.value
    else:
        name = {"MOD": "mod_revision", "CREATE": "create_revision"}.get(target, target.lower())
        have = getattr(found, name) if found is not None else 0
        want = getattr(compare, name)
    result = rpc.Compare.CompareResult.Name(compare.result)
    return bool(
        {
            "EQUAL": have == want,
            "NOT_EQUAL": have != want,
            "GREATER": have > want,
            "LESS": have < want,
        }[result]
    )


class _Change:
    """What one request changes: all of it has one revision, and a request that changes nothing has none."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._events: list[Any] = []

    @property
    def _revision(self) -> int:
        return self._state.revision + (1 if self._events else 0)

    def range(self, request: Any) -> Any:
        known = {"key", "range_end", "limit", "keys_only", "count_only", "serializable"}
        for field_set, _ in request.ListFields():
            if field_set.name not in known:
                raise NotImplementedError(f"ranges with {field_set.name}")
        keys = _keys(self._state.keys, request.key, request.range_end)
        reply = rpc.RangeResponse(count=len(keys), header=rpc.ResponseHeader(revision=self._revision))
        if request.count_only:
            return reply
        if request.limit and len(keys) > request.limit:
            reply.more = True
            keys = keys[: request.limit]
        for key in keys:
            value = reply.kvs.add()
            value.CopyFrom(self._state.keys[key])
            if request.keys_only:
                value.value = b""
        return reply

    def put(self, request: Any) -> Any:
        if request.ignore_value or request.ignore_lease or request.prev_kv:
            raise NotImplementedError("puts that ignore or ask for what was there")
        state, key = self._state, request.key
        revision = state.revision + 1
        old = state.keys.get(key)
        new = rpc.KeyValue(
            key=key,
            value=request.value,
            lease=request.lease,
            mod_revision=revision,
            create_revision=old.create_revision if old is not None else revision,
            version=old.version + 1 if old is not None else 1,
        )
        if old is not None and old.lease in state.leases:
            state.leases[old.lease].keys.discard(key)
        if request.lease:
            state.leases[request.lease].keys.add(key)
        state.keys[key] = new
        self._events.append(rpc.Event(type=rpc.Event.PUT, kv=new))
        return rpc.PutResponse(header=rpc.ResponseHeader(revision=revision))

    def delete(self, request: Any) -> Any:
        if request.prev_kv:
            raise NotImplementedError("deletes that ask for what was there")
        state = self._state
        keys = _keys(state.keys, request.key, request.range_end)
        for key in keys:
            old = state.keys.pop(key)
            if old.lease in state.leases:
                state.leases[old.lease].keys.discard(key)
            gone = rpc.KeyValue(key=key, mod_revision=state.revision + 1)
            self._events.append(rpc.Event(type=rpc.Event.DELETE, kv=gone))
        header = rpc.ResponseHeader(revision=self._revision)
        return rpc.DeleteRangeResponse(deleted=len(keys), header=header)

    def done(self) -> None:
        if self._events:
            self._state.revision += 1
            self._state.history.append((self._state.revision, self._events))


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


def _keys(keys: dict[bytes, Any], start: bytes, end: bytes) -> list[bytes]:
    if not end:
        return [start] if start in keys else []
    return sorted(key for key in keys if _within(key, start, end))


def _require_key(key: bytes) -> None:
    if not key:
        raise EtcdError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")


def _check_txn(request: Any) -> None:
    """A key may be changed once in each branch; a deletion counts after a put only."""
    for compare in request.compare:
        _require_key(compare.key)
    for branch in (request.success, request.failure):
        puts: set[bytes] = set()
        deletes: list[Any] = []
        for operation in branch:
            kind = operation.WhichOneof("request")
            if kind is None or kind == "request_txn":
                raise NotImplementedError("transactions in transactions")
            _require_key(getattr(operation, kind).key)
            if kind == "request_delete_range":
                deletes.append(operation.request_delete_range)
            elif kind == "request_put":
                if operation.request_put.key in puts:
                    raise _duplicate()
                puts.add(operation.request_put.key)
        if any(_within(key, each.key, each.range_end) for each in deletes for key in puts):
            raise _duplicate()


def _duplicate() -> EtcdError:
    return EtcdError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")


def writes(request: Any) -> bool:
    """Whether a transaction may change something: it needs a majority's agreement, not only its word."""
    return any(
        operation.WhichOneof("request") != "request_range"
        for operation in (*request.success, *request.failure)
    )
