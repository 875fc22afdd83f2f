"""Cancelling jobs, by text commands: binary Gearman has no packet for it.

Text and packets share a connection. Answers to text come in the order of the questions, and are told from
packets by their first byte.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote_from_bytes

from client_ha.addresses import Server
from client_ha.connection import Connection
from client_ha.errors import InvalidArgument, NoServerAvailable, ServerRefused
from client_ha.link import Link


class TextAnswers:
    """The text answers that are awaited on one connection, in order."""

    __slots__ = ("_awaited",)

    def __init__(self) -> None:
        # With the rows that have come, where the answer is a table.
        self._awaited: deque[tuple[asyncio.Future[bytes], list[bytes] | None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._awaited)

    def expect(self, *, table: bool) -> asyncio.Future[bytes]:
        """The line that is to come; of a table its rows, with line feeds between them, or its ERR."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._awaited.append((answer, [] if table else None))
        return answer

    def take(self, body: bytes) -> None:
        """A line has come."""
        if not self._awaited:
            return
        line = body.rstrip(b"\r\n")
        answer, rows = self._awaited[0]
        if rows is not None and line != b"." and (rows or not line.startswith(b"ERR ")):
            rows.append(line)
            return
        self._awaited.popleft()
        if not answer.done():
            answer.set_result(b"\n".join(rows) if rows is not None and line == b"." else line)

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        for answer, _ in self._awaited:
            if not answer.done():
                answer.set_exception(ConnectionResetError(reason))


class Cancelling:
    """Asks server after server. `next_change()` is done when one comes or goes; it raises after close()."""

    def __init__(
        self,
        links: Mapping[Server, Link],
        answers: Callable[[Connection], TextAnswers],
        in_fleet: Callable[[], bool],
        next_change: Callable[[], asyncio.Future[None]],
        attempts: Callable[[], list[tuple[str, str]]],
    ) -> None:
        self._links = links
        self._answers = answers
        self._in_fleet = in_fleet
        self._next_change = next_change
        self._attempts = attempts

    async def cancel(self, handle: str, issuer: Server | None, seconds: float) -> bool:
        """Ask the server that issued the handle, then the others."""
        if any(character.isspace() for character in handle):
            raise InvalidArgument(f"{handle!r} is no job handle")
        return await self._ask_servers(
            lambda connection, deadline: self._cancel_at(connection, handle, deadline),
            f"the cancelling of {handle}",
            issuer,
            seconds,
        )

    async def cancel_unique(self, function: bytes, unique: bytes, seconds: float) -> bool:
        """Ask the nodes for the handle, and cancel that."""
        question = b"jobs function=%b unique=%b\r\n" % (
            quote_from_bytes(function, safe="").encode(),
            quote_from_bytes(unique, safe="").encode(),
        )

        async def find_and_cancel(connection: Connection, deadline: float) -> bool | None:
            rows = await self._ask_text(connection, question, deadline, table=True)
            if rows is None:
                return None
            if rows.startswith(b"ERR "):
                raise _refusal(rows, connection, "to find a job by its key")
            handles = [json.loads(row).get("handle") for row in rows.split(b"\n") if row]
            verdicts = [await self._cancel_at(connection, handle, deadline) for handle in handles if handle]
            return None if None in verdicts else any(verdicts)

        what = f"the cancelling of {unique!r}"
        return await self._ask_servers(find_and_cancel, what, None, seconds, all_of_them=True)

    async def _cancel_at(self, connection: Connection, handle: str, deadline: float) -> bool | None:
        line = await self._ask_text(connection, b"cancel job %b\r\n" % handle.encode(), deadline)
        if line is None:
            return None
        if line == b"OK":
            return True
        if line.startswith(b"ERR UNKNOWN_JOB"):
            return False
        raise _refusal(line, connection, f"to cancel {handle}")

    async def _ask_servers(
        self,
        ask: Callable[[Connection, float], Awaitable[bool | None]],
        what: str,
        issuer: Server | None,
        seconds: float,
        *,
        all_of_them: bool = False,
    ) -> bool:
        """Ask until one says True; wait for servers while none answers.

        all_of_them     each has to say no: a node of a fleet speaks only for itself
        """
        asked: set[Server] = set()
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._next_change()
            for one in sorted(self._links, key=lambda known: known != issuer):
                link = self._links.get(one)  # a node may have left meanwhile
                if link is None or link.connection is None or one in asked:
                    continue
                verdict = await ask(link.connection, deadline)
                if verdict:
                    return True
                if verdict is not None:
                    asked.add(one)
            one_is_enough = issuer in asked or (self._in_fleet() and not all_of_them)
            if asked and (one_is_enough or asked >= set(self._links)):
                return False
            try:
                async with asyncio.timeout_at(deadline):
                    await changed
            except TimeoutError:
                raise NoServerAvailable(what, seconds, self._attempts()) from None

    async def _ask_text(
        self, connection: Connection, question: bytes, deadline: float, *, table: bool = False
    ) -> bytes | None:
        """Send a text command; None: no answer in time."""
        answer = self._answers(connection).expect(table=table)
        connection.write(question)
        try:
            async with asyncio.timeout_at(deadline):
                return await answer
        except (TimeoutError, ConnectionResetError):
            return None


def _refusal(line: bytes, connection: Connection, what: str) -> ServerRefused:
    code, _, text = line.removeprefix(b"ERR ").decode("utf-8", "replace").partition(" ")
    return ServerRefused(code, text.replace("+", " "), str(connection.server), what)
