# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Rearrangements composed of the shape and indexing primitives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import TraceError, UnsupportedFunctionError
from dtrain.graph.ops.indexing import scatter_add
from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.ops.shape import moveaxis
from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Tensor, format_line, user_line


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
    x = as_tensor(x)
    counts = (int(reps),) if np.ndim(reps) == 0 else tuple([int(n) for n in reps])
    ndim = max(x.ndim, len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    shape = (1,) * (ndim - x.ndim) + x.shape
    pairs = [n for c, m in zip(counts, shape, strict=True) for n in (c, m)]
    spread = np.broadcast_to(x.reshape([n for m in shape for n in (1, m)]), pairs)
    return np.reshape(spread, [c * m for c, m in zip(counts, shape, strict=True)])


def repeat(x: Any, repeats: Any, axis: Any = None) -> Any:
    """Record np.repeat: one static count for all, or one for each element."""
    x, a = _line(as_tensor(x), axis)
    return np.take(x, np.repeat(np.arange(x.shape[a]), repeats), axis=a)


def _line(x: Any, axis: Any) -> tuple[Any, int]:
    return (np.reshape(x, -1), 0) if axis is None else (x, normalize_axes(axis, x.ndim)[0])


def _square(x: Any) -> Any:
    """Return x as a matrix: tril and triu spread a vector over the rows, as NumPy does."""
    x = as_tensor(x)
    return np.broadcast_to(x, (x.shape[0], x.shape[0])) if x.ndim == 1 else x


def tril(x: Any, k: int = 0) -> Any:
    """Record np.tril."""
    x = _square(x)
    return np.where(np.tri(x.shape[-2], x.shape[-1], k, dtype=bool), x, 0)


def triu(x: Any, k: int = 0) -> Any:
    """Record np.triu."""
    x = _square(x)
    return np.where(np.tri(x.shape[-2], x.shape[-1], k - 1, dtype=bool), 0, x)


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """Record np.diagonal: the diagonal of the two axes becomes the last axis."""
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    rows, columns = np.nonzero(np.eye(x.shape[-2], x.shape[-1], offset, dtype=bool))
    return x[..., rows, columns]


def linalg_diagonal(x: Any, /, *, offset: int = 0) -> Any:
    """Record np.linalg.diagonal, of the last two axes."""
    return diagonal(x, offset, -2, -1)


def diag(x: Any, k: int = 0) -> Any:
    """Record np.diag: the diagonal of a matrix, or the matrix with a vector on its diagonal."""
    x = as_tensor(x)
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise ValueError(f"np.diag takes one or two dimensions, got shape {x.shape}")
    n = x.shape[0] + abs(k)
    spread = np.pad(x, (0, k))[:, None] if k > 0 else np.pad(x, (0, -k))
    return np.where(np.eye(n, n, k, dtype=bool), spread, 0)


def diagflat(x: Any, k: int = 0) -> Any:
    """Record np.diagflat."""
    return diag(np.reshape(x, -1), k)


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: None = None) -> Any:
    """Record np.trace: the sum of the diagonal."""
    return np.sum(diagonal(x, offset, axis1, axis2), axis=-1, dtype=dtype)


def linalg_trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Any:
    """Record np.linalg.trace, of the last two axes."""
    return trace(x, offset, -2, -1, dtype)


def flipud(x: Any) -> Any:
    """Record np.flipud."""
    return np.flip(x, 0)


def fliplr(x: Any) -> Any:
    """Record np.fliplr."""
    return np.flip(x, 1)


def rot90(x: Any, k: int = 1, axes: Any = (0, 1)) -> Any:
    """Record np.rot90: k quarter turns from the first axis towards the second."""
    first, second = (a % x.ndim for a in axes)
    k %= 4
    if k == 2:
        return np.flip(x, (first, second))
    if k == 1:
        return np.swapaxes(np.flip(x, second), first, second)
    return np.flip(np.swapaxes(x, first, second), second) if k == 3 else x


def resize(x: Any, new_shape: Any) -> Any:
    """Record np.resize: the elements are repeated until the shape is full."""
    shape = (new_shape,) if np.ndim(new_shape) == 0 else tuple(new_shape)
    if not x.size:
        return np.zeros_like(x, shape=shape)
    places = np.arange(int(np.prod(shape))) % max(x.size, 1)
    return np.reshape(np.take(np.reshape(x, -1), places), shape)


def compress(condition: Any, x: Any, axis: Any = None, out: None = None) -> Any:
    """Record np.compress by a condition of plain data."""
    return np.take(x, np.flatnonzero(_static_mask(condition, "np.compress")), axis=axis)


def compress_method(x: Any, condition: Any, axis: Any = None, out: None = None) -> Any:
    """Record x.compress."""
    return compress(condition, x, axis)


def extract(condition: Any, x: Any) -> Any:
    """Record np.extract by a condition of plain data."""
    return np.take(np.reshape(x, -1), np.flatnonzero(_static_mask(condition, "np.extract")))


def _static_mask(mask: Any, name: str) -> Any:
    if isinstance(mask, Tensor):
        if not mask.graph.is_branching_allowed:
            raise TraceError(
                f"{name} by a traced condition at {format_line(user_line())}: the result's shape would depend on "
                "values; use np.where(mask, x, 0), a mask of plain data, or compile=False"
            )
        mask = mask.value
    return np.asarray(mask)


def delete(x: Any, obj: Any, axis: Any = None) -> Any:
    """Record np.delete of static places."""
    x, a = _line(x, axis)
    return np.take(x, np.delete(np.arange(x.shape[a]), obj), axis=a)


def insert(x: Any, obj: Any, values: Any, axis: Any = None) -> Any:
    """Record np.insert at static places; the values may be traced."""
    x, a = _line(as_tensor(x, getattr(values, "graph", None)), axis)
    values = as_tensor(values, x.graph).astype(x.dtype)
    n = x.shape[a]
    if np.ndim(obj) == 0 and not isinstance(obj, slice):
        values = np.moveaxis(values.reshape((1,) * (x.ndim - values.ndim) + values.shape), 0, a)
        obj = [obj] * values.shape[a]
    where = np.arange(n)[obj] if isinstance(obj, slice) else np.where(np.asarray(obj) < 0, np.asarray(obj) + n, obj)
    order = np.insert(np.arange(n), where, n + np.arange(len(where)))
    shape = [len(where) if i == a else m for i, m in enumerate(x.shape)]
    return np.take(np.concatenate([x, np.broadcast_to(values, shape)], axis=a), order, axis=a)


def bincount(x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    """Record np.bincount of plain places with traced weights."""
    if isinstance(x, Tensor):
        raise UnsupportedFunctionError(
            "np.bincount of traced places has a shape that depends on values; only its weights may be traced"
        )
    places = np.asarray(x)
    n = max(int(places.max(initial=-1)) + 1, minlength)
    return scatter_add(weights.astype(np.float64), places, shape=(n,), index=(("array", 0),))
