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
        is_odd = mode in ("reflect", "symmetric") and options.get("reflect_type", "even") == "odd"
        for axis, width in enumerate(widths):
            if any(width):
                padded = np.take(x, np.pad(np.arange(x.shape[axis]), width, mode), axis=axis)
                x = _turned(x, padded, axis, width, mode) if is_odd else padded
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


def _turned(x: Any, padded: Any, axis: int, width: list[int], mode: str) -> Any:
    """Return what an even reflection gave as an odd one: each reflection is about the value of its edge too."""
    n = x.shape[axis]
    if n == 1 and mode == "reflect":
        return padded
    period = 2 * (n - 1 if mode == "reflect" else n)
    turns, place = np.divmod(np.arange(-width[0], n + width[1]), period)
    is_back = place >= n
    column = [-1 if i == axis else 1 for i in range(x.ndim)]
    first, last = (np.take(x, [i], axis=axis) for i in (0, n - 1))
    risen = (2 * turns).astype(x.dtype).reshape(column) * (last - first)
    return np.where(is_back.reshape(column), 2 * last - padded, padded) + risen


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
        ramp = end + steps * ((edge - end) / width)
        return np.floor(ramp).astype(x.dtype) if x.dtype.kind in "iu" else ramp
    length = _option(options, "stat_length", None, x, axis, side)
    length = n if length is None else min(int(length), n)
    part = x[(*lead, slice(0, length) if side == 0 else slice(n - length, n))]
    found = _REDUCING[mode](part, axis=axis, keepdims=True)
    return np.broadcast_to((np.rint(found) if x.dtype.kind in "iu" else found).astype(x.dtype), shape)
