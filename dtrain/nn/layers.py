"""Layers: functions from arrays to arrays. Parameters are arguments; a model owns them in whatever dict it likes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain import graph
from dtrain.graph import Tensor


def linear(x: Any, w: Any, b: Any) -> Any:
    """x·w + b for x (n, d), w (d, h), b (h,)."""
    return x @ w + b


def relu(x: Any) -> Any:
    """max(x, 0). Its derivative at 0 is 0."""
    return np.maximum(x, 0.0)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(x)


def sigmoid(x: Any) -> Any:
    """1/(1 + e^−x), without overflow at either end."""
    if isinstance(x, Tensor):
        return graph.sigmoid(x)
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def dropout(x: Any, rate: float) -> Any:
    """Set each element to 0 with probability ``rate`` and divide the others by 1 − rate; nothing outside of training.

    Inverted dropout, so evaluation needs no scaling. The mask is a function of (seed, step, shard, place in the
    graph), so a rate above 0 needs the step's context: ``TraceError`` without ``dtrain.graph.step_context``.
    """
    return graph.dropout(x, rate) if rate else x
