"""The commands of docker-compose.yml as processes of this machine: no container engine is needed, and none is tested.

Each service's command, environment and health check are taken out of the file; only addresses, ports and paths are
changed, to those of loopback and of a temporary folder. Grafana is left out: there is no package of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.monitoring import DEPLOY, query, replaced, wait_for_data
from tests.support import ROOT, free_ports, wait_until

pytestmark = pytest.mark.slow

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PORTS = {name: re.findall(r"(?<=[:=])\d{4,5}\b", str(service)) for name, service in COMPOSE["services"].items()}
AGENT_PORT = "52365"
"""Of a node's agent: the same in every container."""
ENTRYPOINTS = {
    "prometheus": ["prometheus"],
    "alertmanager": ["prometheus-alertmanager"],
    "pushgateway": ["prometheus-pushgateway", "--persistence.file="],  # as upstream: Debian's keeps a file
}
"""Those of the images that are not ours."""
DTRAIN = """#!/bin/sh
exec {python} -P -c 'from dtrain.cli import main; main()' "$@"
"""


class Stack:
    """The services as processes, each in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "runs", "targets", "prometheus"):
            (folder / name).mkdir()
        (folder / "bin/dtrain").write_text(DTRAIN.format(python=sys.executable))
        (folder / "bin/dtrain").chmod(0o755)
        shutil.copy(DEPLOY / "make-secrets", folder)
        subprocess.run([folder / "make-secrets"], check=True, stdout=subprocess.DEVNULL)
        self.paths = {
            "/run/secrets": str(folder / "secrets"),
            "/var/lib/dtrain": str(folder),
            "/etc/prometheus": str(folder / "prometheus"),
            "/etc/alertmanager": str(DEPLOY / "alertmanager"),
            "path=/prometheus": f"path={folder / 'data'}",
            "path=/alertmanager": f"path={folder / 'alerts'}",
            "/jobs/": f"{ROOT / 'examples'}/",
        }
        known = sorted({port for text in PORTS.values() for port in text})
        self.ports = dict(zip(known, free_ports(len(known)), strict=True))
        self.agents = dict(zip(("ray-head", "ray-worker"), free_ports(2), strict=True))
        (self.client_port,) = free_ports(1)
        shutil.copytree(DEPLOY / "prometheus/rules", folder / "prometheus/rules")
        text = replaced((DEPLOY / "prometheus/prometheus.yml").read_text(), {"interval: 5s": "interval: 250ms"})
        (folder / "prometheus/prometheus.yml").write_text(self.local(text, "prometheus"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def local(self, text: str, service: str) -> str:
        """A text of a service with the addresses, ports and paths of this machine."""
        for there, here in self.paths.items():
            text = text.replace(there, here)
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)
        text = re.sub(r"\b(ray-head|alertmanager|prometheus|pushgateway)(?=:\d)|\b0\.0\.0\.0\b", "127.0.0.1", text)
        ports = {**self.ports, AGENT_PORT: self.agents.get(service, 0)}
        return re.sub(r"(?<=[:=])\d{4,5}\b", lambda found: str(ports.get(found[0], found[0])), text)

    def environment(self, service: str) -> dict[str, str]:
        """That of the image and of the service, without any of this process's own that Ray or dtrain would read."""
        image = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", DOCKERFILE, re.M))
        own = {**image, **COMPOSE["services"][service].get("environment", {})}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DTRAIN_"))}
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        mapped = {key: self.local(value, service) for key, value in own.items()}
        home = "/proc/nobody"  # it cannot be written, as in the container
        return {**inherited, **mapped, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": home}

    def command(self, service: str) -> list[str]:
        words = COMPOSE["services"][service]["command"]
        return ENTRYPOINTS.get(service, []) + [self.local(word, service) for word in words]

    def start(self, service: str, *extra: str) -> None:
        """Start a service and wait until its own health check is content."""
        options: dict[str, Any] = {"env": self.environment(service), "cwd": self.folder}
        with open(self.folder / f"{service}.log", "wb") as log:
            command = [*self.command(service), *extra]
            self.processes[service] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **options
            )
        check = [self.local(word, service) for word in COMPOSE["services"][service]["healthcheck"]["test"][1:]]

        def is_healthy() -> bool:
            assert self.processes[service].poll() is None, (self.folder / f"{service}.log").read_text()
            done.append(subprocess.run(check, capture_output=True, text=True, check=False, timeout=30, **options))
            return done[-1].returncode == 0

        done: list[subprocess.CompletedProcess[str]] = []
        try:
            wait_until(is_healthy, 60)
        except AssertionError as error:
            raise AssertionError(f"{service} is not healthy: {done[-1:]}") from error

    @property
    def prometheus(self) -> str:
        return f"http://127.0.0.1:{self.ports['9090']}"

    def query(self, expr: str) -> list[dict[str, Any]]:
        return query(self.prometheus, expr)

    def end(self) -> None:
        """End all services and what they have started."""
        family = []
        for process in self.processes.values():
            if process.poll() is None:
                family += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                process.terminate()
        psutil.wait_procs(family, 15)
        for one in family:
            if one.is_running():
                one.kill()
        for process in self.processes.values():
            process.wait(20)


@pytest.fixture
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="dtst-"))  # sockets below it need a short path
    made = Stack(folder)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_cluster_trains_and_prometheus_sees_it(stack: Stack) -> None:
    here = "--node-ip-address=127.0.0.1"
    stack.start("alertmanager")
    stack.start("pushgateway")
    stack.start("prometheus")
    client = f"--ray-client-server-port={stack.client_port}"
    stack.start("ray-head", here, f"--temp-dir={stack.folder / 'ray'}", client)
    stack.start("ray-worker", here)
    options: dict[str, Any] = {"env": stack.environment("submit"), "cwd": stack.folder, "text": True}
    command = [*stack.command("submit"), "--json"]
    submit = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        wait_until(lambda: submit.poll() is not None or stack.query("dtrain_eval_accuracy_ratio > 0.95"), 120)
        assert submit.poll() is None, submit.communicate()
        jobs = [series["metric"] for series in stack.query("dtrain_job_info")]
        assert [job["name"] for job in jobs] == ["digits-mlp"], jobs
        assert {series["metric"]["worker"] for series in stack.query("dtrain_phase_seconds_total")} == {"0", "1"}
        wait_for_data(stack.prometheus, without=("dtrain_eval_metric", "dtrain_checkpoint", "ALERTS"))  # none of it yet
        address = next(word for word in stack.command("submit") if word.startswith("--address"))
        (attempt,) = json.loads(subprocess.check_output(["dtrain", "list", address, "--json"], **options))
        assert subprocess.run(["dtrain", "stop", attempt["id"], address], check=False, **options).returncode == 0
        said, _ = submit.communicate(timeout=60)
    finally:
        submit.kill()
        submit.communicate()
    result = json.loads(said)
    assert (result["status"], submit.returncode) == ("stopped", 143)
    assert result["eval"]["accuracy"] > 0.95
    assert Path(result["run_directory"]).is_relative_to(stack.folder / "runs")
    wait_until(lambda: not stack.query('up{job="dtrain"}'), 30)  # a run that has ended is taken off the list
    wait_until(lambda: stack.query('dtrain_job_state{state="stopped"} == 1'), 30)  # and has left word of its end
