# mypy: allow-untyped-defs
"""Polynomials by their coefficients, the highest power first: values, sums, products, derivatives, fits.

Leading coefficients that are zero stay, so that no shape depends on values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph.ops.joining import graph_of
from dtrain.graph.primitive import as_tensor


def polyval(p: Any, x: Any) -> Any:
    """Record np.polyval by Horner's scheme."""
    x = as_tensor(x, graph_of([p]))
    result = np.zeros_like(x)
    for c in p if graph_of([p]) else np.asarray(p):
        result = result * x + c
    return result


def vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    """Record np.vander: the powers of x as columns."""
    x = x.astype(np.promote_types(x.dtype, int))
    powers = [np.ones_like(x)]
    for _ in range((x.shape[0] if N is None else N) - 1):
        powers.append(powers[-1] * x)
    return np.stack(powers if increasing else powers[::-1], axis=-1)


def _coefficients(*polynomials: Any) -> list[Any]:
    graph = graph_of(polynomials)
    return [np.atleast_1d(as_tensor(p, graph)) for p in polynomials]


def _of_one_length(a: Any, b: Any) -> tuple[Any, Any]:
    a, b = _coefficients(a, b)
    n = max(a.size, b.size)
    return np.pad(a, (n - a.size, 0)), np.pad(b, (n - b.size, 0))


def polyadd(a1: Any, a2: Any) -> Any:
    """Record np.polyadd."""
    a, b = _of_one_length(a1, a2)
    return a + b


def polysub(a1: Any, a2: Any) -> Any:
    """Record np.polysub."""
    a, b = _of_one_length(a1, a2)
    return a - b


def polymul(a1: Any, a2: Any) -> Any:
    """Record np.polymul."""
    a, b = _coefficients(a1, a2)
    return np.convolve(a, b)


def polyder(p: Any, m: int = 1) -> Any:
    """Record np.polyder: the m-th derivative."""
    if m < 0:
        raise ValueError(f"np.polyder: the order of a derivative is not negative, got {m}")
    (p,) = _coefficients(p)
    for _ in range(m):
        p = p[:-1] * np.arange(p.size - 1, 0, -1)
    return p


def polyint(p: Any, m: int = 1, k: Any = None) -> Any:
    """Record np.polyint: the m-th integral, with the constants k."""
    if m < 0:
        raise ValueError(f"np.polyint: the order of an integral is not negative, got {m}")
    given: Any = 0.0 if k is None else k
    p, constants = _coefficients(p, given)
    if constants.size not in (1, m):
        raise ValueError(f"np.polyint: {constants.size} constants for {m} integrals")
    for i in range(m):
        constant = constants[i : i + 1] if constants.size > 1 else constants
        p = np.concatenate([p / np.arange(p.size, 0, -1), constant])
    return p


def poly(seq_of_zeros: Any) -> Any:
    """Record np.poly of real roots."""
    (roots,) = _coefficients(seq_of_zeros)
    if roots.ndim != 1 or roots.dtype.kind == "c":
        raise UnsupportedFunctionError(
            "np.poly of matrices and of complex roots is not covered; multiply with np.polymul"
        )
    roots = roots.astype(np.promote_types(roots.dtype, np.float32) if roots.dtype.kind == "f" else np.float64)
    result: Any = np.ones_like(roots, shape=(1,))
    for root in roots:
        result = np.pad(result, (0, 1)) - np.pad(result * root, (1, 0))
    return result


def polyfit(x: Any, y: Any, deg: int, rcond: Any = None, full: bool = False, w: Any = None, cov: Any = False) -> Any:
    """Record np.polyfit: the coefficients of the polynomial of least squares."""
    if full or cov:
        raise UnsupportedFunctionError("np.polyfit is covered without full= and cov=, which ask for more than the fit")
    graph = graph_of([x, y, w])
    x, y = (as_tensor(a, graph) + 0.0 for a in (x, y))
    left, right = np.vander(x, int(deg) + 1), y
    if w is not None:
        w = as_tensor(w, graph) + 0.0
        left, right = left * w[:, None], right * (w[:, None] if right.ndim == 2 else w)
    scale = np.sqrt(np.sum(np.square(left), axis=0))
    cut = x.shape[0] * np.finfo(x.dtype).eps if rcond is None else rcond
    found = np.linalg.lstsq(left / scale, right, cut)[0]
    return found / (scale[:, None] if found.ndim == 2 else scale)
