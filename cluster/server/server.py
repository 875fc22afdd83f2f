"""Server: the loop's turn around the node's turn, timers, housekeeping, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import structlog

from cluster import __version__
from cluster.jobs import PRIORITIES, SCHEDULED
from cluster.node import Connection, Node, NodeSettings, Output
from cluster.node.context import Stop
from cluster.node.fleet import Fleet
from cluster.replication import SLOT_COUNT, Group, entries
from cluster.replication.restore import ReplicaRestorer
from cluster.server.beginnings import Beginnings
from cluster.server.directory import DataDirectory
from cluster.server.errors import JournalDamaged, StartError
from cluster.server.fleet import FleetLife
from cluster.server.job_log import JobLog
from cluster.server.journal import Decode, Journal, Replay, read_journal
from cluster.server.memory import JOB_BYTES, Memory, find_available, too_little
from cluster.server.plain import PlainPort
from cluster.server.settings import Settings
from cluster.server.silence import SilenceWatch
from cluster.server.status import FleetStatus, FunctionStatus, Latency, MemoryStatus, NodeStatus, Phase
from cluster.server.stranger_log import StrangerLog
from cluster.server.tls import TlsPeer, tls_context
from cluster.server.tls_listener import TlsListener
from cluster.server.turns import TurnSelector
from cluster.server.unkept import unkept
from cluster.server.whereabouts import Whereabouts

HOUSEKEEPING_SECONDS: Final = 1.0
# Files that are not connections: journal, log, listener, loop, Python's own.
SPARE_DESCRIPTORS: Final = 64
# How long a group waits for company: while someone waits for it and the last one was large, and while
# nobody does. See Server._wants_cut.
PACE_SECONDS: Final = 0.001
FLEET_CYCLE_SECONDS: Final = 0.002
ENTRY_BYTES: Final = 128  # of another node's entries that weigh as much as one of our own, about
HINT_SECONDS: Final = 0.005
PACED_RECORDS_MIN: Final = 16
PACED_RECORDS_MAX: Final = 2048
GROUP_UNKNOWN: Final = 1 << 62  # a checkpoint is under way; its last group is not cut yet
JOB_RECORD_BYTES: Final = 100  # of a job's record beside its payload and key, about
BUSY_FRAMES: Final = 20  # frames in a second
SAMPLED_JOBS: Final = 128
# A checkpoint costs as much as it keeps; below this much history a journal is not worth one.
CHECKPOINT_BYTES_MIN: Final = 4 * 1024 * 1024
# With fewer jobs a whole garbage collection takes no time that anyone sees.
COLLECT_JOBS_MAX: Final = 20_000
COLLECT_EVERY_SECONDS: Final = 60.0
# Wall clocks may be set: look again at least this often whether a scheduled job is due.
TIMER_SECONDS_MAX: Final = 10.0
# Memory is given back when the jobs have halved, or are this few, and it has grown by this much.
TRIM_JOBS: Final = 1000
TRIM_BYTES_MIN: Final = 16 * 1024 * 1024
LAST_WORDS_SECONDS: Final = 0.3  # the same when all has been sent, for the peers to close first
CLOSE_SECONDS: Final = 5.0  # how long a stopping node waits for answers to leave


class Server:
    """One node at work."""

    def __init__(self, settings: Settings, selector: TurnSelector | None) -> None:
        """`selector` is that of the running loop; None when the loop has another one."""
        self.settings = settings
        self._selector = selector
        self.log = structlog.get_logger("gearfleet")
        self._job_log = JobLog(self.log)
        self.stranger_log = StrangerLog(self.log)
        self.node = self._new_node()
        self.beginnings = Beginnings(self)
        self._silence = SilenceWatch(self)
        self.slow: dict[Connection, None] = {}  # peers with much unread output
        self.stopped = asyncio.Event()
        self.failed = False  # it stops because it must
        self._disk_failed = False  # what was fsynced may not be on the disk
        self.deserted = asyncio.Event()  # stopping, and the last connection is gone
        self._loop = asyncio.get_running_loop()
        self._in_turn = False
        self._defect = False  # a turn failed in the middle: nothing that follows would make sense
        self._starting: asyncio.Task[None] | None = None
        self._directory: DataDirectory | None = None
        self._journal: Journal | None = None
        self._listeners: list[asyncio.Server | TlsListener] = []
        self._port: PlainPort | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: tuple[float | None, float | None] = (None, None)
        self._connections_max = 0
        self._turned_away = 0
        self._turned_away_before = 0  # told already
        self._draining = False
        self._stopping = False
        self._writing = False  # a group is on its way to the disk
        self._cut_at: deque[tuple[int, float]] = deque()  # groups not committed, and when each was cut
        self._groups_committed = 0
        self._commit_latency = Latency()
        self._housekept_at = 0.0  # monotonic; 0 = not serving yet
        self._life = FleetLife(self) if settings.etcd else None
        # Set by whoever makes this node one of a fleet.
        self.fleet_status: Callable[[], FleetStatus] | None = None
        self._group_timer: asyncio.TimerHandle | None = None
        self._fleet_timer: asyncio.TimerHandle | None = None
        self._waited = False
        self._cut_last_at = 0.0
        self._last_count = 0  # entries in the last group
        self._failure: str | None = None
        self._may_recover = False
        self._owed: list[bytes] = []
        self._stop_task: asyncio.Task[None] | None = None
        self._checkpoint: Iterator[None] | None = None
        self._checkpoint_segment = 0
        self._checkpoint_group = 0  # the last group of a written checkpoint; 0 = none waits
        self._checkpoint_bytes = 0  # size of the journal after the last one
        self._checkpoint_count = 0  # jobs in it
        self._frames_seen = 0
        # What is passed over must not stay in the files: once is to be enough.
        self._must_checkpoint = settings.salvage
        self._collected_at = time.monotonic()
        self.received_bytes = 0  # since memory was last looked at
        self._memory = Memory(settings.max_memory_bytes, find_available())
        self._jobs_most = 0  # since memory was last given back
        self._resident_bytes = _resident_bytes()  # when it was

    def _new_node(self) -> Node:
        settings = self.settings
        return Node(
            NodeSettings(
                handle_prefix=settings.handle_prefix.encode(),
                durable=settings.durability != "memory",
                job_retries=settings.job_retries,
                pause_seconds_max=settings.retry_pause_seconds_max,
                requeue_on_timeout=settings.on_timeout == "requeue",
                worker_wakeup=settings.worker_wakeup,
                exceptions=settings.exceptions,
                reclaim_seconds=settings.reclaim_seconds,
                shutdown_from=settings.shutdown_from,
                version=__version__,
                process_id=os.getpid(),
                log_level=settings.log_level,
                remember_seconds=settings.remember_seconds,
                remember_jobs_max=settings.remember_jobs_max,
                idle_function_seconds=settings.idle_function_seconds,
                idle_functions_max=settings.idle_functions_max,
            )
        )

    # ---- starting

    async def start(self, *socks: Any) -> None:
        """Restore the journal, then serve on bound sockets of one port. Raises StartError, OSError.

        It is cancelled by a stop that comes before it is through.
        """
        self._starting = self._loop.create_task(self._start(socks))
        await self._starting

    async def _start(self, socks: Sequence[Any]) -> None:
        settings = self.settings
        now = time.time()
        tls = tls_context(settings)  # what it says is wrong comes before anything is made
        if fault := self._memory.empty_fault(_resident_bytes()):
            raise StartError(fault)
        self.node.begin_turn(now, time.monotonic())
        if self._life is not None:
            await self._join(self._life, socks[0])
        elif settings.durability != "memory":
            # Later than any start in the journal, and than those of a directory that was lost.
            incarnation = self._open_journal(int(now))
        else:
            # Nothing remembers the last start; no two are in one millisecond.
            incarnation = int(now * 1000)
            self.log.warning("jobs are kept in memory only; a restart forgets them", durability="memory")
        if self._life is None:
            self.node.lead_all(incarnation, __version__)
        self._connections_max = settings.max_connections or self._descriptors_allow()
        if tls is None and self._selector is not None:
            self._port = PlainPort(self, self._selector, socks, settings.backlog)
            self._selector.only_ours = lambda: not self._in_turn
        elif tls is None:
            for sock in socks:
                self._listeners.append(
                    await self._loop.create_server(lambda: TlsPeer(self), sock=sock, backlog=settings.backlog)
                )
        else:
            for sock in socks:
                self._listeners.append(
                    TlsListener(
                        sock,
                        lambda: TlsPeer(self),
                        tls,
                        self.tls_refused,
                        backlog=settings.backlog,
                        handshake_seconds=settings.tls_handshake_seconds,
                    )
                )
        self.turn()
        gc.collect()
        gc.freeze()
        gc.disable()
        self._housekept_at = time.monotonic()
        self._loop.call_later(HOUSEKEEPING_SECONDS, self._housekeeping)
        self.log.info(
            "listening",
            host=" ".join(sock.getsockname()[0] for sock in socks),
            port=socks[0].getsockname()[1],
            node=settings.name,
            durability=settings.durability,
            version=__version__,
        )

    async def _join(self, life: FleetLife, sock: Any) -> None:
        """The same in a fleet: etcd first, then the journal, then the other nodes. Waits for etcd."""
        self._directory = directory = DataDirectory(self.settings.data_dir, self.settings.fleet)
        if directory.fleet is None:
            self._leave_solitude(directory)
        await life.look(directory)
        fleet = life.pure(directory.identity.hex)
        restorer = ReplicaRestorer(fleet.replicator)
        try:
            self._replay(directory, restorer.apply, entries.decode_raw)
            if restorer.headless:
                raise JournalDamaged(f"the beginning of {len(restorer.headless)} slots is missing")
        except JournalDamaged as error:
            # Rule 10: it comes back as a learner with nothing; the others have the jobs.
            self.log.error("the journal is damaged; this node begins with nothing", reason=str(error))
            directory.renew_identity("damaged")
            self.node = self._new_node()
            await life.look(directory)
            fleet = life.pure(directory.identity.hex)
            restorer = ReplicaRestorer(fleet.replicator)
        if directory.fleet is None:
            jobs = sum(
                len(replica.base) + len(replica.tail) for replica in fleet.replicator.replicas if replica
            )
            directory.bind(self.settings.fleet, SLOT_COUNT, jobs=jobs)
        self._begin_journal(directory)
        fleet.restore_limits(restorer.limits)
        incarnation = directory.next_incarnation()
        await life.listen(incarnation, sock.getsockname()[1], empty=restorer.empty)

    def _leave_solitude(self, directory: DataDirectory) -> None:
        """A directory that is of no fleet yet: new, or of a node that stood alone. Raises DirectoryError."""
        restorer = self.node.restorer()
        self._replay(directory, restorer.apply, entries.decode)
        directory.bind(self.settings.fleet, SLOT_COUNT, jobs=len(restorer.finish()))
        if any(directory.journal_path.iterdir()):
            directory.renew_identity("standalone")
            self.node = self._new_node()

    def _open_journal(self, incarnation: int) -> int:
        self._directory = directory = DataDirectory(self.settings.data_dir)
        restorer = self.node.restorer()
        self._replay(directory, restorer.apply, entries.decode)
        jobs = restorer.finish()
        self._begin_journal(directory)
        # What a checkpoint would be now: a restart must not take history for the normal size.
        self._checkpoint_bytes = sum(len(job.payload) + len(job.key) + JOB_RECORD_BYTES for job in jobs)
        self._checkpoint_count = len(jobs)
        return max(incarnation, self.node.log.incarnation + 1)

    def _replay(
        self, directory: DataDirectory, apply: Callable[[entries.Entry], None], decode: Decode
    ) -> None:
        """Read the journal. Raises JournalDamaged."""
        settings = self.settings
        began = time.monotonic()
        replay = Replay()
        unlooked_bytes = 0
        gc.disable()
        try:
            for entry in read_journal(
                directory.journal_path,
                directory.identity,
                replay,
                salvage=settings.salvage,
                decode=decode,
            ):
                unlooked_bytes += len(entry.body)
                if unlooked_bytes >= self._memory.look_bytes:
                    unlooked_bytes = 0
                    if fault := self._memory.start_fault(_resident_bytes(), replay.bytes_read):
                        raise StartError(fault)
                try:
                    apply(entry)
                except entries.DamagedEntry as error:
                    if not settings.salvage:
                        raise JournalDamaged(
                            f"an entry of the journal makes no sense ({error}): was it written by a newer "
                            "release? Use that one, or start once with --salvage, which passes over it"
                        ) from None
                    self.log.error("an entry was passed over", reason=str(error))
        except MemoryError:
            raise StartError(too_little("memory", replay.bytes_read)) from None
        finally:
            gc.enable()
        if replay.torn_bytes:
            self.log.warning(
                "cut a torn tail: the node died while it wrote; nothing in it had been acknowledged",
                segment=replay.torn_segment,
                bytes=replay.torn_bytes,
            )
        if replay.skipped_bytes:
            self.log.error("passed over damage: jobs that were in it are lost", bytes=replay.skipped_bytes)
        self.log.info(
            "journal restored",
            entries=replay.entries_read,
            bytes=replay.bytes_read,
            seconds=round(time.monotonic() - began, 3),
            directory=str(directory.path),
        )

    def _begin_journal(self, directory: DataDirectory) -> None:
        settings = self.settings
        try:
            self._journal = Journal(
                directory.journal_path,
                directory.identity,
                durability="fsync" if settings.durability == "fsync" else "os",
                segment_bytes=settings.segment_bytes,
                call_soon=self._loop.call_soon_threadsafe,
                on_committed=self._on_committed,
                on_failed=self._on_failed,
                on_rotated=self._on_rotated,
                whereabouts=Whereabouts(directory.path, directory.hold_lock),
            )
        except OSError as error:
            raise StartError(
                f"no journal can be begun in {directory.journal_path} ({error.strerror}): "
                "make room on the disk"
            ) from None

    def _descriptors_allow(self) -> int:
        """Raise the limit on open files to what is permitted; return what is left for connections."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                soft = hard
            except (OSError, ValueError):
                pass
        return max(16, soft - SPARE_DESCRIPTORS)

    # ---- connections

    def has_room(self) -> bool:
        return len(self.node.context.connections) < self._connections_max and not self._stopping

    def left(self, connection: Connection) -> None:
        """A connection is gone."""
        self.node.disconnected(connection)
        connection.transport = None
        self.slow.pop(connection, None)
        self.beginnings.left(connection)
        if self._stopping and not self.node.context.connections:
            self.deserted.set()

    def _log_commands(self) -> None:
        context = self.node.context
        commands, context.commands = context.commands, []
        left_out, context.commands_left_out = context.commands_left_out, 0
        self.stranger_log.commands(commands, left_out, time.monotonic())

    def tls_refused(self, address: str, reason: str) -> None:
        """Somebody did not get through the TLS handshake."""
        self.stranger_log.tls_refused(address, reason, time.monotonic())

    def turned_away(self) -> None:
        """One connection too many; told once a second, not once each."""
        self._turned_away += 1

    # ---- the turn

    def turn(self) -> None:
        """Whatever happens belongs to a turn; the first event of one begins it."""
        if not self._in_turn:
            self.begin()
            self._loop.call_soon(self.end)

    def begin(self) -> bool:
        """Begin a turn that the caller ends; false when one is under way, which somebody else ends."""
        if self._in_turn:
            return False
        self._in_turn = True
        try:
            self.node.begin_turn(time.time(), time.monotonic())
        except Exception:
            self._turn_failed()
        return True

    def end(self) -> None:
        """End the turn: entries to the journal, answers to their connections."""
        if not self._in_turn or self._defect:
            return
        try:
            self._end()
        except Exception:
            self._turn_failed()

    def _turn_failed(self) -> None:
        """A defect of ours. A node that goes on would hang, or promise what is not on the disk: it stops."""
        if isinstance(sys.exception(), MemoryError):
            self.out_of_memory(None)
        elif not self._defect:
            self._defect = True
            self.log.exception(
                "this node stops: a turn failed, which is a defect",
                remedy="start the node again, and report this; what was acknowledged is on the disk",
            )
            self.fail()

    def _end(self) -> None:
        node = self.node
        if self.received_bytes >= self._memory.look_bytes:
            self._look_at_memory()
        if self._checkpoint is not None and not self._writing:
            self._step_checkpoint()
        output = node.end_turn(cut=self._stopping or (not self._writing and self._wants_cut()))
        self._in_turn = False
        group = output.group
        if group is not None:
            assert self._journal is not None
            if self._failure is not None:
                self._owed += node.group_failed(group.number, self._failure)
                self.turn()
            else:
                self._writing = True
                self._cut_at.append((group.number, time.monotonic()))
                self._journal.append(group.number, group.for_disk())
        self._deliver(output)
        if node.context.events or self._job_log.lines_left_out:
            self._job_log.write(*node.context.events.take(), time.monotonic())
        if node.context.commands:
            self._log_commands()
        due = node.next_due()
        if due != self._timer_due:
            self._arm(due)
        if self._checkpoint is not None and not self._writing:
            self.turn()
        if self._life is not None and node.fleet is not None:
            self._after_turn(self._life, cut=group is not None)
        if self._draining and not self._stopping and not self._busy():
            self.stop()

    def _after_turn(self, life: FleetLife, *, cut: bool) -> None:
        fleet = life.fleet
        self._count_commits()
        if fleet.busy or fleet.catching_up:
            self.turn()
        life.after_turn(loaded=self._last_count >= PACED_RECORDS_MIN, cut=cut)
        if self._fleet_timer is None:
            delay = max(0.001, fleet.check_at - time.monotonic())
            self._fleet_timer = self._loop.call_later(delay, self._fleet_tick)

    def _fleet_tick(self) -> None:
        self._fleet_timer = None
        self.turn()

    def _wants_cut(self) -> bool:
        """Whether the open group is worth a write now.

        Each write costs as much as many jobs. So under load a group waits until it is as large as the
        last one, or PACE_SECONDS; one that nobody waits for (a job was given out, or is done) longer.
        """
        group = self.node.log.group
        if self._life is not None:
            return self._fleet_wants_cut(self._life.fleet, group)
        count = len(group.records)
        if not count and not group.waiting:
            return False
        if group.waiting:
            enough = self._last_count if self._last_count >= PACED_RECORDS_MIN else 0
            delay = PACE_SECONDS
        else:
            enough = PACED_RECORDS_MAX
            delay = HINT_SECONDS
        if self._waited or count >= enough or self._checkpoint_group:
            self._waited = False
            self._last_count = min(count, PACED_RECORDS_MAX)
            if self._group_timer is not None:
                self._group_timer.cancel()
                self._group_timer = None
            return True
        due = self._loop.time() + delay
        if self._group_timer is None or self._group_timer.when() > due:
            if self._group_timer is not None:
                self._group_timer.cancel()
            self._group_timer = self._loop.call_at(due, self._waited_enough)
        return False

    def _fleet_wants_cut(self, fleet: Fleet, group: Group) -> bool:
        """The same in a fleet: under load at most one group in FLEET_CYCLE_SECONDS.

        What a group sets going costs the same whatever is in it: a message to each backup and its answer,
        and an fsync on each. Messages leave with the groups (FleetLife.after_turn).
        """
        if fleet.to_write:
            return True  # a checkpoint is written as groups are closed
        weight = len(group.records) + sum(map(len, group.local)) // ENTRY_BYTES
        if not weight and not group.waiting and not group.needed and not group.local:
            return False
        now = self._loop.time()
        due = self._cut_last_at
        if not (group.waiting or group.local or group.needed):
            due += HINT_SECONDS
        elif self._last_count >= PACED_RECORDS_MIN:
            due += FLEET_CYCLE_SECONDS
        if now >= due or self._checkpoint_group:
            self._cut_last_at = now
            self._last_count = weight
            if self._group_timer is not None:
                self._group_timer.cancel()
                self._group_timer = None
            return True
        if self._group_timer is None or self._group_timer.when() > due:
            if self._group_timer is not None:
                self._group_timer.cancel()
            self._group_timer = self._loop.call_at(due, self._waited_enough)
        return False

    def _waited_enough(self) -> None:
        self._group_timer = None
        self._waited = True
        self.turn()

    def _deliver(self, output: Output) -> None:
        for connection, data in output.sends:
            transport = connection.transport
            if transport is not None:
                transport.write(data)
        if self.slow:
            self._drop_slow()
        for connection in output.closes:
            if connection.transport is not None:
                connection.transport.close()
        if output.stop is not None:
            self.stop() if output.stop is Stop.NOW else self.drain()

    def _drop_slow(self) -> None:
        for connection in list(self.slow):
            transport = connection.transport
            if transport is None:
                self.slow.pop(connection, None)
            elif transport.get_write_buffer_size() > self.settings.max_unread_bytes:
                self.slow.pop(connection, None)
                self.stranger_log.peer(
                    "disconnected a peer that does not read",
                    connection.address,
                    time.monotonic(),
                    unread_bytes=transport.get_write_buffer_size(),
                )
                transport.abort()

    def _arm(self, due: tuple[float | None, float | None]) -> None:
        """Wake for what is due next."""
        self._timer_due = due
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delays = []
        if due[0] is not None:
            delays.append(due[0] - time.time())
        if due[1] is not None:
            delays.append(due[1] - time.monotonic())
        if delays:
            delay = max(0.0, min(TIMER_SECONDS_MAX, *delays))
            self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_due = (None, None)
        self.turn()
        self.node.tick()

    # ---- the journal's answers

    def _on_committed(self, group_number: int) -> None:
        if self._defect:
            return
        began = self.begin()
        self._writing = False
        if self._failure is not None:
            self._recovered()
        if group_number:
            if self._life is not None:
                self._life.fleet.on_disk(group_number)
            else:
                self.node.committed(group_number)
            self._count_commits()
        if self._checkpoint_group and group_number >= self._checkpoint_group:
            self._checkpoint_done()
        if began:
            self.end()

    def _count_commits(self) -> None:
        """A group counts when it is committed: in a fleet that is when every in-sync member has it."""
        committed = self.node.log.committed
        now = time.monotonic()
        while self._cut_at and self._cut_at[0][0] <= committed:
            self._groups_committed += 1
            self._commit_latency.observe(now - self._cut_at.popleft()[1])

    def _on_failed(self, group_number: int, reason: str, may_recover: bool) -> None:
        self.turn()
        remedy = self._journal.remedy if self._journal is not None else ""
        if self._life is not None:
            # Others have the jobs: who cannot write is no use as a primary or a copy (rule 10).
            self.log.error(
                "this node stops: its journal cannot be written",
                reason=reason,
                remedy=remedy or "make room on the disk, or mend it; then start the node again",
            )
            if not may_recover:
                self._condemn()
            self.fail()
            return
        if group_number:
            self._writing = False  # else it was no group's write, and one may be on its way
        remedy = remedy or (
            "make room on the disk; the node goes on by itself"
            if may_recover
            else "look at the disk, then restart the node"
        )
        failure = f"{reason}; {remedy}"
        if failure != self._failure:
            self._failure = failure
            self.log.error(
                "background jobs are refused",
                reason=reason,
                remedy=remedy,
                directory=str(self.settings.data_dir),
            )
        self._may_recover = may_recover
        self.node.refuse_background(self._failure)
        if group_number:
            self._cut_at.clear()
            self._owed += self.node.group_failed(group_number, self._failure)
        self._checkpoint = None
        self._checkpoint_group = 0

    def _condemn(self) -> None:
        """Rule 10: whatever is on the disk now, it must not count as a copy. At once: stopping takes a while,
        and after a kill the page cache would show what the disk does not have."""
        if not self._disk_failed and self._directory is not None:
            self._disk_failed = True
            with contextlib.suppress(OSError):
                self._directory.condemn("damaged")

    def _recovered(self) -> None:
        self.log.warning("background jobs are accepted again")
        self._failure = None
        self.node.refuse_background(None)
        # What ended between the attempt and its success.
        self.node.log.group.records[:0] = self._owed
        self._owed = []

    # ---- checkpoints

    def _wants_checkpoint(self) -> bool:
        journal = self._journal
        if journal is None or self._checkpoint is not None or self._checkpoint_group or self._failure:
            return False
        if self._must_checkpoint:
            return True
        # A busy node has better things to do, until history is a whole segment.
        frames, self._frames_seen = self._frames_seen, journal.frames_written
        busy = journal.frames_written - frames > BUSY_FRAMES
        history_bytes_min = self.settings.segment_bytes if busy else CHECKPOINT_BYTES_MIN
        if journal.total_bytes < history_bytes_min:
            return False
        living_bytes = self._living_bytes()
        return journal.total_bytes - living_bytes >= max(living_bytes, history_bytes_min)

    def _living_bytes(self) -> int:
        """What the living jobs take in the journal, from a sample and from the last checkpoint."""
        ledger = self.node.ledger
        count = ledger.count()
        tables = (table.jobs for table in ledger.tables if table.jobs)
        sample = [next(iter(jobs.values())) for jobs in islice(tables, SAMPLED_JOBS)]
        sampled_bytes = sum(len(job.payload) + len(job.key) + JOB_RECORD_BYTES for job in sample)
        estimate = sampled_bytes * count // max(1, len(sample))
        if self.node.fleet is not None:
            # And what it keeps of slots that others lead: all there is on a node that leads nothing.
            replicas = [replica for replica in self.node.fleet.replicator.replicas if replica is not None]
            kept = sum(len(replica.base) + len(replica.tail) for replica in replicas)
            firsts = (next(chain(each.base.values(), each.tail), b"") for each in replicas)
            sizes = [len(first) for first in islice(filter(None, firsts), SAMPLED_JOBS)]
            estimate += sum(sizes) * kept // max(1, len(sizes))
        if self._checkpoint_count:
            # A few large payloads escape a sample; what they took at the last checkpoint does not.
            share = min(1.0, count / self._checkpoint_count)
            estimate = max(estimate, int(self._checkpoint_bytes * share))
        return estimate

    def _on_rotated(self, segment_number: int) -> None:
        """The new segment is there: everything that lives goes into it, or into later ones."""
        if self._checkpoint_group != GROUP_UNKNOWN:
            return  # the journal failed meanwhile
        self._checkpoint_segment = segment_number
        self._checkpoint_count = self.node.ledger.count()
        self._checkpoint = self.node.checkpoint()
        self.turn()

    def _step_checkpoint(self) -> None:
        assert self._checkpoint is not None
        if next(self._checkpoint, self) is self:
            self._checkpoint = None
            self._checkpoint_group = self.node.log.group.number
            # Wait for this very group, also when nothing else is in it.
            self.node.log.append_node(entries.START, self.node.log.incarnation, b"checkpointed")

    def _checkpoint_done(self) -> None:
        journal = self._journal
        assert journal is not None
        self._checkpoint_group = 0
        self._must_checkpoint = False
        journal.drop_before(self._checkpoint_segment)
        before = journal.total_bytes
        self._checkpoint_bytes = journal.bytes_from(self._checkpoint_segment)
        self.log.info(
            "journal compacted",
            jobs=self._checkpoint_count,
            bytes_before=before,
            bytes=self._checkpoint_bytes,
        )

    # ---- housekeeping

    def _housekeeping(self) -> None:
        if self._stopping:
            return
        self._loop.call_later(HOUSEKEEPING_SECONDS, self._housekeeping)
        self._housekept_at = time.monotonic()
        self._collect_garbage()
        self._give_back_memory()
        self._job_log.write([], 0, self._housekept_at)  # what was left out
        self.node.ledger.forget_rested()
        self._look_at_memory()
        if not self.node.clock.told:
            self.node.clock.told = True
            self.log.warning(
                "the clock was set back; schedules follow it as in cron, jobs with a time of their own wait",
                seconds=round(self.node.clock.set_back_seconds),
            )
        self._silence.look(self._housekept_at)
        self.beginnings.look(self._housekept_at)
        if self._port is not None:
            self._port.drop_lingering(time.monotonic())
        if self._turned_away:
            self.log.warning(
                "turned connections away: too many",
                count=self._turned_away,
                max_connections=self._connections_max,
                remedy="raise the limit on open files (ulimit -n) or --max-connections",
            )
            self._turned_away_before += self._turned_away
            self._turned_away = 0
        if self._failure is not None and self._may_recover and self._journal is not None:
            owed, self._owed = self._owed, []
            self._journal.recover(owed)
        elif self._journal is not None:
            self._journal.look()
        if self._failure is None and self._wants_checkpoint():
            assert self._journal is not None
            self._checkpoint_group = GROUP_UNKNOWN
            self._journal.rotate()

    def _look_at_memory(self) -> None:
        """Refuse background jobs while there is no memory for more."""
        self.received_bytes = 0
        memory = self._memory
        ledger = self.node.ledger
        resident_bytes = _resident_bytes()
        if not memory.look(resident_bytes, ledger.payload_bytes + ledger.count() * JOB_BYTES):
            return
        self.node.refuse_background(memory.refusal if memory.full else None, "memory")
        if memory.full:
            self.log.error(
                "background jobs are refused: there is no memory for more",
                resident_bytes=resident_bytes,
                max_memory_bytes=memory.mark_bytes,
                of=memory.source,
                available_bytes=memory.available.size_bytes,
                payload_bytes=ledger.payload_bytes,
                jobs=ledger.count(),
                remedy="add workers, which make room; or give the node more memory, or raise --max-memory",
            )
        else:
            self.log.warning("background jobs are accepted again: there is memory for more")

    def out_of_memory(self, connection: Connection | None) -> None:
        """An allocation has failed: for what this connection sent, or, None, in the middle of a change. What
        is in memory may make no sense then, what is on the disk does: the node stops."""
        if connection is not None:
            self.stranger_log.peer(
                "disconnected a peer: there is no memory for what it sends",
                connection.address,
                time.monotonic(),
                level="error",
                remedy="give the node more memory, or lower --max-memory and --max-unfinished",
            )
            if connection.transport is not None:
                connection.transport.abort()
        elif not self._defect:
            self._defect = True
            self.log.error(
                "this node stops: it is out of memory",
                remedy="give it more memory, or lower --max-memory, and start it again; what was "
                "acknowledged is on the disk",
            )
            self.fail()

    def _give_back_memory(self) -> None:
        """After a large queue the allocator keeps the pages; the machine's other programs want them."""
        count = self.node.ledger.count()
        self._jobs_most = max(count, self._jobs_most)
        if count > TRIM_JOBS and count > self._jobs_most // 2:
            return
        if _resident_bytes() - self._resident_bytes > TRIM_BYTES_MIN:
            _trim_memory()
            self._jobs_most = count
            self._resident_bytes = _resident_bytes()

    def _collect_garbage(self) -> None:
        """The collector must not walk a million queued jobs while clients wait.

        Jobs make no cycles. So it is off; what survives is frozen, and with few jobs all is walked.
        """
        now = time.monotonic()
        if self.node.ledger.count() > COLLECT_JOBS_MAX:
            gc.freeze()
        elif now - self._collected_at > COLLECT_EVERY_SECONDS:
            self._collected_at = now
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    # ---- telling

    def cut_at(self, group_number: int) -> float:
        """When a group that is not committed was cut (monotonic); now, where that is not known."""
        return next((at for number, at in self._cut_at if number >= group_number), time.monotonic())

    def status(self) -> NodeStatus:
        """How the node is now; costs nothing that grows."""
        if self._stopping:
            phase = Phase.STOPPING
        elif self._draining:
            phase = Phase.DRAINING
        elif not self._housekept_at:
            phase = Phase.STARTING
        else:
            phase = Phase.SERVING
        beats = phase in (Phase.SERVING, Phase.DRAINING) and self._housekept_at
        return NodeStatus(
            name=self.settings.name,
            version=__version__,
            phase=phase,
            durability=self.settings.durability,
            refusal=self._failure,
            turn_age_seconds=time.monotonic() - self._housekept_at if beats else 0.0,
            connections=len(self.node.context.connections),
            connections_max=self._connections_max,
            connections_turned_away=self._turned_away_before + self._turned_away,
            groups_committed=self._groups_committed,
            commit=self._commit_latency.read(),
            journal=None if self._journal is None else self._journal.status(),
            fleet=None if self.fleet_status is None else self.fleet_status(),
            memory=MemoryStatus(
                resident_bytes=_resident_bytes(),
                processor_seconds=time.process_time(),
                payload_bytes=self.node.ledger.payload_bytes,
                mark_bytes=self._memory.mark_bytes,
                full=self._memory.full,
            ),
            refuses_background=self.node.context.refusal is not None,
        )

    def function_statuses(self) -> Iterator[FunctionStatus]:
        """See ServerStatus. A function that is forgotten meanwhile has no jobs to count."""
        ledger = self.node.ledger
        # Idle ones last: a reader that takes so many labels and no more wants those that live.
        for function in sorted(ledger.functions.values(), key=lambda each: each.idle):
            queued = sum(map(function.queued, range(PRIORITIES)))
            held = max(0, function.total - queued - function.running)
            oldest = self.node.context.ages.oldest_waiting(function, time.monotonic()) if queued else None
            yield FunctionStatus(
                function.name,
                queued,
                function.running,
                held,
                len(function.workers),
                oldest.seconds if oldest is not None else 0.0,
                tuple(function.counts),
            )
        for name, counts in list(ledger.counts.items()):
            if name not in ledger.functions:
                yield FunctionStatus(name, 0, 0, 0, 0, counts=tuple(counts), listed=False)

    # ---- stopping

    def _busy(self) -> bool:
        """Whether jobs are left that do not wait for their time."""
        ledger = self.node.ledger
        return any(function.running for function in ledger.functions.values()) or any(
            job.state != SCHEDULED or not job.background for job in ledger.all_jobs()
        )

    def drain(self) -> None:
        """SIGUSR1, `shutdown graceful`: take no more connections, stop when no job is left."""
        if self._life is not None:
            self._life.drain_self()
            return
        if self._draining:
            return
        self._draining = True
        self.log.info(
            "stopping when no job is left",
            jobs=self.node.ledger.count(),
            hint="SIGTERM stops at once: background jobs that wait are kept, and run after the next start",
        )
        self._close_port()
        self.turn()

    def fail(self) -> None:
        """Stop because the node must not go on; the process's exit code tells."""
        self.failed = True
        self.stop()

    def stop(self) -> None:
        """SIGTERM: finish what is being written, answer, stop."""
        if not self._stopping:
            self._stopping = True
            self._stop_task = self._loop.create_task(self._stop())

    @property
    def stopping(self) -> bool:
        return self._stopping

    def _close_port(self) -> None:
        """Accept no more connections."""
        for listener in self._listeners:
            listener.close()
        if self._port is not None:
            self._port.close()

    async def _stop(self) -> None:
        try:
            await self._wind_up()
        except Exception:
            self.log.exception("failed while stopping; nothing acknowledged is lost")
        finally:
            if self._directory is not None:
                if self._disk_failed:
                    with contextlib.suppress(OSError):
                        self._directory.renew_identity("damaged")
                self._directory.close()
            self._job_log.close()
            self._tell_unkept()
            self.log.info("stopped", jobs=self.node.ledger.count())
            self.stopped.set()

    def _tell_unkept(self) -> None:
        """In a fleet others have the jobs."""
        if self._life is not None:
            return
        journal, lost, owed = self._journal, "", self._owed
        if journal is not None:
            lost, owed = journal.lost, journal.owed + owed
        elif self.settings.durability == "memory":
            lost = "durability is memory: there is no journal"
        said = unkept(
            self.node.ledger.all_jobs(),
            owed,
            lost=lost,
            failure=self._failure or "",
            directory=self.settings.data_dir if journal is not None else None,
        )
        if said is not None:
            event, jobs, reason, remedy = said
            log = self.log.error if journal is not None else self.log.warning
            log(event, jobs=jobs, reason=reason, remedy=remedy)

    async def _wind_up(self) -> None:
        if self._starting is not None and not self._starting.done():
            # It waits for etcd, or for its own name there.
            self._starting.cancel()
            await asyncio.wait({self._starting})
        if self._life is not None and not self.failed:
            await self._life.stop()
        self._close_port()
        # What has arrived is still answered; what arrives from now on is not read any more.
        connections = list(self.node.context.connections)
        for connection in connections:
            if connection.transport is not None and not connection.transport.is_closing():
                with contextlib.suppress(RuntimeError):
                    connection.transport.pause_reading()
        self.begin()
        self.end()
        if self._journal is not None:
            written = asyncio.Event()
            if self._failure is not None and self._may_recover:  # there may be room by now
                self._journal.recover(self._owed)
                self._owed = []
            self._journal.stop(written.set)
            await written.wait()
        self.begin()
        self.end()
        if self._life is not None:
            await self._life.close()
        if self._fleet_timer is not None:
            self._fleet_timer.cancel()
        for connection in connections:
            if connection.transport is not None:
                connection.transport.close()
        if self.node.context.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.deserted.wait(), CLOSE_SECONDS)
        if self._port is not None:
            # Without this the last answers could be lost: a socket with unread input closes with a reset.
            unsent = any(peer.get_write_buffer_size() for peer in self._port.lingering)
            if self._port.lingering:
                self._port.quiet.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._port.quiet.wait(), CLOSE_SECONDS if unsent else LAST_WORDS_SECONDS
                    )
            self._port.destroy()
        for connection in list(self.node.context.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _resident_bytes() -> int:
    """Memory that the process has; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _find_trim() -> Callable[[], object]:
    """glibc's malloc_trim; other C libraries give pages back by themselves, or not."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: trim(0)


_trim_memory: Final = _find_trim()
