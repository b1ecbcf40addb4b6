# mypy: allow-untyped-defs
"""Joining arrays and taking them apart: the stack and split families, composed of concatenate and of slices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from dtrain.graph.ops.shape import concatenate, expand_dims, reshape
from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Graph, Tensor


def graph_of(arrays: Any) -> Graph | None:
    """Return the graph of the traced ones among nested lists of arrays."""
    for a in arrays:
        found = a.graph if isinstance(a, Tensor) else graph_of(a) if isinstance(a, list | tuple) else None
        if found is not None:
            return found
    return None


def _tensors(arrays: Any) -> list[Tensor]:
    arrays = list(arrays)
    graph = graph_of(arrays)
    return [as_tensor(a, graph) for a in arrays]


def _atleast(ndim: int) -> Callable[..., Any]:
    def grown(x: Any) -> Any:
        x = as_tensor(x)
        if x.ndim >= ndim:
            return x
        if ndim == 3 and x.ndim:
            return x[None, :, None] if x.ndim == 1 else x[:, :, None]
        return reshape(x, (1,) * (ndim - x.ndim) + x.shape)

    def run(*arrays: Any) -> Any:
        return grown(arrays[0]) if len(arrays) == 1 else tuple([grown(a) for a in _tensors(arrays)])

    return run


atleast_1d, atleast_2d, atleast_3d = _atleast(1), _atleast(2), _atleast(3)


def stack(arrays: Any, axis: int = 0, out: None = None, **options: Any) -> Any:
    """Record np.stack."""
    parts = _tensors(arrays)
    return concatenate([expand_dims(a, axis) for a in parts], axis % (parts[0].ndim + 1), **options)


def vstack(arrays: Any, **options: Any) -> Any:
    """Record np.vstack."""
    return concatenate([atleast_2d(a) for a in _tensors(arrays)], 0, **options)


def hstack(arrays: Any, **options: Any) -> Any:
    """Record np.hstack."""
    parts = [atleast_1d(a) for a in _tensors(arrays)]
    return concatenate(parts, 0 if parts[0].ndim == 1 else 1, **options)


def dstack(arrays: Any) -> Any:
    """Record np.dstack."""
    return concatenate([atleast_3d(a) for a in _tensors(arrays)], 2)


def column_stack(arrays: Any) -> Any:
    """Record np.column_stack: vectors become columns."""
    return concatenate([a if a.ndim > 1 else reshape(a, (-1, 1)) for a in _tensors(arrays)], 1)


def append(x: Any, values: Any, axis: Any = None) -> Any:
    """Record np.append."""
    return concatenate(_tensors([x, values]), axis)


def block(arrays: Any) -> Any:
    """Record np.block: nested lists, the innermost joined along the last axis."""
    graph = graph_of([arrays])

    def depth(part: Any) -> int:
        return 1 + max(depth(p) for p in part) if isinstance(part, list) else 0

    def leaves(part: Any) -> list[Tensor]:
        return [leaf for p in part for leaf in leaves(p)] if isinstance(part, list) else [as_tensor(part, graph)]

    levels = depth(arrays)
    ndim = max(levels, *[leaf.ndim for leaf in leaves(arrays)])

    def joined(part: Any, level: int) -> Any:
        if isinstance(part, list):
            return concatenate([joined(p, level - 1) for p in part], ndim - level)
        part = as_tensor(part, graph)
        return reshape(part, (1,) * (ndim - part.ndim) + part.shape)

    return joined(arrays, levels)


def array_split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    """Record np.array_split: views that differ by at most one in length."""
    x = as_tensor(x)
    axis %= x.ndim
    n = x.shape[axis]
    if np.ndim(indices_or_sections):
        edges = [0, *[int(i) for i in indices_or_sections], n]
    else:
        count = int(indices_or_sections)
        edges = list(accumulate([n // count + (i < n % count) for i in range(count)], initial=0))
    return [x[(slice(None),) * axis + (slice(a, b),)] for a, b in pairwise(edges)]


def split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    """Record np.split as views."""
    x = as_tensor(x)
    if not np.ndim(indices_or_sections) and x.shape[axis] % int(indices_or_sections):
        n = x.shape[axis]
        raise ValueError(f"split: {n} along axis {axis} does not divide into {indices_or_sections} equal parts")
    return array_split(x, indices_or_sections, axis)


def hsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """Record np.hsplit."""
    return split(x, indices_or_sections, 1 if x.ndim > 1 else 0)


def vsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """Record np.vsplit."""
    return split(x, indices_or_sections, 0)


def dsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """Record np.dsplit."""
    return split(x, indices_or_sections, 2)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    """Record np.unstack."""
    return tuple(np.moveaxis(x, axis, 0))


def meshgrid(*arrays: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    """Record np.meshgrid."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f"np.meshgrid: indexing is 'xy' or 'ij', got {indexing!r}")
    parts = [reshape(a, -1) for a in _tensors(arrays)]
    places = list(range(len(parts)))
    if indexing == "xy" and len(parts) > 1:
        places[:2] = [1, 0]
    grid = []
    for place, part in zip(places, parts, strict=True):
        grid.append(reshape(part, [-1 if i == place else 1 for i in range(len(parts))]))
    return tuple(grid) if sparse else np.broadcast_arrays(*grid)
