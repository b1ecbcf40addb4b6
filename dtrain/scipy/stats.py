"""Densities and distribution functions of scipy.stats, of traced and of plain arrays; float32 stays float32.

Every name of scipy.stats is here, and every method of its distributions. Those that can be recorded are pdf, logpdf,
cdf, sf, logcdf and logsf of the continuous distributions below, pmf, logpmf, cdf and sf of the discrete ones, and pdf
and logpdf of `dirichlet` and `multivariate_normal` (entropy too). There is no derivative of a cdf with respect to the
shape of gamma, chi2, beta and t: asking for it is an error. Parameters are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special, stats

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

Formula = Callable[..., Any]
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
    """A distribution by its functions of y = (x - loc)/scale and the shapes; what is not given follows from the cdf."""

    inside = 0.5
    """A place where the density is finite, whatever the shapes."""

    def __init__(
        self,
        name: str,
        logpdf: Formula,
        cdf: Formula,
        sf: Formula | None = None,
        logcdf: Formula | None = None,
        logsf: Formula | None = None,
        shapes: tuple[str, ...] = (),
        low: float = -math.inf,
        high: float = math.inf,
        is_open: bool = False,
        is_symmetric: bool = False,
    ) -> None:
        super().__init__(name)
        self.shapes, self.low, self.high, self.is_open = shapes, low, high, is_open
        if is_symmetric:
            sf = sf or (lambda y, *shapes: cdf(-y, *shapes))
            logsf = logsf or (None if logcdf is None else lambda y, *shapes: logcdf(-y, *shapes))
        survival = sf or (lambda y, *shapes: 1.0 - cdf(y, *shapes))
        self._logpdf, self._cdf, self._sf = logpdf, cdf, survival
        self._logcdf = logcdf or (lambda y, *shapes: np.log(cdf(y, *shapes)))
        self._logsf = logsf or (lambda y, *shapes: np.log(survival(y, *shapes)))

    def _standard(self, x: Any, args: Any, options: Any) -> tuple[Any, Any, Any, list[Any]]:
        """Return (x - loc)/scale, the same moved into the support, the scale and the shapes."""
        x, *shapes, loc, scale = self._bound(x, args, options, (*self.shapes, "loc", "scale"))
        y = (x - loc) / scale
        if math.isinf(self.low) and math.isinf(self.high):
            return y, y, scale, shapes
        return y, np.where(self._is_inside(y), y, self.inside), scale, shapes

    def _is_inside(self, y: Any) -> Any:
        return (y > self.low if self.is_open else y >= self.low) & (y <= self.high)

    def logpdf(self, x: Any, *args: Any, **options: Any) -> Any:
        y, safe, scale, shapes = self._standard(x, args, options)
        found = self._logpdf(safe, *shapes) - np.log(scale)
        return found if safe is y else np.where(self._is_inside(y), found, -math.inf)

    def pdf(self, x: Any, *args: Any, **options: Any) -> Any:
        return np.exp(self.logpdf(x, *args, **options))

    def _tail(self, formula: Formula, x: Any, args: Any, options: Any, below: float, above: float) -> Any:
        y, safe, _, shapes = self._standard(x, args, options)
        found = formula(safe, *shapes)
        if safe is y:
            return found
        return np.where(y > self.high, above, np.where(self._is_inside(y), found, below))

    def cdf(self, x: Any, *args: Any, **options: Any) -> Any:
        return self._tail(self._cdf, x, args, options, 0.0, 1.0)

    def sf(self, x: Any, *args: Any, **options: Any) -> Any:
        return self._tail(self._sf, x, args, options, 1.0, 0.0)

    def logcdf(self, x: Any, *args: Any, **options: Any) -> Any:
        return self._tail(self._logcdf, x, args, options, -math.inf, 0.0)

    def logsf(self, x: Any, *args: Any, **options: Any) -> Any:
        return self._tail(self._logsf, x, args, options, 0.0, -math.inf)


class _Discrete(_Distribution):
    """A distribution of whole numbers from 0."""

    def __init__(self, name: str, logpmf: Formula, cdf: Formula, shapes: tuple[str, ...]) -> None:
        super().__init__(name)
        self.shapes, self._logpmf, self._cdf = shapes, logpmf, cdf

    def _parts(self, k: Any, args: Any, options: Any) -> tuple[Any, Any, list[Any]]:
        k, *shapes, loc = self._bound(k, args, options, (*self.shapes, "loc"))
        return k - loc, np.maximum(k - loc, 0), shapes

    def logpmf(self, k: Any, *args: Any, **options: Any) -> Any:
        k, safe, shapes = self._parts(k, args, options)
        return np.where((k >= 0) & (np.floor(k) == k), self._logpmf(safe, *shapes), -math.inf)

    def pmf(self, k: Any, *args: Any, **options: Any) -> Any:
        return np.exp(self.logpmf(k, *args, **options))

    def cdf(self, k: Any, *args: Any, **options: Any) -> Any:
        k, safe, shapes = self._parts(k, args, options)
        return np.where(k >= 0, self._cdf(np.floor(safe), *shapes), 0.0)

    def sf(self, k: Any, *args: Any, **options: Any) -> Any:
        return 1.0 - self.cdf(k, *args, **options)


class _Dirichlet(_Distribution):
    def logpdf(self, x: Any, alpha: Any) -> Any:
        """x is (k,) or (k, n): points of the simplex, which is not checked, or without their last coordinate."""
        x, alpha = _arrays(x, alpha)
        if x.shape[0] == alpha.shape[0] - 1:
            x = np.concatenate([x, 1.0 - np.sum(x, axis=0, keepdims=True)])
        size = np.sum(special.gammaln(alpha)) - special.gammaln(np.sum(alpha))
        return np.sum(special.xlogy(alpha - 1.0, np.transpose(x)), axis=-1) - size

    def pdf(self, x: Any, alpha: Any) -> Any:
        return np.exp(self.logpdf(x, alpha))


class _MultivariateNormal(_Distribution):
    def logpdf(self, x: Any, mean: Any = None, cov: Any = 1, allow_singular: bool = False) -> Any:
        """x is (…, d), cov (d, d), (d,) for a diagonal, or a number.

        The gradient of cov is symmetric. With `allow_singular` its rank must not change, and points outside of its
        range have -inf.
        """
        x, mean, cov = _arrays(x, mean, cov)
        dim, cov = self._matrix(mean, cov)
        if np.ndim(x) == 0 or (np.ndim(x) == 1 and dim == 1):
            x = np.reshape(x, (-1, 1))
        return np.squeeze(self._logpdf(x, mean, cov, dim, allow_singular))

    def pdf(self, x: Any, mean: Any = None, cov: Any = 1, allow_singular: bool = False) -> Any:
        return np.exp(self.logpdf(x, mean, cov, allow_singular))

    def entropy(self, mean: Any = None, cov: Any = 1) -> Any:
        mean, cov = _arrays(mean, cov)
        dim, cov = self._matrix(mean, cov)
        return 0.5 * dim * (math.log(2.0 * math.pi) + 1.0) + 0.5 * np.linalg.slogdet(cov)[1]

    def _matrix(self, mean: Any, cov: Any) -> tuple[int, Any]:
        """Return the number of coordinates and the covariance as a matrix."""
        known = [np.shape(p)[0] for p in (mean, cov) if p is not None and np.ndim(p)]
        dim = known[0] if known else 1
        return dim, cov if np.ndim(cov) == 2 else np.diag(cov) if np.ndim(cov) == 1 else cov * np.eye(
            dim, dtype=cov.dtype
        )

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


# -- the formulas ------------------------------------------------------------------------------------------------------


def _t_logpdf(y: Any, df: Any) -> Any:
    half = 0.5 * (df + 1.0)
    size = special.gammaln(half) - special.gammaln(0.5 * df) - 0.5 * np.log(math.pi * df)
    return size - half * np.log1p(np.square(y) / df)


def _laplace_cdf(y: Any) -> Any:
    tail = 0.5 * np.exp(-np.abs(y))
    return np.where(y > 0, 1.0 - tail, tail)


def _gamma_logpdf(y: Any, a: Any) -> Any:
    return special.xlogy(a - 1.0, y) - y - special.gammaln(a)


def _beta_logpdf(y: Any, a: Any, b: Any) -> Any:
    return special.xlogy(a - 1.0, y) + special.xlog1py(b - 1.0, -y) - special.betaln(a, b)


def _lognorm_logpdf(y: Any, s: Any) -> Any:
    logarithm = np.log(y)
    return -0.5 * np.square(logarithm / s) - logarithm - np.log(s) - _LOG_ROOT_2PI


def _binom_logpmf(k: Any, n: Any, p: Any) -> Any:
    rest = n - k
    safe = np.maximum(rest, 0)
    ways = special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(safe + 1.0)
    return np.where(rest >= 0, ways + special.xlogy(k, p) + special.xlog1py(safe, -p), -math.inf)


def _binom_cdf(k: Any, n: Any, p: Any) -> Any:
    return np.where(k < n, special.betainc(np.maximum(n - k, 1.0), k + 1.0, 1.0 - p), 1.0)


norm = _Continuous(
    "norm",
    lambda y: -0.5 * np.square(y) - _LOG_ROOT_2PI,
    special.ndtr,
    logcdf=special.log_ndtr,
    is_symmetric=True,
)
t = _Continuous("t", _t_logpdf, lambda y, df: special.stdtr(df, y), shapes=("df",), is_symmetric=True)
laplace = _Continuous("laplace", lambda y: -np.abs(y) - math.log(2.0), _laplace_cdf, is_symmetric=True)
logistic = _Continuous(
    "logistic",
    lambda y: special.log_expit(y) + special.log_expit(-y),
    special.expit,
    logcdf=special.log_expit,
    is_symmetric=True,
)
cauchy = _Continuous(
    "cauchy",
    lambda y: -math.log(math.pi) - np.log1p(np.square(y)),
    lambda y: 0.5 + np.arctan(y) / math.pi,
    is_symmetric=True,
)
uniform = _Continuous("uniform", np.zeros_like, np.positive, low=0.0, high=1.0)
expon = _Continuous("expon", np.negative, lambda y: -np.expm1(-y), sf=lambda y: np.exp(-y), logsf=np.negative, low=0.0)
gamma = _Continuous(
    "gamma",
    _gamma_logpdf,
    lambda y, a: special.gammainc(a, y),
    sf=lambda y, a: special.gammaincc(a, y),
    shapes=("a",),
    low=0.0,
)
chi2 = _Continuous(
    "chi2",
    lambda y, df: _gamma_logpdf(0.5 * y, 0.5 * df) - math.log(2.0),
    lambda y, df: special.gammainc(0.5 * df, 0.5 * y),
    sf=lambda y, df: special.gammaincc(0.5 * df, 0.5 * y),
    shapes=("df",),
    low=0.0,
)
beta = _Continuous(
    "beta",
    _beta_logpdf,
    lambda y, a, b: special.betainc(a, b, y),
    sf=lambda y, a, b: special.betainc(b, a, 1.0 - y),
    shapes=("a", "b"),
    low=0.0,
    high=1.0,
)
lognorm = _Continuous(
    "lognorm",
    _lognorm_logpdf,
    lambda y, s: special.ndtr(np.log(y) / s),
    sf=lambda y, s: special.ndtr(-np.log(y) / s),
    logcdf=lambda y, s: special.log_ndtr(np.log(y) / s),
    shapes=("s",),
    low=0.0,
    is_open=True,
)
poisson = _Discrete(
    "poisson",
    lambda k, mu: special.xlogy(k, mu) - special.gammaln(k + 1.0) - mu,
    lambda k, mu: special.gammaincc(k + 1.0, mu),
    ("mu",),
)
binom = _Discrete("binom", _binom_logpmf, _binom_cdf, ("n", "p"))
bernoulli = _Discrete("bernoulli", lambda k, p: _binom_logpmf(k, 1.0, p), lambda k, p: _binom_cdf(k, 1.0, p), ("p",))
dirichlet, multivariate_normal = _Dirichlet("dirichlet"), _MultivariateNormal("multivariate_normal")
