"""The probes and health commands, as the files have them, against a real node in a pod's environment."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.deploy import manifests
from tests.deploy.manifests import HTTP_PORT
from tests.support import Node, Peer, eventually

StartNode = Callable[..., Node]
Connect = Callable[..., Peer]


@pytest.fixture
def pod(start_node: StartNode) -> tuple[Node, dict[int, int]]:
    """A node with a pod's environment, but standing alone, and where its ports are."""
    environment = manifests.pod_environment("gearfleet-0")
    # Without etcd; what remains are a test's own folder and ports.
    environment = {name: value for name, value in environment.items() if name != "GEARFLEET_ETCD"}
    node = start_node("--http-port", "0", environment=environment)
    assert node.wait_for_event("listening")["node"] == "gearfleet-0"
    return node, {HTTP_PORT: node.wait_for_event("http listening")["port"]}


def asked(pod: tuple[Node, dict[int, int]]) -> dict[str, bool]:
    node, ports = pod
    return {name: probe.ask(node.host, ports) for name, probe in manifests.probes().items()}


def health(command: list[str], ports: dict[int, int]) -> int:
    """Run a health command of the image with this environment's Python; its exit code."""
    words = manifests.with_ports(command, ports)
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]], stderr=subprocess.DEVNULL, check=False, timeout=30
    ).returncode


def test_a_node_that_serves_passes_all(pod: tuple[Node, dict[int, int]]) -> None:
    assert asked(pod) == {"startup": True, "readiness": True, "liveness": True}
    _, ports = pod
    assert health(manifests.compose_health_command("node-1"), ports) == 0
    assert health(manifests.image_health_command(), ports) == 0


def test_a_node_that_drains_is_taken_out_and_left_alive(
    pod: tuple[Node, dict[int, int]], connect: Connect
) -> None:
    node, ports = pod
    connect(node).submit(b"f", background=True)
    node.signal(signal.SIGUSR1)
    eventually(lambda: asked(pod), {"startup": True, "readiness": False, "liveness": True})
    assert health(manifests.compose_health_command("node-1"), ports) != 0
    assert health(manifests.image_health_command(), ports) == 0


def test_a_node_that_stands_still_fails_all(pod: tuple[Node, dict[int, int]]) -> None:
    node, ports = pod
    node.signal(signal.SIGSTOP)
    try:
        for probe in manifests.probes().values():
            assert not replace(probe, timeout_seconds=0.3).ask(node.host, ports)
    finally:
        node.signal(signal.SIGCONT)
    eventually(lambda: asked(pod), {"startup": True, "readiness": True, "liveness": True})


def test_a_node_that_is_gone_fails_all(pod: tuple[Node, dict[int, int]]) -> None:
    node, ports = pod
    node.kill()
    assert asked(pod) == {"startup": False, "readiness": False, "liveness": False}
    assert health(manifests.image_health_command(), ports) != 0
