"""The losses: the lecture's figures, stability, and PyTorch in float64 for values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import InputError, ShapeError
from dtrain.graph import value_and_grad
from dtrain.nn import (
    LOSSES,
    accuracy,
    check_labels,
    linear,
    mean_squared_error,
    multiclass_hinge,
    softmax_cross_entropy,
    squared_hinge,
)

Loss = Callable[..., Any]

THREE = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
THREE_LABELS = np.array([0, 1, 2])
TEN = np.array(
    [
        [-3.45, -8.87, 0.09, 2.9, 4.48, 8.02, 3.78, 1.06, -0.36, -0.72],
        [-0.51, 6.04, 5.31, -4.22, -4.19, 3.58, 4.49, -4.37, -2.09, -2.93],
        [3.42, 4.64, 2.65, 5.1, 2.64, 5.55, -4.34, -1.5, -4.79, 6.14],
    ]
)
TEN_LABELS = np.array([3, 1, 6])  # cat, car, frog


def score_gradient(loss: Loss, scores: np.ndarray, labels: np.ndarray, **options: Any) -> np.ndarray:
    """The gradient of the losses' sum: row i is that of sample i's loss."""
    gradient: np.ndarray = value_and_grad(lambda s, y: np.sum(loss(s, y, **options)))(scores, labels)[1]
    return gradient


def test_hinge_of_three_images() -> None:
    losses = multiclass_hinge(THREE, THREE_LABELS)
    np.testing.assert_allclose(losses, [2.9, 0, 12.9], atol=1e-12)
    assert losses.mean() == pytest.approx(5.2666667, abs=5e-8)
    np.testing.assert_allclose(
        score_gradient(multiclass_hinge, THREE, THREE_LABELS), [[-1, 1, 0], [0, 0, 0], [1, 1, -2]], atol=0
    )


def test_squared_hinge_of_three_images() -> None:
    np.testing.assert_allclose(squared_hinge(THREE, THREE_LABELS), [8.41, 0, 83.25], atol=1e-12)


def test_cross_entropy_of_three_images() -> None:
    losses = softmax_cross_entropy(THREE, THREE_LABELS)
    np.testing.assert_allclose(losses, [2.0403551528, 0.0791317783, 6.1564772017], atol=5.1e-11)
    assert losses.mean() == pytest.approx(2.7586547109, abs=5.1e-11)
    softmax = score_gradient(softmax_cross_entropy, THREE, THREE_LABELS) + np.eye(3)
    np.testing.assert_allclose(softmax[0], [0.12998254, 0.86904954, 0.00096793], atol=5.1e-9)


def test_slide_six() -> None:
    hinge, entropy = multiclass_hinge(TEN, TEN_LABELS), softmax_cross_entropy(TEN, TEN_LABELS)
    np.testing.assert_allclose(hinge, [10.58, 0.27, 71.91], atol=1e-12)
    assert hinge.mean() == pytest.approx(27.58666667, abs=5.1e-9)
    np.testing.assert_allclose(entropy, [5.1698427276, 0.5774809508, 11.2944847672], atol=5.1e-11)
    assert entropy.mean() == pytest.approx(5.6806028152, abs=5.1e-11)


def test_svm_beside_softmax() -> None:
    w = np.array([[0.01, -0.05, 0.1, 0.05], [0.7, 0.2, 0.05, 0.16], [0, -0.45, -0.2, 0.03]])
    scores = linear(np.array([[-15.0, 22, -44, 56]]), w.T, np.array([0, 0.2, -0.3]))
    label = np.array([2])
    np.testing.assert_allclose(scores, [[-2.85, 0.86, 0.28]], atol=1e-12)
    np.testing.assert_allclose(multiclass_hinge(scores, label), [1.58], atol=1e-12)
    np.testing.assert_allclose(softmax_cross_entropy(scores, label), [1.0401905694], atol=5.1e-11)
    softmax = score_gradient(softmax_cross_entropy, scores, label) + np.eye(3)[[2]]
    np.testing.assert_allclose(softmax, [[0.0154493, 0.6311634, 0.3533873]], atol=5.1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_great_scores_do_not_overflow(dtype: type) -> None:
    scores, labels = np.array([[123, 456, 789]] * 3, dtype), np.arange(3)
    np.testing.assert_array_equal(softmax_cross_entropy(scores, labels), [666, 333, 0])
    softmax = score_gradient(softmax_cross_entropy, scores, labels) + np.eye(3, dtype=dtype)
    np.testing.assert_allclose(softmax, [[0, 0, 1]] * 3, atol=1e-100)


def test_losses_of_ten_equal_scores() -> None:
    scores, labels = np.zeros((4, 10)), np.arange(4)
    np.testing.assert_allclose(softmax_cross_entropy(scores, labels), 2.302585, atol=5e-7)
    np.testing.assert_array_equal(multiclass_hinge(scores, labels), 9)


def one_hot(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(y, s.shape[1]).to(s.dtype)


def without(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return s.masked_fill(one_hot(s, y).bool(), -torch.inf)


TORCH: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "softmax_cross_entropy": lambda s, y: torch.nn.functional.cross_entropy(s, y, reduction="none"),
    "hinge": lambda s, y: s.shape[1] * torch.nn.functional.multi_margin_loss(s, y, reduction="none"),
    "squared_hinge": lambda s, y: s.shape[1] * torch.nn.functional.multi_margin_loss(s, y, p=2, reduction="none"),
    "crammer_singer": lambda s, y: torch.relu(1 + without(s, y).amax(1) - s.gather(1, y[:, None])[:, 0]),
    "binary_hinge": lambda s, y: torch.relu(1 - (2 * one_hot(s, y) - 1) * s).mean(1),
    "binary_squared_hinge": lambda s, y: torch.relu(1 - (2 * one_hot(s, y) - 1) * s).square().mean(1),
    "binary_cross_entropy": lambda s, y: torch.nn.functional.binary_cross_entropy_with_logits(
        s, one_hot(s, y), reduction="none"
    ).mean(1),
    "mean_squared_error": lambda s, y: (s - one_hot(s, y)).square().mean(1),
    "mean_absolute_error": lambda s, y: (s - one_hot(s, y)).abs().mean(1),
    "huber": lambda s, y: torch.nn.functional.huber_loss(s, one_hot(s, y), reduction="none").mean(1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_pytorchs(name: str) -> None:
    random = np.random.default_rng(1)
    scores, labels = 2 * random.standard_normal((17, 6)), random.integers(0, 6, 17)
    weights = random.standard_normal(17)
    traced = torch.tensor(scores, requires_grad=True)
    expected = TORCH[name](traced, torch.tensor(labels))
    (expected * torch.tensor(weights)).sum().backward()

    np.testing.assert_allclose(LOSSES[name](scores, labels), expected.detach(), rtol=1e-10, atol=1e-12)
    value, gradient = value_and_grad(lambda s, y: np.sum(weights * LOSSES[name](s, y)))(scores, labels)
    np.testing.assert_allclose(value, (expected.detach().numpy() * weights).sum(), rtol=1e-10)
    np.testing.assert_allclose(gradient, traced.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [multiclass_hinge, squared_hinge])
def test_margin(loss: Loss) -> None:
    scores, labels = np.array([[1.0, 0.5, -2.0]]), np.array([0])
    power = 2 if loss is squared_hinge else 1
    np.testing.assert_allclose(loss(scores, labels, margin=4.0), 3.5**power + 1.0**power)
    np.testing.assert_array_equal(loss(scores, labels, margin=0.25), 0)


def test_the_hinge_is_flat_at_its_kink() -> None:
    np.testing.assert_array_equal(
        score_gradient(multiclass_hinge, np.array([[2.0, 1.0, 3.0]]), np.array([0])), [[-1, 0, 1]]
    )


@pytest.mark.parametrize("name", ["mean_squared_error", "mean_absolute_error", "huber", "binary_cross_entropy"])
def test_numbers_of_one_output_may_be_flat_or_whole(name: str) -> None:
    scores, flags = TEN[:, :1].astype(np.float32), np.array([1, 0, 1])
    expected = LOSSES[name](scores, flags[:, None].astype(np.float32))
    np.testing.assert_array_equal(LOSSES[name](scores, flags), expected)
    assert LOSSES[name](scores, flags).dtype == np.float32


def test_mean_squared_error_of_numbers() -> None:
    random = np.random.default_rng(2)
    scores, targets = random.standard_normal((5, 3)), random.standard_normal((5, 3))
    np.testing.assert_allclose(mean_squared_error(scores, targets), np.mean((scores - targets) ** 2, 1))
    np.testing.assert_allclose(mean_squared_error(scores[:, :1], targets[:, 0]), (scores[:, 0] - targets[:, 0]) ** 2)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(name: str) -> None:
    scores, labels = TEN.astype(np.float32), TEN_LABELS
    assert LOSSES[name](scores, labels).dtype == np.float32
    value, gradient = value_and_grad(lambda s, y: np.mean(LOSSES[name](s, y)))(scores, labels)
    assert np.asarray(value).dtype == gradient.dtype == np.float32


@pytest.mark.parametrize("name", LOSSES)
def test_each_sample_is_on_its_own(name: str) -> None:
    whole = LOSSES[name](TEN, TEN_LABELS)
    for i in range(3):
        np.testing.assert_array_equal(LOSSES[name](TEN[i : i + 1], TEN_LABELS[i : i + 1]), whole[i : i + 1])


def test_accuracy() -> None:
    result = accuracy(np.array([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0]]), np.array([1, 1, 0]))
    np.testing.assert_array_equal(result, [1, 0, 1])
    assert result.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 3, 9]), "data 'y': expected labels from 0 to 2, got 3 at sample 2"),
        (np.array([0, -1]), "got -1 at sample 1"),
        (np.array([0.0, 1.0]), r"expected integer labels of shape \(n,\), got float64 \(2,\)"),
        (np.array([[0], [1]]), r"expected integer labels of shape \(n,\), got int64 \(2, 1\)"),
    ],
)
def test_bad_labels_are_named(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(labels, 3)


def test_good_labels_pass() -> None:
    check_labels(np.array([0, 2, 1], np.uint8), 3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "targets", [np.zeros((3, 1), np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(3)]
)
def test_targets_that_do_not_fit_are_named(name: str, targets: np.ndarray) -> None:
    """Broadcasting would take some of these and give a wrong loss."""
    with pytest.raises(ShapeError, match=r"loss: expected scores .*, got \(3, 10\) and"):
        LOSSES[name](TEN, targets)
