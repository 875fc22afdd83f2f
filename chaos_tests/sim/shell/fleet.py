"""The nodes of a simulated fleet: real Servers, each start a process of its own, on disks that stay.

A Node is also what the account (sim/turns/account.py) knows as a host: it tells what is durable on its disk,
entry by entry, as its journal wrote it, and compares that with what a later start reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from random import Random
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from chaos_tests.sim.shell.disk import Directory, File, SimPath
from chaos_tests.sim.shell.network import ListeningSocket
from cluster.server import Settings
from cluster.server.errors import StartError
from cluster.server.server import Server
from cluster.wire.packets import HEADER_BYTES, JOB_ASSIGN_UNIQ, MAGIC_RESPONSE

if TYPE_CHECKING:
    from chaos_tests.sim.shell.disk import SimJournal
    from chaos_tests.sim.shell.kernel import Process, World
    from chaos_tests.sim.turns.account import Account
    from cluster.node import Output
    from cluster.replication.frames import Frame

GEARMAN_PORT: Final = 4730
PEER_PORT: Final = 4731
DATA: Final = "data"
LEASE_SECONDS: Final = 2
RECLAIM_SECONDS: Final = 1.0
_SEGMENT_BYTES: Final = 48
_JOB_ASSIGNED: Final = MAGIC_RESPONSE + JOB_ASSIGN_UNIQ.to_bytes(4, "big")
_FRAME: Final = Struct(">4sIQB7xI")


@lru_cache(maxsize=64)
def _settings(name: str, address: str, etcd: str, nodes: int, segment_bytes: int) -> Settings:
    chosen: dict[str, Any] = {
        "name": name,
        "host": address,
        "port": GEARMAN_PORT,
        "peer_port": PEER_PORT,
        "advertise": address,
        "etcd": etcd,
        "http_port": -1,
        "lease_seconds": LEASE_SECONDS,
        "keepalive_seconds": 0.5,
        "rpc_timeout_seconds": 0.5,
        "reclaim_seconds": RECLAIM_SECONDS,
        "retry_pause_seconds_max": 2.0,
        "bootstrap_nodes": min(3, nodes),
        "replicas": min(3, nodes),
        "replace_after_seconds": 30.0,
        "segment_bytes": segment_bytes,
    }
    return Settings(**chosen)


class Node:
    """One node over all its starts."""

    def __init__(
        self, world: World, name: str, etcd: str, nodes: int, account: Account, segment_bytes: int
    ) -> None:
        self.world = world
        self.name = name
        self.host = world.host(name)
        self.account = account
        self.wanted = True  # a supervisor starts it again
        self.starts = 0
        self.process: Process | None = None
        self.server: Server | None = None
        self.identity = ""  # of the data directory; "" while it is not known, or its disk does not count
        self.disk: list[bytes] = []  # durable entries under this identity, for the account
        self.damaged = False  # what was promised to be on its disk may not be there
        self.knows_damage = False  # and the next start must not count what is there
        self.reason = ""  # why the last start ended
        self.on_exit: Callable[[Node], None] = lambda node: None
        self.on_assigned: Callable[[Node, bytes], None] = lambda node, handle: None
        self._segments: dict[int, bytearray] = {}  # durable entries by segment
        self._looked: tuple[int, int, Any] = (-1, -1, None)
        self._dropped_before = 0  # earlier ones are history, there or not
        self.host.disk.on_failed_fsync = self._fsync_failed
        settings = _settings(name, self.host.address, etcd, nodes, segment_bytes)
        self.settings = settings.model_copy(update={"data_dir": SimPath(self.host.disk, DATA)})

    # ---- as the account sees it

    unwritten: tuple[()] = ()  # groups are given to the account as they are cut

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive and hasattr(self, "part")

    @property
    def node(self) -> Any:
        assert self.server is not None
        return self.server.node

    @property
    def incarnation(self) -> int:
        return self.part.me.incarnation if hasattr(self, "part") else 0

    def has_changed(self) -> bool:
        """Whether anything may be different that the account watches."""
        part = self.part
        looks = (self.node.log.committed, len(part.replicator.leads), part.view)
        if looks[:2] == self._looked[:2] and looks[2] is self._looked[2]:
            return False
        self._looked = looks
        return True

    # ---- starts and ends

    @property
    def running(self) -> bool:
        """There is a process."""
        return self.process is not None and self.process.alive

    def wipe(self) -> None:
        """An operator gives it an empty directory."""
        self.host.disk.root = Directory()
        self.damaged = True
        self.world.say("wipe", self.name)

    def start(self) -> None:
        assert not self.running
        self.starts += 1
        self.reason = ""
        self.server = None
        self.__dict__.pop("part", None)
        self.process = self.world.process(self.host)
        self.process.journal_watcher = self
        self.world.say("start", self.name)
        self.process.spawn(self._serve(self.process))

    async def _serve(self, process: Process) -> None:
        try:
            self.server = server = Server(self.settings, None)
            self._watch(server)
            try:
                await server.start(ListeningSocket(self.host.address, GEARMAN_PORT))
            except asyncio.CancelledError:
                if not server.stopping:
                    raise
            await server.stopped.wait()
            self.reason = "failed" if server.failed else "stopped"
        except (StartError, OSError) as error:
            self.reason = str(error)
        self.world.say("exit", self.name, self.reason)
        self.world.after(0.0, self._exited, process)

    def _exited(self, process: Process) -> None:
        if process.alive:
            process.die(quietly=False)
            self.died()
            self.on_exit(self)

    def died(self) -> None:
        self.account.groups.pop(self.name, None)
        self.__dict__.pop("part", None)
        self.account.changed = True

    def _watch(self, server: Server) -> None:
        """What it promises to other nodes, takes from them, and gives to workers is looked at."""
        life: Any = server._life
        watched: Any = server
        account: Any = self.account
        take_frame, peer_frame, deliver = life.take_frame, life.peer_frame, watched._deliver
        journal_failed = watched._on_failed

        def take(name: str) -> Any:
            frame = take_frame(name)
            if frame is not None and (frame.answers or frame.offers):
                account.promise(self, frame)
            return frame

        def receive(name: str, frame: Frame) -> None:
            if not frame.offers:
                peer_frame(name, frame)
                return
            promised = {slot.index: slot.promised for slot in server.node.log.slots}
            peer_frame(name, frame)
            account.offered(self, name, frame, promised)

        def send(output: Output) -> None:
            for _, data in output.sends:
                at = data.find(_JOB_ASSIGNED)
                while at >= 0:
                    handle = data[at + HEADER_BYTES : data.index(b"\0", at + HEADER_BYTES)]
                    self.on_assigned(self, handle)
                    at = data.find(_JOB_ASSIGNED, at + 1)
            deliver(output)

        def failed(group: int, reason: str, may_recover: bool) -> None:
            journal_failed(group, reason, may_recover)
            # It had the time to condemn its disk. One that is full as well takes no word of that.
            self.knows_damage |= self.damaged and not self.host.disk.full

        life.take_frame, life.peer_frame, watched._deliver = take, receive, send
        watched._on_failed = failed

    # ---- its journal (JournalWatcher)

    def journal_begun(self, journal: SimJournal) -> None:
        """What this start has read from its disk is all that was durable, and perhaps more."""
        assert self.server is not None
        directory = self.server._directory
        assert directory is not None
        identity = directory.identity.hex
        if identity != self.identity:
            self._dropped_before = 0
        found = {
            number: _entries(file)
            for number, file in self._journal_files()
            if self._dropped_before <= number < journal._segment_number
        }
        if identity != self.identity:
            if self.identity and not self.damaged:
                self.world.fail("a good disk has a new identity", self.name)
            self.account.lost_disk(self.identity)
            self.identity = identity
            self._segments, self.disk, self._dropped_before = {}, [], 0
            if any(found.values()):
                self.world.fail("a new identity with old entries", self.name)
        elif self.damaged:
            if self.knows_damage:
                self.world.fail("a damaged disk counts as a copy", self.name)
        else:
            for number, known in self._segments.items():
                if known and number not in found:
                    self.world.fail("a durable segment is gone", f"{self.name}: {number}")
                elif not found.get(number, b"").startswith(known):
                    self.world.fail("a segment is not what was durable", f"{self.name}: {number}")
        self.damaged = self.knows_damage = False
        for number, data in sorted(found.items()):
            known = self._segments.setdefault(number, bytearray())
            if len(data) > len(known):
                self.disk.append(bytes(data[len(known) :]))
                known[:] = data
        self.part = self.server._life.fleet  # type: ignore[union-attr]
        self.account.groups[self.name] = deque()
        self.account.read(self)  # type: ignore[arg-type]
        self.account.started(self)  # type: ignore[arg-type]

    def appended(self, group: int, records: list[bytes]) -> None:
        self.account.groups[self.name].append((group, records))

    def fsynced(self, segment: int, data: bytes) -> None:
        self._segments.setdefault(segment, bytearray()).extend(data)
        if data:
            self.disk.append(data)

    def dropped(self, before: int) -> None:
        self._dropped_before = before
        for number in [number for number in self._segments if number < before]:
            del self._segments[number]

    def rot(self, file: File, at: int) -> None:
        """A bit of its journal flips; that shows, so no start may count what is there."""
        self.host.disk.rot(file, at)
        self.damaged = self.knows_damage = True

    def _fsync_failed(self, node: File | Directory) -> None:
        """Only what is lost of the journal matters: nobody goes on without the other files, and a segment
        that has no entries yet is not begun."""
        journal = [file for _, file in self._journal_files() if len(file.data) > _SEGMENT_BYTES]
        self.damaged |= any(node is each for each in journal)

    def rotting_place(self, dice: Random) -> tuple[File | None, int]:
        """A segment, and where its last frame begins; None where no frame has a successor."""
        files = self._journal_files()
        places = [(file, _last_frame(file)) for _, file in files]
        places = [(file, at) for file, at in places if at > _SEGMENT_BYTES]
        return dice.choice(places) if places else (None, 0)

    def _journal_files(self) -> list[tuple[int, File]]:
        prefix = f"{DATA}/journal/"
        return [
            (int(path[len(prefix) :].removesuffix(".segment")), file)
            for path, file in self.host.disk.files()
            if path.startswith(prefix) and path.endswith(".segment")
        ]


def _entries(file: File) -> bytes:
    """All entries of a segment, one frame after the other."""
    data, at, out = bytes(file.data), _SEGMENT_BYTES, []
    while at < len(data):
        magic, length, _, _, _ = _FRAME.unpack_from(data, at)
        assert magic == b"GFRM"
        at += _FRAME.size
        out.append(data[at : at + length])
        at += length
    return b"".join(out)


def _last_frame(file: File) -> int:
    """Where the last frame that was fsynced begins."""
    data, at, last = file.synced, _SEGMENT_BYTES, 0
    while at + _FRAME.size <= len(data):
        magic, length, _, _, _ = _FRAME.unpack_from(data, at)
        if magic != b"GFRM" or at + _FRAME.size + length > len(data):
            break
        last = at
        at += _FRAME.size + length
    return last
