"""Container image, compose file and systemd unit: what of them can be checked without running them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.server.settings import fields, load_settings, shown
from tests.deploy import manifests
from tests.deploy.manifests import DEPLOY
from tests.support import need_command

ROOT = DEPLOY.parent
NODES = ["node-1", "node-2", "node-3"]
KNOWN = {shown(name)["environment"] for name in fields()}

# ---- container image


def copied() -> list[str]:
    """What the image takes from the source tree."""
    rows = [rest.split() for name, rest in manifests.image_instructions() if name == "COPY"]
    return [source for row in rows if not row[0].startswith("--from") for source in row[:-1]]


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    allowed = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed
    assert len([line for line in allowed if line.startswith("!")]) == len(copied())


def test_the_image_has_what_the_build_needs() -> None:
    """Whatever pyproject.toml names by file must be in the build stage."""
    text = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r'"(README\.md|LICENSE)"', text):
        assert name in copied()
    assert {"cluster", "client_ha", "setup.py"} <= set(copied())


def test_the_lock_becomes_constraints(tmp_path: Path) -> None:
    """Given the build's own command / When it has run / Then every locked version is left, and no hash."""
    (command,) = [
        rest for name, rest in manifests.image_instructions() if name == "RUN" and "constraints.txt" in rest
    ][:1]
    (tmp_path / "requirements").mkdir()
    lock = (ROOT / "requirements" / "dev.lock").read_text()
    (tmp_path / "requirements" / "dev.lock").write_text(lock)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=30)
    lines = [
        line
        for line in (tmp_path / "constraints.txt").read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    ]
    assert len(lines) == len(re.findall(r"^[A-Za-z0-9._-]+==", lock, re.MULTILINE))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+( ; [^\\]+)?", line) for line in lines), lines


def test_the_image_runs_as_nobody_special_with_its_data_in_a_volume() -> None:
    instructions = dict(manifests.image_instructions())
    user, group = instructions["USER"].split(":")
    assert int(user) >= 10000
    assert int(group) >= 10000, "a number, so that runAsNonRoot can see it"
    assert instructions["VOLUME"] == manifests.image_environment()["GEARFLEET_DATA_DIR"]
    assert instructions["EXPOSE"].split() == [str(port) for port in manifests.container_ports().values()]
    stages = [rest for name, rest in manifests.image_instructions() if name == "FROM"]
    assert len(stages) == 2
    assert {name for name in manifests.image_environment() if name.startswith("GEARFLEET_")} <= KNOWN


# ---- compose


def test_the_compose_file_fits_the_specification() -> None:
    if importlib.util.find_spec("compose_spec") is None:
        pytest.skip("needs compose-spec, which has no build for this machine")
    from compose_spec import PyCompose

    # It reads no YAML merges.
    assert set(PyCompose.from_json(json.dumps(manifests.compose())).services) == {
        *NODES, "etcd-1", "etcd-2", "etcd-3",
    }  # fmt: skip
    slip = manifests.compose()
    slip["services"]["node-1"]["helthcheck"] = slip["services"]["node-1"].pop("healthcheck")
    with pytest.raises(ValueError, match="helthcheck"):
        PyCompose.from_json(json.dumps(slip))


def test_compose_has_three_etcd_and_three_nodes_that_are_alike() -> None:
    document = manifests.compose()
    services = document["services"]
    assert sorted(services) == ["etcd-1", "etcd-2", "etcd-3", *NODES]
    for group in (NODES, ["etcd-1", "etcd-2", "etcd-3"]):
        texts = {
            re.sub(r"\b4[89]3", "473", yaml.safe_dump(services[name]))
            .replace(name, "NAME")
            .split("--initial-cluster=")[0]
            for name in group
        }
        assert len(texts) == 1, f"{group} differ"
    volumes = [service["volumes"][0].split(":")[0] for service in services.values()]
    assert sorted(volumes) == sorted(document["volumes"])
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in services.values())
    published = [port for name in NODES for port in services[name]["ports"]]
    assert len(set(published)) == len(published)
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("service", NODES)
def test_the_environment_of_a_compose_node_is_valid(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = manifests.compose_environment(service)
    assert {name for name in environment if name.startswith("GEARFLEET_")} <= KNOWN
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.name, settings.advertise) == (service, service)
    assert settings.etcd == "etcd-1:2379,etcd-2:2379,etcd-3:2379"


# ---- systemd


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = need_command("systemd-analyze")
    # It wants the program and the user to be there.
    text = (DEPLOY / "systemd" / "gearfleet.service").read_text()
    text = text.replace("/opt/gearfleet/bin/gearfleet", "/bin/true")
    text = re.sub(r"^(User|Group)=gearfleet$", r"\1=root", text, flags=re.MULTILINE)
    unit = tmp_path / "gearfleet.service"
    unit.write_text(text)
    result = subprocess.run(
        [analyze, "verify", "--recursive-errors=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "gearfleet.service" not in result.stderr, result.stderr


def test_the_unit_drains_comes_back_and_is_hardened() -> None:
    unit = manifests.systemd_unit()
    service = {name: values[-1] for name, values in unit["Service"].items()}
    assert service["ExecStop"].startswith("-"), "a node that stands alone has nothing to hand over"
    assert manifests.systemd_stop_command()[1:] == manifests.pre_stop_command()[1:]
    assert service["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert int(service["LimitNOFILE"]) >= 65536
    assert int(service["TimeoutStopSec"]) >= manifests.pod_spec()["terminationGracePeriodSeconds"]
    assert service["User"] == "gearfleet"
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "RestrictNamespaces", "LockPersonality"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    directory = dict(word.split("=", 1) for word in service["Environment"].split())["GEARFLEET_DATA_DIR"]
    assert directory == "/var/lib/" + service["StateDirectory"]
    (user,) = [
        line
        for line in (DEPLOY / "systemd" / "gearfleet.sysusers").read_text().splitlines()
        if line[0] == "u"
    ]
    assert user.split()[1] == service["User"]


def test_every_line_of_the_environment_file_is_a_setting() -> None:
    unit = manifests.systemd_unit()["Service"]
    assert unit["EnvironmentFile"] == ["-/etc/gearfleet/gearfleet.env"]
    names = re.findall(
        r"^#?(GEARFLEET_\w+)=", (DEPLOY / "systemd" / "gearfleet.env").read_text(), re.MULTILINE
    )
    assert len(names) >= 5
    assert set(names) <= KNOWN
