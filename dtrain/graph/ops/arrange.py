# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Rearrangements composed of the shape and indexing primitives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.indexing import embed
from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.primitive import record


def flip(x: Any, axis: Any = None) -> Any:
    """Record np.flip, a view."""
    axes = normalize_axes(axis, x.ndim)
    return x[tuple([slice(None, None, -1 if i in axes else None) for i in range(x.ndim)])]


def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    """Record np.roll by static shifts."""
    if axis is None:
        return roll(x.reshape(-1), shift, 0).reshape(x.shape)
    shifts = shift if isinstance(shift, tuple | list) else (shift,)
    axes = axis if isinstance(axis, tuple | list) else (axis,) * len(shifts)
    for s, a in zip(shifts, axes, strict=True):
        (a,) = normalize_axes(a, x.ndim)
        n = x.shape[a]
        s = int(s) % n if n else 0
        if s:
            lead = (slice(None),) * a
            x = np.concatenate([x[(*lead, slice(n - s, None))], x[(*lead, slice(None, n - s))]], axis=a)
    return x


def tile(x: Any, reps: Any) -> Any:
    """Record np.tile."""
    counts = (reps,) if isinstance(reps, int) else tuple(reps)
    ndim = max(x.ndim, len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    shape = (1,) * (ndim - x.ndim) + x.shape
    pairs = [n for c, m in zip(counts, shape, strict=True) for n in (c, m)]
    spread = np.broadcast_to(x.reshape([n for m in shape for n in (1, m)]), pairs)
    return np.reshape(spread, [c * m for c, m in zip(counts, shape, strict=True)])


def repeat(x: Any, repeats: Any, axis: Any = None) -> Any:
    """Record np.repeat: one static count for all, or one for each element."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    (a,) = normalize_axes(axis, x.ndim)
    return np.take(x, np.repeat(np.arange(x.shape[a]), repeats), axis=a)


def pad(x: Any, pad_width: Any, mode: str = "constant", **options: Any) -> Any:
    """Record np.pad with zeros."""
    if mode != "constant" or options.get("constant_values", 0) != 0:
        raise UnsupportedFunctionError(f"np.pad is covered with zeros only, got mode={mode!r} and {options}")
    widths = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    shape = tuple([n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)])
    index = tuple([("slice", before, before + n, None) for n, (before, _) in zip(x.shape, widths, strict=True)])
    return record(embed, (x,), {"shape": shape, "index": index})


def tril(x: Any, k: int = 0) -> Any:
    """Record np.tril."""
    return np.where(np.tri(x.shape[-2], x.shape[-1], k, dtype=bool), x, 0)


def triu(x: Any, k: int = 0) -> Any:
    """Record np.triu."""
    return np.where(np.tri(x.shape[-2], x.shape[-1], k - 1, dtype=bool), 0, x)


def vecdot(x: Any, y: Any, axis: int = -1) -> Any:
    """Record np.vecdot along the last axis."""
    return np.sum(x * y, axis=axis)
