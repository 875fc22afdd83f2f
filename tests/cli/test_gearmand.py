"""gearfleet gearmand: gearmand's own options, what each becomes, and the daemon."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli.gearmand import default_data_dir
from cluster.cli.gearmand_options import FLAGS, read
from cluster.cli.raw import OptionFault
from tests.cli.conftest import GEARFLEET, RunCommand, run_process
from tests.support import Node, Peer, eventually, need_command
from tests.support.machine import NEEDS, need_root
from tests.support.ports import lasting_port


def values(*arguments: str, **environment: str) -> dict[str, object]:
    return read(arguments, environment).values


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["-p", "4731"], "port", "4731"),
        (["-p4731"], "port", "4731"),
        (["--port=4731"], "port", "4731"),
        (["--port", "4731"], "port", "4731"),
        (["--por", "4731"], "port", "4731"),
        (["-dp4731"], "port", "4731"),
        (["-p", "http"], "port", "80"),
        (["-L", "localhost"], "host", "localhost"),
        (["-b", "64"], "backlog", "64"),
        (["--exceptions"], "exceptions", True),
        (["--job-handle-prefix=X"], "handle_prefix", "X"),
        (["-w", "2"], "worker_wakeup", "2"),
        (["-P", "/run/x.pid"], "pid_file", "/run/x.pid"),
        (["-u", "gearman"], "user", "gearman"),
        (["-l", "/var/log/x"], "log_file", "/var/log/x"),
        (["-l", "none"], "log_file", os.devnull),
        (["-l", "stderr"], "log_file", None),
        (["--verbose=WARNING"], "log_level", "warning"),
        (["--verbose", "crItical"], "log_level", "error"),
        (["--keepalive-idle=7"], "keepalive_idle_seconds", 7),
        (["--keepalive-interval", "8"], "keepalive_interval_seconds", 8),
        (["--keepalive-count=9"], "keepalive_count", 9),
        (["-j", "-1"], "job_retries", -1),
        (["-j0"], "job_retries", -1),
        (["-j", "1"], "job_retries", 0),
        (["--job-retries=3"], "job_retries", 2),
        (["--data-dir", "/d"], "data_dir", "/d"),
        (["--durability=os"], "durability", "os"),
        (["--on-timeout=fail"], "on_timeout", "fail"),
    ],
)
def test_an_option_becomes_a_setting(arguments: list[str], setting: str, value: object) -> None:
    assert values(*arguments)[setting] == value


def test_minus_one_leaves_keepalive_as_it_is() -> None:
    assert values("--keepalive-idle=-1", "--keepalive-count", "-1") == {}


def test_the_environment_gives_way_to_the_command_line() -> None:
    assert values(GEARMAND_PORT="4732") == {"port": "4732"}
    assert values("-p1", GEARMAND_PORT="4732") == {"port": "1"}
    assert values(GEARMAND_PORT="tcp://10.0.0.1:4730") == {}  # Kubernetes, for a service of this name


def test_the_configuration_file_has_the_same_words_and_gives_way(tmp_path: Path) -> None:
    config = tmp_path / "gearmand.conf"
    config.write_text("--port=4731 -b\n16\n\n--round-robin -j 2\n")
    for named in ([f"--config-file={config}"], [f"@{config}"]):
        gearmand = read([*named, "-j5"], {})
        assert gearmand.values == {"port": "4731", "backlog": "16", "job_retries": 4}
        assert gearmand.notes == ["--round-robin does nothing: functions always take turns"]


def test_every_flag_of_gearmand_is_accepted() -> None:
    help_text = run_process(need_command("gearmand"), "--help").out.decode()
    known = {flag.name: flag for flags in FLAGS.values() for flag in flags}
    words = help_text.replace("[", " ").replace("]", " ").split()
    missing = {w[2:] for w in words if w.startswith("--")} - known.keys()
    assert missing == set()
    for line in help_text.splitlines():
        parts = line.split()
        if line.startswith("  -") and "[" in parts:
            assert known[parts[2].removeprefix("--")].short == parts[0][1:], line


def test_a_flag_without_a_meaning_leaves_a_note_that_keeps_passwords() -> None:
    arguments = ["-t", "4", "-q", "mysql", "--mysql-password=secret", "--hashtable-buckets=7", "--keepalive"]
    notes = read(arguments, {}).notes
    assert [note.split(" does nothing: ")[0] for note in notes] == [
        "--threads=4",
        "--queue-type=mysql",
        "--mysql-password",
        "--hashtable-buckets=7",
        "--keepalive",
    ]
    assert "journal" in notes[1]
    assert read(["-q", "builtin"], {}).notes == []


def test_tls_takes_both_files_or_says_what_is_missing() -> None:
    files = ["--ssl-certificate=c", "--ssl-key=k"]
    assert values("--ssl", *files) == {"tls_certificate": "c", "tls_key": "k"}
    assert values("--ssl", *files, GEARMAND_CA_CERTIFICATE="a")["tls_ca"] == "a"
    with pytest.raises(OptionFault, match="give --ssl-key FILE \\(GEARMAND_SERVER_KEY\\)"):
        read(["--ssl", "--ssl-certificate=c"], {})
    # gearmand would serve in the clear, too; but not without a word.
    assert "not encrypted without --ssl" in read(files, {}).notes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--theads", "4"], "unrecognised option '--theads'; the nearest is '--threads'"),
        (["-x"], "unrecognised option '-x'"),
        (["-p"], "the required argument for option '--port' is missing"),
        (["extra"], "unrecognised option 'extra'"),
        (["-j", "300"], "give a number from -1 to 255"),
        (["-j", "x"], "the argument ('x') for option '--job-retries' is invalid"),
        (["--verbose=LOUD"], "invalid value for --verbose: give one of FATAL"),
        (["--config-file=/nowhere"], "could not read the configuration file /nowhere"),
        (["-p1", "-p2"], "option '--port' cannot be specified more than once"),
        (["-p", "99999"], "--port cannot be '99999': give a whole number from 0 to 65535"),
        (["-b", "0"], "--backlog cannot be '0'"),
    ],
    ids=" ".join,
)
def test_a_slip_is_named_in_gearmands_words(
    gearfleet: RunCommand, arguments: list[str], message: str
) -> None:
    ended = gearfleet("gearmand", "--check-args", *arguments)
    assert ended.code == 1
    assert message in ended.err.decode()


def test_check_args_and_version_end_at_once(gearfleet: RunCommand) -> None:
    assert gearfleet("gearmand", "--check-args", "-p", "4731", "-t4") == (0, b"", b"")
    assert gearfleet("gearmand", "-V").out.startswith(b"gearfleet gearmand ")


def test_each_port_has_a_directory_of_its_own() -> None:
    assert default_data_dir(4731).name == f"{default_data_dir(4730).name}-4731"


def test_the_directory_of_the_unit_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert default_data_dir(4731) == Path("/var/lib/one")


def test_a_user_who_may_write_nowhere_is_told_where_the_jobs_should_have_been(tmp_path: Path) -> None:
    need_root()
    nobody = ["setpriv", "--reuid", "nobody", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    if run_process(*nobody, GEARFLEET, "--version").code:
        pytest.skip(f"{NEEDS}a virtual environment that other users may run")
    ended = run_process(
        "sh", "-c", f"cd / && exec {shlex.join([*nobody, GEARFLEET])} gearmand -p0 -L 127.0.0.1"
    )
    assert ended.code == 1
    assert "the data directory /var/lib/gearfleet-0 cannot be used" in ended.err.decode()
    assert "StateDirectory= in the unit makes one" in ended.err.decode()


class GearmandNode(Node):
    """A node started by gearmand's options; the port is a free one."""

    @property
    def command(self) -> list[str]:
        return [GEARFLEET, "gearmand", "-L", self.host, "--data-dir", str(self.data_dir), *self.options]


def test_it_serves_and_says_what_does_nothing(tmp_path: Path) -> None:
    node = GearmandNode(
        tmp_path / "data",
        *("-p0", "-t4", "-qlibsqlite3", "--job-handle-prefix=P"),
        environment={"GEARFLEET_LOG_FORMAT": "json"},
    )
    try:
        node.start()
        with node.connect() as peer:
            assert peer.submit(b"f", background=True).startswith(b"P:")
        notes = [event["note"] for event in node.log_events if "note" in event]
        assert len(notes) == 2
        assert "--threads=4" in notes[0]
        assert "--queue-type=libsqlite3" in notes[1]
        assert node.terminate() == 0
    finally:
        node.close()


@pytest.mark.parametrize("count", ["10", "0", "150"])
def test_few_file_descriptors_are_enough_to_serve(tmp_path: Path, count: str) -> None:
    # gearmand takes any number; what it cannot work with makes it end
    node = GearmandNode(tmp_path / "data", "-p0", "-f", count, environment={"GEARFLEET_LOG_FORMAT": "json"})
    try:
        node.start()
        with node.connect() as peer:
            peer.submit(b"f", background=True)
            process_id = peer.line("getpid").removeprefix("OK ")
        notes = [event["note"] for event in node.log_events if "note" in event]
        assert [note.split(":")[0] for note in notes] == ["--file-descriptors=10"] * (count == "10")
        (limits,) = (
            line.split()[3:5]
            for line in Path(f"/proc/{process_id}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        )
        if count != "0":
            assert limits == [str(max(128, int(count)))] * 2
        assert node.terminate() == 0
    finally:
        node.close()


@pytest.fixture
def free_port() -> int:
    return lasting_port()


@pytest.fixture
def daemon_files(tmp_path: Path) -> Iterator[list[str]]:
    """Options of a daemon whose traces stay in the test's directory; what it left running is killed."""
    pid_file = tmp_path / "daemon.pid"
    yield [
        *("-d", "-L", "127.0.0.1", "--data-dir", str(tmp_path / "data")),
        *("-l", str(tmp_path / "daemon.log"), "-P", str(pid_file)),
    ]
    if pid_file.exists():
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_a_daemon_works_when_its_starter_ends_and_stops_at_sigterm(
    tmp_path: Path, free_port: int, daemon_files: list[str]
) -> None:
    started = run_process(GEARFLEET, "gearmand", *daemon_files, "-p", str(free_port))
    assert started == (0, b"", b"")

    process_id = int((tmp_path / "daemon.pid").read_text())
    with Peer("127.0.0.1", free_port) as peer:
        assert peer.line("getpid") == f"OK {process_id}"
    assert os.getsid(process_id) != os.getsid(0)
    assert os.readlink(f"/proc/{process_id}/cwd") == "/"
    assert "listening" in (tmp_path / "daemon.log").read_text()

    os.kill(process_id, signal.SIGTERM)
    eventually(lambda: not (tmp_path / "daemon.pid").exists())


def test_a_daemon_that_cannot_start_says_where_the_reason_is(
    tmp_path: Path, shared_node: Node, daemon_files: list[str]
) -> None:
    ended = run_process(GEARFLEET, "gearmand", *daemon_files, "-p", str(shared_node.port))
    assert ended.code == 1
    assert ended.err.decode() == f"gearfleet: the daemon did not start; {tmp_path}/daemon.log says why\n"
    assert "cannot listen on 127.0.0.1" in (tmp_path / "daemon.log").read_text()


def test_a_log_that_cannot_be_written_is_said_before_the_terminal_is_left(
    gearfleet: RunCommand, tmp_path: Path
) -> None:
    ended = gearfleet(
        "gearmand", "-d", "--data-dir", str(tmp_path), "-l", f"{tmp_path}/no/log", "-P/dev/null"
    )
    assert ended.code == 1
    assert b"cannot be written (No such file or directory): give --log-file another" in ended.err
