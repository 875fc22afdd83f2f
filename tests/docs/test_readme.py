"""Every snippet of the README runs as a reader would run it; only ports and folders are the test's own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Node, need_command
from tests.support.etcd import FleetEtcd, needs_etcd
from tests.support.ports import lasting_port
from tests.support.program import Program, wait_for_workers

ROOT = Path(__file__).parents[2]
GEARFLEET = str(Path(sysconfig.get_path("scripts")) / "gearfleet")
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON: list[str] = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
    if line.strip()
]
# Five of code: what a reader takes in at a glance.
SNIPPET_LINES_MAX = 5
PASTE_SECONDS_MAX = 90.0


def command(*beginning: str) -> list[str]:
    found = [words for words in COMMANDS if words[: len(beginning)] == list(beginning)]
    assert len(found) == 1, f"the README has {len(found)} commands {' '.join(beginning)}"
    return found[0]


def snippet(name: str) -> str:
    found = [text for text in PYTHON if name in text]
    assert len(found) == 1, f"the README has {len(found)} snippets with {name}"
    return found[0]


StartProgram = Callable[[list[str]], Program]


@pytest.fixture
def programs() -> Iterator[StartProgram]:
    """Start programs; they end with the test."""
    running: list[Program] = []

    def start(words: list[str]) -> Program:
        running.append(Program(words))
        return running[-1]

    yield start
    for program in reversed(running):
        program.close()


@pytest.fixture
def readme_node(start_node: Callable[..., Node], tmp_path: Path) -> Node:
    """The node, started with the README's own options, on a free port."""
    words = command("gearfleet", "server", "--data-dir")
    assert words[2:] == ["--data-dir", "jobs"]
    return start_node(data_dir=tmp_path / "jobs")


@pytest.fixture
def readme_worker(readme_node: Node) -> Iterator[Program]:
    worker = Program([sys.executable, "-c", here(snippet("HAWorker"), readme_node)])
    wait_for_workers(readme_node, b"reverse")
    yield worker
    worker.close()


def here(text: str, node: Node) -> str:
    assert "4730" in text
    return text.replace("4730", str(node.port))


def test_nothing_in_the_readme_is_left_out_here() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert len(PYTHON) == 2
    known = (
        *(["make"], ["python3", "-m", "venv"], ["pip", "install"], ["gearman"], ["gearadmin"], ["etcd"]),
        *(["gearfleet", "server"], ["gearfleet", "nodes"], ["gearfleet", "drain"]),
    )
    for words in COMMANDS:
        assert any(words[: len(beginning)] == beginning for beginning in known), words


@pytest.mark.parametrize("text", PYTHON)
def test_snippets_are_short(text: str) -> None:
    assert len(text.splitlines()) <= SNIPPET_LINES_MAX


@pytest.mark.usefixtures("readme_worker")
def test_client_and_worker(readme_node: Node) -> None:
    text = snippet("HAClient")
    promised = [match[1] for line in text.splitlines() if (match := re.search(r"print\(.*#\s*(.+)$", line))]
    assert len(promised) == text.count("print(")

    output = Program([sys.executable, "-c", here(text, readme_node)]).output().decode()

    assert output.splitlines() == promised


@pytest.mark.usefixtures("readme_worker")
def test_the_tools_of_others(readme_node: Node) -> None:
    need_command("gearman")
    status = here(shlex.join(command("gearadmin")), readme_node)
    submit = here(shlex.join(command("gearman")), readme_node)

    assert Program(shlex.split(submit)).output() == b"olleh"
    assert b"reverse\t0\t0\t1\n" in Program(shlex.split(status)).output()


@pytest.fixture
def pasted(etcd: FleetEtcd, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What the terminal shows after the block of three nodes was pasted into it, and which of its ports is
    which. etcd runs already, as it does after `apt-get install etcd-server`."""
    block = next(text for language, text in BLOCKS if language == "sh" and "etcd" in text)
    first, _, rest = block.partition("\n")
    assert shlex.split(first)[0] == "etcd"
    assert first.endswith("&")
    ports = {port: str(lasting_port()) for port in re.findall(r"\b47\d\d\b", rest)}
    ports |= {port: str(lasting_port()) for port in ("4730", "4731", "4732")}  # node a has the defaults
    ports["2379"] = etcd.address.rpartition(":")[2]
    here = re.sub(r"\b(47\d\d|2379)\b", lambda match: ports[match[1]], rest)
    defaults = f"--port {ports['4730']} --peer-port {ports['4731']} --http-port {ports['4732']}"
    here = here.replace("--data-dir a ", f"--data-dir a {defaults} ", 1)
    environment = os.environ | {
        "PATH": os.pathsep.join((str(Path(GEARFLEET).parent), os.environ["PATH"])),
        "GEARFLEET_FLEET": etcd.fleet,
        "GEARFLEET_PEER": f"127.0.0.1:{ports['4731']}",
    }
    shown = tmp_path / "shown"
    with shown.open("wb") as terminal:  # the nodes go on after the shell has ended
        shell = subprocess.Popen(
            [need_command("bash"), "-c", here],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert shell.wait(PASTE_SECONDS_MAX) == 0, shown.read_text()
        yield shown.read_text(), ports
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


@needs_etcd()
def test_three_nodes_on_one_machine(
    pasted: tuple[str, dict[str, str]], programs: StartProgram, tmp_path: Path
) -> None:
    """The block as it is pasted: nothing in it is too early. Worker and client know one of the addresses."""
    text, ports = pasted
    table = text.partition("all slots have all their copies")[0]
    assert [line.split()[:2] for line in table.splitlines() if re.match(r"[abc]  ", line)] == [
        *(["a", "up"], ["b", "up"], ["c", "up"]),
    ]
    assert "b leads nothing, and no slot needs its copy: it stops" in text
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} >= {"a", "b", "c"}
    port = ports["4730"]
    programs([sys.executable, "-c", snippet("HAWorker").replace("4730", port)])
    client = programs([sys.executable, "-c", snippet("HAClient").replace("4730", port)])
    assert client.output(timeout_seconds=30).splitlines()[0] == b"b'olleh'"


def test_make_knows_the_commands() -> None:
    for words in COMMANDS:
        if words[0] == "make":
            planned = subprocess.run(
                [need_command("make"), "--dry-run", *words[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert planned.returncode == 0, planned.stderr


def test_what_pip_is_asked_for_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.fullmatch(r"\.\[(\w+)\]", command("pip", "install")[2])
    assert command("pip", "install")[2].strip(".[]") in extras


def test_links_and_folders_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
    folders = re.findall(r"^\| `([\w/]+/)` \|", README, re.MULTILINE)
    assert folders
    for folder in folders:
        assert any((ROOT / folder).glob("*")), folder
