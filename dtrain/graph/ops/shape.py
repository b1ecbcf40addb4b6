# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Shape primitives: views where NumPy has views, copies where it must copy.

A view primitive owns no buffer; `view` raises ValueError where a layout does not allow it, and the plan then copies
first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record
from dtrain.graph.tensor import Tensor


def _is_same(x: np.ndarray) -> np.ndarray:
    return x


@primitive(view=_is_same)
def alias(g, out, x):
    """The same array under another node: what a nested derivative is taken with respect to, so that levels never
    mix."""
    return g


@primitive(view=_is_same, is_differentiable=False)
def stop(g, out, x):
    """The same array, held constant by the reverse sweep."""


def stop_gradient(x: Any) -> Any:
    """Return x as a constant of the derivative; a plain array is returned as it is."""
    return stop(x) if isinstance(x, Tensor) else x


def _reshape(x: np.ndarray, *, shape: Shape) -> np.ndarray:
    return x.reshape(shape, copy=False)


@primitive(view=_reshape, name="reshape")
def reshape_(g, out, x, *, shape):
    """np.reshape in C order."""
    return np.reshape(g, x.shape)


def _transpose(x: np.ndarray, *, axes: Shape) -> np.ndarray:
    return x.transpose(axes)


@primitive(view=_transpose, name="transpose")
def transpose_(g, out, x, *, axes):
    """np.transpose."""
    inverse = [0] * len(axes)
    for i, a in enumerate(axes):
        inverse[a] = i
    return np.transpose(g, inverse)


def _broadcast(x: np.ndarray, *, shape: Shape) -> np.ndarray:
    return np.broadcast_to(x, shape)


@primitive(view=_broadcast, name="broadcast_to")
def broadcast_(g, out, x, *, shape):
    """np.broadcast_to; its gradient is summed where broadcasting is undone."""
    return g


def _cast_shape(x: Any, *, dtype: np.dtype[Any]) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, dtype


def _cast_bind(out: np.ndarray, x: np.ndarray, **static: Any) -> Call:
    return partial(np.copyto, out, x, "unsafe")


@primitive(shape=_cast_shape, bind=_cast_bind)
def cast(g, out, x, *, dtype):
    """astype. The gradient takes the input's dtype where broadcasting is undone."""
    return g


def _copy_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, x.dtype


@primitive(shape=_copy_shape, bind=_cast_bind)
def copy_(g, out, x):
    """np.copy, C-contiguous."""
    return g


def _join_shape(*parts: Any, axis: int) -> tuple[Shape, np.dtype[Any]]:
    first = parts[0].shape
    total = 0
    for part in parts:
        if (
            len(part.shape) != len(first)
            or part.shape[:axis] != first[:axis]
            or part.shape[axis + 1 :] != first[axis + 1 :]
        ):
            raise ValueError("shapes differ off the axis")
        total += part.shape[axis]
    return (*first[:axis], total, *first[axis + 1 :]), np.result_type(*[part.dtype for part in parts])


def _join_bind(out: np.ndarray, *parts: np.ndarray, axis: int) -> Call:
    return partial(np.concatenate, parts, axis, out)


def _join_expects(*parts: Any, axis: int) -> str:
    return f"shapes equal except along axis {axis}"


@primitive(shape=_join_shape, bind=_join_bind, name="concatenate", expects=_join_expects)
def join(g, out, *parts, axis):
    """np.concatenate. Each part's gradient is a slice of g."""
    result = []
    start = 0
    for part in parts:
        stop = start + part.shape[axis]
        result.append(g[(slice(None),) * axis + (slice(start, stop),)])
        start = stop
    return tuple(result)


# -- the NumPy functions composed of them
# ---------------------------------------------------------------------------------------


def astype(x: Any, dtype: Any, **options: Any) -> Any:
    """Record ndarray.astype; the same dtype records nothing."""
    x = as_tensor(x)
    dtype = np.dtype(dtype)
    if x.dtype == dtype and not x.weak:
        return x
    if x.dtype.kind == "c" and dtype.kind != "c":
        x = np.real(x)
    node = record(cast, (x,), {"dtype": dtype})
    node.weak = False
    return node


def in_dtype_of(x: Tensor, value: Any) -> Tensor:
    """Return a value, traced or not, as a tensor of the dtype of x."""
    if not isinstance(value, Tensor):
        return x.graph.constant(value, x.dtype)
    result: Tensor = astype(value, x.dtype)
    return result


def copy(x: Any, *args: Any, **options: Any) -> Any:
    """Record np.copy."""
    return copy_(as_tensor(x))


def _as_shape(shape: Any) -> tuple[int, ...]:
    return (int(shape),) if np.ndim(shape) == 0 else tuple([int(n) for n in shape])


def reshape(x: Any, *sizes: Any, shape: Any = None, order: str = "C", copy: Any = None) -> Any:
    """Record np.reshape(x, shape) and x.reshape(2, -1), in C order or, by way of the transpose, in Fortran's."""
    x = as_tensor(x)
    if sizes and isinstance(sizes[-1], str):  # np.reshape(x, shape, "F")
        *sizes, order = sizes  # type: ignore[assignment]
    if shape is None:
        shape = sizes[0] if len(sizes) == 1 or isinstance(sizes[0], tuple | list) else sizes
    wanted = _as_shape(shape)
    if order == "F":
        return transpose(reshape(transpose(x), wanted[::-1]))
    if order != "C":
        raise ValueError(f"a traced array has no order in memory; reshape it in the order C or F, not {order!r}")
    if -1 in wanted:
        known = 1
        for n in wanted:
            known *= n if n != -1 else 1
        if known and x.size % known == 0:
            wanted = tuple([n if n != -1 else x.size // known for n in wanted])
    if wanted == x.shape:
        return x
    return record(reshape_, (x,), {"shape": wanted})


def ravel(x: Any, order: str = "C") -> Any:
    """Record np.ravel and ndarray.flatten."""
    return reshape(x, (-1,), order=order)


def transpose(x: Any, *args: Any, axes: Any = None) -> Any:
    """Record np.transpose(x, axes), x.transpose(1, 0) and x.T."""
    x = as_tensor(x)
    order: Any = args or axes
    if len(args) == 1 and (args[0] is None or np.ndim(args[0])):
        order = args[0]
    if order is None:
        order = range(x.ndim)[::-1]
    order = tuple([int(a) % x.ndim for a in order])
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {order} are not each of the {x.ndim} axes of shape {x.shape} once")
    if order == tuple(range(x.ndim)):
        return x
    return record(transpose_, (x,), {"axes": order})


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """Record np.swapaxes."""
    order = list(range(as_tensor(x).ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return transpose(x, order)


def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """Record np.moveaxis."""
    x = as_tensor(x)
    sources = [a % x.ndim for a in _as_shape(source)]
    targets = [a % x.ndim for a in _as_shape(destination)]
    order = [a for a in range(x.ndim) if a not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return transpose(x, order)


def expand_dims(x: Any, axis: Any) -> Any:
    """Record np.expand_dims."""
    x = as_tensor(x)
    axes = _as_shape(axis)
    ndim = x.ndim + len(axes)
    axes = tuple([a % ndim for a in axes])
    rest = iter(x.shape)
    return reshape(x, tuple([1 if i in axes else next(rest) for i in range(ndim)]))


def squeeze(x: Any, axis: Any = None) -> Any:
    """Record np.squeeze."""
    x = as_tensor(x)
    if axis is None:
        return reshape(x, tuple([n for n in x.shape if n != 1]))
    axes = [a % x.ndim for a in _as_shape(axis)]
    for a in axes:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: axis {a} of shape {x.shape} has length {x.shape[a]}, not 1")
    return reshape(x, tuple([n for i, n in enumerate(x.shape) if i not in axes]))


def broadcast_to(x: Any, shape: Any) -> Any:
    """Record np.broadcast_to."""
    x = as_tensor(x)
    wanted = _as_shape(shape)
    return x if wanted == x.shape else record(broadcast_, (x,), {"shape": wanted})


def concatenate(arrays: Any, axis: Any = 0, out: None = None, **options: Any) -> Any:
    """Record np.concatenate."""
    arrays = list(arrays)
    graph = next((a.graph for a in arrays if isinstance(a, Tensor)), None)
    parts = [as_tensor(a, graph) for a in arrays]
    if options.get("dtype") is not None:
        dtype: Any = np.dtype(options["dtype"])
        casting: Any = options.get("casting") or "same_kind"
        for p in parts:
            if not np.can_cast(p.dtype, dtype, casting):
                raise TypeError(f"np.concatenate: {p.dtype} to {dtype} is not allowed by casting={casting!r}")
        parts = [p.astype(dtype) for p in parts]
    if axis is None:
        parts, axis = [ravel(p) for p in parts], 0
    return record(join, parts, {"axis": int(axis) % max(parts[0].ndim, 1)})


def _like(fill: float) -> Any:
    def make(x: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None, **more: Any) -> Any:
        x = as_tensor(x)
        constant = x.graph.constant(np.asarray(fill, dtype or x.dtype)[()])
        return broadcast_to(constant, x.shape if shape is None else shape)

    return make


zeros_like = _like(0.0)
ones_like = _like(1.0)


def full_like(
    x: Any, fill_value: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None, **more: Any
) -> Any:
    """Record np.full_like; the fill value may be traced."""
    x = as_tensor(x, getattr(fill_value, "graph", None))
    shape = x.shape if shape is None else shape
    if isinstance(fill_value, Tensor):
        return broadcast_to(astype(fill_value, dtype or x.dtype), shape)
    return broadcast_to(x.graph.constant(np.asarray(fill_value, dtype or x.dtype)), shape)


def matrix_transpose(x: Any) -> Any:
    """Record x.mT and np.matrix_transpose."""
    return swapaxes(x, -1, -2)


def rollaxis(x: Any, axis: int, start: int = 0) -> Any:
    """Record np.rollaxis."""
    axis, start = axis % x.ndim, start + x.ndim if start < 0 else start
    return moveaxis(x, axis, start - 1 if axis < start else start)


def broadcast_arrays(*arrays: Any, subok: bool = False) -> Any:
    """Record np.broadcast_arrays."""
    wanted = np.broadcast_shapes(*[np.shape(a) for a in arrays])
    graph = next((a.graph for a in arrays if isinstance(a, Tensor)), None)
    return tuple([broadcast_to(as_tensor(a, graph), wanted) for a in arrays])
