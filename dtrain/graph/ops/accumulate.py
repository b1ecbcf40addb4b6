# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Running sums, products and extremes along an axis, and the linear recurrence behind the product's derivative."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.ops.reduction import in_dtype, normalize_axes
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record, resolve


def _shape_of(ufunc: np.ufunc) -> Any:
    def shape(x: Any, *, axis: int) -> tuple[Shape, np.dtype[Any]]:
        if x.dtype.kind in "biu":
            return x.shape, ufunc.accumulate(np.zeros(1, x.dtype)).dtype
        return x.shape, resolve(np.positive, x.dtype)

    return shape


def _bind_of(ufunc: np.ufunc) -> Any:
    accumulate: Any = ufunc.accumulate

    def bind(out: np.ndarray, x: np.ndarray, *, axis: int) -> Call:
        return partial(accumulate, x, axis, None, out)

    return bind


def _part(x: Any, axis: int, start: Any, stop: Any) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop),)]


@primitive(shape=_shape_of(np.add), bind=_bind_of(np.add))
def cumsum_(g, out, x, *, axis):
    """np.cumsum along one axis. The gradient sums from the other end."""
    return np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis)


@primitive(shape=_shape_of(np.multiply), bind=_bind_of(np.multiply))
def cumprod_(g, out, x, *, axis):
    """np.cumprod along one axis. The gradient of each factor is the product of those before it times a recurrence
    from the other end, so it is right with zeros and takes linear time."""
    if not x.shape[axis]:
        return g
    one = np.ones_like(_part(x, axis, 0, 1))
    before = np.concatenate([one, _part(out, axis, None, -1)], axis=axis)
    after = np.concatenate([_part(x, axis, 1, None), one], axis=axis)
    return before * np.flip(recurrence(np.flip(after, axis), np.flip(g, axis), axis=axis), axis)


def _recurrence_shape(a: Any, b: Any, *, axis: int) -> tuple[Shape, np.dtype[Any]]:
    if a.shape != b.shape:
        raise ValueError("shapes differ")
    return a.shape, np.promote_types(a.dtype, b.dtype)


def _recurrence_run(out: Any, a: Any, b: Any) -> None:
    np.copyto(out, b)
    for before, here, factor in zip(out[:-1], out[1:], a[1:], strict=True):
        here += before * factor


def _recurrence_bind(out: np.ndarray, a: np.ndarray, b: np.ndarray, *, axis: int) -> Call:
    rows = [np.moveaxis(np.atleast_1d(array), axis, 0)[..., None] for array in (out, a, b)]
    return partial(_recurrence_run, *rows)


@primitive(shape=_recurrence_shape, bind=_recurrence_bind)
def recurrence(g, out, a, b, *, axis):
    """out[i] = b[i] + a[i]·out[i-1] along an axis, beginning with b[0]. Its adjoint is the same from the other end."""
    if not b.shape[axis]:
        return None, g
    nothing = np.zeros_like(_part(a, axis, 0, 1))
    after = np.concatenate([_part(a, axis, 1, None), nothing], axis=axis)
    back = np.flip(recurrence(np.flip(after, axis), np.flip(g, axis), axis=axis), axis)
    before = np.concatenate([nothing, _part(out, axis, None, -1)], axis=axis)
    return back * before, back


@primitive(shape=_shape_of(np.maximum), bind=_bind_of(np.maximum), is_differentiable=False)
def cummax_(g, out, x, *, axis):
    """np.maximum.accumulate; the gradient goes through the gathering of `_running`."""


@primitive(shape=_shape_of(np.minimum), bind=_bind_of(np.minimum), is_differentiable=False)
def cummin_(g, out, x, *, axis):
    """np.minimum.accumulate; the gradient goes through the gathering of `_running`."""


def _along(op: Any, x: Any, axis: Any, dtype: Any) -> Any:
    x = as_tensor(x)
    if dtype is not None:
        x = x.astype(dtype)
    if axis is None:
        x, axis = x.reshape(-1), 0
    elif x.ndim == 0:
        x = x.reshape(1)
    return in_dtype(record(op, (x,), {"axis": normalize_axes(axis, x.ndim)[0]}), dtype)


def cumsum(x: Any, axis: Any = None, dtype: Any = None, out: None = None) -> Any:
    """Record np.cumsum."""
    return _along(cumsum_, x, axis, dtype)


def cumprod(x: Any, axis: Any = None, dtype: Any = None, out: None = None) -> Any:
    """Record np.cumprod."""
    return _along(cumprod_, x, axis, dtype)


def nancumsum(x: Any, axis: Any = None, dtype: Any = None, out: None = None) -> Any:
    """Record np.nancumsum."""
    return cumsum(np.where(np.isnan(x), 0, x), axis, dtype)


def nancumprod(x: Any, axis: Any = None, dtype: Any = None, out: None = None) -> Any:
    """Record np.nancumprod."""
    return cumprod(np.where(np.isnan(x), 1, x), axis, dtype)


def _cumulative(function: Any, first: float) -> Any:
    def run(x: Any, /, *, axis: Any = None, dtype: Any = None, out: None = None, include_initial: bool = False) -> Any:
        if axis is None:
            if x.ndim != 1:
                raise ValueError(f"a running sum or product of shape {x.shape} needs an axis")
            axis = 0
        result = function(x, axis, dtype)
        if not include_initial:
            return result
        (a,) = normalize_axes(axis, result.ndim)
        shape = [1 if i == a else n for i, n in enumerate(result.shape)]
        return np.concatenate([np.full(shape, first, result.dtype), result], axis=a)

    return run


cumulative_sum = _cumulative(cumsum, 0)
cumulative_prod = _cumulative(cumprod, 1)


def of_ufunc(function: Any) -> Any:
    """Make `ufunc.accumulate` of a running reduction: its default axis is 0."""

    def accumulate(x: Any, axis: int = 0, dtype: Any = None, out: None = None) -> Any:
        return function(x, axis, dtype)

    return accumulate


def _running(op: Any) -> Any:
    def accumulate(x: Any, axis: int = 0, dtype: Any = None, out: None = None) -> Any:
        x = as_tensor(x) if dtype is None else as_tensor(x).astype(dtype)
        (a,) = normalize_axes(axis, x.ndim)
        places = np.arange(x.shape[a]).reshape([-1 if i == a else 1 for i in range(x.ndim)])
        found = np.where(x == _along(op, x, a, None), places, 0)
        return np.take_along_axis(x, _along(cummax_, found, a, None), axis=a)

    return accumulate


running_maximum = _running(cummax_)
running_minimum = _running(cummin_)
"""The gradient goes to the last element that reached the extreme (as torch.cummax)."""
