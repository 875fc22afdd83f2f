"""submit and work: a client and a worker for the shell."""

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import click

from client_ha import (
    CallerMistake,
    GearfleetError,
    HAClient,
    HAWorker,
    Job,
    JobFailed,
    JobTimeout,
    NoServerAvailable,
    Retry,
    ServerBusy,
    ServerRefused,
)
from client_ha.context import JobContext
from client_ha.worker_log import PrintingFormatter
from cluster.cli import EXIT_FAILED, EXIT_NO_SERVER, EXIT_USAGE
from cluster.cli.no_worker import NoWorkerWatch
from cluster.cli.servers import Failed, NoServer, Servers, complain, server_options
from cluster.cli.signals import stopped_by
from cluster.cli.suggest import SuggestingChoice
from cluster.wire.shown import for_json, for_terminal

# How long a job may stay without a server that takes it, when --timeout does not say.
ACKNOWLEDGE_SECONDS: Final = 10.0
# After this a worker without any server says so.
QUEUE_FULL: Final = "queue is full"  # in what gearmand and Gearfleet say at a limit of maxqueue
OF_A_SLOT: Final = "job's slot"  # in what a fleet says where it lacks nodes or copies
_UNITS_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_moment(text: str, now: float) -> float:
    """When: "+90s", "+10m", "2026-12-01 08:30" (local time unless it says), or seconds since 1970.

    Raises ValueError that shows the forms.
    """
    if match := re.fullmatch(r"\+(\d+(?:\.\d+)?)([smhd]?)", text):
        return now + float(match[1]) * _UNITS_SECONDS[match[2] or "s"]
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write 2026-12-01T08:30, +90s, +10m, +2h, +1d or seconds since 1970"
        ) from None


@click.command()
@click.argument("function")
@click.argument("payloads", metavar="[PAYLOAD… | -]", nargs=-1)
@server_options(timeout=False, looked_up=False)
@click.option("--background", "-b", is_flag=True, help="Return when it is acknowledged; print the handle.")
@click.option(
    "--priority", type=SuggestingChoice(["high", "normal", "low"]), default="normal", show_default=True
)
@click.option("--unique", "-u", metavar="KEY", help="Jobs of one function and key under way are one job.")
@click.option("--at", metavar="TIME", help="Not before then: 2026-12-01T08:30, +10m or seconds since 1970.")
@click.option(
    "--cron",
    metavar="'M H D M W'",
    help="A schedule in cron's five fields, in UTC; needs --unique, which names it. cancel HANDLE ends it.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.01),
    metavar="SECONDS",
    help=f"How long to wait for the result.  [default: no limit, but {ACKNOWLEDGE_SECONDS:g} s for a server]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each job.")
def submit(
    function: str,
    payloads: tuple[str, ...],
    servers: Servers,
    background: bool,
    priority: Any,
    unique: str | None,
    at: str | None,
    cron: str | None,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Submit a job and print its result.

    Each PAYLOAD is a job of its own; "-", or none, is what comes on standard input. --at and --cron submit in
    the background.

    Exit codes: 0 done, 1 a job failed, 2 usage, 3 no server.
    """
    if unique is not None and len(payloads) > 1:
        raise click.UsageError("--unique with several payloads would make them one job: submit one at a time")
    moment = None
    if at is not None:
        try:
            moment = read_moment(at, time.time())
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if cron is not None and unique is None:
        raise click.UsageError("--cron needs --unique KEY: it names the schedule, so that there is only one")
    background = background or at is not None or cron is not None
    data = [_payload(text) for text in payloads or ("-",)]
    client = HAClient(servers.named, submit_timeout=timeout or ACKNOWLEDGE_SECONDS, tls=servers.tls)
    code = 0
    with client, contextlib.ExitStack() as watching:
        if not background:
            watching.enter_context(NoWorkerWatch(servers, [function], complain))
        jobs: list[Job | GearfleetError] = []
        parts: list[_Output] = []
        for payload in data:
            output = _Output(live=len(data) == 1 and not as_json)
            parts.append(output)
            try:
                jobs.append(
                    client.submit(
                        function,
                        payload,
                        unique=unique,
                        priority=priority,
                        background=background,
                        at=moment,
                        cron=cron,
                        timeout=timeout,
                        on_data=output.data,
                        on_warning=_warn,
                        on_status=_progress if sys.stderr.isatty() else None,
                    )
                )
            except CallerMistake as error:
                raise click.UsageError(str(error)) from None
            except GearfleetError as error:
                jobs.append(error)
        for job, output in zip(jobs, parts, strict=True):
            code = max(code, _report(job, output, background, as_json, timeout))
    return code


def _payload(text: str) -> bytes:
    if text != "-":
        return os.fsencode(text)
    return b"" if sys.stdin.isatty() else sys.stdin.buffer.read()


class _Output:
    """What a job sends before its end: shown as it comes, or kept until its turn."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._parts: list[bytes] = []

    def data(self, job: Job, data: bytes) -> None:
        if self._live:
            _write(data)
        else:
            self._parts.append(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _warn(job: Job, data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _progress(job: Job, numerator: int, denominator: int) -> None:
    share = f" {100 * numerator // denominator}%" if denominator else ""
    click.echo(f"{for_terminal(job.function)}: {numerator}/{denominator}{share}", err=True)


def _report(
    job: Job | GearfleetError, output: _Output, background: bool, as_json: bool, timeout: float | None
) -> int:
    """Wait for a job and print how it ended; return the exit code."""
    result = b""
    error: GearfleetError | None = None
    if isinstance(job, GearfleetError):
        error = job
    else:
        try:
            if background:
                job.raise_if_unacknowledged()
            else:
                result = job.result(timeout=timeout)
        except GearfleetError as fault:
            error = fault
    if as_json:
        record = json.dumps(_record(job, output.take() + result, error, timeout), ensure_ascii=False)
        click.echo(for_json(record))
    else:
        _write(output.take())
        if error is not None:
            complain(in_words(error, timeout))
        elif background:
            assert isinstance(job, Job)
            click.echo(for_terminal(str(job.handle)))
        else:
            # On a terminal the prompt must not stick to the result.
            _write(result + (b"\n" if sys.stdout.isatty() and not result.endswith(b"\n") else b""))
    if error is None:
        return 0
    if isinstance(error, CallerMistake):
        return EXIT_USAGE
    return EXIT_NO_SERVER if isinstance(error, NoServerAvailable) else EXIT_FAILED


def in_words(error: GearfleetError, seconds: float | None) -> str:
    """An error of the library, whose remedies are calls, in words for the shell."""
    if isinstance(error, NoServerAvailable):
        tried = "; ".join(f"{server}: {fault}" for server, fault in error.attempts) or "nobody"
        return (
            f"no server took the job within {seconds or ACKNOWLEDGE_SECONDS:g} s. Tried {tried}. Check "
            "--servers and that a server runs there; with a longer --timeout it is tried for longer"
        )
    if isinstance(error, ServerBusy) and OF_A_SLOT in error.text:
        # Its copies: a commit may yet come.
        return (
            f"{error.server} takes no background job now: {error.text}. What is refused while it waits for a "
            "copy may run nevertheless: submit it again later with the same --unique. gearfleet nodes shows "
            "what a fleet lacks"
        )
    if isinstance(error, ServerBusy) and QUEUE_FULL not in error.text:
        # The node's own disk or memory; the text says which, and what to do. Copies may have it in a fleet.
        return (
            f"{error.server} takes no background job now: {error.text}. Then submit it again, with the same "
            "--unique"
        )
    if isinstance(error, ServerBusy):
        return (
            f"{error.server} takes no such job now: {error.text}. Nothing was queued. Submit it again later; "
            "gearfleet status shows what waits, gearfleet maxqueue the limits"
        )
    if isinstance(error, ServerRefused):
        return (
            f"{error.server} refuses the job: {error.code} {error.text}. It would be refused again: change it"
        )
    if isinstance(error, JobTimeout):
        return (
            f"no result within {seconds or 0:g} s (--timeout). If it still waits it is dropped, if it runs "
            "already nobody gets its result; --background leaves a job to the server"
        )
    return str(error)


def _record(
    job: Job | GearfleetError, output: bytes, error: GearfleetError | None, seconds: float | None
) -> dict[str, object]:
    """A job as JSON; output that is no UTF-8 comes as base64."""
    record: dict[str, object] = {}
    if isinstance(job, Job):
        record |= {
            "function": job.function,
            "unique": job.unique,
            "handle": job.handle,
            "server": job.server,
            "background": job.background,
        }
        try:
            record["output"] = output.decode()
        except UnicodeDecodeError:
            record["output_base64"] = base64.b64encode(output).decode()
    record["error"] = (
        None
        if error is None
        else {
            "type": type(error).__name__,
            "message": in_words(error, seconds),
        }
    )
    return record


class CommandAfterDashes(click.Command):
    """What follows `--` is another program's command line: it comes as `command`, as it was typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, dashes, command = args, False, list[str]()
        if "--" in args:
            at = args.index("--")
            own, dashes, command = args[:at], True, args[at + 1 :]
        left = super().parse_args(ctx, own)
        if not (dashes and command):
            raise click.UsageError("the command is missing: gearfleet work FUNCTION -- COMMAND…", ctx)
        ctx.params["command"] = command
        return left

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND…"]


@click.command(cls=CommandAfterDashes)
@click.argument("functions", metavar="FUNCTION…", nargs=-1, required=True)
@server_options(timeout=False, looked_up=False)
@click.option(
    "--concurrency", "-j", type=click.IntRange(1, 1024), default=1, show_default=True, help="Jobs at a time."
)
@click.option("--count", "-c", type=click.IntRange(min=1), metavar="N", help="End after so many jobs.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Kill a command that runs longer; its job fails.  [default: no limit]",
)
@click.option("--name", default="", help="What the server's list of workers shows.")
@click.option("--quiet", "-q", is_flag=True, help="Say only what goes wrong, and not each job.")
def work(
    functions: tuple[str, ...],
    command: list[str],
    servers: Servers,
    concurrency: int,
    count: int | None,
    time_limit: float | None,
    name: str,
    quiet: bool,
) -> int:
    """Run a command for every job of a function.

    The payload comes on the command's standard input; what it prints is the result. An exit code other than
    0 fails the job; what it printed until then is sent as data. The command finds the job in JOB_FUNCTION,
    JOB_HANDLE and JOB_UNIQUE.

    SIGTERM and Ctrl-C finish the jobs that run; another, a second later or more, kills them, and the servers
    give them to other workers. A command that somebody else's signal ends has not failed: its job goes back.

    \b
    Example: gearfleet work thumbnail -- convert - -resize 200x200 png:-
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}: correct it, or give its full path")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintingFormatter("gearfleet: %(message)s"))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    try:
        worker = HAWorker(
            servers.named, concurrency=concurrency, max_jobs=count, client_id=name, tls=servers.tls
        )
        runner = Commands(command, time_limit)
        for function in functions:
            worker.task(function)(runner.run)
        try:
            worker.run()
        finally:
            runner.kill()
    except CallerMistake as error:
        raise click.UsageError(str(error)) from None
    except NoServerAvailable as error:
        raise NoServer(str(error)) from None
    except GearfleetError as error:
        raise Failed(str(error)) from None
    return 0


class Commands:
    """Runs one process for each job, and knows those that run."""

    def __init__(self, command: Sequence[str], time_limit_seconds: float | None = None) -> None:
        self._command = list(command)
        self._time_limit_seconds = time_limit_seconds
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, job: JobContext) -> bytes:
        """Run the command for a job; return what it printed. Raises JobFailed."""
        environment = {
            **os.environ,
            "JOB_FUNCTION": job.function,
            "JOB_HANDLE": job.handle,
            "JOB_UNIQUE": job.unique,
        }
        try:
            # A group of its own: Ctrl-C is for the worker, which lets the command finish.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,
            )
        except OSError as error:
            complain(f"{self._command[0]}: {error.strerror}")
            raise JobFailed(f"{self._command[0]}: {error.strerror}") from None
        timed_out = False
        with self._lock:
            self._running.add(process)
        try:
            output, _ = process.communicate(job.payload, timeout=self._time_limit_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            _kill(process)
            output, _ = process.communicate()
            complain(
                f"{job.handle}: the command ran longer than {self._time_limit_seconds:g} s and was killed"
            )
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode == 0:
            return output
        number = None if timed_out else stopped_by(process.returncode, stopping=job.stopping)
        if number is not None:
            raise Retry(f"the command was ended by {number.name}")
        if output:
            job.send_data(output)
        raise JobFailed(f"the command ended with {process.returncode}")

    def kill(self) -> None:
        """Kill what runs."""
        with self._lock:
            for process in self._running:
                _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
