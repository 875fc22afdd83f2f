"""Command templates are words, never a shell's text; and commands end in time."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time

import pytest

from cluster.drill.commands import MANAGERS, BadTemplate, CommandFailed, Ran, Template, run_command

NODE = {"node": "b", "host": "10.0.0.2", "port": "4730", "peer_port": "4731", "unit": "gearfleet"}


def run(*words: str, timeout_seconds: float = 10.0) -> Ran:
    return asyncio.run(run_command(list(words), timeout_seconds))


def test_placeholders_are_replaced_within_words() -> None:
    template = Template("ssh {host} 'sudo kill' --name={node}")
    assert template.words(NODE) == ["ssh", "10.0.0.2", "sudo kill", "--name=b"]
    assert template.shown(NODE) == "ssh 10.0.0.2 'sudo kill' --name=b"


def test_double_braces_are_left_to_the_command() -> None:
    assert Template("docker ps --format {{.ID}} {node}").words(NODE)[3:] == ["{{.ID}}", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill {nodes}", "has {nodes}; known are: {node}, {host}"),
        ("kill 'x", "is no command"),
        ("  ", "the command is empty"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(text: str, message: str) -> None:
    with pytest.raises(BadTemplate, match=message):
        Template(text)


@pytest.mark.parametrize("value", ["b; reboot", "$(reboot)", "-oProxyCommand=x", "", "a b", "`id`", "b\n"])
def test_a_name_that_a_shell_could_read_is_not_put_in(value: str) -> None:
    with pytest.raises(BadTemplate, match="not put into a command"):
        Template("ssh {host} kill {node}").words({**NODE, "node": value})


@pytest.mark.parametrize("host", ["node-1.example.org", "10.0.0.2", "fd00::1", "[fd00::1]", "a_b"])
def test_names_and_addresses_are_put_in(host: str) -> None:
    assert Template("ssh {host}").words({**NODE, "host": host}) == ["ssh", host]


@pytest.mark.parametrize("name", MANAGERS)
def test_every_preset_is_a_template_that_names_the_node(name: str) -> None:
    manager = MANAGERS[name]
    unit = Template(manager.unit).words(NODE)[0]
    shown = Template(manager.kill).shown({**NODE, "unit": unit})
    assert ("b" in shlex.split(shown)) or ("10.0.0.2" in shlex.split(shown))
    if manager.start:
        assert unit in Template(manager.start).words({**NODE, "unit": unit})


def test_a_command_is_run_without_a_shell_and_its_output_is_kept() -> None:
    ran = run(sys.executable, "-c", "import sys; print(sys.argv[1]); print('x', file=sys.stderr)", "$HOME;")
    assert ran.output.splitlines() == ["$HOME;", "x"]


def test_a_command_that_fails_tells_its_status_and_what_it_said() -> None:
    with pytest.raises(CommandFailed, match=r"ended with 3, and said: no such unit"):
        run(sys.executable, "-c", "import sys; print('no such unit'); sys.exit(3)")
    with pytest.raises(CommandFailed, match="cannot be run"):
        run("/nonexistent/command")


def test_a_command_that_hangs_is_killed_with_its_children() -> None:
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"did not end within 0.3 s, and said: begun"):
        run("sh", "-c", "echo begun; sleep 60 & sleep 60", timeout_seconds=0.3)
    assert time.monotonic() - begun < 30


def test_what_a_command_leaves_running_does_not_hold_it_up() -> None:
    begun = time.monotonic()
    ran = run("sh", "-c", "sleep 20 & echo $!")
    assert time.monotonic() - begun < 15
    run("kill", ran.output)
