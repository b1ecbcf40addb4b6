"""The Neural Turing Machine and its baseline: the paper's equations sample by sample, gradients, counts, metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import dtrain
from dtrain.errors import InputError
from dtrain.graph.tree import flatten, map_leaves
from dtrain.jobs.build import build
from dtrain.jobs.spec import parse_spec
from dtrain.nn import SequenceTask, make_model
from tests.support import train

INPUTS, OUTPUTS = 4, 3
SMALL = {"units": 5, "places": 6, "width": 3, "read_heads": 2, "write_heads": 2}


def made(controller: str, **options: Any) -> tuple[Any, Any]:
    """A small machine, and its parameters with every number drawn, so that no mistake hides behind a zero."""
    model = make_model("ntm", controller=controller, **{**SMALL, **options})
    rng = np.random.default_rng(0)
    return model, map_leaves(lambda p: rng.standard_normal(p.shape), model.init(rng, INPUTS, OUTPUTS))


def softmax(v: Any) -> Any:
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


def sigmoid(v: Any) -> Any:
    return 1 / (1 + np.exp(-v))


def by_hand(model: Any, p: Any, xs: Any) -> Any:
    """The scores of one sequence, head by head and place by place."""
    r, m = model.read_heads, model.width
    memory = np.full((model.places, m), 1e-6)
    reads = [*p["start"]["read"]]
    before = [softmax(w) for w in p["start"]["places"]]
    if model.controller == "lstm":
        h, c = p["start"]["h"], p["start"]["c"]
    scores = []
    for x in xs:
        seen = np.concatenate([x, *reads])
        if model.controller == "lstm":
            z = seen @ p["controller"]["w"] + h @ p["controller"]["u"] + p["controller"]["b"]
            i, f, g, o = np.split(z, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = np.tanh(seen @ p["controller"]["w"] + p["controller"]["b"])
        z = h @ p["heads"]["w"] + p["heads"]["b"]
        weights = []
        for head in range(r + model.write_heads):
            k, (beta, gate, gamma), moves = np.split(z[head * (m + 6) :][: m + 6], [m, m + 3])
            k, beta, gate, gamma = np.tanh(k), np.log1p(np.exp(beta)), sigmoid(gate), 1 + np.log1p(np.exp(gamma))
            similar = [k @ row / np.linalg.norm(k) / np.linalg.norm(row) for row in memory]
            w = gate * softmax(beta * np.array(similar)) + (1 - gate) * before[head]
            s = softmax(moves)
            n = len(w)
            w = np.array([sum(s[j + 1] * w[(i - j) % n] for j in (-1, 0, 1)) for i in range(n)])
            weights.append(w**gamma / (w**gamma).sum())
        before = weights
        reads = [w @ memory for w in weights[:r]]
        rest = z[(r + model.write_heads) * (m + 6) :].reshape(model.write_heads, 2, m)
        after = memory.copy()
        for w, (erase, _) in zip(weights[r:], rest, strict=True):
            after *= 1 - np.outer(w, sigmoid(erase))
        for w, (_, add) in zip(weights[r:], rest, strict=True):
            after += np.outer(w, np.tanh(add))
        memory = after
        scores.append(np.concatenate([h, *reads]) @ p["output"]["w"] + p["output"]["b"])
    return np.array(scores)


@pytest.mark.parametrize("controller", ["feedforward", "lstm"])
def test_the_scores_are_those_of_the_papers_equations(controller: str) -> None:
    model, params = made(controller)
    xs = np.random.default_rng(1).standard_normal((2, 5, INPUTS))
    expected = [by_hand(model, params, x) for x in xs]
    np.testing.assert_allclose(model.predict(params, xs), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("controller", ["feedforward", "lstm"])
def test_every_parameter_has_its_gradient(controller: str) -> None:
    model, params = made(controller)
    xs = np.random.default_rng(1).standard_normal((2, 4, INPUTS))
    dtrain.check_grads(lambda p: np.sum(np.square(model.predict(p, xs))), (params,))


def test_the_machine_starts_at_its_first_place_with_a_constant_memory() -> None:
    model = make_model("ntm")
    params = model.init(np.random.default_rng(0), 9, 8)
    assert 0.99 < softmax(params["start"]["places"][0])[0] < 1
    assert sum(leaf.size for leaf in flatten(params)[0]) == 62736


def test_the_baseline_has_the_papers_number_of_parameters() -> None:
    params = make_model("deep-lstm").init(np.random.default_rng(0), 10, 9)
    assert sum(leaf.size for leaf in flatten(params)[0]) == 1_352_969


def test_every_layer_of_the_baseline_sees_the_input_and_gives_scores() -> None:
    model = make_model("deep-lstm", units=4, layers=3)
    rng = np.random.default_rng(0)
    params = map_leaves(lambda p: rng.standard_normal(p.shape), model.init(rng, INPUTS, OUTPUTS))
    x = rng.standard_normal((2, 3, INPUTS))
    dtrain.check_grads(lambda p: np.sum(np.square(model.predict(p, x))), (params,))
    gradient = dtrain.grad(lambda p: np.sum(model.predict(p, x)))(params)
    assert all(np.abs(layer["w"][:INPUTS]).min() > 0 for layer in gradient["layers"])
    assert gradient["head"]["w"].shape == (12, OUTPUTS)
    assert np.abs(gradient["head"]["w"]).min() > 0


def test_loss_and_metrics_are_of_the_bits_that_are_asked() -> None:
    class Half:
        l2 = 0.0
        weights = staticmethod(lambda params: [params])
        predict = staticmethod(lambda params, x: x)

    task = SequenceTask(Half(), 2, 2)  # type: ignore[arg-type]
    scores = np.array([[[3.0, -1.0], [9.0, 9.0]], [[0.5, 2.0], [-4.0, 1.0]]])
    batch = {
        "x": scores,
        "y": np.array([[[1, 1], [0, 0]], [[1, 1], [1, 0]]], np.uint8),
        "asked": np.array([[1, 0], [1, 1]], np.uint8),
        "optimum": np.array([0.0, math.log(2.0)]),
    }
    nats = [np.log1p(np.exp(-3)) + np.log1p(np.exp(1))]
    nats.append(np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-2)) + np.log1p(np.exp(4)) + np.log1p(np.exp(1)))
    np.testing.assert_allclose(task.loss(np.zeros(1), batch), nats)
    metrics = task.metrics(np.zeros(1), batch)
    assert metrics["wrong_bits"].tolist() == [1, 2]
    assert metrics["wrong_ratio"].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(metrics["log_loss_bits"], np.array(nats) / math.log(2))
    np.testing.assert_allclose(metrics["bits_above_optimum"], np.array(nats) / math.log(2) - [0, 1])


SPEC = {
    "model": {"name": "ntm", "controller": "feedforward", "units": 32, "places": 8, "width": 8},
    "data": {"name": "copy", "bits": 3, "longest": 3, "sequences": 4000},
    "optimizer": {"name": "adam", "lr": 1e-2, "clip_norm": 50},
    "batch": 8,
    "shards": 2,
    "epochs": 1,
}


def test_a_small_machine_learns_to_copy() -> None:
    result = train(parse_spec(SPEC), 0)
    assert result.eval["wrong_bits"] < 0.05


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"name": "digits"}}, r"model\.name: ntm expects x \(n, time, inputs\)"),
        ({"loss": "hinge"}, r"loss: ntm is trained with binary_cross_entropy; remove the key loss"),
        ({"model": {"name": "ntm", "controller": "gru"}}, r"model\.controller: got 'gru'"),
    ],
)
def test_a_mistake_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(parse_spec({**SPEC, **changed}))
