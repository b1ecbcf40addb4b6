# mypy: allow-untyped-defs
"""Differences, gradients on a grid, integrals, interpolation and grids."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.joining import graph_of
from dtrain.graph.ops.reduction import is_given, normalize_axes
from dtrain.graph.ops.shape import in_dtype_of
from dtrain.graph.primitive import as_tensor
from dtrain.graph.tensor import Tensor


def _along(x: Any, axis: int, start: Any, stop: Any) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop),)]


def diff(x: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """Record np.diff."""
    if n == 0:
        return x
    graph = graph_of([x, prepend, append])
    x = as_tensor(x, graph)
    (a,) = normalize_axes(axis, x.ndim)
    edge = tuple([1 if i == a else m for i, m in enumerate(x.shape)])
    parts = [x]
    for place, part in ((0, prepend), (len(parts) + 1, append)):
        if is_given(part):
            part = as_tensor(part, graph)
            parts.insert(place, np.broadcast_to(part, edge) if part.ndim == 0 else part)
    x = np.concatenate(parts, axis=a) if len(parts) > 1 else x
    for _ in range(n):
        late, early = _along(x, a, 1, None), _along(x, a, None, -1)
        x = np.not_equal(late, early) if x.dtype.kind == "b" else late - early
    return x


def ediff1d(x: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    """Record np.ediff1d."""
    x = as_tensor(x, graph_of([to_end, to_begin]))
    ends: list[Any] = [None if e is None else np.reshape(in_dtype_of(x, e), -1) for e in (to_begin, to_end)]
    parts = [p for p in (ends[0], diff(np.reshape(x, -1)), ends[1]) if p is not None]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def gradient(f: Any, *spacings: Any, axis: Any = None, edge_order: int = 1) -> Any:
    """Record np.gradient: central differences inside, one-sided ones at the edges, on even and uneven grids."""
    f = as_tensor(f, graph_of(spacings))
    if f.dtype.kind in "biu":
        f = f.astype(np.float64)
    axes = tuple(range(f.ndim)) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    axes = tuple([a % f.ndim for a in axes])
    if len(spacings) == 1 and np.ndim(spacings[0]) == 0:
        spacings = spacings * len(axes)
    if len(spacings) not in (0, len(axes)):
        raise TypeError(f"np.gradient: {len(spacings)} spacings for {len(axes)} axes")
    if edge_order not in (1, 2):
        raise ValueError(f"np.gradient: edge_order is 1 or 2, got {edge_order}")
    results = []
    for i, a in enumerate(axes):
        if f.shape[a] <= edge_order:
            raise ValueError(f"np.gradient: axis {a} of shape {f.shape} needs at least {edge_order + 1} elements")
        steps = _steps(spacings[i]) if spacings else 1.0
        results.append(np.moveaxis(_slopes(np.moveaxis(f, a, -1), steps, edge_order).astype(f.dtype), -1, a))
    return results[0] if len(results) == 1 else tuple(results)


def _steps(spacing: Any) -> Any:
    """Return the distance of neighbours: a scalar on an even grid, else an array."""
    if np.ndim(spacing) == 0:
        return spacing
    spacing = spacing if isinstance(spacing, Tensor) else np.asarray(spacing)
    steps = np.diff(spacing.astype(np.float64) if spacing.dtype.kind in "iu" else spacing)
    return steps[0] if not isinstance(steps, Tensor) and (steps == steps[0]).all() else steps


def _slopes(f: Any, steps: Any, edge_order: int) -> Any:
    """Return the slopes along the last axis."""
    if np.ndim(steps) == 0:
        inner = (f[..., 2:] - f[..., :-2]) / (2.0 * steps)
        first, second, before_last, last = steps, steps, steps, steps
    else:
        left, right = steps[:-1], steps[1:]
        inner = (
            -right / (left * (left + right)) * f[..., :-2]
            + (right - left) / (left * right) * f[..., 1:-1]
            + left / (right * (left + right)) * f[..., 2:]
        )
        first, last = steps[0], steps[-1]
        second, before_last = (steps[1], steps[-2]) if edge_order == 2 else (first, last)
    if edge_order == 1:
        begin, end = (f[..., 1:2] - f[..., :1]) / first, (f[..., -1:] - f[..., -2:-1]) / last
    else:
        begin = _edge(f[..., :1], f[..., 1:2], f[..., 2:3], first, second)
        end = -_edge(f[..., -1:], f[..., -2:-1], f[..., -3:-2], last, before_last)
    return np.concatenate([begin, inner, end], axis=-1)


def _edge(f0: Any, f1: Any, f2: Any, near: Any, far: Any) -> Any:
    """Return the slope at f0 of the parabola through three points that are `near` and `far` apart."""
    return (
        -(2.0 * near + far) / (near * (near + far)) * f0
        + (near + far) / (near * far) * f1
        - near / (far * (near + far)) * f2
    )


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    """Record np.trapezoid."""
    y = as_tensor(y, graph_of([x, dx]))
    (a,) = normalize_axes(axis, y.ndim)
    if x is not None:
        x = x if isinstance(x, Tensor) else np.asarray(x)
        along = [-1 if i == a else 1 for i in range(y.ndim)]
        dx = np.reshape(np.diff(x), along) if x.ndim == 1 else np.diff(x, axis=axis)
    return np.sum(dx * (_along(y, a, 1, None) + _along(y, a, None, -1)) / 2.0, axis=a)


def interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    """Record np.interp of increasing xp, in float64 as NumPy; the gradient reaches x, xp and fp."""
    graph = graph_of([x, xp, fp, left, right])
    x, xp, fp = (as_tensor(a, graph) for a in (x, xp, fp))
    fp = fp.astype(np.result_type(fp.dtype, np.float64))
    x, xp = x.astype(np.float64), xp.astype(np.float64)
    if period is not None:
        if period == 0:
            raise ValueError("np.interp: period is 0")
        x, xp, left, right = x % abs(period), xp % abs(period), None, None
        order = np.argsort(xp)
        xp, fp = xp[order], fp[order]
        xp = np.concatenate([xp[-1:] - abs(period), xp, xp[:1] + abs(period)])
        fp = np.concatenate([fp[-1:], fp, fp[:1]])
    n = xp.shape[0]
    if n == 1:
        inside = np.broadcast_to(fp[0], x.shape)
    else:
        i = np.clip(np.searchsorted(xp, x, side="right") - 1, 0, n - 2)
        width = xp[1:] - xp[:-1]
        slope = (fp[1:] - fp[:-1]) / np.where(width == 0, 1.0, width)  # at a jump no x lies between
        inside = slope[i] * (x - xp[i]) + fp[i]
    low, high = fp[0] if left is None else left, fp[-1] if right is None else right
    return np.where(x < xp[0], low, np.where(x > xp[-1], high, inside))


def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None, axis: int = 0
) -> Any:
    """Record np.linspace between traced ends."""
    graph = graph_of([start, stop])
    wide = np.result_type(*[getattr(a, "dtype", a) for a in (start, stop)], 1.0)
    start, stop = (
        a.astype(wide) if isinstance(a, Tensor) else as_tensor(np.asarray(a, wide), graph) for a in (start, stop)
    )
    parts = num - 1 if endpoint else num
    ndim = max(start.ndim, stop.ndim)
    count = np.arange(num, dtype=wide).reshape([-1] + [1] * ndim)
    step = (stop - start) / max(parts, 1)
    line = count * step + start
    if endpoint and num > 1:
        line = np.concatenate([line[:-1], np.broadcast_to(stop, line.shape[1:])[None]], axis=0)
    line = np.moveaxis(line, 0, axis)
    if dtype is not None:
        line = (np.floor(line) if np.dtype(dtype).kind in "iu" else line).astype(dtype)
    return (line, step if parts > 0 else np.float64("nan")) if retstep else line


def logspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, base: Any = 10.0, dtype: Any = None, axis: int = 0
) -> Any:
    """Record np.logspace between traced ends."""
    line = np.power(base, np.linspace(start, stop, num, endpoint=endpoint, axis=axis))
    return line if dtype is None else line.astype(dtype)


def geomspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0) -> Any:
    """Record np.geomspace between traced real ends of one sign."""
    graph = graph_of([start, stop])
    start, stop = (as_tensor(a, graph).astype(np.result_type(as_tensor(a, graph).dtype, float)) for a in (start, stop))
    if "c" in (start.dtype.kind, stop.dtype.kind):
        raise UnsupportedFunctionError("np.geomspace between complex ends is not covered; use np.exp of np.linspace")
    sign = np.sign(start)
    line = sign * np.power(10.0, linspace(np.log10(sign * start), np.log10(sign * stop), num, endpoint))
    if num > 0:  # the ends are met exactly
        parts = [np.broadcast_to(start, line.shape[1:])[None], line[1 : num - 1 if endpoint and num > 1 else num]]
        if endpoint and num > 1:
            parts.append(np.broadcast_to(stop, line.shape[1:])[None])
        line = np.concatenate(parts)
    line = np.moveaxis(line, 0, axis)
    return line if dtype is None else line.astype(dtype)


def unwrap(p: Any, discont: Any = None, axis: int = -1, *, period: float = 2 * np.pi) -> Any:
    """Record np.unwrap: jumps above half a period become their complement. What is added is flat."""
    p = as_tensor(p)
    (a,) = normalize_axes(axis, p.ndim)
    p = p.astype(np.result_type(p.dtype, period))
    jump = np.diff(p, axis=a)
    is_whole = p.dtype.kind in "iu"
    half = period // 2 if is_whole else period / 2
    wrapped = np.remainder(jump + half, period) - half
    if not is_whole or period % 2 == 0:
        wrapped = np.where(np.logical_and(wrapped == -half, jump > 0), half, wrapped)
    correction = np.where(np.abs(jump) < (half if discont is None else discont), 0, wrapped - jump)
    return np.concatenate(
        [_along(p, a, 0, 1), _along(p, a, 1, None) + np.cumsum(correction, axis=a, dtype=p.dtype)], axis=a
    )
