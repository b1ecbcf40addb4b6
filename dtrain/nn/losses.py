"""Losses and accuracy, each per sample: (n, k) scores and n targets give (n,) values.

Nothing is averaged over samples here: the sum over the shard and the division by the global count are the trainer's,
so that a ragged batch is exact. Labels are integers in [0, k); ``check_labels`` refuses others once, before training,
because a label outside selects no score and would pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dtrain.errors import InputError, ShapeError
from dtrain.graph import log_softmax, stop_gradient
from dtrain.nn.layers import relu


def _is_label(scores: Any, labels: Any) -> Any:
    """The mask (n, k) that is true at each sample's label; ``ShapeError`` if the labels are not n integers."""
    if labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu" or scores.ndim != 2:
        raise ShapeError(
            f"loss: expected scores (n, classes) and integer labels (n,), got {scores.shape} and "
            f"{labels.dtype} {labels.shape}; give class numbers from 0, or use mean_squared_error for numbers"
        )
    return np.expand_dims(labels, 1) == np.arange(scores.shape[1])


def softmax_cross_entropy(scores: Any, targets: Any, smoothing: float = 0.0) -> Any:
    """−Σ q·log softmax(scores), q = (1 − smoothing)·target + smoothing/k; of a label, −log of its probability.

    ``targets`` are integer labels (n,) or probabilities, floats (n, k). ``smoothing`` is PyTorch's ``label_smoothing``.
    The row's maximum comes off the scores first, so nothing overflows.
    """
    if targets.ndim == 2 and targets.dtype.kind == "f":
        _check_alike(scores, targets)
        q = targets
    else:
        is_label = _is_label(scores, targets)
        if not smoothing:
            shifted = scores - stop_gradient(np.max(scores, axis=1, keepdims=True))
            return np.log(np.sum(np.exp(shifted), axis=1)) - np.sum(np.where(is_label, shifted, 0.0), axis=1)
        q = is_label.astype(scores.dtype)
    q = q * (1.0 - smoothing) + smoothing / scores.shape[1]
    return -np.sum(q * log_softmax(scores, axis=1), axis=1)


def _margins(scores: Any, labels: Any, margin: float) -> Any:
    """max(0, s_j − s_label + margin), and 0 at the label itself."""
    is_label = _is_label(scores, labels)
    correct = np.sum(np.where(is_label, scores, 0.0), axis=1, keepdims=True)
    return np.where(is_label, 0.0, relu(scores - correct + margin))


def multiclass_hinge(scores: Any, labels: Any, margin: float = 1.0) -> Any:
    """Σ_{j≠y} max(0, s_j − s_y + margin): Weston and Watkins' SVM, as in CS231n. Its gradient at a kink is 0."""
    return np.sum(_margins(scores, labels, margin), axis=1)


def squared_hinge(scores: Any, labels: Any, margin: float = 1.0) -> Any:
    """Σ_{j≠y} max(0, s_j − s_y + margin)², the L2-SVM."""
    return np.sum(np.square(_margins(scores, labels, margin)), axis=1)


def _numbers(scores: Any, targets: Any, other: float = 0.0) -> Any:
    """The targets in the shape of the scores; labels of k > 1 scores become 1 at the label and ``other`` elsewhere."""
    if targets.ndim == 1 and scores.ndim == 2:
        if targets.dtype.kind in "iu" and scores.shape[1] > 1:
            targets = np.where(_is_label(scores, targets), 1.0, other).astype(scores.dtype)
        else:
            targets = np.expand_dims(targets, 1)
    _check_alike(scores, targets)
    return targets.astype(scores.dtype) if targets.dtype.kind in "biu" else targets


def mean_squared_error(scores: Any, targets: Any) -> Any:
    """The mean over the k outputs of (score − target)².

    ``targets`` are numbers of the scores' shape, or (n,) if k is 1. Integers (n,) with k above 1 are labels: the
    target is 1 at the label and 0 elsewhere. The same holds for the other losses of numbers.
    """
    return _mean(np.square(scores - _numbers(scores, targets)))


def negative_log_likelihood(log_p: Any, labels: Any) -> Any:
    """−log p of the label, for log-probabilities (n, k)."""
    return -np.sum(np.where(_is_label(log_p, labels), log_p, 0.0), axis=1)


def crammer_singer(scores: Any, labels: Any, margin: float = 1.0) -> Any:
    """max(0, max_{j≠y} s_j − s_y + margin): the SVM of Crammer and Singer (2001). Ties of the maximum share."""
    return np.max(_margins(scores, labels, margin), axis=1)


def binary_hinge(scores: Any, targets: Any) -> Any:
    """The mean over the outputs of max(0, 1 − t·s), t = −1 or 1; labels (n,) are 1 at the label and −1 elsewhere."""
    return _mean(relu(1.0 - _numbers(scores, targets, other=-1.0) * scores))


def binary_squared_hinge(scores: Any, targets: Any) -> Any:
    """The mean over the outputs of max(0, 1 − t·s)², with the targets of ``binary_hinge``."""
    return _mean(np.square(relu(1.0 - _numbers(scores, targets, other=-1.0) * scores)))


def binary_cross_entropy(scores: Any, targets: Any) -> Any:
    """The mean over the outputs of −t·log σ(s) − (1 − t)·log(1 − σ(s)), t in [0, 1]; stable for every s."""
    return _mean(np.logaddexp(scores, np.zeros_like(scores)) - scores * _numbers(scores, targets))


def kl_divergence(log_q: Any, p: Any) -> Any:
    """Σ p·(log p − log q) over the outputs, for log-probabilities ``log_q`` and probabilities ``p``; 0 where p is 0."""
    _check_alike(log_q, p)
    entropy = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    return np.sum(entropy - p * log_q, axis=1)


def huber(scores: Any, targets: Any, delta: float = 1.0) -> Any:
    """The mean over the outputs of ½e² for |e| ≤ δ, else δ·(|e| − δ/2). With δ = 1, the smooth L1 loss."""
    error = np.abs(scores - _numbers(scores, targets))
    inside = np.minimum(error, delta)
    return _mean(inside * (error - 0.5 * inside))


def mean_absolute_error(scores: Any, targets: Any) -> Any:
    """The mean over the outputs of |score − target|; its gradient at 0 is 0."""
    return _mean(np.abs(scores - _numbers(scores, targets)))


def _mean(values: Any) -> Any:
    return np.mean(values, axis=1) if values.ndim == 2 else values


def _check_alike(scores: Any, targets: Any) -> None:
    if targets.shape != scores.shape or scores.ndim not in (1, 2):
        raise ShapeError(
            f"loss: expected scores (n, k) or (n,) and targets of the same shape, got {scores.shape} and "
            f"{targets.shape}; give one target per score"
        )


def accuracy(scores: Any, labels: Any) -> Any:
    """1 where the greatest score (the first of equals) is the label's, else 0; (n,) float32.

    A single score (n, 1) stands for label 1 where it is above 0, else for 0.
    """
    if scores.shape[1] == 1:
        return ((scores[:, 0] > 0) == (labels > 0)).astype(np.float32)
    return (np.argmax(scores, axis=1) == labels).astype(np.float32)


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "hinge": multiclass_hinge,
    "squared_hinge": squared_hinge,
    "crammer_singer": crammer_singer,
    "binary_hinge": binary_hinge,
    "binary_squared_hinge": binary_squared_hinge,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "huber": huber,
}
"""The losses by the name that a job spec gives them."""


def check_labels(labels: np.ndarray, classes: int, name: str = "y") -> None:
    """Raise ``InputError`` naming the first label that is no integer in [0, classes)."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"data {name!r}: expected integer labels of shape (n,), got {labels.dtype} {labels.shape}; "
            "convert them, or use the loss mean_squared_error"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        at = int(wrong[0])
        raise InputError(
            f"data {name!r}: expected labels from 0 to {classes - 1}, got {labels[at]} at sample {at}; "
            "correct the labels or the number of classes"
        )
