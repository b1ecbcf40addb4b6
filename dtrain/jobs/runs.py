"""The runs of this machine: where they are kept, how one is named, and how each stands.

A run is named by the path of its directory, by ``name/id``, or by ``id`` alone where only one run has it. Reads only,
and never disturbs a run: its files are the truth, whoever writes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dtrain.errors import InputError
from dtrain.jobs.job import Job
from dtrain.jobs.run_directory import RunDirectory, runs_root
from dtrain.monitor.lines import read_lines

_TAIL_BYTES = 1 << 16


def find_run(job_id: str) -> RunDirectory:
    """Return the run of that name. Raises InputError if there is none, or more than one."""
    root = runs_root()
    path = Path(job_id).expanduser()
    if path.is_dir():
        return RunDirectory.open(job_id)
    if "/" in job_id and (root / job_id / "job.yaml").is_file():
        return RunDirectory.open(root / job_id)
    found = sorted(file.parent for file in root.glob("*/*/job.yaml") if file.parent.name == job_id)
    if len(found) > 1:
        names = ", ".join(run_id(directory) for directory in found)
        raise InputError(f"{job_id}: several runs have this id: {names}; say which")
    if not found:
        raise InputError(f"{job_id}: no such run in {root}, and no such directory; see dtrain list")
    return RunDirectory.open(found[0])


def all_runs() -> list[RunDirectory]:
    """Return the runs below ``runs_root()``, the newest last."""
    runs = [RunDirectory(file.parent.absolute()) for file in runs_root().glob("*/*/job.yaml")]
    return sorted(runs, key=lambda run: (started(run) or 0.0, run.id))


def run_id(path: Path) -> str:
    """Return how a run is named in what is printed: name/id below ``runs_root()``, its path elsewhere."""
    root = Path(os.path.abspath(runs_root()))
    return f"{path.parent.name}/{path.name}" if path.absolute().parent.parent == root else str(path)


def started(run: RunDirectory) -> float | None:
    """Return when the run was made, in seconds since the epoch."""
    try:
        return run.job_file.stat().st_mtime
    except OSError:
        return None


def describe(run: RunDirectory) -> Job:
    """Return how a run stands."""
    process = run.process()
    status, result = run.status(), run.read_result() or {}
    newest = _newest_step(run.metrics_file)
    step, loss = result.get("step"), result.get("train_loss")
    if newest is not None and step is None:
        step, loss = newest["step"] + 1, float(newest["loss"])
    details: dict[str, Any] = {} if process is None else {"pid": process.pid, "host": process.host}
    if status == "failed" and not result:
        details["error"] = "it ended without a result"
    exit_code = None if status in ("pending", "running") else result.get("exit_code", 3)
    return Job(
        id=run_id(run.path),
        status=status,
        run_directory=str(run.path),
        step=step,
        steps=_steps(run.events_file),
        loss=loss,
        started=started(run),
        exit_code=exit_code,
        result=result if status not in ("pending", "running") else {},
        details={"pid": None, "host": None, **details},
    )


def _steps(events: Path) -> int | None:
    """How many steps the run has in all, from its first event."""
    for values, _ in read_lines(events):
        if values.get("event") == "started":
            return int(values["steps"])
    return None


def _newest_step(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of a step in ``metrics.jsonl``, from its end: a log may be long."""
    try:
        size = metrics.stat().st_size
    except OSError:
        return None
    start = max(0, size - _TAIL_BYTES)
    newest = None
    for values, _ in read_lines(metrics, start):  # the first line may be torn; it is then no object and passed over
        if values.get("type") == "step":
            newest = values
    return newest
