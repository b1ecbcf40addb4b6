"""The current figures of a run, for whoever asks: the exporter now, a live page later.

Owns one plain value per metric and labels of the table. Invariant: a reader sees the state after a whole step, never
half of one. Any thread may write or read; nothing here knows Prometheus.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.table import BY_NAME, METRICS, STATES, Metric

Values: TypeAlias = "dict[tuple[str, ...], float]"
"""The values of one metric by the values of its labels, in the table's order."""

MOST_PARAMETERS = 50
"""Parameters with series of their own, the largest ones; the norms of the rest are told together, as OTHER."""

OTHER = "other"


class RunMetrics:
    """The figures of one run, told step by step by the coordinator. ``clock`` gives Unix time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._values: dict[str, Values] = {metric.name: {} for metric in METRICS}
        for metric in METRICS:
            if metric.kind == "counter" and not metric.labels:
                self._values[metric.name][()] = 0.0
        self._small: frozenset[str] = frozenset()  # parameters without series of their own
        self._set_state("pending")

    def describe_job(self, *, name: str, run: str, spec_digest: str, version: str) -> None:
        """Say which job this is; the labels of ``dtrain_job_info``."""
        with self._lock:
            self._values["dtrain_job_info"] = {(name, run, spec_digest, version): 1.0}

    def started(self, target_step: int, first_step: int = 0, parameters: Mapping[str, int] | None = None) -> None:
        """The run begins behind ``first_step`` committed steps and is done at ``target_step``.

        ``parameters`` are the numbers of elements by name: the largest have series of their own.
        """
        sizes = parameters or {}
        largest = sorted(sizes, key=lambda name: -sizes[name])  # of equal ones those that come first
        with self._lock:
            self._small = frozenset(largest[MOST_PARAMETERS:])
            self._set_state("running")
            self._set("dtrain_start_timestamp_seconds", self._clock())
            self._set("dtrain_target_step", target_step)
            self._set("dtrain_step", first_step)

    def steps(self, records: Sequence[StepRecord]) -> None:
        """These steps, one after the other and at least one, were committed."""
        record = records[-1]
        with self._lock:
            self._set("dtrain_loss", record.loss)
            self._set("dtrain_gradient_norm", record.gradient_norm)
            self._set("dtrain_clipped_gradient_norm", record.gradient_norm * record.clip_scale)
            self._set("dtrain_clip_scale_ratio", record.clip_scale)
            self._set("dtrain_learning_rate", record.learning_rate)
            self._set("dtrain_step", record.step + 1)
            self._set("dtrain_epoch", record.epoch)
            self._set("dtrain_last_step_timestamp_seconds", self._clock())
            self._add("dtrain_steps_total", len(records))
            self._add("dtrain_skipped_steps_total", sum(r.is_skipped for r in records))
            self._add("dtrain_nonfinite_steps_total", sum(r.is_skipped for r in records))
            self._add("dtrain_summed_bytes_total", sum(r.summed_bytes for r in records))
            self._add("dtrain_samples_total", sum(r.samples for r in records))
            self._add("dtrain_step_seconds_total", sum(r.seconds for r in records))
            for each in records:
                for worker, phases in (each.phases or {}).items():
                    for phase, seconds in phases.items():
                        self._add("dtrain_phase_seconds_total", seconds, str(worker), phase)
                self._set_norms("dtrain_parameter_gradient_norm", each.parameter_norms)
                self._set_norms("dtrain_parameter_norm", each.weight_norms)
                self._set_norms("dtrain_parameter_update_norm", each.update_norms)
                if each.noise is not None:
                    self._set("dtrain_gradient_noise_scale_samples", each.noise["scale"])
                if each.slowest_worker is not None and each.barrier_skew is not None:
                    self._set("dtrain_slowest_worker", each.slowest_worker)
                    self._set("dtrain_barrier_skew_seconds", each.barrier_skew)
                if each.resident_bytes is not None:
                    self._values["dtrain_resident_memory_bytes"] = {}
                    for process, size in each.resident_bytes.items():
                        self._set("dtrain_resident_memory_bytes", size, process)

    def nonfinite(self) -> None:
        """A step that is not finite ends the run; one that is skipped is in its record."""
        with self._lock:
            self._add("dtrain_nonfinite_steps_total", 1.0)

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

    def checkpoint(self, step: int, seconds: float, size: int) -> None:
        """A checkpoint of ``step`` committed steps is on disk: ``size`` bytes, written in ``seconds``."""
        with self._lock:
            self._set("dtrain_checkpoint_last_step", step)
            self._set("dtrain_checkpoint_timestamp_seconds", self._clock())
            self._set("dtrain_checkpoint_write_seconds", seconds)
            self._set("dtrain_checkpoint_size_bytes", size)

    def checkpoint_failed(self) -> None:
        """A checkpoint could not be written."""
        with self._lock:
            self._add("dtrain_checkpoint_failures_total", 1.0)

    def finished(self, status: str) -> None:
        """The run has ended: succeeded, failed or stopped."""
        with self._lock:
            self._set_state(status)

    def snapshot(self) -> list[tuple[Metric, Values]]:
        """Return every metric of the table, in its order, with a copy of its values (none yet: an empty dict)."""
        with self._lock:
            return [(BY_NAME[name], dict(values)) for name, values in self._values.items()]

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._values[name][labels] = float(value)

    def _set_norms(self, name: str, norms: Mapping[str, float] | None) -> None:
        if norms is None:
            return
        for parameter, norm in norms.items():
            if parameter not in self._small:
                self._set(name, norm, parameter)
        if self._small:
            self._set(name, math.hypot(*(norms[parameter] for parameter in self._small)), OTHER)

    def _set_state(self, state: str) -> None:
        self._values["dtrain_job_state"] = {(each,): float(each == state) for each in STATES}

    def _add(self, name: str, value: float, *labels: str) -> None:
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + value
