"""gearfleet gearmand: a node with gearmand's own options."""

import contextlib
import os
import pwd
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from client_ha.addresses import Server
from cluster.cli import EXIT_FAILED
from cluster.cli.admin import Admin, Refused, Unreachable
from cluster.cli.daemon import daemonize
from cluster.cli.gearmand_options import Gearmand, help_text, read
from cluster.cli.raw import OptionFault, RawCommand
from cluster.server.log_file import open_log
from cluster.server.rights import make_directory
from cluster.server.settings import Settings, SettingsError, environment_notes, fields, load_settings

STATE_DIR: Final = Path("/var/lib/gearfleet")
# gearmand's own defaults for a daemon.
DAEMON_LOG_FILE: Final = Path("/var/log/gearmand.log")
DAEMON_PID_FILE: Final = Path("/var/gearmand.pid")
PORT_DEFAULT: Final = 4730
_READY_SECONDS: Final = 1.0
DESCRIPTORS_MIN: Final = 128  # the node's own and some connections

INTRO: Final = f"""Run a node with gearmand's own options.

Background jobs are kept in a journal, in --data-dir: by default systemd's $STATE_DIRECTORY, else the first of
{STATE_DIR}, ./gearfleet-data and ~/.local/state/gearfleet (with the port added when it is not {PORT_DEFAULT})
that can be written.

The log goes to standard error, with --daemon to {DAEMON_LOG_FILE}, unless --log-file says otherwise.

What gearmand has no option for is set in the environment or in the file that GEARFLEET_CONFIG names: see
gearfleet server --help."""


def run(arguments: Sequence[str]) -> int:
    """Read the options, become a daemon when asked, serve; return the exit code."""
    from cluster.cli.root import package_version

    try:
        options = read(arguments, os.environ)
        if "help" in options:
            print(help_text(INTRO))
            return 0
        if "version" in options:
            print(f"gearfleet gearmand {package_version()}")
            return 0
        settings = _settings(options)
        if "check-args" in options:
            return 0
        _prepare_files(settings, options)
    except (OptionFault, SettingsError) as fault:
        for line in str(fault).splitlines():
            print(f"gearfleet gearmand: {line}", file=sys.stderr)
        return EXIT_FAILED
    if "daemon" not in options:
        return _serve(settings, options)
    settings = _absolute(settings)
    log_file = settings.log_file or Path(os.devnull)
    return daemonize(
        lambda: _serve(settings, options),
        lambda process_id: _answers(settings, process_id),
        log_file,
        lambda: open_log(log_file, settings.user),
    )


def _settings(options: Gearmand) -> Settings:
    """Settings from gearmand's options, with gearmand's ways where they say nothing."""
    if "daemon" in options:
        in_environment = bool(os.environ.get("GEARFLEET_LOG_FILE")) and "log_file" not in options.values
        if options.values.get("log_file") is None and not in_environment:
            # A daemon's standard error is nowhere, so `--log-file stderr` cannot be had.
            options.values["log_file"] = DAEMON_LOG_FILE
            options.typed["log_file"] = "--log-file"
        if "pid_file" not in options.values and os.access(DAEMON_PID_FILE.parent, os.W_OK):
            options.values["pid_file"] = DAEMON_PID_FILE
    settings = load_settings(options.values, options=options.typed)
    if "data_dir" not in settings.model_fields_set and settings.durability != "memory":
        data_dir = default_data_dir(settings.port)
        settings = settings.model_copy(update={"data_dir": data_dir})
        options.notes.append(f"jobs are kept in {data_dir.absolute()}; --data-dir chooses another directory")
    return settings


def default_data_dir(port: int) -> Path:
    """Where a gearmand's jobs are kept when nobody says; each port has its own, as each gearmand did."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:  # by systemd, to this unit alone
        return Path(given)
    default = fields()["data_dir"].default
    assert isinstance(default, Path)
    places = [STATE_DIR, default]
    with contextlib.suppress(KeyError):
        places.append(Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".local/state/gearfleet")
    suffix = "" if port == PORT_DEFAULT else f"-{port}"
    directories = [place.with_name(place.name + suffix) for place in places]
    # Where none will do, the node says so of the first.
    return next(filter(_can_be_made, directories), directories[0])


def _can_be_made(directory: Path) -> bool:
    """Whether this user may use the directory, or make it."""
    nearest = directory.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _serve(settings: Settings, options: Gearmand) -> int:
    # Late: --help and --version need no server.
    from cluster.server.process import run

    _set_limits(options)
    return run(settings, notes=[*options.notes, *environment_notes()], host_option="--listen")


def _set_limits(options: Gearmand) -> None:
    if "file-descriptors" in options:
        _limit_descriptors(int(options.options["file-descriptors"] or 0), options.notes)
    if "coredump" in options:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def _limit_descriptors(wanted: int, notes: list[str]) -> None:
    """--file-descriptors: the hard limit too, because the node uses all that the hard one permits."""
    if not wanted:
        return
    if wanted < DESCRIPTORS_MIN:
        # gearmand takes such a number, and ends when it has used them up by itself.
        notes.append(
            f"--file-descriptors={wanted}: {DESCRIPTORS_MIN} are used, fewer are not enough to start"
        )
        wanted = DESCRIPTORS_MIN
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        notes.append(f"--file-descriptors={wanted}: only {hard} are allowed (ulimit -Hn)")


def _prepare_files(settings: Settings, options: Gearmand) -> None:
    """Make what the node needs while still root, and give it to the user that the node becomes.

    Raises SettingsError when a daemon could not say what is wrong with it.
    """
    owner = None
    if settings.user is not None and os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            owner = pwd.getpwnam(settings.user)
    if owner is not None and not settings.data_dir.exists():
        # What fails here is reported by the node, which cannot use the directory then.
        with contextlib.suppress(OSError):
            make_directory(settings.data_dir, settings.user, 0o750)
    log_file = settings.log_file
    if log_file is None or ("daemon" not in options and owner is None):
        return
    try:
        os.close(open_log(log_file, settings.user))
    except OSError as error:
        who = f" by {settings.user}" if owner is not None else ""
        raise SettingsError(
            f"the log file {log_file} cannot be written{who} ({error.strerror}): give --log-file another"
        ) from None


def _absolute(settings: Settings) -> Settings:
    """A daemon lives in /: what was relative to the shell's directory must still be found."""
    paths = {name: getattr(settings, name) for name in fields()}
    return settings.model_copy(
        update={name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    )


def _answers(settings: Settings, process_id: int) -> bool:
    """Whether it is this process that answers on the port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(settings.host, settings.host)
    try:
        if settings.port == 0:
            return settings.pid_file is None or settings.pid_file.exists()
        if settings.tls_certificate is not None:
            # It may want a client certificate; that it listens must do.
            socket.create_connection((host, settings.port), timeout=_READY_SECONDS).close()
            return True
        with Admin(Server(host, settings.port), timeout_seconds=_READY_SECONDS) as admin:
            return admin.line("getpid") == str(process_id)
    except (OSError, Unreachable, Refused):
        return False


gearmand = RawCommand("gearmand", run, "Run a node with gearmand's own options.")
