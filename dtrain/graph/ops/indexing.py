# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Indexing: basic indices are views, integer arrays gather, and the gradient of either puts g back into zeros.

A static index is a hashable template: ("slice", start, stop, step), an int, None, "...", or ("array", i) for the i-th
index input.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, prototype, record
from dtrain.graph.tensor import Tensor, format_line, user_line

Template = tuple[Any, ...]


def real_index(template: Template, arrays: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    index: list[Any] = []
    for item in template:
        if isinstance(item, tuple):
            index.append(slice(*item[1:]) if item[0] == "slice" else arrays[item[1]])
        else:
            index.append(Ellipsis if item == "..." else item)
    return tuple(index)


def _basic_index(template: Template) -> tuple[Any, ...]:
    """Return the index with an ellipsis, so that a single element is a 0-d view and not a scalar."""
    index = real_index(template)
    return index if "..." in template else (*index, ...)


def _slice_view(x: np.ndarray, *, index: Template) -> np.ndarray:
    shown: np.ndarray = x[_basic_index(index)]
    return shown


@primitive(view=_slice_view, name="slice")
def slice_(g, out, x, *, index):
    """Basic indexing, a view."""
    return embed(g, shape=x.shape, index=index)


def _embed_shape(g: Any, *, shape: Shape, index: Template) -> tuple[Shape, np.dtype[Any]]:
    return shape, g.dtype


def _embed_run(out: np.ndarray, part: np.ndarray, g: np.ndarray) -> None:
    out.fill(0)
    np.copyto(part, g)


def _embed_bind(out: np.ndarray, g: np.ndarray, *, shape: Shape, index: Template) -> Call:
    return partial(_embed_run, out, out[_basic_index(index)], g)


@primitive(shape=_embed_shape, bind=_embed_bind)
def embed(g, out, x, *, shape, index):
    """Zeros of `shape` with x at a basic index: the adjoint of slicing."""
    return slice_(g, index=index)


def _gather_shape(x: Any, *arrays: Any, index: Template) -> tuple[Shape, np.dtype[Any]]:
    # NumPy itself says which shape an index has: ask it about arrays without memory.
    probe = prototype(x.shape, x.dtype) if x.size else np.empty(x.shape, x.dtype)
    zeros = tuple([np.broadcast_to(np.intp(0), a.shape) for a in arrays])
    if all(item[0] == "array" for item in index if isinstance(item, tuple)) and len(index) == len(arrays) and x.size:
        return np.broadcast_shapes(*[a.shape for a in arrays]) + x.shape[len(arrays) :], x.dtype
    unit = np.broadcast_to(np.zeros((), np.uint8), probe.shape)
    return unit[real_index(index, zeros)].shape, x.dtype


def _gather_run(out: np.ndarray, x: np.ndarray, index: tuple[Any, ...]) -> None:
    np.copyto(out, x[index])


def _take_rows_run(out: np.ndarray, x: np.ndarray, rows: np.ndarray) -> None:
    # mode="raise" makes NumPy buffer `out`; the bounds are therefore checked here, and "wrap" gives negative rows
    # their meaning.
    if rows.size and not (-len(x) <= rows.min() and rows.max() < len(x)):
        raise IndexError(f"index out of bounds: rows {rows.min()} to {rows.max()} of an array of {len(x)}")
    np.take(x, rows, 0, out, "wrap")


def _gather_bind(out: np.ndarray, x: np.ndarray, *arrays: np.ndarray, index: Template) -> Call:
    if index == (("array", 0),) and arrays[0].ndim:
        return partial(_take_rows_run, out, x, arrays[0])
    return partial(_gather_run, out, x, real_index(index, arrays))


@primitive(shape=_gather_shape, bind=_gather_bind)
def gather(g, out, x, *arrays, index):
    """Advanced indexing with integer arrays. The gradient adds up where an element was taken more than once."""
    return (scatter_add(g, *arrays, shape=x.shape, index=index), *[None] * len(arrays))


def _scatter_shape(g: Any, *arrays: Any, shape: Shape, index: Template) -> tuple[Shape, np.dtype[Any]]:
    return shape, g.dtype


def _scatter_run(out: np.ndarray, g: np.ndarray, index: tuple[Any, ...]) -> None:
    out.fill(0)
    np.add.at(out, index, g)


def _scatter_rows_run(
    out: np.ndarray, g: np.ndarray, rows: np.ndarray, width: np.ndarray, columns: np.ndarray, places: np.ndarray
) -> None:
    out.fill(0)
    np.multiply(rows, width, places)
    np.add(places, columns, places)
    np.add.at(out, places.reshape(-1), g)


def _scatter_bind(out: np.ndarray, g: np.ndarray, *arrays: np.ndarray, shape: Shape, index: Template) -> Call:
    is_flat = g.flags.c_contiguous and out.flags.c_contiguous and out.size > 0
    if index == (("array", 0),) and len(shape) > 1 and is_flat and np.can_cast(arrays[0].dtype, np.intp):
        # np.add.at has a fast path for one flat index: 7 µs instead of 46 for 128 rows of 16, adding in the same order.
        width = out.size // shape[0]
        places = np.empty((*arrays[0].shape, width), np.intp)
        return partial(
            _scatter_rows_run,
            out.reshape(-1),
            g.reshape(-1),
            arrays[0][..., None],
            np.array(width),
            np.arange(width),
            places,
        )
    return partial(_scatter_run, out, g, real_index(index, arrays))


@primitive(shape=_scatter_shape, bind=_scatter_bind)
def scatter_add(g, out, x, *arrays, shape, index):
    """Zeros of `shape` with x added at an advanced index, in the order of the index: the adjoint of gathering."""
    return (gather(g, *arrays, index=index), *[None] * len(arrays))


def _mask_indices(mask: Any, what: str = "a traced boolean mask as an index") -> list[Any]:
    """Turn a boolean mask into the integer arrays of its true places."""
    if isinstance(mask, Tensor):
        if not mask.graph.is_branching_allowed:
            raise TraceError(
                f"{what} at {format_line(user_line())}: the result's shape would depend on values; use "
                "np.where(mask, x, 0), a mask of plain data, or compile=False"
            )
        mask = mask.value
    return list(np.nonzero(mask))


def template_of(index: Any) -> tuple[Template, list[Any]]:
    """Take an index apart into its template and its integer arrays (traced or not); masks of plain data become
    these."""
    items = index if isinstance(index, tuple) else (index,)
    template: list[Any] = []
    arrays: list[Any] = []
    for item in items:
        if item is None:
            template.append(None)
        elif item is Ellipsis:
            template.append("...")
        elif isinstance(item, slice):
            bounds = [None if b is None else operator.index(b) for b in (item.start, item.stop, item.step)]
            template.append(("slice", *bounds))
        elif isinstance(item, int | np.integer) and not isinstance(item, bool):
            template.append(int(item))
        else:
            if not isinstance(item, Tensor):
                item = np.asarray(item)
                if item.size == 0 and item.dtype.kind == "f":
                    item = item.astype(np.intp)
            if item.dtype.kind == "b":
                if item.ndim == 0:
                    raise TraceError(
                        f"a 0-d boolean as an index at {format_line(user_line())} is not covered; use np.where"
                    )
                found = _mask_indices(item)
            elif item.dtype.kind in "iu":
                found = [item]
            else:
                raise IndexError(f"an index must be integer or boolean, got {item.dtype} at {format_line(user_line())}")
            for array in found:
                template.append(("array", len(arrays)))
                arrays.append(array)
    # NumPy moves integers beside arrays into the advanced index, which the template keeps as it is.
    return tuple(template), arrays


def getitem(x: Any, index: Any) -> Any:
    """Record x[index]: basic, integer arrays (traced or not), and masks of plain data."""
    x = as_tensor(x)
    template, arrays = template_of(index)
    if arrays:
        return record(gather, (x, *arrays), {"index": template})
    return record(slice_, (x,), {"index": template})


def take(x: Any, indices: Any, axis: Any = None, out: None = None, mode: str = "raise") -> Any:
    """Record np.take."""
    x = as_tensor(x)
    if axis is None:
        x, axis = np.reshape(x, -1), 0
    (a,) = normalize_axes(axis, x.ndim)
    if not isinstance(indices, Tensor):
        indices = np.asarray(indices, np.intp if np.size(indices) == 0 else None)
    if mode == "wrap":
        indices = indices % x.shape[a]
    elif mode == "clip":
        indices = np.clip(indices, 0, x.shape[a] - 1)
    return x[(slice(None),) * a + (indices,)]


def nonzero(x: Any) -> Any:
    """Answer np.nonzero with plain indices, where values may be asked (compile=False)."""
    x = np.atleast_1d(as_tensor(x))
    return tuple(_mask_indices(x != 0, "np.nonzero of a traced array"))


def argwhere(x: Any) -> Any:
    """Answer np.argwhere where values may be asked."""
    return np.transpose(nonzero(x)).reshape(-1, as_tensor(x).ndim)


def flatnonzero(x: Any) -> Any:
    """Answer np.flatnonzero where values may be asked."""
    return nonzero(np.reshape(x, -1))[0]


def take_along_axis(x: Any, indices: Any, axis: Any = -1) -> Any:
    """Record np.take_along_axis."""
    x = as_tensor(x)
    if axis is None:
        x, axis = np.reshape(x, -1), 0
    (a,) = normalize_axes(axis, x.ndim)
    index: list[Any] = []
    for i in range(x.ndim):
        if i == a:
            index.append(indices)
        else:
            shape = [1] * x.ndim
            shape[i] = x.shape[i]
            index.append(np.arange(x.shape[i]).reshape(shape))
    return x[tuple(index)]
