"""`dtrain run --backend ray` on a real cluster: what is started, what survives, and what the user reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.backends import RayHead, ray_head
from tests.support import DIGITS, command, dtrain, ended, events_of, popen, result_of, wait_until  # noqa: F401

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("ended")]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """Three nodes, of which the second and third count as other hosts."""
    with ray_head(cpus=2) as made:
        made.add_node(1, "second")
        made.add_node(1, "third")
        yield made


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "long.yaml"
    path.write_text(yaml.safe_dump({**DIGITS, "epochs": 600, "checkpoint": {"every": "1s"}, "eval": {"every": None}}))
    return path


@pytest.fixture(scope="module")
def undisturbed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert dtrain("run", job, "-w", 2, "-q", "--run-dir", run).returncode == 0
    return result_of(run)


def start(head: RayHead, *arguments: object) -> subprocess.Popen[str]:
    line = [*command(*arguments, "-q"), "--backend", "ray", "--address", head.address]
    return popen(line, env=head.environment)


def alive(run: Path) -> dict[int, int]:
    events = events_of(run)
    gone = {e["worker"] for e in events if e["event"] in ("worker_lost", "worker_dismissed")}
    return {e["worker"]: e["pid"] for e in events if e["event"] == "worker_joined" and e["worker"] not in gone}


def has_stepped(run: Path) -> bool:
    return any(e["event"] == "first_step" for e in events_of(run))


def members(run: Path) -> int:
    return len([e for e in events_of(run) if e["event"] == "generation"][-1]["members"])


def test_killed_workers_are_started_again_and_cost_no_step(
    head: RayHead, job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 4, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    for count in range(1, 6):
        victim = min(alive(run))
        os.kill(alive(run)[victim], signal.SIGKILL)
        wait_until(lambda: sum(e["event"] == "recovered" for e in events_of(run)) >= count)  # noqa: B023
        wait_until(lambda: len(alive(run)) == 4 or process.poll() is not None)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    result = result_of(run)
    assert result["fingerprint"] == undisturbed["fingerprint"]
    assert result["restarts"] == 5


def test_workers_come_and_go_while_it_runs(
    head: RayHead, job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 1, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    for count in (3, 2):
        assert dtrain("scale", run, count).returncode == 0
        wait_until(lambda: members(run) == count)  # noqa: B023
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_a_stop_on_ray_goes_on_anywhere(head: RayHead, job: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 3, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 143
    stopped = result_of(run)
    assert (stopped["status"], stopped["step"] < undisturbed["step"]) == ("stopped", True)
    done = head.run("resume", run, "-w", 2, "-q")
    assert done.returncode == 0, done.stderr
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_the_death_of_the_coordinator_is_told_and_the_run_can_be_resumed(
    head: RayHead, job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 2, "--run-dir", run)
    wait_until(lambda: any(e["event"] == "checkpoint" for e in events_of(run)))
    (holder,) = [int((run / "lock").read_text().split()[0])]
    os.kill(holder, signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 3
    assert f"dtrain resume {run}" in errors
    done = dtrain("resume", run, "-w", 1, "-q")
    assert done.returncode == 0, done.stderr
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_more_workers_than_the_cluster_has_are_refused_at_once(head: RayHead, job: Path, tmp_path: Path) -> None:
    done = head.run("run", job, "-w", 9, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "workers: the job needs 9 CPUs, the cluster has 4, " in done.stderr


def test_an_address_without_a_cluster_is_one_line(job: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [*command("run", job, "--run-dir", tmp_path / "run"), "--backend", "ray", "--address", f"127.0.0.1:{port}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"dtrain: --address: Ray at 127.0.0.1:{port} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_ours_listens_beyond_loopback(head: RayHead, job: Path, tmp_path: Path) -> None:
    """Ray's own workers listen; ours add the door and, between hosts, lines, on the node's address: loopback here."""
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 2, "--run-dir", run, "--set", "steps=2000", "--set", "epochs=null")
    wait_until(lambda: has_stepped(run))
    (holder,) = [int((run / "lock").read_text().split()[0])]
    doors = [c.laddr for c in psutil.Process(holder).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    endpoint = json.loads((run / "endpoint.json").read_text())["url"]
    process.communicate(timeout=120)
    assert any(f":{address.port}/" in endpoint for address in doors)
    ours = [address for address in doors if address.ip != "0.0.0.0"]
    assert ours
    assert {address.ip for address in ours} == {"127.0.0.1"}


def test_a_node_that_is_lost_costs_no_step(
    head: RayHead, job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The last test of the cluster: all of the third node is killed."""
    run = tmp_path / "run"
    process = start(head, "run", job, "-w", 4, "--run-dir", run, "--set", "timeout_seconds=2")
    wait_until(lambda: has_stepped(run))
    lost = [p for p in psutil.process_iter() if p.name() == "raylet" and p.environ().get("DTRAIN_HOST") == "third"]
    victims = [child for raylet in lost for child in raylet.children(recursive=True)] + lost
    assert victims
    for victim in victims:
        victim.kill()
    wait_until(lambda: any(e["event"] == "recovered" for e in events_of(run)))
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]
