"""Arrays of the floats that give a wrong sum away: -0.0, denormals, infinities, and magnitudes that lose bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
SPECIAL = (-0.0, 0.0, np.inf, -np.inf, 1e-45, -1e-45, 1.0, -1.0, 3.4e38, -3.4e38)


def adversarial(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Floats:
    """Random bit patterns (no nan), a third of them around one magnitude and a quarter special values."""
    dtype = np.dtype(dtype)
    words = random.integers(0, 2 ** (8 * dtype.itemsize), shape, f"u{dtype.itemsize}", endpoint=False)
    values = words.view(dtype)
    values = np.where(random.random(shape) < 0.4, random.standard_normal(shape).astype(dtype), values)
    values = np.where(random.random(shape) < 0.25, random.choice(np.array(SPECIAL, dtype), shape), values)
    return np.where(np.isnan(values), dtype.type(-0.0), values)


def finite(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Floats:
    """Normal values over many magnitudes, so that every order of addition gives other bits; some are -0.0."""
    values = random.standard_normal(shape) * 2.0 ** random.integers(-20, 20, shape)
    return np.where(random.random(shape) < 0.05, -0.0, values).astype(dtype)


def bits(array: Floats) -> bytes:
    """The bytes of an array; every nan counts as the same, since processors choose its sign and payload."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()


def recursive_sum(leaves: list[Floats | None]) -> Floats | None:
    """The definition: the sum of both sides, cut at the largest power of two below the length; None has no part."""
    if len(leaves) == 1:
        return leaves[0]
    cut = 1
    while 2 * cut < len(leaves):
        cut *= 2
    left, right = recursive_sum(leaves[:cut]), recursive_sum(leaves[cut:])
    if left is None or right is None:
        return left if right is None else right
    return left + right
