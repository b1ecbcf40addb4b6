"""`mpirun dtrain run`: what the user reads, how it ends, and what survives, with MPICH and with Open MPI."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.backends import FLAVOURS, mpirun, run_mpi
from tests.support import DIGITS, ROOT, alive, command, dtrain, events_of, has_stepped, popen, result_of, wait_until

ULFM = ("--with-ft", "ulfm")


pytestmark = pytest.mark.usefixtures("ended")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mpi") / "digits.yaml"
    path.write_text(yaml.safe_dump(DIGITS))
    return path


def start(flavour: str, ranks: int, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}
    line = mpirun(flavour, ranks, *arguments, "-q", **options)
    return popen(line, env=environment, cwd=ROOT)


def has_checkpoint(run: Path) -> bool:
    return any(e["event"] == "checkpoint" for e in events_of(run))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_only_the_first_rank_speaks(flavour: str, job: Path, tmp_path: Path) -> None:
    done = run_mpi(flavour, 3, "run", job, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fingerprint") == 1
    assert "on 3 MPI ranks (" in done.stderr
    assert {"mpich": "MPICH", "openmpi": "Open MPI"}[flavour] in done.stderr
    assert len(alive(tmp_path / "run")) == 3


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_exception_on_one_rank_ends_the_job_and_is_told_with_the_users_line(flavour: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import os\nimport numpy as np\n"
        "def init(rng):\n    return {'w': rng.standard_normal((64, 10))}\n"
        "def loss(params, batch):\n"
        "    if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n"
        "        raise ValueError('rank one has had enough')\n"
        "    return np.sum((batch['x'] @ params['w']) ** 2, axis=1)\n"
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**DIGITS, "model": {"entry": "model.py"}}))
    began = time.monotonic()
    done = run_mpi(flavour, 2, "run", path, "-q", "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("loss: ValueError: rank one has had enough; made at model.py:7") == 1
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 60
    assert result_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_mistake_in_the_job_is_told_once(flavour: str, job: Path, tmp_path: Path) -> None:
    done = run_mpi(flavour, 3, "run", job, "--set", "optimizer.lrr=1", "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("optimizer.lrr") == 1
    assert not (tmp_path / "run").exists()


def test_another_number_of_workers_than_ranks_is_refused(job: Path) -> None:
    done = run_mpi("mpich", 2, "run", job, "-w", 3)
    assert done.returncode == 2
    assert done.stderr.count("--workers: under mpirun there are as many workers as ranks: 2; leave it out") == 1


def test_the_local_backend_is_refused_under_mpirun(job: Path) -> None:
    done = run_mpi("mpich", 2, "run", job, "--backend", "local")
    assert done.returncode == 2
    assert "--backend: local runs in one process, but mpirun has started 2" in done.stderr


STARTUP = {
    "two threads": """
import sys
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == "dtrain.train.numerics":  # after dtrain has set one thread
            sys.meta_path.remove(self)
            import threadpoolctl
            threadpoolctl.threadpool_limits = lambda *a, **k: __import__("contextlib").nullcontext()
            for library in threadpoolctl.ThreadpoolController().lib_controllers:
                library.set_num_threads(2)
sys.meta_path.insert(0, Late())
""",
    "another NumPy": """
import sys
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == "dtrain.train.numerics":
            sys.meta_path.remove(self)
            __import__("numpy").__version__ = "0.0.1"
sys.meta_path.insert(0, Late())
""",
}
"""What a rank's interpreter runs before anything else, as `sitecustomize`."""


def refused(flavour: str, at: Path, job: Path, change: str) -> str:
    """What a run of two ranks says when the shell commands ``change`` come before the second; it has to be refused."""
    line = mpirun(flavour, 2, "run", job, "-q", "--run-dir", at / "run")
    first = next(i for i, word in enumerate(line) if word.endswith("/python"))
    line[first:first] = ["sh", "-c", f'[ "${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}}" = 1 ] && {change}; exec "$@"', "sh"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 4, done.stderr
    return done.stderr


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_rank_with_other_kernels_is_refused(flavour: str, job: Path, tmp_path: Path) -> None:
    kernels = json.loads(dtrain("run", job, "-q", "--json", "-w", 0, "--run-dir", tmp_path / "here").stdout)
    other = "Haswell" if kernels["numerics_class"]["blas_kernels"] != "Haswell" else "Sandybridge"
    said = refused(flavour, tmp_path, job, f"export OPENBLAS_CORETYPE={other}")
    assert f"worker 1 computes in another numerics class: blas_kernels is '{other}'" in said


@pytest.mark.parametrize(
    ("cause", "field"), [("two threads", "blas_threads is '2'"), ("another NumPy", "numpy is '0.0.1'")]
)
def test_a_rank_of_another_numerics_class_is_refused(cause: str, field: str, job: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STARTUP[cause])
    said = refused("mpich", tmp_path, job, f'export PYTHONPATH="{tmp_path}:$PYTHONPATH"')
    assert f"worker 1 computes in another numerics class: {field}" in said


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ctrl_c_keeps_a_checkpoint_and_the_run_goes_on_elsewhere(
    flavour: str, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(flavour, 2, "run", long_job, "--run-dir", run)
    wait_until(lambda: has_stepped(run))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    stopped = result_of(run)
    assert stopped["status"] == "stopped"
    assert 0 < stopped["step"] < undisturbed["step"]
    done = dtrain("resume", run, "-w", 3, "-q")
    assert done.returncode == 0, done.stderr
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_killed_rank_ends_the_job_with_a_checkpoint_kept(flavour: str, long_job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(flavour, 3, "run", long_job, "--run-dir", run)
    wait_until(lambda: has_checkpoint(run))
    os.kill(alive(run)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert any(p.name.startswith("step-") for p in (run / "checkpoints").iterdir())
    status = json.loads(dtrain("status", run, "--json").stdout)["status"]
    assert status in ("failed", "stopped")


def test_launch_brings_a_killed_rank_back(long_job: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = command("launch", "mpi", "-n", 2, "--max-restarts", 2, long_job, "-q", "--run-dir", run)
    process = popen(line)
    wait_until(lambda: has_checkpoint(run))
    os.kill(alive(run)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "start 1 of 2 anew" in errors
    assert "resumed at step" in errors
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]


def test_launch_without_restarts_says_how_to_go_on(long_job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = command("launch", "mpi", "-n", 2, long_job, "-q", "--run-dir", run)
    process = popen(line)
    wait_until(lambda: has_checkpoint(run))
    os.kill(alive(run)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"the last checkpoint is kept: dtrain resume {run}" in errors


@pytest.mark.parametrize("ranks_per_host", [0, 1, 2], ids=["one host", "a host each", "two a host"])
def test_with_ulfm_a_killed_rank_costs_no_step(
    ranks_per_host: int, long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("openmpi", 4, "run", long_job, "--run-dir", run, options=ULFM, ranks_per_host=ranks_per_host)
    wait_until(lambda: has_stepped(run))
    for victim in (1, 2):
        os.kill(alive(run)[victim], signal.SIGKILL)
        wait_until(lambda: sum(e["event"] == "recovered" for e in events_of(run)) >= victim)  # noqa: B023
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result = result_of(run)
    assert (result["fingerprint"], result["restarts"]) == (undisturbed["fingerprint"], 2)


def test_with_ulfm_a_stopped_rank_is_named_and_left_behind(
    long_job: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("run", long_job, "--run-dir", run, "--set", "timeout_seconds=1.5")
    process = start("openmpi", 3, *arguments, options=ULFM, ranks_per_host=1)
    wait_until(lambda: has_stepped(run))
    stopped = alive(run)[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: any(e["event"] == "recovered" for e in events_of(run)))
    silent = [e["text"] for e in events_of(run) if e["event"] == "worker_silent"]
    # Ranks are numbered as the workers join.
    assert [re.sub(r"rank \d", "rank", t)[:31] for t in silent] == ["worker 1 (rank) was silent for "]
    os.kill(stopped, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert result_of(run)["fingerprint"] == undisturbed["fingerprint"]
