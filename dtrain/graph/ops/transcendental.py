# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Exponentials, logarithms, trigonometric and hyperbolic functions: a ufunc each, with its derivative beside it."""

from __future__ import annotations

import math

import numpy as np

from dtrain.graph.primitive import primitive


@primitive(np.exp)
def exp(g, out, x):
    """e^x."""
    return g * out


@primitive(np.exp2)
def exp2(g, out, x):
    """2^x."""
    return g * (out * math.log(2.0))


@primitive(np.expm1)
def expm1(g, out, x):
    """e^x - 1, exact near 0."""
    return g * (out + 1.0)


@primitive(np.log)
def log(g, out, x):
    """Natural logarithm."""
    return g / x


@primitive(np.log2)
def log2(g, out, x):
    """Logarithm to base 2."""
    return g / (x * math.log(2.0))


@primitive(np.log10)
def log10(g, out, x):
    """Logarithm to base 10."""
    return g / (x * math.log(10.0))


@primitive(np.log1p)
def log1p(g, out, x):
    """log(1 + x), exact near 0."""
    return g / (x + 1.0)


@primitive(np.sin)
def sin(g, out, x):
    """Sine."""
    return g * np.cos(x)


@primitive(np.cos)
def cos(g, out, x):
    """Cosine."""
    return -g * np.sin(x)


@primitive(np.tan)
def tan(g, out, x):
    """Tangent."""
    return g * (1.0 + np.square(out))


@primitive(np.arcsin)
def arcsin(g, out, x):
    """Inverse sine."""
    return g / np.sqrt(1.0 - np.square(x))


@primitive(np.arccos)
def arccos(g, out, x):
    """Inverse cosine."""
    return -g / np.sqrt(1.0 - np.square(x))


@primitive(np.arctan)
def arctan(g, out, x):
    """Inverse tangent."""
    return g / (1.0 + np.square(x))


@primitive(np.sinh)
def sinh(g, out, x):
    """Hyperbolic sine."""
    return g * np.cosh(x)


@primitive(np.cosh)
def cosh(g, out, x):
    """Hyperbolic cosine."""
    return g * np.sinh(x)


@primitive(np.tanh)
def tanh(g, out, x):
    """Hyperbolic tangent."""
    return g * (1.0 - np.square(out))


@primitive(np.arcsinh)
def arcsinh(g, out, x):
    """Inverse hyperbolic sine."""
    return g / np.sqrt(np.square(x) + 1.0)


@primitive(np.arccosh)
def arccosh(g, out, x):
    """Inverse hyperbolic cosine."""
    return g / (np.sqrt(x - 1.0) * np.sqrt(x + 1.0))


@primitive(np.arctanh)
def arctanh(g, out, x):
    """Inverse hyperbolic tangent."""
    return g / (1.0 - np.square(x))


@primitive(np.hypot)
def hypot(g, out, x, y):
    """√(x² + y²)."""
    return g * (x / out), g * (y / out)


@primitive(np.arctan2)
def arctan2(g, out, x, y):
    """Angle of the point (y, x) in radians."""
    x, y = x.astype(out.dtype), y.astype(out.dtype)  # the squares of small integers would wrap around
    scale = g / (np.square(x) + np.square(y))
    return y * scale, -x * scale


@primitive(np.logaddexp)
def logaddexp(g, out, x, y):
    """log(e^x + e^y) without overflow."""
    return g * np.exp(x - out), g * np.exp(y - out)


@primitive(np.logaddexp2)
def logaddexp2(g, out, x, y):
    """log2(2^x + 2^y) without overflow."""
    return g * np.exp2(x - out), g * np.exp2(y - out)


@primitive(np.deg2rad)
def deg2rad(g, out, x):
    """Degrees to radians."""
    return g * (math.pi / 180.0)


@primitive(np.radians)
def radians(g, out, x):
    """Degrees to radians."""
    return g * (math.pi / 180.0)


@primitive(np.rad2deg)
def rad2deg(g, out, x):
    """Radians to degrees."""
    return g * (180.0 / math.pi)


@primitive(np.degrees)
def degrees(g, out, x):
    """Radians to degrees."""
    return g * (180.0 / math.pi)
