"""checkpoint: the same gradients from less memory."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain import graph

RNG = np.random.default_rng(0)
WEIGHTS = [0.4 * RNG.standard_normal((8, 8)) for _ in range(16)]
X = RNG.standard_normal((64, 8))


def block(w, x):
    h = np.tanh(x @ w)
    h = np.sin(h @ w) * 2.0
    return np.exp(-h * h) + x


def same(f):
    return f


def chain(wrap):
    def loss(weights, x):
        for w in weights:
            x = wrap(block)(w, x)
        return np.sum(x**2)

    return loss


def planned(f, *args):
    recorded = graph.trace(f, *args)
    gradients = graph.backward(recorded.outputs, None, recorded.inputs[:16])
    return graph.Plan(recorded.inputs, [*recorded.outputs, *gradients])


def assert_equal(ours, theirs):
    for a, b in zip(graph.flatten(ours)[0], graph.flatten(theirs)[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradients_of_a_deep_chain_have_the_same_bits_and_take_less_memory():
    value, kept = graph.value_and_grad(chain(same))(WEIGHTS, X)
    again, recomputed = graph.value_and_grad(chain(graph.checkpoint))(WEIGHTS, X)
    assert value == again
    assert_equal(recomputed, kept)
    whole, spared = planned(chain(same), WEIGHTS, X), planned(chain(graph.checkpoint), WEIGHTS, X)
    # Kept: the 16 inputs of the blocks and the inside of one, instead of the inside of all.
    assert spared.arena_bytes < (16 + 6) * X.nbytes + 4096
    assert spared.arena_bytes < whole.arena_bytes / 2.5


def test_parts_of_several_blocks():
    def segments(wrap):
        def segment(weights, x):
            for w in weights:
                x = block(w, x)
            return x

        def loss(weights, x):
            for i in range(0, 16, 4):
                x = wrap(segment)(weights[i : i + 4], x)
            return np.sum(x**2)

        return loss

    assert_equal(graph.grad(segments(graph.checkpoint))(WEIGHTS, X), graph.grad(chain(same))(WEIGHTS, X))
    assert (
        planned(segments(graph.checkpoint), WEIGHTS, X).arena_bytes < planned(chain(same), WEIGHTS, X).arena_bytes / 2
    )


def test_parts_within_parts():
    def inner(w, x):
        return graph.checkpoint(block)(w, x) * 0.5

    f = lambda wrap, part: lambda w, x: np.sum(wrap(part)(w, wrap(part)(w, x)))  # noqa: E731
    ours = graph.grad(f(graph.checkpoint, inner))(WEIGHTS[0], X)
    theirs = graph.grad(f(same, lambda w, x: block(w, x) * 0.5))(WEIGHTS[0], X)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_what_it_closes_over_has_its_gradient():
    def loss(wrap):
        def f(p, x):
            return np.sum(wrap(lambda x: {"y": np.tanh(x @ p["w"]), "n": 3})(x)["y"] ** 2)

        return f

    p = {"w": WEIGHTS[0]}
    assert_equal(graph.grad(loss(graph.checkpoint))(p, X), graph.grad(loss(same))(p, X))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_some_of_several_results(used):
    def two(x):
        h = np.exp(x)
        return h * 2.0, np.sin(h)

    f = lambda wrap: lambda x: sum(np.sum(wrap(two)(x)[i]) for i in used)  # noqa: E731
    x = RNG.standard_normal(5)
    np.testing.assert_array_equal(graph.grad(f(graph.checkpoint))(x), graph.grad(f(same))(x))


def test_random_masks_are_drawn_once():
    def f(wrap):
        return lambda x: np.sum(wrap(lambda x: graph.dropout(np.sin(x), 0.5))(x) * graph.dropout(x, 0.5))

    with graph.step_context(seed=1, step=2, shard=3):
        np.testing.assert_array_equal(graph.grad(f(graph.checkpoint))(X), graph.grad(f(same))(X))


def test_derivatives_of_higher_order_and_forward_mode():
    v = [np.ones_like(w) for w in WEIGHTS[:2]]
    small = WEIGHTS[:2], v, X[:3]
    for a, b in zip(graph.hvp(chain(graph.checkpoint), *small), graph.hvp(chain(same), *small), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)
    arguments, tangents = (WEIGHTS[:2], X[:3]), (v, X[3:6])
    ours, theirs = (graph.jvp(chain(wrap), arguments, tangents) for wrap in (graph.checkpoint, same))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    third = graph.grad(graph.grad(graph.grad(graph.checkpoint(lambda x: np.sin(x) * x))))
    assert third(0.3) == pytest.approx(-3 * np.sin(0.3) - 0.3 * np.cos(0.3))
    graph.check_grads(lambda w: graph.checkpoint(block)(w, X[:3]), [WEIGHTS[0]], order=2)


def test_outside_of_a_trace_it_is_the_function():
    np.testing.assert_array_equal(graph.checkpoint(block)(WEIGHTS[0], X), block(WEIGHTS[0], X))
    assert graph.checkpoint(block).__name__ == "block"


def test_constants_identities_and_python_numbers():
    f = graph.checkpoint(lambda x, y: (x, np.ones(3), y * 2.0))
    value, moved = graph.jvp(lambda x: f(x, 2.0), (np.ones(3, np.float32),), (np.full(3, 2.0, np.float32),))
    np.testing.assert_array_equal(value[1], np.ones(3))
    np.testing.assert_array_equal(moved[0], np.full(3, 2.0))
    assert moved[0].dtype == np.float32
    # A weak number stays weak.
    assert graph.grad(lambda x, s: np.sum(f(x, s)[2] * x))(np.ones(3, np.float32), 0.5).dtype == np.float32
