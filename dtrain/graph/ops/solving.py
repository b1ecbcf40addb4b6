# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Inverses, linear systems, determinants and least squares, of matrices and stacks of them.

The rules are those of Giles, Collected matrix derivative results for forward and reverse mode algorithmic
differentiation (2008), and of Golub and Pereyra (1973) for the pseudoinverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.contraction import pair
from dtrain.graph.ops.reduction import is_given
from dtrain.graph.primitive import Call, Shape, as_tensor, primitive, record


def float_dtype(*arrays: Any) -> np.dtype[Any]:
    """Return the dtype that LAPACK computes in."""
    dtype = np.result_type(*[a.dtype for a in arrays])
    return dtype if dtype.kind in "fc" else np.dtype(np.float64)


def square_shape(x: Any, **static: Any) -> tuple[Shape, np.dtype[Any]]:
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError("not square")
    return x.shape, float_dtype(x)


def square_expects(*inputs: Any, **static: Any) -> str:
    return "square matrices (…, n, n)"


def copying(function: Callable[..., Any]) -> Callable[..., Call]:
    """Make a binder of a NumPy function that cannot write into given memory."""

    def bind(out: np.ndarray, *values: np.ndarray, **static: Any) -> Call:
        return lambda: np.copyto(out, function(*values, **static))

    return bind


def turned(x: Any) -> Any:
    """Swap the last two axes."""
    return np.swapaxes(x, -1, -2)


def adjoint(x: Any) -> Any:
    """Return the conjugate transpose."""
    return turned(np.conjugate(x))


@primitive(shape=square_shape, bind=copying(np.linalg.inv), expects=square_expects, name="inv")
def inv_(g, out, x):
    """np.linalg.inv."""
    return -(turned(out) @ g @ turned(out))


def _scalar_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    shape, dtype = square_shape(x)
    return shape[:-2], dtype


@primitive(shape=_scalar_shape, bind=copying(np.linalg.det), expects=square_expects, name="det")
def det_(g, out, x):
    """np.linalg.det. The gradient is the matrix of cofactors, which a singular matrix has too."""
    return g[..., None, None] * cofactors(x)


def _cofactors(x: np.ndarray) -> np.ndarray:
    """Return det(x)·x^-T from the singular values, without dividing by any."""
    u, s, vh = np.linalg.svd(x)
    n = x.shape[-1]
    others = np.prod(np.where(np.eye(n, dtype=bool), 1, s[..., None, :]), axis=-1)
    sign = np.linalg.det(u) * np.linalg.det(vh)
    result: np.ndarray = sign[..., None, None] * (u.conj() * others[..., None, :]) @ vh.conj()
    return result


@primitive(shape=square_shape, bind=copying(_cofactors), expects=square_expects)
def cofactors(g, out, x):
    """The matrix of cofactors; its own gradient needs the inverse."""
    back = turned(np.linalg.inv(x))
    inner = np.sum(g * out, axis=(-2, -1), keepdims=True)
    return inner * back - out @ turned(g) @ back


def _logdet(x: np.ndarray) -> Any:
    return np.linalg.slogdet(x)[1]


def _signdet(x: np.ndarray) -> Any:
    return np.linalg.slogdet(x)[0]


def _real_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    shape, dtype = _scalar_shape(x)
    return shape, np.zeros(0, dtype).real.dtype


@primitive(shape=_real_shape, bind=copying(_logdet), expects=square_expects)
def logdet(g, out, x):
    """log |det x|."""
    return g[..., None, None] * turned(np.linalg.inv(x))


@primitive(shape=_scalar_shape, bind=copying(_signdet), expects=square_expects)
def signdet(g, out, x):
    """The sign of the determinant, flat; of complex matrices the determinant over its absolute value."""
    if x.dtype.kind != "c":
        return None
    turning = np.real(1j * g * out)
    return (-1j * turning)[..., None, None] * turned(np.linalg.inv(x))


def _solve_shape(a: Any, b: Any) -> tuple[Shape, np.dtype[Any]]:
    n = square_shape(a)[0][-1]
    if len(b.shape) < 2 or b.shape[-2] != n:
        raise ValueError("rows differ")
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), n, b.shape[-1]), float_dtype(a, b)


def _solve_expects(a: Any, b: Any) -> str:
    return "(…, n, n) and (n,) or (…, n, k)"


@primitive(shape=_solve_shape, bind=copying(np.linalg.solve), expects=_solve_expects, name="solve")
def solve_(g, out, a, b):
    """np.linalg.solve of matrices on the right."""
    back = np.linalg.solve(turned(a), g)
    return -(back @ turned(out)), back


def solve(a: Any, b: Any) -> Any:
    """Record np.linalg.solve; a vector on the right is one column."""
    a, b = pair(a, b)
    if b.ndim == 1:
        return record(solve_, (a, b[:, None]))[..., 0]
    return record(solve_, (a, b))


def inv(x: Any) -> Any:
    """Record np.linalg.inv."""
    return record(inv_, (x,))


def det(x: Any) -> Any:
    """Record np.linalg.det."""
    return record(det_, (x,))


def slogdet(x: Any) -> Any:
    """Record np.linalg.slogdet."""
    return _SLOGDET(record(signdet, (x,)), record(logdet, (x,)))


_SLOGDET = type(np.linalg.slogdet(np.eye(1)))


def matrix_power(x: Any, n: int) -> Any:
    """Record np.linalg.matrix_power for a static n by repeated squaring."""
    x = as_tensor(x)
    if n < 0:
        x, n = inv(x), -n
    if n == 0:
        return np.broadcast_to(np.eye(x.shape[-1], dtype=x.dtype), x.shape) + np.zeros_like(x)
    result = None
    while n:
        if n & 1:
            result = x if result is None else result @ x
        n >>= 1
        if n:
            x = x @ x
    return result


def _pinv_shape(x: Any, *, rcond: float, hermitian: bool) -> tuple[Shape, np.dtype[Any]]:
    if len(x.shape) < 2:
        raise ValueError("not a matrix")
    return (*x.shape[:-2], x.shape[-1], x.shape[-2]), float_dtype(x)


def _matrix_expects(*inputs: Any, **static: Any) -> str:
    return "matrices (…, m, n)"


def _pinv(x: np.ndarray, *, rcond: float, hermitian: bool) -> np.ndarray:
    result: np.ndarray = np.linalg.pinv(x, rcond, hermitian)
    return result


def _pinv_adjoint(g: Any, p: Any, x: Any) -> Any:
    """Return the gradient of x from that of its pseudoinverse p."""
    g = np.conjugate(g)
    pt, gt = adjoint(p), adjoint(g)
    left = gt @ p @ pt
    right = pt @ p @ gt
    return np.conjugate(-(pt @ g @ pt) + left - x @ (p @ left) + right - (right @ p) @ x)


@primitive(shape=_pinv_shape, bind=copying(_pinv), expects=_matrix_expects, name="pinv")
def pinv_(g, out, x, *, rcond, hermitian):
    """np.linalg.pinv, at matrices whose rank does not change."""
    return _pinv_adjoint(g, out, x)


def pinv(x: Any, rcond: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
    """Record np.linalg.pinv with a static cutoff."""
    x = as_tensor(x)
    cutoff = rtol if is_given(rtol) else rcond if rcond is not None else 1e-15
    return record(pinv_, (x,), {"rcond": float(cutoff), "hermitian": hermitian})


def _lstsq_shape(a: Any, b: Any, *, rcond: Any) -> tuple[Shape, np.dtype[Any]]:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[0]:
        raise ValueError("rows differ")
    return (a.shape[1], b.shape[1]), float_dtype(a, b)


def _lstsq(a: np.ndarray, b: np.ndarray, *, rcond: Any) -> np.ndarray:
    result: np.ndarray = np.linalg.lstsq(a, b, rcond)[0]
    return result


def _lstsq_expects(a: Any, b: Any, **static: Any) -> str:
    return "(m, n) and (m,) or (m, k)"


@primitive(shape=_lstsq_shape, bind=copying(_lstsq), expects=_lstsq_expects, name="lstsq")
def lstsq_(g, out, a, b, *, rcond):
    """The solution of np.linalg.lstsq, of least norm where there are many."""
    p = np.linalg.pinv(a)
    return _pinv_adjoint(g @ turned(b), p, a), turned(p) @ g


def _rank_shape(x: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape[:-2], np.dtype(np.intp)


@primitive(shape=_rank_shape, bind=copying(np.linalg.matrix_rank), is_differentiable=False, name="matrix_rank")
def matrix_rank_(g, out, x):
    """np.linalg.matrix_rank; no gradient."""


def matrix_rank(x: Any, tol: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
    """Record np.linalg.matrix_rank with the usual cutoff; no gradient."""
    if tol is not None or rtol is not None or hermitian:
        raise UnsupportedFunctionError("np.linalg.matrix_rank of a traced array is covered without tol and hermitian")
    return record(matrix_rank_, (x,))


def lstsq(a: Any, b: Any, rcond: Any = None) -> Any:
    """Record np.linalg.lstsq: (solution, residuals, rank, singular values); the residuals as of full rank."""
    a, b = pair(a, b)
    columns = b[:, None] if b.ndim == 1 else b
    x = record(lstsq_, (a, columns), {"rcond": rcond})
    if a.shape[0] > a.shape[1]:
        rest = columns - a @ x
        residuals = np.sum(np.real(rest * np.conjugate(rest)), axis=0)
    else:
        residuals = a.graph.constant(np.empty(0, x.dtype))
    singular = np.linalg.svd(a, compute_uv=False)
    return (x[:, 0] if b.ndim == 1 else x), residuals, matrix_rank(a).astype(np.int32), singular


def tensorinv(x: Any, ind: int = 2) -> Any:
    """Record np.linalg.tensorinv."""
    x = as_tensor(x)
    size = int(np.prod(x.shape[ind:]))
    return np.reshape(inv(np.reshape(x, (size, -1))), x.shape[ind:] + x.shape[:ind])


def tensorsolve(a: Any, b: Any, axes: Any = None) -> Any:
    """Record np.linalg.tensorsolve."""
    a, b = pair(a, b)
    if axes is not None:
        moved = [ax % a.ndim for ax in axes]
        a = np.transpose(a, [i for i in range(a.ndim) if i not in moved] + moved)
    shape = a.shape[b.ndim :]
    return np.reshape(solve(np.reshape(a, (b.size, b.size)), np.reshape(b, -1)), shape)
