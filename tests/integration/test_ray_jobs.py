"""Jobs on a real Ray cluster of one node, with token authentication, through its dashboard's port alone."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from tests.support import DIGITS, ROOT, braked_model, command, dtrain, free_ports, result_of, wait_until

JOB: dict[str, Any] = {
    **DIGITS,
    "name": "far",
    "model": {"entry": "my_model.py"},
    "data": {"name": "npz", "train": "numbers.npz", "eval": "numbers.npz"},
    "optimizer": {"name": "momentum", "lr": 0.01},
    "epochs": None,
    "steps": 4000,
    "eval": {"every": 20},
    "checkpoint": {"every": 100},
}
DTRAIN = """#!/bin/sh
if [ "$1" = version ] && [ -f {flag} ]; then echo 9.9.9; exit; fi
exec {python} -P -c 'from dtrain.cli import main; main()' "$@"
"""


@dataclass(frozen=True)
class Cluster:
    """A head node. ``runs`` is where it keeps runs; while ``flag`` exists, its dtrain is another version."""

    address: str
    folder: Path
    token_file: Path
    runs: Path
    flag: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Started in the foreground of a session of its own, so that all its processes can be found and ended."""
    folder = Path(tempfile.mkdtemp(prefix="dtray-"))  # sockets below it need a short path
    flag = folder / "other-version"
    (folder / "bin").mkdir()
    script = folder / "bin" / "dtrain"
    script.write_text(DTRAIN.format(flag=flag, python=sys.executable))
    script.chmod(0o755)
    (folder / "token").write_text(secrets.token_hex(16))
    dashboard, client, agent = free_ports(3)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DTRAIN_RUNS": str(folder / "runs"),
    }
    arguments = ["--head", "--block", "--node-ip-address", "127.0.0.1", "--port", "0", "--num-cpus", "2"]
    arguments += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--ray-client-server-port", client]
    arguments += ["--dashboard-agent-listen-port", agent, "--object-store-memory", 100_000_000]
    arguments += ["--temp-dir", folder / "ray", "--include-log-monitor", "false", "--disable-usage-stats"]
    shared = plasma()
    with open(folder / "start.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *map(str, arguments)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    family: dict[int, psutil.Process] = {}

    def gather() -> None:
        for one in psutil.process_iter():
            try:
                if one.pid not in family and (one.pid == process.pid or one.ppid() in family):
                    family[one.pid] = one
            except psutil.Error:
                continue

    try:
        wait_until(lambda: process.poll() is not None or is_listening(dashboard), 60)
        assert process.poll() is None, (folder / "start.log").read_text()
        yield Cluster(f"http://127.0.0.1:{dashboard}", folder, folder / "token", folder / "runs", flag)
    finally:
        gather()
        process.terminate()
        psutil.wait_procs([psutil.Process(process.pid)] if process.poll() is None else [], 20)
        for one in family.values():  # ended and reaped ones are told from new ones of the same number
            if one.is_running():
                one.kill()
        process.wait(20)
        _, alive = psutil.wait_procs(list(family.values()), 20)
        shutil.rmtree(folder, ignore_errors=True)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert plasma() <= shared
    assert not folder.exists()


def plasma() -> set[str]:
    """What Ray has in shared memory; other programs may come and go meanwhile."""
    return {name for name in os.listdir("/dev/shm") if "plasma" in name or "ray" in name}


def is_listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def there(cluster, tmp_path, monkeypatch) -> Path:
    """The environment of a user of the cluster, in a folder with a job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DTRAIN_RUNS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_file))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "numbers.npz", x=rng.standard_normal((300, 6)), y=rng.integers(0, 3, 300))
    (tmp_path / "my_model.py").write_text("from helper import init, loss, metrics\n")
    (tmp_path / "helper.py").write_text(braked_model(tmp_path / "brake", 6, 3))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    return tmp_path


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def status(job_id: str) -> dict[str, Any]:
    done = dtrain("status", job_id, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_job_is_submitted_followed_stopped_fetched_and_resumed_to_the_same_fingerprint(cluster, there):
    started = dtrain("submit", "job.yaml", "--workers", 1, "--name", "mine")
    assert started.returncode == 0, started.stderr
    job_id = started.stdout.strip()
    assert job_id.startswith("mine-")
    assert started.stderr.splitlines()[0] == f"follow it with dtrain logs -f {job_id}"
    follower = subprocess.Popen(command("logs", "-f", job_id), stdout=subprocess.PIPE, text=True)
    listed = dtrain("list").stdout.splitlines()
    assert [row.split()[:2] for row in listed[1:]] == [[job_id, "running"]]
    state = wait_until(lambda: (s := status(job_id))["step"] and s)
    assert (state["steps"], state["exit_code"]) == (4000, None)
    run = Path(state["run_directory"])
    assert run.parent == cluster.runs / "mine"
    wait_until(lambda: list((run / "checkpoints").glob("step-*")))
    assert "is running; wait for it, or stop it" in one_line(dtrain("resume", job_id, "--detach"), 2)
    watcher = subprocess.Popen(command("logs", "-f", job_id), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    assert watcher.communicate(timeout=30)[1] == b""
    assert watcher.returncode == 130

    stopped = dtrain("stop", job_id, "--json")
    assert stopped.returncode == 0, stopped.stderr
    end = json.loads(stopped.stdout)
    assert (end["status"], end["exit_code"]) == ("stopped", 143)
    said, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0
    assert f"stopped after {end['step']} steps" in said
    assert dtrain("stop", job_id).stderr == f"{job_id} is stopped already\n"

    fetched = dtrain("fetch", f"mine/{run.name}")
    assert (fetched.returncode, fetched.stdout) == (0, f"runs/mine/{run.name}\n"), fetched.stderr
    copy = there / "runs" / "mine" / run.name
    assert result_of(copy)["fingerprint"] == end["fingerprint"]
    assert [p.name for p in (copy / "checkpoints").iterdir()] == [f"step-{end['step']:08}"]
    logs = Path(cluster.folder, "ray").glob("session_2*/logs/job-driver-raysubmit_*.log")
    assert all(log.stat().st_size < 2000 for log in logs)  # no copy of the run is left in them

    (there / "brake").unlink()
    resumed = dtrain("resume", job_id, "--detach", "--wait", "--json", "--workers", 2)
    assert resumed.returncode == 0, resumed.stderr
    last = json.loads(resumed.stdout)
    assert (last["status"], last["step"]) == ("succeeded", 4000)
    assert last["id"] == f"{job_id}-2"
    assert f"resumed at step {end['step']}" in resumed.stderr
    assert status(job_id)["fingerprint"] == last["fingerprint"]  # an ID names the run, not the attempt
    assert "has succeeded already" in one_line(dtrain("resume", job_id, "--detach"), 2)
    assert [row.split()[:3] for row in dtrain("list").stdout.splitlines()[1:]] == [
        [last["id"], "succeeded", "4000/4000"]
    ]

    (there / "helper.py").unlink()  # all that the run needs came with it
    (there / "numbers.npz").unlink()
    here = dtrain("resume", copy, "--workers", 0, "-q", "--json")
    assert here.returncode == 0, here.stderr
    assert json.loads(here.stdout)["fingerprint"] == last["fingerprint"]


def test_what_cannot_run_is_one_line_and_starts_nothing(cluster, there, monkeypatch):
    before = json.loads(dtrain("list", "--json").stdout)
    too_many = one_line(dtrain("submit", "job.yaml", "--workers", 9), 2)
    assert too_many == "dtrain: workers: needs 9 CPUs, the cluster has 2, of which 2 are free"
    assert "did you mean optimizer?" in one_line(dtrain("submit", "job.yaml", "--set", "optimizr.lr=1"), 2)
    cluster.flag.touch()
    try:
        other = one_line(dtrain("submit", "job.yaml", "--workers", 1), 2)
    finally:
        cluster.flag.unlink()
    assert "dtrain is 9.9.9 on the cluster and 0.1.0 here; install the same version on all nodes" in other
    assert "no such job of dtrain" in one_line(dtrain("status", "nobody"), 2)
    assert json.loads(dtrain("list", "--json").stdout) == before
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(there / "gone"))
    assert "RAY_AUTH_TOKEN_PATH: " in one_line(dtrain("list"), 2)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(there))  # which may hold a token
    for address in (cluster.address, "auto"):
        line = one_line(dtrain("list", "--address", address), 2)
        assert line.endswith("RAY_AUTH_MODE is token, but there is none; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-the-token")
    line = one_line(dtrain("list"), 2)
    assert "the cluster refuses the token" in line
    assert "not-the-token" not in line
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "the cluster asks for a token" in one_line(dtrain("list"), 2)


def test_a_job_that_fails_leaves_with_its_exit_code_and_its_words(there):
    (there / "brake").unlink()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    np.savez(there / "numbers.npz", x=x * 1e30, y=rng.integers(0, 3, 300))
    failed = dtrain("submit", "job.yaml", "--workers", 1, "--wait", "--json", "--set", "optimizer.lr=1e25")
    assert failed.returncode == 3, failed.stderr
    result = json.loads(failed.stdout)
    assert result["status"] == "failed"
    assert "Lower the learning rate" in result["error"]
    assert dtrain("status", result["id"]).stdout.endswith(f": {result['error']}\n")
    shutil.rmtree(result["run_directory"])
    assert "not a run directory: no such directory" in one_line(dtrain("fetch", result["id"]), 2)
    assert not (there / "runs").exists()


def test_the_doctor_finds_the_cluster(cluster, there):
    report = json.loads(dtrain("doctor", "--json").stdout)
    (found,) = [check for check in report["checks"] if check["name"] == "cluster"]
    assert found["state"] == "ok"
    assert f"{cluster.address}, Ray " in found["text"]
    assert "2 of 2 CPUs free" in found["text"]
