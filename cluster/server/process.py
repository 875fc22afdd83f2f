"""run(): signals, files, limits and logging of one server process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from cluster.server.errors import StartError
from cluster.server.listening import listening_sockets
from cluster.server.log_file import LogFile
from cluster.server.rights import groups_of
from cluster.server.server import Server
from cluster.server.settings import Settings
from cluster.server.turns import TurnSelector
from cluster.wire.shown import for_log, for_terminal_lines

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
# What runs beside the node on its loop, such as the HTTP port: it is begun before the node starts, and what
# it returns ends it, after the node has stopped. It may raise StartError.
Attach = Callable[[Server], Awaitable[Callable[[], Awaitable[None]]]]
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_log(settings: Settings) -> LogFile:
    """Log lines for people, or one JSON object each."""
    try:
        file = LogFile(settings.log_file, settings.user)
    except OSError as error:
        raise StartError(
            f"the log file {settings.log_file} cannot be opened ({error.strerror}): correct --log-file, or "
            f"let {settings.user or 'this user'} write there"
        ) from None
    renderer: Any
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=settings.log_file is None and sys.stderr.isatty(),
            # The others print every variable: payloads, and what no log may have.
            exception_formatter=structlog.dev.plain_traceback,
        )
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    processors.append(structlog.processors.format_exc_info)
    if settings.log_format != "json":  # JSON escapes what does not print
        processors.append(_printing)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.WriteLoggerFactory(file=file),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    return file


def _printing(log: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A log line that does nothing but print: names in it come from whoever can connect."""
    for key, value in event.items():
        if key == "exception":  # its lines are ours
            event[key] = for_terminal_lines(str(value))
        elif isinstance(value, str | bytes):
            event[key] = for_log(value)
    return event


def run(
    settings: Settings,
    notes: Sequence[str] = (),
    attach: Sequence[Attach] = (),
    *,
    host_option: str = "--host",
) -> int:
    """Serve until told to stop. Returns the process's exit code; what goes wrong is logged.

    `notes` are what reading the options has to say; they are logged first. `attach` is what else is to run
    on the loop. `host_option` is what the user's command calls the address to listen on.
    """
    try:
        log_file = configure_log(settings)
    except StartError as error:
        print(f"gearfleet: {error}", file=sys.stderr)
        return EXIT_FAILED
    log = structlog.get_logger("gearfleet")
    with contextlib.suppress(OSError):  # for ps, killall and start-stop-daemon, however Python was started
        Path("/proc/self/comm").write_text("gearfleet")
    sys.setswitchinterval(0.0003)
    for note in notes:
        log.warning("option", note=note)
    try:
        socks = bind(settings, host_option)
        become(settings.user)
        with _PidFile(settings.pid_file):
            selector = TurnSelector()
            if len(os.sched_getaffinity(0)) > 1:
                selector.spin_seconds = settings.busy_poll_microseconds / 1_000_000
            with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
                return runner.run(_serve(settings, selector, socks, log_file, attach))
    except StartError as error:
        log.error("cannot start", reason=str(error))
    except MemoryError:
        log.error("cannot start", reason="there is no memory: give the node more, and start it again")
    except OSError as error:
        log.error("cannot start", reason=f"{error.strerror or error}")
    return EXIT_FAILED


def bind(settings: Settings, host_option: str = "--host") -> list[socket.socket]:
    """The listening sockets, one for each address of the host. Raises StartError."""
    host, port = settings.host, settings.port
    try:
        return listening_sockets(host, port)
    except socket.gaierror as error:
        raise StartError(
            f"{host} is no address to listen on ({error.strerror}): correct {host_option}"
        ) from None
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what uses that port, "
            f"or give {host_option} and --port others"
        ) from None


def become(user: str | None) -> None:
    """Drop root's rights. Raises StartError."""
    if user is None:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise StartError(f"there is no user {user}: create it, or correct --user") from None
    if os.geteuid() == entry.pw_uid:
        return
    if os.geteuid() != 0:
        raise StartError(f"only root can become {user}: leave --user out, or start as root")
    os.setgroups(groups_of(entry))
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


class _PidFile:
    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is not None:
            try:
                self._path.write_text(f"{os.getpid()}\n")
            except OSError as error:
                raise StartError(
                    f"the pid file {self._path} cannot be written ({error.strerror}): correct --pid-file"
                ) from None

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


async def _serve(
    settings: Settings,
    selector: TurnSelector,
    socks: Sequence[socket.socket],
    log_file: LogFile,
    attach: Sequence[Attach],
) -> int:
    loop = asyncio.get_running_loop()
    server = Server(settings, selector)

    def reopen() -> None:
        try:
            log_file.reopen()
            server.log.info("log file opened anew")
        except OSError as error:
            server.log.error("the log file cannot be opened anew", reason=error.strerror)

    def unexpected(_: object, context: dict[str, Any]) -> None:
        server.log.error("a defect", reason=context.get("message"), exc_info=context.get("exception"))

    loop.set_exception_handler(unexpected)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGUSR1, server.drain)
    loop.add_signal_handler(signal.SIGHUP, reopen)
    async with contextlib.AsyncExitStack() as attached:
        try:
            for begin in attach:
                attached.push_async_callback(await begin(server))
            await server.start(*socks)
        except asyncio.CancelledError:
            for sock in socks:
                sock.close()
            if not server.stopping:
                raise
        except BaseException:
            for sock in socks:
                sock.close()
            raise
        await server.stopped.wait()
    return EXIT_FAILED if server.failed else EXIT_OK
