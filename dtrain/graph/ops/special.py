# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""The ufuncs of scipy.special, a rule each. Imported only when a program that uses SciPy calls one of them."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from dtrain.graph.operators import SPECIAL
from dtrain.graph.primitive import Missing, Ufunc, primitive

_ROOT_PI = math.sqrt(math.pi)


@primitive(special.erf)
def erf(g, out, x):
    """The error function."""
    return g * (2.0 / _ROOT_PI * np.exp(-np.square(x)))


@primitive(special.erfc)
def erfc(g, out, x):
    """1 - erf(x)."""
    return g * (-2.0 / _ROOT_PI * np.exp(-np.square(x)))


@primitive(special.erfcx)
def erfcx(g, out, x):
    """e^(x²)·erfc(x)."""
    return g * (2.0 * x * out - 2.0 / _ROOT_PI)


@primitive(special.erfinv)
def erfinv(g, out, x):
    """The inverse of erf."""
    return g * (_ROOT_PI / 2.0 * np.exp(np.square(out)))


@primitive(special.erfcinv)
def erfcinv(g, out, x):
    """The inverse of erfc."""
    return g * (-_ROOT_PI / 2.0 * np.exp(np.square(out)))


@primitive(special.expit)
def expit(g, out, x):
    """1/(1 + e^-x)."""
    return g * (out * (1.0 - out))


@primitive(special.log_expit)
def log_expit(g, out, x):
    """log(1/(1 + e^-x))."""
    return g * special.expit(-x)


@primitive(special.logit)
def logit(g, out, x):
    """log(x/(1 - x))."""
    return g / (x * (1.0 - x))


@primitive(special.gammaln)
def gammaln(g, out, x):
    """log |Γ(x)|."""
    return g * special.psi(x)


@primitive(special.gamma)
def gamma(g, out, x):
    """Γ(x)."""
    return g * (out * special.psi(x))


@primitive(special.rgamma)
def rgamma(g, out, x):
    """1/Γ(x), away from the poles."""
    return g * (-out * special.psi(x))


@primitive(special.psi)
def psi(g, out, x):
    """The digamma function, Γ'/Γ."""
    return g * hurwitz_zeta(np.full_like(x, 2.0), x)


@primitive(special._ufuncs._zeta)
def hurwitz_zeta(g, out, s, x):
    """Σ 1/(k + x)^s; no derivative with respect to s is known in closed form."""
    return Missing("scipy.special.zeta with respect to its exponent"), g * (-s * hurwitz_zeta(s + 1.0, x))


@primitive(special.beta)
def beta(g, out, a, b):
    """Γ(a)Γ(b)/Γ(a + b)."""
    both = special.psi(a + b)
    return g * (out * (special.psi(a) - both)), g * (out * (special.psi(b) - both))


@primitive(special.betaln)
def betaln(g, out, a, b):
    """log |B(a, b)|."""
    both = special.psi(a + b)
    return g * (special.psi(a) - both), g * (special.psi(b) - both)


@primitive(special.gammasgn, is_differentiable=False)
def gammasgn(g, out, x):
    """The sign of Γ(x); flat."""


@primitive(special.gammainc)
def gammainc(g, out, a, x):
    """The regularised lower incomplete gamma function P(a, x)."""
    density = np.exp(special.xlogy(a - 1.0, x) - x - special.gammaln(a))
    return Missing("scipy.special.gammainc with respect to a"), g * density


@primitive(special.gammaincc)
def gammaincc(g, out, a, x):
    """1 - P(a, x)."""
    density = np.exp(special.xlogy(a - 1.0, x) - x - special.gammaln(a))
    return Missing("scipy.special.gammaincc with respect to a"), -g * density


@primitive(special.betainc)
def betainc(g, out, a, b, x):
    """The regularised incomplete beta function I_x(a, b)."""
    density = np.exp(special.xlogy(a - 1.0, x) + special.xlog1py(b - 1.0, -x) - special.betaln(a, b))
    missing = Missing("scipy.special.betainc with respect to a or b")
    return missing, missing, g * density


@primitive(special.stdtr)
def stdtr(g, out, df, x):
    """The cumulative distribution of Student's t."""
    half = 0.5 * (df + 1.0)
    size = np.exp(special.gammaln(half) - special.gammaln(0.5 * df)) / np.sqrt(math.pi * df)
    density = size * np.exp(-half * np.log1p(np.square(x) / df))
    return Missing("scipy.special.stdtr with respect to the degrees of freedom"), g * density


@primitive(special.xlogy)
def xlogy(g, out, x, y):
    """x·log(y), 0 where x is 0."""
    return g * np.log(y), g * (x / y)


@primitive(special.xlog1py)
def xlog1py(g, out, x, y):
    """x·log(1 + y), 0 where x is 0."""
    return g * np.log1p(y), g * (x / (1.0 + y))


@primitive(special.entr)
def entr(g, out, x):
    """-x·log(x)."""
    return g * (-np.log(x) - 1.0)


@primitive(special.rel_entr)
def rel_entr(g, out, x, y):
    """x·log(x/y)."""
    return g * (np.log(x / y) + 1.0), g * (-x / y)


@primitive(special.kl_div)
def kl_div(g, out, x, y):
    """x·log(x/y) - x + y."""
    return g * np.log(x / y), g * (1.0 - x / y)


@primitive(special.ndtr)
def ndtr(g, out, x):
    """The cumulative distribution of the standard normal."""
    return g * (np.exp(-0.5 * np.square(x)) * (1.0 / math.sqrt(2.0 * math.pi)))


@primitive(special.log_ndtr)
def log_ndtr(g, out, x):
    """The logarithm of the cumulative distribution of the standard normal."""
    return g * (np.exp(-0.5 * np.square(x) - out) * (1.0 / math.sqrt(2.0 * math.pi)))


@primitive(special.ndtri)
def ndtri(g, out, x):
    """The quantiles of the standard normal."""
    return g * (np.exp(0.5 * np.square(out)) * math.sqrt(2.0 * math.pi))


@primitive(special.i0)
def i0(g, out, x):
    """The modified Bessel function of order 0."""
    return g * special.i1(x)


@primitive(special.i1)
def i1(g, out, x):
    """The modified Bessel function of order 1."""
    near = np.abs(x) < 1e-8
    safe = np.where(near, 1.0, x)
    return g * (special.i0(x) - np.where(near, 0.5, special.i1(safe) / safe))


@primitive(special.j0)
def j0(g, out, x):
    """The Bessel function of order 0."""
    return g * -special.j1(x)


@primitive(special.j1)
def j1(g, out, x):
    """The Bessel function of order 1."""
    near = np.abs(x) < 1e-8
    safe = np.where(near, 1.0, x)
    return g * (special.j0(x) - np.where(near, 0.5, special.j1(safe) / safe))


@primitive(special.y0)
def y0(g, out, x):
    """The Bessel function of the second kind of order 0."""
    return g * -special.y1(x)


@primitive(special.y1)
def y1(g, out, x):
    """The Bessel function of the second kind of order 1."""
    return g * (special.y0(x) - out / x)


@primitive(special.k0)
def k0(g, out, x):
    """The modified Bessel function of the second kind of order 0."""
    return g * -special.k1(x)


@primitive(special.k1)
def k1(g, out, x):
    """The modified Bessel function of the second kind of order 1."""
    return g * -(special.k0(x) + out / x)


def _order(name: str) -> Missing:
    return Missing(f"scipy.special.{name} with respect to its order")


@primitive(special.jv)
def jv(g, out, v, x):
    """The Bessel function of order v (also named jn)."""
    return _order("jv"), g * 0.5 * (special.jv(v - 1.0, x) - special.jv(v + 1.0, x))


@primitive(special.yv)
def yv(g, out, v, x):
    """The Bessel function of the second kind of order v."""
    return _order("yv"), g * 0.5 * (special.yv(v - 1.0, x) - special.yv(v + 1.0, x))


@primitive(special.yn)
def yn(g, out, n, x):
    """The Bessel function of the second kind of whole order n."""
    return _order("yn"), g * 0.5 * (special.yn(n - 1, x) - special.yn(n + 1, x))


@primitive(special.iv)
def iv(g, out, v, x):
    """The modified Bessel function of order v."""
    return _order("iv"), g * 0.5 * (special.iv(v - 1.0, x) + special.iv(v + 1.0, x))


@primitive(special.ive)
def ive(g, out, v, x):
    """e^-|x|·iv(v, x)."""
    around = 0.5 * (special.ive(v - 1.0, x) + special.ive(v + 1.0, x))
    return _order("ive"), g * (around - np.sign(x) * out)


@primitive(special.kv)
def kv(g, out, v, x):
    """The modified Bessel function of the second kind of order v."""
    return _order("kv"), g * -0.5 * (special.kv(v - 1.0, x) + special.kv(v + 1.0, x))


@primitive(special.i0e)
def i0e(g, out, x):
    """e^-|x|·i0(x)."""
    return g * (special.i1e(x) - np.sign(x) * out)


@primitive(special.i1e)
def i1e(g, out, x):
    """e^-|x|·i1(x)."""
    near = np.abs(x) < 1e-8
    safe = np.where(near, 1.0, x)
    return g * (special.i0e(x) - np.where(near, 0.5, special.i1e(safe) / safe) - np.sign(x) * out)


@primitive(special.exp1)
def exp1(g, out, x):
    """∫ e^-t/t from x to ∞."""
    return g * (-np.exp(-x) / x)


@primitive(special.expi)
def expi(g, out, x):
    """∫ e^t/t from -∞ to x."""
    return g * (np.exp(x) / x)


@primitive(special.dawsn)
def dawsn(g, out, x):
    """Dawson's integral, e^(-x²)·∫ e^(t²) from 0 to x."""
    return g * (1.0 - 2.0 * x * out)


@primitive(special.sindg)
def sindg(g, out, x):
    """The sine of degrees."""
    return g * special.cosdg(x) * (math.pi / 180.0)


@primitive(special.cosdg)
def cosdg(g, out, x):
    """The cosine of degrees."""
    return g * -special.sindg(x) * (math.pi / 180.0)


SPECIAL.update({op.ufunc: op for op in list(globals().values()) if isinstance(op, Ufunc)})
