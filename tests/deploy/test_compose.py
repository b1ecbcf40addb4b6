"""docker-compose.yml: by its schema, and what every container of it has to have. No container is started here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_image import DOCKERFILE, tool

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

each_service = pytest.mark.parametrize("name", SERVICES)


def check(file: Path) -> int:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_schema_takes_the_file_and_refuses_a_mistake(tmp_path: Path) -> None:
    assert check(FILE) == 0
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILE.read_text().replace("depends_on:", "depend_on:", 1))
    assert check(wrong) == 1


@each_service
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["init"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= limits.keys()


@each_service
def test_a_container_is_pinned_watched_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    is_one_shot = service.get("profiles") == ["submit"]
    assert service["restart"] == ("no" if is_one_shot else "unless-stopped")
    health = service["healthcheck"]
    assert health.get("disable") is True if is_one_shot else health["test"][0] == "CMD"


@each_service
def test_ports_are_those_of_this_machine_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


@each_service
def test_secrets_come_as_files(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if re.search(r"TOKEN|PASSWORD|SECRET|KEY", key):
            secret = value.removeprefix("/run/secrets/")
            assert key.endswith(("_PATH", "__FILE")), key
            assert secret in service["secrets"], key
    used = set(re.findall(r"/run/secrets/(\w+)", str(service["command"]) if "command" in service else ""))
    assert used <= set(service.get("secrets", []))


def test_the_secrets_are_those_that_are_made() -> None:
    text = (ROOT / "deploy/make-secrets").read_text()
    made = set(re.findall(r"for name in (.*); do", text)[0].split())
    assert made == COMPOSE["secrets"].keys()
    assert all(secret == {"file": f"./deploy/secrets/{name}"} for name, secret in COMPOSE["secrets"].items())


@each_service
def test_mounted_files_are_there_and_named_volumes_are_declared(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume["source"] if isinstance(volume, dict) else re.sub(r"^\$\{\w+:-(.*?)\}", r"\1", volume)
        source = source.partition(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert isinstance(volume, str)
            assert volume.endswith(":ro"), volume
        else:
            assert source in COMPOSE["volumes"], source


def test_grafana_cannot_reach_the_cluster() -> None:
    assert SERVICES["grafana"]["networks"] == ["monitoring"]
    assert SERVICES["ray-head"]["networks"] == ["cluster"]
    assert set(SERVICES["prometheus"]["networks"]) == {"monitoring", "cluster"}


def test_the_worker_is_healthy_by_the_same_question_as_in_the_image() -> None:
    (question,) = re.findall(r"urllib\.request as u; .*timeout=4\)", DOCKERFILE)
    assert SERVICES["ray-worker"]["healthcheck"]["test"][-1] == f"import {question}"
