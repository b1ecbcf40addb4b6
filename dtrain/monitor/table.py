"""The table of metrics: every figure that a run exports, once.

The exporter is built from it, and dashboards, alert rules and the documentation are tested against it. Invariant: names
end in their unit, counters in ``_total``, as Prometheus recommends. Counters count from the start of the coordinator's
process; where the job as a whole stands is in the gauges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its full name, kind, unit ("" for a bare number), labels and help."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str


METRICS: tuple[Metric, ...] = (
    Metric("dtrain_loss", "gauge", "", (), "Training loss of the last committed step, the mean over its batch."),
    Metric("dtrain_eval_loss", "gauge", "", (), "Loss over the evaluation set, at the last evaluation."),
    Metric("dtrain_eval_accuracy_ratio", "gauge", "ratio", (), "Accuracy over the evaluation set, 0 to 1."),
    Metric("dtrain_eval_metric", "gauge", "", ("metric",), "Any other mean over the evaluation set, by its name."),
    Metric("dtrain_learning_rate", "gauge", "", (), "Learning rate of the last committed step, schedule applied."),
    Metric(
        "dtrain_gradient_norm", "gauge", "", (), "Global L2 norm of the gradient of the last step, before clipping."
    ),
    Metric(
        "dtrain_parameter_gradient_norm",
        "gauge",
        "",
        ("parameter",),
        "L2 norm of the gradient of one parameter, before clipping, at a recent step.",
    ),
    Metric(
        "dtrain_clip_scale_ratio", "gauge", "ratio", (), "Factor that clipping put on the last gradient; 1 is none."
    ),
    Metric("dtrain_step", "gauge", "", (), "Steps that the job has committed, including those before a resume."),
    Metric("dtrain_target_step", "gauge", "", (), "Steps after which the job is done."),
    Metric("dtrain_epoch", "gauge", "", (), "Pass over the training data that the last step belongs to, from 0."),
    Metric("dtrain_steps_total", "counter", "steps", (), "Steps committed by this process, skipped ones included."),
    Metric("dtrain_skipped_steps_total", "counter", "steps", (), "Steps whose update was left out as not finite."),
    Metric("dtrain_samples_total", "counter", "samples", (), "Training samples in the steps committed."),
    Metric("dtrain_step_seconds_total", "counter", "seconds", (), "Wall time of the steps committed."),
    Metric(
        "dtrain_phase_seconds_total",
        "counter",
        "seconds",
        ("worker", "phase"),
        "Time that a member of this generation has spent per phase of a step: data, compute, sum, update or wait.",
    ),
    Metric("dtrain_worker_restarts_total", "counter", "", (), "Workers that were lost and had to be replaced."),
    Metric("dtrain_world_size", "gauge", "", (), "Workers that take part in the current generation."),
    Metric("dtrain_generation", "gauge", "", (), "Version of the membership; it grows when a worker joins or is lost."),
    Metric("dtrain_checkpoint_last_step", "gauge", "", (), "Steps committed in the newest checkpoint on disk."),
    Metric(
        "dtrain_last_step_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "Unix time of the last committed step; its age tells a run that hangs.",
    ),
    Metric(
        "dtrain_job_info",
        "info",
        "",
        ("name", "run", "spec_digest", "version"),
        "The job: its name, run id, digest of what determines its result, and the version of dtrain.",
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
