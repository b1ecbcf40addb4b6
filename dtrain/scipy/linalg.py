# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""scipy.linalg: factors, linear systems, and functions of matrices, of traced and of plain arrays.

Every name of scipy.linalg is here; those that are defined below can be recorded. Options that only say what may be
overwritten or checked are accepted and have no effect on traced arrays. The rule of the matrix exponential is that of
Najfeld and Havel (1995): its derivative stands beside it in the exponential of a matrix of twice the size.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
from scipy import linalg

from dtrain.errors import ShapeError
from dtrain.graph import Tensor
from dtrain.graph.ops.contraction import pair
from dtrain.graph.ops.solving import copying, float_dtype, square_expects, square_shape, turned
from dtrain.graph.primitive import Shape, as_tensor, primitive, record
from dtrain.graph.tensor import format_line, user_line

__all__ = [
    "block_diag",
    "cho_factor",
    "cho_solve",
    "cholesky",
    "det",
    "expm",
    "inv",
    "solve",
    "solve_banded",
    "solve_sylvester",
    "solve_triangular",
    "sqrtm",
]


def __getattr__(name: str) -> Any:
    return getattr(linalg, name)


def _traced_only(recorded: Any) -> Any:
    """Call SciPy's function of this name unless something among the arguments is traced."""
    plain = getattr(linalg, recorded.__name__)

    @wraps(recorded)
    def function(*args: Any, **options: Any) -> Any:
        given = [*args, *options.values()]
        given += [x for a in given if isinstance(a, tuple | list) for x in a]
        return recorded(*args, **options) if any(isinstance(a, Tensor) for a in given) else plain(*args, **options)

    return function


# -- factors and determinants ------------------------------------------------------------------------------------------


@_traced_only
def cholesky(a: Any, lower: bool = False, overwrite_a: bool = False, check_finite: bool = True) -> Any:
    """Return the Cholesky factor, the upper one unless `lower`."""
    return np.linalg.cholesky(a) if lower else np.linalg.cholesky(a, upper=True)


@_traced_only
def cho_factor(a: Any, lower: bool = False, overwrite_a: bool = False, check_finite: bool = True) -> Any:
    """Return (the Cholesky factor, whether it is the lower one); the other triangle is zero."""
    return (np.linalg.cholesky(a) if lower else np.linalg.cholesky(a, upper=True)), lower


@_traced_only
def cho_solve(c_and_lower: Any, b: Any, overwrite_b: bool = False, check_finite: bool = True) -> Any:
    """Solve A x = b with the result of cho_factor."""
    factor, lower = c_and_lower
    first = solve_triangular(factor, b, trans=0 if lower else 2, lower=lower)
    return solve_triangular(factor, first, trans=2 if lower else 0, lower=lower)


@_traced_only
def det(a: Any, overwrite_a: bool = False, check_finite: bool = True) -> Any:
    """Return the determinant of matrices (…, n, n), in double precision as SciPy has it."""
    return np.linalg.det(a.astype(np.result_type(a.dtype, np.float64)))


@_traced_only
def inv(a: Any, overwrite_a: bool = False, check_finite: bool = True, **assumed: Any) -> Any:
    """Return the inverse."""
    return np.linalg.inv(a)


@_traced_only
def block_diag(*arrays: Any) -> Any:
    """Return the matrix that has these on its diagonal and zeros beside them."""
    parts = [np.atleast_2d(a) for a in arrays]
    width = sum(p.shape[1] for p in parts)
    rows, before = [], 0
    for part in parts:
        rows.append(np.pad(part, ((0, 0), (before, width - before - part.shape[1]))))
        before += part.shape[1]
    return np.concatenate(rows)


# -- linear systems ----------------------------------------------------------------------------------------------------


@_traced_only
def solve(a: Any, b: Any, lower: bool = False, *, transposed: bool = False, **options: Any) -> Any:
    """Solve a x = b, or aᵀ x = b with `transposed`; what SciPy may assume of a (`assume_a`) is not made use of."""
    return np.linalg.solve(turned(a) if transposed else a, b)


_TRANS = {0: 0, 1: 1, 2: 2, "N": 0, "T": 1, "C": 2}


def _triangular_shape(a: Any, b: Any, **static: Any) -> tuple[Shape, np.dtype[Any]]:
    shape, _ = square_shape(a)
    if len(shape) != 2 or len(b.shape) != 2 or b.shape[0] != shape[0]:
        raise ValueError("rows differ")
    return b.shape, float_dtype(a, b)


def _triangular_expects(*inputs: Any, **static: Any) -> str:
    return "(n, n) and (n,) or (n, k)"


def _triangular(a: np.ndarray, b: np.ndarray, *, trans: int, lower: bool, unit: bool) -> Any:
    if b.shape[0] == 0:
        return np.zeros(b.shape)
    return linalg.solve_triangular(a, b, trans, lower, unit, check_finite=False)


@primitive(shape=_triangular_shape, bind=copying(_triangular), expects=_triangular_expects)
def triangular_solve(g, out, a, b, *, trans, lower, unit):
    """scipy.linalg.solve_triangular of a matrix, or with `trans` of its transpose."""
    back = record(triangular_solve, (a, g), {"trans": 1 - trans, "lower": lower, "unit": unit})
    outer = -(out @ turned(back) if trans else back @ turned(out))
    k = int(unit)
    return (np.tril(outer, -k) if lower else np.triu(outer, k)), back


@_traced_only
def solve_triangular(
    a: Any,
    b: Any,
    trans: Any = 0,
    lower: bool = False,
    unit_diagonal: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
) -> Any:
    """Solve a x = b, with `trans` 1 or "T" aᵀ x = b, with 2 or "C" aᴴ x = b, for a triangular a (n, n) and b (n,) or
    (n, k). Only the triangle that is named is read, and has a gradient."""
    a, b = pair(a, b)
    if _TRANS[trans] == 2:
        a = np.conjugate(a)
    static = {"trans": min(_TRANS[trans], 1), "lower": bool(lower), "unit": bool(unit_diagonal)}
    if b.ndim == 1:
        return record(triangular_solve, (a, b[:, None]), static)[:, 0]
    return record(triangular_solve, (a, b), static)


def _banded_shape(ab: Any, b: Any, *, bands: tuple[int, int]) -> tuple[Shape, np.dtype[Any]]:
    if len(ab.shape) != 2 or len(b.shape) != 2 or ab.shape[0] != sum(bands) + 1 or ab.shape[1] != b.shape[0]:
        raise ValueError("rows differ")
    return b.shape, float_dtype(ab, b)


def _banded_expects(*inputs: Any, bands: tuple[int, int]) -> str:
    return f"{sum(bands) + 1} diagonals ({sum(bands) + 1}, n) and (n,) or (n, k)"


def _banded(ab: np.ndarray, b: np.ndarray, *, bands: tuple[int, int]) -> Any:
    return linalg.solve_banded(bands, ab, b, check_finite=False)


@primitive(shape=_banded_shape, bind=copying(_banded), expects=_banded_expects)
def banded_solve(g, out, ab, b, *, bands):
    """scipy.linalg.solve_banded: row upper + i - j of ab holds the matrix's element (i, j), in column j."""
    lower, upper = bands
    transposed = np.stack([np.roll(ab[upper - d], -d) for d in range(-lower, upper + 1)])
    back = record(banded_solve, (transposed, g), {"bands": (upper, lower)})
    places = np.arange(ab.shape[1])
    rows = []
    for d in range(upper, -lower - 1, -1):
        is_inside = (places - d >= 0) & (places - d < ab.shape[1])
        rows.append(np.where(is_inside, -np.sum(np.roll(back, d, axis=0) * out, axis=1), 0))
    return np.stack(rows), back


@_traced_only
def solve_banded(
    l_and_u: tuple[int, int],
    ab: Any,
    b: Any,
    overwrite_ab: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
) -> Any:
    """Solve a x = b for a banded matrix given by its diagonals: ab[u + i - j, j] is a[i, j]."""
    ab, b = pair(ab, b)
    static = {"bands": (int(l_and_u[0]), int(l_and_u[1]))}
    if b.ndim == 1:
        return record(banded_solve, (ab, b[:, None]), static)[:, 0]
    return record(banded_solve, (ab, b), static)


def _sylvester_shape(a: Any, b: Any, q: Any) -> tuple[Shape, np.dtype[Any]]:
    if len(a.shape) != 2 or len(b.shape) != 2 or q.shape != (square_shape(a)[0][0], square_shape(b)[0][0]):
        raise ValueError("shapes differ")
    return q.shape, float_dtype(a, b, q)


def _sylvester_expects(*inputs: Any) -> str:
    return "(m, m), (n, n) and (m, n)"


@primitive(shape=_sylvester_shape, bind=copying(linalg.solve_sylvester), expects=_sylvester_expects)
def sylvester_solve(g, out, a, b, q):
    """scipy.linalg.solve_sylvester."""
    back = record(sylvester_solve, (turned(a), turned(b), g))
    return -(back @ turned(out)), -(turned(out) @ back), back


@_traced_only
def solve_sylvester(a: Any, b: Any, q: Any) -> Any:
    """Solve a x + x b = q for matrices of shapes (m, m), (n, n) and (m, n)."""
    graph = next(x.graph for x in (a, b, q) if isinstance(x, Tensor))
    return record(sylvester_solve, [as_tensor(x, graph) for x in (a, b, q)])


# -- functions of matrices ---------------------------------------------------------------------------------------------


def _root(x: np.ndarray) -> Any:
    root = linalg.sqrtm(x)
    if np.iscomplexobj(root) and not np.iscomplexobj(x):
        raise np.linalg.LinAlgError("the square root of this real matrix is complex, pass a.astype(complex)")
    return root


@primitive(shape=square_shape, bind=copying(_root), expects=square_expects, name="sqrtm")
def sqrtm_(g, out, x):
    """scipy.linalg.sqrtm, the principal square root."""
    return record(sylvester_solve, (turned(out), turned(out), g))


@_traced_only
def sqrtm(A: Any) -> Any:
    """Return the principal square root of a matrix (n, n).

    That of a real matrix is complex if an eigenvalue is negative. A recorded function has results of one dtype, so this
    raises LinAlgError then, unless it may look at values (`compile=False`); give it a complex matrix instead.
    """
    x = as_tensor(A)
    if x.ndim != 2:
        raise ShapeError(f"sqrtm: expected one matrix (n, n), got {x.shape}; made at {format_line(user_line())}")
    if x.graph.is_branching_allowed and x.dtype.kind != "c" and np.iscomplexobj(linalg.sqrtm(x.value)):
        x = x.astype(np.result_type(float_dtype(x), np.complex64))
    return record(sqrtm_, (x,))


@primitive(shape=square_shape, bind=copying(linalg.expm), expects=square_expects, name="expm")
def expm_(g, out, x):
    """scipy.linalg.expm."""
    n = x.shape[-1]
    upper = np.concatenate([turned(x), g], axis=-1)
    whole = np.concatenate([upper, np.concatenate([np.zeros_like(x), turned(x)], axis=-1)], axis=-2)
    return record(expm_, (whole,))[..., :n, n:]


@_traced_only
def expm(A: Any) -> Any:
    """Return the exponential of matrices (…, n, n)."""
    return record(expm_, (A,))
