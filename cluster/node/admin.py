"""The text commands: for people, monitors and scripts.

Replies are those of gearmand byte for byte where it has the command (libgearman-server/text.cc).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from cluster.jobs import HIGH, LOW, NORMAL, PRIORITIES, QueueLimits
from cluster.node.cancelled import Cancelled
from cluster.node.context import Context, Stop
from cluster.node.events import EVENTS_PER_TURN_MAX, Command
from cluster.node.forward import CANCEL, CANCEL_RES
from cluster.node.listing import BadFilter, find_jobs, read_filter
from cluster.replication import entries
from cluster.wire import packets as wire
from cluster.wire import response
from cluster.wire.numbers import begins_with_number, leading_number
from cluster.wire.shown import control_character, for_text_protocol

if TYPE_CHECKING:
    from cluster.node.connection import Connection

OK: Final = b"OK\r\n"
END: Final = b".\n"
LIMIT_MAX: Final = 1 << 62
COMMAND_BYTES_MAX: Final = 256  # of one that is logged
# Their words are separated by blanks only: a function's name may hold a tab (Perl's `prefix` makes one).
# What these do somebody will ask for later: who did it?
_CHANGES: Final = frozenset({b"cancel", b"create", b"drop", b"maxqueue", b"shutdown"})
_OF_FUNCTIONS: Final = frozenset({b"create", b"drop", b"maxqueue"})


class AdminVerbs:
    """One small method for each text command."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger = context.ledger
        self._commands = {
            b"workers": self._list_workers,
            b"status": self._status,
            b"prioritystatus": self._priority_status,
            b"show": self._show,
            b"jobs": self._jobs,
            b"cancel": self._cancel,
            b"create": self._create,
            b"drop": self._drop,
            b"maxqueue": self._maxqueue,
            b"getpid": self._process_id,
            b"verbose": self._verbose,
            b"version": self._version,
            b"shutdown": self._shutdown,
        }

    def text(self, connection: Connection, line: bytes) -> None:
        """One line; the verb is not case-sensitive."""
        words = line.split()
        if not words:
            # gearmand answers an empty line too; people press Return to see whether someone is there.
            self._context.send(connection, _unknown(b""))
            return
        verb = words[0].lower()
        if verb in _OF_FUNCTIONS:
            words = [word for word in line.strip().split(b" ") if word]
        command = self._commands.get(verb)
        reply = _unknown(words[0]) if command is None else command(connection, words[1:])
        if verb in _CHANGES:
            self._note(connection, line, reply)
        if reply:  # else another node gives it
            self._context.send(connection, reply)

    def _note(self, connection: Connection, line: bytes, reply: bytes) -> None:
        """For the log. What was wrongly written has changed nothing; of a stop the attempt counts, too."""
        refused = reply if reply.startswith(b"ERR") else b""
        if refused and not refused.startswith(b"ERR NOT_ALLOWED"):
            return
        if len(self._context.commands) >= EVENTS_PER_TURN_MAX:
            self._context.commands_left_out += 1
            return
        self._context.commands.append(
            Command(
                line.strip()[:COMMAND_BYTES_MAX], connection.address, connection.client_id, refused.strip()
            )
        )

    def _list_workers(self, connection: Connection, words: list[bytes]) -> bytes:
        """FD IP CLIENT-ID : functions; every connection, as gearmand lists them."""
        lines = []
        for peer in self._context.connections:
            names = b"".join(
                b" " + for_text_protocol(function.name)
                for function in (peer.worker.abilities if peer.worker else ())
            )
            lines.append(b"%d %b %b :%b\n" % (peer.number, peer.address.encode(), peer.client_id, names))
        return b"".join(lines) + END

    def _status(self, connection: Connection, words: list[bytes]) -> bytes:
        """FUNCTION TOTAL RUNNING WORKERS; total includes running."""
        return (
            b"".join(
                b"%b\t%d\t%d\t%d\n"
                % (for_text_protocol(function.name), function.total, function.running, len(function.workers))
                for function in self._ledger.functions.values()
            )
            + END
        )

    def _priority_status(self, connection: Connection, words: list[bytes]) -> bytes:
        """FUNCTION HIGH NORMAL LOW WORKERS; queued only."""
        return (
            b"".join(
                b"%b\t%d\t%d\t%d\t%d\n"
                % (
                    for_text_protocol(function.name),
                    function.queued(HIGH),
                    function.queued(NORMAL),
                    function.queued(LOW),
                    len(function.workers),
                )
                for function in self._ledger.functions.values()
            )
            + END
        )

    def _show(self, connection: Connection, words: list[bytes]) -> bytes:
        what = [word.lower() for word in words]
        if what == [b"jobs"]:
            return (
                b"".join(
                    b"%b\t%d\t%d\t%d\n" % (job.handle, job.retries, 0, job.worker is None)
                    for job in self._ledger.all_jobs()
                )
                + END
            )
        if what == [b"unique", b"jobs"]:
            return b"".join(_line(job.unique) for job in self._ledger.all_jobs() if job.coalesces) + END
        if what == [b"maxqueue"]:
            return (
                b"".join(
                    b"%b\t%d\t%d\t%d\n" % (for_text_protocol(function.name), *function.limits)
                    for function in self._ledger.functions.values()
                    if function.limits is not None and any(function.limits)
                )
                + END
            )
        if what == [b"slots"]:
            return self._show_slots()
        if not what:
            return _incomplete(b"show")
        return b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"

    def _show_slots(self) -> bytes:
        """How many slots this node leads, and in how many of them its jobs are in its tables: while that is
        less, as when too few copies answer after a takeover, `status` counts too few jobs."""
        fleet = self._context.fleet
        slots = self._context.log.slots
        led = range(len(slots)) if fleet is None else fleet.replicator.leads
        loaded = sum(slots[index].serving or (fleet is not None and fleet.is_paused(index)) for index in led)
        return b"led\t%d\nloaded\t%d\n" % (len(led), loaded) + END

    def _jobs(self, connection: Connection, words: list[bytes]) -> bytes:
        """jobs [KEY=VALUE …]: a JSON object for each job, then one that says where the next page begins."""
        try:
            page = find_jobs(self._context, read_filter(words))
        except BadFilter as error:
            return b"ERR INVALID_ARGUMENTS %b\r\n" % str(error).replace(" ", "+").encode()
        lines = [json.dumps(row._asdict()) for row in page.rows]
        lines.append(json.dumps({"next": page.next, "looked_at": page.looked_at}))
        return "\n".join(lines).encode() + b"\n" + END

    def _cancel(self, connection: Connection, words: list[bytes]) -> bytes:
        if len(words) != 2 or words[0].lower() != b"job":
            return _incomplete(b"cancel")
        fleet = self._context.fleet
        if fleet is not None and fleet.forwarder.ask_by_handle(connection, words[1], CANCEL):
            return b""
        return self._end_job(connection, words[1], OK)

    def cancel_for_node(self, connection: Connection, handle: bytes) -> None:
        """CANCEL: the same for another node's client."""
        self._context.send(connection, self._end_job(connection, handle, response(CANCEL_RES, OK)))

    def _end_job(self, connection: Connection, handle: bytes, done: bytes) -> bytes:
        """The answer to a cancel; `done` if it is one of this node's jobs."""
        job = self._context.find_handle(handle)
        if job is None:
            unknown = b"ERR UNKNOWN_JOB\r\n"
            return unknown if connection.node is None else response(CANCEL_RES, unknown)
        worker = job.worker
        self._context.tell_failure(job)
        self._context.end(job, entries.CANCELLED)
        self._context.log.group.promises.add(job.slot)
        self._context.gate(connection)
        if self._context.fleet is not None:
            self._context.fleet.cancels[job.slot] = self._context.log.group.number
        if worker is not None:
            # It goes on working; its result is neither wanted nor an error.
            worker.forgive(job.handle)
        return Cancelled(done, handle)

    def _create(self, connection: Connection, words: list[bytes]) -> bytes:
        if len(words) != 2 or words[0].lower() != b"function":
            return _incomplete(b"create")
        if fault := self._name_fault(words[1]):
            return fault
        function = self._ledger.function(words[1])
        if function.limits is None:
            self._set_limits(connection, words[1], QueueLimits())
        return OK

    def _drop(self, connection: Connection, words: list[bytes]) -> bytes:
        if len(words) != 2 or words[0].lower() != b"function":
            return _incomplete(b"drop")
        function = self._ledger.functions.get(words[1])
        if function is None:
            return b"ERR function not found\r\n"
        if function.workers or function.total:
            return b"ERR there are still connected workers or executing clients\r\n"
        if function.limits is not None:
            function.limits = None
            if self._context.durable:
                self._context.log.append_node(entries.LIMITS, 1, entries.encode_limits(0, 0, 0, words[1]))
            self._context.gate(connection)
        self._ledger.forget_if_idle(function)
        return OK

    def _maxqueue(self, connection: Connection, words: list[bytes]) -> bytes:
        """maxqueue FUNCTION [N | HIGH NORMAL LOW]; read back with `show maxqueue`."""
        if len(words) not in (1, 2, 4):
            return _incomplete(b"maxqueue")
        if fault := self._name_fault(words[0]):
            return fault
        # Read as gearmand does, but for a word without any digit: it would take every limit away.
        if not all(map(begins_with_number, words[1:])):
            return b"ERR INVALID_ARGUMENTS maxqueue+wants+whole+numbers\r\n"
        numbers = [min(max(0, leading_number(word)), LIMIT_MAX) for word in words[1:]] or [0]
        if len(numbers) == 1:
            numbers *= PRIORITIES
        self._set_limits(connection, words[0], QueueLimits(*numbers))
        return OK

    def _name_fault(self, name: bytes) -> bytes:
        """Why a function cannot have this name; empty when it can, or has it."""
        if len(name) > wire.FUNCTION_BYTES_MAX:
            return b"ERR ARGUMENT_TOO_LARGE Function+name+too+large\r\n"
        if name not in self._ledger.functions and control_character(name) is not None:
            return b"ERR INVALID_ARGUMENTS The+function+name+has+a+control+character\r\n"
        return b""

    def _set_limits(self, connection: Connection, name: bytes, limits: QueueLimits) -> None:
        self._ledger.function(name).limits = limits
        self._context.gate(connection)
        if self._context.durable:
            self._context.log.append_node(entries.LIMITS, 0, entries.encode_limits(*limits, name))

    def _process_id(self, connection: Connection, words: list[bytes]) -> bytes:
        return b"OK %d\n" % self._context.settings.process_id

    def _verbose(self, connection: Connection, words: list[bytes]) -> bytes:
        return b"OK %b\n" % self._context.settings.log_level.upper().encode()

    def _version(self, connection: Connection, words: list[bytes]) -> bytes:
        return b"OK %b\n" % self._context.settings.version.encode()

    def _shutdown(self, connection: Connection, words: list[bytes]) -> bytes:
        """gearmand dropped it in 1.1.15; here it works, by default only from this machine."""
        allowed = self._context.settings.shutdown_from
        if allowed == "none" or (allowed == "loopback" and not connection.local):
            return b"ERR NOT_ALLOWED shutdown+is+allowed+from+%b+only\r\n" % (
                b"the+loopback+address" if allowed == "loopback" else b"the+node's+own+machine+by+signal"
            )
        mode = words[0].lower() if words else b""
        if mode not in (b"", b"graceful") or len(words) > 1:
            return b"ERR INVALID_ARGUMENTS shutdown+takes+graceful+or+nothing\r\n"
        self._context.stop = Stop.GRACEFUL if mode else Stop.NOW
        return OK


def _line(unique: bytes) -> bytes:
    """A key alone on its line; a dot would end the table."""
    return (b"\\x2e" if unique == b"." else for_text_protocol(unique)) + b"\n"


def _unknown(line: bytes) -> bytes:
    return b"ERR UNKNOWN_COMMAND Unknown+server+command%b\r\n" % line[:256]


def _incomplete(command: bytes) -> bytes:
    return b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+%b\r\n" % command
