"""Real runs under a real Prometheus and Alertmanager, with the configuration and the rules of deploy/.

Times in the rules are shortened, so that what takes minutes in service takes seconds; nothing else is changed.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.monitoring import Monitoring, monitoring, wait_for_data
from tests.support import DIGITS, alive, command, dtrain, events_of, has_stepped, members_of, wait_until

CONFIG = {
    "scrape_interval: 5s": "scrape_interval: 250ms",
    "evaluation_interval: 5s": "evaluation_interval: 250ms\n  scrape_timeout: 250ms",
    "refresh_interval: 30s": "refresh_interval: 1s",
}
RULES = {
    "for: 30s": "for: 1s",
    "for: 1m": "for: 1s",
    "for: 2m": "for: 1s",
    "for: 5m": "for: 1s",
    "[1m]": "[3s]",
    "[2m]": "[3s]",
    "run:dtrain_step_age_seconds > 60": "run:dtrain_step_age_seconds > 2",
    "run:dtrain_checkpoint_age_seconds > 900": "run:dtrain_checkpoint_age_seconds > 4",
}
MODEL = """
import numpy as np

def init(rng):
    return {"w": np.ones(4), "b": np.zeros(3)}

def loss(params, batch):  # its minimum runs away: each step makes w a little longer
    return 0.1 - np.sum(batch["x"] ** 2 * 0.0) + 0.5 * np.sum(params["w"] ** 2) + 0.0 * np.sum(params["b"])

def metrics(params, batch):
    return {"share": batch["y"] == 0}
"""


class Run:
    """A run in the background that tells Prometheus where it is."""

    def __init__(self, job: Path, folder: Path, workers: int) -> None:
        self.folder, self.name = folder, folder.name
        line = command("run", job, "--workers", workers, "--quiet", "--run-dir", folder)
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: self.process.poll() is not None or has_stepped(folder), 30)
        assert self.process.poll() is None, self.process.communicate()[1]

    def workers(self) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in alive(self.folder).values()]

    def kill(self) -> None:
        """End all its processes at once; a second call does nothing."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    with monitoring(tmp_path_factory.mktemp("monitoring"), CONFIG, RULES) as made:
        yield made


@pytest.fixture(scope="module")
def steady(watched: Monitoring, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of two workers that goes on until the module is done; a silent worker is waited for."""
    folder = tmp_path_factory.mktemp("steady")
    job = {
        **DIGITS,
        "name": "steady",
        "epochs": 100_000,
        "eval": {"every": "20 epochs"},
        "checkpoint": {"every": "1s"},
        "timeout_seconds": 300.0,
        "monitor": watched.settings,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run = Run(folder / "job.yaml", folder / "steady-run", 2)
    yield run
    run.kill()


@pytest.fixture(scope="module")
def astray(watched: Monitoring, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose loss and gradient grow with every step, and that meets a nan in each epoch."""
    folder = tmp_path_factory.mktemp("astray")
    x = np.zeros((640, 2))
    x[77] = 1e200  # its square is infinite
    np.savez(folder / "numbers.npz", x=x, y=np.arange(640) % 3)
    np.savez(folder / "held.npz", x=np.zeros((64, 2)), y=np.arange(64) % 3)
    (folder / "my_model.py").write_text(MODEL)
    job = {
        "name": "astray",
        "model": {"entry": "my_model.py"},
        "data": {"name": "npz", "train": "numbers.npz", "eval": "held.npz"},
        "optimizer": {"name": "sgd", "lr": 2.001},  # above 2 the parabola is left, alternately to both sides
        "batch": 64,
        "dtype": "float64",
        "steps": 1_000_000,
        "eval": {"every": 100},
        "checkpoint": {"every": None},
        "on_nonfinite": "skip",
        "monitor": watched.settings,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run = Run(folder / "job.yaml", folder / "astray-run", 1)
    yield run
    run.kill()


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """A process that gets a fifth of its time, as on a machine that others use."""
    done = threading.Event()

    def brake() -> None:
        while not done.is_set():
            process.suspend()
            time.sleep(0.04)
            process.resume()
            time.sleep(0.01)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_every_panel_and_every_recorded_rule_has_data(watched: Monitoring, steady: Run, astray: Run) -> None:
    wait_for_data(watched.prometheus)
    assert not {alert for alert, run in watched.alerts() if run == steady.name}


@pytest.mark.slow
def test_troubles_of_a_run_come_to_alertmanager(watched: Monitoring, steady: Run, astray: Run) -> None:
    for alert in ("DtrainNotFinite", "DtrainGradientExplodes", "DtrainLossDiverges"):
        watched.wait_for(alert, astray.name)
    with slowed(steady.workers()[1]):
        watched.wait_for("DtrainStraggler", steady.name)
    for _ in range(5):
        restarts = len([e for e in events_of(steady.folder) if e["event"] == "recovered"])
        steady.workers()[0].kill()
        wait_until(lambda n=restarts: len([e for e in events_of(steady.folder) if e["event"] == "recovered"]) > n)
        time.sleep(0.5)  # for a scrape
    watched.wait_for("DtrainRestartLoop", steady.name)
    assert dtrain("scale", steady.folder, 1).returncode == 0
    wait_until(lambda: len(members_of(steady.folder)) == 1)
    watched.wait_for("DtrainWorldShrunk", steady.name)
    wait_until(lambda: list((steady.folder / "checkpoints").glob("step-*")))
    (steady.folder / "checkpoints").rename(steady.folder / "away")
    (steady.folder / "checkpoints").touch()  # a disk that cannot be written
    watched.wait_for("DtrainCheckpointStale", steady.name)
    for worker in steady.workers():
        worker.suspend()
    watched.wait_for("DtrainStalled", steady.name)


def test_a_run_that_is_killed_is_missed_and_one_that_fails_leaves_word(
    watched: Monitoring, steady: Run, tmp_path: Path
) -> None:
    steady.kill()
    job = {**DIGITS, "name": "hopeless", "optimizer": {"name": "sgd", "lr": 1e30}, "monitor": watched.settings}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert dtrain("run", tmp_path / "job.yaml", "--workers", 1, "--run-dir", tmp_path / "hopeless-run").returncode == 3
    watched.wait_for("DtrainFailed", "hopeless-run")
    watched.wait_for("DtrainUnreachable", "steady-run")
