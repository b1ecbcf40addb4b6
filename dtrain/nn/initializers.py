"""Initial values of parameters: float32 arrays drawn from the generator that is passed in, and from nothing else.

A weight of a linear layer has the shape (fan_in, fan_out). For other layouts the fans are given by the caller.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Array:
    """Draw from N(0, std²)."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> Array:
    """Draw from [-bound, bound)."""
    return (rng.random(shape, dtype=np.float32) * np.float32(2.0) - np.float32(1.0)) * np.float32(bound)


def he(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int | None = None) -> Array:
    """Draw from N(0, 2/fan_in), which keeps the variance through relu (He et al., arXiv:1502.01852, equation 10)."""
    return normal(rng, shape, math.sqrt(2.0 / (fan_in or math.prod(shape[:-1]))))


def xavier(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int | None = None, fan_out: int | None = None
) -> Array:
    """Draw from N(0, 2/(fan_in + fan_out)), for tanh, sigmoid and no activation (Glorot and Bengio 2010, equation 12).

    The lecture's variant, 1/fan_in, is the same for square layers: ``normal(rng, shape, fan_in**-0.5)``.
    """
    fans = (fan_in or math.prod(shape[:-1])) + (fan_out or shape[-1])
    return normal(rng, shape, math.sqrt(2.0 / fans))


def zeros(*shape: int) -> Array:
    """Zeros, for biases."""
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> Array:
    """Ones, for the scales of a normalisation."""
    return np.ones(shape, np.float32)
