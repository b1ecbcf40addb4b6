"""The image: its Dockerfile by hadolint, and whether what it copies and installs is there. It is not built here."""

from __future__ import annotations

import fnmatch
import re
import stat
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dtrain import __version__

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tool(name: str) -> Path:
    path = Path(sysconfig.get_path("scripts")) / name
    assert path.exists(), f"{name} is missing: pip install -e '.[dev]'"
    return path


def copied() -> list[str]:
    """The paths of the project that the Dockerfile copies."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    return [path for line in lines for path in line.split()]


def locked() -> dict[str, str]:
    """The versions that the image has, by package."""
    text = (DEPLOY / "requirements.txt").read_text()
    found = re.findall(r"^([a-z0-9.-]+)==(\S+)(?: ;[^\\]*)? \\$", text, re.M)
    assert len(found) == len(re.findall(r"^[a-z]", text, re.M))  # every line was understood
    return dict(found)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_is_pinned_runs_as_nobody_special_and_says_its_version() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert all(re.fullmatch(r"python:3\.1[2-4]\.\d+-slim", base) for base in bases)
    assert len(set(bases)) == 1
    user = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert user == ["10001"]
    assert f"useradd --uid {user[0]} " in DOCKERFILE
    assert re.findall(r'org\.opencontainers\.image\.version="(.*?)"', DOCKERFILE) == [__version__]
    assert f"dtrain:{__version__}" in DOCKERFILE


def test_what_is_copied_is_there_and_gets_past_dockerignore() -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"  # nothing, but for the exceptions that follow
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert len(copied()) > 4
    for path in copied():
        assert (ROOT / path).exists(), path
        assert any(path == rule or fnmatch.fnmatch(path, f"{rule}/*") for rule in allowed), path
    assert not any("secrets" in rule for rule in allowed)


def test_the_build_has_the_files_that_the_project_names() -> None:
    needed = [PROJECT["readme"], *PROJECT["license-files"]]
    for path in needed:
        assert any(path == name or path.startswith(f"{name}/") for name in copied()), path


def test_the_lock_has_all_that_is_needed_in_versions_that_will_do() -> None:
    versions = locked()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["ray"], *extras["mpich"]]:
        requirement = Requirement(text)
        assert requirement.name in versions, text
        assert requirement.specifier.contains(versions[requirement.name]), text
    assert "://" not in (DEPLOY / "requirements.txt").read_text()


def test_secrets_are_made_once_and_hidden_by_their_folder(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    script.write_text((DEPLOY / "make-secrets").read_text())
    script.chmod(0o755)
    said = subprocess.run([script], capture_output=True, text=True, check=True).stdout.splitlines()
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert said == [f"made deploy/secrets/{name}" for name in ("ray_token", "metrics_token", "grafana_password")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in made.values())
    assert len(set(made.values())) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    assert subprocess.run([script], capture_output=True, text=True, check=True).stdout == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


def test_git_and_docker_never_see_a_secret() -> None:
    for name in ("ray_token", "metrics_token", "grafana_password"):
        done = subprocess.run(["git", "check-ignore", "-q", f"deploy/secrets/{name}"], cwd=ROOT, check=False)
        assert done.returncode == 0, name


@pytest.mark.parametrize("script", ["make-secrets"])
def test_shellcheck_finds_nothing(script: str) -> None:
    assert subprocess.run([tool("shellcheck"), DEPLOY / script], capture_output=True, check=False).stdout == b""
