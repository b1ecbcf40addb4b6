"""Layers on plain and traced arrays: values, gradients, conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import TraceError
from dtrain.graph import grad, step_context, value_and_grad
from dtrain.nn import dropout, linear, make_model, relu, sigmoid, supervise, tanh

POINTS = np.array([-800.0, -90, -3, -0.5, -1e-3, 0, 1e-3, 0.5, 3, 90, 800])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("layer", "reference"), [(relu, torch.relu), (tanh, torch.tanh), (sigmoid, torch.sigmoid)], ids=lambda f: f.__name__
)
def test_activation(layer: Callable[[Any], Any], reference: Callable[..., torch.Tensor], dtype: type) -> None:
    x = POINTS.astype(dtype)
    traced = torch.tensor(x, requires_grad=True)
    expected = reference(traced)
    expected.sum().backward()
    tolerance = 1e-12 if dtype is np.float64 else 1e-6
    with np.errstate(over="raise", invalid="raise"):
        plain, gradient = layer(x), grad(lambda x: np.sum(layer(x)))(x)
    assert plain.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(plain, expected.detach(), rtol=tolerance, atol=1e-30)
    np.testing.assert_allclose(gradient, traced.grad, rtol=tolerance, atol=tolerance)


def test_relu_is_flat_at_zero() -> None:
    np.testing.assert_array_equal(grad(lambda x: np.sum(relu(x)))(np.array([-1.0, 0.0, 2.0])), [0, 0, 1])


def test_linear() -> None:
    random = np.random.default_rng(0)
    x, w, b = random.standard_normal((5, 3)), random.standard_normal((3, 2)), random.standard_normal(2)
    np.testing.assert_array_equal(linear(x, w, b), x @ w + b)
    seed = random.standard_normal((5, 2))
    gradients = grad(lambda x, w, b: np.sum(seed * linear(x, w, b)), argnums=(0, 1, 2))(x, w, b)
    for gradient, expected in zip(gradients, (seed @ w.T, x.T @ seed, seed.sum(0)), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def dropped(rate: float = 0.25, step: int = 0, shard: int = 0, training: bool = True) -> np.ndarray:
    with step_context(seed=1, step=step, shard=shard, training=training):
        result: np.ndarray = dropout(np.ones((400, 100), np.float32), rate)
    return result


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    result = dropped()
    assert result.dtype == np.float32
    assert set(np.unique(result)) == {np.float32(0), np.float32(1 / 0.75)}
    # 40,000 draws: the standard error of the share is 0.0022.
    assert (result == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_dropout_depends_on_seed_step_and_shard_alone() -> None:
    np.testing.assert_array_equal(dropped(step=3, shard=2), dropped(step=3, shard=2))
    assert not np.array_equal(dropped(step=3, shard=2), dropped(step=4, shard=2))
    assert not np.array_equal(dropped(step=3, shard=2), dropped(step=3, shard=1))


def test_dropout_does_nothing_in_evaluation() -> None:
    np.testing.assert_array_equal(dropped(training=False), np.ones((400, 100)))


def test_dropout_asks_for_the_steps_context_only_if_it_drops() -> None:
    x = np.ones((2, 3))
    assert dropout(x, 0.0) is x
    with pytest.raises(TraceError, match="dropout"):
        dropout(x, 0.5)


def test_a_compiled_model_drops_what_the_plain_one_drops() -> None:
    """One compiled function serves every step: its mask is the plain function's, in the loss and in the gradient."""
    functions = supervise(make_model("mlp", hidden=[20], dropout=0.5), None, 5, 3)
    random = np.random.default_rng(0)
    params = functions.init(random)
    batch = {"x": random.standard_normal((8, 5)).astype(np.float32), "y": random.integers(0, 3, 8)}
    compiled = value_and_grad(lambda params, batch: np.mean(functions.loss(params, batch)))
    losses = set()
    for step in range(3):
        with step_context(seed=1, step=step, shard=0, training=True):
            loss, gradients = compiled(params, batch)
        with step_context(seed=1, step=step, shard=0, training=True):
            plain = functions.loss(params, batch).mean()
        with step_context(seed=1, step=step, shard=0, training=True):
            hidden = dropout(relu(linear(batch["x"], *(params["layers"][0][k] for k in "wb"))), 0.5)
        np.testing.assert_allclose(loss, plain, rtol=1e-6)
        # A unit whose output is 0 in every sample gives its outgoing weights no gradient, and only such a unit.
        np.testing.assert_array_equal(gradients["layers"][1]["w"].any(1), hidden.any(0))
        losses.add(float(plain))
    assert len(losses) == 3
