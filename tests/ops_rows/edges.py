"""Rows of options and corners of NumPy functions, of polynomials and of changes in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.ops_samples import CUBE, INSIDE, MASK, POSITIVE, V, X, Y, real, row, tensor

UNEVEN = np.array([0.0, 0.4, 1.1, 2.5])
SMALL, OTHER = real("small", 3), real("other", 5)

# -- reductions with options -------------------------------------------------------------------------------------------

row("nanmax where", lambda x: np.nanmax(x, axis=1, where=MASK, initial=-1.37), None, X)
row("std where one is left", lambda x: np.std(x, axis=1, where=[[True, True, False, False]] * 2 + [[True, False, False,
    False]]), None, X)  # fmt: skip
row("mean in integers", lambda x: x * np.mean(x, axis=1, dtype=int, keepdims=True), None, 10 * X)
row("var of a given mean", lambda x: np.var(x, axis=1, mean=np.mean(x, axis=1, keepdims=True)),
    lambda x: torch.var(x, 1, correction=0), X)  # fmt: skip
row("cov by weights", lambda x, w: np.cov(x, aweights=w, fweights=[1, 2, 1, 3]), None, X, POSITIVE[0])
row("cov by frequencies", lambda x: np.cov(x, fweights=[1, 0, 1, 3]),
    lambda x: torch.cov(x, fweights=tensor([1, 0, 1, 3])), X)  # fmt: skip
for _method in ("inverted_cdf", "averaged_inverted_cdf", "closest_observation", "interpolated_inverted_cdf", "hazen",
                "weibull", "median_unbiased", "normal_unbiased"):  # fmt: skip
    row(f"quantile {_method}", lambda x, m=_method: np.quantile(x, [0.02, 0.37, 0.75], axis=1, method=m), None, CUBE)
row("quantile traced q", lambda x, q: np.quantile(x, q, axis=1), None, X, np.array([0.1, 0.55]))
row("nanquantile", lambda x: np.nanquantile(np.where(MASK, np.nan, x), [0.2, 0.7], axis=1, keepdims=True), None, X)
row("nanpercentile", lambda x: np.nanpercentile(np.where(MASK, np.nan, x), 30), None, X)
row("sort_complex", lambda x, y: np.imag(np.sort_complex(x + 1j * y)), None, V, V[::-1] * 2)
row("lexsort", lambda x: x[np.lexsort((x, np.round(x)))], lambda x: torch.sort(x)[0], V)
row("digitize falling", lambda x: x * np.digitize(x, [1.2, 0.1, -1.03]), None, X)

# -- elementwise -------------------------------------------------------------------------------------------------------

row("ldexp", lambda x: np.ldexp(x, [1, -2, 0, 3]), lambda x: x * tensor([2, 0.25, 1, 8], dtype=x.dtype), X)
row("integers", lambda x: x * ((np.argsort(x) << 1 >> 1) + np.gcd(np.argsort(x), 2) + np.lcm(np.argsort(x), 3)
    + np.bitwise_count(np.argsort(x)) + (1 << np.argsort(x)) + (8 >> np.argsort(x))), None, X)  # fmt: skip
row("of bytes", lambda x: np.arctan2(np.array([200, 100, 3, 7], np.uint8), x) * np.hypot(x, np.int8(100)),
    lambda x: torch.arctan2(tensor([200, 100, 3, 7]).to(x.dtype), x) * torch.hypot(x, 0 * x + 100),
    POSITIVE)  # fmt: skip
row("sign of complex", lambda x, y: np.real(np.sign(x + 1j * y)) * np.imag(np.sign(x + 1j * y)),
    lambda x, y: x * y / (x * x + y * y), X, Y)  # fmt: skip
row("sinc of complex", lambda x, y: np.abs(np.sinc(0.4 * (x + 1j * y))), None, X, Y)
row("arccosh of complex", lambda x, y: np.imag(np.arccosh(x + 1j * y)), None, X - 3, POSITIVE)
row("float_power of complex", lambda x, y: np.abs(np.float_power(x + 1j * y, 1.5)), None, POSITIVE, Y)
row("allclose", lambda x: x * np.allclose(x, x + 1e-9, equal_nan=True) * np.array_equiv(x, x), lambda x: x * 1.0, X)

# -- arranging ---------------------------------------------------------------------------------------------------------

for _mode in ("reflect", "symmetric"):
    row(f"pad {_mode} odd", lambda x, m=_mode: np.pad(x, ((2, 1), (9, 7)), m, reflect_type="odd"), None, X)
row("take modes", lambda x: np.take(x, [5, -7], axis=1, mode="wrap") * np.take(x, [5, -7], mode="clip"),
    lambda x: x[:, [1, 1]] * x.ravel()[[5, 0]], X)  # fmt: skip
row("like of another shape", lambda x: np.full_like(x, x[0, 0], shape=(2, 5)) + np.ones_like(x, shape=(2, 5)) * x[1, 1],
    lambda x: (x[0, 0] + x[1, 1]).expand(2, 5), X)  # fmt: skip
row("apply_along_axis", lambda x: np.apply_along_axis(lambda v: np.outer(v, v[:2]), 1, x),
    lambda x: torch.einsum("aib,ajb->aijb", x, x[:, :2]), CUBE)  # fmt: skip
row("apply_over_axes", lambda x: np.apply_over_axes(np.sum, x, [0, 2]), lambda x: x.sum((0, 2), keepdim=True), CUBE)
row("indices of the shape", lambda x: x[np.tril_indices_from(x)] * x[np.triu_indices_from(x)]
    + np.sum(x[np.diag_indices_from(x)]) * x[np.ix_([0], [1, 2])][0, 0] + len(np.einsum_path("ij,jk", x, x)),
    lambda x: x[np.tril_indices(3)] * x[np.triu_indices(3)] + torch.trace(x) * x[0, 1] + 2,
    real("square", 3, 3))  # fmt: skip
row("ix_ of traced", lambda x: x[np.ix_(np.argmax(x, axis=1), [0, 2])] * 1.0,
    lambda x: x[torch.argmax(x, 1)][:, [0, 2]], X[:, :3])  # fmt: skip
row("where one argument", lambda x: x[np.nonzero(MASK)] * x[np.where(MASK)], lambda x: x[tensor(MASK)] ** 2, X)


def changed(x: Any) -> Any:
    y = np.zeros_like(x)
    np.fill_diagonal(y, x[0])
    np.put(y, [1, 5], 2 * x[1, :2])
    np.put_along_axis(y, np.array([[2], [1], [0]]), x[:, :1], 1)
    np.copyto(y, 3 * x, where=np.eye(3, dtype=bool)[:, [1, 2, 0]])
    return y


def changed_in_pytorch(x: Any) -> Any:
    zero = x[0, 0] * 0
    return torch.stack([
        torch.stack([x[0, 0], 2 * x[1, 0], 3 * x[0, 2]]),
        torch.stack([3 * x[1, 0], x[1, 0], 2 * x[1, 1]]),
        torch.stack([x[2, 0], 3 * x[2, 1], x[0, 2]]),
    ]) + zero  # fmt: skip


row("svd of one triangle", lambda x: np.linalg.svd(x + x.T, hermitian=True)[1] * np.linalg.svd(x + x.T)[1],
    lambda x: torch.linalg.svdvals(x + x.T) ** 2, real("square", 3, 3))  # fmt: skip
row("changes in place", changed, changed_in_pytorch, real("square", 3, 3))

# -- differences, products ---------------------------------------------------------------------------------------------

row("interp period", lambda x, f: np.interp(x, UNEVEN, f, period=3.3), None, 3 * X, V)
row("trapezoid of a matrix", lambda y, x: np.trapezoid(y, x, axis=-1), lambda y, x: torch.trapezoid(y, x, dim=-1), CUBE,
    np.cumsum(POSITIVE, axis=1))  # fmt: skip
row("geomspace", lambda a, b: np.geomspace(a, b, 5), None, np.array([1.5, -2.0]), np.array([40.0, -0.5]))
row("unwrap of a period", lambda x: np.unwrap(4 * x, period=3.0), None, OTHER)
row("vecdot axis", lambda x, y: np.vecdot(x, y, axis=0) + np.linalg.vecdot(x, y, axis=0),
    lambda x, y: 2 * (x * y[:, None]).sum(0), X, SMALL)  # fmt: skip
row("einsum path", lambda x, y: np.einsum("ij,kj,k->i", x, y, SMALL, optimize=["einsum_path", (0, 1), (0, 1)]),
    lambda x, y: torch.einsum("ij,kj,k->i", x, y, tensor(SMALL, dtype=x.dtype)), X, Y)  # fmt: skip

# -- polynomials -------------------------------------------------------------------------------------------------------

row("polyadd polysub", lambda x, y: np.polyadd(x, y) * np.polysub(x, y), None, SMALL, OTHER)
row("polymul", lambda x, y: np.polymul(x, y),
    lambda x, y: torch.conv1d(x[None, None], y.flip(0)[None, None], padding=4)[0, 0], SMALL, OTHER)  # fmt: skip
row("polyder polyint", lambda x: np.polyder(x, 2)[0] * np.polyint(x, 2, [1.0, 2.0]), None, OTHER)
row("poly", lambda x: np.poly(x), None, SMALL)
row("polyfit", lambda x, y, w: np.polyfit(x, y, 2, w=w), None, UNEVEN + 0.1, V, POSITIVE[0])
row("isin of a list", lambda x: x * np.isin(np.round(x), [0, 1]), None, INSIDE)
