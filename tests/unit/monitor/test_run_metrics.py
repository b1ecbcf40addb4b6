"""The current figures of a run."""

import dataclasses
import threading

from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.monitor.table import METRICS

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
    metrics = RunMetrics()
    metrics.evaluation(EvalRecord(4, 1, 0.25, {"accuracy": 0.9, "bits": 3.0}))
    metrics.checkpoint(4)
    values = values_of(metrics)
    assert values["dtrain_eval_loss"] == {(): 0.25}
    assert values["dtrain_eval_accuracy_ratio"] == {(): 0.9}
    assert values["dtrain_eval_metric"] == {("bits",): 3.0}
    assert values["dtrain_checkpoint_last_step"] == {(): 4.0}


def test_before_the_first_step_counters_are_zero_and_gauges_absent():
    values = values_of(RunMetrics())
    assert list(values) == [metric.name for metric in METRICS]
    for metric in METRICS:
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
