# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Cholesky, QR, eigenvalues, singular values, and the norms made of them.

A decomposition is one primitive whose result holds all factors side by side in the last axis; the functions take them
apart. Degenerate eigenvalues or singular values have no gradient of their vectors: the parts that would divide by zero
are left out, so that a function of the values alone stays right. The phases of complex vectors are arbitrary: the
gradient is that of functions which do not depend on them. Rules: Giles (2008); Murray, arXiv:1602.07527; Townsend,
Differentiating the singular value decomposition (2016); Boeddeker et al., arXiv:1701.00392, for complex matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.reduction import is_given, normalize_axes
from dtrain.graph.ops.solving import adjoint, copying, float_dtype, square_expects, square_shape
from dtrain.graph.primitive import Shape, as_tensor, primitive, record

_EIGH = type(np.linalg.eigh(np.eye(1)))
_QR = type(np.linalg.qr(np.eye(1)))
_SVD = type(np.linalg.svd(np.eye(1)))
_EIG = type(np.linalg.eig(np.eye(1)))


def _packed(*parts: np.ndarray) -> np.ndarray:
    """Put the factors of a decomposition side by side: each flattened behind the batch axes."""
    batch = parts[0].shape[: parts[0].ndim - 2]
    return np.concatenate([p.reshape(*batch, int(np.prod(p.shape[len(batch) :]))) for p in parts], axis=-1)


def _unpacked(packed: Any, *shapes: Shape) -> list[Any]:
    parts, start, batch = [], 0, packed.shape[:-1]
    for shape in shapes:
        n = int(np.prod(shape))
        parts.append(np.reshape(packed[..., start : start + n], batch + shape))
        start += n
    return parts


def _differences(values: Any) -> Any:
    """Return F with F[i, j] = 1 / (values[j] - values[i]), 0 where they are equal."""
    gaps = values[..., None, :] - values[..., :, None]
    equal = gaps == 0
    return np.where(equal, 0.0, 1.0 / np.where(equal, 1.0, gaps))


# -- Cholesky ---------------------------------------------------------------------------------------------------------


@primitive(shape=square_shape, bind=copying(np.linalg.cholesky), expects=square_expects, name="cholesky")
def cholesky_(g, out, x):
    """np.linalg.cholesky, the lower factor. The gradient is symmetric, as if both halves of x were read."""
    half = np.tril(np.ones(x.shape[-2:], x.dtype)) - 0.5 * np.eye(x.shape[-1], dtype=x.dtype)
    inner = (adjoint(out) @ np.tril(np.conjugate(g))) * half
    back = np.linalg.solve(adjoint(out), adjoint(np.linalg.solve(adjoint(out), adjoint(inner))))
    return np.conjugate(back + adjoint(back)) * 0.5


def cholesky(x: Any, /, *, upper: bool = False) -> Any:
    """Record np.linalg.cholesky."""
    x = as_tensor(x)
    return adjoint(record(cholesky_, (adjoint(x),))) if upper else record(cholesky_, (x,))


# -- eigenvalues ------------------------------------------------------------------------------------------------------


def _eigen_shape(x: Any, **static: Any) -> tuple[Shape, np.dtype[Any]]:
    shape, dtype = square_shape(x)
    n = shape[-1]
    return (*shape[:-2], n + n * n), dtype


def _eigh(x: np.ndarray, *, uplo: str) -> np.ndarray:
    w, v = np.linalg.eigh(x, uplo)  # type: ignore[call-overload]
    return _packed(w[..., None], v)


@primitive(shape=_eigen_shape, bind=copying(_eigh), expects=square_expects)
def eigh_factors(g, out, x, *, uplo):
    """np.linalg.eigh: eigenvalues and eigenvectors. The gradient lies in the triangle of x that NumPy reads."""
    n = x.shape[-1]
    w, v = _unpacked(out, (n,), (n, n))
    gw, gv = _unpacked(np.conjugate(g), (n,), (n, n))
    eye = np.eye(n, dtype=bool)
    inner = np.where(eye, np.real(gw)[..., None, :], _differences(np.real(w)) * (adjoint(v) @ gv))
    half = v @ inner @ adjoint(v)
    triangle = np.tril(np.ones((n, n), bool), -1)
    both = half + adjoint(half)
    kept = np.where(triangle if uplo.upper() == "L" else triangle.T, both, np.where(eye, np.real(both) * 0.5, 0.0))
    return np.conjugate(kept)


def eigh(x: Any, UPLO: str = "L") -> Any:
    """Record np.linalg.eigh of symmetric and of Hermitian matrices."""
    x = as_tensor(x)
    n = x.shape[-1]
    w, v = _unpacked(record(eigh_factors, (x,), {"uplo": UPLO}), (n,), (n, n))
    return _EIGH(np.real(w), v)


def eigvalsh(x: Any, UPLO: str = "L") -> Any:
    """Record np.linalg.eigvalsh."""
    return eigh(x, UPLO)[0]


def _eig_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    shape, dtype = _eigen_shape(x)
    return shape, np.result_type(dtype, np.complex64)


def _eig(x: np.ndarray) -> np.ndarray:
    w, v = np.linalg.eig(x)
    return _packed(w[..., None], v)


@primitive(shape=_eig_shape, bind=copying(_eig), expects=square_expects)
def eig_factors(g, out, x):
    """np.linalg.eig, whose eigenvectors have length 1; the result is complex."""
    n = x.shape[-1]
    w, v = _unpacked(out, (n,), (n, n))
    gw, gv = _unpacked(np.conjugate(g), (n,), (n, n))
    moved = adjoint(v) @ gv
    lengths = np.real(np.sum(np.where(np.eye(n, dtype=bool), moved, 0.0), axis=-2, keepdims=True))
    inner = np.conjugate(_differences(w)) * (moved - (adjoint(v) @ v) * lengths)
    inner = np.where(np.eye(n, dtype=bool), gw[..., None, :], inner)
    result = np.conjugate(np.linalg.solve(adjoint(v), inner @ adjoint(v)))
    return result if x.dtype.kind == "c" else np.real(result)


def eig(x: Any) -> Any:
    """Record np.linalg.eig. The results are complex, for matrices whose eigenvalues are all real too."""
    x = as_tensor(x)
    n = x.shape[-1]
    return _EIG(*_unpacked(record(eig_factors, (x,)), (n,), (n, n)))


def eigvals(x: Any) -> Any:
    """Record np.linalg.eigvals, complex as those of `eig`."""
    return eig(x)[0]


# -- QR ---------------------------------------------------------------------------------------------------------------


def _qr_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    m, n = x.shape[-2:]
    return (*x.shape[:-2], m * n + n * n), float_dtype(x)


def _qr(x: np.ndarray) -> np.ndarray:
    return _packed(*np.linalg.qr(x))


@primitive(shape=_qr_shape, bind=copying(_qr))
def qr_factors(g, out, x):
    """np.linalg.qr of matrices with no fewer rows than columns."""
    m, n = x.shape[-2:]
    q, r = _unpacked(out, (m, n), (n, n))
    gq, gr = _unpacked(np.conjugate(g), (m, n), (n, n))
    inner = r @ adjoint(gr) - adjoint(gq) @ q
    lower = np.tril(inner, -1)
    full = lower + adjoint(lower) + np.real(inner) * np.eye(n, dtype=np.real(inner).dtype)
    return np.conjugate(adjoint(np.linalg.solve(r, adjoint(gq + q @ full))))


def qr(x: Any, mode: str = "reduced") -> Any:
    """Record np.linalg.qr in the modes reduced and r, and complete where it is the same."""
    x = as_tensor(x)
    m, n = x.shape[-2:]
    if mode not in ("reduced", "r") and not (mode == "complete" and m <= n):
        raise UnsupportedFunctionError(
            f"np.linalg.qr with mode={mode!r} of shape {x.shape} is not covered; use mode='reduced'"
        )
    k = min(m, n)
    q, r = _unpacked(record(qr_factors, (x[..., :k],)), (m, k), (k, k))
    if n > k:
        r = np.concatenate([r, adjoint(q) @ x[..., k:]], axis=-1)
    return r if mode == "r" else _QR(q, r)


# -- singular values --------------------------------------------------------------------------------------------------


def _svd_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    m, n = x.shape[-2:]
    k = min(m, n)
    return (*x.shape[:-2], k + m * k + k * n), float_dtype(x)


def _svd(x: np.ndarray) -> np.ndarray:
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return _packed(s[..., None], u, vh)


@primitive(shape=_svd_shape, bind=copying(_svd))
def svd_factors(g, out, x):
    """np.linalg.svd without the vectors of singular values that are not there."""
    m, n = x.shape[-2:]
    k = min(m, n)
    s, u, vh = _unpacked(out, (k,), (m, k), (k, n))
    gs, gu, gvh = _unpacked(np.conjugate(g), (k,), (m, k), (k, n))
    s, v, gv = np.real(s), adjoint(vh), adjoint(gvh)
    f = _differences(np.square(s))
    inner_u, inner_v = adjoint(u) @ gu, adjoint(v) @ gv
    rows, columns = s[..., :, None], s[..., None, :]
    zero = columns == 0
    inverse = np.where(zero, 0.0, 1.0 / np.where(zero, 1.0, columns))
    inner = (f * (inner_u - adjoint(inner_u))) * columns + rows * (f * (inner_v - adjoint(inner_v)))
    on_diagonal = np.real(gs)[..., None, :]
    if x.dtype.kind == "c":  # the phase of u against that of v
        on_diagonal = on_diagonal + (inner_u - adjoint(inner_u)) * (0.5 * inverse)
    inner = np.where(np.eye(k, dtype=bool), on_diagonal, inner)
    result = u @ inner @ vh
    if m > k:
        result = result + ((gu - u @ inner_u) * inverse) @ vh
    if n > k:
        result = result + (u * inverse) @ adjoint(gv - v @ inner_v)
    return np.conjugate(result)


def svd(x: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
    """Record np.linalg.svd with full_matrices=False, or of square matrices, or without the vectors."""
    x = as_tensor(x)
    m, n = x.shape[-2:]
    k = min(m, n)
    if compute_uv and full_matrices and m != n:
        raise UnsupportedFunctionError(
            f"np.linalg.svd of shape {x.shape} with full_matrices=True has vectors without a gradient; pass "
            "full_matrices=False"
        )
    if hermitian:  # as NumPy, from one triangle
        values, vectors = eigh(x)
        order = np.argsort(np.abs(values))[..., ::-1]
        values = np.take_along_axis(values, order, axis=-1)
        u = np.take_along_axis(vectors, order[..., None, :], axis=-1)
        s, vh = np.abs(values), adjoint(u * np.sign(values)[..., None, :])
        return _SVD(u, s, vh) if compute_uv else s
    s, u, vh = _unpacked(record(svd_factors, (x,)), (k,), (m, k), (k, n))
    s = np.real(s)
    return _SVD(u, s, vh) if compute_uv else s


def svdvals(x: Any, /) -> Any:
    """Record np.linalg.svdvals."""
    return svd(x, compute_uv=False)


# -- norms ------------------------------------------------------------------------------------------------------------


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Record np.linalg.norm: every order of vectors, and 1, 2, inf, -1, -2, -inf, fro and nuc of matrices."""
    x = as_tensor(x)
    if x.dtype.kind in "biu":
        x = x.astype(np.float64)
    if axis is None and (ord is None or (ord == 2 and x.ndim == 1) or (ord == "fro" and x.ndim == 2)):
        return np.sqrt(np.sum(_squares(x), axis=None, keepdims=keepdims))
    axes = axis if isinstance(axis, tuple | list) else tuple(range(x.ndim)) if axis is None else (axis,)
    axes = tuple([int(a) % x.ndim for a in axes])
    if len(axes) == 1:
        return _vector_norm(x, ord, axes[0], keepdims)
    if len(axes) == 2:
        return _matrix_norm(x, ord, axes, keepdims)
    raise ValueError(f"np.linalg.norm: expected one or two axes, got {axis} of shape {x.shape}")


def _squares(x: Any) -> Any:
    return np.square(np.real(x)) + np.square(np.imag(x)) if x.dtype.kind == "c" else np.square(x)


def _vector_norm(x: Any, ord: Any, axis: Any, keepdims: bool) -> Any:
    if ord is None or ord == 2:
        return np.sqrt(np.sum(_squares(x), axis=axis, keepdims=keepdims))
    if ord in (np.inf, -np.inf):
        return (np.max if ord > 0 else np.min)(np.abs(x), axis=axis, keepdims=keepdims)
    if ord == 0:
        return np.sum((x != 0).astype(x.real.dtype), axis=axis, keepdims=keepdims)
    if isinstance(ord, str):
        raise ValueError(f"np.linalg.norm: {ord!r} is not an order of vectors")
    if ord == 1:
        return np.sum(np.abs(x), axis=axis, keepdims=keepdims)
    return np.sum(np.abs(x) ** ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


def _matrix_norm(x: Any, ord: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    if ord in (None, "fro"):
        return np.sqrt(np.sum(_squares(x), axis=axes, keepdims=keepdims))
    if ord in (1, -1, np.inf, -np.inf):
        summed, chosen = axes if abs(ord) == 1 else axes[::-1]
        sums = np.sum(np.abs(x), axis=summed, keepdims=True)
        result = (np.max if ord > 0 else np.min)(sums, axis=chosen, keepdims=True)
        return result if keepdims else np.squeeze(result, axis=axes)
    if ord not in (2, -2, "nuc"):
        raise ValueError(f"np.linalg.norm: {ord!r} is not an order of matrices")
    values = svdvals(np.moveaxis(x, axes, (-2, -1)))
    result = np.sum(values, axis=-1) if ord == "nuc" else values[..., 0 if ord == 2 else -1]
    return np.expand_dims(result, axes) if keepdims else result


def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    """Record np.linalg.vector_norm; several axes are taken as one."""
    x = as_tensor(x)
    axes = normalize_axes(axis, x.ndim)
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = np.reshape(np.transpose(x, (*kept, *axes)), (*[x.shape[i] for i in kept], -1))
    result = _vector_norm(flat, ord, -1, False)
    return np.expand_dims(result, axes) if is_given(keepdims) and keepdims else result


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """Record np.linalg.matrix_norm, of the last two axes."""
    return norm(x, ord, (-2, -1), keepdims)


def cond(x: Any, p: Any = None) -> Any:
    """Record np.linalg.cond."""
    if p in (None, 2, -2):
        values = svdvals(x)
        return values[..., -1] / values[..., 0] if p == -2 else values[..., 0] / values[..., -1]
    return norm(x, p, (-2, -1)) * norm(np.linalg.inv(x), p, (-2, -1))
