# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Sorting, ranks, medians and quantiles: the order has no gradient, the values are gathered by it."""

from __future__ import annotations

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
    """Record np.digitize of increasing bins; no gradient."""
    if not isinstance(bins, Tensor) and np.any(np.diff(bins) < 0):
        raise UnsupportedFunctionError(
            "np.digitize of a traced array with decreasing bins is not covered; reverse them"
        )
    return searchsorted(bins, x, "left" if right else "right")


def _to_the_end(x: Any, axis: Any) -> tuple[Any, tuple[int, ...]]:
    """Return x with the axes to be reduced flattened into the last, and the shape that keepdims asks for."""
    x = as_tensor(x)
    axes = normalize_axes(axis, x.ndim)
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = np.reshape(np.transpose(x, (*kept, *axes)), (*[x.shape[i] for i in kept], -1) if x.size else (0,))
    return flat, tuple([1 if i in axes else n for i, n in enumerate(x.shape)])


def median(x: Any, axis: Any = None, out: None = None, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    """Record np.median: of an even number the mean of the middle two, which share the gradient."""
    flat, kept = _to_the_end(x, axis)
    ordered = np.sort(flat, axis=-1)
    n = ordered.shape[-1]
    middle = np.mean(ordered[..., (n - 1) // 2 : n // 2 + 1], axis=-1)
    last = ordered[..., -1]
    middle = np.where(np.isnan(last), np.nan, middle)
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


_METHODS = {"linear", "lower", "higher", "nearest", "midpoint"}


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
    """Record np.quantile at static q, by the methods linear, lower, higher, nearest and midpoint."""
    if isinstance(q, Tensor) or weights is not None or method not in _METHODS:
        raise UnsupportedFunctionError(
            f"np.quantile is covered for constant q without weights, by the methods {', '.join(sorted(_METHODS))}"
        )
    flat, kept = _to_the_end(x, axis)
    q = np.asarray(q, flat.dtype if isinstance(q, int | float) and flat.dtype.kind == "f" else None)
    ordered = np.sort(flat, axis=-1)
    place = q.reshape(-1) * (ordered.shape[-1] - 1)
    low, high = np.floor(place), np.ceil(place)
    if method == "lower":
        place = high = low
    elif method == "higher":
        place = low = high
    elif method == "nearest":
        place = low = high = np.rint(place)
    elif method == "midpoint":
        place = (low + high) / 2
    a, b = np.take(ordered, low.astype(int), axis=-1), np.take(ordered, high.astype(int), axis=-1)
    t = place - low
    values = np.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))
    values = np.where(np.isnan(ordered[..., -1:]), np.nan, values)
    values = np.moveaxis(values, -1, 0)
    shape = kept if is_given(keepdims) and keepdims else values.shape[1:]
    return np.reshape(values, q.shape + shape)


def percentile(x: Any, q: Any, *args: Any, **options: Any) -> Any:
    """Record np.percentile at static q; see `quantile`."""
    if isinstance(x, Tensor) and not isinstance(q, Tensor):
        q = np.true_divide(q, x.dtype.type(100) if x.dtype.kind == "f" else 100)
    return quantile(x, q, *args, **options)
