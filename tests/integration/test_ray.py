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

from tests.backends import RayHead, ray_head
from tests.support import alive, command, dtrain, events_of, has_stepped, members_of, popen, result_of, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("ended")]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """Three nodes, of which the second and third count as other hosts."""
    with ray_head(cpus=2) as made:
        made.add_node(1, "second")
        made.add_node(1, "third")
        yield made


def start(head: RayHead, *arguments: object) -> subprocess.Popen[str]:
    line = [*command(*arguments, "-q"), "--backend", "ray", "--address", head.address]
    return popen(line, env=head.environment)


def test_killed_workers_are_started_again_and_cost_no_step(
    head: RayHead, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", long_job, "-w", 4, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    for count in range(1, 6):
        victim = min(alive(run))
        os.kill(alive(run)[victim], signal.SIGKILL)
        wait_until(lambda: sum(e["event"] == "recovered" for e in events_of(run)) >= count)  # noqa: B023
        wait_until(lambda: len(alive(run)) == 4 or process.poll() is not None)
    out, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    result = result_of(run)
    assert result["fingerprint"] == undisturbed["fingerprint"]
    assert result["restarts"] == 5
    assert out.startswith("succeeded")  # what Ray says of dead workers is on standard error
    assert "(raylet)" in errors


def test_workers_come_and_go_while_it_runs(
    head: RayHead, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", long_job, "-w", 1, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    for count in (3, 2):
        assert dtrain("scale", run, count).returncode == 0
        wait_until(lambda: len(members_of(run)) == count)  # noqa: B023
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_a_stop_on_ray_goes_on_anywhere(
    head: RayHead, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", long_job, "-w", 3, "--run-dir", run)
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
    head: RayHead, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(head, "run", long_job, "-w", 2, "--run-dir", run)
    wait_until(lambda: any(e["event"] == "checkpoint" for e in events_of(run)))
    (holder,) = [int((run / "lock").read_text().split()[0])]
    os.kill(holder, signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 3
    assert f"dtrain resume {run}" in errors
    done = dtrain("resume", run, "-w", 1, "-q")
    assert done.returncode == 0, done.stderr
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_more_workers_than_the_cluster_has_are_refused_at_once(head: RayHead, long_job: Path, tmp_path: Path) -> None:
    done = head.run("run", long_job, "-w", 9, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "workers: the job needs 9 CPUs, the cluster has 4, " in done.stderr


def test_an_address_without_a_cluster_is_one_line(long_job: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [
        *command("run", long_job, "--run-dir", tmp_path / "run"),
        "--backend",
        "ray",
        "--address",
        f"127.0.0.1:{port}",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"dtrain: --address: Ray at 127.0.0.1:{port} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_endpoint_of_a_run_is_on_loopback_alone(head: RayHead, long_job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(head, "run", long_job, "-w", 2, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    (holder,) = [int((run / "lock").read_text().split()[0])]
    url = json.loads((run / "endpoint.json").read_text())["url"]
    listening = [c.laddr for c in psutil.Process(holder).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {a.ip for a in listening if f":{a.port}/" in url} == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_a_node_that_is_lost_costs_no_step(head: RayHead, long_job: Path, tmp_path: Path) -> None:
    """The last test of the cluster: all of the third node is killed."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert dtrain("run", long_job, "-w", 2, "-q", "--run-dir", alone, "--set", "epochs=150").returncode == 0
    process = start(head, "run", long_job, "-w", 4, "--run-dir", run, "--set", "epochs=150")
    wait_until(lambda: has_stepped(run))
    lost = [p for p in psutil.process_iter() if p.name() == "raylet" and p.environ().get("DTRAIN_HOST") == "third"]
    victims = [child for raylet in lost for child in raylet.children(recursive=True)] + lost
    assert victims
    for victim in victims:
        victim.kill()
    wait_until(lambda: any(e["event"] == "recovered" for e in events_of(run)))
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert result_of(run)["fingerprint"] == result_of(alone)["fingerprint"]
