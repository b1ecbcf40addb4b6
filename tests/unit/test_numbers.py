"""The lecture's circuits, losses and trajectories, as a user writes them: NumPy and dtrain's public functions alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dtrain
from dtrain import nn

both = pytest.mark.parametrize("compiled", [True, False], ids=["planned", "eager"])
NEURON = {"w0": 2.0, "x0": -1.0, "w1": -3.0, "x1": -2.0, "w2": -3.0}
OUT, SLOPE = 0.7310585786300049, 0.19661193324148188
SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
TEN = np.array(
    [
        [-3.45, -8.87, 0.09, 2.9, 4.48, 8.02, 3.78, 1.06, -0.36, -0.72],
        [-0.51, 6.04, 5.31, -4.22, -4.19, 3.58, 4.49, -4.37, -2.09, -2.93],
        [3.42, 4.64, 2.65, 5.1, 2.64, 5.55, -4.34, -1.5, -4.79, 6.14],
    ]
)


def run(f: Callable[..., Any], *args: float, compiled: bool) -> list[float]:
    """Return the value and all gradients."""
    value, found = dtrain.value_and_grad(f, tuple(range(len(args))), compile=compiled)(*map(float, args))
    return [float(value), *map(float, found)]


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def neuron(w0: Any, x0: Any, w1: Any, x1: Any, w2: Any) -> Any:
    return sigmoid(w0 * x0 + w1 * x1 + w2)


# -- circuits ----------------------------------------------------------------------------------------------------------


@both
def test_small_circuits(compiled: bool) -> None:
    assert run(lambda x, y, z: (x + y) * z, -2, 5, -4, compiled=compiled) == [-12, -4, -4, 3]
    assert run(lambda x, y: x * y, 4, -3, compiled=compiled) == [-12, -3, 4]
    assert run(np.maximum, 4, 2, compiled=compiled) == [4, 1, 0]
    found = run(lambda x, y, z, w: 2 * (x * y + np.maximum(z, w)), 3, -4, 2, -1, compiled=compiled)
    assert found == [-20, -8, 6, 2, 0]


@both
def test_the_sigmoid_neuron_and_its_fused_form(compiled: bool) -> None:
    expected = [OUT, -SLOPE, 2 * SLOPE, -2 * SLOPE, -3 * SLOPE, SLOPE]
    plain = run(neuron, *NEURON.values(), compiled=compiled)
    fused = run(lambda w0, x0, w1, x1, w2: nn.sigmoid(w0 * x0 + w1 * x1 + w2), *NEURON.values(), compiled=compiled)
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-15)
    assert "sigmoid" in str(dtrain.trace(lambda x: nn.sigmoid(x), 1.0)).splitlines()[-1]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_fused_sigmoid_is_the_plain_one_everywhere(dtype: Any) -> None:
    x = np.linspace(-80, 80, 1601).astype(dtype)
    for f in (sigmoid, nn.sigmoid):
        assert dtrain.elementwise_grad(f)(x).dtype == dtype
    limit = 1e-15 if dtype == np.float64 else 2e-7
    (plain, back), (fused, back_fused) = (dtrain.vjp(f, x) for f in (sigmoid, nn.sigmoid))
    np.testing.assert_allclose(fused, plain, rtol=0, atol=limit)
    np.testing.assert_allclose(back_fused(np.ones_like(x))[0], back(np.ones_like(x))[0], rtol=0, atol=limit)


@both
def test_the_inner_edges_of_the_neuron(compiled: bool) -> None:
    """Each edge's value, and the gradient that the rest of the circuit gives it."""
    tails: list[tuple[Callable[..., Any], float, float]] = [
        (lambda e: 1.0 / e, 1.3678794411714423, -0.534446645388523),
        (lambda e: 1.0 / (1.0 + e), 0.36787944117144233, -0.534446645388523),
        (lambda e: 1.0 / (1.0 + np.exp(e)), -1.0, -SLOPE),
        (lambda e: 1.0 / (1.0 + np.exp(-e)), 1.0, SLOPE),
        (lambda e: sigmoid(e - 3.0), 4.0, SLOPE),
        (lambda e: sigmoid(e + 6.0 - 3.0), -2.0, SLOPE),
        (lambda e: sigmoid(-2.0 + e - 3.0), 6.0, SLOPE),
    ]
    for tail, value, gradient in tails:
        np.testing.assert_allclose(run(tail, value, compiled=compiled), [OUT, gradient], rtol=0, atol=1e-15)


def test_every_edge_of_the_drawn_neuron() -> None:
    texts = re.findall(r">([^<>]+)</text>", dtrain.draw(neuron, *NEURON.values()))
    pairs = [
        *(("2", "-0.1966"), ("-1", "0.3932"), ("-3", "-0.3932"), ("-2", "-0.5898"), ("-2", "0.1966"), ("6", "0.1966")),
        *(("4", "0.1966"), ("-3", "0.1966"), ("1", "0.1966"), ("-1", "-0.1966"), ("0.3679", "-0.5344")),
        *(("1.368", "-0.5344"), ("0.7311", "1")),
    ]
    shown = texts[texts.index("out") + 1 :]
    assert sorted(zip(shown[::2], shown[1::2], strict=True)) == sorted(pairs)


@both
def test_longer_circuits(compiled: bool) -> None:
    fork = run(lambda x, y: (x + sigmoid(y)) / (sigmoid(x) + (x + y) ** 2), 3, -4, compiled=compiled)
    np.testing.assert_allclose(fork, [1.5456448841066441, 2.0595697955721652, 1.5922327514838093], rtol=1e-14)

    def micrograd(a: Any, b: Any) -> Any:
        c, d = a + b, a * b + b**3
        c = c + c + 1
        c = c + 1 + c + -a
        d = d + d * 2 + np.maximum(b + a, 0)
        d = d + 3 * d + np.maximum(b - a, 0)
        f = (c - d) ** 2
        return f / 2.0 + 10.0 / f

    found = run(micrograd, -4, 2, compiled=compiled)
    np.testing.assert_allclose(found, [24.70408163265306, 138.83381924198252, 645.5772594752186], rtol=1e-14)
    found = run(
        lambda x1, x2, w1, w2, b: np.tanh(x1 * w1 + x2 * w2 + b), 2, 0, -3, 1, 6.8813735870195432, compiled=compiled
    )
    np.testing.assert_allclose(found, [0.7071067811865476, -1.5, 0.5, 1, 0, 0.5], rtol=0, atol=2e-15)


# -- losses ------------------------------------------------------------------------------------------------------------


def hinge(s: Any, y: Any, power: int = 1) -> Any:
    margins = np.maximum(0, s - s[np.arange(len(y)), y][:, None] + 1.0) ** power
    return np.sum(margins, axis=1, where=np.arange(s.shape[1]) != y[:, None])


def cross_entropy(s: Any, y: Any) -> Any:
    s = s - np.max(s, axis=1, keepdims=True)
    return np.log(np.sum(np.exp(s), axis=1)) - s[np.arange(len(y)), y]


HINGES = [lambda s, y: hinge(s, y), nn.multiclass_hinge]
SQUARES = [lambda s, y: hinge(s, y, 2), nn.squared_hinge]
ENTROPIES = [cross_entropy, nn.softmax_cross_entropy]


def losses(f: Callable[..., Any], scores: np.ndarray, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each sample, and the gradient of their sum."""
    value, pullback = dtrain.vjp(lambda s: f(s, np.asarray(labels)), scores)
    return value, pullback(np.ones(len(scores)))[0]


@pytest.mark.parametrize("f", HINGES)
def test_hinge(f: Callable[..., Any]) -> None:
    value, gradient = losses(f, SCORES, [0, 1, 2])
    np.testing.assert_allclose([*value, value.mean()], [2.9, 0, 12.9, 15.8 / 3], rtol=1e-14)
    np.testing.assert_array_equal(gradient, [[-1, 1, 0], [0, 0, 0], [1, 1, -2]])
    value, _ = losses(f, TEN, [3, 1, 6])
    np.testing.assert_allclose([*value, value.mean()], [10.58, 0.27, 71.91, 27.58666667], rtol=2e-10)
    assert losses(f, np.zeros((1, 10)), [4])[0] == [9.0]


@pytest.mark.parametrize("f", SQUARES)
def test_squared_hinge(f: Callable[..., Any]) -> None:
    np.testing.assert_allclose(losses(f, SCORES, [0, 1, 2])[0], [8.41, 0, 83.25], rtol=1e-14)


@pytest.mark.parametrize("f", ENTROPIES)
def test_cross_entropy(f: Callable[..., Any]) -> None:
    value, gradient = losses(f, SCORES, [0, 1, 2])
    expected = [2.0403551528, 0.0791317783, 6.1564772017, 2.7586547109]
    np.testing.assert_allclose([*value, value.mean()], expected, rtol=0, atol=5.1e-11)
    np.testing.assert_allclose(gradient[0] + [1, 0, 0], [0.12998254, 0.86904954, 0.00096793], rtol=0, atol=5.1e-9)
    value, _ = losses(f, TEN, [3, 1, 6])
    expected = [5.1698427276, 0.5774809508, 11.2944847672, 5.6806028152]
    np.testing.assert_allclose([*value, value.mean()], expected, rtol=0, atol=5.1e-11)
    assert losses(f, np.zeros((1, 10)), [4])[0] == pytest.approx(2.302585, abs=5e-7)
    _, gradient = losses(f, np.array([[123.0, 456, 789]]), [0])
    np.testing.assert_allclose(gradient, [[-1, 0, 1]], rtol=0, atol=1e-15)  # the softmax is (0, 0, 1), without nan


def test_svm_beside_softmax() -> None:
    w = np.array([[0.01, -0.05, 0.1, 0.05], [0.7, 0.2, 0.05, 0.16], [0, -0.45, -0.2, 0.03]])
    x, b = np.array([-15.0, 22, -44, 56]), np.array([0, 0.2, -0.3])
    scores, _ = dtrain.vjp(lambda w, b: (w @ x + b)[None], w, b)
    np.testing.assert_allclose(scores, [[-2.85, 0.86, 0.28]], rtol=1e-14)
    assert losses(hinge, scores, [2])[0] == pytest.approx(1.58, rel=1e-14)
    value, gradient = losses(cross_entropy, scores, [2])
    assert value == pytest.approx(1.0401905694, abs=5.1e-11)
    np.testing.assert_allclose(gradient[0] + [0, 0, 1], [0.0154493, 0.6311634, 0.3533873], rtol=0, atol=5.1e-8)


# -- trajectories ------------------------------------------------------------------------------------------------------


def spiral(discard: int) -> tuple[np.ndarray, np.ndarray, np.random.RandomState]:
    """CS231n's three arms of 100 points, and the generator after the normals that the notebook has drawn by then."""
    random = np.random.RandomState(0)
    arms = []
    for j in range(3):
        r, t = np.linspace(0, 1, 100), np.linspace(4 * j, 4 * j + 4, 100) + random.randn(100) * 0.2
        arms.append(np.stack([r * np.sin(t), r * np.cos(t)], axis=1))
    random.randn(discard)
    return np.concatenate(arms), np.repeat(np.arange(3), 100), random


def descend(loss: Callable[..., Any], params: list[np.ndarray], steps: int, every: int) -> list[float]:
    """Full-batch gradient descent at learning rate 1; ``params`` are updated in place."""
    evaluate, seen = dtrain.value_and_grad(loss), []
    for step in range(steps):
        value, gradients = evaluate(params)
        if step % every == 0:
            seen.append(float(value))
        for p, g in zip(params, gradients, strict=True):
            p -= g
    return seen


def test_the_softmax_trajectory_of_the_spiral() -> None:
    x, y, random = spiral(discard=18)
    params = [0.01 * random.randn(2, 3), np.zeros(3)]
    found = descend(
        lambda p: np.mean(cross_entropy(x @ p[0] + p[1], y)) + 0.5 * 1e-3 * np.sum(p[0] ** 2), params, 200, 10
    )
    expected = """
        1.096956 .917265 .851503 .822336 .807586 .799448 .794681 .791764 .789920 .788726
        .787938 .787409 .787049 .786803 .786633 .786514 .786431 .786373 .786331 .786302"""
    np.testing.assert_allclose(found, np.array(expected.split(), float), rtol=0, atol=5.1e-7)
    assert np.sum(np.argmax(x @ params[0] + params[1], axis=1) == y) == 148  # 49 %


def test_the_trajectory_of_the_relu_net_begins_as_printed() -> None:
    """The first 2001 steps of 10,000, to the printed digits; tests/unit/nn/test_spiral.py goes to the end."""
    x, y, random = spiral(discard=24)
    params = [0.01 * random.randn(2, 100), np.zeros(100), 0.01 * random.randn(100, 3), np.zeros(3)]

    def loss(p: list[Any]) -> Any:
        scores = np.maximum(0, x @ p[0] + p[1]) @ p[2] + p[3]
        return np.mean(cross_entropy(scores, y)) + 0.5 * 1e-3 * (np.sum(p[0] ** 2) + np.sum(p[2] ** 2))

    found = descend(loss, params, 2001, 1000)
    np.testing.assert_allclose(found, [1.098744, 0.294946, 0.259301], rtol=0, atol=5.1e-7)
