"""What is drawn of a log is bounded, and is the log's: every value one of its own, every extreme among them."""

import json
import math

import numpy as np
import pytest

from dtrain.monitor.history import History, kept
from dtrain.monitor.lines import encode
from dtrain.monitor.records import EvalRecord, StepRecord, to_line


def step(number, loss=1.0, **more):
    return StepRecord(number, number // 10, loss, 2.0, 1.0, 0.1, 32, 0.5, **more)


def write(path, records, mode="wb"):
    with open(path, mode) as file:
        file.writelines(to_line(record) for record in records)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_hundred_thousand_steps_are_bounded_and_keep_their_extremes(path):
    losses = np.exp(-np.arange(100_000) / 3e4) + 0.05 * np.random.default_rng(0).standard_normal(100_000)
    losses[54_321], losses[77_777], losses[12_345] = 99.0, -99.0, math.nan
    norms = [{f"layer.{i}": float(1 + i) for i in range(300)} if n % 100 == 0 else None for n in range(100_000)]
    norms[50_000]["layer.7"] = 1e6
    write(path, (step(n, loss, parameter_norms=norms[n]) for n, loss in enumerate(losses.tolist())))
    history = History(path)
    history.update()
    view = history.view()
    assert len(encode(view)) < 1_500_000
    found = view["series"]["loss"]
    assert len(found["step"]) == len(found["value"]) < 1700
    assert all(repr(losses[n].item()) == repr(value) for n, value in zip(found["step"], found["value"], strict=True))
    assert {0, 12_345, 54_321, 77_777, 99_999} <= {*found["step"], 0}
    assert found["step"] == sorted(set(found["step"]))
    table = view["tables"]["parameter_norms"]
    assert len(table["step"]) * len(table["names"]) <= 60_000
    assert max(row[7] for row in table["values"]) == 1e6
    assert {row[8] for row in table["values"]} == {9.0}
    assert history.lines == 100_000
    assert view["position"] == path.stat().st_size


def test_what_is_kept_are_all_the_values_of_a_short_series():
    values = np.array([3.0, math.nan, 1.0, math.inf])
    assert kept(values, 10).tolist() == [0, 1, 2, 3]


def test_each_stretch_keeps_its_smallest_its_largest_and_its_first_that_is_not_finite():
    values = np.zeros(1000)
    values[[10, 20, 30, 990]] = [5.0, -5.0, math.nan, math.inf]
    chosen = set(kept(values, 4).tolist())
    assert {10, 20, 30, 990, 999} <= chosen
    assert len(chosen) <= 7


def test_what_is_new_is_told_from_any_line_on(path):
    write(path, [step(0), step(1), EvalRecord(2, 1, 0.5, {"accuracy": 0.9})])
    history = History(path)
    history.update()
    assert history.view()["evaluations"] == {
        "loss": {"step": [2], "value": [0.5]},
        "accuracy": {"step": [2], "value": [0.9]},
    }
    position = history.position
    write(path, [step(2, 7.0), step(3, 8.0, phases={0: {"data": 0.25}})], "ab")
    history.update()
    news = history.view(history.lines_until(position))
    assert news["series"]["loss"] == {"step": [2, 3], "value": [7.0, 8.0]}
    assert news["evaluations"]["loss"] == {"step": [], "value": []}
    assert news["phases"] == {"0": {"data": 0.25}}
    assert news["rates"] == {"step": [2, 3], "samples": [64.0, 64.0], "steps": [2.0, 2.0]}
    assert history.lines_until(position + 1) is None
    assert history.lines_until(0) == 0


def test_a_torn_line_is_left_for_later(path):
    whole = to_line(step(1))
    path.write_bytes(to_line(step(0)) + whole[:20])
    history = History(path)
    history.update()
    assert history.lines == 1
    path.write_bytes(to_line(step(0)) + whole)
    history.update()
    assert history.lines == 2


@pytest.mark.parametrize("later", [2, 6])
def test_a_log_that_a_resume_has_cut_is_read_anew(path, later):
    write(path, [step(n) for n in range(5)])
    history = History(path)
    history.update()
    write(path, [step(n, 9.0) for n in range(later)])
    history.update()
    found = history.view()["series"]["loss"]
    assert found == {"step": list(range(later)), "value": [9.0] * later}


def test_keys_that_are_added_to_the_records_are_there(path):
    values = json.loads(to_line(step(3)))
    extra = {"noise": {"scale": 5.0}, "update_norms": {"w": 1.0, "b": 1.0}, "weight_norms": {"w": 4.0, "b": 0.0}}
    path.write_text(json.dumps({**values, "barrier_skew": 0.25, **extra}) + "\n")
    history = History(path)
    history.update()
    view = history.view()
    assert view["series"]["barrier_skew"] == {"step": [3], "value": [0.25]}
    assert view["tables"]["noise"] == {"names": ["scale"], "step": [3], "values": [[5.0]]}
    assert view["tables"]["update_to_weight"] == {"names": ["w"], "step": [3], "values": [[0.25]]}
