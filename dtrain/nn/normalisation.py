"""Batch normalisation: Ioffe and Szegedy, arXiv:1502.03167 (2015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.errors import InputError, ShapeError
from dtrain.graph.context import require_context
from dtrain.graph.tensor import format_line, user_line
from dtrain.nn.running import report


def batch_norm(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5, axis: int | tuple[int, ...] | None = None
) -> Any:
    """γ·(x − μ)/√(σ² + ε) + β, with mean and variance over ``axis`` (all axes but the last unless given).

    ``gamma``, ``beta``, ``mean`` and ``var`` have the shape of x without these axes; ``mean`` and ``var`` are running
    values (``dtrain.nn.running``), which hold the momentum. In training μ and σ² are those of the shard (σ² divided by
    the number n of values) and are reported (σ² divided by n − 1), as in PyTorch; in evaluation they are the running
    ones. Since they are a shard's, the result does not depend on the number of workers.

    Raises TraceError outside of a step context, ShapeError for shapes that do not fit, and InputError where a shard
    has one value, which has no variance.
    """
    context = require_context("batch_norm")
    axes = tuple(range(x.ndim - 1)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % x.ndim for a in axes)
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    for name, part in (("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)):
        if part.shape != shape:
            raise ShapeError(
                f"batch_norm at {format_line(user_line())}: expected {name} of shape {shape}, that of x {x.shape} "
                f"without the axes {axes}, got {part.shape}"
            )
    spread = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    if context.training:
        count = math.prod(x.shape[a] for a in axes)
        if count < 2:
            raise InputError(
                f"batch_norm at {format_line(user_line())}: shard {context.shard} of step {context.step} has one value "
                "for a variance; choose batch and shards so that every shard has at least 2 samples, also in the last "
                "batch of an epoch"
            )
        mu = np.mean(x, axis=axes, keepdims=True)
        centred = x - mu
        sigma2 = np.mean(centred * centred, axis=axes, keepdims=True)
        report(mean, np.reshape(mu, shape))
        report(var, np.reshape(sigma2 * (count / (count - 1)), shape))
    else:
        centred = x - np.reshape(mean, spread)
        sigma2 = np.reshape(var, spread)
    scale = np.reshape(gamma, spread) / np.sqrt(sigma2 + eps)
    return centred * scale + np.reshape(beta, spread)
