"""Jobs from the command line on a Ray cluster of three simulated hosts.

Needs root. ``DTRAIN_NO_ROOT=1`` leaves these tests out where there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.simulate import Hosts, RayCluster
from tests.support import DIGITS, ROOT, braked_model, command, dtrain, result_of, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get("DTRAIN_NO_ROOT") == "1", reason="DTRAIN_NO_ROOT=1 asks for it"),
]

JOB: dict[str, Any] = {
    **DIGITS,
    "name": "far",
    "model": {"entry": "my_model.py"},
    "epochs": None,
    "steps": 600,
    "eval": {"every": 20},
    "checkpoint": {"every": 50},
}
DTRAIN = """#!/bin/sh
exec {python} -P -c 'from dtrain.cli import main; main()' "$@"
"""


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Three nodes with two CPUs each, where `dtrain` is this checkout's; runs are kept in its ``DTRAIN_RUNS``."""
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "bin" / "dtrain"
    script.parent.mkdir()
    script.write_text(DTRAIN.format(python=sys.executable))
    script.chmod(0o755)
    made = RayCluster(hosts, cpus=2)
    made.environment |= {
        "PATH": f"{script.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DTRAIN_RUNS": str(folder / "runs"),
    }
    with made:
        yield made


class User:
    """Somebody in the third host with the dashboard's address and the token, and with a folder of his own."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        self._host, self._folder = cluster.hosts[2], folder
        self._environment = {**cluster.environment, "DTRAIN_RUNS": str(folder / "runs")}
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            del self._environment[name]
        self._address = ("--address", cluster.dashboard)

    def popen(self, *arguments: object) -> subprocess.Popen[str]:
        line = [*command(*arguments), *self._address]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return self._host.popen(line, env=self._environment, cwd=self._folder, **pipes)

    def says(self, *arguments: object) -> str:
        """What a command prints; it has to succeed."""
        process = self.popen(*arguments)
        out, error = process.communicate(timeout=150)
        assert process.returncode == 0, error
        return out

    def status(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.says("status", job_id, "--json"))
        return found


def hosts_that_summed(cluster: RayCluster, before: list[int], steps: int) -> int:
    """How many hosts have sent at least the bytes of the gradient, 64 × 10 numbers of 4 bytes, in each step since."""
    return sum(cluster.hosts.bytes_sent(index) - before[index] > steps * 2560 for index in range(3))


def test_a_job_on_three_nodes_is_followed_stopped_resumed_and_fetched(cluster: RayCluster, tmp_path: Path) -> None:
    brake = tmp_path / "brake"
    (tmp_path / "my_model.py").write_text(braked_model(brake))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    user = User(cluster, tmp_path)
    before = [cluster.hosts.bytes_sent(index) for index in range(3)]

    job_id = user.says("submit", "job.yaml", "--workers", 5, "--name", "mine").strip()
    follower = user.popen("logs", "-f", job_id)
    assert [row.split()[:2] for row in user.says("list").splitlines()[1:]] == [[job_id, "running"]]
    state = wait_until(lambda: (s := user.status(job_id))["step"] and s)
    run = Path(state["run_directory"])
    assert (state["steps"], run.parent) == (600, Path(cluster.environment["DTRAIN_RUNS"], "mine"))
    wait_until(lambda: list((run / "checkpoints").glob("step-*")))
    end = json.loads(user.says("stop", job_id, "--json"))
    assert (end["status"], end["exit_code"]) == ("stopped", 143)
    said, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert "on 5 Ray workers of 3 nodes" in said
    assert f"stopped after {end['step']} steps" in said
    assert hosts_that_summed(cluster, before, end["step"]) == 3

    brake.unlink()
    before = [cluster.hosts.bytes_sent(index) for index in range(3)]
    last = json.loads(user.says("resume", job_id, "--detach", "--wait", "--json", "--workers", 3))
    assert (last["status"], last["step"]) == ("succeeded", 600)
    assert hosts_that_summed(cluster, before, 600 - end["step"]) >= 2
    fetched = tmp_path / user.says("fetch", job_id).strip()
    assert fetched == tmp_path / "runs" / "mine" / run.name
    assert result_of(fetched)["fingerprint"] == last["fingerprint"]
    assert [p.name for p in (fetched / "checkpoints").iterdir()] == ["step-00000600"]

    alone = dtrain("run", tmp_path / "job.yaml", "--workers", 0, "-q", "--json", "--run-dir", tmp_path / "alone")
    assert json.loads(alone.stdout)["fingerprint"] == last["fingerprint"]
