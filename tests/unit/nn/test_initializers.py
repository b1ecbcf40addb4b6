"""Initial values: variance, dtype, and nothing but the generator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dtrain.nn.initializers import he, normal, xavier, zeros

SHAPE = (400, 200)


@pytest.mark.parametrize(
    ("values", "std"),
    [
        (lambda rng: he(rng, SHAPE), math.sqrt(2 / 400)),
        (lambda rng: he(rng, SHAPE, fan_in=50), math.sqrt(2 / 50)),
        (lambda rng: xavier(rng, SHAPE), math.sqrt(2 / 600)),
        (lambda rng: xavier(rng, SHAPE, fan_in=30, fan_out=20), math.sqrt(2 / 50)),
        (lambda rng: normal(rng, SHAPE, 0.01), 0.01),
    ],
)
def test_spread(values: object, std: float) -> None:
    assert callable(values)
    drawn, again, other = (values(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert drawn.shape == SHAPE
    assert drawn.dtype == np.float32
    # 80,000 draws: the standard error of the spread is 0.25 %, of the mean 0.35 % of the spread.
    assert drawn.std() == pytest.approx(std, rel=0.02)
    assert abs(drawn.mean()) < 0.02 * std
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, other)


def test_zeros() -> None:
    assert zeros(3).dtype == np.float32
    np.testing.assert_array_equal(zeros(2, 3), np.zeros((2, 3)))
