"""What the job commands show of a job, wherever it runs, and what a place where jobs run can do.

Invariant: a job is told with the same words and keys on this machine and on a Ray cluster. Nothing here starts or
reads anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dtrain.monitor.figures import describe_duration, describe_number

if TYPE_CHECKING:
    from dtrain.jobs.spec import JobSpec

ENDED = ("succeeded", "failed", "stopped")
_HEADINGS = ("id", "status", "step", "loss", "age")


@dataclass(frozen=True)
class Job:
    """How a job stands. ``status`` is one of Ray's words in lower case: pending, running, succeeded, failed, stopped.

    ``step`` of ``steps`` are committed, ``loss`` is that of the newest step known, ``started`` is in seconds since the
    epoch; each is None where it is not known. ``exit_code`` is what the job's own command returned, None while it runs.
    ``result`` is the content of result.json, ``details`` what only this place knows. For a job that was just started,
    ``log_start`` is where its log begins, in bytes.
    """

    id: str
    status: str
    run_directory: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    started: float | None = None
    exit_code: int | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    log_start: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether it is over: succeeded, failed or stopped."""
        return self.status in ENDED

    def to_json(self) -> dict[str, Any]:
        """Return everything known, as plain values; what result.json holds is among it."""
        return {
            **self.result,
            "id": self.id,
            "status": self.status,
            "step": self.step,
            "steps": self.steps,
            "loss": self.loss,
            "started": self.started,
            "exit_code": self.exit_code,
            "run_directory": self.run_directory,
            **self.details,
        }

    def sentence(self) -> str:
        """Return the status in one line, with the reason if it has failed."""
        error = self.to_json().get("error")
        reason = f": {error}" if error else ""
        if self.status == "pending" or self.step is None:
            return f"{self.status}{reason}"
        of = "" if self.steps is None else f" of {self.steps}"
        loss = "" if self.loss is None else f", loss {describe_number(self.loss)}"
        return f"{self.status} at step {self.step}{of}{loss}{reason}"


class Jobs(Protocol):
    """A place where jobs run. Every method may raise DtrainError."""

    def submit(self, spec: JobSpec) -> Job:
        """Check a job, start it, and return it as soon as it is known to have started."""

    def all(self) -> Sequence[Job]:
        """All jobs, the newest last."""

    def get(self, job_id: str) -> Job:
        """How one job stands."""

    def log(self, job_id: str, follow: bool, start: int = 0) -> Iterator[str]:
        """Yield what the job has said from byte ``start`` on, in pieces; with ``follow`` until it ends."""

    def stop(self, job_id: str) -> None:
        """Ask the job to end its step, write a checkpoint and leave; returns at once."""

    def resume(self, job_id: str, workers: int | str | None) -> Job:
        """Go on with a job that has ended before its last step; returns as ``submit`` does."""

    def fetch(self, job_id: str, destination: Path | None, checkpoints: int) -> Path:
        """Bring the run directory here, with so many of the newest checkpoints; return where it is."""


def show_jobs(jobs: Sequence[Job]) -> None:
    """Print a table of jobs: with colour on a terminal, plain lines elsewhere."""
    rows = [_row(job) for job in jobs]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        colours = {"running": "cyan", "succeeded": "green", "failed": "red", "stopped": "yellow"}
        table = Table(*_HEADINGS, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row, style=colours.get(row[1]))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for cells in (_HEADINGS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _row(job: Job) -> tuple[str, ...]:
    step = "-" if job.step is None else str(job.step) if job.steps is None else f"{job.step}/{job.steps}"
    loss = "-" if job.loss is None else describe_number(job.loss)
    age = "-" if job.started is None else describe_duration(max(0.0, time.time() - job.started))
    return job.id, job.status, step, loss, age
