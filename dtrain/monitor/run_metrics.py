"""The current figures of a run, for whoever asks: the exporter now, a live page later.

Owns one plain value per metric and labels of the table. Invariant: a reader sees the state after a whole step, never
half of one. Any thread may write or read; nothing here knows Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.table import BY_NAME, METRICS, Metric

Values: TypeAlias = "dict[tuple[str, ...], float]"
"""The values of one metric by the values of its labels, in the table's order."""


class RunMetrics:
    """The figures of one run, told step by step by the coordinator. ``clock`` gives Unix time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._values: dict[str, Values] = {metric.name: {} for metric in METRICS}
        for metric in METRICS:
            if metric.kind == "counter" and not metric.labels:
                self._values[metric.name][()] = 0.0

    def describe_job(self, *, name: str, run: str, spec_digest: str, version: str) -> None:
        """Say which job this is; the labels of ``dtrain_job_info``."""
        with self._lock:
            self._values["dtrain_job_info"] = {(name, run, spec_digest, version): 1.0}

    def started(self, target_step: int, first_step: int = 0) -> None:
        """The run begins behind ``first_step`` committed steps and is done at ``target_step``."""
        with self._lock:
            self._set("dtrain_target_step", target_step)
            self._set("dtrain_step", first_step)

    def steps(self, records: Sequence[StepRecord]) -> None:
        """These steps, one after the other and at least one, were committed."""
        record = records[-1]
        with self._lock:
            self._set("dtrain_loss", record.loss)
            self._set("dtrain_gradient_norm", record.gradient_norm)
            self._set("dtrain_clip_scale_ratio", record.clip_scale)
            self._set("dtrain_learning_rate", record.learning_rate)
            self._set("dtrain_step", record.step + 1)
            self._set("dtrain_epoch", record.epoch)
            self._set("dtrain_last_step_timestamp_seconds", self._clock())
            self._add("dtrain_steps_total", len(records))
            self._add("dtrain_skipped_steps_total", sum(r.is_skipped for r in records))
            self._add("dtrain_samples_total", sum(r.samples for r in records))
            self._add("dtrain_step_seconds_total", sum(r.seconds for r in records))
            for each in records:
                for worker, phases in (each.phases or {}).items():
                    for phase, seconds in phases.items():
                        self._add("dtrain_phase_seconds_total", seconds, str(worker), phase)
                for parameter, norm in (each.parameter_norms or {}).items():
                    self._set("dtrain_parameter_gradient_norm", norm, parameter)

    def evaluation(self, record: EvalRecord) -> None:
        """An evaluation is complete. ``accuracy`` has a metric of its own, every other figure is one by its name."""
        with self._lock:
            self._set("dtrain_eval_loss", record.loss)
            for name, value in record.metrics.items():
                if name == "accuracy":
                    self._set("dtrain_eval_accuracy_ratio", value)
                else:
                    self._set("dtrain_eval_metric", value, name)

    def generation(self, generation: int, members: Collection[int], restarts: int) -> None:
        """A new generation of these workers begins, after ``restarts`` losses in all.

        Series of workers that are gone are dropped, so that their number stays that of the members.
        """
        with self._lock:
            self._set("dtrain_generation", generation)
            self._set("dtrain_world_size", len(members))
            self._set("dtrain_worker_restarts_total", restarts)
            present = {str(worker) for worker in members}
            phases = self._values["dtrain_phase_seconds_total"]
            self._values["dtrain_phase_seconds_total"] = {k: v for k, v in phases.items() if k[0] in present}

    def checkpoint(self, step: int) -> None:
        """A checkpoint of ``step`` committed steps is on disk."""
        with self._lock:
            self._set("dtrain_checkpoint_last_step", step)

    def snapshot(self) -> list[tuple[Metric, Values]]:
        """Return every metric of the table, in its order, with a copy of its values (none yet: an empty dict)."""
        with self._lock:
            return [(BY_NAME[name], dict(values)) for name, values in self._values.items()]

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._values[name][labels] = float(value)

    def _add(self, name: str, value: float, *labels: str) -> None:
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + value
