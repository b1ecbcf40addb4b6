"""scipy.special: its ufuncs, and the functions that are none, of traced and of plain arrays.

Every name of scipy.special is here; those that are defined below can be recorded, and so can the ufuncs that models.md
lists.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from dtrain.errors import UnsupportedFunctionError
from dtrain.graph import Tensor, log_softmax, softmax, stop_gradient
from dtrain.graph import logsumexp as plain_logsumexp

__all__ = ["log_softmax", "logsumexp", "multigammaln", "polygamma", "softmax"]


def __getattr__(name: str) -> Any:
    return getattr(special, name)


def logsumexp(a: Any, axis: Any = None, b: Any = None, keepdims: bool = False, return_sign: bool = False) -> Any:
    """Return log Σ b·e^a over the axes (None: all) without overflow; b broadcasts with a and is 1 by default.

    With `return_sign`, (log |Σ b·e^a|, the sign of the sum); without it a negative sum gives nan.
    """
    a = a if isinstance(a, Tensor) else np.asarray(a)
    if b is None:
        result = plain_logsumexp(a, axis, keepdims)
        return (result, np.ones_like(result)) if return_sign else result
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    a = np.broadcast_to(a, shape)
    top = stop_gradient(np.max(np.where(np.equal(b, 0), -np.inf, a), axis=axis, keepdims=True))
    top = np.where(np.isfinite(top), top, 0.0)
    shifted = a - top
    total = np.sum(b * np.exp(np.where(np.equal(b, 0), np.minimum(shifted, 0.0), shifted)), axis=axis, keepdims=True)
    if not keepdims:
        total, top = (np.squeeze(part, axis=axis) for part in (total, top))
    if return_sign:
        return np.log(np.abs(total)) + top, np.sign(total)
    return np.log(total) + top


def polygamma(n: Any, x: Any) -> Any:
    """Return the n-th derivative of the digamma function at x; n is a constant whole number, or an array of them."""
    if isinstance(n, Tensor):
        raise UnsupportedFunctionError(f"scipy.special.polygamma of a traced order at {n.location}: pass a number")
    n = np.asarray(n)
    x = x if isinstance(x, Tensor) else np.asarray(x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(float)
    order = np.where(n == 0, 1.0, n).astype(dtype)
    sign = np.where(n % 2 == 1, 1.0, -1.0).astype(dtype)
    higher = sign * special.gamma(order + 1.0) * special.zeta(order + 1.0, x)
    return np.where(n == 0, special.psi(x), higher) if np.any(n == 0) else higher


def multigammaln(a: Any, d: int) -> Any:
    """Return the logarithm of the multivariate gamma function of dimension d, for a > (d - 1)/2."""
    if not isinstance(a, Tensor) and np.any(np.asarray(a) <= 0.5 * (d - 1)):
        raise ValueError(f"multigammaln: a must be above (d - 1)/2 = {0.5 * (d - 1):g}")
    result = special.gammaln(a) + d * (d - 1) / 4.0 * math.log(math.pi)
    for j in range(1, d):
        result = result + special.gammaln(a - j / 2.0)
    return result
