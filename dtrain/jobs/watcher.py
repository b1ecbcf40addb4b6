"""The observer of a run: what the coordinator tells goes to its files, to Prometheus and to the terminal."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dtrain.errors import DtrainError
from dtrain.jobs.introspecting import IntrospectionLog
from dtrain.jobs.run_directory import RunDirectory
from dtrain.monitor.progress import Progress
from dtrain.monitor.records import EvalRecord, MetricsLog, StepRecord
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.monitor.tensorboard import TensorBoardLog
from dtrain.monitor.view import is_noted
from dtrain.train.observer import Observer
from dtrain.train.program import Program


class Watcher(Observer):
    """Passes everything on. A disk that is full costs the record, never the run: it is said once."""

    def __init__(
        self,
        directory: RunDirectory | None,
        is_quiet: bool = False,
        introspected: Program | None = None,
        has_tensorboard: bool = False,
    ) -> None:
        """``introspected`` is the program whose states are looked into, if any are.

        With ``has_tensorboard`` event files are written too; the package must be there.
        """
        self._has_tensorboard = has_tensorboard
        self._tensorboard: TensorBoardLog | None = None
        self._introspected = introspected
        self._introspection: IntrospectionLog | None = None
        self.metrics = RunMetrics()
        self._directory, self._is_quiet = directory, is_quiet
        self._log: MetricsLog | None = None
        self._progress: Progress | None = None
        self._lock = threading.Lock()  # checkpoints are announced by the thread that writes them
        self._is_disk_broken = False

    def started(self, parameters: Mapping[str, int], steps: int, first_step: int, steps_per_epoch: int) -> None:
        self.metrics.started(steps, first_step, parameters)
        self._event("started", steps=steps, step=first_step, steps_per_epoch=steps_per_epoch)
        if self._directory is not None:
            self._log = MetricsLog(self._directory.metrics_file, committed=first_step)
            if self._introspected is not None:
                self._introspection = IntrospectionLog(
                    self._directory.introspection_file, self._introspected, first_step
                )
            if self._has_tensorboard:
                self._tensorboard = TensorBoardLog(self._directory.tensorboard, first_step)
        if not self._is_quiet:
            self._progress = Progress(steps, steps_per_epoch, first_step=first_step)

    def steps(self, records: Sequence[StepRecord]) -> None:
        self.metrics.steps(records)
        self._write(records)

    def evaluation(self, record: EvalRecord) -> None:
        self.metrics.evaluation(record)
        self._write([record])

    def generation(self, generation: int, members: tuple[int, ...], restarts: int) -> None:
        self.metrics.generation(generation, members, restarts)
        self._event("generation", generation=generation, members=list(members), restarts=restarts)

    def checkpoint(self, step: int, seconds: float, size: int) -> None:
        self.metrics.checkpoint(step, seconds, size)
        self._event("checkpoint", step=step, seconds=round(seconds, 6), bytes=size)

    def state(self, step: int, tensors: Any) -> None:
        if self._introspection is not None:
            self._introspection.start(step, tensors)

    def event(self, kind: str, text: str, **details: Any) -> None:
        self._event(kind, text=text, **details)
        if kind == "nonfinite" and not details["is_skipped"]:
            self.metrics.nonfinite()
        elif kind == "checkpoint_failed":
            self.metrics.checkpoint_failed()
        if self._progress is not None and is_noted({"event": kind, **details}):
            self._progress.note(text)

    def flush(self) -> None:
        if self._log is not None:
            self._guarded(self._log.flush)
        if self._tensorboard is not None:
            self._guarded(self._tensorboard.flush)

    def close(self) -> None:
        """Write what is held back and give the terminal free."""
        if self._progress is not None:
            self._progress.close()
        if self._log is not None:
            self._guarded(self._log.close)
        if self._tensorboard is not None:
            self._guarded(self._tensorboard.close)
        if self._introspection is not None:
            self._introspection.close()
            if self._introspection.failure:
                self._event("introspection_failed", text=self._introspection.failure)

    def _write(self, records: Sequence[StepRecord | EvalRecord]) -> None:
        for record in records:
            if self._log is not None:
                self._guarded(partial(self._log.append, record))
            if self._tensorboard is not None:
                self._guarded(partial(self._tensorboard.append, record))
            if self._progress is not None:
                self._progress.update(record)

    def _event(self, kind: str, **details: Any) -> None:
        if self._progress is not None:
            self._progress.event({"event": kind, **details})
        if self._directory is not None:
            with self._lock:
                self._guarded(partial(self._directory.append_event, kind, **details))

    def _guarded(self, write: Any) -> None:
        try:
            write()
            self._is_disk_broken = False
        except (OSError, DtrainError) as error:
            if not self._is_disk_broken and self._progress is not None:
                self._progress.note(f"{error}; training goes on")
            self._is_disk_broken = True
