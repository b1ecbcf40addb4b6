# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""The matrix product, the primitive of all sums of products (`contraction.py`).

A transposed operand reaches BLAS as a view, never as a copy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.primitive import Call, Shape, primitive, resolve


def _matmul_shape(x: Any, y: Any) -> tuple[Shape, np.dtype[Any]]:
    a, b = x.shape, y.shape
    if not a or not b or a[-1] != b[-2 if len(b) > 1 else 0]:
        raise ValueError("inner dimensions differ")
    dtype = x.dtype if x.dtype == y.dtype else resolve(np.matmul, x.dtype, y.dtype)
    if len(a) == 2 and len(b) == 2:
        return (a[0], b[1]), dtype
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    return batch + a[-2:-1] + (b[-1:] if len(b) > 1 else ()), dtype


def _matmul_bind(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> Call:
    return partial(np.matmul, x, y, out)


def _matmul_expects(x: Any, y: Any) -> str:
    if not x.shape or not y.shape:
        return "arrays of at least one dimension"
    inner = x.shape[-1]
    left = f"({inner},)" if x.ndim == 1 else f"({'…, ' if x.ndim > 2 else ''}n, {inner})"
    right = f"({inner},)" if y.ndim == 1 else f"({'…, ' if y.ndim > 2 else ''}{inner}, k)"
    return f"{left} @ {right}"


def _turned(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


@primitive(shape=_matmul_shape, bind=_matmul_bind, expects=_matmul_expects)
def matmul(g, out, x, y):
    """np.matmul of vectors, matrices and batches of matrices."""
    if x.ndim == 1 and y.ndim == 1:
        return g * y, g * x
    if x.ndim == 1:
        return matmul(y, g[..., None])[..., 0], x[:, None] * g[..., None, :]
    if y.ndim == 1:
        return g[..., None] * y, matmul(_turned(x), g[..., None])[..., 0]
    return matmul(g, _turned(y)), matmul(_turned(x), g)
