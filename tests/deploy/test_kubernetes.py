"""The manifests: valid for Kubernetes, of one piece, and right about this node's own settings."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from cluster.cli.root import COMMANDS, root
from cluster.server.settings import NAME_PATTERN, fields, load_settings, shown
from tests.deploy import manifests
from tests.deploy.manifests import KUBERNETES

OBJECTS = list(manifests.kubernetes_objects())
STATEFUL_SETS = [each for each in OBJECTS if each["kind"] == "StatefulSet"]
# Three years of releases: the oldest that a supported cluster may run, one between, the newest known.
VERSIONS = ["1.29", "1.32", kubernetes_validate.latest_version()]


def identify(value: Any) -> str:
    return f"{value['kind']}-{value['metadata']['name']}" if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", OBJECTS, ids=identify)
def test_each_object_fits_the_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_see_a_slip() -> None:
    wrong = manifests.kubernetes_object("StatefulSet", "gearfleet")
    wrong["spec"]["podManagmentPolicy"] = wrong["spec"].pop("podManagementPolicy")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("folder", ["node", "try"])
def test_kustomize_lists_every_file(folder: str) -> None:
    listed = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (KUBERNETES / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in listed if not name.startswith("../")} == there


def test_the_image_is_this_release() -> None:
    project = tomllib.loads((KUBERNETES.parents[1] / "pyproject.toml").read_text())["project"]
    kustomization = yaml.safe_load((KUBERNETES / "node" / "kustomization.yaml").read_text())
    assert kustomization["images"][0]["newTag"] == project["version"]
    for service in manifests.compose()["services"].values():
        if "build" in service:
            assert service["image"] == f"gearfleet:{project['version']}"


@pytest.mark.parametrize("manifest", OBJECTS, ids=identify)
def test_no_namespace_is_named(manifest: dict[str, Any]) -> None:
    assert "namespace" not in manifest["metadata"]


@pytest.mark.parametrize("stateful_set", STATEFUL_SETS, ids=identify)
def test_sets_services_and_budgets_select_the_same_pods(stateful_set: dict[str, Any]) -> None:
    spec = stateful_set["spec"]
    labels = spec["template"]["metadata"]["labels"]
    name = stateful_set["metadata"]["name"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    budget = manifests.kubernetes_object("PodDisruptionBudget", name)["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1
    headless = manifests.kubernetes_object("Service", spec["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    ports = {port["name"] for port in spec["template"]["spec"]["containers"][0]["ports"]}
    for each in OBJECTS:
        if each["kind"] == "Service" and each["spec"]["selector"].items() <= labels.items():
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    assert spec["podManagementPolicy"] == "Parallel"


def test_clients_are_sent_to_ready_nodes_only() -> None:
    spec = manifests.kubernetes_object("Service", "gearfleet")["spec"]
    assert "publishNotReadyAddresses" not in spec
    assert [port["port"] for port in spec["ports"]] == [4730]


@pytest.mark.parametrize("stateful_set", STATEFUL_SETS, ids=identify)
def test_pods_keep_to_the_restricted_profile(stateful_set: dict[str, Any]) -> None:
    pod = stateful_set["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_the_user_and_the_volume_are_the_images() -> None:
    context = manifests.pod_spec()["securityContext"]
    user = dict(manifests.image_instructions())["USER"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["fsGroup"] == context["runAsGroup"]
    (mount,) = manifests.node_container()["volumeMounts"]
    environment = manifests.pod_environment("gearfleet-0")
    assert mount["mountPath"] == environment["GEARFLEET_DATA_DIR"]
    templates = manifests.kubernetes_object("StatefulSet", "gearfleet")["spec"]["volumeClaimTemplates"]
    assert [each["metadata"]["name"] for each in templates] == [mount["name"]]


def test_two_nodes_do_not_share_a_machine_and_zones_are_spread() -> None:
    pod = manifests.pod_spec()
    (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"


def test_probes_are_lax_where_a_mistake_is_dear() -> None:
    probes = manifests.probes()
    seconds = {name: probe.period_seconds * probe.failure_threshold for name, probe in probes.items()}
    assert seconds["startup"] >= 3600, "a large journal takes its time"
    assert seconds["readiness"] <= 10
    assert seconds["liveness"] >= 60
    assert probes["readiness"].path == "/readyz"
    assert probes["liveness"].path == probes["startup"].path == "/healthz"


def test_a_drain_has_time() -> None:
    assert manifests.pod_spec()["terminationGracePeriodSeconds"] >= 300
    assert manifests.pre_stop_command() == ["gearfleet", "drain", "--self", "--restart"]


@pytest.mark.skipif("drain" not in COMMANDS, reason="the command drain is not there yet")
def test_the_stop_commands_are_what_the_command_takes() -> None:
    usage = CliRunner().invoke(root, ["drain", "--help"]).output
    for word in manifests.pre_stop_command()[2:] + manifests.systemd_stop_command()[2:]:
        assert word in usage


def test_every_name_in_a_pods_environment_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = manifests.pod_environment("gearfleet-1", "jobs", "rack-7")
    known = {shown(name)["environment"] for name in fields()}
    given = {name for name in environment if name.startswith("GEARFLEET_")}
    assert given <= known
    for name in given:
        monkeypatch.setenv(name, environment[name])
    settings = load_settings()
    assert settings.name == "gearfleet-1"
    assert settings.advertise == "gearfleet-1.gearfleet-headless.jobs.svc.cluster.local"
    assert settings.zone == "rack-7"
    assert settings.http_listens
    ports = manifests.container_ports()
    assert (settings.port, settings.peer_port, settings.http_port) == tuple(
        ports[name] for name in ("gearman", "peers", "http")
    )
    assert manifests.pod_spec()["enableServiceLinks"] is False


def test_a_machine_without_a_zone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in manifests.pod_environment("gearfleet-0").items():
        monkeypatch.setenv(name, value)
    assert load_settings().zone == ""


def test_pods_have_names_that_nodes_may_have() -> None:
    name = manifests.kubernetes_object("StatefulSet", "gearfleet")["metadata"]["name"]
    assert re.match(NAME_PATTERN, f"{name}-999")


def test_the_etcd_to_try_is_where_the_nodes_look_for_it() -> None:
    spec = manifests.kubernetes_object("StatefulSet", "gearfleet-etcd")["spec"]
    hosts = [f"gearfleet-etcd-{number}.{spec['serviceName']}" for number in range(spec["replicas"])]
    assert manifests.pod_environment("gearfleet-0")["GEARFLEET_ETCD"] == ",".join(
        f"{host}:2379" for host in hosts
    )
    (cluster,) = [
        word
        for word in spec["template"]["spec"]["containers"][0]["command"]
        if word.startswith("--initial-cluster=")
    ]
    assert cluster == "--initial-cluster=" + ",".join(
        f"{host.split('.')[0]}=http://{host}:2380" for host in hosts
    )
