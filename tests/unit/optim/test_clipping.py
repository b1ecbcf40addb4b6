"""Clipping against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dtrain.errors import NonFiniteError
from dtrain.optim import clip_by_value, scale


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 1.5, 1e4])
def test_scale_is_pytorchs(size: float) -> None:
    gradient = size * np.random.default_rng(0).standard_normal(100)
    parameter = torch.zeros(100, dtype=torch.float64)
    parameter.grad = torch.tensor(gradient)
    norm = float(torch.nn.utils.clip_grad_norm_([parameter], max_norm=1.0))
    np.testing.assert_allclose(gradient * scale(norm, 1.0), parameter.grad.numpy(), rtol=1e-13)


def test_a_small_gradient_is_left_alone() -> None:
    assert scale(0.0, 1.0) == 1.0
    assert scale(0.5, 1.0) == 1.0


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_an_error(norm: float) -> None:
    with pytest.raises(NonFiniteError, match="clip_norm: the global gradient norm is"):
        scale(norm, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_by_value(dtype: type) -> None:
    gradient = np.array([-20, -10, -0.5, 0, 3, 10.5, np.inf, -np.inf, np.nan], dtype)
    clip_by_value(gradient, 10.0)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, [-10, -10, -0.5, 0, 3, 10, 10, -10, np.nan])
