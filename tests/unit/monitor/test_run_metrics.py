"""The current figures of a run."""

import dataclasses
import threading

from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.run_metrics import MOST_PARAMETERS, OTHER, RunMetrics
from dtrain.monitor.table import METRICS, STATES

PHASES = {0: {"compute": 0.25, "wait": 0.5}, 1: {"compute": 1.0}}


def record(step=0, **changes):
    values = StepRecord(step, 1, 0.5, 2.0, 0.75, 0.1, 32, 1.5, {"w": 1.0}, PHASES)
    return dataclasses.replace(values, **changes)


def values_of(metrics):
    return {metric.name: values for metric, values in metrics.snapshot()}


def test_a_step_sets_gauges_and_adds_to_counters():
    metrics = RunMetrics(clock=lambda: 1234.5)
    metrics.started(100, first_step=7)
    assert values_of(metrics)["dtrain_step"] == {(): 7.0}
    metrics.steps([record(7)])
    metrics.steps([record(8, is_skipped=True, samples=8, parameter_norms={"w": 3.0, "b": 4.0})])
    values = values_of(metrics)
    expected = {
        "dtrain_loss": 0.5,
        "dtrain_gradient_norm": 2.0,
        "dtrain_clip_scale_ratio": 0.75,
        "dtrain_learning_rate": 0.1,
        "dtrain_step": 9.0,
        "dtrain_target_step": 100.0,
        "dtrain_epoch": 1.0,
        "dtrain_steps_total": 2.0,
        "dtrain_skipped_steps_total": 1.0,
        "dtrain_samples_total": 40.0,
        "dtrain_step_seconds_total": 3.0,
        "dtrain_last_step_timestamp_seconds": 1234.5,
    }
    assert {name: values[name][()] for name in expected} == expected
    assert values["dtrain_parameter_gradient_norm"] == {("w",): 3.0, ("b",): 4.0}
    assert values["dtrain_phase_seconds_total"] == {("0", "compute"): 0.5, ("0", "wait"): 1.0, ("1", "compute"): 2.0}


def test_the_series_of_lost_workers_go():
    metrics = RunMetrics()
    metrics.generation(1, [0, 1], 0)
    metrics.steps([record()])
    metrics.generation(2, [1, 2], 1)
    values = values_of(metrics)
    assert values["dtrain_phase_seconds_total"] == {("1", "compute"): 1.0}
    assert values["dtrain_world_size"] == {(): 2.0}
    assert values["dtrain_generation"] == {(): 2.0}
    assert values["dtrain_worker_restarts_total"] == {(): 1.0}


def test_evaluations_and_checkpoints():
    metrics = RunMetrics(clock=lambda: 1234.5)
    metrics.evaluation(EvalRecord(4, 1, 0.25, {"accuracy": 0.9, "bits": 3.0}))
    metrics.checkpoint(4, seconds=0.5, size=1000)
    metrics.checkpoint_failed()
    values = values_of(metrics)
    assert values["dtrain_eval_loss"] == {(): 0.25}
    assert values["dtrain_eval_accuracy_ratio"] == {(): 0.9}
    assert values["dtrain_eval_metric"] == {("bits",): 3.0}
    assert values["dtrain_checkpoint_last_step"] == {(): 4.0}
    assert values["dtrain_checkpoint_timestamp_seconds"] == {(): 1234.5}
    assert values["dtrain_checkpoint_write_seconds"] == {(): 0.5}
    assert values["dtrain_checkpoint_size_bytes"] == {(): 1000.0}
    assert values["dtrain_checkpoint_failures_total"] == {(): 1.0}


def test_the_state_is_one_of_five():
    metrics = RunMetrics()
    states = []
    for change in (lambda: None, lambda: metrics.started(10), lambda: metrics.finished("failed")):
        change()
        values = values_of(metrics)["dtrain_job_state"]
        assert [state for (state,) in values] == list(STATES)
        assert sorted(values.values()) == [0, 0, 0, 0, 1]
        states += [state for (state,), value in values.items() if value]
    assert states == ["pending", "running", "failed"]


def test_figures_of_a_sampled_step():
    metrics = RunMetrics()
    metrics.steps([record(weight_norms={"w": 8.0}, update_norms={"w": 0.25}, noise={"scale": 64.0})])
    metrics.steps([record(barrier_skew=0.5, slowest_worker=1, resident_bytes={"coordinator": 7, "1": 9})])
    metrics.steps([record(summed_bytes=40, resident_bytes={"coordinator": 8})])
    metrics.steps([record(summed_bytes=2, is_skipped=True)])
    metrics.nonfinite()
    values = values_of(metrics)
    assert values["dtrain_clipped_gradient_norm"] == {(): 2.0 * 0.75}
    assert values["dtrain_parameter_norm"] == {("w",): 8.0}
    assert values["dtrain_parameter_update_norm"] == {("w",): 0.25}
    assert values["dtrain_gradient_noise_scale_samples"] == {(): 64.0}
    assert values["dtrain_barrier_skew_seconds"] == {(): 0.5}
    assert values["dtrain_slowest_worker"] == {(): 1.0}
    assert values["dtrain_resident_memory_bytes"] == {("coordinator",): 8.0}
    assert values["dtrain_summed_bytes_total"] == {(): 42.0}
    assert values["dtrain_skipped_steps_total"] == {(): 1.0}
    assert values["dtrain_nonfinite_steps_total"] == {(): 2.0}


def test_only_the_largest_parameters_have_series_of_their_own():
    metrics = RunMetrics()
    sizes = {f"p{i}": 1000 - i for i in range(MOST_PARAMETERS)} | {"a": 4, "b": 3, "big": 2000}
    metrics.started(10, parameters=sizes)
    norms = {name: 1.0 for name in sizes} | {"a": 12.0, "b": 5.0, "p49": 84.0}
    metrics.steps([record(parameter_norms=norms, weight_norms=norms, update_norms=norms)])
    values = values_of(metrics)
    for name in ("dtrain_parameter_gradient_norm", "dtrain_parameter_norm", "dtrain_parameter_update_norm"):
        assert len(values[name]) == MOST_PARAMETERS + 1
        assert values[name]["big",] == 1.0
        assert values[name][OTHER,] == 85.0  # the root of 12² + 5² + 84²


def test_before_the_first_step_counters_are_zero_and_gauges_absent():
    values = values_of(RunMetrics())
    assert list(values) == [metric.name for metric in METRICS]
    for metric in METRICS:
        if metric.name == "dtrain_job_state":
            continue
        assert values[metric.name] == ({(): 0.0} if metric.kind == "counter" and not metric.labels else {})


def test_a_reader_never_sees_half_a_step():
    metrics = RunMetrics()
    halves = []
    done = threading.Event()

    def read():
        while not done.is_set():
            values = values_of(metrics)
            if values["dtrain_samples_total"][()] != 32 * values["dtrain_steps_total"][()]:
                halves.append(values)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(2000):
        metrics.steps([record(step)])
    done.set()
    reader.join()
    assert halves == []


def test_a_snapshot_is_a_copy():
    metrics = RunMetrics()
    metrics.snapshot()[0][1][()] = 9.0
    assert metrics.snapshot()[0][1] == {}
