"""Fifty kills under Ray, and under mpirun with ULFM: not a step is lost. `pytest -m slow -s` prints the times."""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.backends import mpirun, ray_head
from tests.support import DIGITS, ROOT, command, dtrain, ended, events_of, popen, result_of, wait_until  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.usefixtures("ended")]
KILLS = 50


def job_of(folder: Path, epochs: int) -> tuple[Path, str]:
    """A job, and its fingerprint undisturbed."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**DIGITS, "epochs": epochs, "eval": {"every": None}}))
    done = dtrain("run", path, "-q", "--json", "-w", 2, "--run-dir", folder / "undisturbed")
    return path, json.loads(done.stdout)["fingerprint"]


def alive(run: Path) -> dict[int, int]:
    events = events_of(run)
    gone = {e["worker"] for e in events if e["event"] == "worker_lost"}
    return {e["worker"]: e["pid"] for e in events if e["event"] == "worker_joined" and e["worker"] not in gone}


def kill(run: Path, worker: int) -> float:
    """Kill a worker; return the seconds until the first step that was committed after its death."""
    before = sum(e["event"] == "recovered" for e in events_of(run))
    at = time.time()
    os.kill(alive(run)[worker], signal.SIGKILL)
    wait_until(lambda: sum(e["event"] == "recovered" for e in events_of(run)) > before)
    when = [e["time"] for e in events_of(run) if e["event"] == "recovered"][before]
    return datetime.datetime.fromisoformat(when).timestamp() - at


def tell(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    print(
        f"\n{name}: {len(ordered)} kills, kill to next committed step: median {ordered[len(ordered) // 2] * 1e3:.0f} "
        f"ms, p99 {p99 * 1e3:.0f} ms, longest {ordered[-1] * 1e3:.0f} ms, steps lost 0"
    )


def finish(process: subprocess.Popen[str], run: Path, fingerprint: str) -> dict[str, Any]:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    result = result_of(run)
    assert result["fingerprint"] == fingerprint
    return result


def test_fifty_kills_under_ray(tmp_path: Path) -> None:
    draw = random.Random(1)
    seconds: list[float] = []
    path, fingerprint = job_of(tmp_path, epochs=800)
    with ray_head(cpus=2) as head:
        for number in range(100):
            run = tmp_path / f"run{number}"
            line = [*command("run", path, "-q", "-w", 2, "--run-dir", run), "--backend", "ray"]
            process = popen([*line, "--address", head.address], env=head.environment)
            wait_until(lambda: any(e["event"] == "first_step" for e in events_of(run)))  # noqa: B023
            kills = 0
            # The replacement may be late; the run must not be near its end, where nothing is committed any more.
            while kills < 5 and len(seconds) < KILLS:
                wait_until(lambda: len(alive(run)) == 2)  # noqa: B023
                seconds.append(kill(run, draw.choice(sorted(alive(run)))))
                kills += 1
            assert finish(process, run, fingerprint)["restarts"] == kills
            if len(seconds) == KILLS:
                break
    tell("Ray, 2 workers", seconds)
    assert max(seconds) < 30  # a hang, not a measurement


@pytest.mark.parametrize("ranks_per_host", [0, 1], ids=["one host", "a host each"])
def test_fifty_kills_under_ulfm(ranks_per_host: int, tmp_path: Path) -> None:
    draw = random.Random(2)
    seconds: list[float] = []
    path, fingerprint = job_of(tmp_path, epochs=300)
    for number in range(KILLS // 4 + 1):
        run = tmp_path / f"run{number}"
        line = mpirun(
            "openmpi",
            5,
            "run",
            path,
            "-q",
            "--run-dir",
            run,
            options=("--with-ft", "ulfm"),
            ranks_per_host=ranks_per_host,
        )
        process = popen(line, cwd=ROOT)
        wait_until(lambda: any(e["event"] == "first_step" for e in events_of(run)))  # noqa: B023
        for victim in draw.sample([1, 2, 3, 4], 4):
            seconds.append(kill(run, victim))
        assert finish(process, run, fingerprint)["restarts"] == 4
    assert len(seconds) >= KILLS
    tell(f"Open MPI with ULFM, 5 ranks, {'one host' if not ranks_per_host else 'a host each'}", seconds)
    assert max(seconds) < 30  # a hang, not a measurement
