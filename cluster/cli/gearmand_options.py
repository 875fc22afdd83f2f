"""gearmand's options, and what each becomes here."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from cluster.cli.raw import OptionFault, only_once, read_options

CONFIG_FILE_DEFAULT: Final = Path("/etc/gearmand.conf")
_ENVIRONMENT: Final = {
    "port": "GEARMAND_PORT",
    "ssl-ca-file": "GEARMAND_CA_CERTIFICATE",
    "ssl-certificate": "GEARMAND_SERVER_PEM",
    "ssl-key": "GEARMAND_SERVER_KEY",
}
_LOG_LEVELS: Final = {
    "FATAL": "error",
    "ALERT": "error",
    "CRITICAL": "error",
    "ERROR": "error",
    "WARNING": "warning",
    "NOTICE": "info",
    "INFO": "info",
    "DEBUG": "debug",
}
_QUEUE_OPTIONS: Final = {
    "libsqlite3": "db table",
    "mysql": "host port user password db table",
    "libpq": "conninfo table",
    "redis": "server port password prefix",
    "libmemcached": "servers prefix",
    "libtokyocabinet": "file",
    "libdrizzle": "host port uds user password db table",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. `setting`: the field of Settings that its value goes to. `ignored`: why it does nothing."""

    name: str
    help: str
    short: str = ""
    value: str = ""
    setting: str = ""
    ignored: str = ""


_NO_QUEUE = "jobs are kept in the journal (--data-dir) instead"

FLAGS: Final[dict[str, list[Flag]]] = {
    "General": [
        Flag("backlog", "Connections that may wait to be accepted.", "b", "N", setting="backlog"),
        Flag("daemon", "Run in the background.", "d"),
        Flag("exceptions", "Send workers' exceptions to every client.", setting="exceptions"),
        Flag(
            "file-descriptors", "Limit on open files, and so on connections; 0: what is permitted.", "f", "N"
        ),
        Flag("help", "Show this help and exit.", "h"),
        Flag(
            "job-retries",
            "Attempts to run a job whose workers are lost; then it fails. 0 and -1: no limit. N is how often "
            "it is tried in all, as in gearmand; gearfleet server --job-retries counts only the repeats.",
            "j",
            "N",
        ),
        Flag("job-handle-prefix", "What job handles begin with.", "", "PREFIX", setting="handle_prefix"),
        Flag("log-file", "File to log to; stderr or none.", "l", "FILE"),
        Flag("listen", "Address to listen on.", "L", "ADDRESS", setting="host"),
        Flag("pid-file", "File to write the process id to.", "P", "FILE", setting="pid_file"),
        Flag("config-file", "File with more of these options; also @FILE.", "", "FILE"),
        Flag("coredump", "Write a core file when the process crashes."),
        Flag("user", "User to become after the port is open.", "u", "USER", setting="user"),
        Flag("verbose", f"What to log: {', '.join(_LOG_LEVELS)}.", "", "LEVEL"),
        Flag("version", "Show the version and exit.", "V"),
        Flag("worker-wakeup", "Workers to wake for each job; 0: all.", "w", "N", setting="worker_wakeup"),
        Flag("check-args", "Check the options and exit."),
    ],
    "Network": [
        Flag("port", "Port to listen on (GEARMAND_PORT).", "p", "PORT"),
        Flag("keepalive-idle", "Seconds of silence before a probe; -1: 5.", "", "N"),
        Flag("keepalive-interval", "Seconds between probes; -1: 2.", "", "N"),
        Flag("keepalive-count", "Probes without an answer; -1: 3.", "", "N"),
        Flag("ssl", "Speak only TLS; needs a certificate and its key."),
        Flag("ssl-certificate", "Certificate chain (GEARMAND_SERVER_PEM).", "", "FILE"),
        Flag("ssl-key", "Its key (GEARMAND_SERVER_KEY).", "", "FILE"),
        Flag(
            "ssl-ca-file",
            "Verify clients: each needs a certificate of this authority (GEARMAND_CA_CERTIFICATE).",
            "",
            "FILE",
        ),
    ],
    "Gearfleet's own": [
        Flag("data-dir", "Directory of the journal.", "", "DIR", setting="data_dir"),
        Flag(
            "durability", "When a job is acknowledged: fsync, os or memory.", "", "MODE", setting="durability"
        ),
        Flag(
            "on-timeout",
            "A background job over its worker's time limit: requeue or fail.",
            "",
            "WHAT",
            setting="on_timeout",
        ),
    ],
    "Accepted, without effect": [
        Flag("hashtable-buckets", "", "", "N", ignored="the job tables grow by themselves"),
        Flag("keepalive", "", ignored="keepalive is always on"),
        Flag("protocol", "", "r", "NAME", ignored="only the Gearman protocol is served"),
        Flag("http-port", "", "", "PORT", ignored="only the Gearman protocol is served"),
        Flag("round-robin", "", "R", ignored="functions always take turns"),
        Flag("queue-type", "", "q", "NAME", ignored=_NO_QUEUE),
        Flag("store-queue-on-shutdown", "", ignored=_NO_QUEUE),
        Flag("syslog", "", ignored="there is no syslog output; use --log-file, or standard error"),
        Flag("threads", "", "t", "N", ignored="one event loop serves all connections"),
        Flag("libtokyocabinet-optimize", "", ignored=_NO_QUEUE),
        Flag("libdrizzle-mysql", "", ignored=_NO_QUEUE),
        *(
            Flag(f"{queue}-{option}", "", "", "TEXT", ignored=_NO_QUEUE)
            for queue, options in _QUEUE_OPTIONS.items()
            for option in options.split()
        ),
    ],
}
_BY_NAME: Final = {flag.name: flag for flags in FLAGS.values() for flag in flags}
_LONG: Final = {name: bool(flag.value) for name, flag in _BY_NAME.items()}
_SHORT: Final = {flag.short: name for name, flag in _BY_NAME.items() if flag.short}


@dataclass(slots=True)
class Gearmand:
    """What gearmand's options come to."""

    options: dict[str, str | None]
    values: dict[str, object] = field(default_factory=dict)  # of Settings
    typed: dict[str, str] = field(default_factory=dict)  # the option that set each value, for errors
    notes: list[str] = field(default_factory=list)  # for the log

    def __contains__(self, name: str) -> bool:
        return name in self.options


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Gearmand:
    """Read the command line, then the configuration file, then the environment. Raises OptionFault."""
    words = ["--config-file=" + w[1:] if w.startswith("@") and len(w) > 1 else w for w in arguments]
    found, left = read_options(words, _LONG, _SHORT, suggest=True)
    if left:
        raise OptionFault(f"unrecognised option '{left[0]}'")
    result = Gearmand(only_once(found))
    _add_config_file(result)
    for name, variable in _ENVIRONMENT.items():
        value = environment.get(variable)
        # Kubernetes sets GEARMAND_PORT=tcp://10.0.0.1:4730 for a service called gearmand.
        if value and not value.startswith("tcp://"):
            result.options.setdefault(name, value)
    _apply(result)
    return result


def _add_config_file(result: Gearmand) -> None:
    """Words as on the command line, split at blanks and line ends; the command line wins."""
    named = result.options.get("config-file")
    path = Path(named) if named else CONFIG_FILE_DEFAULT
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise OptionFault(f"could not read the configuration file {path} ({error})") from None
        return
    found, left = read_options(words, _LONG, _SHORT, suggest=True)
    result.notes.extend(f"{word} in {path} is no option and does nothing" for word in left)
    for name, value in only_once(found).items():
        result.options.setdefault(name, value)


def _apply(result: Gearmand) -> None:
    options = result.options
    for name, value in options.items():
        flag = _BY_NAME[name]
        if flag.ignored:
            shown = f"--{name}" + (f"={value}" if value is not None and "password" not in name else "")
            if (name, value) != ("queue-type", "builtin"):
                result.notes.append(f"{shown} does nothing: {flag.ignored}")
        elif flag.setting:
            _set(result, flag.setting, True if value is None else value, name)
    if "port" in options:
        _set(result, "port", _port(str(options["port"])), "port")
    if "job-retries" in options:
        attempts = _number(result, "job-retries", low=-1, high=255)
        _set(result, "job_retries", attempts - 1 if attempts > 0 else -1, "job-retries")
    for name in ("keepalive-idle", "keepalive-interval", "keepalive-count"):
        if name in options and (number := _number(result, name, low=-1, high=32767)) >= 0:
            setting = name.replace("-", "_") + ("" if name.endswith("count") else "_seconds")
            _set(result, setting, number, name)
    if "file-descriptors" in options:
        _number(result, "file-descriptors", low=0, high=2**31 - 1)
    _apply_log(result)
    _apply_tls(result)


def _apply_log(result: Gearmand) -> None:
    if "verbose" in result:
        level = str(result.options["verbose"]).upper()
        if level not in _LOG_LEVELS:
            raise OptionFault(f"invalid value for --verbose: give one of {', '.join(_LOG_LEVELS)}")
        _set(result, "log_level", _LOG_LEVELS[level], "verbose")
    log_file = result.options.get("log-file")
    if log_file is not None:
        paths = {"stderr": None, "none": os.devnull}
        _set(result, "log_file", paths.get(log_file, log_file), "log-file")


def _apply_tls(result: Gearmand) -> None:
    options = result.options
    files = [name for name in ("ssl-certificate", "ssl-key", "ssl-ca-file") if name in options]
    if "ssl" not in options:
        if files:
            result.notes.append(f"--{files[0]} does nothing: connections are not encrypted without --ssl")
        return
    missing = [name for name in ("ssl-certificate", "ssl-key") if name not in options]
    if missing:
        raise OptionFault(
            "--ssl needs a certificate and its key: give "
            + " and ".join(f"--{name} FILE ({_ENVIRONMENT[name]})" for name in missing)
        )
    _set(result, "tls_certificate", options["ssl-certificate"], "ssl-certificate")
    _set(result, "tls_key", options["ssl-key"], "ssl-key")
    if "ssl-ca-file" in options:
        _set(result, "tls_ca", options["ssl-ca-file"], "ssl-ca-file")
        result.notes.append("--ssl-ca-file: clients need a certificate here; gearmand does not ask for one")


def _set(result: Gearmand, setting: str, value: object, name: str) -> None:
    result.values[setting] = value
    result.typed[setting] = f"--{name}"


def _number(result: Gearmand, name: str, *, low: int, high: int) -> int:
    text = str(result.options[name])
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise OptionFault(
            f"the argument ('{text}') for option '--{name}' is invalid: give a number from {low} to {high}"
        )
    return number


def _port(text: str) -> str:
    """A number as it is; a service's name by /etc/services."""
    if text.lstrip("-").isdigit():
        return text
    try:
        return str(socket.getservbyname(text, "tcp"))
    except OSError:
        raise OptionFault(f"'{text}' is no port: give a number or a name from /etc/services") from None


def help_text(intro: str) -> str:
    """All options, grouped, as wide as the terminal."""
    formatter = click.HelpFormatter(max_width=100)
    formatter.write_usage("gearfleet gearmand", "[OPTIONS]")
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(intro)
    for heading, flags in FLAGS.items():
        with formatter.section(heading):
            formatter.write_dl(_help_rows(flags), col_max=30)
    return formatter.getvalue().rstrip("\n")


def _help_rows(flags: Sequence[Flag]) -> list[tuple[str, str]]:
    rows = []
    for flag in flags:
        # The queues' own options are many and all alike: one line for each queue.
        queue = next((queue for queue in _QUEUE_OPTIONS if flag.name.startswith(f"{queue}-")), None)
        if queue is not None:
            row = (f"--{queue}-…", flag.ignored)
        else:
            names = f"-{flag.short}, --{flag.name}" if flag.short else f"    --{flag.name}"
            row = (f"{names} {flag.value}".rstrip(), flag.help or flag.ignored)
        if row not in rows:
            rows.append(row)
    return [(option, f"{text[0].upper()}{text[1:].rstrip('.')}.") for option, text in rows]
