# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Sorting, ranks, medians and quantiles: the order has no gradient, the values are gathered by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.reduction import is_given, normalize_axes
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record
from dtrain.graph.tensor import Tensor


def _order_shape(x: Any, **static: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, np.dtype(np.intp)


def _argsort_bind(out: np.ndarray, x: np.ndarray, *, axis: int, kind: str) -> Call:
    return lambda: np.copyto(out, np.argsort(x, axis, kind))  # type: ignore[arg-type]


@primitive(shape=_order_shape, bind=_argsort_bind, is_differentiable=False)
def argsort_(g, out, x, *, axis, kind):
    """np.argsort along one axis; no gradient."""


def _argpartition_bind(out: np.ndarray, x: np.ndarray, *, axis: int, kth: tuple[int, ...]) -> Call:
    return lambda: np.copyto(out, np.argpartition(x, kth, axis))


@primitive(shape=_order_shape, bind=_argpartition_bind, is_differentiable=False)
def argpartition_(g, out, x, *, axis, kth):
    """np.argpartition along one axis; no gradient."""


def _place_shape(x: Any, v: Any, *, side: str) -> tuple[Shape, np.dtype[Any]]:
    return v.shape, np.dtype(np.intp)


def _place_bind(out: np.ndarray, x: np.ndarray, v: np.ndarray, *, side: str) -> Call:
    return lambda: np.copyto(out, np.searchsorted(x, v, side))  # type: ignore[call-overload]


@primitive(shape=_place_shape, bind=_place_bind, is_differentiable=False)
def searchsorted_(g, out, x, v, *, side):
    """np.searchsorted: where v belongs in the sorted x; no gradient."""


def _line(x: Any, axis: Any) -> tuple[Any, int]:
    x = as_tensor(x)
    if axis is None:
        return np.reshape(x, -1), 0
    return x, normalize_axes(axis, x.ndim)[0]


def argsort(x: Any, axis: Any = -1, kind: Any = None, order: None = None, *, stable: Any = None) -> Any:
    """Record np.argsort; no gradient."""
    x, a = _line(x, axis)
    return record(argsort_, (x,), {"axis": a, "kind": "stable" if stable else kind or "quicksort"})


def sort(x: Any, axis: Any = -1, kind: Any = None, order: None = None, *, stable: Any = None) -> Any:
    """Record np.sort; each gradient goes back to where its element came from."""
    x, a = _line(x, axis)
    return np.take_along_axis(x, argsort(x, a, kind, stable=stable), axis=a)


def argpartition(x: Any, kth: Any, axis: Any = -1, kind: str = "introselect", order: None = None) -> Any:
    """Record np.argpartition; no gradient."""
    x, a = _line(x, axis)
    return record(argpartition_, (x,), {"axis": a, "kth": tuple(np.atleast_1d(kth).tolist())})


def partition(x: Any, kth: Any, axis: Any = -1, kind: str = "introselect", order: None = None) -> Any:
    """Record np.partition; each gradient goes back to where its element came from."""
    x, a = _line(x, axis)
    return np.take_along_axis(x, argpartition(x, kth, a), axis=a)


def searchsorted(x: Any, v: Any, side: str = "left", sorter: Any = None) -> Any:
    """Record np.searchsorted; no gradient."""
    if sorter is not None:
        x = np.take(x, sorter)
    return record(searchsorted_, (x, v), {"side": side})


def digitize(x: Any, bins: Any, right: bool = False) -> Any:
    """Record np.digitize; no gradient."""
    rising = searchsorted(bins, x, "left" if right else "right")
    if not np.size(bins) or (not isinstance(bins, Tensor) and not np.any(np.diff(bins) < 0)):
        return rising
    falling = np.size(bins) - searchsorted(np.flip(bins), x, "right" if right else "left")
    return np.where(bins[0] > bins[-1], falling, rising)


def _to_the_end(x: Any, axis: Any) -> tuple[Any, tuple[int, ...]]:
    """Return x with the axes to be reduced flattened into the last, and the shape that keepdims asks for."""
    x = as_tensor(x)
    axes = normalize_axes(axis, x.ndim)
    kept = [i for i in range(x.ndim) if i not in axes]
    count = math.prod([x.shape[i] for i in axes])
    flat = np.reshape(np.transpose(x, (*kept, *axes)), (*[x.shape[i] for i in kept], count))
    return flat, tuple([1 if i in axes else n for i, n in enumerate(x.shape)])


def median(x: Any, axis: Any = None, out: None = None, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    """Record np.median: of an even number the mean of the middle two, which share the gradient."""
    flat, kept = _to_the_end(x, axis)
    ordered = np.sort(flat, axis=-1)
    n = ordered.shape[-1]
    middle = np.mean(ordered[..., max(n - 1, 0) // 2 : n // 2 + 1], axis=-1)
    if n:
        middle = np.where(np.isnan(ordered[..., -1]), np.nan, middle)
    return np.reshape(middle, kept) if is_given(keepdims) and keepdims else middle


def nanmedian(x: Any, axis: Any = None, out: None = None, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    """Record np.nanmedian."""
    flat, kept = _to_the_end(x, axis)
    ordered = np.sort(flat, axis=-1)  # nan comes last
    n = np.sum(np.logical_not(np.isnan(flat)), axis=-1, keepdims=True)
    last = flat.shape[-1] - 1
    low = np.take_along_axis(ordered, np.maximum((n - 1) // 2, 0), axis=-1)
    high = np.take_along_axis(ordered, np.minimum(n // 2, last), axis=-1)
    middle = ((low + high) * 0.5)[..., 0]
    return np.reshape(middle, kept) if is_given(keepdims) and keepdims else middle


_CONTINUOUS = {
    "interpolated_inverted_cdf": (0.0, 1.0),
    "hazen": (0.5, 0.5),
    "weibull": (0.0, 0.0),
    "linear": (1.0, 1.0),
    "median_unbiased": (1 / 3, 1 / 3),
    "normal_unbiased": (3 / 8, 3 / 8),
}
"""The two parameters of the methods that interpolate (Hyndman and Fan, Sample quantiles in statistical packages)."""
_DISCRETE = {"inverted_cdf", "closest_observation", "lower", "higher", "nearest"}


def _place(n: Any, q: Any, method: str) -> tuple[Any, Any]:
    """Return the rank of the quantile among n values, rounded down, and how far it lies towards the next."""
    if method in _CONTINUOUS:
        alpha, beta = _CONTINUOUS[method]
        rank = (n - 1) * q if method == "linear" else n * q + (alpha + q * (1 - alpha - beta)) - 1
    elif method in ("lower", "higher", "nearest", "midpoint"):
        rank = (n - 1) * q
    else:
        rank = n * q - (1.5 if method == "closest_observation" else 1.0)
    low = np.floor(rank)
    part = rank - low
    if method == "midpoint":
        part = np.ceil(part) / 2
    elif method in ("lower", "higher", "inverted_cdf"):
        low, part = (low if method == "lower" else np.ceil(rank)), 0.0 * part
    elif method == "nearest":
        low, part = np.rint(rank), 0.0 * part
    elif method == "averaged_inverted_cdf":
        part = (np.ceil(part) + 1) / 2
    elif method == "closest_observation":
        is_even = np.logical_and(part == 0, low % 2 == 1)
        low, part = np.where(is_even, low, low + 1), 0.0 * part
    return low, part


def _quantile(ordered: Any, n: Any, q: Any, method: str) -> Any:
    """Return the quantiles q (k,) of the first n of the sorted (..., m), as (..., k)."""
    low, part = _place(n, q, method)
    is_one_size = isinstance(n, int)
    last = n - 1 if is_one_size else np.maximum(n - 1, 0)
    places = [np.clip(at, 0, last).astype(np.intp) for at in (low, low + 1)]
    a, b = (np.take(ordered, at, axis=-1) if is_one_size else np.take_along_axis(ordered, at, axis=-1) for at in places)
    if method in _DISCRETE:
        return a
    part = np.where(low < 0, 0.0, part)
    return np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))


def _quantiles(x: Any, q: Any, axis: Any, keepdims: Any, method: str, weights: Any, skips_nan: bool) -> Any:
    if weights is not None or method not in {*_CONTINUOUS, *_DISCRETE, "midpoint", "averaged_inverted_cdf"}:
        raise UnsupportedFunctionError("np.quantile is covered without weights, by the methods that NumPy has")
    x = as_tensor(x, getattr(q, "graph", None))
    flat, kept = _to_the_end(x, axis)
    if not isinstance(q, Tensor):
        q = np.asarray(q, flat.dtype if isinstance(q, int | float) and flat.dtype.kind == "f" else None)
        if q.size and not (q.min() >= 0 and q.max() <= 1):
            raise ValueError("np.quantile: q lies between 0 and 1, of np.percentile between 0 and 100")
    ordered = np.sort(flat, axis=-1)  # nan comes last
    count = ordered.shape[-1]
    if not count:
        raise ValueError(f"np.quantile of no values: shape {x.shape}")
    n: Any = count
    if skips_nan and flat.dtype.kind in "fc":
        n = np.sum(np.logical_not(np.isnan(flat)), axis=-1, keepdims=True)
        n = n.astype(q.dtype) if q.dtype.kind == "f" else n
    values = _quantile(ordered, n, np.reshape(q, -1), method)
    if not skips_nan and flat.dtype.kind in "fc":
        values = np.where(np.isnan(ordered[..., -1:]), np.nan, values)
    values = np.moveaxis(values, -1, 0)
    return np.reshape(values, q.shape + (kept if is_given(keepdims) and keepdims else values.shape[1:]))


def quantile(
    x: Any,
    q: Any,
    axis: Any = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: Any = False,
    *,
    weights: Any = None,
) -> Any:
    """Record np.quantile by any of NumPy's methods, without weights; q may be traced."""
    return _quantiles(x, q, axis, keepdims, method, weights, False)


def nanquantile(
    x: Any,
    q: Any,
    axis: Any = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: Any = False,
    *,
    weights: Any = None,
) -> Any:
    """Record np.nanquantile; see `quantile`."""
    return _quantiles(x, q, axis, keepdims, method, weights, True)


def _hundredth(x: Any, q: Any) -> Any:
    if isinstance(x, Tensor) and not isinstance(q, Tensor):
        return np.true_divide(q, x.dtype.type(100) if x.dtype.kind == "f" else 100)
    return q / 100


def percentile(x: Any, q: Any, *args: Any, **options: Any) -> Any:
    """Record np.percentile; see `quantile`."""
    return quantile(x, _hundredth(x, q), *args, **options)


def nanpercentile(x: Any, q: Any, *args: Any, **options: Any) -> Any:
    """Record np.nanpercentile; see `quantile`."""
    return nanquantile(x, _hundredth(x, q), *args, **options)


def sort_complex(x: Any) -> Any:
    """Record np.sort_complex, of small integers in single precision as NumPy."""
    x = np.sort(x)
    return x if x.dtype.kind == "c" else x.astype(np.complex64 if x.dtype.char in "bhBH" else np.complex128)


def lexsort(keys: Any, axis: int = -1) -> Any:
    """Record np.lexsort; the last key counts first; no gradient."""
    first, *others = list(keys)
    found = argsort(first, axis, stable=True)
    for key in others:
        again = argsort(np.take_along_axis(key, found, axis=axis), axis, stable=True)
        found = np.take_along_axis(found, again, axis=axis)
    return found
