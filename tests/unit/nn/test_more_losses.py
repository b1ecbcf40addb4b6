"""Losses that a model calls itself: values and gradients of PyTorch in float64, stability, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain import nn
from dtrain.errors import ShapeError
from dtrain.graph import grad, value_and_grad

RANDOM = np.random.default_rng(4)
SCORES = 2 * RANDOM.standard_normal((9, 5))
LABELS = RANDOM.integers(0, 5, 9)
SOFT = RANDOM.dirichlet(np.ones(5), 9)
NUMBERS = RANDOM.standard_normal((9, 5))
SIGNS = np.where(NUMBERS > 0, 1.0, -1.0)


def cramming(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    correct = s.gather(1, y[:, None])
    others = s.masked_fill(functional.one_hot(y, s.shape[1]).bool(), -torch.inf)
    return torch.relu(1 + others.amax(1) - correct[:, 0])


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], np.ndarray]] = {
    "soft": (nn.softmax_cross_entropy, lambda s, y: functional.cross_entropy(s, y, reduction="none"), SOFT),
    "smoothed": (
        lambda s, y: nn.softmax_cross_entropy(s, y, smoothing=0.2),
        lambda s, y: functional.cross_entropy(s, y, reduction="none", label_smoothing=0.2),
        LABELS,
    ),
    "nll": (nn.negative_log_likelihood, lambda s, y: functional.nll_loss(s, y, reduction="none"), LABELS),
    "crammer": (nn.crammer_singer, cramming, LABELS),
    "hinge": (nn.binary_hinge, lambda s, t: torch.relu(1 - t * s).mean(1), SIGNS),
    "squared": (nn.binary_squared_hinge, lambda s, t: torch.relu(1 - t * s).square().mean(1), SIGNS),
    "bce": (
        nn.binary_cross_entropy,
        lambda s, t: functional.binary_cross_entropy_with_logits(s, t, reduction="none").mean(1),
        SOFT,
    ),
    "kl": (nn.kl_divergence, lambda s, p: functional.kl_div(s, p, reduction="none").sum(1), SOFT),
    "huber": (
        lambda s, t: nn.huber(s, t, delta=0.7),
        lambda s, t: functional.huber_loss(s, t, reduction="none", delta=0.7).mean(1),
        NUMBERS,
    ),
    "smooth l1": (nn.huber, lambda s, t: functional.smooth_l1_loss(s, t, reduction="none").mean(1), NUMBERS),
    "mae": (nn.mean_absolute_error, lambda s, t: functional.l1_loss(s, t, reduction="none").mean(1), NUMBERS),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_pytorchs(name: str) -> None:
    ours, theirs, targets = CASES[name]
    weights = np.linspace(-1, 2, 9)
    leaf = torch.tensor(SCORES, requires_grad=True)
    expected = theirs(leaf, torch.tensor(targets))
    (expected * torch.tensor(weights)).sum().backward()
    assert ours(SCORES, targets).shape == (9,)
    np.testing.assert_allclose(ours(SCORES, targets), expected.detach(), rtol=1e-10, atol=1e-12)
    value, gradient = value_and_grad(lambda s, t: np.sum(weights * ours(s, t)))(SCORES, targets)
    np.testing.assert_allclose(value, (expected.detach().numpy() * weights).sum(), rtol=1e-10)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-10, atol=1e-12)


def test_great_scores_are_stable() -> None:
    scores, targets = np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(nn.binary_cross_entropy(scores, targets), [0, 1e4])
        np.testing.assert_allclose(nn.softmax_cross_entropy(scores, targets), [0, 2e4])
        assert np.isfinite(grad(lambda s: np.sum(nn.binary_cross_entropy(s, targets)))(scores)).all()


def test_kl_of_a_probability_of_0() -> None:
    p = np.array([[0.0, 1.0]])
    np.testing.assert_allclose(nn.kl_divergence(np.log(np.array([[0.5, 0.5]])), p), np.log(2.0))


@pytest.mark.parametrize("name", ["soft", "hinge", "squared", "bce", "kl", "huber", "mae"])
def test_targets_of_another_shape_are_named(name: str) -> None:
    with pytest.raises(ShapeError, match=r"got \(9, 5\) and \(9, 4\)"):
        CASES[name][0](SCORES, np.zeros((9, 4)))
