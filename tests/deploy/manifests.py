"""What deploy/ would run, as the files say it: for tests that run the very same.

    probes()              the node's startup, readiness and liveness probe; `probe.ask(...)` does what the
                          kubelet would do
    pre_stop_command()    what runs in a pod before it is told to end
    pod_environment(...)  a pod's environment, as Kubernetes would make it
    compose_environment(...), compose_health_command(...), image_health_command(), systemd_stop_command()

Commands name container ports; `with_ports` puts a test's own ports in their place.
"""

from __future__ import annotations

import json
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
HTTP_PORT = 4732
PROBES = ("startup", "readiness", "liveness")


@dataclass(frozen=True)
class Probe:
    """An httpGet probe, its port by number."""

    path: str
    port: int
    period_seconds: int
    timeout_seconds: float
    failure_threshold: int

    def ask(self, host: str, ports: Mapping[int, int] | None = None) -> bool:
        """What the kubelet does: GET, and any status from 200 to 399 in time is a yes. `ports` says where
        a container port really is."""
        port = (ports or {}).get(self.port, self.port)
        try:
            with urllib.request.urlopen(
                f"http://{host}:{port}{self.path}", timeout=self.timeout_seconds
            ) as answer:
                return 200 <= int(answer.status) < 400
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False


# ---- Kubernetes


def kubernetes_files() -> list[Path]:
    """All manifests, without kustomize's own."""
    return sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")


def kubernetes_objects(folder: str = ".") -> Iterator[dict[str, Any]]:
    for path in kubernetes_files():
        if path.is_relative_to(KUBERNETES / folder):
            yield from yaml.safe_load_all(path.read_text())


def kubernetes_object(kind: str, name: str) -> dict[str, Any]:
    (found,) = [
        each for each in kubernetes_objects() if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def pod_spec() -> dict[str, Any]:
    spec = kubernetes_object("StatefulSet", "gearfleet")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def node_container() -> dict[str, Any]:
    (container,) = pod_spec()["containers"]
    assert isinstance(container, dict)
    return container


def container_ports() -> dict[str, int]:
    """The container's ports by name."""
    return {each["name"]: each["containerPort"] for each in node_container()["ports"]}


def probes() -> dict[str, Probe]:
    """By what they are for, see PROBES."""
    found = {}
    for name in PROBES:
        row = node_container()[name + "Probe"]
        port = row["httpGet"]["port"]
        found[name] = Probe(
            path=row["httpGet"]["path"],
            port=container_ports().get(port, port),
            period_seconds=row["periodSeconds"],
            timeout_seconds=row["timeoutSeconds"],
            failure_threshold=row["failureThreshold"],
        )
    return found


def pre_stop_command() -> list[str]:
    command = node_container()["lifecycle"]["preStop"]["exec"]["command"]
    assert isinstance(command, list)
    return [str(word) for word in command]


def pod_command() -> list[str]:
    """The image's entry and the pod's arguments."""
    return [*image_entry(), *node_container()["args"]]


def pod_environment(pod_name: str, namespace: str = "default", zone: str = "") -> dict[str, str]:
    """The node's environment in this pod."""
    fields = {
        "metadata.name": pod_name,
        "metadata.namespace": namespace,
        "metadata.labels['topology.kubernetes.io/zone']": zone,
    }
    environment = image_environment()
    for source in node_container().get("envFrom", []):
        environment |= kubernetes_object("ConfigMap", source["configMapRef"]["name"])["data"]
    for row in node_container()["env"]:
        if "valueFrom" in row:
            environment[row["name"]] = fields[row["valueFrom"]["fieldRef"]["fieldPath"]]
        else:  # $(NAME) is what stands above
            environment[row["name"]] = re.sub(
                r"\$\((\w+)\)", lambda match: environment[match[1]], row["value"]
            )
    return environment


# ---- container image


def image_instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return [(name, rest) for name, rest in pairs]


def _last(name: str) -> str:
    return [rest for each, rest in image_instructions() if each == name][-1]


def image_entry() -> list[str]:
    return [str(word) for word in json.loads(_last("ENTRYPOINT"))]


def image_environment() -> dict[str, str]:
    """Without PATH, which is the image's own."""
    pairs = (word.split("=", 1) for word in shlex.split(_last("ENV")))
    return {name: value for name, value in pairs if name != "PATH"}


def image_health_command() -> list[str]:
    return [str(word) for word in json.loads(_last("HEALTHCHECK").partition("CMD ")[2])]


# ---- compose


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def compose_health_command(service: str) -> list[str]:
    kind, *command = compose()["services"][service]["healthcheck"]["test"]
    assert kind == "CMD"
    return [str(word) for word in command]


def compose_environment(service: str) -> dict[str, str]:
    return {**image_environment(), **compose()["services"][service]["environment"]}


# ---- systemd


def systemd_unit() -> dict[str, dict[str, list[str]]]:
    """Section -> key -> values, in order."""

    class Values(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = RawConfigParser(strict=False, dict_type=Values, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "gearfleet.service")
    return {
        name: {key: value.split("\n") for key, value in parser[name].items()} for name in parser.sections()
    }


def systemd_stop_command() -> list[str]:
    return shlex.split(systemd_unit()["Service"]["ExecStop"][0].removeprefix("-"))


# ---- for those who run them


def with_ports(command: Sequence[str], ports: Mapping[int, int]) -> list[str]:
    """The command, with a test's ports in place of the container's."""
    words = list(command)
    for port, real in ports.items():
        words = [re.sub(rf"\b{port}\b", str(real), word) for word in words]
    return words
