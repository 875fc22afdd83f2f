"""Who led which slot, and since when: every map that etcd has had, into the history.

The map is read past the proxies, and from the change after the last one that was seen: a node that led for a
moment only, and made no job, explains what was lost with it all the same.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from http.client import HTTPConnection, HTTPException
from threading import Event, Thread
from types import TracebackType
from typing import Any, Final

from chaos_tests.live.proofs import map_key
from cluster.drill.history import History
from cluster.placement import decode_map
from tests.support.etcd import Etcd, EtcdMember
from tests.support.waiting import eventually

QUIET_SECONDS: Final = 1.0  # after so long without a change, or an answer, the next member is asked
MAP_SECONDS: Final = 30.0  # within which the last map is seen


class LeaderWatch:
    """Notes leaders from its start to its end. Etcd's members may die, stand still and forget meanwhile."""

    def __init__(self, etcd: Etcd, fleet: str, history: History) -> None:
        self._etcd = etcd
        self._map = map_key(fleet)
        self._key = b64encode(self._map.encode()).decode()
        self._history = history
        self._epochs: dict[int, int] = {}  # slot -> the newest that is noted
        self._seen = 0  # revision of the last map; 0: none yet, or etcd has forgotten what came after
        self._stopped = Event()
        self._failure: Exception | None = None
        self._thread = Thread(target=self._run, name="leaders", daemon=True)

    def __enter__(self) -> LeaderWatch:
        self._thread.start()
        self.catch_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def catch_up(self) -> None:
        """Wait until the map of this moment is noted. Raises AssertionError."""
        wanted = self._etcd.modified(self._map)
        eventually(lambda: self._failure is not None or self._seen >= wanted, timeout_seconds=MAP_SECONDS)
        assert self._failure is None, repr(self._failure)

    # ---- in its thread

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            members = [member for member in self._etcd.members if member.running]
            number += 1
            try:
                if members:
                    self._follow(members[number % len(members)])
            except (OSError, HTTPException, json.JSONDecodeError):
                pass  # it is gone, perhaps in the middle of a line; or nothing has changed for a while
            except Exception as error:  # told by `catch_up`
                self._failure = error
                return
            self._stopped.wait(0.01)

    def _follow(self, member: EtcdMember) -> None:
        if not self._seen:
            reply = json.loads(member.request("POST", "/v3/kv/range", json.dumps({"key": self._key})))
            if not reply.get("kvs"):
                raise OSError(f"no map: {reply}")
            self._note(reply["kvs"][0])
        connection = HTTPConnection(member.host, member.port, timeout=QUIET_SECONDS)
        try:
            request = {"create_request": {"key": self._key, "start_revision": str(self._seen + 1)}}
            connection.request("POST", "/v3/watch", json.dumps(request))
            reply = connection.getresponse()
            while not self._stopped.is_set() and (line := reply.readline()):
                said = json.loads(line).get("result")
                if said is None or said.get("canceled"):
                    self._seen = 0  # etcd has forgotten how it stood then
                    return
                for event in said.get("events", ()):
                    if event.get("type", "PUT") == "PUT":
                        self._note(event["kv"])
        finally:
            connection.close()

    def _note(self, found: dict[str, Any]) -> None:
        revision = int(found["mod_revision"])
        for slot, row in enumerate(decode_map(b64decode(found["value"]), revision).slots):
            if row.primary and row.epoch > self._epochs.get(slot, -1):
                self._epochs[slot] = row.epoch
                self._history.leads(row.primary, slot, row.epoch)
        self._seen = revision
