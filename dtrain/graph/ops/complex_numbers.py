# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Complex numbers: parts, conjugate and angle.

The gradient of a real loss L with respect to z = a + ib is kept as ∂L/∂a - i·∂L/∂b, so that the rule of every
holomorphic function is its real rule, and the real part is the gradient of a real number that became complex.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.graph.primitive import as_tensor, primitive


def _real_view(z: np.ndarray) -> np.ndarray:
    return z.real


def _imag_view(z: np.ndarray) -> np.ndarray:
    return z.imag


@primitive(view=_real_view, name="real")
def real_(g, out, z):
    """The real part, a view."""
    return g


@primitive(view=_imag_view, name="imag")
def imag_(g, out, z):
    """The imaginary part, a view."""
    return g * z.dtype.type(-1j)


@primitive(np.conjugate, name="conjugate")
def conjugate_(g, out, z):
    """a - ib."""
    return np.conjugate(g)


def real(x: Any) -> Any:
    """Record np.real; of real numbers the array itself."""
    x = as_tensor(x)
    return real_(x) if x.dtype.kind == "c" else x


def imag(x: Any) -> Any:
    """Record np.imag; of real numbers zeros."""
    x = as_tensor(x)
    return imag_(x) if x.dtype.kind == "c" else np.zeros_like(x)


def real_if_close(x: Any, tol: float = 100) -> Any:
    """Record np.real_if_close; of complex numbers the dtype depends on the values, so only where these may be asked."""
    x = as_tensor(x)
    if x.dtype.kind != "c":
        return x
    limit = tol * np.finfo(x.dtype).eps if tol > 1 else tol
    return real(x) if np.all(np.abs(imag(x)) < limit) else x


def conjugate(x: Any) -> Any:
    """Record np.conjugate; of real numbers the array itself, of booleans as integers (NumPy has it so)."""
    x = as_tensor(x)
    return conjugate_(x) if x.dtype.kind == "c" else x.astype(np.int8) if x.dtype.kind == "b" else x


def angle(x: Any, deg: bool = False) -> Any:
    """Record np.angle: the argument of a complex number in radians, or in degrees with `deg`."""
    found = np.arctan2(imag(x), real(x))
    return found * (180.0 / np.pi) if deg else found


def iscomplex(x: Any) -> Any:
    """Record np.iscomplex: where the imaginary part is not 0."""
    return np.not_equal(imag(x), 0)


def isreal(x: Any) -> Any:
    """Record np.isreal: where the imaginary part is 0."""
    return np.equal(imag(x), 0)
