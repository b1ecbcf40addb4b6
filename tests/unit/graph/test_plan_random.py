"""Random graphs: whatever memory the plan shares, the planned values and gradients are the recorded ones."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain import graph


def random_function(rng, size):
    """Return a function of three square matrices, made of `size` random operations."""
    one = [np.tanh, np.sin, lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: np.maximum(a, 0),
           lambda a: a.reshape(-1).reshape(a.shape), lambda a: np.roll(a, 1, 0), lambda a: a * 0.5, graph.sigmoid,
           lambda a: np.broadcast_to(a[:1], a.shape), lambda a: a - np.mean(a, axis=1, keepdims=True),
           lambda a: np.max(a, axis=0) + a, lambda a: np.where(a > 0, a, 0.0), lambda a: np.where(a > 0, 0.0, a),
           lambda a: np.expand_dims(a, 0)[0], lambda a: a[np.array([1, 0, 1, 2])],
           lambda a: np.cumsum(a, 0) / 4]  # fmt: skip
    two = [np.add, np.subtract, np.multiply, lambda a, b: np.tanh(a @ b), lambda a, b: a.T @ b / 4, np.maximum,
           lambda a, b: np.where(a > b, a, b), lambda a, b: np.concatenate([a[:2], b[:2]]),
           lambda a, b: (a @ b.T).T / 4]  # fmt: skip
    moves = []
    for k in range(size):
        if rng.random() < 0.5:
            moves.append((one[rng.integers(len(one))], (rng.integers(k + 3),)))
        else:
            moves.append((two[rng.integers(len(two))], tuple(rng.integers(k + 3, size=2))))
    kept = rng.integers(3, size + 3, size=3)

    def f(*inputs):
        made = list(inputs)
        for move, operands in moves:
            made.append(move(*[made[i] for i in operands]))
        return [made[i] for i in kept]

    return f


@pytest.mark.parametrize("seed", range(150))
def test_planned_is_recorded(seed):
    rng = np.random.default_rng(seed)
    f = random_function(rng, int(rng.integers(3, 30)))
    inputs = [rng.standard_normal((4, 4)) for _ in range(3)]
    recorded = graph.trace(f, *inputs)
    seeds = [rng.standard_normal((4, 4)) for _ in recorded.outputs]
    gradients = graph.backward(recorded.outputs, seeds, recorded.inputs)
    nodes = [*recorded.outputs, *gradients]
    expected = [np.array(n.value) for n in nodes]
    for ours, plain in zip(expected, f(*inputs), strict=False):
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)
    plan = graph.Plan(recorded.inputs, nodes)
    bound = plan.bind([a.copy() for a in inputs])
    for _ in range(2):
        bound.arena.memory[...] = 255  # nan, if anything unwritten were read
        bound.run()
        for node, planned, want in zip(nodes, bound.outputs, expected, strict=True):
            np.testing.assert_allclose(planned, want, rtol=1e-9, atol=1e-9, err_msg=repr(node))
    for given, kept in zip(inputs, bound.inputs, strict=True):
        np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("seed", range(30))
def test_random_gradients_pass_the_check(seed):
    rng = np.random.default_rng(1000 + seed)
    f = random_function(rng, 12)
    inputs = [rng.standard_normal((4, 4)) for _ in range(3)]
    graph.check_grads(f, inputs, tolerance=1e-5)
