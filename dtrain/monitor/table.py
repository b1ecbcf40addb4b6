"""The table of metrics: every figure that a run exports, once.

The exporter and the table in docs/metrics.md (``python -m dtrain.monitor.table``) are made of it, dashboards and alert
rules are tested against it. Invariant: names end in their unit, counters in ``_total``, as Prometheus recommends.
Counters count from the start of the coordinator's process; where the job as a whole stands is in the gauges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info"]

STATES = ("pending", "running", "succeeded", "failed", "stopped")
"""The states of a job: values of the label of ``dtrain_job_state``."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its full name, kind, unit ("" for a bare number), labels, help, and the question that it answers."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    question: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "dtrain_loss",
        "gauge",
        "",
        (),
        "Training loss of the last committed step, the mean over its batch.",
        "Does it learn?",
    ),
    Metric(
        "dtrain_eval_loss",
        "gauge",
        "",
        (),
        "Loss over the evaluation set, at the last evaluation.",
        "Does it generalise?",
    ),
    Metric(
        "dtrain_eval_accuracy_ratio",
        "gauge",
        "ratio",
        (),
        "Accuracy over the evaluation set, 0 to 1.",
        "How often is it right on samples that it has not seen?",
    ),
    Metric(
        "dtrain_eval_metric",
        "gauge",
        "",
        ("metric",),
        "Any other mean over the evaluation set, by its name.",
        "What do the model's other metrics say?",
    ),
    Metric(
        "dtrain_learning_rate",
        "gauge",
        "",
        (),
        "Learning rate of the last committed step, schedule applied.",
        "What does the schedule give now?",
    ),
    Metric(
        "dtrain_gradient_norm",
        "gauge",
        "",
        (),
        "Global L2 norm of the gradient of the last step, before clipping; nan at a skipped step.",
        "Do gradients explode or vanish?",
    ),
    Metric(
        "dtrain_clipped_gradient_norm",
        "gauge",
        "",
        (),
        "Global L2 norm of the gradient of the last step after clip_norm; clip_value, which acts on "
        "elements, is not in it.",
        "How large is the gradient that the optimizer gets?",
    ),
    Metric(
        "dtrain_clip_scale_ratio",
        "gauge",
        "ratio",
        (),
        "Factor that clip_norm put on the last gradient; 1 is none.",
        "How hard does clipping act?",
    ),
    Metric(
        "dtrain_parameter_gradient_norm",
        "gauge",
        "",
        ("parameter",),
        "L2 norm of the gradient of one parameter, before clipping, at a recent step.",
        "In which layer do gradients explode or vanish?",
    ),
    Metric(
        "dtrain_parameter_norm",
        "gauge",
        "",
        ("parameter",),
        "L2 norm of one parameter after the last sampled step.",
        "Do weights grow without bound?",
    ),
    Metric(
        "dtrain_parameter_update_norm",
        "gauge",
        "",
        ("parameter",),
        "L2 norm of what the last sampled step added to one parameter.",
        "Is the learning rate right? (this over dtrain_parameter_norm, about 1e-3 is usual)",
    ),
    Metric(
        "dtrain_gradient_noise_scale_samples",
        "gauge",
        "samples",
        (),
        "Simple noise scale of McCandlish et al. 2018, averaged over sampled steps; infinite if the gradient "
        "drowns in the noise.",
        "Is the batch too small or too large? (compare it with the batch)",
    ),
    Metric(
        "dtrain_step",
        "gauge",
        "",
        (),
        "Steps that the job has committed, including those before a resume.",
        "How far is the job?",
    ),
    Metric("dtrain_target_step", "gauge", "", (), "Steps after which the job is done.", "Where does it end?"),
    Metric(
        "dtrain_epoch",
        "gauge",
        "",
        (),
        "Pass over the training data that the last step belongs to, from 0.",
        "Which pass over the data is it?",
    ),
    Metric(
        "dtrain_steps_total",
        "counter",
        "steps",
        (),
        "Steps committed by this process, skipped ones included.",
        "How many steps a second? (rate)",
    ),
    Metric(
        "dtrain_skipped_steps_total",
        "counter",
        "steps",
        (),
        "Steps whose update was left out as not finite.",
        "How many updates were left out?",
    ),
    Metric(
        "dtrain_nonfinite_steps_total",
        "counter",
        "steps",
        (),
        "Steps with nan or inf in loss or gradient, skipped or the run's last.",
        "Does it meet nan or inf?",
    ),
    Metric(
        "dtrain_samples_total",
        "counter",
        "samples",
        (),
        "Training samples in the steps committed.",
        "How many samples a second? (rate)",
    ),
    Metric(
        "dtrain_step_seconds_total",
        "counter",
        "seconds",
        (),
        "Wall time of the steps committed.",
        "How long is a step? (its rate over that of the steps)",
    ),
    Metric(
        "dtrain_phase_seconds_total",
        "counter",
        "seconds",
        ("worker", "phase"),
        "Time that a member of this generation has spent per phase of a step: data, forward, backward, sum, "
        "update or wait.",
        "Where does the time go?",
    ),
    Metric(
        "dtrain_barrier_skew_seconds",
        "gauge",
        "seconds",
        (),
        "How much later a step the slowest worker has its gradients than the fastest, in the mean of the newest steps.",
        "How long do workers wait for the slowest? (over the length of a step)",
    ),
    Metric(
        "dtrain_slowest_worker",
        "gauge",
        "",
        (),
        "Number of the worker that was the slowest in the newest steps.",
        "Which worker is the slow one?",
    ),
    Metric(
        "dtrain_summed_bytes_total",
        "counter",
        "bytes",
        (),
        "Bytes of the shards' gradients that were added up, without those of tables.",
        "How much does the all-reduce sum a second? (rate)",
    ),
    Metric(
        "dtrain_world_size",
        "gauge",
        "",
        (),
        "Workers that take part in the current generation.",
        "How many workers take part?",
    ),
    Metric(
        "dtrain_generation",
        "gauge",
        "",
        (),
        "Version of the membership; it grows when a worker joins or is lost.",
        "How often did the membership change?",
    ),
    Metric(
        "dtrain_worker_restarts_total",
        "counter",
        "",
        (),
        "Workers that were lost and had to be replaced.",
        "Do workers die?",
    ),
    Metric(
        "dtrain_resident_memory_bytes",
        "gauge",
        "bytes",
        ("worker",),
        "Resident memory of a worker's process, shared pages included; worker \"coordinator\" is the coordinator's.",
        "Does memory leak, and in which process?",
    ),
    Metric(
        "dtrain_checkpoint_last_step",
        "gauge",
        "",
        (),
        "Steps committed in the newest checkpoint on disk.",
        "How many steps would a crash cost? (dtrain_step minus this)",
    ),
    Metric(
        "dtrain_checkpoint_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "Unix time at which the newest checkpoint was on disk.",
        "How old is it? (time() minus this)",
    ),
    Metric(
        "dtrain_checkpoint_write_seconds",
        "gauge",
        "seconds",
        (),
        "Time that the newest checkpoint took to write, beside the training.",
        "Is the disk slow?",
    ),
    Metric(
        "dtrain_checkpoint_size_bytes",
        "gauge",
        "bytes",
        (),
        "Size of the newest checkpoint.",
        "How much disk does it take?",
    ),
    Metric(
        "dtrain_checkpoint_failures_total",
        "counter",
        "",
        (),
        "Checkpoints that could not be written.",
        "Is the disk full?",
    ),
    Metric(
        "dtrain_start_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "Unix time at which this process began to run the job.",
        "Since when does it run? (a new value is a resume)",
    ),
    Metric(
        "dtrain_last_step_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "Unix time of the last committed step.",
        "Does it hang? (time() minus this)",
    ),
    Metric(
        "dtrain_job_state",
        "gauge",
        "",
        ("state",),
        "1 for the state that the job is in, 0 for the others: pending, running, succeeded, failed, stopped.",
        "How does it stand?",
    ),
    Metric(
        "dtrain_job_info",
        "info",
        "",
        ("name", "run", "spec_digest", "version"),
        "The job: its name, run id, digest of what determines its result, and the version of dtrain.",
        "Which job is it?",
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def to_markdown() -> str:
    """The table of the documentation."""
    lines = ["| Metric | Kind | Unit | Labels | What it is | The question it answers |", "|---|---|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{metric.name}`", metric.kind, metric.unit, labels, metric.help, metric.question)
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    print(to_markdown())
