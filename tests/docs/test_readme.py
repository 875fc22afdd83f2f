"""Every snippet of the README runs as a reader would run it; only ports and folders are the test's own."""

from __future__ import annotations

import re
import shlex
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
from tests.support.waiting import eventually

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
        *(["make"], ["pip", "install"], ["gearman"], ["gearadmin"], ["etcd"]),
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


@needs_etcd()
def test_three_nodes_on_one_machine(etcd: FleetEtcd, tmp_path: Path, programs: StartProgram) -> None:
    """The fleet as the README starts it, one of its addresses for worker and client, and a drain."""
    ports = {"2379": etcd.address.rpartition(":")[2]}

    def local(words: list[str]) -> list[str]:
        for number in re.findall(r"\b47\d\d\b", " ".join(words)):
            ports.setdefault(number, str(lasting_port()))
        found = [re.sub(r"\b(47\d\d|2379)\b", lambda match: ports[match[1]], word) for word in words]
        return [GEARFLEET, *found[1:]]

    nodes = [words[:-1] for words in COMMANDS if words[:3] == ["gearfleet", "server", "--etcd"]]
    assert len(nodes) == 3
    running = []
    for words in nodes:
        if "--port" not in words:  # the defaults
            words += ["--port", "4730", "--peer-port", "4731", "--http-port", "4732"]
        words = local(words)
        words[words.index("--data-dir") + 1] = str(tmp_path / words[words.index("--node") + 1])
        running.append(programs([*words, "--fleet", etcd.fleet]))
    peer = ["--peer", f"127.0.0.1:{ports['4731']}"]

    def ask(*beginning: str) -> subprocess.CompletedProcess[str]:
        words = [GEARFLEET, *command(*beginning)[1:], *peer]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    whole = "all slots have all their copies"
    eventually(lambda: whole in ask("gearfleet", "nodes").stdout, timeout_seconds=30)
    port = ports["4730"]
    programs([sys.executable, "-c", snippet("HAWorker").replace("4730", port)])
    client = programs([sys.executable, "-c", snippet("HAClient").replace("4730", port)])
    assert client.output(timeout_seconds=30).splitlines()[0] == b"b'olleh'"
    drained = ask("gearfleet", "drain")
    assert drained.returncode == 0, drained.stderr
    assert running[1].wait() == 0


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
