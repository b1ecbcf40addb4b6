"""Rows of dtrain.scipy: functions of special, stats, signal and linalg that are no ufuncs."""

from __future__ import annotations

import numpy as np
import torch
from torch import distributions as d

from dtrain.scipy import integrate, linalg, signal, special, stats
from tests.ops_samples import ABOVE, CUBE, POSITIVE, V, X, real, row

UNIT = real("unit of stats", 3, 4, low=0.05, high=0.95)
ZERO, ONE = torch.tensor([0.0, 1.0], dtype=torch.float64)
LOC, SCALE = real("loc", 4), real("scale", 3, 1, low=0.6, high=2.0)
SQUARE = real("square of scipy", 3, 3) + 2.5 * np.eye(3)
BANDS = real("bands", 3, 4) + np.array([[0.0], [6.0], [0.0]])

# -- special -----------------------------------------------------------------------------------------------------------

for _axis, _keep in ((None, False), (1, True), ((0, 2), False)):
    _all = (0, 1, 2) if _axis is None else _axis
    row(f"scipy logsumexp {_axis}", lambda x, a=_axis, k=_keep: special.logsumexp(x, axis=a, keepdims=k),
        lambda x, a=_all, k=_keep: torch.logsumexp(x, a, keepdim=k), CUBE)  # fmt: skip
row("logsumexp by weights", lambda x, b: special.logsumexp(x, axis=0, b=b),
    lambda x, b: torch.log((b * x.exp()).sum(0)), X, POSITIVE)  # fmt: skip
row("logsumexp by zero and below", lambda x: special.logsumexp(x, axis=1, b=np.array([1, 0, 3, 4], x.dtype)),
    lambda x: torch.log((torch.tensor([1, 0, 3, 4]) * x.exp()).sum(1)), X)  # fmt: skip
row("logsumexp with its sign", lambda x: np.multiply(*special.logsumexp(x, b=-x / x, return_sign=True)),
    lambda x: -torch.logsumexp(x.ravel(), 0), X)  # fmt: skip
row("scipy softmax", lambda x: special.softmax(x, axis=1) * special.log_softmax(x, axis=1),
    lambda x: torch.softmax(x, 1) * torch.log_softmax(x, 1), X)  # fmt: skip
for _n in (0, 1, 3):
    _oracle = None if _n == 0 else lambda x, n=_n: torch.special.polygamma(n, x)
    row(f"polygamma {_n}", lambda x, n=_n: special.polygamma(n, x), _oracle, POSITIVE)
row("polygamma of orders", lambda x: special.polygamma([0, 1, 2, 3], x), None, POSITIVE)
row("multigammaln", lambda x: special.multigammaln(x, 3), lambda x: torch.special.multigammaln(x, 3), ABOVE)

# -- stats -------------------------------------------------------------------------------------------------------------

# (shapes, the distribution of PyTorch, where), each with loc and scale
for _name, _shapes, _theirs, _x in (
    ("norm", (), lambda: d.Normal(ZERO, ONE), X), ("t", (2.5,), lambda n: d.StudentT(n), X),
    ("laplace", (), lambda: d.Laplace(ZERO, ONE), X), ("cauchy", (), lambda: d.Cauchy(ZERO, ONE), X),
    ("logistic", (), None, X), ("uniform", (), None, 0.25 * UNIT), ("expon", (), lambda: d.Exponential(ONE), POSITIVE),
    ("gamma", (2.5,), lambda a: d.Gamma(a, ONE), POSITIVE), ("chi2", (2.5,), lambda k: d.Chi2(k), POSITIVE),
    ("beta", (1.5, 2.5), lambda a, b: d.Beta(a, b), 0.25 * UNIT),
    ("lognorm", (0.7,), lambda s: d.LogNormal(ZERO, s), POSITIVE),
):  # fmt: skip
    _d = getattr(stats, _name)
    _given = [np.full(4, s) for s in _shapes]
    _loc = LOC if _x is X else np.full(4, -0.25)
    _log = None
    if _theirs is not None:

        def _log(x, loc, scale, *shapes, f=_theirs):
            return f(*shapes).log_prob((x - loc) / scale) - torch.log(scale)

    row(f"{_name}.logpdf", lambda x, loc, scale, *a, f=_d: f.logpdf(x, *a, loc=loc, scale=scale), _log, _x, _loc, SCALE,
        *_given)  # fmt: skip
    row(f"{_name}.pdf", lambda x, *a, f=_d: f.pdf(x, *a),
        (lambda x, *a, f=_theirs: f(*a).log_prob(x).exp()) if _theirs else None, _x, *_given)  # fmt: skip
    for _method in ("cdf", "sf", "logcdf", "logsf"):
        _tail = getattr(_d, _method)
        row(f"{_name}.{_method}", lambda x, loc, scale, f=_tail, a=_shapes: f(x, *a, loc, scale), None, _x, _loc, SCALE)

_COUNTS = np.array([0, 3, 1, 2])
_COUNTED = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64)
row("poisson", lambda mu: stats.poisson.logpmf(_COUNTS, mu) + stats.poisson.pmf(_COUNTS, mu),
    lambda mu: (d.Poisson(mu).log_prob(_COUNTED)) + d.Poisson(mu).log_prob(_COUNTED).exp(),
    POSITIVE)  # fmt: skip
row("poisson.cdf", lambda mu: stats.poisson.cdf(_COUNTS, mu) - stats.poisson.sf(_COUNTS, mu), None, POSITIVE)
row("binom", lambda p: stats.binom.logpmf(_COUNTS, 5, p), lambda p: d.Binomial(5, p).log_prob(_COUNTED),
    UNIT)  # fmt: skip
row("binom.cdf", lambda p: stats.binom.cdf(_COUNTS, 3, p), None, UNIT)
row("bernoulli", lambda p: stats.bernoulli.logpmf(_COUNTS > 1, p) * stats.bernoulli.cdf(0, p),
    lambda p: d.Bernoulli(p).log_prob(torch.tensor(_COUNTS > 1, dtype=p.dtype)) * (1 - p), UNIT)  # fmt: skip
row("dirichlet", lambda x, a: stats.dirichlet.logpdf(x / np.sum(x, axis=0), a),
    lambda x, a: d.Dirichlet(a).log_prob((x / x.sum(0)).T), POSITIVE, POSITIVE[:, 0])  # fmt: skip
row("dirichlet.pdf", lambda x, a: stats.dirichlet.pdf(0.1 * x[:2], a), None, POSITIVE, POSITIVE[:, 0])


def covariance(a):
    return a @ a.mT + (np.eye(3, dtype=a.dtype) if isinstance(a.dtype, np.dtype) else torch.eye(3, dtype=a.dtype))


_mvn = stats.multivariate_normal
row("multivariate_normal", lambda x, m, a: _mvn.logpdf(x.T, m, covariance(a)),
    lambda x, m, a: d.MultivariateNormal(m, covariance(a)).log_prob(x.T), X, V[:3], SQUARE)  # fmt: skip
row("multivariate_normal.pdf", lambda x, v: _mvn.pdf(x, np.zeros(4, x.dtype), v) + _mvn.pdf(x[:, :1], cov=v[0]),
    None, X, POSITIVE[0])  # fmt: skip
row("multivariate_normal of a singular matrix",
    lambda x, a: _mvn.logpdf(a[:, :2] @ x, None, a[:, :2] @ a[:, :2].T, allow_singular=True), None, V[:2],
    SQUARE, orders=1)  # fmt: skip
row("multivariate_normal.entropy", lambda a: _mvn.entropy(None, covariance(a)),
    lambda a: d.MultivariateNormal(torch.zeros(3, dtype=a.dtype), covariance(a)).entropy(), SQUARE)  # fmt: skip

# -- signal ------------------------------------------------------------------------------------------------------------

_KERNEL = real("kernel", 2, 3)
for _mode in ("full", "same", "valid"):
    for _name in ("convolve", "correlate", "fftconvolve"):
        _convolve = getattr(signal, _name)
        row(f"signal.{_name} {_mode}", lambda x, y, f=_convolve, m=_mode: f(x, y, m), None, X, _KERNEL)
row("signal.convolve of sequences", lambda x, y: signal.convolve(x, y, "same"), None, V, V[:3])
row("signal.convolve of volumes", lambda x, y: signal.convolve(x, y), None, CUBE, real("small", 2, 2, 2))
row("signal.convolve of a smaller", lambda x, y: signal.convolve(x, y, "valid"), None, _KERNEL, X)
row("signal.convolve of scalars", lambda x, y: signal.convolve(x, y), torch.mul, np.array(2.0), np.array(3.0))
row("signal.convolve of complex", lambda x, y: np.real(signal.convolve(x + 1j * x, y)), lambda x, y: torch.conv2d(
    x[None, None], y.flip(0, 1)[None, None], padding=(1, 2))[0, 0], X, _KERNEL)  # fmt: skip

# -- linalg ------------------------------------------------------------------------------------------------------------

_solve = torch.linalg.solve_triangular
row("solve_triangular", lambda a, b: linalg.solve_triangular(a, b), lambda a, b: _solve(a.triu(), b, upper=True),
    SQUARE, X)  # fmt: skip
row("solve_triangular below", lambda a, b: linalg.solve_triangular(a, b, trans="T", lower=True, unit_diagonal=True),
    lambda a, b: _solve(a.tril().T.contiguous(), b[:, None], upper=True, unitriangular=True)[:, 0],
    SQUARE, V[:3])  # fmt: skip
row("solve_triangular of complex", lambda a, b: np.real(linalg.solve_triangular(a + 1j * a.T, b, trans=2)), None,
    SQUARE, X)  # fmt: skip
row("cho_solve", lambda a, b: linalg.cho_solve(linalg.cho_factor(covariance(a), lower=True), b)
    + linalg.cho_solve(linalg.cho_factor(covariance(a)), b), lambda a, b: 2 * torch.linalg.solve(covariance(a), b),
    SQUARE, X)  # fmt: skip
row("scipy cholesky", lambda a: linalg.cholesky(covariance(a)) + linalg.cholesky(covariance(a), lower=True),
    lambda a: torch.linalg.cholesky(covariance(a)) + torch.linalg.cholesky(covariance(a)).mT, SQUARE)  # fmt: skip
row("scipy solve", lambda a, b: linalg.solve(a, b) + 2 * linalg.inv(a) @ b + linalg.solve(a, b, transposed=True),
    lambda a, b: torch.linalg.solve(a, b) * 3 + torch.linalg.solve(a.T, b), SQUARE,
    X)  # fmt: skip
row("scipy det", lambda a: linalg.det(a), torch.linalg.det, CUBE[:, :, :3][:, :2, :2])
row("block_diag", lambda a, b: linalg.block_diag(a, b, a[0, 0]), lambda a, b: torch.block_diag(a, b[None], a[0, 0]),
    SQUARE, V)  # fmt: skip
for _bands in ((1, 1), (2, 0), (0, 2)):
    row(f"solve_banded {_bands}", lambda ab, b, n=_bands: linalg.solve_banded(n, np.roll(ab, n[1] - 1, axis=0), b),
        None, BANDS, V)  # fmt: skip
row("solve_banded of columns", lambda ab, b: linalg.solve_banded((1, 1), ab, b), None, BANDS, X.T)


def sylvester(a, b, q):
    """Solve a x + x b = q as one linear system."""
    rows, columns = torch.eye(len(a), dtype=a.dtype), torch.eye(len(b), dtype=b.dtype)
    whole = torch.kron(a, columns) + torch.kron(rows, b.T.contiguous())
    return torch.linalg.solve(whole, q.ravel()).reshape(q.shape)


_OTHER = real("other", 4, 4) + 3 * np.eye(4)
row("solve_sylvester", lambda a, b, q: linalg.solve_sylvester(a, b, q), sylvester, SQUARE, _OTHER, X)
row("sqrtm", lambda a: linalg.sqrtm(covariance(a)), None, SQUARE)
row("expm", lambda a: linalg.expm(0.3 * a), lambda a: torch.linalg.matrix_exp(0.3 * a), SQUARE)
row("expm of a stack", lambda a: linalg.expm(a), torch.linalg.matrix_exp, CUBE[:, :, :3])

# -- integrate ---------------------------------------------------------------------------------------------------------

row("odeint", lambda y, t, a: integrate.odeint(lambda y, t, p: p["a"] * y - np.sin(t) * p["b"] * np.sum(y), y, t,
    ({"a": a, "b": 0.5},), rtol=1e-11, atol=1e-12), None, V[:3], np.array([0.1, 0.3, 0.8]), X[0, :3],
    orders=1)  # fmt: skip
