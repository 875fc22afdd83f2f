"""gearfleet server: its options are the settings, and its help says all about them."""

import re
import sys
from pathlib import Path

import pytest

from cluster.cli.root import COMMANDS
from cluster.server.settings import fields, shown
from tests.cli.conftest import GEARFLEET, RunCommand, run_process
from tests.conftest import StartNode


def test_every_setting_has_an_option_a_default_and_an_environment_name(gearfleet: RunCommand) -> None:
    ended = gearfleet("server", "--help")
    assert ended.code == 0
    words = " ".join(ended.out.decode().split())
    for name in fields():
        row = shown(name)
        assert re.search(rf"{row['option']}[ ,]", words), name
        assert re.search(rf"\[{row['environment']}; default: [^\]]+\]", words), name


def test_the_help_of_every_command_fits_80_columns(gearfleet: RunCommand) -> None:
    for command in COMMANDS:
        option = "-H" if command == "gearman" else "--help"
        ended = gearfleet(command, option)
        assert ended.code == 0, command
        text = (ended.out + ended.err).decode()
        assert len(text.splitlines()) > 5, command
        assert [line for line in text.splitlines() if len(line.expandtabs()) > 80] == [], command


def test_version(gearfleet: RunCommand) -> None:
    assert re.fullmatch(rb"gearfleet, version \d+\.\d+\.\d+\n", gearfleet("--version").out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], b"--port cannot be '99999': give a whole number from 0 to 65535"),
        (["--prot", "1"], b"--prot"),
        (["--peer-remap", "b=one:1", "--peer-remap", "b=two:2"], b"--peer-remap cannot be 'b=one:1,b=two:2'"),
        (["--config", "/nowhere.toml"], b"the configuration file /nowhere.toml cannot be read"),
    ],
)
def test_a_slip_ends_with_2_and_says_what_to_write(
    gearfleet: RunCommand, arguments: list[str], message: bytes
) -> None:
    ended = gearfleet("server", *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_options_environment_and_file_reach_the_node(start_node: StartNode, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("handle_prefix = 'F'\nname = 'from-file'\n")
    node = start_node(
        "--handle-prefix",
        "C",
        durability="memory",
        environment={"GEARFLEET_CONFIG": str(config), "GEARFLEET_NAME": "from-environment"},
    )
    with node.connect() as peer:
        assert peer.submit(b"f").startswith(b"C:")
    assert node.wait_for_event("listening")["node"] == "from-environment"


def test_without_the_server_part_one_line_names_the_remedy() -> None:
    # Without its site packages Python finds no click, as after `pip install gearfleet`.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from cluster.cli import main; sys.exit(main(['status']))"
    )
    ended = run_process(sys.executable, "-S", "-c", code)
    assert ended.code == 2
    assert ended.err.decode().splitlines() == [
        "gearfleet: the command needs click, which is not installed: pip install 'gearfleet[server]'"
    ]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    ended = run_process("sh", "-c", f"{GEARFLEET} server --help | head -1")
    assert ended.out.startswith(b"Usage: gearfleet server")
    assert ended.err == b""


@pytest.mark.parametrize("setting", ["tls", "peer"])
def test_a_certificate_that_is_not_there_is_named_before_anything_is_made(
    tmp_path: Path, setting: str
) -> None:
    data, missing = tmp_path / "data", tmp_path / "missing.pem"
    options = [f"--{setting}-{part}" for part in ("certificate", "key", "ca")]
    ended = run_process(
        *(GEARFLEET, "server", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data)),
        *(word for option in options for word in (option, str(missing))),
        *("--etcd", "127.0.0.1:1", "--peer-port", "0", "--http-port", "-1"),
    )
    assert ended.code == 1
    text = ended.err.decode()
    assert f"{setting}_certificate {missing} cannot be read (No such file or directory): correct" in text
    assert not data.exists()


def test_a_misspelt_variable_is_in_the_log(start_node: StartNode) -> None:
    node = start_node(durability="memory", environment={"GEARFLEET_REPLICA": "5"})
    assert "nearest is GEARFLEET_REPLICAS" in node.wait_for_event("option")["note"]
