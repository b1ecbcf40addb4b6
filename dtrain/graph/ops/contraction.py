# mypy: allow-untyped-defs
"""Sums of products: tensordot, einsum, kron, cross and their kin, each one or several matmuls."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from dtrain.graph.ops.joining import graph_of
from dtrain.graph.ops.linear import matmul
from dtrain.graph.primitive import as_tensor


def pair(x: Any, y: Any) -> tuple[Any, Any]:
    """Return two operands, at least one of them traced, as tensors."""
    return as_tensor(x, getattr(y, "graph", None)), as_tensor(y, getattr(x, "graph", None))


def _size(sizes: Any) -> int:
    n = 1
    for m in sizes:
        n *= m
    return n


def dot(x: Any, y: Any, out: None = None) -> Any:
    """Record np.dot."""
    x, y = pair(x, y)
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    return matmul(x, y) if y.ndim <= 2 else tensordot(x, y, (-1, -2))


def inner(x: Any, y: Any) -> Any:
    """Record np.inner."""
    x, y = pair(x, y)
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    return matmul(x, np.transpose(y)) if y.ndim <= 2 else tensordot(x, y, (-1, -1))


def vdot(x: Any, y: Any) -> Any:
    """Record np.vdot: of all elements, the first operand conjugated."""
    x, y = pair(x, y)
    return matmul(np.conjugate(np.reshape(x, -1)), np.reshape(y, -1))


def outer(x: Any, y: Any, out: None = None) -> Any:
    """Record np.outer."""
    x, y = pair(x, y)
    return np.reshape(x, (-1, 1)) * np.reshape(y, (1, -1))


def vecdot(x: Any, y: Any, axis: int = -1) -> Any:
    """Record np.vecdot; the first operand is conjugated."""
    x, y = pair(x, y)
    products = np.conjugate(np.moveaxis(x, axis, -1)) * np.moveaxis(y, axis, -1)
    return np.sum(products, axis=-1, dtype=products.dtype)


def linalg_vecdot(x: Any, y: Any, /, *, axis: int = -1) -> Any:
    """Record np.linalg.vecdot."""
    return vecdot(x, y, axis)


def matvec(x: Any, y: Any) -> Any:
    """Record np.matvec: stacks of matrices times stacks of vectors."""
    x, y = pair(x, y)
    return matmul(x, y[..., None])[..., 0]


def vecmat(x: Any, y: Any) -> Any:
    """Record np.vecmat: stacks of vectors, conjugated, times stacks of matrices."""
    x, y = pair(x, y)
    return matmul(np.conjugate(x)[..., None, :], y)[..., 0, :]


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """Record np.tensordot as one matmul of reshaped operands."""
    x, y = pair(x, y)
    if isinstance(axes, int | np.integer):
        xa, ya = list(range(x.ndim - int(axes), x.ndim)), list(range(int(axes)))
    else:
        xa, ya = ([int(a)] if np.ndim(a) == 0 else [int(i) for i in a] for a in axes)
    xa, ya = [a % x.ndim for a in xa], [a % y.ndim for a in ya]
    xk = [i for i in range(x.ndim) if i not in xa]
    yk = [i for i in range(y.ndim) if i not in ya]
    if [x.shape[a] for a in xa] != [y.shape[a] for a in ya]:
        raise ValueError(f"tensordot: shapes {x.shape} and {y.shape} differ along axes {xa} and {ya}")
    inner_size = _size([x.shape[a] for a in xa])
    left = np.reshape(np.transpose(x, xk + xa), (_size([x.shape[i] for i in xk]), inner_size))
    right = np.reshape(np.transpose(y, ya + yk), (inner_size, _size([y.shape[i] for i in yk])))
    return np.reshape(matmul(left, right), [x.shape[i] for i in xk] + [y.shape[i] for i in yk])


def linalg_tensordot(x: Any, y: Any, /, *, axes: Any = 2) -> Any:
    """Record np.linalg.tensordot."""
    return tensordot(x, y, axes)


def kron(x: Any, y: Any) -> Any:
    """Record np.kron."""
    x, y = pair(x, y)
    ndim = max(x.ndim, y.ndim)
    a, b = ((1,) * (ndim - t.ndim) + t.shape for t in (x, y))
    left = np.reshape(x, [n for m in a for n in (m, 1)])
    right = np.reshape(y, [n for m in b for n in (1, m)])
    return np.reshape(left * right, [n * m for n, m in zip(a, b, strict=True)])


def cross(x: Any, y: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None) -> Any:
    """Record np.cross of vectors of three components (or two, as NumPy still allows)."""
    x, y = pair(x, y)
    if axis is not None:
        axisa = axisb = axisc = axis
    dtype = np.promote_types(x.dtype, y.dtype)
    x, y = np.moveaxis(x, axisa, -1).astype(dtype), np.moveaxis(y, axisb, -1).astype(dtype)
    if not {x.shape[-1], y.shape[-1]} <= {2, 3}:
        raise ValueError(f"cross: expected 2 or 3 components, got shapes {x.shape} and {y.shape}")
    x0, x1, y0, y1 = x[..., 0], x[..., 1], y[..., 0], y[..., 1]
    third = x0 * y1 - x1 * y0
    if x.shape[-1] == y.shape[-1] == 2:
        return third
    if x.shape[-1] == 2:
        parts = [x1 * y[..., 2], -x0 * y[..., 2], third]
    elif y.shape[-1] == 2:
        parts = [-x[..., 2] * y1, x[..., 2] * y0, third]
    else:
        x2, y2 = x[..., 2], y[..., 2]
        parts = [x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, third]
    return np.stack(parts, axis=axisc)


def linalg_cross(x: Any, y: Any, /, *, axis: int = -1) -> Any:
    """Record np.linalg.cross."""
    return cross(x, y, axis=axis)


def multi_dot(arrays: Any, *, out: None = None) -> Any:
    """Record np.linalg.multi_dot: the product of a chain of matrices in the cheapest order."""
    graph = graph_of(arrays)
    chain = [as_tensor(a, graph) for a in arrays]
    first, last = chain[0].ndim == 1, chain[-1].ndim == 1
    chain[0] = chain[0][None, :] if first else chain[0]
    chain[-1] = chain[-1][:, None] if last else chain[-1]
    sizes = [chain[0].shape[0], *[t.shape[1] for t in chain]]
    best: dict[tuple[int, int], tuple[int, int]] = {(i, i): (0, i) for i in range(len(chain))}
    for length in range(1, len(chain)):
        for i in range(len(chain) - length):
            j = i + length
            best[i, j] = min(
                (best[i, k][0] + best[k + 1, j][0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
            )

    def product(i: int, j: int) -> Any:
        k = best[i, j][1]
        return chain[i] if i == j else matmul(product(i, k), product(k + 1, j))

    result = product(0, len(chain) - 1)
    return result[(0 if first else slice(None), 0 if last else slice(None))]


# -- einsum -----------------------------------------------------------------------------------------------------------


def _parse(subscripts: Any, operands: tuple[Any, ...]) -> tuple[list[str], str, list[Any]]:
    """Return the letters of each operand and of the result, with the ellipsis written out, and the operands."""
    if not isinstance(subscripts, str):  # the form einsum(x, [0, 1], y, [1, 2], [0, 2])
        items = [subscripts, *operands]
        operands, lists = tuple(items[: len(items) // 2 * 2 : 2]), items[1::2]
        words = [_word(word) for word in lists]
        subscripts = ",".join(words) + ("" if len(items) % 2 == 0 else "->" + _word(items[-1]))
    terms, arrow, result = subscripts.replace(" ", "").partition("->")
    words = terms.split(",")
    if len(words) != len(operands):
        raise ValueError(f"einsum: {subscripts!r} names {len(words)} operands, got {len(operands)}")
    free = [c for c in string.ascii_letters if c not in subscripts]
    depths = [np.ndim(o) - len(w.replace("...", "")) if "..." in w else 0 for w, o in zip(words, operands, strict=True)]
    dots = "".join(free[: max(depths)])
    if not arrow:
        joined = "".join(words).replace("...", "")
        result = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    names = [w.replace("...", dots[len(dots) - d :]) for w, d in zip(words, depths, strict=True)]
    for name, operand in zip(names, operands, strict=True):
        if len(name) != np.ndim(operand):
            raise ValueError(f"einsum: {name!r} of {subscripts!r} names {len(name)} axes of shape {np.shape(operand)}")
    return names, result.replace("...", dots), list(operands)


def _word(items: Any) -> str:
    return "".join("..." if i is Ellipsis else string.ascii_letters[int(i)] for i in items)


def einsum(subscripts: Any, *operands: Any, optimize: Any = False, **options: Any) -> Any:
    """Record np.einsum of any expression: diagonals, sums, then two operands at a time as a batched matmul."""
    names, result, given = _parse(subscripts, operands)
    graph = graph_of(given)
    given = [as_tensor(o, graph) for o in given]
    dtype = options.get("dtype") or np.result_type(*[o.dtype for o in given])
    terms = [_plain(o.astype(dtype), n) for n, o in zip(names, given, strict=True)]
    if len(terms) > 2:
        expression = ",".join(n for _, n in terms) + "->" + result
        shapes = [np.broadcast_to(0.0, t.shape) for t, _ in terms]
        wanted = optimize if isinstance(optimize, str | list | tuple) else "greedy"
        path = np.einsum_path(expression, *shapes, optimize=wanted)[0][1:]
    else:
        path = [tuple(range(len(terms)))]
    for step in path:
        chosen = [terms[i] for i in step]
        terms = [t for i, t in enumerate(terms) if i not in step]
        kept = set(result).union(*[n for _, n in terms])
        while len(chosen) > 1:
            chosen[:2] = [_product(chosen[0], chosen[1], kept.union(*[n for _, n in chosen[2:]]))]
        terms.append(chosen[0])
    ((x, name),) = terms
    gone = tuple([i for i, c in enumerate(name) if c not in result])
    if gone:
        x = np.sum(x, axis=gone, dtype=dtype)
        name = "".join(c for c in name if c in result)
    return np.transpose(x, [name.index(c) for c in result])


def _plain(x: Any, name: str) -> tuple[Any, str]:
    """Take the diagonal of letters that are named twice."""
    for c in dict.fromkeys(name):
        while name.count(c) > 1:
            i = name.index(c)
            j = name.index(c, i + 1)
            if x.shape[i] != x.shape[j]:
                raise ValueError(f"einsum: {c!r} names axes of lengths {x.shape[i]} and {x.shape[j]}")
            x = np.diagonal(x, 0, i, j)
            name = name[:i] + name[i + 1 : j] + name[j + 1 :] + c
    return x, name


def _product(left: tuple[Any, str], right: tuple[Any, str], kept: set[str]) -> tuple[Any, str]:
    """Multiply two operands and sum over the letters that nobody else needs: batch × free × contracted."""
    (x, nx), (y, ny) = _summed(*left, {*right[1], *kept}), _summed(*right, {*left[1], *kept})
    sizes: dict[str, int] = {}
    for t, name in ((x, nx), (y, ny)):
        for c, n in zip(name, t.shape, strict=True):
            known = sizes.setdefault(c, n)
            if known != n and 1 not in (known, n):
                raise ValueError(f"einsum: {c!r} names axes of lengths {known} and {n}")
            sizes[c] = n if known == 1 else known
    x, y = (np.broadcast_to(t, [sizes[c] for c in name]) for t, name in ((x, nx), (y, ny)))
    batch = [c for c in nx if c in ny and c in kept]
    summed = [c for c in nx if c in ny and c not in kept]
    free_x, free_y = [c for c in nx if c not in ny], [c for c in ny if c not in nx]
    have = batch + free_x + free_y
    if not summed:
        wide_x = np.transpose(x, [nx.index(c) for c in batch + free_x])
        wide_y = np.transpose(y, [ny.index(c) for c in batch + free_y])
        return wide_x[(..., *(None,) * len(free_y))] * _spread(wide_y, len(batch), len(free_x)), "".join(have)

    def grouped(t: Any, name: str, *groups: list[str]) -> Any:
        order = [c for group in groups for c in group]
        shape = [sizes[c] for c in batch] + [_size([sizes[c] for c in group]) for group in groups[1:]]
        return np.reshape(np.transpose(t, [name.index(c) for c in order]), shape)

    product = matmul(grouped(x, nx, batch, free_x, summed), grouped(y, ny, batch, summed, free_y))
    return np.reshape(product, [sizes[c] for c in have]), "".join(have)


def _spread(y: Any, lead: int, width: int) -> Any:
    return y[(*(slice(None),) * lead, *(None,) * width, ...)] if width else y


def _summed(x: Any, name: str, needed: set[str]) -> tuple[Any, str]:
    gone = tuple([i for i, c in enumerate(name) if c not in needed])
    return (np.sum(x, axis=gone, dtype=x.dtype), "".join(c for c in name if c in needed)) if gone else (x, name)
