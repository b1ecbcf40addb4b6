# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Arithmetic, powers, rounding, extremes and comparisons: a ufunc each, with its derivative beside it.

Each rule returns one expression per input; `g` is the gradient of the output `out`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from dtrain.graph.primitive import Call, Primitive, Shape, as_tensor, primitive, record, resolve
from dtrain.graph.tensor import Tensor


@primitive(np.add)
def add(g, out, x, y):
    """Sum. It distributes the gradient to both inputs."""
    return g, g


@primitive(np.subtract)
def subtract(g, out, x, y):
    """Difference."""
    return g, -g


@primitive(np.multiply)
def multiply(g, out, x, y):
    """Product. A mul gate switches: each input's gradient is scaled by the other."""
    return g * y, g * x


@primitive(np.divide)
def divide(g, out, x, y):
    """Quotient."""
    return g / y, -g * out / y


@primitive(np.negative)
def negative(g, out, x):
    """Negation."""
    return -g


@primitive(np.positive)
def positive(g, out, x):
    """The same numbers."""
    return g


@primitive(np.sqrt)
def sqrt(g, out, x):
    """Square root."""
    return g * 0.5 / out


@primitive(np.square)
def square(g, out, x):
    """x²."""
    return g * (2.0 * x)


@primitive(np.cbrt)
def cbrt(g, out, x):
    """Cube root."""
    return g / (3.0 * np.square(out))


@primitive(np.reciprocal)
def reciprocal(g, out, x):
    """1/x."""
    return -g * np.square(out)


@primitive(np.power, name="power")
def general_power(g, out, x, y):
    """x^y for any y. The gradient of y is 0 where x is 0 (as autograd and JAX have it), that of x is y·x^(y-1), 0
    where y is 0."""
    is_flat = y == 0
    slope = np.where(is_flat, 0.0, y * np.power(x, np.where(is_flat, 1.0, y - 1.0)))
    return g * slope, g * (np.log(np.where(x == 0, 1.0, x)) * out)


@primitive(np.absolute)
def absolute(g, out, x):
    """|x|, with abs'(0) = 0; of a complex number its length."""
    if x.dtype.kind == "c":
        return g * (np.conjugate(x) / np.where(out == 0, 1.0, out))
    return g * np.sign(x)


@primitive(np.sign)
def sign(g, out, x):
    """Sign; flat. Of a complex number x/|x|."""
    if x.dtype.kind != "c":
        return None
    length = np.abs(x)
    turned = g - np.real(g * out) * np.conjugate(out)
    return np.where(length == 0, 0, turned / np.where(length == 0, 1, length))


@primitive(np.floor)
def floor(g, out, x):
    """Round down; flat."""
    return None


@primitive(np.ceil)
def ceil(g, out, x):
    """Round up; flat."""
    return None


@primitive(np.rint)
def rint(g, out, x):
    """Round to the nearest even; flat."""
    return None


@primitive(np.trunc)
def trunc(g, out, x):
    """Round towards 0; flat."""
    return None


def _share(g: Any, wins: Any, ties: Any) -> Any:
    return np.where(wins, g, np.where(ties, g * 0.5, 0.0))


@primitive(np.maximum)
def maximum(g, out, x, y):
    """The larger. The gradient goes to the winner, half and half at a tie (as PyTorch and JAX)."""
    ties = x == y
    return _share(g, x > y, ties), _share(g, y > x, ties)


@primitive(np.minimum)
def minimum(g, out, x, y):
    """The smaller. The gradient goes to the winner, half and half at a tie."""
    ties = x == y
    return _share(g, x < y, ties), _share(g, y < x, ties)


@primitive(np.fmax)
def fmax(g, out, x, y):
    """The larger, ignoring nan. The gradient goes to the winner, half and half at a tie."""
    ties = x == y
    return _share(g, np.logical_or(x > y, np.isnan(y)), ties), _share(g, np.logical_or(y > x, np.isnan(x)), ties)


@primitive(np.fmin)
def fmin(g, out, x, y):
    """The smaller, ignoring nan. The gradient goes to the winner, half and half at a tie."""
    ties = x == y
    return _share(g, np.logical_or(x < y, np.isnan(y)), ties), _share(g, np.logical_or(y < x, np.isnan(x)), ties)


@primitive(np.remainder)
def remainder(g, out, x, y):
    """x - floor(x/y)·y, with the sign of y."""
    return g, -g * np.floor(x / y)


@primitive(np.fmod)
def fmod(g, out, x, y):
    """x - trunc(x/y)·y, with the sign of x."""
    return g, -g * np.trunc(x / y)


@primitive(np.copysign)
def copysign(g, out, x, y):
    """|x| with the sign of y; flat in y, and 0 at x = 0 as |x|."""
    return g * (np.sign(x.astype(out.dtype)) * np.sign(out)), None


@primitive(np.heaviside)
def heaviside(g, out, x, y):
    """0 below 0, 1 above, y at 0; flat in x."""
    return None, np.where(x == 0, g, 0.0)


def _flat(ufunc: np.ufunc) -> Primitive:
    """Make the primitive of a ufunc without a gradient: its result is not a real number, or flat."""

    def rule(g: Any, out: Any, *inputs: Any) -> Any:
        return None

    rule.__name__ = ufunc.__name__
    rule.__doc__ = f"np.{ufunc.__name__}; no gradient."
    return primitive(ufunc, is_differentiable=False)(rule)


FLAT = {
    ufunc: _flat(ufunc)
    for ufunc in (
        np.equal,
        np.not_equal,
        np.less,
        np.less_equal,
        np.greater,
        np.greater_equal,
        np.logical_and,
        np.logical_or,
        np.logical_xor,
        np.logical_not,
        np.bitwise_and,
        np.bitwise_or,
        np.bitwise_xor,
        np.invert,
        np.isfinite,
        np.isnan,
        np.isinf,
        np.signbit,
        np.floor_divide,
        np.left_shift,
        np.right_shift,
        np.gcd,
        np.lcm,
        np.bitwise_count,
    )
}


def same_as_first(x: Any, *others: Any, **static: Any) -> tuple[Shape, np.dtype[Any]]:
    return x.shape, x.dtype


def power(x: Any, y: Any) -> Any:
    """Record x**y; a small constant power becomes products and roots, which are exact, fast and the same on every
    machine."""
    if not isinstance(y, Tensor) and np.ndim(y) == 0 and isinstance(x, Tensor) and x.dtype.kind == "f":
        dtype = getattr(y, "dtype", None)
        if dtype is None or np.promote_types(x.dtype, dtype) == x.dtype:
            p = float(y)
            if p in _POWERS:
                return _POWERS[p](x)
            if not isinstance(y, np.ndarray):
                return constant_power(x, p=p)
    return general_power(x, y)


_POWERS: dict[float, Any] = {
    0.0: lambda x: np.ones_like(x),
    1.0: lambda x: positive(x),
    2.0: lambda x: square(x),
    3.0: lambda x: square(x) * x,
    4.0: lambda x: square(square(x)),
    0.5: lambda x: sqrt(x),
    -0.5: lambda x: reciprocal(sqrt(x)),
    -1.0: lambda x: reciprocal(x),
    -2.0: lambda x: reciprocal(square(x)),
}


def _constant_power_bind(out: np.ndarray, x: np.ndarray, *, p: float) -> Call:
    return partial(np.power, x, np.array(p, x.dtype), out)


@primitive(shape=same_as_first, bind=_constant_power_bind, is_elementwise=True)
def constant_power(g, out, x, *, p):
    """x^p for a constant p that is not a small integer or a half. NumPy's pow differs in the last bit between
    processors."""
    return g * (p * np.power(x, p - 1.0))


def float_power(x: Any, y: Any) -> Any:
    """Record np.float_power, which computes in float64 at least."""
    dtype = np.result_type(*[o.dtype if isinstance(o, Tensor) else o for o in (x, y)], np.float64)
    x, y = (o.astype(dtype) if isinstance(o, Tensor) else np.asarray(o, dtype)[()] for o in (x, y))
    return power(x, y)


def fabs(x: Any) -> Any:
    """Record np.fabs, which makes floats of integers."""
    return absolute(x.astype(resolve(np.fabs, x.dtype)))


@primitive(np.ldexp, name="ldexp")
def ldexp_(g, out, x, e):
    """x·2^e for integers e."""
    return np.ldexp(g, e), None


def ldexp(x: Any, e: Any) -> Any:
    """Record np.ldexp, whose exponent takes no part in the promotion of dtypes."""
    return record(
        ldexp_, (x if isinstance(x, Tensor) else np.asarray(x), e if isinstance(e, Tensor) else np.asarray(e))
    )


def divmod_(x: Any, y: Any) -> Any:
    """Record np.divmod."""
    return np.floor_divide(x, y), np.remainder(x, y)


def modf(x: Any) -> Any:
    """Record np.modf: the fraction and the whole part, both with the sign of x."""
    x = x.astype(resolve(np.exp, x.dtype))
    whole = np.trunc(x)
    return np.where(np.isinf(x), np.copysign(0, x), np.fmod(np.where(np.isinf(x), 0, x), 1)), whole


def round_(x: Any, decimals: int = 0, out: None = None) -> Any:
    """Record np.round, half to even; flat."""
    x = as_tensor(x)
    if x.dtype.kind in "biu" and decimals >= 0:
        return x
    if decimals == 0:
        return np.rint(x)
    power_of_ten = 10.0 ** abs(decimals)
    return np.rint(x * power_of_ten) / power_of_ten if decimals > 0 else np.rint(x / power_of_ten) * power_of_ten


def sinc(x: Any) -> Any:
    """Record np.sinc: sin(πx)/(πx), 1 at 0, with all derivatives there."""
    return unnormalized_sinc(np.pi * x)


def _sinc_bind(out: np.ndarray, x: np.ndarray) -> Call:
    tiny = np.finfo(x.dtype).eps  # np.sinc's own stand-in for 0
    return lambda: np.copyto(out, np.sin(np.where(x, x, tiny)) / np.where(x, x, tiny))


@primitive(shape=same_as_first, bind=_sinc_bind)
def unnormalized_sinc(g, out, x):
    """sin(x)/x. Near 0 the derivative comes from its series, because cos(x) - sin(x)/x cancels there."""
    is_near = np.abs(x) < 0.5
    z = np.square(np.where(is_near, x, 0.0))
    series = 0.0
    for k in range(8, 0, -1):  # Σ (-1)^k 2k x^(2k-1) / (2k+1)!, exact to the last bits below 0.5
        series = z * series + (-1) ** k * 2 * k / math.factorial(2 * k + 1)
    far = np.where(is_near, 1.0, x)
    return g * np.where(is_near, x * series, (np.cos(far) - np.sin(far) / far) / far)
