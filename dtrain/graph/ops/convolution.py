# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Convolution and correlation of two sequences, as np.convolve and np.correlate have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph.ops.contraction import pair
from dtrain.graph.primitive import Call, Shape, primitive


def _shape(x: Any, y: Any, *, is_full: bool) -> tuple[Shape, np.dtype[Any]]:
    if len(x.shape) != 1 or len(y.shape) != 1 or not x.shape[0] or not y.shape[0]:
        raise ValueError("not two sequences")
    n, m = x.shape[0], y.shape[0]
    return (n + m - 1 if is_full else max(n, m) - min(n, m) + 1,), np.result_type(x.dtype, y.dtype)


def _bind(out: np.ndarray, x: np.ndarray, y: np.ndarray, *, is_full: bool) -> Call:
    return lambda: np.copyto(out, np.convolve(x, y, "full" if is_full else "valid"))


def _expects(x: Any, y: Any, **static: Any) -> str:
    return "two sequences, shapes (n,) and (m,), that are not empty"


@primitive(shape=_shape, bind=_bind, expects=_expects, name="convolve")
def convolve_(g, out, x, y, *, is_full):
    """np.convolve in the modes full and valid; each is the other's adjoint."""
    if is_full:
        return _valid(g, np.flip(y)), _valid(g, np.flip(x))
    if x.shape[0] >= y.shape[0]:
        return _full(g, np.flip(y)), np.flip(_valid(x, np.flip(g)))
    return np.flip(_valid(y, np.flip(g))), _full(g, np.flip(x))


def _full(x: Any, y: Any) -> Any:
    return convolve_(x, y, is_full=True)


def _valid(x: Any, y: Any) -> Any:
    return convolve_(x, y, is_full=False)


def convolve(a: Any, v: Any, mode: str = "full") -> Any:
    """Record np.convolve."""
    x, y = pair(a, v)
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    if mode == "valid":
        return _valid(x, y)
    full = _full(x, y)
    if mode == "full":
        return full
    if mode != "same":
        raise ValueError(f"np.convolve: mode is full, same or valid, got {mode!r}")
    n, m = max(x.shape[0], y.shape[0]), min(x.shape[0], y.shape[0])
    start = (m - 1) // 2
    return full[start : start + n]


def correlate(a: Any, v: Any, mode: str = "valid") -> Any:
    """Record np.correlate; the second operand is conjugated."""
    x, y = pair(a, v)
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    if mode == "same" and y.shape[0] > x.shape[0]:  # NumPy swaps the operands and turns the result
        return np.flip(correlate(np.conjugate(y), np.conjugate(x), mode))
    return convolve(x, np.flip(np.conjugate(y)), mode)
