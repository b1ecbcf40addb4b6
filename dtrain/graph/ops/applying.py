"""Functions that take a function, and answers that depend on shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from dtrain.graph.ops.joining import graph_of
from dtrain.graph.ops.reduction import normalize_axes
from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Tensor


def apply_along_axis(func1d: Callable[..., Any], axis: int, arr: Any, *args: Any, **options: Any) -> Any:
    """Record np.apply_along_axis: the function of each vector along the axis, one after another."""
    x: Any = as_tensor(arr, graph_of([*args, *options.values()]))
    (a,) = normalize_axes(axis, x.ndim)
    x = np.moveaxis(x, a, -1)
    lead = x.shape[:-1]
    if 0 in lead:
        raise ValueError(f"np.apply_along_axis: there is no vector along axis {axis} of shape {np.shape(arr)}")
    results = [as_tensor(func1d(x[place], *args, **options), x.graph) for place in product(*map(range, lead))]
    made: Any = np.reshape(np.stack(results), lead + results[0].shape)
    for i in range(results[0].ndim):  # what a vector became stands in the axis's place
        made = np.moveaxis(made, len(lead) + i, a + i)
    return made


def apply_over_axes(func: Callable[..., Any], a: Any, axes: Any) -> Any:
    """Record np.apply_over_axes: the function over each axis in turn."""
    x: Any = as_tensor(a)
    for axis in (axes,) if np.ndim(axes) == 0 else axes:
        (place,) = normalize_axes(axis, x.ndim)
        found = func(x, place)
        x = found if found.ndim == x.ndim else np.expand_dims(found, place)
    return x


def einsum_path(subscripts: Any, *operands: Any, optimize: Any = "greedy") -> Any:
    """Answer np.einsum_path, which depends on shapes alone."""
    plain: Any = [
        np.broadcast_to(np.float64(0), o.shape) if isinstance(o, Tensor) else o for o in (subscripts, *operands)
    ]
    return np.einsum_path(*plain, optimize=optimize)


def _of_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Answer by the shape of the array alone."""
    return lambda arr, *args, **options: function(np.empty(np.shape(arr), bool), *args, **options)


diag_indices_from = _of_shape(np.diag_indices_from)
tril_indices_from = _of_shape(np.tril_indices_from)
triu_indices_from = _of_shape(np.triu_indices_from)


def ix_(*arrays: Any) -> Any:
    """Record np.ix_ of integers: each along an axis of its own."""
    graph = graph_of(arrays)
    found = []
    for i, array in enumerate(arrays):
        part = as_tensor(array, graph) if isinstance(array, Tensor) else np.asarray(array)
        if part.ndim != 1:
            raise ValueError(f"np.ix_ takes vectors, got shape {part.shape}")
        if not isinstance(part, Tensor):
            part = np.flatnonzero(part) if part.dtype.kind == "b" else part
        elif part.dtype.kind == "b":
            part = np.flatnonzero(part)
        found.append(np.reshape(part, [-1 if j == i else 1 for j in range(len(arrays))]))
    return tuple(found)
