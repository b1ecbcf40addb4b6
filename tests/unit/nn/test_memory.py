"""The memory of the Neural Turing Machine: a worked addressing, read and write, to eight digits; the order of heads."""

from __future__ import annotations

import numpy as np
import pytest

import dtrain
from dtrain.nn.memory import content_weights, cosine, interpolate, read, sharpen, shift, write

MEMORY = np.array([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]])
KEY = np.array([[[1.0, 0.2, 0]]])
BEFORE = np.array([[[0.1, 0.7, 0.1, 0.1]]])
SHIFTS = np.array([[[0.1, 0.1, 0.8]]])  # −1, 0, +1


def one(value):
    return np.array([[value]])


def check(found, expected):
    np.testing.assert_allclose(np.squeeze(found), expected, rtol=0, atol=5.1e-9)


def address(key, memory):
    content = content_weights(key, one(5.0), memory)
    return sharpen(shift(interpolate(content, one(0.6), BEFORE), SHIFTS), one(2.0))


def test_a_worked_example_to_eight_digits():
    content = content_weights(KEY, one(5.0), MEMORY)
    gated = interpolate(content, one(0.6), BEFORE)
    moved = shift(gated, SHIFTS)
    weights = sharpen(moved, one(2.0))
    check(cosine(KEY, MEMORY), [0.98058068, 0.19611614, 0, 0.83205029])
    check(content, [0.66530484, 0.01316975, 0.00493988, 0.31658553])
    check(gated, [0.4391829, 0.28790185, 0.04296393, 0.22995132])
    check(moved, [0.25666953, 0.3844329, 0.25761301, 0.10128457])
    check(weights, [0.22694215, 0.50910532, 0.22861362, 0.0353389])
    check(read(weights, MEMORY), [0.26228105, 0.54444423, 0.22861362])
    expected = [
        [0.8411405, -0.04538843, 0.20424793],
        [0.1527316, 0.64362628, 0.45819479],
        [0.06858409, -0.04572272, 1.20575226],
        [0.97526277, 0.97526277, 0.03180501],
    ]
    check(write(MEMORY, weights, np.array([[[1, 0.5, 0]]]), np.array([[[0.3, -0.2, 0.9]]])), expected)


def test_all_heads_erase_before_any_adds():
    rng = np.random.default_rng(0)
    memory, weights = rng.standard_normal((2, 5, 3)), rng.random((2, 2, 5))
    erase, add = rng.random((2, 2, 3)), rng.standard_normal((2, 2, 3))
    w, e, a = (np.moveaxis(v, 1, 0) for v in (weights, erase, add))
    expected = memory * (1 - w[0][:, :, None] * e[0][:, None]) * (1 - w[1][:, :, None] * e[1][:, None])
    expected += w[0][:, :, None] * a[0][:, None] + w[1][:, :, None] * a[1][:, None]
    np.testing.assert_allclose(write(memory, weights, erase, add), expected, rtol=1e-12)
    np.testing.assert_allclose(write(memory, weights[:, ::-1], erase[:, ::-1], add[:, ::-1]), expected, rtol=1e-12)


def test_weights_go_round_the_end_of_the_memory():
    at_the_end = np.array([[[0.0, 0, 0, 1]]])
    check(shift(at_the_end, np.array([[[0.0, 0, 1]]])), [1, 0, 0, 0])
    check(shift(np.array([[[1.0, 0, 0, 0, 0]]]), np.array([[[1.0, 0, 0, 0, 0]]])), [0, 0, 0, 1, 0])  # back by two


@pytest.mark.parametrize("memory", [MEMORY, np.full((1, 4, 3), 1e-6), np.zeros((1, 4, 3))], ids=["rows", "equal", "0"])
def test_gradients_are_finite_and_right(memory):
    def f(key, memory):
        return np.sum(address(key, memory) * np.arange(4.0))

    assert all(np.isfinite(g).all() for g in dtrain.grad(f, (0, 1))(KEY, memory))
    dtrain.check_grads(f, (KEY, MEMORY), order=2)


def test_the_weights_of_a_place_that_has_none_stay_finite_in_float32():
    weights = np.array([[[1.0, 0, 0]]], np.float32)
    value, gradient = dtrain.value_and_grad(lambda w: np.sum(sharpen(w, one(np.float32(20)))[..., 1]))(weights)
    assert value < 1e-30
    assert np.isfinite(gradient).all()
