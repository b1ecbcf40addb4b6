"""What the process tests share: running the command, finding its processes, and looking for what it left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from dtrain.comm.threads import one_blas_thread
from dtrain.jobs.backend import make_launcher
from dtrain.jobs.build import build
from dtrain.jobs.payload import spec_payload
from dtrain.jobs.spec import JobSpec, parse_spec
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.service import Outcome, RunSettings, Service

ROOT = Path(__file__).resolve().parents[1]

DIGITS: dict[str, Any] = {
    "name": "digits",
    "model": {"name": "mlp", "hidden": [48, 32], "dropout": 0.2},
    "data": {"name": "digits"},
    "optimizer": {"name": "adam", "lr": 2e-3, "clip_norm": 1.0},
    "batch": 128,  # 1437 samples: the last batch of an epoch has 29
    "shards": 8,
    "epochs": 3,
}


BRAKED_MODEL = """
import os
import time
import numpy as np

def init(rng):
    return {{"w": rng.standard_normal(({features}, {classes})) * 0.01}}

def loss(params, batch):
    scores = batch["x"] @ params["w"]
    scores = scores - np.max(scores, axis=1, keepdims=True)
    return np.log(np.sum(np.exp(scores), axis=1)) - scores[np.arange(len(batch["y"])), batch["y"]]

def metrics(params, batch):
    if os.path.exists({brake!r}):
        time.sleep(0.1)
    return {{}}
"""


def braked_model(brake: Path, features: int = 64, classes: int = 10) -> str:
    """A model file whose evaluations take a tenth of a second while the file ``brake`` exists, which is made here: a
    run that evaluates often lasts until it is released, and is then as quick as any."""
    brake.touch()
    return BRAKED_MODEL.format(brake=str(brake), features=features, classes=classes)


def command(*arguments: object) -> list[str]:
    """The command line of `dtrain`, in this interpreter."""
    return [sys.executable, "-c", "from dtrain.cli import main; main()", *map(str, arguments)]


def dtrain(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False, **options)


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def has_stepped(run_dir: Path) -> bool:
    return any(e["event"] == "first_step" for e in events_of(run_dir))


def alive(run_dir: Path) -> dict[int, int]:
    """The workers that have joined and not gone, with their process ids."""
    events = events_of(run_dir)
    gone = {e["worker"] for e in events if e["event"] in ("worker_lost", "worker_dismissed")}
    return {e["worker"]: e["pid"] for e in events if e["event"] == "worker_joined" and e["worker"] not in gone}


def members_of(run_dir: Path) -> list[int]:
    """The members of the newest generation."""
    generations = [e["members"] for e in events_of(run_dir) if e["event"] == "generation"]
    return generations[-1] if generations else []


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["type"] == "step"]


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until ``condition`` holds and return its value; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not reached in {seconds} s")
        time.sleep(0.005)
    return value


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now, no two the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_in_use_elsewhere(entry: str) -> bool:
    """Whether a process that is not of this test holds an entry of /dev/shm: that of another run on this machine."""
    ours = {str(p.pid) for p in (psutil.Process(), *psutil.Process().children(recursive=True))}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.name not in ours and f"/dev/shm/{entry}" in (process / "maps").read_text():
                return True
    return False


@contextmanager
def nothing_left_behind(*directories: Path) -> Iterator[None]:
    """Fail if a process, an entry of /dev/shm or a temporary file is there afterwards that was not there before."""

    def processes() -> set[int]:
        return {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}

    def shared() -> set[str]:
        return set(os.listdir("/dev/shm"))

    before, entries = processes(), shared()
    yield
    wait_until(lambda: not processes() - before, 10.0)
    assert not {entry for entry in shared() - entries if not _is_in_use_elsewhere(entry)}
    for directory in directories:
        left = [p.name for p in directory.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
        assert left == []


def stop_and_resume(job: Path, whole: Path, run: Path, workers: tuple[int, int, int], steps: int) -> None:
    """Run a job of so many steps to its end, and again with a Ctrl-C in the middle and a resume: all must be the same.

    ``workers`` are those of the whole run, of the stopped one and of the resume.
    """
    assert dtrain("run", job, "--workers", workers[0], "--run-dir", whole, "-q").returncode == 0
    with nothing_left_behind(run):
        arguments = ["run", job, "--workers", workers[1], "--run-dir", run, "-q"]
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: has_stepped(run))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert 0 < result_of(run)["step"] < steps
        done = dtrain("resume", run, "--workers", workers[2], "-q")
        assert done.returncode == 0, done.stderr
    for key in ("fingerprint", "digest_chain", "eval", "train_loss", "step"):
        assert result_of(run)[key] == result_of(whole)[key], key


def spec_of(**changes: Any) -> JobSpec:
    """The small digits job with some keys changed; keys with a dot go into sections."""
    overrides = [f"{k.replace('__', '.')}={json.dumps(v)}" for k, v in changes.items()]
    return parse_spec(DIGITS, overrides=overrides)


def train(spec: JobSpec, workers: int, observer: Observer | None = None, **settings: Any) -> Outcome:
    """Train a spec without a run directory; 0 workers is a thread of this process."""
    service, _ = service_of(spec, workers, observer, **settings)
    with one_blas_thread():
        return service.run()


def service_of(spec: JobSpec, workers: int, observer: Observer | None = None, **settings: Any) -> tuple[Service, Any]:
    """A service that is ready to run, and its launcher."""
    program = build(spec)
    settings = {"checkpoint_seconds": 0.0, **settings}
    launcher = make_launcher(program, workers, None, lambda m: spec_payload(spec, m))
    with one_blas_thread():
        numerics = numerics_class()
    return Service(program, RunSettings(workers, **settings), launcher, numerics, observer=observer), launcher


_started: list[subprocess.Popen[str]] = []


def popen(line: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a command whose output is read; ``ending`` ends it and all its children."""
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    _started.append(process)
    return process


@contextmanager
def ending() -> Iterator[None]:
    """End what ``popen`` has started and the body has left, with everything below it."""
    try:
        yield
    finally:
        while _started:
            process = _started.pop()
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.communicate()
