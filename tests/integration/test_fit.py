"""`dtrain.fit` in a script without a main guard, as in a notebook, and in this process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import dtrain
from dtrain import graph, nn
from dtrain.errors import InputError, NonFiniteError
from tests.support import nothing_left_behind

SCRIPT = """
import numpy as np
import dtrain

rng = np.random.default_rng(0)
x = rng.standard_normal((500, 5))
y = x @ np.arange(5.0) + 3
large = rng.standard_normal((400, 400)) @ rng.standard_normal((400, 400))  # BLAS has its threads by now
bias_scale = 2.0

def predict(params, x):
    return x @ params["w"] + bias_scale * params["b"]

def loss(params, batch):
    return (predict(params, batch["x"]) - batch["y"]) ** 2

def metrics(params, batch):
    return {"error": np.abs(predict(params, batch["x"]) - batch["y"])}

for workers in (0, 1, 3):
    result = dtrain.fit(
        loss, {"w": np.zeros(5), "b": np.zeros(())}, {"x": x, "y": y}, optimizer={"name": "adam", "lr": 0.1},
        epochs=20, batch=64, workers=workers, eval_data={"x": x[:50], "y": y[:50]}, metrics=metrics, progress=False,
    )
    found = [*np.round(result.params["w"], 2), result.eval["error"] < 0.05]
    print(result.fingerprint, result.status, result.steps, *found)
"""


@pytest.mark.parametrize("is_notebook", [False, True])
def test_functions_of_a_script_or_a_notebook_reach_the_workers(tmp_path, is_notebook):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if is_notebook:  # no file that a worker could import
        done = subprocess.run(
            [sys.executable, "-"],
            input=SCRIPT,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
    else:
        (tmp_path / "script.py").write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert lines[0].split()[1:] == ["succeeded", "160", "0.0", "1.0", "2.0", "3.0", "4.0", "True"]


def mean_square(params, batch):
    return np.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def squares(params, batch):
    return (batch["x"] @ params["w"] - batch["y"]) ** 2


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((333, 4))
    return {"x": x, "y": x @ np.array([1.0, -2.0, 3.0, 0.5])}


def test_a_scalar_and_a_loss_per_sample_are_the_same_for_ragged_batches(data):
    """Batches of 100 in 8 shards: 13, 13, 13, 13, 12, … and a last batch of 33: 5, 4, 4, …"""
    results = [
        dtrain.fit(
            f,
            {"w": np.zeros(4)},
            data,
            optimizer="sgd",
            lr=0.05,
            batch=100,
            epochs=5,
            workers=0,
            dtype="float64",
            progress=False,
        )
        for f in (mean_square, squares)
    ]
    np.testing.assert_allclose(results[0].params["w"], results[1].params["w"], rtol=1e-13)
    w = np.zeros(4)
    from dtrain.data.sampler import permutation

    for epoch in range(5):
        order = permutation(0, epoch, 333)
        for lo in range(0, 333, 100):
            part = order[lo : lo + 100]
            x, y = data["x"][part], data["y"][part]
            w -= 0.05 * 2 * x.T @ (x @ w - y) / len(part)
    np.testing.assert_allclose(results[0].params["w"], w, rtol=1e-12)


def test_params_keep_their_structure_and_the_callers_arrays_are_not_touched(data):
    given = {"layers": [{"w": np.zeros(4)}], "w": np.zeros(4, np.float32)}
    result = dtrain.fit(squares, given, data, steps=2, workers=0, progress=False)
    assert given["w"].tolist() == [0, 0, 0, 0]
    assert result.params["w"].tolist() != [0, 0, 0, 0]
    assert result.params["layers"][0]["w"].tolist() == [0, 0, 0, 0]  # the loss does not use it
    assert result.params["w"].dtype == np.float32
    assert result.steps == 2


def test_an_init_function_is_a_function_of_the_seed(data):
    def init(rng):
        return {"w": rng.standard_normal(4)}

    first, second, other = (
        dtrain.fit(squares, init, data, steps=1, workers=0, progress=False, seed=seed).fingerprint for seed in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 1, "steps": 1}, "fit: epochs and steps are both given"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": -1}}, "fit: optimizer.clip_norm: expected"),
        ({"optimizer": {"name": "sgd", "clip_nom": 1}}, "clip_nom"),
        ({"batch": 0}, "fit: batch: expected at least 1, got 0"),
        ({"shards": 1.5}, "fit: shards: expected an integer"),
        ({"workers": -1}, "fit: workers: expected auto or an integer of at least 0"),
        ({"workers": "two"}, "fit: workers: expected auto or an integer of at least 0"),
        ({"lr": "abc"}, "fit: optimizer.lr: expected"),
        ({"dtype": "int32"}, "fit: dtype: expected"),
        ({"on_nonfinite": "foo"}, "fit: on_nonfinite: expected"),
        ({"timeout_seconds": -1}, "fit: timeout_seconds: expected"),
        ({"seed": -1}, "fit: seed: expected"),
    ],
)
def test_arguments_that_do_not_fit(data, arguments, message):
    with pytest.raises(InputError, match=message):
        dtrain.fit(squares, {"w": np.zeros(4)}, data, **{"workers": 0, "progress": False, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_loss_are_raised_with_their_line(data, workers):
    def wrong(params, batch):
        return batch["x"] @ params["w"].reshape(2, 2)

    with nothing_left_behind(), pytest.raises(InputError, match=r"matmul: expected .*test_fit.py:\d+"):
        dtrain.fit(wrong, {"w": np.zeros(4)}, data, workers=workers, progress=False)

    def no_dependence(params, batch):
        return batch["y"] * 2

    with pytest.raises(InputError, match="does not depend on params"):
        dtrain.fit(no_dependence, {"w": np.zeros(4)}, data, workers=workers, progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_mistakes_that_numpy_or_python_finds_are_told_with_their_line_too(data, workers):
    def missing_key(params, batch):
        return batch["z"] @ params["w"]

    with pytest.raises(InputError, match=r"loss: KeyError: 'z'; made at test_fit.py:\d+"):
        dtrain.fit(missing_key, {"w": np.zeros(4)}, data, workers=workers, progress=False)

    def random(params, batch):
        return squares(params, batch) * np.random.rand()

    with pytest.raises(InputError, match=r"draws from np\.random"):
        dtrain.fit(random, {"w": np.zeros(4)}, data, workers=workers, progress=False)


def test_seeds_beyond_2_to_the_63_are_all_different(data):
    def init(rng):
        return {"w": rng.standard_normal(4)}

    seeds = (2**63 + 1, 2**63 + 3, 2**64 - 1)
    found = {dtrain.fit(squares, init, data, steps=1, workers=0, progress=False, seed=s).params["w"][0] for s in seeds}
    assert len(found) == 3


def test_a_loss_that_is_not_finite_is_raised(data):
    def diverges(params, batch):
        return np.log(np.sum(params["w"]) - 1.0) + squares(params, batch)

    with pytest.raises(NonFiniteError, match="step 0, shard 0: the loss is nan; first in log"):
        dtrain.fit(diverges, {"w": np.zeros(4)}, data, workers=2, progress=False)


@pytest.mark.parametrize("is_function", [False, True])
def test_marks_of_running_values_reach_the_workers(is_function):
    def init(rng):
        return {"w": np.ones((4, 2)), "mean": nn.running(np.zeros(4), momentum=0.5)}

    def loss(params, batch):
        nn.report(params["mean"], batch["x"].mean(axis=0))
        centred = batch["x"] - (batch["x"].mean(axis=0) if graph.is_training() else params["mean"])
        return np.sum((centred @ params["w"]) ** 2, axis=1)

    data = {"x": np.random.default_rng(0).standard_normal((50, 4)) + 2}
    start = init if is_function else init(None)
    alone, many = (
        dtrain.fit(loss, start, data, batch=16, shards=3, epochs=3, workers=count, eval_data=data, progress=False)
        for count in (0, 2)
    )
    assert (many.fingerprint, many.eval) == (alone.fingerprint, alone.eval)
    assert many.params["mean"].momentum == 0.5
    assert np.abs(many.params["mean"] - 2).max() < 1
