"""CS231n's spiral: two public trajectories of full-batch gradient descent, to the digits printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dtrain.graph import value_and_grad
from dtrain.graph.tree import flatten
from dtrain.nn import Supervised, accuracy, make_model, supervise
from dtrain.optim import make_rule

CLASSES, EACH = 3, 100
Params = dict[str, Any]


def spiral(discard: int) -> tuple[dict[str, np.ndarray], Callable[..., np.ndarray]]:
    """The data, and the generator of normals after as many discarded as the notebook has drawn by then."""
    random = np.random.RandomState(0)
    x, y = [], []
    for j in range(CLASSES):
        r, t = np.linspace(0, 1, EACH), np.linspace(4 * j, 4 * j + 4, EACH) + random.randn(EACH) * 0.2
        x.append(np.c_[r * np.sin(t), r * np.cos(t)])
        y.append(np.full(EACH, j))
    random.randn(discard)
    return {"x": np.concatenate(x), "y": np.concatenate(y)}, random.randn


def descend(functions: Supervised, params: Params, batch: dict[str, np.ndarray], steps: int, every: int) -> list[float]:
    """Update ``params`` in place at learning rate 1; return the loss at every ``every``-th step."""
    evaluate = value_and_grad(lambda params, batch: np.mean(functions.loss(params, batch)))
    rule, losses = make_rule("sgd"), []
    leaves = flatten(params)[0]
    scratch = [(np.empty(leaf.size), np.empty(leaf.size)) for leaf in leaves]
    for step in range(steps):
        loss, gradients = evaluate(params, batch)
        if step % every == 0:
            losses.append(float(loss))
        for leaf, gradient, work in zip(leaves, flatten(gradients)[0], scratch, strict=True):
            rule.update(leaf.reshape(-1), np.ravel(gradient).copy(), (), rule.coefficients(step, 1.0), work)
    return losses


def test_softmax() -> None:
    batch, randn = spiral(discard=18)
    params = {"w": 0.01 * randn(2, 3), "b": np.zeros(3)}
    functions = supervise(make_model("softmax", l2=1e-3), None, 2, CLASSES)
    losses = descend(functions, params, batch, steps=200, every=10)
    expected = """
        1.096956 .917265 .851503 .822336 .807586 .799448 .794681 .791764 .789920 .788726
        .787938 .787409 .787049 .786803 .786633 .786514 .786431 .786373 .786331 .786302"""
    np.testing.assert_allclose(losses, np.array(expected.split(), float), rtol=0, atol=5.1e-7)
    assert functions.metrics(params, batch)["accuracy"].sum() == 148  # 49 %


def test_relu_net() -> None:
    batch, randn = spiral(discard=24)
    first = {"w": 0.01 * randn(2, 100), "b": np.zeros(100)}
    params = {"layers": [first, {"w": 0.01 * randn(100, 3), "b": np.zeros(3)}]}
    model = make_model("mlp", hidden=[100], l2=1e-3)
    losses = descend(supervise(model, None, 2, CLASSES), params, batch, steps=10_000, every=1000)
    expected = [1.098744, 0.294946, 0.259301, 0.248310, 0.246170, 0.245649, 0.245491, 0.245400, 0.245335, 0.245292]
    np.testing.assert_allclose(losses[:7], expected[:7], rtol=0, atol=5.1e-7)
    # From step 7000 on rounding decides which relus are off: the notebook's own code, run in float64 on one machine,
    # gives .24540215 or .24540066, then .24534045 or .24533575, with OpenBLAS's Haswell or Sandybridge kernels. A
    # processor with AVX-512 was seen to end at .24529770 here, 5.7e-6 off.
    np.testing.assert_allclose(losses[7:], expected[7:], rtol=0, atol=1e-5)
    assert round(float(accuracy(model.predict(params, batch["x"]), batch["y"]).mean()), 2) == 0.98
