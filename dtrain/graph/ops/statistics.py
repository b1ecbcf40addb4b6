"""Means, variances and what they are made of, and the reductions that skip nan; composed of the reductions.

`axis`, `keepdims` and `where` as in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph.ops.reduction import in_dtype, is_given, masked, normalize_axes
from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Tensor


def _float(x: Any, dtype: Any = None) -> Any:
    x = as_tensor(x)
    if dtype is not None:
        return x.astype(dtype)
    return x.astype(np.float64) if x.dtype.kind in "biu" else x


def _count(x: Tensor, axis: Any, keepdims: bool, where: Any) -> Any:
    """Return how many elements go into each result: an int, or an array of them where there is a mask."""
    if where is not True and is_given(where):
        return np.sum(np.broadcast_to(where, x.shape), axis=axis, keepdims=keepdims)
    n = 1
    for i in normalize_axes(axis, x.ndim):
        n *= x.shape[i]
    return n


def _keeps(keepdims: Any) -> bool:
    return is_given(keepdims) and bool(keepdims)


def mean(
    x: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: Any = False, *, where: Any = True
) -> Any:
    """Record np.mean: the sum divided by the count, as NumPy does it."""
    x, keep = _float(x, dtype), _keeps(keepdims)
    total = np.sum(x, axis=axis, dtype=dtype, keepdims=keep, where=where)
    return in_dtype(_over(total, _count(x, axis, keep, where)), dtype)


def _over(total: Any, count: Any) -> Any:
    """Divide by a count, which has no say in the dtype of floats."""
    if isinstance(count, int):
        return total / count if count else total / 0.0
    return total / (count.astype(total.real.dtype) if total.dtype.kind in "fc" else count)


def var(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = None,
    correction: Any = None,
) -> Any:
    """Record np.var: the mean square of what remains after the mean, in two passes as NumPy."""
    given, x, keep = as_tensor(x), _float(x, dtype), _keeps(keepdims)
    ddof = correction if is_given(correction) else ddof
    x = masked(x, where, 0)  # what is left out, nan say, must not meet its zero gradient
    if is_given(mean):
        centre = (masked(given, where, 0) - mean).astype(x.dtype)
    else:
        centre = x - np.mean(x, axis=axis, keepdims=True, where=where)
    squares = np.square(np.abs(centre) if x.dtype.kind == "c" else centre)
    count = _count(x, axis, keep, where)
    rest = max(count - ddof, 0) if isinstance(count, int) else np.maximum(count - ddof, 0)
    return in_dtype(_over(np.sum(squares, axis=axis, keepdims=keep, where=where), rest), dtype)


def _root(variance: Any, count: Any) -> Any:
    """Return the root, with the gradient 0 where no more than one element was counted."""
    if isinstance(count, int):
        return variance if count == 1 else np.sqrt(variance)
    single = np.logical_and(count == 1, variance == 0)
    return np.where(single, 0, np.sqrt(np.where(single, 1, variance)))


def std(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    **options: Any,
) -> Any:
    """Record np.std. Of one element it is 0, with the gradient 0."""
    x = as_tensor(x)
    found = var(x, axis, dtype, None, ddof, keepdims, **options)
    return in_dtype(_root(found, _count(x, axis, _keeps(keepdims), options.get("where", True))), dtype)


def average(x: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    """Record np.average."""
    keep = _keeps(keepdims)
    x = as_tensor(x, getattr(weights, "graph", None))
    if weights is None:
        result, total = np.mean(x, axis=axis, keepdims=keep), None
    else:
        weights = weights if isinstance(weights, Tensor) else np.asarray(weights)
        if weights.shape != x.shape:
            if axis is None:
                raise ValueError(f"np.average: weights of shape {weights.shape} for {x.shape} need an axis")
            axes = normalize_axes(axis, x.ndim)
            given = [a % x.ndim for a in (axis if isinstance(axis, tuple | list) else (axis,))]
            if weights.shape != tuple([x.shape[a] for a in given]):
                raise ValueError(f"np.average: weights of shape {weights.shape} do not fit axis {axis} of {x.shape}")
            weights = np.transpose(weights, [given.index(a) for a in axes])
            weights = np.reshape(weights, [n if i in axes else 1 for i, n in enumerate(x.shape)])
        total = np.sum(np.broadcast_to(weights, x.shape), axis=axis, keepdims=keep)
        result = np.sum(_float(x) * weights, axis=axis, keepdims=keep) / total
    if not returned:
        return result
    if total is None:
        total = np.full_like(result, x.size / max(result.size, 1))
    return result, in_dtype(total, result.dtype)


def ptp(x: Any, axis: Any = None, out: None = None, keepdims: Any = False) -> Any:
    """Record np.ptp: the range of the values."""
    keep = _keeps(keepdims)
    return np.max(x, axis=axis, keepdims=keep) - np.min(x, axis=axis, keepdims=keep)


def count_nonzero(x: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    """Record np.count_nonzero; no gradient."""
    return np.sum(as_tensor(x) != 0, axis=axis, keepdims=_keeps(keepdims))


def cov(
    m: Any,
    y: Any = None,
    rowvar: bool = True,
    bias: bool = False,
    ddof: Any = None,
    fweights: Any = None,
    aweights: Any = None,
    *,
    dtype: Any = None,
) -> Any:
    """Record np.cov."""
    x: Any = as_tensor(m, getattr(y, "graph", None))
    dtype = dtype or np.result_type(x.dtype, np.float64)
    x = x.astype(dtype)
    x = np.reshape(x, (1, -1)) if x.ndim < 2 else (x if rowvar else np.transpose(x))
    if y is not None:
        other: Any = as_tensor(y, x.graph).astype(dtype)
        other = np.reshape(other, (1, -1)) if other.ndim < 2 else (other if rowvar else np.transpose(other))
        x = np.concatenate([x, other], axis=0)
    ddof = ddof if ddof is not None else 0 if bias else 1
    if fweights is None and aweights is None:
        centre = x - np.mean(x, axis=1, keepdims=True)
        rest = max(x.shape[1] - ddof, 0)
        return np.squeeze(centre @ np.transpose(np.conjugate(centre)) / (float(rest) or np.zeros((), dtype)))
    weights: Any = 1 if fweights is None else as_tensor(fweights, x.graph).astype(np.float64)
    if aweights is not None:
        importance = as_tensor(aweights, x.graph).astype(np.float64)
        weights = importance * weights
    total = np.sum(weights)
    centre = x - np.sum(x * weights, axis=1, keepdims=True) / total
    rest = total - (ddof if aweights is None else ddof * np.sum(weights * importance) / total)
    return np.squeeze(centre @ np.transpose(np.conjugate(centre * weights)) / rest)


def corrcoef(x: Any, y: Any = None, rowvar: bool = True, *, dtype: Any = None) -> Any:
    """Record np.corrcoef."""
    c = cov(x, y, rowvar, dtype=dtype)
    if c.ndim == 0:
        return c / c
    diagonal = np.arange(c.shape[0])
    scale = np.sqrt(c[diagonal, diagonal])
    return np.clip(c / scale[:, None] / scale[None, :], -1, 1)


# -- without nan ------------------------------------------------------------------------------------------------------


def _present(x: Any, where: Any = True) -> Any:
    there = np.logical_not(np.isnan(x))
    return np.logical_and(there, where) if where is not True and is_given(where) else there


def nansum(x: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: Any = False, **options: Any) -> Any:
    """Record np.nansum."""
    return np.sum(np.where(np.isnan(x), 0, x), axis=axis, dtype=dtype, keepdims=_keeps(keepdims), **options)


def nanprod(
    x: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: Any = False, **options: Any
) -> Any:
    """Record np.nanprod."""
    return np.prod(np.where(np.isnan(x), 1, x), axis=axis, dtype=dtype, keepdims=_keeps(keepdims), **options)


def nanmean(
    x: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: Any = False, *, where: Any = True
) -> Any:
    """Record np.nanmean."""
    return mean(x, axis, dtype, None, keepdims, where=_present(x, where))


def nanvar(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    **options: Any,
) -> Any:
    """Record np.nanvar."""
    return var(x, axis, dtype, None, ddof, keepdims, **{**options, "where": _present(x, options.get("where", True))})


def nanstd(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    **options: Any,
) -> Any:
    """Record np.nanstd."""
    return std(x, axis, dtype, None, ddof, keepdims, **{**options, "where": _present(x, options.get("where", True))})


def _nan_extreme(function: Any, fill: float) -> Any:
    def reduce(
        x: Any, axis: Any = None, out: None = None, keepdims: Any = False, initial: Any = None, where: Any = True
    ) -> Any:
        keep = _keeps(keepdims)
        if as_tensor(x).dtype.kind in "biu":
            return function(x, axis=axis, keepdims=keep, initial=initial, where=where)
        found = function(np.where(np.isnan(x), fill, x), axis=axis, keepdims=keep, initial=initial, where=where)
        if is_given(initial):
            return found
        return np.where(np.any(_present(x, where), axis=axis, keepdims=keep), found, np.nan)

    return reduce


nanmax = _nan_extreme(np.max, -np.inf)
nanmin = _nan_extreme(np.min, np.inf)


def nanargmax(x: Any, axis: Any = None, out: None = None, *, keepdims: Any = False) -> Any:
    """Record np.nanargmax."""
    return np.argmax(np.where(np.isnan(x), -np.inf, x), axis=axis, keepdims=_keeps(keepdims))


def nanargmin(x: Any, axis: Any = None, out: None = None, *, keepdims: Any = False) -> Any:
    """Record np.nanargmin."""
    return np.argmin(np.where(np.isnan(x), np.inf, x), axis=axis, keepdims=_keeps(keepdims))
