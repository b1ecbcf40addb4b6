"""Activations on plain and traced arrays: values and gradients of PyTorch, finite at ±1e4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain import nn
from dtrain.graph import grad

POINTS = np.array([-1e4, -90.0, -12, -3.5, -0.5, -1e-3, 1e-3, 0.5, 3.5, 7, 90, 1e4])
PAIRS: list[tuple[Any, Any]] = [
    (nn.gelu, functional.gelu),
    (nn.gelu_tanh, lambda x: functional.gelu(x, approximate="tanh")),
    (nn.silu, functional.silu),
    (nn.softplus, lambda x: functional.softplus(x, threshold=1e9) if x.abs().max() < 50 else torch.logaddexp(x, 0 * x)),
    (nn.leaky_relu, functional.leaky_relu),
    (nn.elu, functional.elu),
    (nn.selu, functional.selu),
    (nn.relu6, functional.relu6),
    (nn.hard_sigmoid, lambda x: functional.relu6(x + 3) / 6),  # the backward of hardsigmoid has 1/6 in float32
    (nn.hard_tanh, functional.hardtanh),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[p[0].__name__ for p in PAIRS])
def test_activation_is_pytorchs(ours: Any, theirs: Any, dtype: type) -> None:
    x = POINTS.astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    expected.sum().backward()
    tolerance = 1e-12 if dtype is np.float64 else 2e-6
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        plain, gradient = ours(x), grad(lambda x: np.sum(ours(x)))(x)
    assert plain.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(plain, expected.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=tolerance, atol=tolerance)


def test_gelu_keeps_the_digits_of_its_tail() -> None:
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-37.0, 37.0, 2001)
    np.testing.assert_allclose(nn.gelu(x), x * special.ndtr(x), rtol=1e-12)


def test_the_slope_and_alpha_are_options() -> None:
    np.testing.assert_allclose(nn.leaky_relu(np.array([-2.0, 3.0]), slope=0.25), [-0.5, 3.0])
    np.testing.assert_allclose(nn.elu(np.array([-1.0, 3.0]), alpha=2.0), [2 * np.expm1(-1.0), 3.0])
