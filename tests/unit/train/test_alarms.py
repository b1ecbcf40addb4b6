"""Steps that stand out: what a spike is, how often it is told, and what is said of it and of a skipped step."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dtrain import nn
from dtrain.monitor.records import StepRecord
from dtrain.train.alarms import LEAST, WINDOW, Alarms, Recent
from dtrain.train.blame import explain_nonfinite, explain_skipped
from dtrain.train.observer import Observer
from dtrain.train.program import Program
from dtrain.train.state import RunState
from tests.unit.train import cluster


def loss(params: Any, batch: Any) -> Any:
    return np.log(1 + np.sum(np.exp(batch["x"] @ params["w"] + params["b"]), axis=1))


def program() -> Program:
    return cluster.program(
        init=lambda rng: {"w": np.full((8, 3), 0.1, np.float32), "b": np.zeros(3, np.float32)},
        loss=loss,
        train={"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)},
    )


class Told(Observer):
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, kind: str, text: str, **details: Any) -> None:
        self.events.append((kind, text, details))


def record(step: int, loss: float = 1.0, norm: float = 2.0, is_skipped: bool = False) -> StepRecord:
    return StepRecord(step, 0, loss, norm, 1.0, 0.1, 8, 0.1, is_skipped=is_skipped)


def alarms(factor: float | None = 10.0) -> tuple[Alarms, Told, RunState]:
    told, state = Told(), RunState(program(), 1, None)
    return Alarms(state, told, factor), told, state


def steps(told: Told, kind: str = "spike") -> list[int]:
    return [details["step"] for k, _, details in told.events if k == kind]


def test_the_median_is_that_of_the_last_values() -> None:
    values = np.random.default_rng(0).standard_normal(300).round(1).tolist()
    recent = Recent(10.0)
    for count, value in enumerate(values, 1):
        recent.add(value)
        window = values[max(0, count - WINDOW) : count]
        assert recent.median == (statistics.median_high(window) if count >= LEAST else None)


def test_a_spike_is_more_than_so_many_times_the_median() -> None:
    for loss, is_spike in ((10.0, False), (10.001, True)):
        watch, told, _ = alarms()
        watch.look([record(step) for step in range(LEAST)])
        watch.look([record(LEAST, loss=loss)])
        assert steps(told) == [LEAST] * is_spike


def test_before_there_are_enough_steps_nothing_is_a_spike() -> None:
    watch, told, _ = alarms()
    watch.look([record(step) for step in range(LEAST - 1)])
    watch.look([record(LEAST - 1, norm=1e9)])
    assert told.events == []


def test_without_a_factor_nothing_is_a_spike() -> None:
    watch, told, _ = alarms(None)
    watch.look([record(step, norm=1.0 if step < 40 else 1e9) for step in range(60)])
    assert told.events == []


def test_what_is_large_only_beside_tiny_values_is_no_spike() -> None:
    """The data are learnt by heart: any sample that is not makes a step many times as large as the others."""
    watch, told, _ = alarms()
    watch.look([record(step, loss=1.0 if step < LEAST else 1e-4, norm=0.0) for step in range(200)])
    watch.look([record(200, loss=0.9)])
    assert told.events == []
    watch.look([record(201, loss=1.1)])
    assert steps(told) == [201]


def test_spikes_are_told_once_in_a_window() -> None:
    watch, told, _ = alarms()
    watch.look([record(step, norm=2.0 if step % 10 else 50.0) for step in range(1, 200)])
    assert steps(told) == [30, 80, 130, 180]


def test_a_spike_names_what_stands_out_most() -> None:
    watch, told, state = alarms()
    watch.look([record(step) for step in range(30)])
    state.memory.losses[30, :] = 1.0
    state.memory.losses[30, 2] = 9.0
    name = state.layout.parameter_names[-1]
    segments = np.asarray(state.layout.segment_parameters) == state.layout.names.index(name)
    state.memory.squares[30, segments] = 4.0
    watch.look([record(30, loss=12.0, norm=40.0)])
    ((kind, text, details),) = told.events
    assert kind == "spike"
    assert (details["quantity"], details["value"], details["median"]) == ("gradient_norm", 40.0, 2.0)
    assert details["shard"] == 2
    assert details["samples"] == state.sampler.indices(30, 2).tolist()
    assert details["parameter"] == name
    assert text == (
        "step 30: the gradient norm is 40, 20.0 times the median of the last steps (2); shard 2 has the largest loss, "
        f"parameter {name} the largest gradient"
    )


def test_a_negative_loss_is_no_spike() -> None:
    watch, told, _ = alarms()
    watch.look([record(step, loss=-1.0 if step < 40 else 50.0) for step in range(41)])
    assert told.events == []


def test_a_step_that_is_skipped_is_told_once_in_a_window_and_counts_for_no_median() -> None:
    watch, told, state = alarms()
    state.memory.losses[:] = np.nan
    watch.look([record(step) for step in range(30)])
    watch.look([record(step, np.nan, np.nan, is_skipped=True) for step in range(30, 90)])
    assert steps(told, "nonfinite") == [30, 80]
    watch.look([record(90, norm=30.0)])
    assert steps(told) == [90]


# --- what a skipped step says ----------------------------------------------------------------------------------------


def bad_state() -> tuple[RunState, int, int]:
    """A run whose parameters make the loss infinite; its step 3; and the first shard there that was not finite."""
    state = RunState(program(), 1, None)
    state.memory.parameters[:] = np.finfo(np.float32).max
    state.memory.losses[3, :] = 1.0
    state.memory.losses[3, 1] = np.inf
    return state, 3, 1


def test_a_skipped_step_names_shard_samples_operation_and_line_and_touches_nothing() -> None:
    state, step, shard = bad_state()
    before = state.memory.gradients.tobytes()
    error = explain_skipped(state.program, state.memory, step)
    place = error.place
    assert (place["step"], place["shard"], place["tensor"]) == (step, shard, "loss")
    assert set(place["samples"]) <= set(state.sampler.indices(step, shard).tolist())
    assert place["samples"]
    assert place["op"]
    assert ".py:" in place["line"]
    assert place["inputs"]
    assert f"step {step}, shard {shard}: the loss is inf; first in {place['op']}" in str(error)
    assert str(error).endswith("; the step is skipped")
    assert state.memory.gradients.tobytes() == before


def test_a_step_that_was_finite_since_names_no_operation() -> None:
    state, step, shard = bad_state()
    state.memory.parameters[:] = 0.0
    place = explain_skipped(state.program, state.memory, step).place
    assert (place["shard"], place["op"], place["line"], place["inputs"]) == (shard, None, None, [])
    state.memory.losses[3, :] = 1.0
    error = explain_skipped(state.program, state.memory, step)
    assert (error.place["shard"], error.place["samples"], error.place["tensor"]) == (None, [], "gradient")
    assert str(error) == "step 3: the losses are finite, a gradient is not; the step is skipped"


def test_where_shards_meet_in_the_middle_of_a_step_none_is_to_blame_afterwards() -> None:
    """What the others have handed in is gone, and one that is not finite has spoilt all."""

    def centred(params: Any, batch: Any) -> Any:
        total = nn.sum_over_shards(np.sum(batch["x"], axis=0))
        return loss(params, {"x": batch["x"] - total})

    state, step, _ = bad_state()
    error = explain_skipped(replace(state.program, loss=centred), state.memory, step)
    assert (error.place["shard"], error.place["samples"], error.place["op"]) == (None, [], None)
    assert str(error) == f"step {step}: the loss is inf; the step is skipped"


@pytest.mark.parametrize("bad", [2, None])
def test_only_the_samples_whose_rows_are_bad_are_named_or_all(bad: int | None) -> None:
    """Data that are finite, but too large in one sample."""
    p = program()
    state = RunState(p, 1, None)
    indices = state.sampler.indices(0, 0)
    if bad is not None:
        p.train["x"][indices[bad]] = np.finfo(np.float32).max
    state.memory.parameters[:] = 0.0 if bad is None else 1e3
    for shard in range(p.shards):
        state.memory.losses[0, shard] = np.nan
    error = explain_nonfinite(p, state.memory, 0)
    if bad is not None:
        assert error.place["samples"] == [indices[bad]]
        assert f"; sample {indices[bad]} of the training data" in str(error)
    else:
        assert error.place["samples"] == indices.tolist()
        assert error.place["op"] is None
