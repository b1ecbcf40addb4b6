# mypy: allow-untyped-defs
"""np.pad in all its modes, composed of taking, joining and reducing one axis at a time, as NumPy does it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.indexing import embed
from dtrain.graph.ops.shape import in_dtype_of
from dtrain.graph.primitive import as_tensor, record

_TAKING = {"edge", "reflect", "symmetric", "wrap"}
_REDUCING: dict[str, Any] = {"maximum": np.max, "mean": np.mean, "median": np.median, "minimum": np.min}


def pad(x: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    """Record np.pad; the width is static, constant and end values may be traced."""
    x = as_tensor(x)
    if isinstance(pad_width, dict):
        pad_width = [pad_width.get(i, pad_width.get(i - x.ndim, 0)) for i in range(x.ndim)]
        pad_width = [(w, w) if np.ndim(w) == 0 else w for w in pad_width]
    widths = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    value = options.get("constant_values", 0)
    if mode == "empty" or (mode == "constant" and isinstance(value, int | float) and value == 0):
        shape = tuple([n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)])
        index = tuple([("slice", before, before + n, None) for n, (before, _) in zip(x.shape, widths, strict=True)])
        return record(embed, (x,), {"shape": shape, "index": index})
    if mode in _TAKING:
        is_odd = options.get("reflect_type", "even") == "odd" and mode in ("reflect", "symmetric")
        for axis, width in enumerate(widths):
            if any(width):
                n = x.shape[axis]
                padded = np.take(x, np.pad(np.arange(n), width, mode), axis=axis)
                x = _mirrored(padded, axis, n, width[0], width[1], mode) if is_odd else padded
        return x
    if mode not in ("constant", "linear_ramp", *_REDUCING):
        raise UnsupportedFunctionError(f"np.pad with mode={mode!r} is not covered; use np.concatenate")
    for axis, (before, after) in enumerate(widths):
        parts = [x]
        if before:
            parts.insert(0, _block(x, axis, before, mode, options, 0))
        if after:
            parts.append(_block(x, axis, after, mode, options, 1))
        x = np.concatenate(parts, axis=axis) if len(parts) > 1 else x
    return x


def _mirrored(padded: Any, axis: int, n: int, before: int, after: int, mode: str) -> Any:
    """Turn what was reflected evenly about the point at the edge, 2·edge - x."""
    if max(before, after) > (n - 1 if mode == "reflect" else n):
        raise UnsupportedFunctionError(
            f"np.pad with reflect_type='odd' of {n} by more than once their number; pad twice"
        )
    lead = (slice(None),) * axis
    first, last = (padded[(*lead, slice(k, k + 1))] for k in (before, before + n - 1))
    inner = padded[(*lead, slice(before, before + n))]
    left, right = padded[(*lead, slice(0, before))], padded[(*lead, slice(before + n, None))]
    return np.concatenate([2 * first - left, inner, 2 * last - right], axis=axis)


def _option(options: dict[str, Any], name: str, default: Any, x: Any, axis: int, side: int) -> Any:
    """Return what an option says about one side of one axis: a scalar, (both,), (before, after), or one for each."""
    given = options.get(name, default)
    if isinstance(given, list | tuple):
        if any(np.ndim(v) or isinstance(v, list | tuple) for v in given):
            given = given[axis if len(given) > 1 else 0]
        return given[side if len(given) > 1 else 0] if isinstance(given, list | tuple) else given
    if given is None or np.ndim(given) == 0:
        return given
    return np.broadcast_to(given, (x.ndim, 2))[axis, side]


def _block(x: Any, axis: int, width: int, mode: str, options: dict[str, Any], side: int) -> Any:
    """Return what is joined before (side 0) or after (side 1) the axis."""
    lead = (slice(None),) * axis
    n = x.shape[axis]
    shape = [width if i == axis else m for i, m in enumerate(x.shape)]
    if mode == "constant":
        return np.broadcast_to(in_dtype_of(x, _option(options, "constant_values", 0, x, axis, side)), shape)
    if mode == "linear_ramp":
        edge = x[(*lead, slice(0, 1) if side == 0 else slice(n - 1, n))]
        end = in_dtype_of(x, _option(options, "end_values", 0, x, axis, side))
        steps = np.arange(width) if side == 0 else np.arange(width)[::-1]
        steps = steps.astype(x.dtype).reshape([-1] + [1] * (x.ndim - 1 - axis))
        return end + steps * ((edge - end) / width)
    length = _option(options, "stat_length", None, x, axis, side)
    length = n if length is None else min(int(length), n)
    part = x[(*lead, slice(0, length) if side == 0 else slice(n - length, n))]
    return np.broadcast_to(_REDUCING[mode](part, axis=axis, keepdims=True).astype(x.dtype), shape)
