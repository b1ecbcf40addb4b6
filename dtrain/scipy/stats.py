# mypy: allow-untyped-defs
# Densities are formulas: their arguments are all arrays, and types would hide the mathematics.
"""Densities and distribution functions of scipy.stats, of traced and of plain arrays; float32 stays float32.

Every name of scipy.stats is here, and every method of its distributions. Those that can be recorded are pdf, logpdf,
cdf, sf, logcdf and logsf of the continuous distributions below, pmf, logpmf, cdf and sf of the discrete ones, and pdf and
logpdf of `dirichlet` and `multivariate_normal` (entropy too). There is no derivative of a cdf with respect to the shape
of gamma, chi2, beta and t: asking for it is an error. Parameters are not checked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special, stats

from dtrain.graph import Tensor

__all__ = [
    "bernoulli",
    "beta",
    "binom",
    "cauchy",
    "chi2",
    "dirichlet",
    "expon",
    "gamma",
    "laplace",
    "logistic",
    "lognorm",
    "multivariate_normal",
    "norm",
    "poisson",
    "t",
    "uniform",
]

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)


def __getattr__(name: str) -> Any:
    return getattr(stats, name)


def _dtype(*values: Any) -> np.dtype[Any]:
    """Return the floating dtype of the arrays among the values; Python numbers follow it."""
    kinds = [v.dtype for v in values if hasattr(v, "dtype") and not getattr(v, "weak", False)]
    dtype = np.result_type(*kinds) if kinds else np.dtype(float)
    return dtype if dtype.kind == "f" else np.dtype(float)


def _arrays(*values: Any) -> list[Any]:
    dtype = _dtype(*values)
    return [v if hasattr(v, "dtype") or v is None else np.asarray(v, dtype)[()] for v in values]


class _Distribution:
    """A distribution of scipy.stats whose densities can be recorded; every other method is SciPy's."""

    shapes: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.plain = getattr(stats, name)

    def __getattr__(self, name: str) -> Any:
        if name == "plain":
            raise AttributeError(name)
        return getattr(self.plain, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.plain(*args, **options)

    def _bound(self, x: Any, args: Any, options: Any, names: tuple[str, ...]) -> list[Any]:
        """Return x and the parameters in order."""
        if len(args) > len(names) or set(options) - set(names[len(args) :]):
            raise TypeError(f"{self.name} takes x, {', '.join(names)}")
        given = {"loc": 0.0, "scale": 1.0, **dict(zip(names, args, strict=False)), **options}
        absent = [n for n in names if n not in given]
        if absent:
            raise TypeError(f"{self.name} needs {', '.join(absent)}")
        return _arrays(x, *[given[n] for n in names])


class _Continuous(_Distribution):
    low, high = -math.inf, math.inf
    inside = 0.5
    """A place where the density is finite, whatever the shapes."""

    def _standard(self, x: Any, args: Any, options: Any) -> tuple[Any, Any, Any, list[Any]]:
        """Return (x - loc)/scale, the same moved into the support, the scale and the shapes."""
        x, *shapes, loc, scale = self._bound(x, args, options, (*self.shapes, "loc", "scale"))
        y = (x - loc) / scale
        if math.isinf(self.low) and math.isinf(self.high):
            return y, y, scale, shapes
        return y, np.where((y >= self.low) & (y <= self.high), y, self.inside), scale, shapes

    def logpdf(self, x, *args, **options):
        y, safe, scale, shapes = self._standard(x, args, options)
        found = self._logpdf(safe, *shapes) - np.log(scale)
        return found if safe is y else np.where((y >= self.low) & (y <= self.high), found, -math.inf)

    def pdf(self, x, *args, **options):
        return np.exp(self.logpdf(x, *args, **options))

    def _probability(self, name, x, args, options, below, above):
        y, safe, _, shapes = self._standard(x, args, options)
        found = getattr(self, f"_{name}")(safe, *shapes)
        return found if safe is y else np.where(y < self.low, below, np.where(y > self.high, above, found))

    def cdf(self, x, *args, **options):
        return self._probability("cdf", x, args, options, 0.0, 1.0)

    def sf(self, x, *args, **options):
        return self._probability("sf", x, args, options, 1.0, 0.0)

    def logcdf(self, x, *args, **options):
        return self._probability("logcdf", x, args, options, -math.inf, 0.0)

    def logsf(self, x, *args, **options):
        return self._probability("logsf", x, args, options, 0.0, -math.inf)

    def _logpdf(self, y, *shapes):
        raise NotImplementedError

    def _cdf(self, y, *shapes):
        raise NotImplementedError

    def _sf(self, y, *shapes):
        return 1.0 - self._cdf(y, *shapes)

    def _logcdf(self, y, *shapes):
        return np.log(self._cdf(y, *shapes))

    def _logsf(self, y, *shapes):
        return np.log(self._sf(y, *shapes))


class _Symmetric(_Continuous):
    def _sf(self, y, *shapes):
        return self._cdf(-y, *shapes)

    def _logsf(self, y, *shapes):
        return self._logcdf(-y, *shapes)


class _Norm(_Symmetric):
    def _logpdf(self, y):
        return -0.5 * np.square(y) - _LOG_ROOT_2PI

    def _cdf(self, y):
        return special.ndtr(y)

    def _logcdf(self, y):
        return special.log_ndtr(y)


class _T(_Symmetric):
    shapes = ("df",)

    def _logpdf(self, y, df):
        half = 0.5 * (df + 1.0)
        size = special.gammaln(half) - special.gammaln(0.5 * df) - 0.5 * np.log(math.pi * df)
        return size - half * np.log1p(np.square(y) / df)

    def _cdf(self, y, df):
        return special.stdtr(df, y)


class _Laplace(_Symmetric):
    def _logpdf(self, y):
        return -np.abs(y) - math.log(2.0)

    def _cdf(self, y):
        tail = 0.5 * np.exp(-np.abs(y))
        return np.where(y > 0, 1.0 - tail, tail)


class _Logistic(_Symmetric):
    def _logpdf(self, y):
        return special.log_expit(y) + special.log_expit(-y)

    def _cdf(self, y):
        return special.expit(y)

    def _logcdf(self, y):
        return special.log_expit(y)


class _Cauchy(_Symmetric):
    def _logpdf(self, y):
        return -math.log(math.pi) - np.log1p(np.square(y))

    def _cdf(self, y):
        return 0.5 + np.arctan(y) / math.pi


class _Uniform(_Continuous):
    low, high = 0.0, 1.0

    def _logpdf(self, y):
        return np.zeros_like(y)

    def _cdf(self, y):
        return y


class _Expon(_Continuous):
    low = 0.0

    def _logpdf(self, y):
        return -y

    def _cdf(self, y):
        return -np.expm1(-y)

    def _sf(self, y):
        return np.exp(-y)

    def _logsf(self, y):
        return -y


class _Gamma(_Continuous):
    low = 0.0
    shapes = ("a",)

    def _logpdf(self, y, a):
        return special.xlogy(a - 1.0, y) - y - special.gammaln(a)

    def _cdf(self, y, a):
        return special.gammainc(a, y)

    def _sf(self, y, a):
        return special.gammaincc(a, y)


class _Chi2(_Gamma):
    shapes = ("df",)

    def _logpdf(self, y, df):
        return super()._logpdf(0.5 * y, 0.5 * df) - math.log(2.0)

    def _cdf(self, y, df):
        return super()._cdf(0.5 * y, 0.5 * df)

    def _sf(self, y, df):
        return super()._sf(0.5 * y, 0.5 * df)


class _Beta(_Continuous):
    low, high = 0.0, 1.0
    shapes = ("a", "b")

    def _logpdf(self, y, a, b):
        return special.xlogy(a - 1.0, y) + special.xlog1py(b - 1.0, -y) - special.betaln(a, b)

    def _cdf(self, y, a, b):
        return special.betainc(a, b, y)

    def _sf(self, y, a, b):
        return special.betainc(b, a, 1.0 - y)


class _LogNorm(_Continuous):
    low = 0.0
    shapes = ("s",)

    def _logpdf(self, y, s):
        logarithm = np.log(y)
        return -0.5 * np.square(logarithm / s) - logarithm - np.log(s) - _LOG_ROOT_2PI

    def _cdf(self, y, s):
        return special.ndtr(np.log(y) / s)

    def _sf(self, y, s):
        return special.ndtr(-np.log(y) / s)

    def _logcdf(self, y, s):
        return special.log_ndtr(np.log(y) / s)


class _Discrete(_Distribution):
    """A distribution of whole numbers from 0."""

    def _parts(self, k: Any, args: Any, options: Any) -> tuple[Any, Any, list[Any]]:
        k, *shapes, loc = self._bound(k, args, options, (*self.shapes, "loc"))
        return k - loc, np.maximum(k - loc, 0), shapes

    def logpmf(self, k, *args, **options):
        k, safe, shapes = self._parts(k, args, options)
        return np.where((k >= 0) & (np.floor(k) == k), self._logpmf(safe, *shapes), -math.inf)

    def pmf(self, k, *args, **options):
        return np.exp(self.logpmf(k, *args, **options))

    def cdf(self, k, *args, **options):
        k, safe, shapes = self._parts(k, args, options)
        return np.where(k >= 0, self._cdf(np.floor(safe), *shapes), 0.0)

    def sf(self, k, *args, **options):
        return 1.0 - self.cdf(k, *args, **options)

    def _logpmf(self, k, *shapes):
        raise NotImplementedError

    def _cdf(self, k, *shapes):
        raise NotImplementedError


class _Poisson(_Discrete):
    shapes = ("mu",)

    def _logpmf(self, k, mu):
        return special.xlogy(k, mu) - special.gammaln(k + 1.0) - mu

    def _cdf(self, k, mu):
        return special.gammaincc(k + 1.0, mu)


class _Binom(_Discrete):
    shapes = ("n", "p")

    def _logpmf(self, k, n, p):
        rest = n - k
        safe = np.maximum(rest, 0)
        ways = special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(safe + 1.0)
        return np.where(rest >= 0, ways + special.xlogy(k, p) + special.xlog1py(safe, -p), -math.inf)

    def _cdf(self, k, n, p):
        left = np.maximum(n - k, 1.0)
        return np.where(k < n, special.betainc(left, k + 1.0, 1.0 - p), 1.0)


class _Bernoulli(_Binom):
    shapes = ("p",)

    def _logpmf(self, k, p):
        return super()._logpmf(k, 1.0, p)

    def _cdf(self, k, p):
        return super()._cdf(k, 1.0, p)


class _Dirichlet(_Distribution):
    def logpdf(self, x, alpha):
        """x is (k,) or (k, n): points of the simplex, which is not checked, or without their last coordinate."""
        x, alpha = _arrays(x, alpha)
        if x.shape[0] == alpha.shape[0] - 1:
            x = np.concatenate([x, 1.0 - np.sum(x, axis=0, keepdims=True)])
        size = np.sum(special.gammaln(alpha)) - special.gammaln(np.sum(alpha))
        return np.sum(special.xlogy(alpha - 1.0, np.transpose(x)), axis=-1) - size

    def pdf(self, x, alpha):
        return np.exp(self.logpdf(x, alpha))


class _MultivariateNormal(_Distribution):
    def logpdf(self, x, mean=None, cov=1, allow_singular=False):
        """x is (…, d), cov (d, d), (d,) for a diagonal, or a number.

        The gradient of cov is symmetric. With `allow_singular` its rank must not change, and points outside of its
        range have -inf.
        """
        x, mean, cov = _arrays(x, mean, cov)
        dim, cov = self._matrix(mean, cov)
        if np.ndim(x) == 0 or (np.ndim(x) == 1 and dim == 1):
            x = np.reshape(x, (-1, 1))
        return np.squeeze(self._logpdf(x, mean, cov, dim, allow_singular))

    def pdf(self, x, mean=None, cov=1, allow_singular=False):
        return np.exp(self.logpdf(x, mean, cov, allow_singular))

    def entropy(self, mean=None, cov=1):
        mean, cov = _arrays(mean, cov)
        dim, cov = self._matrix(mean, cov)
        return 0.5 * dim * (math.log(2.0 * math.pi) + 1.0) + 0.5 * np.linalg.slogdet(cov)[1]

    def _matrix(self, mean: Any, cov: Any) -> tuple[int, Any]:
        """Return the number of coordinates and the covariance as a matrix."""
        known = [np.shape(p)[0] for p in (mean, cov) if p is not None and np.ndim(p)]
        dim = known[0] if known else 1
        return dim, cov if np.ndim(cov) == 2 else np.diag(cov) if np.ndim(cov) == 1 else cov * np.eye(dim, dtype=cov.dtype)

    def _logpdf(self, x: Any, mean: Any, cov: Any, dim: int, allow_singular: bool) -> Any:
        from_mean = x if mean is None else x - mean
        if not allow_singular:
            factor = np.linalg.cholesky(cov)
            flat = np.reshape(from_mean, (-1, dim))
            whitened = np.linalg.solve(factor, flat.T)
            distance = np.reshape(np.sum(np.square(whitened), axis=0), np.shape(from_mean)[:-1])
            return -dim * _LOG_ROOT_2PI - np.sum(np.log(np.diagonal(factor))) - 0.5 * distance
        values, vectors = np.linalg.eigh(cov)
        cutoff = 1e6 * float(np.finfo(values.dtype).eps)  # SciPy's
        kept = values > cutoff * np.max(np.abs(values))
        inverse = np.linalg.pinv(cov, cutoff, hermitian=True)
        rank = np.sum(kept.astype(values.dtype))
        size = np.sum(np.where(kept, np.log(np.where(kept, values, 1.0)), 0.0))
        distance = np.sum((from_mean @ inverse) * from_mean, axis=-1)
        left_out = np.linalg.norm(from_mean @ np.where(kept, 0.0, vectors), axis=-1)
        is_inside = left_out < 1e3 * cutoff * np.max(np.abs(values))
        return np.where(is_inside, -rank * _LOG_ROOT_2PI - 0.5 * (size + distance), -math.inf)


bernoulli, binom, poisson = _Bernoulli("bernoulli"), _Binom("binom"), _Poisson("poisson")
beta, cauchy, chi2, expon, gamma = _Beta("beta"), _Cauchy("cauchy"), _Chi2("chi2"), _Expon("expon"), _Gamma("gamma")
laplace, logistic, lognorm, norm = _Laplace("laplace"), _Logistic("logistic"), _LogNorm("lognorm"), _Norm("norm")
t, uniform = _T("t"), _Uniform("uniform")
dirichlet, multivariate_normal = _Dirichlet("dirichlet"), _MultivariateNormal("multivariate_normal")
