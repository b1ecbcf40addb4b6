"""What the dashboards show: each panel with its queries, in the order in which it is read.

Queries are about the runs that are chosen above the dashboard; `of_run` puts name and run on every series, for that
choice and the legends. What a panel answers is not written here: it is the question of its metrics in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Query:
    """An expression of PromQL, and the name that its series get."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: title, queries, Grafana's name of the unit, what kind it is, and its width of 24."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["lines", "log", "stacked", "steps", "stat", "name", "table"] = "lines"
    width: int = 8
    note: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard: the name of its file, its title, and rows of panels under their titles."""

    name: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


RUNS = 'dtrain_job_info{name=~"$name", run=~"$run"}'

WORK = 'dtrain_phase_seconds_total{phase!="wait"}'


def of_run(expr: str, legend: str = "{{run}}") -> Query:
    """A query of the chosen runs."""
    return Query(f"({expr}) * on (job, instance, dtrain_run) group_left (name, run) {RUNS}", legend)


def rate(counter: str) -> str:
    """The growth of a counter per second."""
    return f"rate({counter}[$__rate_interval])"


def per_step(counter: str) -> str:
    """The growth of a counter per step; without a worker label, the mean over the workers."""
    return f"{counter} / on (job, instance, dtrain_run) group_left () (rate(dtrain_steps_total[$__rate_interval]) > 0)"


TRAINING = Dashboard(
    "training",
    "dtrain: training",
    (
        (
            "Runs",
            (
                Panel("State", (of_run("dtrain_job_state == 1", "{{run}} {{state}}"),), kind="name", width=4),
                Panel("Progress", (of_run("dtrain_step / dtrain_target_step"),), "percentunit", "stat", 4),
                Panel(
                    "Time left",
                    (of_run(f"(dtrain_target_step - dtrain_step) / ({rate('dtrain_steps_total')} > 0)"),),
                    "s",
                    "stat",
                    4,
                ),
                Panel("Running for", (of_run("time() - dtrain_start_timestamp_seconds"),), "s", "stat", 4),
                Panel("Epoch", (of_run("dtrain_epoch"),), kind="stat", width=4),
                Panel("Workers", (of_run("dtrain_world_size"),), kind="stat", width=4),
                Panel("Jobs", (Query(RUNS, "{{run}}"),), kind="table", width=12),
                Panel(
                    "Alerts",
                    (Query('ALERTS{alertname=~"Dtrain.*"}', "{{alertname}} {{alertstate}} {{instance}}"),),
                    kind="table",
                    width=12,
                    note="Alerts that wait for their time or fire, of all runs.",
                ),
            ),
        ),
        (
            "Loss",
            (
                Panel("Training loss", (of_run("dtrain_loss"),)),
                Panel("Evaluation loss", (of_run("dtrain_eval_loss"),)),
                Panel("Evaluation accuracy", (of_run("dtrain_eval_accuracy_ratio"),), "percentunit"),
                Panel("Other metrics", (of_run("dtrain_eval_metric", "{{run}} {{metric}}"),)),
                Panel("Learning rate", (of_run("dtrain_learning_rate"),)),
                Panel("Samples per second", (of_run(rate("dtrain_samples_total")),)),
            ),
        ),
        (
            "Gradients",
            (
                Panel(
                    "Gradient norm",
                    (
                        of_run("dtrain_gradient_norm", "{{run}} before clipping"),
                        of_run("dtrain_clipped_gradient_norm", "{{run}} after"),
                    ),
                    kind="log",
                ),
                Panel("Clipping", (of_run("dtrain_clip_scale_ratio"),), "percentunit"),
                Panel("Gradient noise scale", (of_run("dtrain_gradient_noise_scale_samples"),), kind="log"),
                Panel(
                    "Gradient norm per parameter",
                    (of_run("dtrain_parameter_gradient_norm", "{{run}} {{parameter}}"),),
                    kind="log",
                ),
                Panel("Norm per parameter", (of_run("dtrain_parameter_norm", "{{run}} {{parameter}}"),), kind="log"),
                Panel(
                    "Update over parameter",
                    (of_run("dtrain_parameter_update_norm / dtrain_parameter_norm", "{{run}} {{parameter}}"),),
                    kind="log",
                ),
            ),
        ),
    ),
)

WORKERS = Dashboard(
    "workers",
    "dtrain: workers",
    (
        (
            "Steps",
            (
                Panel("Steps", (of_run("dtrain_step"), of_run("dtrain_target_step", "{{run}} target"))),
                Panel("Steps per second", (of_run(rate("dtrain_steps_total")),)),
                Panel(
                    "Seconds per step",
                    (of_run(f"{rate('dtrain_step_seconds_total')} / ({rate('dtrain_steps_total')} > 0)"),),
                    "s",
                ),
                Panel(
                    "Since the last step",
                    (of_run("time() - dtrain_last_step_timestamp_seconds"),),
                    "s",
                    note="It falls to 0 at each step.",
                ),
                Panel(
                    "Steps that were not finite",
                    (
                        of_run("dtrain_nonfinite_steps_total", "{{run}} not finite"),
                        of_run("dtrain_skipped_steps_total", "{{run}} skipped"),
                    ),
                    kind="steps",
                ),
                Panel(
                    "Gradients summed per second",
                    (of_run(rate("dtrain_summed_bytes_total")),),
                    "Bps",
                ),
            ),
        ),
        (
            "Time per worker",
            (
                Panel(
                    "Seconds per step and phase, mean of the workers",
                    (
                        of_run(
                            per_step(f"avg without (worker) ({rate('dtrain_phase_seconds_total')})"),
                            "{{run}} {{phase}}",
                        ),
                    ),
                    "s",
                    "stacked",
                    12,
                ),
                Panel(
                    "Seconds of work per step and worker",
                    (
                        of_run(
                            per_step(f"sum without (phase) ({rate(WORK)})"),
                            "{{run}} worker {{worker}}",
                        ),
                    ),
                    "s",
                    width=12,
                ),
                Panel("Barrier skew", (of_run("dtrain_barrier_skew_seconds"),), "s"),
                Panel("Slowest worker", (of_run("dtrain_slowest_worker"),), kind="steps"),
                Panel(
                    "Work over that of the other workers",
                    (
                        Query(
                            'worker:dtrain_busy_seconds:ratio{name=~"$name", run=~"$run"}',
                            "{{run}} worker {{worker}}",
                        ),
                    ),
                    "percentunit",
                    note="Above 250 % for two minutes is an alert.",
                ),
            ),
        ),
        (
            "Membership and memory",
            (
                Panel(
                    "Workers and generation",
                    (
                        of_run("dtrain_world_size", "{{run}} workers"),
                        of_run("dtrain_generation", "{{run}} generation"),
                    ),
                    kind="steps",
                ),
                Panel("Restarts", (of_run("dtrain_worker_restarts_total"),), kind="steps"),
                Panel(
                    "Resident memory", (of_run("dtrain_resident_memory_bytes", "{{run}} worker {{worker}}"),), "bytes"
                ),
            ),
        ),
        (
            "Checkpoints",
            (
                Panel("Age", (of_run("time() - dtrain_checkpoint_timestamp_seconds"),), "s", width=6),
                Panel("Steps since", (of_run("dtrain_step - dtrain_checkpoint_last_step"),), width=6),
                Panel("Time to write", (of_run("dtrain_checkpoint_write_seconds"),), "s", width=6),
                Panel("Size", (of_run("dtrain_checkpoint_size_bytes"),), "bytes", width=6),
                Panel("Failures", (of_run("dtrain_checkpoint_failures_total"),), kind="steps", width=6),
            ),
        ),
    ),
)

DASHBOARDS = (TRAINING, WORKERS)
