"""What a drill breaks, and how each of it is mended.

A fault knows three things: to begin, to mend itself as often as it is told to and however far the beginning
came, and what an operator would type when the drill cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cluster.drill.commands import (
    MANAGERS,
    NODE_PLACEHOLDERS,
    BadTemplate,
    CommandFailed,
    Manager,
    Ran,
    Template,
    run_command,
)
from cluster.drill.toxiproxy import Proxy, Toxiproxy, ToxiproxyError
from cluster.drill.watch import LOOK_SECONDS, Watch
from cluster.server.control import ControlError, FleetStatus, NodeStatus

COMMAND_SECONDS_DEFAULT: Final = 30.0
LATENCY_MS_DEFAULT: Final = 200
# A killed node counts as dead when its lease is over, if nobody could prove it sooner.
NOTICE_SECONDS: Final = 60.0
GONE_SECONDS: Final = 5.0  # for a process whose key is gone to let go of its ports and its disk
CONNECT_SECONDS: Final = 2.0  # to one of its ports; who has not answered then is not there
LATE_SECONDS: Final = 10.0  # so long after a command that failed, what it began may still come to pass
SILENT_SECONDS: Final = 10.0  # without an answer of any node: then one that was killed counts as dead
DRAIN_SECONDS: Final = 600.0  # for a node that is told to stop, and drains first
ETCD_PORTS: Final = frozenset({"2379"})

Tell = Callable[[str], object]


class FaultFailed(Exception):
    """A fault could not be begun; the text says why."""


class NotMended(Exception):
    """A fault could not be mended; the text says why."""


@dataclass(frozen=True, slots=True)
class Means:
    """What the drill was given to break and mend things with. See make_means."""

    kill: Template | None = None
    start: Template | None = None
    verb: str = "kill"  # what the command does to a node, in a word
    caveat: str = ""  # what is to be known of it
    comes_back: bool = False  # something starts a node again that has ended
    unit: Template = field(default_factory=lambda: Template("{node}"))
    where: str = ""  # the commands act, when they do not say it themselves
    etcd_stop: tuple[Template, ...] = ()
    etcd_start: tuple[Template, ...] = ()
    command_seconds: float = COMMAND_SECONDS_DEFAULT
    toxiproxy: Toxiproxy | None = None
    slow_proxies: tuple[Proxy, ...] = ()
    etcd_proxies: tuple[Proxy, ...] = ()
    latency_ms: int = LATENCY_MS_DEFAULT

    def values(self, node: NodeStatus) -> dict[str, str]:
        """A node's placeholders. Raises BadTemplate."""
        values = {
            "node": node.name,
            "host": node.host,
            "port": str(node.port),
            "peer_port": str(node.peer_port),
        }
        return values | {"unit": " ".join(self.unit.words(values))}

    @property
    def can_start(self) -> bool:
        return self.start is not None or self.comes_back


def make_means(
    *,
    kill_with: str | None = None,
    kill_command: str | None = None,
    start_command: str | None = None,
    comes_back: bool = False,
    unit: str | None = None,
    etcd_stop: Sequence[str] = (),
    etcd_start: Sequence[str] = (),
    command_seconds: float = COMMAND_SECONDS_DEFAULT,
    toxiproxy: str | None = None,
    latency_ms: int = LATENCY_MS_DEFAULT,
) -> Means:
    """Options as they were typed, checked. Raises BadTemplate with the option's name."""
    if kill_with and kill_command:
        raise BadTemplate("--kill-with and --kill-command exclude each other")
    manager: Manager | None = MANAGERS[kill_with] if kill_with else None
    kill = kill_command or (manager.kill if manager else None)
    start = start_command or (manager.start if manager else None) or None
    if manager is not None and not start:
        comes_back = True
    means = Means(
        kill=_template("--kill-command", kill),
        start=_template("--start-command", start),
        verb=manager.verb if manager is not None else "kill",
        caveat=manager.caveat if manager is not None else "",
        comes_back=comes_back,
        unit=_template("--unit", unit or (manager.unit if manager else "{node}"), NODE_PLACEHOLDERS[:-1])
        or Template("{node}"),
        where=manager.where if manager is not None else "",
        etcd_stop=tuple(_needed("--etcd-stop-command", text) for text in etcd_stop),
        etcd_start=tuple(_needed("--etcd-start-command", text) for text in etcd_start),
        command_seconds=command_seconds,
        toxiproxy=Toxiproxy(toxiproxy) if toxiproxy else None,
        latency_ms=latency_ms,
    )
    if len(means.unit.words(dict.fromkeys(NODE_PLACEHOLDERS, "x"))) != 1:
        raise BadTemplate("--unit: must be one word")
    for option, template in (("--kill-command", means.kill), ("--start-command", means.start)):
        if template is not None and not template.placeholders:
            raise BadTemplate(f"{option}: must say which node, with {{node}}, {{host}} or {{peer_port}}")
    if means.kill is not None and not means.can_start:
        raise BadTemplate(
            "how does a killed node come back? Give --start-command, or --comes-back when something "
            "(systemd, Kubernetes) starts it again by itself"
        )
    if bool(etcd_stop) != bool(etcd_start):
        raise BadTemplate("--etcd-stop-command and --etcd-start-command go together")
    return means


def _template(option: str, text: str | None, known: tuple[str, ...] = NODE_PLACEHOLDERS) -> Template | None:
    if text is None:
        return None
    try:
        return Template(text, known)
    except BadTemplate as error:
        raise BadTemplate(f"{option}: {error}") from None


def _needed(option: str, text: str) -> Template:
    template = _template(option, text, ())
    assert template is not None
    return template


def choose_proxies(
    proxies: Sequence[Proxy], nodes: Sequence[NodeStatus], slow: str | None, etcd: str | None
) -> tuple[tuple[Proxy, ...], tuple[Proxy, ...]]:
    """Which proxies are the nodes' links, and which lead to etcd: by the patterns, else by name and port."""
    ports = {str(port) for node in nodes for port in (node.port, node.peer_port)}
    etcds = tuple(
        proxy
        for proxy in proxies
        if (
            proxy.matches(etcd)
            if etcd is not None
            else "etcd" in proxy.name.lower() or proxy.ports & ETCD_PORTS
        )
    )
    links = tuple(
        proxy
        for proxy in proxies
        if (proxy.matches(slow) if slow is not None else proxy.ports & ports and proxy not in etcds)
    )
    return links, etcds


class Fault(ABC):
    """`what`: in words, for everybody; `touches`: what it may disturb, for the checker; `away`: who is to be
    missed meanwhile; `remedy`: what mends it by hand."""

    what: str
    touches: tuple[str, ...]
    away: frozenset[str] = frozenset()
    remedy: str

    @abstractmethod
    async def begin(self, tell: Tell) -> None:
        """Break it. Raises FaultFailed; then, too, it must be mended."""

    @abstractmethod
    async def mend(self, tell: Tell) -> None:
        """Put it right, also when the beginning was cut short. Raises NotMended."""

    def doubt(self, seen: Sequence[FleetStatus]) -> str:
        """Why it may not have happened at all, after what the fleet looked like meanwhile."""
        return ""


class _Sight(Enum):
    """How a node that was to end is seen."""

    AS_BEFORE = "is up as before"
    DRAINING = "is still draining"
    GONE = "is gone"
    BACK = "is back"
    SILENT = "nobody answers"


class _NodeFault(Fault):
    """A node ends, and must be there again under another incarnation."""

    def __init__(self, node: NodeStatus, means: Means, watch: Watch) -> None:
        self._node = node
        self._means = means
        self._watch = watch
        self.touches = (node.name,)
        self.away = frozenset(self.touches)
        try:
            values = means.values(node)
            self._kill = means.kill.words(values) if means.kill else []
            self._start = means.start.words(values) if means.start else []
            if means.start is not None:
                self.remedy = f"{node.name} may be down: {means.start.shown(values)}"
            else:
                self.remedy = f"{node.name} may be down: start it, if nothing does"
        except BadTemplate as error:
            raise FaultFailed(str(error)) from None

    async def _sight(self) -> _Sight:
        try:
            status = await self._watch.look()
        except ControlError:
            return _Sight.SILENT
        node = next((each for each in status.nodes if each.name == self._node.name), None)
        if node is None or not node.incarnation:
            return _Sight.GONE
        if node.incarnation != self._node.incarnation:
            return _Sight.BACK
        return _Sight.DRAINING if node.state == "draining" else _Sight.AS_BEFORE

    async def _ended(
        self, since: float, *, unsure: bool = False, drain_seconds: float = DRAIN_SECONDS
    ) -> _Sight:
        """Wait until it is not there any more as it was, and return how it stands then or at the end of all
        patience. `since`: when it was told to end (time.monotonic). `unsure`: the command failed, and most
        likely did nothing."""
        silent_since: float | None = None
        while True:
            sight = await self._sight()
            if sight in (_Sight.GONE, _Sight.BACK):
                return sight
            listens = await self._listens() if unsure or sight is _Sight.SILENT else True
            now = time.monotonic()
            if sight is not _Sight.SILENT:
                silent_since = None
            else:
                silent_since = now if silent_since is None else silent_since
                if not listens or now - silent_since >= SILENT_SECONDS:
                    return sight
            patience = NOTICE_SECONDS
            if sight is _Sight.DRAINING:
                patience = drain_seconds
            elif unsure and listens:
                # As long as its key stands nobody can tell a dead node from one that was not hit; but one
                # that still listens is not dead.
                patience = LATE_SECONDS
            if now - since >= patience:
                return sight
            await asyncio.sleep(LOOK_SECONDS)

    async def _bring_back(self, tell: Tell) -> None:
        """Start it, unless it is seen up with a new start: one start too many does no harm."""
        sight = await self._sight()
        if sight is _Sight.BACK:
            return
        if not self._start:
            if sight is not _Sight.AS_BEFORE:
                tell(f"{self._node.name} is to come back by itself")
            return
        if sight is not _Sight.AS_BEFORE:
            await self._let_go()
        try:
            ran = await run_command(self._start, self._means.command_seconds)
        except CommandFailed as error:
            # Somebody else may have been faster, or it never went away.
            sight = await self._sight()
            if sight is _Sight.BACK or (sight is _Sight.AS_BEFORE and await self._listens()):
                return
            raise NotMended(str(error)) from None
        tell(ran.command + (f": {ran.output}" if ran.output else ""))

    async def _let_go(self) -> None:
        """Wait until nothing listens on its ports, a while: a proxy before them always does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                while await self._listens():  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_SECONDS)

    async def _listens(self) -> bool:
        ports = (self._node.port, self._node.peer_port)
        return any(await asyncio.gather(*(_listens(self._node.host, port) for port in ports)))


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True


class Kill(_NodeFault):
    """kill -9 of a node, or as near to it as the command comes."""

    def __init__(self, node: NodeStatus, means: Means, watch: Watch) -> None:
        super().__init__(node, means, watch)
        self.what = f"{means.verb} {node.name}"
        self._killing: asyncio.Task[Ran] | None = None
        self._killed_at = 0.0

    async def begin(self, tell: Tell) -> None:
        self._killing = asyncio.create_task(run_command(self._kill, self._means.command_seconds))
        self._killing.add_done_callback(self._note_end)
        try:
            # Half a kill helps nobody: whoever gives up waiting can ask the task what became of it.
            ran = await asyncio.shield(self._killing)
        except CommandFailed as error:
            raise FaultFailed(str(error)) from None
        tell(ran.command + (f": {ran.output}" if ran.output else ""))
        sight = await self._ended(self._killed_at)
        if sight is _Sight.SILENT:
            tell(f"nobody answers: {self._node.name} counts as killed")
        elif sight is _Sight.DRAINING:
            raise FaultFailed(f"{ran.command}: ended well, and {self._node.name} {sight.value}")
        elif sight is _Sight.AS_BEFORE:
            raise FaultFailed(
                f"{ran.command}: ended well, and {self._node.name} {sight.value}: does it {self._means.verb} "
                "the right process?"
            )

    def _note_end(self, _: asyncio.Task[Ran]) -> None:
        self._killed_at = time.monotonic()

    async def mend(self, tell: Tell) -> None:
        if self._killing is None:
            return
        await asyncio.wait({self._killing})
        error = self._killing.exception()
        if isinstance(error, CommandFailed) and not error.ran:
            return
        await self._ended(self._killed_at, unsure=error is not None)
        await self._bring_back(tell)


class Drain(_NodeFault):
    """`gearfleet drain --restart`, and a start: as for an upgrade."""

    def __init__(self, node: NodeStatus, means: Means, watch: Watch) -> None:
        super().__init__(node, means, watch)
        self.what = f"drain {node.name}"
        self.remedy = (
            f"{node.name} may be draining: gearfleet join {node.name} calls it off. Or: {self.remedy}"
        )
        self._draining: asyncio.Task[str] | None = None
        self._answered = asyncio.Event()

    async def begin(self, tell: Tell) -> None:
        self._draining = asyncio.create_task(self._drain())
        try:
            done = await asyncio.shield(self._draining)
        except ControlError as error:
            raise FaultFailed(f"drain of {self._node.name}: {error}") from None
        if not done:
            raise FaultFailed(f"{self._node.name} ended before it said that all was given away")
        tell(done)
        sight = await self._ended(time.monotonic(), drain_seconds=NOTICE_SECONDS)
        if sight is _Sight.SILENT:
            tell(f"nobody answers: {self._node.name} counts as stopped")
        elif sight in (_Sight.AS_BEFORE, _Sight.DRAINING):
            raise FaultFailed(f"{self._node.name} has given everything away, and does not stop")

    async def _drain(self) -> str:
        """What the fleet says when it is done; empty: it does not say that."""
        async for step in self._watch.drain(self._node.name):
            self._answered.set()
            if step.done:
                return step.message
        return ""

    async def mend(self, tell: Tell) -> None:
        if self._draining is None:
            return
        # What nobody has answered yet may still begin.
        answered = asyncio.create_task(self._answered.wait())
        await asyncio.wait({answered, self._draining}, return_when=asyncio.FIRST_COMPLETED)
        for task in (answered, self._draining):
            task.cancel()
        await asyncio.gather(answered, self._draining, return_exceptions=True)
        if not await self._call_off(tell):
            await self._bring_back(tell)

    async def _call_off(self, tell: Tell) -> bool:
        """Whether it takes part as before; else there is nothing to call off any more. Raises NotMended."""
        deadline = time.monotonic() + NOTICE_SECONDS
        called_off = False
        while (sight := await self._sight()) not in (_Sight.GONE, _Sight.BACK):
            if sight is _Sight.SILENT:
                if not await self._listens() or time.monotonic() > deadline:
                    return False
            elif sight is _Sight.AS_BEFORE and called_off:
                return True
            elif time.monotonic() > deadline:
                raise NotMended(f"{self._node.name} is draining, and the drain could not be called off")
            else:
                # Also when it does not look like draining: not every node need have heard of it yet.
                with contextlib.suppress(ControlError):
                    await self._watch.join(self._node.name)
                    tell(f"the drain of {self._node.name} is called off")
                called_off = True
            await asyncio.sleep(LOOK_SECONDS)
        return False


class SlowLink(Fault):
    """Latency on one of toxiproxy's links."""

    def __init__(self, proxy: Proxy, means: Means, nodes: Sequence[NodeStatus]) -> None:
        assert means.toxiproxy is not None
        self._toxiproxy = means.toxiproxy
        self._proxy = proxy.name
        self._latency_ms = means.latency_ms
        self.what = f"{means.latency_ms} ms each way on {proxy.name}"
        # Never "all": to the checker that is a restored backup, which may undo what is on disk.
        self.touches = tuple(_near(proxy, nodes) or (node.name for node in nodes))
        self.remedy = (
            f"{proxy.name} may be slow: toxiproxy-cli toxic list {proxy.name}, and remove gearfleet-drill-*"
        )

    async def begin(self, tell: Tell) -> None:
        try:
            await self._toxiproxy.slow(self._proxy, self._latency_ms, self._latency_ms // 4)
        except ToxiproxyError as error:
            raise FaultFailed(str(error)) from None

    async def mend(self, tell: Tell) -> None:
        try:
            await self._toxiproxy.unslow(self._proxy)
        except ToxiproxyError as error:
            raise NotMended(str(error)) from None


def _near(proxy: Proxy, nodes: Sequence[NodeStatus]) -> list[str]:
    """The nodes that a link belongs to: by address, else by port, which all of them may share."""
    ports = {node.name: {str(node.port), str(node.peer_port)} for node in nodes}
    addresses = {node.name: {f"{node.host}:{port}" for port in ports[node.name]} for node in nodes}
    exact = [name for name in addresses if addresses[name] & {proxy.listen, proxy.upstream}]
    return exact or [name for name in ports if ports[name] & proxy.ports]


class EtcdOutage(Fault):
    """etcd is stopped, or its links are cut."""

    touches = ("etcd",)

    def __init__(self, means: Means) -> None:
        self._means = means
        self._toxiproxy = means.toxiproxy
        if means.etcd_stop:
            self.what = "stop etcd"
            self.remedy = "etcd may be stopped: " + "; ".join(each.shown({}) for each in means.etcd_start)
        else:
            names = [proxy.name for proxy in means.etcd_proxies]
            self.what = f"cut the links to etcd ({', '.join(names)})"
            self.remedy = "links to etcd may be cut: " + "; ".join(
                f"toxiproxy-cli toggle {name}" for name in names
            )

        self._stopping: asyncio.Task[None] | None = None
        self._unsure = False  # a stop may come to pass later
        self._given_up = False  # no more stops

    async def begin(self, tell: Tell) -> None:
        if not self._means.etcd_stop:
            if failed := await self._switch(False):
                raise FaultFailed(". ".join(failed))
            return
        self._stopping = asyncio.create_task(self._stop(tell))
        try:
            # Its client may be gone long before a daemon has stopped it: nobody cuts that short.
            await asyncio.shield(self._stopping)
        except CommandFailed as error:
            raise FaultFailed(str(error)) from None

    async def _stop(self, tell: Tell) -> None:
        for template in self._means.etcd_stop:
            if self._given_up:
                return
            try:
                tell((await run_command(template.words({}), self._means.command_seconds)).command)
            except CommandFailed as error:
                self._unsure = self._unsure or error.ran
                raise

    async def mend(self, tell: Tell) -> None:
        self._given_up = True
        if self._stopping is not None:
            await asyncio.wait({self._stopping})
        failed = await self._start(tell)
        if not self._means.etcd_stop:
            failed += await self._switch(True)
        if failed:
            raise NotMended(". ".join(failed))
        if self._unsure:
            self._unsure = False
            tell(f"starting etcd again in {LATE_SECONDS:g} s: what failed to stop it may have begun to")
            await asyncio.sleep(LATE_SECONDS)
            if failed := await self._start(tell):
                raise NotMended(". ".join(failed))

    async def _start(self, tell: Tell) -> list[str]:
        """Each member, whatever becomes of the others; what went wrong."""
        failed: list[str] = []
        for template in self._means.etcd_start:
            try:
                tell((await run_command(template.words({}), self._means.command_seconds)).command)
            except CommandFailed as error:
                failed.append(str(error))
        return failed

    async def _switch(self, on: bool) -> list[str]:
        """Each link, whatever becomes of the others; what went wrong."""
        assert self._toxiproxy is not None
        failed: list[str] = []
        for proxy in self._means.etcd_proxies:
            try:
                await self._toxiproxy.enable(proxy.name, on)
            except ToxiproxyError as error:
                failed.append(str(error))
        return failed

    def doubt(self, seen: Sequence[FleetStatus]) -> str:
        if not seen or any(not status.etcd_reachable or status.etcd_error for status in seen):
            return ""
        return "no node has missed etcd: are enough of its members stopped, or all of its links cut?"


__all__ = [
    "COMMAND_SECONDS_DEFAULT",
    "LATENCY_MS_DEFAULT",
    "Drain",
    "EtcdOutage",
    "Fault",
    "FaultFailed",
    "Kill",
    "Means",
    "NotMended",
    "SlowLink",
    "Tell",
    "choose_proxies",
    "make_means",
]
