"""Normalisations over the batch (Ioffe and Szegedy, arXiv:1502.03167), over each sample's last axes (Ba et al.,
arXiv:1607.06450), over groups of its channels (Wu and He, arXiv:1803.08494), each channel (Ulyanov et al.,
arXiv:1607.08022) and neighbouring channels (Krizhevsky et al. 2012)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.errors import InputError, ShapeError
from dtrain.graph.context import StepContext, require_context
from dtrain.graph.ops.pooling import sum_pool
from dtrain.graph.ops.shards import sum_over_shards
from dtrain.graph.tensor import format_line, user_line
from dtrain.nn.running import report


def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: float = 1e-5,
    axis: int | tuple[int, ...] | None = None,
    synchronised: bool = False,
) -> Any:
    """γ·(x − μ)/√(σ² + ε) + β, with mean and variance over ``axis`` (all axes but the last unless given).

    ``gamma``, ``beta``, ``mean`` and ``var`` have the shape of x without these axes; ``mean`` and ``var`` are running
    values (``dtrain.nn.running``), which hold the momentum. In training μ and σ² are those of the shard (σ² divided by
    the number n of values) and are reported (σ² divided by n − 1), as in PyTorch; in evaluation they are the running
    ones. Since they are a shard's, the result does not depend on the number of workers.

    ``synchronised`` takes μ and σ² of the whole mini-batch instead, as torch.nn.SyncBatchNorm: all shards wait for each
    other twice in the forward and twice in the backward pass (`sum_over_shards`). The samples are then the first axis.

    Raises TraceError outside of a step context, ShapeError for shapes that do not fit, and InputError where a shard
    (``synchronised``: the mini-batch) has one value, which has no variance.
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
    if context.training and synchronised:
        centred, mu, sigma2, unbiased = _of_batch(x, axes, context)
        report(mean, np.reshape(mu, shape))
        report(var, np.reshape(unbiased, shape))
    elif context.training:
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


def _of_batch(x: Any, axes: tuple[int, ...], context: StepContext) -> tuple[Any, Any, Any, Any]:
    """x − μ, μ, σ² and the unbiased σ² of the whole mini-batch, with the axes kept."""
    if 0 not in axes:
        raise ShapeError(
            f"batch_norm at {format_line(user_line())}: synchronised takes the samples for the first axis, which is "
            f"not among the axes {axes}"
        )
    of_sample = math.prod(x.shape[a] for a in axes if a)
    if context.samples is not None and context.samples * of_sample < 2:
        raise InputError(
            f"batch_norm at {format_line(user_line())}: step {context.step} has one value for a variance; choose batch "
            "so that the last batch of an epoch has at least 2 samples, too"
        )
    sums = np.sum(x, axis=axes, keepdims=True)
    # In float32 the number of samples is exact up to 16 million; that of all values might not be.
    both = sum_over_shards(np.concatenate([np.reshape(sums, (-1,)), np.array([len(x)], x.dtype)]))
    count = both[-1] * of_sample
    mu = np.reshape(both[:-1], sums.shape) / count
    centred = x - mu
    squares = sum_over_shards(np.sum(centred * centred, axis=axes, keepdims=True))
    return centred, mu, squares / count, squares / (count - 1)


def _standardised(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=axes, keepdims=True) + eps)


def _refuse(op: str, wanted: str, x: Any, *others: Any) -> ShapeError:
    found = ", ".join(str(a.shape) for a in (x, *others))
    return ShapeError(f"{op} at {format_line(user_line())}: expected {wanted}, got {found}")


def layer_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """γ·(x − μ)/√(σ² + ε) + β, with mean and variance of each sample over the last axes, those that gamma has.

    As torch.nn.functional.layer_norm. Raises ShapeError where gamma or beta is not of the shape of these axes.
    """
    if not 0 < gamma.ndim < x.ndim or x.shape[-gamma.ndim :] != gamma.shape or beta.shape != gamma.shape:
        raise _refuse("layer_norm", "gamma and beta of the shape of the last axes of x", x, gamma, beta)
    return _standardised(x, tuple(range(-gamma.ndim, 0)), eps) * gamma + beta


def _group_norm(op: str, x: Any, groups: int, gamma: Any, beta: Any, eps: float) -> Any:
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups or gamma.shape != x.shape[1:2] or beta.shape != gamma.shape:
        wanted = f"x (n, channels, *size), gamma and beta (channels,) with channels a multiple of groups={groups}"
        raise _refuse(op, wanted, x, gamma, beta)
    grouped = np.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    channels = (-1,) + (1,) * (x.ndim - 2)
    each = np.reshape(_standardised(grouped, (2,), eps), x.shape)
    return each * np.reshape(gamma, channels) + np.reshape(beta, channels)


def group_norm(x: Any, groups: int, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """γ·(x − μ)/√(σ² + ε) + β for x (n, channels, *size), with mean and variance of each sample and group of channels.

    gamma and beta are (channels,). As torch.nn.functional.group_norm. Raises ShapeError for shapes that do not fit.
    """
    return _group_norm("group_norm", x, groups, gamma, beta, eps)


def instance_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """Group norm in which each channel is a group, as torch.nn.functional.instance_norm."""
    return _group_norm("instance_norm", x, x.shape[1] if x.ndim > 1 else 1, gamma, beta, eps)


def local_response_norm(
    x: Any, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, divide_by_size: bool = False
) -> Any:
    """x/(k + α·Σ x²)^β for x (n, channels, *places), the sum over ``size`` neighbouring channels at the same place.

    This is the paper's form with its constants. torch.nn.functional.local_response_norm divides α by ``size``:
    ``divide_by_size=True``. Raises ShapeError for x without channels and InputError for a size below 1.
    """
    if x.ndim < 2 or x.dtype.kind != "f":
        raise _refuse("local_response_norm", "floats (n, channels, *places)", x)
    if size < 1:
        raise InputError(
            f"local_response_norm at {format_line(user_line())}: expected a size of at least 1, got {size}"
        )
    rows = np.reshape(x * x, (x.shape[0], 1, x.shape[1], math.prod(x.shape[2:])))
    around = ((size // 2, (size - 1) // 2), (0, 0))
    total = sum_pool(rows, kernel=(size, 1), stride=(1, 1), padding=around, dilation=(1, 1))
    scale = alpha / size if divide_by_size else alpha
    return x / (k + scale * np.reshape(total, x.shape)) ** beta
