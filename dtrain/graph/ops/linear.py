# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Products: matmul is the primitive; dot, inner, outer, einsum and the norm are composed of it.

A transposed operand reaches BLAS as a view, never as a copy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, promote, resolve
from dtrain.graph.tensor import Tensor


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


def dot(x: Any, y: Any, out: None = None) -> Any:
    """Record np.dot."""
    x, y = as_tensor(x, getattr(y, "graph", None)), as_tensor(y, getattr(x, "graph", None))
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    if y.ndim > 2:
        raise UnsupportedFunctionError(
            f"np.dot with shapes {x.shape} and {y.shape} is not covered; use np.matmul or np.einsum"
        )
    return matmul(x, y)


def inner(x: Any, y: Any) -> Any:
    """Record np.inner."""
    x, y = as_tensor(x, getattr(y, "graph", None)), as_tensor(y, getattr(x, "graph", None))
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    if y.ndim > 2:
        raise UnsupportedFunctionError(f"np.inner with shapes {x.shape} and {y.shape} is not covered; use np.einsum")
    return matmul(x, np.transpose(y))


def outer(x: Any, y: Any, out: None = None) -> Any:
    """Record np.outer."""
    x, y = as_tensor(x, getattr(y, "graph", None)), as_tensor(y, getattr(x, "graph", None))
    return np.reshape(x, (-1, 1)) * np.reshape(y, (1, -1))


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """Record np.tensordot as one matmul of reshaped operands."""
    x, y = as_tensor(x, getattr(y, "graph", None)), as_tensor(y, getattr(x, "graph", None))
    if isinstance(axes, int):
        xa, ya = list(range(x.ndim - axes, x.ndim)), list(range(axes))
    else:
        xa, ya = ([a] if isinstance(a, int) else list(a) for a in axes)
    xa, ya = [a % x.ndim for a in xa], [a % y.ndim for a in ya]
    xk = [i for i in range(x.ndim) if i not in xa]
    yk = [i for i in range(y.ndim) if i not in ya]
    inner_size = 1
    for a in xa:
        inner_size *= x.shape[a]
    left = np.reshape(np.transpose(x, xk + xa), (-1, inner_size))
    right = np.reshape(np.transpose(y, ya + yk), (inner_size, -1))
    shape = [x.shape[i] for i in xk] + [y.shape[i] for i in yk]
    return np.reshape(matmul(left, right), shape)


def einsum(subscripts: str, *operands: Any, **options: Any) -> Any:
    """Record np.einsum of one or two operands without repeated letters in one operand, as one batched matmul."""
    terms, _, result = subscripts.replace(" ", "").partition("->")
    names = terms.split(",")
    if "->" not in subscripts:
        joined = "".join(names)
        result = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    graph = next((o.graph for o in operands if isinstance(o, Tensor)), None)
    tensors = [as_tensor(o, graph) for o in operands]
    if (
        not isinstance(subscripts, str)
        or "." in subscripts
        or len(tensors) not in (1, 2)
        or any(len(set(n)) != len(n) for n in names)
    ):
        raise UnsupportedFunctionError(
            f"np.einsum({subscripts!r}) is not covered: one or two operands, no ellipsis, no repeated letter within one"
        )
    for n, t in zip(names, tensors, strict=True):
        if len(n) != t.ndim:
            raise ValueError(f"einsum: {n!r} names {len(n)} axes of an array of shape {t.shape}")
    if len(tensors) == 1:
        (x,), (n,) = tensors, names
        gone = tuple(i for i, c in enumerate(n) if c not in result)
        if gone:
            x = np.sum(x, axis=gone)
        left = [c for c in n if c in result]
        return np.transpose(x, [left.index(c) for c in result])
    # Sum out the letters of one operand alone, then batch × free × contracted.
    for i in (0, 1):
        gone = tuple(k for k, c in enumerate(names[i]) if c not in names[1 - i] and c not in result)
        if gone:
            tensors[i] = np.sum(tensors[i], axis=gone)
            names[i] = "".join(c for c in names[i] if c in names[1 - i] or c in result)
    (x, y), (nx, ny) = tensors, names
    sizes = {**dict(zip(nx, x.shape, strict=True)), **dict(zip(ny, y.shape, strict=True))}
    batch = [c for c in nx if c in ny and c in result]
    summed = [c for c in nx if c in ny and c not in result]
    free_x = [c for c in nx if c not in ny]
    free_y = [c for c in ny if c not in nx]

    def arranged(t: Any, letters: str, order: list[str], groups: list[list[str]]) -> Any:
        shape = [sizes[c] for c in batch]
        for group in groups:
            n = 1
            for c in group:
                n *= sizes[c]
            shape.append(n)
        return np.reshape(np.transpose(t, [letters.index(c) for c in order]), shape)

    left_x = arranged(x, nx, batch + free_x + summed, [free_x, summed])
    right_y = arranged(y, ny, batch + summed + free_y, [summed, free_y])
    have = batch + free_x + free_y
    full = np.reshape(matmul(left_x, right_y), [sizes[c] for c in have])
    return np.transpose(full, [have.index(c) for c in result])


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Record np.linalg.norm: the 2-norm of a vector, Frobenius of a matrix, and 1, 2, inf along an axis."""
    x = as_tensor(x)
    if axis is None and ord is None:
        return np.sqrt(np.sum(np.square(x), axis=None, keepdims=keepdims))
    vector = isinstance(axis, int) or (axis is None and x.ndim == 1)
    if vector and ord in (None, 2):
        return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))
    if vector and ord == 1:
        return np.sum(np.abs(x), axis=axis, keepdims=keepdims)
    if vector and ord == np.inf:
        return np.max(np.abs(x), axis=axis, keepdims=keepdims)
    if ord in (None, "fro") and (axis is None or len(axis) == 2):
        return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))
    raise UnsupportedFunctionError(
        f"np.linalg.norm with ord={ord!r} and axis={axis!r} is not covered; write it with np.sum"
    )


__all__ = ["dot", "einsum", "inner", "matmul", "norm", "outer", "promote", "tensordot"]
