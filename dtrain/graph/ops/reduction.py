# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Reductions: sums, products, extremes and their places; means are in `statistics.py`.

An axis is an int, a tuple of ints or None; `keepdims` as in NumPy. Sums run in NumPy's own order, so the planned
result has NumPy's bits.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record
from dtrain.graph.tensor import Tensor

Axes = tuple[int, ...]


def normalize_axes(axis: Any, ndim: int) -> Axes:
    """Return the axes as sorted non-negative ints; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    result = []
    for a in axes:
        a = int(a)
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of bounds for {ndim} dimensions")
        result.append(a % ndim)
    if len(set(result)) != len(result):
        raise ValueError(f"axis {axis} names one axis twice")
    return tuple(sorted(result))


def reduced_shape(shape: Shape, axes: Axes, keepdims: bool) -> Shape:
    if keepdims:
        return tuple([1 if i in axes else n for i, n in enumerate(shape)])
    return tuple([n for i, n in enumerate(shape) if i not in axes])


@cache
def _sum_dtype(ufunc: np.ufunc, dtype: np.dtype[Any]) -> np.dtype[Any]:
    result: np.dtype[Any] = ufunc.reduce(np.zeros(1, dtype)).dtype
    return result


def _rule_shape(ufunc: np.ufunc) -> Any:
    def shape(x: Any, *, axis: Axes, keepdims: bool) -> tuple[Shape, np.dtype[Any]]:
        return reduced_shape(x.shape, axis, keepdims), _sum_dtype(ufunc, x.dtype)

    return shape


def _rule_bind(ufunc: np.ufunc) -> Any:
    reduce: Any = ufunc.reduce

    def bind(out: np.ndarray, x: np.ndarray, *, axis: Axes, keepdims: bool) -> Call:
        return partial(reduce, x, axis[0] if len(axis) == 1 else axis, None, out, keepdims)

    return bind


def _spread(g: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
    """Give a reduced gradient the axes back that were reduced (of length 1)."""
    return g if keepdims else np.reshape(g, reduced_shape(x.shape, axis, True))


@primitive(shape=_rule_shape(np.add), bind=_rule_bind(np.add))
def sum_(g, out, x, *, axis, keepdims):
    """np.add.reduce. The gradient is broadcast back."""
    return np.broadcast_to(_spread(g, x, axis, keepdims), x.shape)


def _extreme(g: Any, out: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
    hit = x == _spread(out, x, axis, keepdims)
    count = np.sum(hit, axis=axis, keepdims=True).astype(x.dtype)
    return np.where(hit, _spread(g, x, axis, keepdims) / count, 0.0)


@primitive(shape=_rule_shape(np.maximum), bind=_rule_bind(np.maximum))
def max_(g, out, x, *, axis, keepdims):
    """np.maximum.reduce. Ties share the gradient equally (as torch.amax and JAX)."""
    return _extreme(g, out, x, axis, keepdims)


@primitive(shape=_rule_shape(np.minimum), bind=_rule_bind(np.minimum))
def min_(g, out, x, *, axis, keepdims):
    """np.minimum.reduce. Ties share the gradient equally."""
    return _extreme(g, out, x, axis, keepdims)


@primitive(shape=_rule_shape(np.multiply), bind=_rule_bind(np.multiply))
def prod_(g, out, x, *, axis, keepdims):
    """np.multiply.reduce. The gradient is right with one or more zeros too: each factor is replaced by 1 in turn."""
    kept = tuple([i for i in range(x.ndim) if i not in axis])
    size = 1
    for i in axis:
        size *= x.shape[i]
    flat = np.reshape(np.transpose(x, kept + axis), (*[x.shape[i] for i in kept], 1, size))
    others = np.prod(np.where(np.eye(size, dtype=bool), 1.0, flat), axis=-1)
    back = np.reshape(others, [x.shape[i] for i in kept + axis])
    inverse = np.argsort(kept + axis).tolist()
    return _spread(g, x, axis, keepdims) * np.transpose(back, inverse)


@primitive(shape=_rule_shape(np.logical_and), bind=_rule_bind(np.logical_and), is_differentiable=False)
def all_(g, out, x, *, axis, keepdims):
    """np.all."""


@primitive(shape=_rule_shape(np.logical_or), bind=_rule_bind(np.logical_or), is_differentiable=False)
def any_(g, out, x, *, axis, keepdims):
    """np.any."""


def _index_shape(x: Any, *, axis: int) -> tuple[Shape, np.dtype[Any]]:
    return reduced_shape(x.shape, (axis,), False), np.dtype(np.intp)


def _argmax_bind(out: np.ndarray, x: np.ndarray, *, axis: int) -> Call:
    return partial(np.argmax, x, axis, out)


def _argmin_bind(out: np.ndarray, x: np.ndarray, *, axis: int) -> Call:
    return partial(np.argmin, x, axis, out)


@primitive(shape=_index_shape, bind=_argmax_bind, is_differentiable=False)
def argmax_(g, out, x, *, axis):
    """np.argmax along one axis; no gradient."""


@primitive(shape=_index_shape, bind=_argmin_bind, is_differentiable=False)
def argmin_(g, out, x, *, axis):
    """np.argmin along one axis; no gradient."""


def _reduce(op: Any, x: Any, axis: Any, keepdims: Any) -> Any:
    x = as_tensor(x)
    return record(op, (x,), {"axis": normalize_axes(axis, x.ndim), "keepdims": is_given(keepdims) and bool(keepdims)})


def is_given(option: Any) -> bool:
    """Whether an optional argument was given: neither None nor NumPy's own stand-in for nothing."""
    return option is not None and option is not np._NoValue


def masked(x: Any, where: Any, fill: Any) -> Any:
    """Return x with `fill` where the mask of a reduction is False."""
    return x if where is True or not is_given(where) else np.where(where, x, fill)


def in_dtype(x: Any, dtype: Any) -> Any:
    """Return the result of a reduction in the dtype that was asked for; None asks for none.

    Sums of small integers come in the widest ones: cut to the dtype they are what summing in it gives.
    """
    return x if dtype is None or x.dtype == dtype else x.astype(dtype)


def sum(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    keepdims: Any = False,
    initial: Any = None,
    where: Any = True,
) -> Any:
    """Record np.sum."""
    x = as_tensor(x)
    if dtype is not None:
        x = x.astype(dtype)
    result = _reduce(sum_, masked(x, where, 0), axis, keepdims)
    return in_dtype(result + initial if is_given(initial) else result, dtype)


def prod(
    x: Any,
    axis: Any = None,
    dtype: Any = None,
    out: None = None,
    keepdims: Any = False,
    initial: Any = None,
    where: Any = True,
) -> Any:
    """Record np.prod."""
    x = as_tensor(x)
    if dtype is not None:
        x = x.astype(dtype)
    result = _reduce(prod_, masked(x, where, 1), axis, keepdims)
    return in_dtype(result * initial if is_given(initial) else result, dtype)


def _extreme_of(op: Any, ufunc: np.ufunc, x: Any, axis: Any, keepdims: Any, initial: Any, where: Any) -> Any:
    x = as_tensor(x)
    if not is_given(initial):
        if where is not True and is_given(where):
            raise ValueError(f"np.{ufunc.__name__}.reduce with where= needs initial=, the result where all are masked")
        return _reduce(op, x, axis, keepdims)
    axes = normalize_axes(axis, x.ndim)
    if 0 in [x.shape[a] for a in axes]:
        return np.full_like(np.sum(x, axis=axes, keepdims=keepdims is True), initial, dtype=x.dtype)
    return ufunc(_reduce(op, masked(x, where, initial), axis, keepdims), initial)


def max(
    x: Any, axis: Any = None, out: None = None, keepdims: Any = False, initial: Any = None, where: Any = True
) -> Any:
    """Record np.max."""
    return _extreme_of(max_, np.maximum, x, axis, keepdims, initial, where)


def min(
    x: Any, axis: Any = None, out: None = None, keepdims: Any = False, initial: Any = None, where: Any = True
) -> Any:
    """Record np.min."""
    return _extreme_of(min_, np.minimum, x, axis, keepdims, initial, where)


def all(x: Any, axis: Any = None, out: None = None, keepdims: Any = False, where: Any = True) -> Any:
    """Record np.all."""
    return _reduce(all_, masked(x, where, True), axis, keepdims)


def any(x: Any, axis: Any = None, out: None = None, keepdims: Any = False, where: Any = True) -> Any:
    """Record np.any."""
    return _reduce(any_, masked(x, where, False), axis, keepdims)


def of_ufunc(function: Any) -> Any:
    """Make `ufunc.reduce` of a reduction: its default axis is 0."""

    def reduce(
        x: Any, axis: Any = 0, dtype: Any = None, out: None = None, keepdims: Any = False, **options: Any
    ) -> Any:
        if dtype is not None:
            options["dtype"] = dtype
        return function(x, axis=axis, keepdims=keepdims, **options)

    return reduce


def _arg(op: Any, x: Any, axis: Any, keepdims: Any) -> Any:
    x = as_tensor(x)
    if axis is None:
        result = record(op, (np.reshape(x, -1),), {"axis": 0})
        return np.reshape(result, (1,) * x.ndim) if is_given(keepdims) and keepdims else result
    (a,) = normalize_axes(axis, x.ndim)
    result = record(op, (x,), {"axis": a})
    return np.expand_dims(result, a) if is_given(keepdims) and keepdims else result


def argmax(x: Any, axis: Any = None, out: None = None, *, keepdims: Any = False) -> Any:
    """Record np.argmax."""
    return _arg(argmax_, x, axis, keepdims)


def argmin(x: Any, axis: Any = None, out: None = None, *, keepdims: Any = False) -> Any:
    """Record np.argmin."""
    return _arg(argmin_, x, axis, keepdims)


def softmax(x: Any, axis: Any = None) -> Any:
    """Return e^x / Σ e^x over the axes (as scipy.special.softmax: over all by default), without overflow."""
    return np.exp(log_softmax(x, axis))


def log_softmax(x: Any, axis: Any = None) -> Any:
    """Return the logarithm of the softmax, without overflow; of traced and of plain arrays."""
    return x - logsumexp(x, axis, keepdims=True)


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Return log(Σ e^x) over the axes without overflow; of traced and of plain arrays.

    A row of -inf gives -inf. The gradient is the softmax of x.
    """
    if not isinstance(x, Tensor):
        x = np.asarray(x)
    from dtrain.graph.ops.shape import stop_gradient

    top = stop_gradient(np.max(x, axis=axis, keepdims=True))
    top = np.where(np.isfinite(top), top, 0.0)
    result = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    if keepdims:
        return result
    axes = normalize_axes(axis, x.ndim)
    return np.squeeze(result, axis=axes)
