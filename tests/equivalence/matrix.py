"""The fingerprint matrix: every backend, every number of workers, every kind of model and optimizer: one hash a column.

    python -m tests.equivalence.matrix            everything, some minutes
    python -m tests.equivalence.matrix --small    what the test suite runs

Prints a table and leaves with 1 if two cells of a column differ. ``--hosts`` adds mpirun and Ray over simulated hosts
(network namespaces; needs root).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.backends import ray_head, run_mpi
from tests.support import dtrain

TRANSFORMER = """
import numpy as np

D = 16

def init(rng):
    def matrix(*shape):
        return rng.standard_normal(shape) * 0.2
    return {"embed": matrix(8, D), "q": matrix(D, D), "k": matrix(D, D), "v": matrix(D, D), "up": matrix(D, 32),
            "down": matrix(32, D), "head": matrix(8 * D, 10)}

def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)

def normalised(x):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)

def loss(params, batch):
    x = batch["x"].reshape(-1, 8, 8) @ params["embed"]
    h = normalised(x)
    weights = softmax((h @ params["q"]) @ np.swapaxes(h @ params["k"], 1, 2) / 4.0)
    x = x + weights @ (h @ params["v"])
    x = x + np.tanh(normalised(x) @ params["up"]) @ params["down"]
    scores = x.reshape(len(x), -1) @ params["head"]
    scores = scores - np.max(scores, axis=1, keepdims=True)
    return np.log(np.sum(np.exp(scores), axis=1)) - scores[np.arange(len(x)), batch["y"]]
"""
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [48, 32], "batch_norm": "synchronised", "dropout": 0.2},
    "mlp of shards": {"name": "mlp", "hidden": [48, 32], "batch_norm": True, "dropout": 0.2},
    "convnet": {"name": "convnet", "filters": [4, 8], "hidden": [16], "dropout": 0.2},
    "transformer": {"entry": "transformer.py"},
    "gpt": {"name": "transformer", "width": 16, "heads": 2, "layers": 1, "dropout": 0.1},
    "dlrm": {"name": "dlrm", "tables": 5, "rows": 400, "width": 6, "bottom": [8], "top": [12]},
}
DATA: dict[str, dict[str, Any]] = {
    "gpt": {"name": "characters", "window": 16, "stride": 2},
    "dlrm": {"name": "clicks", "tables": 5, "rows": 400, "features": 3, "samples": 1437},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": {"name": "momentum", "lr": 0.05, "schedule": {"name": "cosine", "warmup_steps": 4}},
    "adam": {"name": "adam", "lr": 2e-3, "clip_norm": 1.0},
}


def write_jobs(folder: Path, models: list[str]) -> dict[str, Path]:
    """Write a job file for each model and optimizer; 1437 digits, so that the last batch of an epoch has 29."""
    (folder / "transformer.py").write_text(TRANSFORMER)
    jobs = {}
    for model in models:
        for optimizer, options in OPTIMIZERS.items():
            path = folder / f"{model}-{optimizer}.yaml"
            job = {
                "model": MODELS[model],
                "data": DATA.get(model, {"name": "digits"}),
                "optimizer": options,
                "batch": 128,
                "shards": 8,
                "epochs": 2,
            }
            path.write_text(yaml.safe_dump(job))
            jobs[f"{model} {optimizer}"] = path
    return jobs


@dataclass(frozen=True)
class Row:
    """A backend with so many workers, and what runs a job there: it returns what ``--json`` printed."""

    backend: str
    workers: int
    run: Callable[[Path, Path], subprocess.CompletedProcess[str]]


def rows(stack: ExitStack, workers: list[int], with_hosts: bool) -> list[Row]:
    """The rows of the table; what they need is started on ``stack``."""
    quiet = ("-q", "--json")
    found = [Row("in-process", 1, lambda job, run: dtrain("run", job, "-w", 0, "--run-dir", run, *quiet))]
    for w in workers:
        found.append(Row("local", w, lambda job, run, w=w: dtrain("run", job, "-w", w, "--run-dir", run, *quiet)))
    for flavour in ("mpich", "openmpi"):
        for w in workers:
            found.append(
                Row(flavour, w, lambda job, run, w=w, f=flavour: run_mpi(f, w, "run", job, "--run-dir", run, *quiet))
            )
        for hosts in (2, 3):
            found.append(
                Row(
                    f"{flavour}, {hosts} hosts apart",
                    hosts,
                    lambda job, run, w=hosts, f=flavour: run_mpi(
                        f, w, "run", job, "--run-dir", run, *quiet, ranks_per_host=1
                    ),
                )
            )
    head = stack.enter_context(ray_head(max(workers)))
    for w in workers:
        found.append(Row("ray", w, lambda job, run, w=w: head.run("run", job, "-w", w, "--run-dir", run, *quiet)))
    if with_hosts:
        from tests.equivalence.simulated import rows_of_hosts

        found += [Row(*row) for row in rows_of_hosts(stack)]
    return found


def measure(models: list[str], workers: list[int], with_hosts: bool, tell: Callable[[str], None] = print) -> int:
    """Print the table; return how many columns have more than one fingerprint."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        jobs = write_jobs(folder, models)
        tell(f"{'backend':<24} {'W':>2}  " + "  ".join(f"{name:<20}" for name in jobs))
        seen: dict[str, set[str]] = {name: set() for name in jobs}
        for number, row in enumerate(rows(stack, workers, with_hosts)):
            cells = []
            for name, job in jobs.items():
                done = row.run(job, folder / f"{number}-{name.replace(' ', '-')}")
                if done.returncode != 0:
                    raise AssertionError(f"{row.backend}, {row.workers} workers, {name}: {done.stderr[-2000:]}")
                fingerprint = json.loads(done.stdout.strip().splitlines()[-1])["fingerprint"]
                seen[name].add(fingerprint)
                cells.append(fingerprint[:16])
            tell(f"{row.backend:<24} {row.workers:>2}  " + "  ".join(f"{cell:<20}" for cell in cells))
    different = [name for name, found in seen.items() if len(found) > 1]
    tell(f"{len(seen)} columns, {len(different)} with more than one fingerprint")
    return len(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="one model and few numbers of workers")
    parser.add_argument("--hosts", action="store_true", help="also over simulated hosts (needs root)")
    options = parser.parse_args()
    models, workers = (["mlp"], [1, 3]) if options.small else (list(MODELS), [1, 2, 3, 4, 8])
    return 1 if measure(models, workers, options.hosts, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
